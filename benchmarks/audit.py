"""How well the audit recognises near duplicates and leaks: changed copies, ten kinds of two strengths.

    python -m benchmarks.audit DATA [--seeds 0 1 2] [--each 40] [--only eurosat]

A copy is an image of the set, changed and stored as JPEG; an image is copied once at most. Copies count where no other
image of the set is like their original, and where that shows something: whether a copy of one of two pictures of one
plant is a copy of the other too has no answer. All images lie on random sides of a split. Thresholds were chosen with
seed 0. `--sheets DIR` draws the first 50 pairs of originals.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from assay.images.cache import Cache, build
from assay.images.decode import Resize
from assay.labels.readers.read import DataSettings, read
from assay.labels.space import conflicting
from assay.repair.duplicates import clusters, near_pairs, plain_images
from benchmarks.harness import SETS, Benchmark, Options, Record, by_name, by_seed, mean_and_interval, seconds_of, table

Change = Callable[[Image.Image, int, np.random.Generator], Image.Image]
Rows = npt.NDArray[np.int64]
FIRST = 50  # pairs of originals on a sheet


def crop(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Keep 90 or 75 % of each side, anywhere."""
    width, height = (round(side * (0.9, 0.75)[strength]) for side in image.size)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def resize(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Reduce to 70 or 40 % of each side."""
    return image.resize(tuple(max(1, round(side * (0.7, 0.4)[strength])) for side in image.size), rng.choice([2, 3]))


def recompress(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Store as JPEG of quality 60 or 25."""
    return stored(image, int((60, 25)[strength] + rng.integers(-5, 6)))


def brightness(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Multiply by 1.2 or 1.5, or by 1 / 1.2 or 1 / 1.5."""
    return ImageEnhance.Brightness(image).enhance(float((1.2, 1.5)[strength] ** rng.choice([-1, 1])))


def colour(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Change contrast and saturation by a factor of 1.25 or 1.7, each up or down, and the balance of the channels."""
    factor = (1.25, 1.7)[strength]
    image = ImageEnhance.Contrast(image).enhance(float(factor ** rng.choice([-1, 1])))
    image = ImageEnhance.Color(image).enhance(float(factor ** rng.choice([-1, 1])))
    gains = 1 + rng.uniform(-1, 1, 3) * (0.08, 0.2)[strength]
    return Image.fromarray(np.clip(np.asarray(image) * gains, 0, 255).astype(np.uint8))


def mirror(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Mirror, and when strong crop to 90 % of each side too."""
    return crop(ImageOps.mirror(image), 0, rng) if strength else ImageOps.mirror(image)


def blur(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Blur by a Gaussian of 0.8 or 2 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur((0.008, 0.02)[strength] * min(image.size)))


def noise(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise of deviation 6 or 15."""
    noisy = np.asarray(image) + rng.normal(0, (6, 15)[strength], (image.height, image.width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def rotate(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Rotate by 3 or 8 degrees, and cut off what lies outside."""
    angle = float((3, 8)[strength] * rng.choice([-1, 1]))
    turned = image.rotate(angle, Image.Resampling.BICUBIC, expand=False)
    slope = np.tan(np.radians(abs(angle)))
    inset = [round(other * slope / 2 + 0.5) for other in (image.height, image.width)]
    return turned.crop((inset[0], inset[1], image.width - inset[0], image.height - inset[1]))


def border(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Add a black, white or grey border of 4 or 10 % of the shorter side."""
    level = int(rng.choice([0, 128, 255]))
    return ImageOps.expand(image, max(1, round((0.04, 0.1)[strength] * min(image.size))), (level,) * 3)


KINDS: Mapping[str, Change] = {
    "crop": crop,
    "resize": resize,
    "recompress": recompress,
    "brightness": brightness,
    "colour": colour,
    "mirror": mirror,
    "blur": blur,
    "noise": noise,
    "rotate": rotate,
    "border": border,
}
STRENGTHS = ("weak", "strong")


class Planted(NamedTuple):
    """Paths of the images and then of the copies; of each copy the row of its original, its kind and strength."""

    paths: list[Path]
    originals: npt.NDArray[np.int64]
    kinds: list[tuple[str, str]]


def stored(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as it comes back from a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def plant(paths: Sequence[Path], folder: Path, *, each: int, seed: int) -> Planted:
    """Write changed copies of some of the images: `each` of every kind and strength."""
    rng = np.random.default_rng([seed, 16])
    kinds = [(kind, strength) for kind in KINDS for strength in STRENGTHS for _ in range(each)]
    originals = rng.choice(len(paths), len(kinds), replace=False)
    copies = []
    for number, (row, (kind, strength)) in enumerate(zip(originals, kinds, strict=True)):
        image = KINDS[kind](Image.open(paths[row]).convert("RGB"), STRENGTHS.index(strength), rng)
        copies.append(folder / f"{number:04d}-{kind}-{strength}.jpg")
        image.save(copies[-1], "JPEG", quality=92)
    return Planted([*paths, *copies], originals, kinds)


def measure(options: Options, name: str, seed: int) -> Record:
    """Plant copies in a set, and score the pairs and the leaks that are reported."""
    with options.scratch() as folder:
        samples = read(DataSettings.model_validate(options.data_of(name)), base=Path())
        paths = sorted(samples.paths)
        planted = plant(paths, folder, each=options.each, seed=seed)
        cache = decoded(planted.paths, folder)
        result: list[Rows] = []
        before = time.process_time()
        seconds = seconds_of(lambda: result.append(near_pairs(cache.pixels)[0]))
        cpu = time.process_time() - before
        pairs, among = result[0], result[0][result[0][:, 1] < len(paths)]
        alone = (clusters(among, len(paths)) < 0) & ~plain_images(cache.pixels)[: len(paths)]
        if options.sheets:
            draw_pairs(cache.pixels, among[:FIRST], Path(options.sheets) / f"{name}-{seed}.png")
    counts = {"images": len(paths), "alone": int(alone.sum()), "among": len(among), "seconds": round(seconds)}
    return counts | {"cpu": round(cpu)} | scores(planted, pairs, seed=seed, alone=alone)


def decoded(paths: Sequence[Path], folder: Path) -> Cache:
    """Return the images of 128 pixels."""
    ids = [str(path) for path in paths]
    return build(ids, paths, hashes=[None] * len(ids), size=128, resize=Resize(), folder=folder)[0]


def scores(planted: Planted, pairs: Rows, *, seed: int, alone: npt.NDArray[np.bool_]) -> Record:
    """Return recall and precision of pairs and of leaks; a pair with a copy in it is right if it is the planted one.

    Copies of originals that are not `alone` are left out, and all pairs with them.
    A leak is a cluster on both sides of the split; it is right where a copy and its original lie on different ones.
    Clusters of originals alone are left out of both.
    """
    count = len(planted.paths)
    first = count - len(planted.originals)
    counted = np.concatenate([np.ones(first, np.bool_), alone[planted.originals]])
    pairs = pairs[counted[pairs].all(axis=1)]
    copy_of = {first + row: int(original) for row, original in enumerate(planted.originals) if alone[original]}
    touching = [(one, other) for one, other in pairs.tolist() if other >= first]
    hits = {other - first for one, other in touching if copy_of[other] == one}
    kinds = {}
    for kind in KINDS:
        for strength in STRENGTHS:
            rows = [
                row for row, each in enumerate(planted.kinds) if each == (kind, strength) and first + row in copy_of
            ]
            kinds[f"{kind} {strength}"] = len(hits & set(rows)) / max(1, len(rows))
    sides, cluster = np.random.default_rng([seed, 17]).random(count) < 0.3, clusters(pairs, count)
    leaks = {copy: original for copy, original in copy_of.items() if sides[copy] != sides[original]}
    listed = {copy for copy, original in leaks.items() if 0 <= cluster[copy] == cluster[original]}
    torn = np.flatnonzero(conflicting(cluster, sides.astype(np.int64)))
    with_copy = {number for number in torn.tolist() if (np.flatnonzero(cluster == number) >= first).any()}
    right = {int(cluster[copy]) for copy in listed}
    return {
        "planted": len(copy_of),
        "recall": len(hits) / len(copy_of),
        "precision": len(hits) / max(1, len(touching)),
        "leaks": len(leaks),
        "leak recall": len(listed) / max(1, len(leaks)),
        "leak precision": len(right & with_copy) / max(1, len(with_copy)),
        "kinds": kinds,
    }


def draw_pairs(pixels: npt.NDArray[np.uint8], pairs: Rows, path: Path) -> None:
    """Write a sheet of pairs, ten a row, each side by side."""
    side, gap = 72, 6
    lines = -(-len(pairs) // 10)
    sheet = Image.new("RGB", (10 * (2 * side + gap), max(1, lines) * (side + gap)), "red")
    for number, pair in enumerate(pairs.tolist()):
        for column, row in enumerate(pair):
            left, top = number % 10 * (2 * side + gap) + column * side, number // 10 * (side + gap)
            sheet.paste(Image.fromarray(np.asarray(pixels[row])).resize((side, side)), (left, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table of the sets, and one of the kinds: means over seeds."""
    metrics = ("recall", "precision", "leak recall", "leak precision")
    rows, kinds = [], []
    for name, chosen in by_name(records).items():
        values = [mean_and_interval(chosen, metric) for metric in metrics]
        copies, leaks = (sum(record[count] for record in chosen) for count in ("planted", "leaks"))
        counts = [f"{chosen[0][count]:,}" for count in ("images", "alone")]
        rows.append([name, *counts, len(chosen), copies, *values[:2], leaks, *values[2:]])
        each = {kind: np.mean([record["kinds"][kind] for record in chosen]) for kind in chosen[0]["kinds"]}
        kinds.append([name, *(f"{each[f'{kind} weak']:.2f}, {each[f'{kind} strong']:.2f}" for kind in KINDS)])
    header = ("set", "images", "alone", "seeds", "copies", *metrics[:2], "leaks", *metrics[2:])
    return [options.command, "", *table(header, rows), "", *table(("recall: weak, strong", *KINDS), kinds)]


if __name__ == "__main__":
    cells, settings = by_seed(measure, {name: name for name in SETS}), {"each": 40, "sheets": ""}
    Benchmark("audit", __doc__, cells, lines=lines, settings=settings).main()
