"""Pictures made up for classes: a network learns to make them, they are written, and measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from assay.balance.gan import Generator
from assay.balance.likeness import Likeness, likeness
from assay.balance.synthesis import Course, learn, make
from assay.evidence.sheets import first_of, write_sheet
from assay.figures.distances import Floats
from assay.files import whole, write_json
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.models.classifier import Classifier
from assay.pixels.augment import augment
from assay.pixels.cache import Cache
from assay.steps.start import classifier_for
from assay.steps.state import Context, State
from assay.steps.synthesize_settings import SynthesizeSettings
from assay.training.checkpoint import save_tensors

Rows = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

SHEET = (4, 8)  # rows and columns of a sheet of samples
MOST_SHEETS = 12  # of a class, side by side
BATCH = 32
MOST = 300  # pictures of a class that distances are measured on


@dataclass(frozen=True)
class Known:
    """The real pictures with a known class under a head, as a network is shown them."""

    head: Head
    codes: Rows
    cache: Cache
    places: Rows
    size: int

    @staticmethod
    def of(samples: Samples, place: int, settings: SynthesizeSettings, context: Context) -> Known:
        cache = context.pictures(settings.size, settings.resize)
        head = tuple(samples.space)[place]
        return Known(head, samples.codes()[place], cache, cache.rows_of(samples.ids), settings.size)

    def read(self, rows: Rows) -> Tensor:
        """Pictures (B, 3, size, size) in [0, 1]."""
        return augment(self.cache.gather(self.places[rows]), size=self.size)


def picture_file(folder: Path, code: int, number: int) -> Path:
    """Where a made-up picture of a class lies."""
    return folder / "made-up" / f"{code:02d}" / f"{number:05d}.png"


def make_all(
    settings: SynthesizeSettings, known: Known, wanted: dict[int, int], state: State, context: Context
) -> dict[str, Any]:
    """Train the networks and write the pictures wanted of each class; what they are like, by class."""

    def show(step: int, generator: Generator) -> None:
        for code in wanted:
            shown = make(generator, code, SHEET[0] * SHEET[1], seed=context.seed)
            write_sheet(_samples(context, known.head, code) / f"step-{step:06d}.png", np.split(shown, SHEET[0]))

    checkpoint = context.folder / "checkpoint.safetensors"
    generator = learn(
        known.read,
        known.codes,
        _course(settings, context),
        classes=known.head.size,
        device=context.device,
        checkpoint=checkpoint,
        show=show,
        watch=context.watch,
    )
    save_tensors(context.folder / "generator.safetensors", generator.state_dict(), {"classes": known.head.classes})
    for code, count in wanted.items():
        _write(context.folder, code, make(generator, code, count, seed=context.seed + 1))
    _write_beside_real(known, generator, wanted, context)
    _write_progress(known.head, wanted, context)
    told = _measure(settings, known, generator, wanted, state, context)
    write_json(context.folder / "made.json", told)  # last: it says that all of it is there
    checkpoint.unlink(missing_ok=True)
    return told


def _course(settings: SynthesizeSettings, context: Context) -> Course:
    return Course(
        side=settings.size,
        steps=settings.optimizer_steps,
        seed=int(np.random.SeedSequence([context.seed, context.number]).generate_state(1)[0]),
        batch=settings.batch,
        width=settings.width,
        lr=settings.lr,
        ema=settings.ema,
        flip=settings.flip,
        show_every=settings.show_every,
    )


def _samples(context: Context, head: Head, code: int) -> Path:
    name = re.sub(r"\W+", "-", head.classes[code])[:40]
    return context.folder / "samples" / f"{code:02d}-{name}"


def _write(folder: Path, code: int, pictures: Pixels) -> None:
    for number, picture in enumerate(pictures):
        with whole(picture_file(folder, code, number), sync=False) as beside:  # made.json says when all are there
            Image.fromarray(picture).save(beside, format="PNG")


def _write_beside_real(known: Known, generator: Generator, wanted: dict[int, int], context: Context) -> None:
    """A row a class: four real pictures, then made-up ones."""
    rows = []
    for code in wanted:
        real = known.read(np.flatnonzero(known.codes == code)[:4]).mul(255).round().byte()
        made = make(generator, code, SHEET[1], seed=context.seed)
        rows.append(np.concatenate([real.permute(0, 2, 3, 1).numpy(), made]))
    write_sheet(context.folder / "samples" / "real-and-made-up.png", rows)


def _write_progress(head: Head, wanted: dict[int, int], context: Context) -> None:
    """A row a class: the first picture of each of its sheets, at most as many as fit, the last among them."""
    rows = []
    for code in wanted:
        sheets = sorted(_samples(context, head, code).glob("step-*.png"))
        places = np.unique(np.linspace(0, len(sheets) - 1, MOST_SHEETS).round().astype(int))
        chosen = [sheets[place] for place in places]
        rows.append(np.stack([first_of(sheet, SHEET) for sheet in chosen]))
    write_sheet(context.folder / "samples" / "progress.png", rows)


def _measure(
    settings: SynthesizeSettings,
    known: Known,
    generator: Generator,
    wanted: dict[int, int],
    state: State,
    context: Context,
) -> dict[str, Any]:
    """Likeness of each class, by features of the model before this step, or of the plan's backbone."""
    size = settings.size if settings.fit is None else settings.fit.size
    classifier = classifier_for("previous", state, context, size=size).to(context.device).eval()
    real, chance = {}, np.random.default_rng(context.seed)
    for code in np.unique(known.codes).tolist():
        rows = chance.permutation(np.flatnonzero(known.codes == code))[:MOST]
        real[code] = _features(classifier, known.read(rows), size=size)
    told = {}
    for code, count in wanted.items():
        fresh = make(generator, code, max(2, min(MOST, len(real[code]))), seed=context.seed + 2)
        made = torch.from_numpy(fresh).permute(0, 3, 1, 2).float() / 255
        found = likeness(real, code, _features(classifier, made, size=size), seed=context.seed)
        name, all_real = known.head.classes[code], int((known.codes == code).sum())
        told[name] = {"real": all_real, "made": count, **found.to_json(known.head.classes)}
        _say(name, all_real, count, found, known.head, context)
    return told


def _features(classifier: Classifier, pictures: Tensor, *, size: int) -> Floats:
    """Features (N, F) of pictures (N, 3, S, S) in [0, 1]."""
    found = []
    with torch.inference_mode():
        for batch in torch.split(pictures, BATCH):
            shown = F.interpolate(batch.to(classifier.scale.device), size=(size, size), mode="bilinear")
            found.append(classifier.features(shown).float().cpu().numpy())
    return np.concatenate(found)


def _say(name: str, real: int, made: int, found: Likeness, head: Head, context: Context) -> None:
    other = "" if found.nearest is None else f", {head.classes[found.nearest]} {found.other:.3g}"
    context.watch.line(
        f"  {name}: {made} pictures made up after {real} real ones: Frechet distance {found.made:.3g} "
        f"(real ones {found.real:.3g}{other}; n = {found.n}), variety {found.variety:.2f} of that of real ones"
    )
    if found.collapsed:
        context.watch.line(f"  warning: {name}: the made-up pictures are much alike; the network repeats itself")
