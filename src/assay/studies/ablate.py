"""ablate: what each repair was worth, measured: the plan, and the plan without it, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.figures.intervals import Figure
from assay.figures.metrics import higher_is_better
from assay.figures.paired import difference, over_seeds, verdict
from assay.lock import lock
from assay.plan import LoadedPlan, load
from assay.progress import Silent, Watch
from assay.run import Run
from assay.studies.beside import train_beside
from assay.studies.scored import estimate_of, headline, seconds
from assay.studies.variants import Variant, variants

OF_A_STEP_LEFT_OUT = {"worse": "it helped", "better": "it did harm", "not told apart": "no gain shown"}


@dataclass(frozen=True)
class Row:
    """What one variant came to; figures and seconds are means over seeds."""

    variant: Variant
    figure: Figure
    change: Figure | None  # from the whole plan to this variant; None for the whole plan
    verdict: str
    seconds: float
    by_seed: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.variant.name,
            "variant": self.variant.said,
            "figure": self.figure.to_json(),
            "difference to the whole plan": self.change.to_json() if self.change else None,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 1),
            "by seed": {str(seed): value for seed, value in self.by_seed.items()},
        }


@dataclass(frozen=True)
class Ablation:
    """The whole plan and its variants, all under the same seeds."""

    figure: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def basis(self) -> str:
        """What the intervals are over."""
        pictures = f"the {self.rows[0].figure.n:,} validation pictures"
        if len(self.seeds) > 1:
            return f"95 % intervals over {pictures} and the {len(self.seeds)} seeds, differences paired"
        return f"95 % intervals over {pictures}, differences paired; of one seed, so not over what another would change"

    def to_json(self) -> dict[str, Any]:
        return {
            "figure": self.figure,
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
    figure: str | None = None,
    device: str | None = None,
    watch: Watch | None = None,
) -> Ablation:
    """Carry out a plan and its variants under the same seeds, each as a run of its own in `folder`/variants.

    Steps that begin alike are computed once, and what is finished is kept when this is called again. Labels that a
    person settled in the ledger of `folder` are settled in all of them. The test split stays closed. What the variants
    are: see `variants`. `figure` is one of validation, by default the headline.
    Raises AssayError for all that the user can mend.
    """
    told = watch or Silent()
    if figure is not None:
        higher_is_better(figure)  # what is no figure is refused before anything is trained

    def carry_out(name: str, plan: LoadedPlan) -> Run:
        return train_beside(plan, folder / "variants" / name, device=device, watch=told)

    with lock(folder):
        if not loaded.plan.steps:  # they are chosen to suit the data, which takes a run
            chosen = load(carry_out("whole", loaded).folder / "plan.yaml").plan
            loaded = replace(loaded, plan=chosen, later=())
        compared = variants(loaded.plan, without=without, alternatives=alternatives)
        numbers = tuple(range(loaded.plan.seed, loaded.plan.seed + seeds))
        runs = {
            (seed, variant.name): _told(carry_out, loaded, variant, seed, told)
            for seed in numbers
            for variant in compared
        }
        return compare(compared, numbers, runs, figure)


def _told(
    carry_out: Callable[[str, LoadedPlan], Run], loaded: LoadedPlan, variant: Variant, seed: int, watch: Watch
) -> Run:
    """Say and carry out a variant under a seed."""
    watch.line(f"-- {variant.said}, seed {seed} --")
    plan = variant.plan.model_copy(update={"seed": seed})
    return carry_out(folder_name(variant.name, seed, loaded.plan.seed), replace(loaded, plan=plan))


def folder_name(variant: str, seed: int, own: int) -> str:
    """What the folder of a variant is called; `own` is the seed that the plan names."""
    return variant if seed == own else f"{variant}-seed-{seed}"


def compare(
    compared: Sequence[Variant],
    seeds: tuple[int, ...],
    runs: Mapping[tuple[int, str], Run],
    figure: str | None = None,
) -> Ablation:
    """The table of finished runs, by seed and name of the variant; the first variant is what the others differ from.

    Raises AssayError where they cannot be compared.
    """
    whole = compared[0].name
    named = figure or headline(runs[seeds[0], whole])
    found = {variant.name: [estimate_of(runs[seed, variant.name], named) for seed in seeds] for variant in compared}
    rows = []
    for variant in compared:
        own = found[variant.name]
        change = None if variant.name == whole else difference(found[whole], own)
        said = "" if change is None else verdict(change, named)
        rows.append(
            Row(
                variant,
                over_seeds(own),
                change,
                OF_A_STEP_LEFT_OUT.get(said, "") if variant.leaves_out else said,
                float(np.mean([seconds(runs[seed, variant.name]) for seed in seeds])),
                {seed: one.value for seed, one in zip(seeds, own, strict=True)},
            )
        )
    return Ablation(named, seeds, tuple(rows))
