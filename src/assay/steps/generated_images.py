"""What `synthesize` may be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from assay.arrays import Ints, Pixels, Reals
from assay.files import whole, write_json
from assay.images.augment import augment
from assay.images.cache import Cache
from assay.images.contact_sheet import first_of, write_sheet
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.models.classifier import Classifier
from assay.steps.base import Context, State, StepSettings
from assay.steps.fit_settings import FitSettings
from assay.steps.start import classifier_for
from assay.synthesis.gan import Generator
from assay.synthesis.gan_training import GanConfig, generate, train_gan
from assay.synthesis.measures import Likeness, measure_likeness
from assay.training.checkpoint import save_tensors


class SynthesizeSettings(StepSettings):
    """Make up images of rare classes by a network, and keep them only if a fit with them is better."""

    changes_labels = True

    head: str | None = Field(None, description="A multi-class head; default: the only one.")
    classes: Literal["few"] | tuple[str, ...] = Field(
        "few", description="Classes to make images of; few: the third of the classes with the fewest images."
    )
    count: int | None = Field(
        None, ge=1, description="Images made up a class; default: what it lacks of the most frequent class."
    )
    least: int = Field(10, ge=4, description="Training images that a class must have.")
    size: Literal[32, 64, 128] = Field(64, description="Side of the images made up.")
    resize: Resize = Resize()
    optimizer_steps: int = Field(3000, ge=1, description="Optimiser steps of both networks.")
    batch: int = Field(32, ge=2, description="Images an optimiser step.")
    width: int = Field(32, ge=4, description="Channels of the maps of half the side.")
    lr: float = Field(2e-4, gt=0)
    ema: float = Field(0.999, gt=0, lt=1, description="Decay of the average of weights that makes the images.")
    flip: Literal["none", "horizontal", "vertical", "both"] = Field("none", description="How real images are mirrored.")
    show_every: int = Field(500, ge=1, description="Optimiser steps from one sheet of samples to the next.")
    fit: FitSettings | None = Field(None, description="The fit that is tried with the images and without.")
    seeds: int = Field(3, ge=1, description="Times that it is tried.")
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "nll"] = Field(
        "balanced_accuracy", description="The validation metric that decides."
    )
    keep: Literal["if_better", "always", "never"] = Field(
        "if_better", description="if_better: where the 95 % interval of the gain lies above 0."
    )

    @model_validator(mode="after")
    def _decidable(self) -> SynthesizeSettings:
        if self.keep == "if_better" and self.fit is None:
            raise ValueError(
                "keep: if_better needs a fit to be tried with the images and without; add `fit: {...}`, "
                "or say keep: always or never"
            )
        return self


# Images made up for classes: a network learns to make them, they are written, and measured.


SHEET = (4, 8)  # rows and columns of a sheet of samples
MOST_SHEETS = 12  # of a class, side by side
BATCH = 32
MOST = 300  # images of a class that distances are measured on


@dataclass(frozen=True)
class GanData:
    """The real images with a known class under a head, as a network is shown them."""

    head: Head
    codes: Ints
    cache: Cache
    places: Ints
    size: int

    @staticmethod
    def of(samples: Samples, place: int, settings: SynthesizeSettings, context: Context) -> GanData:
        cache = context.images(settings.size, settings.resize)
        head = tuple(samples.space)[place]
        return GanData(head, samples.codes()[place], cache, cache.rows_of(samples.ids), settings.size)

    def read(self, rows: Ints) -> Tensor:
        """Images (B, 3, size, size) in [0, 1]."""
        return augment(self.cache.gather(self.places[rows]), size=self.size)


def image_file(folder: Path, code: int, number: int) -> Path:
    """Where a made-up image of a class lies."""
    return folder / "made-up" / f"{code:02d}" / f"{number:05d}.png"


def generate_all(
    settings: SynthesizeSettings, known: GanData, wanted: dict[int, int], state: State, context: Context
) -> dict[str, Any]:
    """Train the networks and write the images wanted of each class; what they are like, by class."""

    def show(step: int, generator: Generator) -> None:
        for code in wanted:
            shown = generate(generator, code, SHEET[0] * SHEET[1], seed=context.seed)
            write_sheet(_samples(context, known.head, code) / f"step-{step:06d}.png", np.split(shown, SHEET[0]))

    checkpoint = context.folder.checkpoint
    generator = train_gan(
        known.read,
        known.codes,
        _course(settings, context),
        classes=known.head.size,
        device=context.device,
        checkpoint=checkpoint,
        show=show,
        progress=context.progress,
    )
    save_tensors(context.folder.path / "generator.safetensors", generator.state_dict(), {"classes": known.head.classes})
    for code, count in wanted.items():
        _write(context.folder.path, code, generate(generator, code, count, seed=context.seed + 1))
    _write_beside_real(known, generator, wanted, context)
    _write_progress(known.head, wanted, context)
    told = _measure(settings, known, generator, wanted, state, context)
    write_json(context.folder.path / "made.json", told)  # last: it says that all of it is there
    checkpoint.unlink(missing_ok=True)
    return told


def _course(settings: SynthesizeSettings, context: Context) -> GanConfig:
    return GanConfig(
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
    return context.folder.samples / f"{code:02d}-{name}"


def _write(folder: Path, code: int, images: Pixels) -> None:
    for number, image in enumerate(images):
        with whole(image_file(folder, code, number), sync=False) as beside:  # made.json says when all are there
            Image.fromarray(image).save(beside, format="PNG")


def _write_beside_real(known: GanData, generator: Generator, wanted: dict[int, int], context: Context) -> None:
    """A row a class: four real images, then made-up ones."""
    rows = []
    for code in wanted:
        real = known.read(np.flatnonzero(known.codes == code)[:4]).mul(255).round().byte()
        made = generate(generator, code, SHEET[1], seed=context.seed)
        rows.append(np.concatenate([real.permute(0, 2, 3, 1).numpy(), made]))
    write_sheet(context.folder.samples / "real-and-made-up.png", rows)


def _write_progress(head: Head, wanted: dict[int, int], context: Context) -> None:
    """A row a class: the first image of each of its sheets, at most as many as fit, the last among them."""
    rows = []
    for code in wanted:
        sheets = sorted(_samples(context, head, code).glob("step-*.png"))
        places = np.unique(np.linspace(0, len(sheets) - 1, MOST_SHEETS).round().astype(int))
        chosen = [sheets[place] for place in places]
        rows.append(np.stack([first_of(sheet, SHEET) for sheet in chosen]))
    write_sheet(context.folder.samples / "progress.png", rows)


def _measure(
    settings: SynthesizeSettings,
    known: GanData,
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
        fresh = generate(generator, code, max(2, min(MOST, len(real[code]))), seed=context.seed + 2)
        made = torch.from_numpy(fresh).permute(0, 3, 1, 2).float() / 255
        found = measure_likeness(real, code, _features(classifier, made, size=size), seed=context.seed)
        name, all_real = known.head.classes[code], int((known.codes == code).sum())
        told[name] = {"real": all_real, "made": count, **found.to_json(known.head.classes)}
        _say(name, all_real, count, found, known.head, context)
    return told


def _features(classifier: Classifier, images: Tensor, *, size: int) -> Reals:
    """Features (N, F) of images (N, 3, S, S) in [0, 1]."""
    found = []
    with torch.inference_mode():
        for batch in torch.split(images, BATCH):
            shown = F.interpolate(batch.to(classifier.scale.device), size=(size, size), mode="bilinear")
            found.append(classifier.features(shown).float().cpu().numpy())
    return np.concatenate(found)


def _say(name: str, real: int, made: int, found: Likeness, head: Head, context: Context) -> None:
    other = "" if found.nearest is None else f", {head.classes[found.nearest]} {found.other:.3g}"
    context.progress.line(
        f"  {name}: {made} images made up after {real} real ones: Frechet distance {found.made:.3g} "
        f"(real ones {found.real:.3g}{other}; n = {found.n}), variety {found.variety:.2f} of that of real ones"
    )
    if found.collapsed:
        context.progress.line(f"  warning: {name}: the made-up images are much alike; the network repeats itself")
