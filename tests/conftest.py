"""Small data sets that tests train on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("the same every time", derandomize=True)
settings.load_profile("the same every time")

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def write_pictures(folder: Path, *, each: int, side: int = 32, seed: int = 0) -> Path:
    """Noisy pictures of three colours, in a folder a colour."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(np.array(colour) + generator.normal(0, 40, (side, side, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """45 pictures of 3 classes that a linear model on pixels tells apart."""
    return write_pictures(tmp_path_factory.mktemp("colours") / "pictures", each=15)


@pytest.fixture
def tiny_plan(colours):
    """The text of a plan that trains in seconds, with `steps` filled in."""

    def text(*steps: str, data: str = f"folder: {colours}", model: str = "") -> str:
        listed = "".join(f"\n  - {step}" for step in steps)
        return (
            f"data: {{{data}}}\n"
            f"model: {{backbone: test_efficientnet, weights: none{model}}}\n"
            "hardware: {precision: fp32, layout: contiguous}\n"
            f"steps:{listed}\n"
        )

    return text
