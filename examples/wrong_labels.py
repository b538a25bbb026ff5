"""Find wrong labels, settle them, and train again.

python examples/wrong_labels.py
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from random import Random

import polars as pl
from shapes import COLOURS, SHAPES, draw

import assay

PLAN = """
data: {table: labels.csv, split: {val: 0.3}%s}
steps:
  - clean_labels: {size: 64}
  - probe: {size: 64}
"""


def write_data(work: Path) -> dict[str, str]:
    """Draw 240 images and write labels.csv, in which 15 % are wrong; return the true labels."""
    random, truth = Random(0), {}
    rows = [("image", "shape")]
    for number in range(240):
        shape = list(SHAPES)[number % 4]
        wrong = random.choice([other for other in SHAPES if other != shape])
        draw(work / f"{number}.png", shape, random.choice(list(COLOURS)), random)
        truth[f"{number}.png"] = shape
        rows.append((f"{number}.png", wrong if random.random() < 0.15 else shape))
    with (work / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return truth


def main() -> None:
    """List the suspects, correct them as a person who looks at each would, and carry the plan out again."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        truth = write_data(work)
        plan = work / "plan.yaml"
        plan.write_text(PLAN % "")
        run = assay.train(plan, run=work / "run", device="cpu")
        suspects = pl.read_csv(run.folder / "steps" / "01-clean_labels" / "suspects.csv")
        wrong = sum(truth[image] != given for image, given in suspects.select("image", "given").iter_rows())
        print(f"{len(suspects)} suspect labels, {wrong} of them wrong")

        # A person looks at the suspects. The table has image, head, class and label; head may be left out.
        settled = [{"image": image, "label": truth[image]} for image in suspects["image"]]
        pl.DataFrame(settled).write_csv(work / "settled.csv")
        plan.write_text(PLAN % ", corrections: settled.csv")
        again = assay.train(plan, run=work / "run-2", device="cpu")
        shapes = [list(SHAPES)[number % 4] for number in range(80)]
        new = [work / "new" / f"{number}.png" for number in range(80)]
        for path, shape in zip(new, shapes, strict=True):
            draw(path, shape, "green", Random(path.name))
        for name, one in (("before", run), ("after", again)):
            right = sum(a == b for a, b in zip(one.predict(new).labels("shape"), shapes, strict=True))
            print(f"{right} of {len(new)} new images are predicted right {name}")


if __name__ == "__main__":
    main()
