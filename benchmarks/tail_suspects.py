"""Suspect labels in a long tail: how many wrong ones are found, and how many right ones of rare classes are suspected.

    python -m benchmarks.tail_suspects DATA [--seeds 0 1] [--tail 20] [--flip 0.2] [--size 96]

The training part of eurosat is thinned to a long tail, and labels are flipped to other classes, each as likely: of a
rare class most of those given are then wrong. The judge is that of the default plan. Truth is used to measure only.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

import assay
from assay.plan.yaml_lines import write
from assay.run.train import train
from benchmarks.harness import Benchmark, Options, Record, by_seed, steps_of, table
from benchmarks.planted import faults, flip, untouched

HEADER = (
    "class",
    "right labels",
    "of them suspected",
    "wrong labels",
    "of them suspected",
    "mean `wrong` of right ones",
)


def measure(options: Options, case: None, seed: int) -> Record:
    """Judge once; return by class, the most frequent first, counts of given labels and of suspects among them."""
    (tail,) = faults(seed=seed, tail=options.tail)
    right = tail(untouched(options.data / "eurosat"))
    given = flip(right, options.flip, seed=seed)
    folder = options.work
    plan: Record = {
        "data": assay.write_table(given, folder / "labels.csv"),
        "model": {"backbone": "tf_efficientnet_lite0", "features": "all_stages"},
        "hardware": {"precision": "fp32", "layout": "channels_last"},
        "seed": seed,
        "steps": [{"clean_labels": {"size": options.size}}],
    }
    (folder / "plan.yaml").write_text(write(plan), encoding="utf-8")
    train(folder / "plan.yaml", run=folder / "run", device="cpu")
    step = folder / "run" / "steps" / "01-clean_labels"
    every = pl.read_parquet(step / "labels.parquet").filter(split="train")
    suspects = pl.read_csv(step / "suspects.csv", infer_schema_length=0).filter(split="train")["image"]
    (head,), part = right.space, right.part("train")
    truth = pl.DataFrame({"image": part.ids, "true": [head.classes[code] for code in part.codes()[0].tolist()]})
    judged = every.join(truth, on="image").with_columns(
        suspect=pl.col("image").is_in(suspects.implode()), is_right=pl.col("given") == pl.col("true")
    )
    rows = [
        [
            int(of_class.height), int(of_class["suspect"].sum()),
            float(of_class["wrong"].mean()) if of_class.height else None,  # type: ignore[arg-type]
        ]
        for name in head.classes for is_right in (True, False)
        for of_class in [judged.filter(given=name, is_right=is_right)]
    ]  # fmt: skip
    gain = steps_of(folder / "run")[0]["details"]["heads"]["label"]["gain"]
    return {"classes": list(head.classes), "counts": rows, "gain": gain}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a class, counts over all seeds, and the gain of the judge's second round by seed."""
    rows = []
    for number, name in enumerate(records[0]["classes"]):
        cells = [name]
        for side in (0, 1):
            found = [record["counts"][2 * number + side] for record in records]
            labels, suspected = sum(one[0] for one in found), sum(one[1] for one in found)
            cells += [f"{labels}", f"{suspected} ({suspected / max(1, labels):.0%})"]
        doubts = [one[2] for record in records if (one := record["counts"][2 * number])[2] is not None]
        rows.append((*cells, f"{np.mean(doubts):.2f}" if doubts else ""))
    gains = [record["gain"] for record in records]
    text = "; ".join(
        f"{100 * gain['value']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]" for gain in gains
    )
    return [
        options.command,
        "",
        *table(HEADER, rows),
        "",
        f"Points gained by the judge's second round, by seed: {text}.",
    ]


if __name__ == "__main__":
    Benchmark(
        "tail suspects", __doc__, by_seed(measure, {"eurosat": None}), lines=lines, seeds=(0, 1),
        settings={"tail": 20.0, "flip": 0.2, "size": 96},
    ).main()  # fmt: skip
