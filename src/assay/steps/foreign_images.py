"""Unlabelled images that are unlike all labelled ones, and may be of no class: they get no pseudo-label."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from assay.arrays import Bools, Floats, Ints
from assay.files import write_json
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.models.classifier import Classifier
from assay.models.ensemble import Model, load_model
from assay.models.trained_model import trained_on_mask
from assay.predictions.inference import PLAIN, View
from assay.predictions.novelty import foreign, unit_features
from assay.repair.pseudo_labels import without_labels
from assay.steps.base import Context, State
from assay.steps.hardware import InputSize, inference_for
from assay.steps.start import bare_classifier, trained_before

Networks = Sequence[tuple[Classifier, InputSize]]
"""Classifiers, and what images they take."""

MOST_COMPARED = 5_000  # labelled images, and validation ones, that show what is foreign to them


def foreign_images(
    networks: Networks, features: list[Floats], asked: Ints, given: Bools, *, state: State, context: Context
) -> tuple[Bools, tuple[str, ...]]:
    """Return which training images (N,) are unlike those with a `given` label (N,), and a note of them.

    These are some of the `asked` (M,) without one, of which `features` (M, F) are those by each network. None where all
    labelled images are too few to tell; then the note says so.
    """
    marked, unlabelled = np.zeros(len(given), np.bool_), ~given[asked]
    if not unlabelled.any():
        return marked, ()
    generator = np.random.default_rng(context.seed)
    train, validation = state.samples.part("train"), state.samples.part("val")
    examples, held = (
        part.take(np.sort(generator.permutation(rows)[:MOST_COMPARED]))
        for part, rows in ((train, np.flatnonzero(given)), (validation, np.arange(len(validation))))
    )
    known, of_validation = (unit_features(network_features(networks, part, context)) for part in (examples, held))
    unseen = not all(_has_learnt(start, state, context) for start in ("previous", "pretrained"))
    far = foreign(unit_features(features), known, of_validation, unseen=unseen)
    if far is None:
        return marked, ("too few labelled images to tell which unlabelled ones are unlike the labelled ones",)
    marked[asked] = far & unlabelled
    note = (
        f"{int(marked.sum()):,} of {int(unlabelled.sum()):,} unlabelled images are unlike the labelled ones and "
        "get no label; `foreign: label` labels them too"
    )
    return marked, (note,) if marked.any() else ()


def without_foreign(
    images: Samples, settings: InputSize, state: State, context: Context
) -> tuple[Samples, tuple[str, ...]]:
    """Return training images with unknown labels without the foreign ones, and a note of these.

    They are compared at the size of the newest model, of which the labelled ones have features; without a model at that
    of the settings. What is foreign is kept with the step: the other processes, and a fit that goes on after a kill,
    leave out the same.
    """
    file = context.folder.foreign
    if not file.exists():
        train = state.samples.part("train")
        marked, notes = _foreign_of(train, images, settings, state=state, context=context)
        write_json(file, {"images": train.ids_of(np.flatnonzero(marked)), "notes": notes})
    record = json.loads(file.read_bytes())
    left_out = set(record["images"])
    kept = [row for row, image in enumerate(images.ids) if image not in left_out]
    return images.take(np.array(kept, np.int64)), tuple(record["notes"])


def _foreign_of(
    train: Samples, images: Samples, settings: InputSize, *, state: State, context: Context
) -> tuple[Bools, tuple[str, ...]]:
    before = Ledger.read(context.ledger).of(state.done).effective()
    given = np.any([head.known(without_labels(head, train, before)[0]) for head in train.space], axis=0)
    asked = np.flatnonzero(train.table["id"].is_in(images.ids).to_numpy() & ~given)
    model = None if state.model is None else load_model(state.model)
    if model is None:
        networks: Networks = [(bare_classifier(state, context, size=settings.size), settings)]
    else:
        networks = unseen_networks(model, state, context) or networks_of(model)
    features = network_features(networks, train.take(asked), context)
    return foreign_images(networks, features, asked, given, state=state, context=context)


# The networks whose features are compared.


def networks_of(model: Model) -> Networks:
    return [(network.classifier, network) for network in model.networks]


def unseen_networks(model: Model, state: State, context: Context) -> Networks | None:
    """Return what the plan begins with, where a model's features have learnt from these labels; else None.

    Only by features that no label has taught is an image with a label as near to others as one without.
    """
    if not _has_learnt("previous", state, context):
        return None
    first = model.networks[0]
    return [(bare_classifier(state, context, size=first.size), first)]


def network_features(networks: Networks, samples: Samples, context: Context, view: View = PLAIN) -> list[Floats]:
    """Return the features (N, F) of images by each network."""
    parts = []
    for classifier, of in networks:
        inference = inference_for(classifier, of, context)
        parts.append(inference.features(samples.ids, folder=context.run.cache, progress=context.progress, view=view))
        classifier.cpu()
    return parts


def _has_learnt(start: str, state: State, context: Context) -> bool:
    """Return whether the features of the model so far (`previous`), or of the weights to begin with, know labels."""
    backbone, _ = trained_before(start, state, context)
    return bool(trained_on_mask(backbone, labelled(state.samples.part("train"))).any())
