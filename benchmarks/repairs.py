"""What repairs are worth on real images with planted faults, and how images' size and schedule count beside them.

    python -m benchmarks.repairs DATA [--only NAME ...] [--seeds 3] [--work DIR]

DATA holds the unpacked sets. Faults go into the training part; metrics are those of an untouched fifth. Every table is
what `assay ablate` makes of a plan, with rows for other labels beside it. All runs stay in WORK: a measurement that was
broken off goes on from there. What stands between the marks of docs/RESULTS.md is replaced.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import assay
from assay.experiments.ablate import Ablation, ablate, compare, folder_name
from assay.experiments.variants import Variant
from assay.plan.plan import LoadedPlan, load
from assay.progress import progress_for
from assay.report.ablation_table import markdown
from assay.run.train import Run
from benchmarks.page import replace_section
from benchmarks.planted import FAULTS, faults, plant

PLANTED_WITH = 0  # the seed of the faults, the same for all runs


@dataclass(frozen=True)
class Reference:
    """A plan beside the table: other steps, or other faults in the labels."""

    name: str
    steps: str
    faults: dict[str, float] | None = None  # None: those of the study


@dataclass(frozen=True)
class Study:
    """A plan on a set with planted faults, and what it is compared with."""

    name: str
    data: str
    faults: dict[str, float]
    steps: str
    goal: str
    alternatives: tuple[str, ...] = ()
    references: tuple[Reference, ...] = field(default=())
    seeds: int | None = None  # at most so many, where each takes long


def fit(epochs: int, size: int = 128, more: str = "") -> str:
    """A fit as a plan says it, with the settings that all studies share."""
    return (
        f"  - fit: {{size: {size}, epochs: {epochs}, lr: 5e-4, optimizer: {{kind: adamw, weight_decay: 0.02}}, "
        f"schedule: one_cycle, loss: {{smoothing: 0.1}}, augment: {{crop: [0.5, 1.0], flip: both}}, ema: 0.99{more}}}\n"
    )


PROBE = "  - probe: {size: 128}\n"
DROP = "  - clean_labels: {size: 128, action: drop}\n"
UNSET = "  - clean_labels: {size: 128, action: unset}\n"  # to be labelled anew by pseudo_label
RELABELLED = f"  - clean_labels: {{action: unset}}\n{PROBE}  - pseudo_label: {{keep: {{confidence: 0.9}}}}\n"
ROUND = (
    "  - repeat:\n      times: 1\n      steps:\n"
    "        - pseudo_label: {keep: {confidence: 0.9}}\n"
    f"      {fit(4, 64, ', start: pretrained')}"
)

STUDIES = (
    Study(
        "seedlings, 30 % of labels hidden and 15 % of the rest wrong",
        "seedlings",
        {"hide": 0.3, "flip": 0.15},
        UNSET + fit(4, 64) + ROUND,
        "what each of the two repairs is worth; every model is trained for 4 epochs from published weights",
        references=(
            Reference("neither repair", fit(4, 64)),
            Reference("all labels known and right, no repair", fit(4, 64), {}),
        ),
    ),
    Study(
        "eurosat, 20 % of labels wrong",
        "eurosat",
        {"flip": 0.2},
        PROBE + DROP + fit(6),
        "cleaned and retrained within 1.5 points of the unflipped",
        references=(
            Reference("suspects unset and labelled by the probe of the rest", RELABELLED + fit(6)),
            Reference("all labels right, no repair", PROBE + fit(6), {}),
        ),
    ),
    Study(
        "seedlings, the same faults: size of images and schedule",
        "seedlings",
        {"hide": 0.3, "flip": 0.15},
        PROBE + DROP + fit(2) + fit(1, 224),
        "128 then 224 pixels against either alone, flat_cos against one_cycle; all of 3 epochs",
        seeds=1,
        alternatives=(
            "steps.3.fit.size=128",
            "steps.2.fit.size=224",
            "steps.2.fit.schedule=flat_cos; steps.3.fit.schedule=flat_cos",
        ),
    ),
)


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", help="studies whose name holds one of these words")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-repairs")
    parser.add_argument(
        "--set", dest="changes", nargs="*", default=[], help="KEY=VALUE for every plan, to try it small"
    )
    given = parser.parse_args()
    chosen = [study for study in STUDIES if given.only is None or any(word in study.name for word in given.only)]
    if not chosen:
        raise SystemExit(f"--only: no such study. There are: {'; '.join(study.name for study in STUDIES)}")
    lines: list[str] = []
    for study in chosen:
        found = measured(study, given)
        lines += [
            f"#### {study.name}",
            "",
            f"Wanted: {study.goal}.",
            "",
            *markdown(found),
            "",
            *commands(study, given),
            "",
        ]
        sys.stderr.write("\n".join(markdown(found)) + "\n")
    if not given.changes:
        replace_section("repairs", lines)


def measured(study: Study, given: argparse.Namespace) -> Ablation:
    """The ablation of a study's plan, with its references as further rows."""
    progress = progress_for(sys.stderr)
    folder = given.work / "".join(letter if letter.isalnum() else "-" for letter in study.name)
    plan = written(study, folder / "plan.yaml", study.steps, study.faults, given)
    table = ablate(
        plan, folder / "run", alternatives=study.alternatives, seeds=seeds_of(study, given), progress=progress
    )  # fmt: skip
    rows = [row.variant for row in table.rows]
    runs: dict[tuple[int, str], Run] = {
        (seed, row.name): assay.load(folder / "run/variants" / folder_name(row.name, seed, plan.plan.seed))
        for row in rows
        for seed in table.seeds
    }
    for reference in study.references:
        planted = study.faults if reference.faults is None else reference.faults
        other = written(study, folder / f"{reference.name}.yaml", reference.steps, planted, given)
        rows.append(Variant(reference.name, reference.name, other.plan))
        for seed in table.seeds:
            seeded = replace(other, plan=other.plan.model_copy(update={"seed": seed}))
            place = folder / "references" / f"{reference.name}-{seed}"
            runs[seed, reference.name] = assay.train(seeded, run=place, progress=progress, open_test=False)
    return compare(rows, table.seeds, runs, table.metric)


def seeds_of(study: Study, given: argparse.Namespace) -> int:
    """By how many seeds a study is measured."""
    return min(given.seeds, study.seeds or given.seeds)


def written(study: Study, path: Path, steps: str, planted: dict[str, float], given: argparse.Namespace) -> LoadedPlan:
    """The plan with these steps on the study's data with these faults, written down beside it."""
    sizes = {name: planted.get(name) for name in FAULTS}
    named = "-".join(f"{name}-{size}" for name, size in sizes.items() if size is not None) or "untouched"
    table = path.parent / f"{named}.csv"
    if not table.exists():
        plant(given.data / study.data, table, faults(seed=PLANTED_WITH, **sizes))
    path.write_text(f"{table.with_suffix('.yaml').read_text()}steps:\n{steps}", encoding="utf-8")
    return load(path, overrides=given.changes)


def commands(study: Study, given: argparse.Namespace) -> list[str]:
    """How the table is made again."""
    options = " ".join(f"--{name} {size}" for name, size in study.faults.items())
    seeds = seeds_of(study, given)
    asked = " ".join(f"--alternative '{text}'" for text in study.alternatives)
    return [
        f"`python -m benchmarks.repairs DATA --only '{study.name}' --seeds {seeds}`, which is "
        f"`python -m benchmarks.planted {study.data}/ planted.csv {options} --seed {PLANTED_WITH}` and "
        f"`assay ablate plan.yaml --seeds {seeds}{' ' + asked if asked else ''}`, with these steps:",
        "",
        "```yaml",
        *f"steps:\n{study.steps}".rstrip().splitlines(),
        "```",
    ]


if __name__ == "__main__":
    main()
