"""What an audit looks at: the images as read, their pixels, features, and probabilities of their labels out of fold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from assay.arrays import Floats, Ints
from assay.files import RunFolder, fingerprint, whole
from assay.images.cache import Cache, build
from assay.images.decode import Resize
from assay.labels.corrections import corrected
from assay.labels.ledger import Ledger
from assay.labels.readers.read import read_whole, resolve_paths
from assay.labels.samples import Samples
from assay.labels.split import folds
from assay.labels.subset import labelled, without
from assay.models.classifier import ModelSettings, build_classifier
from assay.plan.defaults import DEFAULT_SIZE
from assay.plan.plan import LoadedPlan, from_source
from assay.predictions.inference import Inference, fastest_inference
from assay.progress import ForwardingProgress, Progress, advancing, stage
from assay.repair.suspects import mean_posterior

FOLDS = 5
NEIGHBOURS = 20
OUTLIER_NEIGHBOURS = 10
CHUNK = 4096
"""Images whose features are kept at once: what a killed audit loses."""


@dataclass(frozen=True)
class AuditData:
    """Images to audit, with the split that came with them, and the plan that they were read by."""

    name: str
    samples: Samples
    loaded: LoadedPlan


def read_data(source: Path, *, changes: tuple[str, ...] = ()) -> AuditData:
    """Return the images of a folder, a table, a plan or a run, with the labels that a person corrected.

    Raises AssayError.
    """
    run = RunFolder(source)
    if run.is_read:
        samples = Ledger.read(run.ledger).of(()).apply(Samples.read(run.samples))
        return AuditData(source.resolve().name, samples, from_source(run.plan, overrides=changes))
    loaded = from_source(source, overrides=changes)
    data = loaded.plan.data
    table = resolve_paths(data, base=loaded.base).get("corrections")
    return AuditData(loaded.source_name, corrected(read_whole(data, base=loaded.base), table), loaded)


@dataclass(frozen=True, eq=False)
class AuditInputs:
    """Readable images and what is computed of them, once, when it is first asked for; kept in `folder`."""

    samples: Samples
    cache: Cache
    folder: Path
    model: ModelSettings
    base: Path
    seed: int
    device: str
    progress: Progress

    @staticmethod
    def of(data: AuditData, folder: Path, *, device: str, progress: Progress) -> AuditInputs:
        """Decode the images, or reopen them; those that cannot be read are left out. Raises DataError, SpaceError."""
        samples, plan = data.samples, data.loaded.plan
        with stage(progress, "images", len(samples)):
            cache, left_out = build(
                samples.ids,
                samples.paths,
                hashes=samples.hashes,
                size=DEFAULT_SIZE,
                resize=Resize(levels=plan.data.levels),
                folder=folder,
                multiple=1.0,
                progress=advancing(progress),
            )
        readable = without(samples, {one.path: one.reason for one in left_out})
        return AuditInputs(readable, cache, folder, plan.model, data.loaded.base, plan.seed, device, progress)

    @cached_property
    def features(self) -> Floats:
        """Features (N, F) of the backbone that training would begin with."""
        classifier = build_classifier(self.model, self.samples.space, seed=self.seed, base=self.base, size=DEFAULT_SIZE)
        hardware, _ = fastest_inference(classifier, size=DEFAULT_SIZE, device=self.device)
        inference, ids = Inference(classifier, self.cache, DEFAULT_SIZE, hardware), self.samples.ids
        with stage(self.progress, "features", len(ids)):
            within = _Within(self.progress)
            parts = [
                inference.features(ids[first : first + CHUNK], folder=self.folder, progress=within)
                for first in range(0, len(ids), CHUNK)
            ]
        return np.concatenate(parts)

    @cached_property
    def key(self) -> str:
        """A hash of images, labels, backbone and seed: what findings follow from."""
        plan = (self.model.model_dump_json(), str(self.seed), str(self.base))
        return fingerprint(self.cache.key, self.samples.fingerprint(), *plan)

    @cached_property
    def distances(self) -> Floats:
        """Cosine distances (N, k) to the nearest neighbours in feature space."""
        features = self.features
        vectors = features - features.mean(axis=0)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        count = min(OUTLIER_NEIGHBOURS, len(vectors) - 1)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -np.inf)
        return (1 - np.partition(cosines, -count, axis=1)[:, len(vectors) - count :]).astype(np.float32)

    @cached_property
    def known(self) -> Samples:
        """The images with a known label."""
        return labelled(self.samples)

    @cached_property
    def fold(self) -> Ints:
        """The fold of each image with a known label; copies and groups share one."""
        return folds(self.known, FOLDS, seed=self.seed)

    @cached_property
    def probabilities(self) -> Floats | None:
        """Probabilities (M, W) of all classes for the `known` images, each by models of the other folds.

        None where there is nothing to tell apart: no label, one class alone, or images that cannot be parted.
        """
        if len(self.known) == 0 or self.known.space.width < 2 or len(np.unique(self.fold)) < 2:
            return None
        path = self.folder / f"out-of-fold-{self.key}.npy"
        if not path.exists():
            features = self.features[np.flatnonzero(self.samples.labelled())]
            with stage(self.progress, "judging the labels"):
                probabilities = mean_posterior(self.known, features, self.fold, neighbours=NEIGHBOURS, seed=self.seed)
            with whole(path) as beside, open(beside, "wb") as file:
                np.save(file, probabilities)
        loaded: Floats = np.load(path)
        return loaded


class _Within(ForwardingProgress):
    """Advances the stage that is open instead of opening others."""

    def begin(self, what: str, total: int) -> None: ...

    def end(self) -> None: ...
