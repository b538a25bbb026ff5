"""Predict several attributes of an image from a table, some of them unknown.

python examples/attributes.py
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from random import Random

from shapes import COLOURS, SHAPES, draw

import assay

PLAN = """
data: {table: labels.csv, heads: {shape: {column: shape}, colour: {column: colour}}, split: {val: 0.3}}
steps:
  - probe: {size: 64}
"""


def main() -> None:
    """Draw 200 images, write a table with two attributes, a fifth of the cells blank, and train one model of both."""
    with tempfile.TemporaryDirectory() as scratch:
        work, random = Path(scratch), Random(0)
        rows = [("image", "shape", "colour")]
        for number in range(200):
            shape, colour = random.choice(list(SHAPES)), random.choice(list(COLOURS))
            draw(work / f"{number}.png", shape, colour, random)
            known = ["" if random.random() < 0.2 else value for value in (shape, colour)]  # a blank cell is unknown
            rows.append((f"{number}.png", *known))
        with (work / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        (work / "plan.yaml").write_text(PLAN)

        run = assay.train(work / "plan.yaml", run=work / "run", device="cpu")
        for name, head in run.metrics["scores"]["heads"].items():
            accuracy = head["metrics"]["accuracy"]
            print(f"{name}: accuracy {accuracy['value']:.3f}, n = {accuracy['n']}")

        draw(work / "new.png", "star", "blue", random)
        predictions = run.predict([work / "new.png"])
        print("a blue star:", *(predictions.labels(head.name)[0] for head in predictions.space))


if __name__ == "__main__":
    main()
