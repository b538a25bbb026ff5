"""What an audit looks at: the images as read, their pixels, features, and probabilities of their labels out of fold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from assay.arrays import Floats, Ints
from assay.experiments.copy_findings import Copies
from assay.files import RunFolder, fingerprint, whole
from assay.images.cache import Cache, build
from assay.images.decode import Resize
from assay.images.file_facts import FileFacts, read_file_facts
from assay.labels.ledger import Ledger
from assay.labels.readers.read import read_to_look_at
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.split import join_groups, labelled_folds
from assay.labels.subset import without
from assay.models.classifier import DEFAULT_BACKBONE, ModelSettings, build_classifier
from assay.plan.plan import LoadedPlan, from_source
from assay.plan.stages import DEFAULT_SIZE
from assay.predictions.inference import Inference, fastest_inference
from assay.progress import ForwardingProgress, Progress, advancing, stage
from assay.repair.duplicates import near_pairs
from assay.repair.expectation import LinearJudge, judge_by_folds
from assay.repair.nearest import nearest
from assay.repair.neighbours import neighbour_posterior
from assay.training.feature_blocks import moments
from assay.training.fold_linear import Components

FOLDS = 5
NEIGHBOURS = 32
VOTERS = 20  # of the neighbours: those of other folds that have a label
COMPONENTS = 256  # of features: more fit no better and take longer
NO_HEADS = LabelSpace((Head("unused", ("unused",)),))
"""Of a classifier of which only the backbone is used."""

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
    run, loaded = RunFolder(source), plan_of(source, changes=changes)
    if run.is_read:
        samples = Ledger.read(run.ledger).of(()).apply(Samples.read(run.samples))
        return AuditData(source.resolve().name, samples, loaded)
    return AuditData(loaded.source_name, read_to_look_at(loaded.plan.data, base=loaded.base), loaded)


def plan_of(source: Path, *, changes: tuple[str, ...] = ()) -> LoadedPlan:
    """Return the plan of a folder, a table, a plan or a run. Raises AssayError."""
    run = RunFolder(source)
    return from_source(run.plan if run.is_read else source, overrides=changes)


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
    size: int = DEFAULT_SIZE  # of the images, in pixels

    @staticmethod
    def of(data: AuditData, folder: Path, *, device: str, progress: Progress, size: int = DEFAULT_SIZE) -> AuditInputs:
        """Decode the images, or reopen them; those that cannot be read are left out. Raises DataError, SpaceError."""
        samples, plan = data.samples, data.loaded.plan
        with stage(progress, "images", len(samples)):
            cache, left_out = build(
                samples.ids,
                samples.paths,
                hashes=samples.hashes,
                size=size,
                resize=Resize(levels=plan.data.levels),
                folder=folder,
                multiple=1.0,
                progress=advancing(progress),
            )
        readable = without(samples, {one.path: one.reason for one in left_out})
        # Nothing is trained here that another backbone could be better for. The means of its stages come with the pass.
        model = plan.model.chosen(DEFAULT_BACKBONE).model_copy(update={"features": "all_stages"})
        return AuditInputs(readable, cache, folder, model, data.loaded.base, plan.seed, device, progress, size)

    @cached_property
    def features(self) -> Floats:
        """Features (N, F) of all stages of the backbone that training would begin with."""
        classifier = build_classifier(self.model, NO_HEADS, seed=self.seed, base=self.base, size=self.size)
        # Half precision halves the time, and its rounding is far below the differences of images.
        ids = self.samples.ids
        choice = fastest_inference(classifier, size=self.size, device=self.device, half=True, images=len(ids))
        inference = Inference(classifier, self.cache, self.size, choice.hardware)
        with stage(self.progress, "features", len(ids)):
            within = _Within(self.progress)
            parts = [
                inference.features(ids[first : first + CHUNK], folder=self.folder, progress=within)
                for first in range(0, len(ids), CHUNK)
            ]
        return np.concatenate(parts)

    @cached_property
    def facts(self) -> FileFacts:
        """Size, bytes, format and camera of each file."""
        return read_file_facts(self.samples.paths)

    @cached_property
    def key(self) -> str:
        """A hash of images, labels, backbone and seed: what findings follow from."""
        plan = (self.model.model_dump_json(), str(self.seed), str(self.base))
        return fingerprint(self.cache.key, self.samples.fingerprint(), *plan)

    @cached_property
    def copies(self) -> Copies:
        """Images that show the same; the pairs are kept, since an audit that goes on begins with them."""
        path = self.folder / f"copies-{self.cache.key}.npz"
        if not path.exists():
            ids = self.samples.ids
            with stage(self.progress, "copies", len(ids)):
                pairs, similarity = near_pairs(self.cache.pixels, progress=advancing(self.progress))
            with whole(path) as beside, open(beside, "wb") as file:
                np.savez(file, pairs=pairs, similarity=similarity)
        with np.load(path) as kept:
            return Copies(self.samples, kept["pairs"], kept["similarity"], self.facts.widths * self.facts.heights)

    @cached_property
    def nearest(self) -> tuple[Ints, Floats]:
        """Rows (N, k) of the nearest other images in feature space, nearest first, and their cosines."""
        features = self.features
        mean, scale = moments(features)
        with stage(self.progress, "nearest neighbours"):
            return nearest((features - mean) / scale, NEIGHBOURS)

    @cached_property
    def fold(self) -> Ints:
        """The fold (N,) of each image with a known label, -1 of the others; copies and groups share one."""
        return labelled_folds(join_groups(self.samples, *self.copies.groups()), FOLDS, seed=self.seed)

    @property
    def can_judge(self) -> bool:
        """Whether there are labels to tell apart, of images that can be parted."""
        return self.samples.space.width > 1 and len(np.unique(self.fold[self.fold >= 0])) > 1

    @cached_property
    def components(self) -> Components:
        """Principal components of the features, on which linear models are fitted."""
        return Components.of(self.features, COMPONENTS)

    @cached_property
    def linear(self) -> LinearJudge:
        """Linear models, each fitted to all folds but one."""
        samples = self.samples
        with stage(self.progress, "fitting linear models"):
            return judge_by_folds(samples.space, self.components, samples.codes(), samples.weights(), self.fold)

    @cached_property
    def probabilities(self) -> Floats:
        """Probabilities (N, W) of all classes by models of the other folds: the mean of a linear and a local one."""
        rows, cosines = self.nearest
        local = [
            neighbour_posterior(head, codes, rows, cosines, fold=self.fold, neighbours=VOTERS)
            for head, codes in zip(self.samples.space, self.samples.codes(), strict=True)
        ]
        return np.asarray((self.linear.probabilities + np.concatenate(local, axis=1)) / 2, np.float32)


class _Within(ForwardingProgress):
    """Advances the stage that is open instead of opening others."""

    def begin(self, what: str, total: int) -> None: ...

    def end(self) -> None: ...
