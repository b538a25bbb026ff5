"""What an audit needs of images in shards: computed shard by shard, a row an image; no pixel is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from assay.arrays import Floats, Ints, Pixels
from assay.errors import ImageError
from assay.experiments.audit_inputs import NO_HEADS
from assay.files import fingerprint
from assay.images.decode import HeldImage, Resize, read_square, useful_side
from assay.images.file_facts import FileFacts, facts_of
from assay.labels.readers.shard_index import read_index
from assay.labels.samples import MEMBER, Samples
from assay.labels.shards import Member
from assay.models.classifier import Classifier, ModelSettings, build_classifier
from assay.predictions.inference import PLAIN, move
from assay.repair.duplicates import Hashes, perceptual_hashes
from assay.repair.image_quality import Measures, measure
from assay.scale.jobs import Job
from assay.training.devices import Hardware

VERSION = 1  # raise when the same shard and backbone give other facts
BATCH = 32  # images through the network at a time
QUALITIES = tuple(Measures.__dataclass_fields__)


@dataclass(frozen=True)
class ExamineShard:
    """Writes features, measures of quality, size and perceptual hash of each image of a shard, or why it has none."""

    model: str  # its settings, as JSON
    weights: str  # a hash of those of the backbone
    base: Path
    seed: int
    resize: Resize
    size: int
    device: str

    @property
    def key(self) -> str:
        """A hash of all that a result depends on besides the shard."""
        settings = (self.model, self.resize.model_dump_json(), f"{self.seed} {self.size}")
        return fingerprint(str(VERSION), self.device.partition(":")[0], self.weights, *settings)

    def __call__(self, job: Job, result: Path) -> None:
        index = read_index(job.shard, job.index)
        rows = index.rows.filter(pl.col("fault").is_null()).select("name", "offset", "size").rows()
        members = [Member(index.shard, *row) for row in rows]
        classifier = _classifier(self.model, self.base, self.seed, self.size, self.device)
        parts = [self._examined(members[at : at + BATCH], classifier) for at in range(0, len(members), BATCH)]
        (pl.concat(parts) if parts else _frame([], classifier.feature_count)).write_parquet(result)

    def _examined(self, members: Sequence[Member], classifier: Classifier) -> pl.DataFrame:
        looks = [self._look(member) for member in members]
        frame = _frame(looks, classifier.feature_count)
        images = [look.pixels for look in looks if look.pixels is not None]
        if images:
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
            inputs = Hardware(self.device).to_device(PLAIN.show(pixels, [""] * len(images), size=self.size))
            with torch.inference_mode():
                outputs = classifier.features(inputs).float().cpu().numpy()
            features = np.full((len(looks), classifier.feature_count), np.nan, np.float32)
            features[[row for row, look in enumerate(looks) if look.pixels is not None]] = outputs
            frame = frame.with_columns(pl.Series("features", features))
        return frame

    def _look(self, member: Member) -> _Look:
        image = HeldImage(member.name, member.read_bytes())
        try:
            width, height, *_ = facts_of(image)
            # Measured without enlarging it, which would look like blur: at the side that a cache would have.
            side = max(1, min(self.size, useful_side(width, height, size=self.size, settings=self.resize)))
            pixels = read_square(image, side, settings=self.resize, size=self.size)
        except ImageError as error:
            return _Look(member.offset, str(error))
        quality = tuple(float(column[0]) for column in vars(measure(pixels[None])).values())
        enlarged = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BILINEAR)
        full = pixels if side == self.size else np.asarray(enlarged)
        hash_ = int(perceptual_hashes(pixels[None])[0])
        return _Look(member.offset, None, width, height, hash_, quality, full)


@dataclass(frozen=True)
class _Look:
    """An image as it was found: its offset in the shard, and all else where it can be read."""

    offset: int
    error: str | None
    width: int = 0
    height: int = 0
    hash: int = 0
    quality: tuple[float, ...] = (float("nan"),) * len(QUALITIES)
    pixels: Pixels | None = None


def _frame(looks: Sequence[_Look], features: int) -> pl.DataFrame:
    schema = {"offset": pl.Int64, "error": pl.String, "width": pl.Int64, "height": pl.Int64, "hash": pl.UInt64}
    columns = {name: pl.Series(name, [getattr(look, name) for look in looks], kind) for name, kind in schema.items()}
    quality = np.array([look.quality for look in looks], np.float64).reshape(-1, len(QUALITIES))
    empty = np.full((len(looks), features), np.nan, np.float32)
    return pl.DataFrame(
        {**columns, **dict(zip(QUALITIES, quality.T, strict=True)), "features": pl.Series("features", empty)}
    )


@lru_cache(maxsize=1)
def _classifier(model: str, base: Path, seed: int, size: int, device: str) -> Classifier:
    classifier = build_classifier(ModelSettings.model_validate_json(model), NO_HEADS, seed=seed, base=base, size=size)
    move(classifier, Hardware(device))
    return classifier.eval()


@dataclass(frozen=True, eq=False)
class ShardFacts:
    """What results of `ExamineShard` hold of samples in shards: arrays (N,) of the rows that can be read.

    `rows` are those of the samples given. The features stay on disk.
    """

    rows: Ints
    errors: dict[str, str]  # of the others, by id
    measures: Measures
    facts: FileFacts
    hashes: Hashes
    shards: tuple[tuple[Path, Ints, Ints], ...]  # of each: its result, and rows in this order with those in the result

    @staticmethod
    def read(samples: Samples, jobs: Sequence[Job]) -> ShardFacts:
        """Read all but the features."""
        within = samples.table[MEMBER].struct.unnest()
        shard, offset = within["shard"].to_numpy(), within["offset"].to_numpy()
        names = ["width", "height", "hash", *QUALITIES]
        table = np.empty((len(samples), len(names) - 1), np.float64)
        hashes, errors = np.zeros(len(samples), np.uint64), dict[int, str]()
        parts = []
        order = np.argsort(shard, kind="stable")
        ends = np.searchsorted(shard[order], np.arange(len(jobs)), side="right")
        columns = ["offset", "error", *names]
        for job, rows in zip(jobs, np.split(order, ends[:-1]), strict=True):
            frame = pl.read_parquet(job.result, columns=columns, hive_partitioning=False, glob=False)
            at = _positions(frame["offset"].to_numpy(), offset[rows])
            part = frame[at]
            table[rows] = part.drop("offset", "error", "hash").to_numpy()
            hashes[rows] = part["hash"].to_numpy()
            reasons = zip(rows.tolist(), part["error"].to_list(), strict=True)
            errors |= {row: reason for row, reason in reasons if reason is not None}
            parts.append((job.result, rows, at))
        readable = np.ones(len(samples), np.bool_)
        readable[list(errors)] = False
        new, kept = np.cumsum(readable) - 1, np.flatnonzero(readable)
        sides = table[kept, :2].astype(np.int64)
        unknown = np.zeros(len(kept), np.int64)
        no_names = ("",) * len(kept)
        return ShardFacts(
            kept,
            {samples.ids_of([row])[0]: reason for row, reason in errors.items()},
            Measures(*table[kept, 2:].T),
            FileFacts(sides[:, 0], sides[:, 1], unknown, no_names, no_names),
            hashes[kept],
            tuple((file, new[rows[readable[rows]]], at[readable[rows]]) for file, rows, at in parts),
        )

    def features(self) -> Iterator[tuple[Ints, Floats]]:
        """Yield the rows of each shard, in their order, and the features (n, F) of these."""
        for file, rows, at in self.shards:
            if len(rows):
                column = pl.read_parquet(file, columns=["features"], hive_partitioning=False, glob=False)["features"]
                yield rows, np.asarray(column[at].to_numpy(), np.float32)


def _positions(offsets: Ints, wanted: Ints) -> Ints:
    """Return where in the offsets each of the wanted ones is."""
    order = np.argsort(offsets, kind="stable")
    return np.asarray(order[np.searchsorted(offsets[order], wanted)])
