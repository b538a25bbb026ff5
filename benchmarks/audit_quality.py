"""Flaws of images and shortcuts, planted and searched for by what `assay audit` uses.

    python -m benchmarks.audit_quality DATA [--seeds 0 1 2]

Flaws: of each set 2 % of the images are made dark, 2 % bright, 2 % plain and 2 % blurred, half of them strongly, among
those that have something to lose. Shortcuts: 20 draws in which a watermark or a frame marks one class of a set, and
20 clean ones. Images that are named before anything is planted are left out of the count, and counted beside it.
"""

import io
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from assay.arrays import Ints, Pixels
from assay.images.cache import build
from assay.images.decode import Resize
from assay.images.file_facts import read_file_facts
from assay.labels.readers.read import read
from assay.labels.samples import Samples
from assay.labels.split import folds
from assay.plan.plan import from_source
from assay.plan.yaml_lines import write
from assay.repair.image_quality import Quality, classes_of, low_quality, measure, reduced
from assay.repair.shortcuts import all_cue_scores
from benchmarks.harness import SETS, Benchmark, Cell, Options, Record, by_name, table

KINDS: tuple[Quality, ...] = ("dark", "bright", "low_information", "blurred")
SHARE = 0.02  # of the images, of each kind
LEAST_SPAN, LEAST_DETAIL = 60.0, 4.0  # of an image that has something to lose
DRAWS, DRAW_IMAGES = 20, 2_500


class Loaded(NamedTuple):
    """A data set, with its pixels as an audit caches them."""

    samples: Samples
    pixels: Pixels


def load(options: Options, name: str) -> Loaded:
    """Decode a set, or reopen it."""
    plan = options.work / f"{name}.yaml"
    plan.write_text(write({"data": options.data_of(name)}), encoding="utf-8")
    loaded = from_source(plan)
    samples = read(loaded.plan.data, base=loaded.base)
    cache, _ = build(
        samples.ids, samples.paths, hashes=samples.hashes, size=128, resize=Resize(), folder=options.work / "cache",
        multiple=1.0,
    )  # fmt: skip
    return Loaded(samples, np.asarray(cache.pixels))


def spoilt(image: Pixels, kind: Quality, *, strong: bool, random: np.random.Generator) -> Pixels:
    """Return an image (S, S, 3) with a flaw, after JPEG compression.

    dark: a quarter of the light, or an eighth; bright: as near to white. low_information: 6 % or 3 % of the contrast,
    or one colour with noise. blurred: a Gaussian of 3 % of the side, at least 2 pixels, or of twice that.
    """
    values, side = image.astype(np.float32), image.shape[0]
    factor = 0.125 if strong else 0.25
    if kind == "dark":
        values *= factor
    elif kind == "bright":
        values = 255 - (255 - values) * factor
    elif kind == "blurred":
        sigma = max(2.0, 0.03 * side) * (2 if strong else 1)
        values = gaussian_filter(values, (sigma, sigma, 0))
    elif random.random() < 0.5:
        middle = float(values.mean())
        values = min(max(middle, 80.0), 175.0) + (values - middle) * (0.03 if strong else 0.06)
    else:
        values = random.uniform(80, 175, 3) + random.normal(0, 1 if strong else 3, values.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return np.array(Image.open(buffer))


def flaws(options: Options, name: str, seed: int) -> Record:
    """Plant flaws in a set and return what is named."""
    data, random = load(options, name), np.random.default_rng([seed, 1])
    classes = classes_of(data.samples)
    before = measure(data.pixels)
    named = {kind: set(one.rows.tolist()) for kind, one in low_quality(before, classes=classes).items()}
    already = set().union(*(named[kind] for kind in KINDS))
    able = np.flatnonzero((before.span >= LEAST_SPAN) & (before.detail >= LEAST_DETAIL))
    able = random.permutation(np.setdiff1d(able, list(already)))
    count, pixels = round(SHARE * len(classes)), data.pixels.copy()
    planted = {kind: able[number * count : (number + 1) * count] for number, kind in enumerate(KINDS)}
    for kind, rows in planted.items():
        for number, row in enumerate(rows.tolist()):
            pixels[row] = spoilt(pixels[row], kind, strong=number % 2 == 1, random=random)
    after = low_quality(measure(pixels), classes=classes)
    record: Record = {"images": len(classes), "able": len(able) / len(classes), "kinds": {}}
    for kind, rows in planted.items():
        found = set(after[kind].rows.tolist())
        hits = {strength: len(found & set(rows[strength::2].tolist())) for strength in (0, 1)}
        wrong = found - set(rows.tolist())
        record["kinds"][kind] = {
            "planted": len(rows), "weak": hits[0], "strong": hits[1], "wrong": len(wrong - already),
            "before": len(named[kind]),
        }  # fmt: skip
    return record


def marked(images: Pixels, rows: Ints, *, frame: bool, random: np.random.Generator) -> Pixels:
    """Return images (N, S, S, 3) with a frame or a watermark on these rows, the same on each."""
    images, side = images.copy(), images.shape[1]
    if frame:
        width, colour = max(1, round(random.uniform(0.015, 0.06) * side)), random.integers(0, 256, 3)
        mask = np.ones((side, side), np.bool_)
        mask[width:-width, width:-width] = False
        for row in rows.tolist():
            images[row][mask] = colour
        return images
    size, opacity = round(random.uniform(0.2, 0.35) * side), random.uniform(0.4, 0.9)
    stamp = Image.new("L", (size, size))
    letters = "".join(random.choice(list("ABCDEFGHKLMNPRSTUVXYZ"), 3))
    ImageDraw.Draw(stamp).text((0, size // 5), letters, fill=255, font=ImageFont.load_default(max(6, size // 2)))
    down, across = (random.choice([1, side - size - 1]) for _ in range(2))
    weight = np.array(stamp, np.float32)[..., None] / 255 * opacity
    for row in rows.tolist():
        part = images[row, down : down + size, across : across + size]
        part[...] = np.rint(part * (1 - weight) + 255 * weight)
    return images


def draw(options: Options, number: int, *, planted: bool) -> Record:
    """Return what a draw of some images of a set names, with one class marked where it is planted."""
    name = list(SETS)[number % len(SETS)]
    data, random = load(options, name), np.random.default_rng([number, 2])
    rows = np.sort(random.permutation(len(data.samples))[:DRAW_IMAGES])
    samples, images, frame = data.samples.take(rows), data.pixels[rows], number // len(SETS) % 2 == 0
    target = None
    if planted:
        head = int(random.integers(len(samples.space)))
        present = samples.space.heads[head].present(samples.codes()[head])
        label = int(random.choice(np.flatnonzero(present.sum(axis=0) >= 30)))
        target = (samples.space.heads[head].name, samples.space.heads[head].classes[label])
        images = marked(images, np.flatnonzero(present[:, label]), frame=frame, random=random)
    scores = all_cue_scores(samples, reduced(images), read_file_facts(samples.paths), folds(samples, 5, seed=0))
    sure = [(one.head, one.label, one.cue) for one in scores if one.named]
    hit = target is not None and (*target, "border" if frame else "corners") in sure
    return {
        "set": name, "mark": ("frame" if frame else "watermark") if planted else "none", "hit": hit,
        "others": len({one[:2] for one in sure} - {target}), "named": sure,
    }  # fmt: skip


def cells(options: Options) -> list[Cell]:
    """Return the cells: each set by each seed, and the draws."""
    each = [Cell(name, seed, partial(flaws, options, name, seed)) for seed in options.seeds for name in SETS]
    return each + [
        Cell(f"draw, {'marked' if planted else 'clean'}", number, partial(draw, options, number, planted=planted))
        for planted in (True, False)
        for number in range(DRAWS)
    ]


def lines(options: Options, records: list[Record]) -> list[str]:
    """Return the tables of flaws and of shortcuts."""
    sets = {name: rows for name, rows in by_name(records).items() if name in SETS}
    rows = []
    for name, measured in sets.items():
        for kind in KINDS:
            sums = {key: sum(one["kinds"][kind][key] for one in measured) for key in measured[0]["kinds"][kind]}
            hits, planted = sums["weak"] + sums["strong"], sums["planted"]
            strong = sum(one["kinds"][kind]["planted"] // 2 for one in measured)
            before = measured[0]["kinds"][kind]["before"]
            all_named, every = hits + sums["wrong"], hits + sums["wrong"] + before * len(measured)
            rows.append([
                name, kind.replace("_", " "), planted, f"{hits / planted:.3f}",
                f"{sums['weak'] / (planted - strong):.3f}, {sums['strong'] / strong:.3f}",
                f"{hits / max(1, all_named):.3f}", before, f"{hits / max(1, every):.3f}",
            ])  # fmt: skip
    header = ["set", "flaw", "planted", "recall", "weak, strong", "precision", "named before", "precision with those"]
    draws = [row for row in records if row["name"].startswith("draw")]
    marks = []
    for mark in ("frame", "watermark", "none"):
        of_mark = [row for row in draws if row["mark"] == mark]
        hits = sum(row["hit"] for row in of_mark) if mark != "none" else "-"
        marks.append([mark, len(of_mark), hits, sum(bool(row["others"]) for row in of_mark)])
    columns = ["mark", "draws", "class and cue named", "draws with another class named"]
    return [options.command, "", *table(header, rows), "", *table(columns, marks)]


if __name__ == "__main__":
    Benchmark("audit quality", __doc__, cells, lines=lines).main()
