"""Draws small images of shapes, so that the examples need no data."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

SHAPES = {"circle": 0, "triangle": 3, "square": 4, "star": 5}  # corners
COLOURS = {"red": (210, 50, 50), "green": (50, 170, 70), "blue": (60, 80, 210)}


def draw(path: Path, shape: str, colour: str, random: Random) -> None:
    """Write a 64 x 64 image of a shape, somewhere, of some size, on a grey background."""
    grey = random.randrange(180, 256)
    image = Image.new("RGB", (64, 64), (grey, grey, grey))
    radius = random.randint(14, 24)
    x, y = (random.randint(radius, 64 - radius) for _ in range(2))
    pen, corners = ImageDraw.Draw(image), SHAPES[shape]
    if corners == 0:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    else:
        turn = random.uniform(0, 2 * math.pi)
        jump = 2 if shape == "star" else 1  # a pentagram goes to every second corner
        angles = [turn + 2 * math.pi * jump * number / corners for number in range(corners)]
        pen.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], fill=COLOURS[colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
