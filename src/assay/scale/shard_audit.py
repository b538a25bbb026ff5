"""An audit of shards: the images are looked at shard by shard, and what is found follows from a few numbers of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from assay.arrays import Floats, Ints
from assay.errors import DataError
from assay.experiments.audit import STAGES_FOLDER
from assay.experiments.audit_inputs import FOLDS, NO_HEADS, AuditData, plan_of, read_data
from assay.experiments.copy_findings import Copies, copy_findings
from assay.experiments.findings import KINDS, Audit, Finding, Findings, Kind
from assay.experiments.image_findings import class_findings, quality_findings
from assay.experiments.label_findings import overlap_findings, suspect_findings
from assay.images.cache import build
from assay.images.decode import Resize
from assay.labels.readers.read import resolve_paths
from assay.labels.samples import Samples
from assay.labels.shards import absolute_addresses
from assay.labels.split import join_groups
from assay.labels.subset import without
from assay.messages import plain, printable, quoted
from assay.models.classifier import DEFAULT_BACKBONE, build_classifier
from assay.plan.stages import DEFAULT_SIZE
from assay.predictions.inference import weights_hash
from assay.progress import Progress, advancing, quiet_libraries, stage
from assay.repair.duplicates import alike, near_pairs
from assay.repair.image_quality import classes_of, low_quality, odd_shapes
from assay.run.environment import lock
from assay.scale.executors import pick_executor
from assay.scale.indexing import count_images, index_shards
from assay.scale.jobs import Job, map_shards
from assay.scale.reductions import fold_of_groups
from assay.scale.shard_facts import ExamineShard, ShardFacts
from assay.scale.shard_labels import LabelReport, judge_head

PARTS = "shards"
"""The folder of the results of each shard, in that of an audit."""
NOT_MADE = (
    "not made over shards: outliers, shortcuts, learning curves, and near copies that are cropped or turned. Without "
    "--workers and --executor an audit has them, and decodes all images into a cache"
)
JUDGE = "confident learning by ridge regressions"


def audit_shards(
    source: Path,
    folder: Path,
    *,
    changes: tuple[str, ...] = (),
    executor: Literal["local", "ray"] = "local",
    workers: int | None = None,
    device: str | None = None,
    progress: Progress,
) -> Audit:
    """Return what is wrong with images in shards and write it in `folder`, as `audit` does, from a result a shard.

    Results that are there are kept, and do not depend on the processes. Raises AssayError.
    """
    run, chosen = pick_executor(executor, workers=workers, device=device, progress=progress)
    loaded = plan_of(source, changes=changes)
    settings, paths = loaded.plan.data, resolve_paths(loaded.plan.data, base=loaded.base)
    if not settings.shards:
        raise DataError(
            f"{'--executor' if workers is None else '--workers'}: processes share the work by shards, and "
            f"{printable(source)} is none. Leave it out, or write shards: assay shard {printable(source)} --out shards/"
        )
    given = absolute_addresses(settings.shards, loaded.base)
    column = settings.image if settings.labels is None else None
    shards = index_shards(given, folder=paths.get("index"), column=column, executor=run, progress=progress)
    data = read_data(source, changes=changes)
    if [one.state for one in data.samples.shards] != [job.shard.state for job in shards.jobs]:
        raise DataError(f"{printable(source)}: has changed since it was read. Repeat the command.")
    with lock(folder, option="--out"), quiet_libraries():
        function = _function(data, chosen)
        jobs = [
            Job(one.shard, one.index, folder / PARTS / f"{one.index.stem}-{function.key}.parquet")
            for one in shards.jobs
        ]
        with stage(progress, "examining images", shards.images):
            map_shards(function, jobs, executor=run, progress=progress, images=count_images)
        result = _audited(data, jobs, folder, resize=function.resize, progress=progress)
        result.write(folder)
    return result


def _function(data: AuditData, device: str) -> ExamineShard:
    plan, base = data.loaded.plan, data.loaded.base
    model = plan.model.chosen(DEFAULT_BACKBONE)
    backbone = build_classifier(model, NO_HEADS, seed=plan.seed, base=base, size=DEFAULT_SIZE).backbone
    return ExamineShard(
        model.model_dump_json(),
        weights_hash(backbone),
        base,
        plan.seed,
        Resize(levels=plan.data.levels),
        DEFAULT_SIZE,
        device,
    )


def _audited(data: AuditData, jobs: Sequence[Job], folder: Path, *, resize: Resize, progress: Progress) -> Audit:
    """Return what follows from the results of all shards, in their order."""
    facts = ShardFacts.read(data.samples, jobs)
    samples = without(data.samples, facts.errors)
    if not len(samples):
        first, why = next(iter(facts.errors.items()))
        raise DataError(f"None of the {len(data.samples):,} images can be read. The first: {first}: {why}")
    pairs, similarity = _near_pairs(samples, facts, folder / STAGES_FOLDER, resize=resize, progress=progress)
    copies = Copies(samples, pairs, similarity, facts.facts.widths * facts.facts.heights)
    quality = low_quality(facts.measures, classes=classes_of(samples)) | odd_shapes(facts.facts)
    findings: dict[Kind, Sequence[Finding]] = {
        **copy_findings(copies),
        **quality_findings(samples, quality),
        **class_findings(samples),
    }
    with stage(progress, "judging labels"):
        of_labels, notes = _label_findings(samples, copies, facts, seed=data.loaded.plan.seed)
    findings |= of_labels
    ordered = {kind: findings[kind] for kind in KINDS if kind in findings}
    return Audit(data.name, samples, ordered, notes=(*samples.notes, *notes, NOT_MADE))


def _near_pairs(
    samples: Samples, facts: ShardFacts, folder: Path, *, resize: Resize, progress: Progress
) -> tuple[Ints, Floats]:
    """Return pairs (P, 2) of rows that show one image: those of like hashes are decoded again, and compared in full."""
    _, first = np.unique(np.array(samples.hashes), return_index=True)  # of files of the same bytes one is enough
    first.sort()
    rows = first[alike(facts.hashes[first])]
    if len(rows) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    some = samples.take(rows)
    with stage(progress, "copies", len(rows)):
        cache, left_out = build(
            some.ids, some.paths, hashes=some.hashes, size=DEFAULT_SIZE, resize=resize, folder=folder, multiple=1.0
        )
        assert not left_out  # they were read before
        pairs, similarity = near_pairs(cache.pixels, progress=advancing(progress))
    return rows[pairs], similarity


def _label_findings(samples: Samples, copies: Copies, facts: ShardFacts, *, seed: int) -> tuple[Findings, list[str]]:
    """Return findings about labels, and how good their judges are; copies and groups are in one fold."""
    table = join_groups(samples, *copies.groups()).table
    groups = [id_ if group is None else group for group, id_ in zip(table["group"], table["id"], strict=True)]
    fold = fold_of_groups(groups, FOLDS, seed=seed)
    reports: dict[str, LabelReport] = {}
    heads = list(zip(samples.space, samples.codes(), samples.weights().T, strict=True))
    for head, codes, weights in heads:
        result = judge_head(head, codes, weights, fold, facts.features) if head.multiclass else None
        if result is not None:
            reports[head.name] = result
    notes = [f"{plain(name)}: {one.quality}" for name, one in reports.items()]
    if others := [head.name for head in samples.space if head.name not in reports]:
        notes.append(f"labels of {quoted(others)} are not judged: over shards, heads of classes are, and no tags")
    if not reports:
        return {}, notes
    overlaps = ((one.suspects.head, pair) for one in reports.values() for pair in one.overlaps)
    return {
        "suspects": suspect_findings(samples, [one.suspects for one in reports.values()], judge=JUDGE),
        "overlapping_classes": overlap_findings(samples, overlaps),
    }, notes
