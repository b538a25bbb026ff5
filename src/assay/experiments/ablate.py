"""ablate: what each repair was worth, measured: the plan, and the plan without it, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.experiments.shared_steps import estimate_of, headline, seconds, train_with_shared_steps
from assay.experiments.variants import Variant, variants
from assay.metrics.intervals import Metric
from assay.metrics.metrics import higher_is_better
from assay.metrics.paired import difference, over_seeds, verdict
from assay.plan.plan import LoadedPlan, load
from assay.progress import NoProgress, Progress
from assay.run.environment import lock
from assay.run.train import Run

OF_A_STEP_LEFT_OUT = {"worse": "it helped", "better": "it did harm", "not told apart": "no gain shown"}


@dataclass(frozen=True)
class AblationRow:
    """What one variant came to; metrics and seconds are means over seeds."""

    variant: Variant
    metric: Metric
    change: Metric | None  # from the whole plan to this variant; None for the whole plan
    verdict: str
    seconds: float
    by_seed: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.variant.name,
            "variant": self.variant.said,
            "metric": self.metric.to_json(),
            "difference to the whole plan": self.change.to_json() if self.change else None,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 1),
            "by seed": {str(seed): value for seed, value in self.by_seed.items()},
        }


@dataclass(frozen=True)
class Ablation:
    """The whole plan and its variants, all under the same seeds."""

    metric: str
    seeds: tuple[int, ...]
    rows: tuple[AblationRow, ...]

    @property
    def basis(self) -> str:
        """What the intervals are over."""
        images = f"the {self.rows[0].metric.n:,} validation images"
        if len(self.seeds) > 1:
            return f"95 % intervals over {images} and the {len(self.seeds)} seeds, differences paired"
        return f"95 % intervals over {images}, differences paired; of one seed, so not over what another would change"

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "intervals": self.basis,
            "seeds": list(self.seeds),
            "variants": [row.to_json() for row in self.rows],
        }


def ablate(
    loaded: LoadedPlan,
    folder: Path,
    *,
    without: Sequence[str] = (),
    alternatives: Sequence[str] = (),
    seeds: int = 1,
    metric: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Ablation:
    """Carry out a plan and its variants under the same seeds, each as a run of its own in `folder`/variants.

    Steps that begin alike are computed once, and what is finished is kept when this is called again. Labels that a
    person settled in the ledger of `folder` are settled in all of them. The test split stays closed. What the variants
    are: see `variants`. `metric` is one of validation, by default the headline.
    Raises AssayError for all that the user can mend.
    """
    told = progress or NoProgress()
    if metric is not None:
        higher_is_better(metric)  # what is no metric is refused before anything is trained

    def carry_out(name: str, plan: LoadedPlan) -> Run:
        return train_with_shared_steps(plan, folder / "variants" / name, device=device, progress=told)

    with lock(folder):
        if not loaded.plan.steps:  # they are chosen to suit the data, which takes a run
            chosen = load(carry_out("whole", loaded).folder / "plan.yaml").plan
            loaded = replace(loaded, plan=chosen, later=())
        compared = variants(loaded.plan, without=without, alternatives=alternatives)
        numbers = tuple(range(loaded.plan.seed, loaded.plan.seed + seeds))
        runs = {
            (seed, variant.name): _interval_text(carry_out, loaded, variant, seed, told)
            for seed in numbers
            for variant in compared
        }
        return compare(compared, numbers, runs, metric)


def _interval_text(
    carry_out: Callable[[str, LoadedPlan], Run], loaded: LoadedPlan, variant: Variant, seed: int, progress: Progress
) -> Run:
    """Say and carry out a variant under a seed."""
    progress.line(f"-- {variant.said}, seed {seed} --")
    plan = variant.plan.model_copy(update={"seed": seed})
    return carry_out(folder_name(variant.name, seed, loaded.plan.seed), replace(loaded, plan=plan))


def folder_name(variant: str, seed: int, own: int) -> str:
    """What the folder of a variant is called; `own` is the seed that the plan names."""
    return variant if seed == own else f"{variant}-seed-{seed}"


def compare(
    compared: Sequence[Variant],
    seeds: tuple[int, ...],
    runs: Mapping[tuple[int, str], Run],
    metric: str | None = None,
) -> Ablation:
    """The table of finished runs, by seed and name of the variant; the first variant is what the others differ from.

    Raises AssayError where they cannot be compared.
    """
    whole = compared[0].name
    named = metric or headline(runs[seeds[0], whole])
    found = {variant.name: [estimate_of(runs[seed, variant.name], named) for seed in seeds] for variant in compared}
    rows = []
    for variant in compared:
        own = found[variant.name]
        change = None if variant.name == whole else difference(found[whole], own)
        said = "" if change is None else verdict(change, named)
        rows.append(
            AblationRow(
                variant,
                over_seeds(own),
                change,
                OF_A_STEP_LEFT_OUT.get(said, "") if variant.leaves_out else said,
                float(np.mean([seconds(runs[seed, variant.name]) for seed in seeds])),
                {seed: one.value for seed, one in zip(seeds, own, strict=True)},
            )
        )
    return Ablation(named, seeds, tuple(rows))
