"""ablate: the gain of each repair of a plan, measured by training with it and without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from assay.errors import DataError
from assay.experiments.shared_steps import Spread, estimate_of, spread_out, train_with_shared_steps
from assay.experiments.variants import PLAIN, RIGHT, Variant, variants, without_any_repair
from assay.files import RunFolder
from assay.labels.corrections import corrected
from assay.labels.readers.read import read
from assay.metrics.intervals import Metric, over_seeds, share_of_gap
from assay.metrics.metrics import difference, higher_is_better, verdict
from assay.models.classifier import AUTO
from assay.plan.plan import LoadedPlan, load
from assay.progress import Lines, NoProgress, Progress
from assay.run.environment import lock
from assay.run.train import Run
from assay.run.train import load as load_run

VERDICTS_LEFT_OUT = {"worse": "it helped", "better": "it did harm", "not told apart": "no gain shown"}
"""Verdict on the plan without a step -> verdict on the step."""


@dataclass(frozen=True)
class AblationRow:
    """The result of one variant; metrics and seconds are means over seeds."""

    variant: Variant
    metric: Metric
    change: Metric | None  # from the whole plan to this variant; None for the whole plan
    verdict: str
    seconds: float
    by_seed: dict[int, float]
    share: Metric | None = None  # of the gap to right labels that is closed: by the whole plan, or by the step left out

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.variant.name,
            "variant": self.variant.title,
            "metric": self.metric.to_json(),
            "difference to the whole plan": self.change.to_json() if self.change else None,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 1),
            "by seed": {str(seed): value for seed, value in self.by_seed.items()},
            "share of the gap": self.share.to_json() if self.share else None,
        }


@dataclass(frozen=True)
class Ablation:
    """The whole plan and its variants, all under the same seeds."""

    metric: str
    seeds: tuple[int, ...]
    rows: tuple[AblationRow, ...]

    @property
    def knows_gap(self) -> bool:
        """Whether any share of the gap to right labels is known."""
        return any(row.share for row in self.rows)

    @property
    def basis(self) -> str:
        """The sources of chance that the intervals cover."""
        images = f"the {self.rows[0].metric.n:,} validation images"
        if len(self.seeds) > 1:
            return f"95 % intervals over {images} and the {len(self.seeds)} seeds, differences paired"
        return f"95 % intervals over {images}, differences paired; of one seed, so not over what another would change"

    def to_json(self) -> dict[str, object]:
        return {
            "metric": self.metric,
            "intervals": self.basis,
            "seeds": list(self.seeds),
            "variants": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True)
class _Job:
    """A run of an ablation."""

    title: str
    plan: LoadedPlan
    folder: Path
    device: str | None

    def train(self, progress: Progress) -> Run:
        if self.title:
            progress.line(f"-- {self.title} --")
        return train_with_shared_steps(self.plan, self.folder, device=self.device, progress=progress)


def ablate(  # noqa: PLR0913  (the options of the command)
    loaded: LoadedPlan,
    folder: Path,
    *,
    without: Sequence[str] = (),
    alternatives: Sequence[str] = (),
    seeds: int = 1,
    metric: str | None = None,
    truth: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> Ablation:
    """Carry out a plan and its variants under the same seeds, each as a run of its own in `folder`/variants.

    Steps that begin alike are computed once, and what is finished is kept when this is called again. Labels that a
    person settled in the ledger of `folder` are settled in all of them. The test split stays closed. What the variants
    are: see `variants`. `metric` is one of validation, by default the headline. With `spread` they are run elsewhere,
    several at once, in the same folder. `truth` is a table of right labels of training images, as corrections are:
    with it the plan is also run without any repair, on the labels as they are and on right ones.
    Raises AssayError for all that the user can mend.
    """
    progress = progress or NoProgress()
    if metric is not None:
        higher_is_better(metric)  # what is no metric is refused before anything is trained
    if truth is not None:
        _require_training_labels(loaded, truth)
    with lock(folder):
        if not loaded.plan.steps or loaded.plan.model.backbone == AUTO:  # chosen to suit the data, which takes a run
            whole = _Job("", loaded, folder / "variants" / "whole", device)
            _carry_out([whole], spread, progress)
            loaded = replace(loaded, plan=load(RunFolder(whole.folder).plan).plan, later=())
        compared = variants(loaded.plan, without=without, alternatives=alternatives)
        compared += [] if truth is None else without_any_repair(loaded.plan, truth)
        numbers = tuple(range(loaded.plan.seed, loaded.plan.seed + seeds))
        jobs: dict[tuple[int, str], _Job] = {}
        for seed in numbers:
            for variant in compared:
                plan = replace(loaded, plan=variant.plan.model_copy(update={"seed": seed}))
                name = folder_name(variant.name, seed, loaded.plan.seed)
                title = f"{variant.title}, seed {seed}"
                jobs[seed, variant.name] = _Job(title, plan, folder / "variants" / name, device)
        _carry_out(list(jobs.values()), spread, progress)
        return compare(compared, numbers, {key: load_run(job.folder) for key, job in jobs.items()}, metric)


def _require_training_labels(loaded: LoadedPlan, truth: Path) -> None:
    """Raise AssayError for a table of right labels that is none, or that settles any but training labels."""
    without_any_repair(loaded.plan, truth)  # refuses a plan with corrections of its own
    samples = read(loaded.plan.data, base=loaded.base)
    settled = corrected(samples, truth)
    for split in ("val", "test"):
        codes = zip(samples.part(split).codes(), settled.part(split).codes(), strict=True)
        if any((before != after).any() for before, after in codes):
            raise DataError(
                f"--truth {truth}: it changes labels of {split}, by which all variants are compared. Keep the lines of "
                "training images alone."
            )


def _carry_out(jobs: Sequence[_Job], spread: Spread | None, progress: Progress) -> None:
    """Train, here or elsewhere; there the first run ends before the others begin, which take over what they share."""
    if spread is None:
        for job in jobs:
            job.train(progress)
        return
    for at_once in (jobs[:1], jobs[1:]):
        spread_out(spread, _train_elsewhere, at_once, progress)


def _train_elsewhere(job: _Job) -> list[str]:
    """Train in a process of its own, and return the lines."""
    lines = Lines()
    job.train(lines)
    return lines.lines


def folder_name(variant: str, seed: int, plan_seed: int) -> str:
    """Return the name of the folder of a variant under a seed; `plan_seed` is the one that the plan names."""
    return variant if seed == plan_seed else f"{variant}-seed-{seed}"


def compare(
    compared: Sequence[Variant],
    seeds: tuple[int, ...],
    runs: Mapping[tuple[int, str], Run],
    metric: str | None = None,
) -> Ablation:
    """Return the table of finished runs (by seed and name of the variant); differences are to the first variant.

    Raises AssayError where they cannot be compared.
    """
    whole = compared[0].name
    name = metric or runs[seeds[0], whole].record.headline
    estimates = {variant.name: [estimate_of(runs[seed, variant.name], name) for seed in seeds] for variant in compared}
    rows = []
    for variant in compared:
        by_seed, share = estimates[variant.name], None
        if RIGHT in estimates and (variant.leaves_out or variant.name == whole):
            begin = estimates[PLAIN] if variant.name == whole else by_seed
            share = share_of_gap(begin, estimates[whole], low=estimates[PLAIN], high=estimates[RIGHT])
        change = None if variant.name == whole else difference(estimates[whole], by_seed)
        text = "" if change is None else verdict(change, name)
        rows.append(
            AblationRow(
                variant,
                over_seeds(by_seed),
                change,
                VERDICTS_LEFT_OUT.get(text, "") if variant.leaves_out else text,
                float(np.mean([runs[seed, variant.name].record.step_seconds for seed in seeds])),
                {seed: estimate.value for seed, estimate in zip(seeds, by_seed, strict=True)},
                share,
            )
        )
    return Ablation(name, seeds, tuple(rows))
