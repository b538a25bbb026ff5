"""What repairs gain on real images with planted faults, and how images' size and schedule count beside them.

    python -m benchmarks.repairs DATA [--only NAME ...] [--seeds 3] [--work DIR]

Every table is what `assay ablate` makes of a plan, where its repairs are asked about with the labels as they were
before the faults. All runs stay in WORK.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from assay.experiments.ablate import ablate
from assay.plan.plan import load
from assay.plan.recipes import recipe_text
from assay.progress import progress_for
from assay.report.ablation_table import markdown
from benchmarks.harness import Options, Record, by_seed, one_off, slug
from benchmarks.planted import faults, plant, untouched

Faults = Mapping[str, float]


@dataclass(frozen=True)
class Study:
    """A plan on a set with planted faults, and `alternatives` to ask about in place of its repairs.

    plan: all of it but its data. most_seeds: where each takes long.
    """

    data: str
    faults: Faults
    plan: str
    goal: str
    alternatives: tuple[str, ...] = ()
    most_seeds: int = 100


def fit(epochs: int, size: int = 128, more: str = "") -> str:
    """Return a fit as a plan has it, with the settings that all studies share."""
    return (
        f"  - fit: {{size: {size}, epochs: {epochs}, lr: 5e-4, optimizer: {{kind: adamw, weight_decay: 0.02}}, "
        f"schedule: one_cycle, loss: {{smoothing: 0.1}}, augment: {{crop: [0.5, 1.0], flip: both}}, ema: 0.99{more}}}\n"
    )


def without_comments(recipe: str) -> str:
    """Return the settings of a recipe."""
    return "".join(line for line in recipe_text(recipe).splitlines(keepends=True) if not line.startswith("#"))


PROBE = "  - probe: {size: 128}\n"
STEPS = "steps:\n"
DROP = "  - clean_labels: {size: 128, action: drop}\n"
UPPER = fit(6, more=", freeze: 4, views: 4, take: last, keep: last")
JUDGED_BY_THE_FIT = (
    f"  - clean_labels:\n      size: 128\n      folds: 4\n      action: {{soft: wrong}}\n      steps:\n      {UPPER}"
)
SPOILT: Faults = {"hide": 0.3, "flip": 0.15}
FLIPPED: Faults = {"flip": 0.2}
STUDIES = {
    "seedlings, 30 % of labels hidden and 15 % of the rest wrong": Study(
        "seedlings", SPOILT, STEPS + JUDGED_BY_THE_FIT + UPPER,
        "half of the gap to labels that are all known and right; the judge is the fit itself, anew for four folds",
    ),
    "eurosat, 20 % of labels wrong": Study(
        "eurosat", FLIPPED, STEPS + JUDGED_BY_THE_FIT + UPPER,
        "within 0.7 points of labels that are all right; the judge is the fit itself, anew for four folds",
    ),
    "eurosat, 20 % of labels wrong, by the recipe": Study(
        "eurosat", FLIPPED, without_comments("noisy-labels-fast"),
        "within 0.7 points of labels that are all right; the judge is on features",
    ),
    "seedlings, the same faults: size of images and schedule": Study(
        "seedlings", SPOILT, STEPS + PROBE + DROP + fit(2) + fit(1, 224),
        "128 then 224 pixels against either alone, flat_cos against one_cycle; all of 3 epochs",
        (
            "steps.3.fit.size=128", "steps.2.fit.size=224",
            "steps.2.fit.schedule=flat_cos; steps.3.fit.schedule=flat_cos",
        ),
        most_seeds=1,
    ),
}  # fmt: skip
TEXT = """\
#### {name}

Wanted: {study.goal}.

{table}

`python -m benchmarks.repairs DATA --only '{name}' --seeds {seeds}`, which is \
`python -m benchmarks.planted {study.data}/ planted.csv {planted} --seed 0` and \
`assay ablate plan.yaml --seeds {seeds}{alternatives}`, with these steps:

```yaml
{study.plan}```
"""


def measure(options: Options, study: Study, seed: int) -> Record:
    """Return the table of the ablation of a study's plan."""
    folder, source = options.work / slug(f"{study.data} {study.goal}"), options.data / study.data
    table, truth, plan = (folder / name for name in ("planted.csv", "truth.csv", "plan.yaml"))
    if not table.exists():
        plant(source, table, faults(seed=0, **study.faults))
        right = untouched(source).part("train")
        labels = np.array(right.space.heads[0].classes)[right.codes()[0]]
        pl.DataFrame({"image": right.ids, "label": labels}).write_csv(truth)
    plan.write_text(f"{table.with_suffix('.yaml').read_text()}{study.plan}", encoding="utf-8")
    ablation = ablate(
        load(plan),
        folder / "run",
        alternatives=study.alternatives,
        seeds=min(options.seeds, study.most_seeds),
        truth=None if study.alternatives else truth,
        progress=progress_for(sys.stderr),
    )
    return {"table": markdown(ablation)}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return each table, and how it is made again."""
    text = []
    for record in records:
        study = STUDIES[record["name"]]
        planted = " ".join(f"--{fault} {size}" for fault, size in study.faults.items())
        alternatives = "".join(f" --alternative '{change}'" for change in study.alternatives) or " --truth truth.csv"
        values = {"table": "\n".join(record["table"]), "seeds": min(options.seeds, study.most_seeds)}
        text += TEXT.format(
            name=record["name"], study=study, planted=planted, alternatives=alternatives, **values
        ).split("\n")
    return text


if __name__ == "__main__":
    one_off("repairs", __doc__, by_seed(measure, STUDIES), lines=lines, settings={"seeds": 3}).main()
