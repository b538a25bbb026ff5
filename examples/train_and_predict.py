"""Train on a folder with a folder for each class, and predict new images.

python examples/train_and_predict.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

from shapes import COLOURS, SHAPES, draw

import assay

PLAN = """
data: {folder: photos/, split: {val: 0.4}}
steps:
  - probe: {size: 64}
"""


def main() -> None:
    """Draw 160 images of four shapes, train a linear model on a pretrained network, and predict 20 others."""
    with tempfile.TemporaryDirectory() as scratch:
        work, random = Path(scratch), Random(0)
        for number in range(160):
            shape, colour = list(SHAPES)[number % 4], random.choice(list(COLOURS))
            draw(work / "photos" / shape / f"{number}.png", shape, colour, random)
        (work / "plan.yaml").write_text(PLAN)

        run = assay.train(work / "plan.yaml", run=work / "run", device="cpu")
        accuracy = run.metrics["scores"]["metrics"]["accuracy"]
        print(f"validation accuracy {accuracy['value']:.3f}, n = {accuracy['n']}")

        truth = [list(SHAPES)[number % 4] for number in range(20)]
        new = [work / f"new-{number}.png" for number in range(20)]
        for path, shape in zip(new, truth, strict=True):
            draw(path, shape, random.choice(list(COLOURS)), random)
        labels = run.predict(new).labels("label")
        right = sum(label == shape for label, shape in zip(labels, truth, strict=True))
        print(f"{right} of {len(new)} new images are predicted right")


if __name__ == "__main__":
    main()
