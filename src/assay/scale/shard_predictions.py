"""Predictions and features for the images of shards: computed shard by shard, read back in the order of the shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import polars as pl

from assay.files import fingerprint, hash_file
from assay.labels.readers.shard_index import read_index
from assay.labels.shards import ImageFile, Member
from assay.metrics.metrics import probabilities_of
from assay.models.ensemble import Model, model_files
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor
from assay.predictions.tta import AnyTTA
from assay.progress import Progress
from assay.scale.indexing import IndexedShards, count_images
from assay.scale.jobs import Executor, Job, map_shards

VERSION = 1  # raise when the same shard and model give other predictions


@dataclass(frozen=True)
class PredictShard:
    """Writes the logits of the images of a shard, and what else is asked for: a row an image that can be used."""

    model: Path
    device: str
    tta: AnyTTA | None = None
    distances: bool = False
    features: bool = False

    @property
    def key(self) -> str:
        """A hash of all that a result depends on besides the shard."""
        files = [part for file in model_files(self.model) for part in (file.name, hash_file(file))]
        views = "" if self.tta is None else self.tta.model_dump_json()
        kind = self.device.partition(":")[0]
        return fingerprint(str(VERSION), kind, views, f"{self.distances} {self.features}", *files)

    def __call__(self, job: Job, result: Path) -> None:
        index = read_index(job.shard, job.index)
        rows = index.rows.filter(pl.col("fault").is_null()).select("name", "offset", "size").rows()
        images: list[tuple[str, ImageFile]] = [(name, Member(index.shard, name, *at)) for name, *at in rows]
        predictor = _predictor(self.model, self.device)
        parts = list(
            predictor.stream(images, tta=self.tta, distances=self.distances, features=self.features, threads=2)
        )
        frame = _frame(Predictions.joined(parts)) if parts else pl.DataFrame(schema={"name": pl.String})
        frame.write_parquet(result)


@lru_cache(maxsize=1)
def _predictor(model: Path, device: str) -> Predictor:
    return Predictor.untimed(model, device=device)


def _frame(predictions: Predictions) -> pl.DataFrame:
    columns = {"logits": predictions.logits, "distance": predictions.distances, "features": predictions.features}
    return pl.DataFrame(
        {
            "name": predictions.ids,
            "error": pl.Series([predictions.unreadable.get(name) for name in predictions.ids], dtype=pl.String),
            **{name: values for name, values in columns.items() if values is not None},
        }
    )


def predict_shards(
    shards: IndexedShards,
    function: PredictShard,
    saved: Model,
    *,
    folder: Path,
    executor: Executor,
    progress: Progress,
) -> Iterator[Predictions]:
    """Yield the predictions for each shard, in their order, from results in `folder`, computed where not there."""
    key = function.key
    jobs = [Job(one.shard, one.index, folder / f"{one.index.stem}-{key}.parquet") for one in shards.jobs]
    map_shards(function, jobs, executor=executor, progress=progress, images=count_images)
    for part in map(partial(_read, saved=saved), jobs, shards.prefixes):
        if len(part):
            yield part


def _read(job: Job, prefix: str, *, saved: Model) -> Predictions:
    frame = pl.read_parquet(job.result, hive_partitioning=False, glob=False)
    ids = [f"{prefix}{name}" for name in frame["name"]]
    logits = _matrix(frame, "logits") if ids else np.empty((0, saved.space.width), np.float32)
    errors = frame["error"].to_list()
    return Predictions(
        ids,
        saved.space,
        logits,
        probabilities_of(saved.space, logits),
        saved.decision_rule.thresholds,
        "model",
        unreadable={id_: reason for id_, reason in zip(ids, errors, strict=True) if reason is not None},
        distances=frame["distance"].to_numpy() if "distance" in frame.columns else None,
        features=_matrix(frame, "features") if "features" in frame.columns else None,
    )


def _matrix(frame: pl.DataFrame, name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.asarray(frame[name].to_numpy(), np.float32)
