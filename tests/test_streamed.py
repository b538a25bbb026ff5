"""Images above the limit of the cache: decoded as they are needed, to the same bytes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import assay
from assay.errors import DataError, PlanError, TrainingError
from assay.images import streamed
from assay.images.cache import Cache, build
from assay.images.decode import Resize
from assay.images.streamed import CacheLimit, CacheSettings, StreamedImages, prepare_images
from assay.labels.left_out import LeftOut
from assay.labels.readers.read import DataSettings, read_whole
from assay.labels.samples import Samples
from assay.labels.shards import Member
from assay.labels.writers.shards import list_shards, write_shards
from assay.progress import NoProgress
from assay.training.sampling import ShuffledByShard
from assay.training.stopping import graceful_stop
from factories import read_folder


def in_shards(folder: Path, out: Path, form: str = "tar") -> Samples:
    samples = read_folder(folder)
    write_shards(samples, list_shards(samples, size=20_000, form=form), out, wrote=lambda count: None)  # type: ignore[arg-type]
    return read_whole(DataSettings(shards=(str(out),)), base=Path())


def prepared(samples: Samples, folder: Path, limit: float | None = 0.0) -> tuple[Cache, list[LeftOut]]:
    said: list[str] = []
    return prepare_images(
        samples.ids,
        samples.paths,
        hashes=samples.hashes,
        size=16,
        resize=Resize(),
        folder=folder,
        limit=None if limit is None else CacheLimit(limit, said.append),
    )


@pytest.mark.parametrize("form", ["tar", "parquet"])
@pytest.mark.parametrize("expected", [True, False])
def test_streamed_images_are_the_bytes_of_a_cache(colours: Path, tmp_path: Path, form: str, expected: bool) -> None:
    samples = in_shards(colours, tmp_path / "shards", form)
    cache, _ = build(samples.ids, samples.paths, hashes=samples.hashes, size=16, resize=Resize(), folder=tmp_path / "a")
    images, left_out = prepared(samples, tmp_path / "b")
    batches = [np.random.default_rng(number).permutation(45)[:9] for number in range(6)]
    if expected:
        images.expect(batches)
    for rows in batches:
        assert images.gather(rows).equal(cache.gather(rows))
    assert isinstance(images, StreamedImages)
    assert left_out == []
    assert images.numbers_of(samples.ids).tolist() == cache.numbers_of(samples.ids).tolist()


def test_other_images_than_those_expected_come_between(colours: Path, tmp_path: Path) -> None:
    images, _ = prepared(read_folder(colours), tmp_path / "cache")
    batches = [np.arange(first, first + 5) for first in range(0, 40, 5)]
    images.expect(batches)
    for rows in batches:
        between = images.gather(rows[::-1])
        assert images.gather(rows).equal(between.flip(0))


def test_what_it_was_once_it_stays(colours: Path, tmp_path: Path) -> None:
    samples = read_folder(colours)
    prepared(samples, tmp_path / "a")
    assert isinstance(prepared(samples, tmp_path / "a", None)[0], StreamedImages)
    prepared(samples, tmp_path / "b", None)
    assert not isinstance(prepared(samples, tmp_path / "b")[0], StreamedImages)


def test_images_that_cannot_be_read_are_left_out(colours: Path, tmp_path: Path) -> None:
    image = in_shards(colours, tmp_path / "shards").paths[3]
    assert isinstance(image, Member)
    shard, content = Path(image.shard.address), image.read_bytes()
    shard.write_bytes(shard.read_bytes().replace(content, content[:20].ljust(image.size, b"?")))
    again = read_whole(DataSettings(shards=(str(tmp_path / "shards"),)), base=Path())
    images, left_out = prepared(again, tmp_path / "cache")
    assert [one.path for one in left_out] == [again.ids[3]]
    assert len(images.rows) == 44


def test_a_shard_that_changes_meanwhile_is_named(colours: Path, tmp_path: Path) -> None:
    samples = in_shards(colours, tmp_path / "shards")
    images, _ = prepared(samples, tmp_path / "cache")
    for path in (tmp_path / "shards").glob("*.tar"):
        path.write_bytes(path.read_bytes() + b"\0")
    images.expect([np.arange(5)] * 4)
    with pytest.raises(DataError, match="has changed since it was indexed"):
        images.gather(np.arange(5))


def test_a_process_that_was_killed(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = prepared(read_folder(colours), tmp_path / "cache")
    monkeypatch.setattr(streamed, "_begin_process", lambda number: signal.raise_signal(signal.SIGKILL))
    with pytest.raises(TrainingError, match="A process that decodes images was killed"):
        [images.gather(rows) for _ in range(9) for rows in [np.arange(5)] if images.expect([rows] * 4) is None]


def test_the_limit_of_a_plan_and_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CacheSettings(limit=1.5).bytes(tmp_path) == 1.5e9
    for free, limit in ((9e9, 3e9), (900e9, 20e9)):
        monkeypatch.setattr(streamed, "free_space", lambda folder, free=free: free)
        assert CacheSettings().bytes(tmp_path) == limit


# The order.


def test_every_image_comes_once_and_shards_a_few_at_a_time() -> None:
    shards = np.repeat(np.arange(40), 100)
    order = ShuffledByShard(shards, seed=0, at_once=4, buffer=50)
    rows = order.rows(0)
    assert sorted(rows.tolist()) == list(range(4000))
    assert order.rows(0).tolist() == rows.tolist()
    assert order.rows(1).tolist() != rows.tolist()
    assert all(len(set(shards[rows[first : first + 200]].tolist())) <= 8 for first in range(0, 4000, 200))
    first_half = rows[np.isin(shards[rows], shards[rows[:50]])][:200]
    assert (first_half % 100).max() < 100 * (200 + 50) / 400


def test_shards_of_any_size_and_images_without_one() -> None:
    shards = np.array([7, -1, 7, 3, -1, 7])
    assert sorted(ShuffledByShard(shards, seed=1).rows(5).tolist()) == list(range(6))


# Runs.


class Stop(NoProgress):
    """Asks to stop after so many optimiser steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        self.left -= metrics is not None  # as the loop says
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)


STEP = "fit: {size: 16, epochs: 2, batch: 8, mix: {mixup: 1}, augment: {flip: horizontal}}"


def trained(plan: Path, run: Path, progress: NoProgress | None = None) -> bytes:
    assay.train(plan, run=run, device="cpu", progress=progress)
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_run_without_a_cache_is_the_same_as_one_with(
    colours: Path, tmp_path: Path, plain_runs: None, tiny_plan: Callable[..., str]
) -> None:
    for name, limit in (("cached", ""), ("streamed", "cache: {limit: 0}\n")):
        (tmp_path / f"{name}.yaml").write_text(limit + tiny_plan(STEP))
    cached, without = (trained(tmp_path / f"{name}.yaml", tmp_path / name) for name in ("cached", "streamed"))
    assert cached == without
    assert not list((tmp_path / "streamed").rglob("*.pixels"))


def test_a_run_on_shards_that_was_stopped_ends_in_the_same_weights(
    colours: Path, tmp_path: Path, plain_runs: None, tiny_plan: Callable[..., str]
) -> None:
    in_shards(colours, tmp_path / "shards")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "cache: {limit: 0}\n" + tiny_plan(STEP.replace("batch: 8", "batch: 16"), data=f"shards: {tmp_path / 'shards'}")
    )
    with pytest.raises(SystemExit), graceful_stop():
        trained(plan, tmp_path / "stopped", Stop(after=4))
    assert trained(plan, tmp_path / "stopped") == trained(plan, tmp_path / "whole")


def test_synthetic_images_want_a_cache(colours: Path, tmp_path: Path) -> None:
    from assay.steps import base

    images, _ = prepared(read_folder(colours), tmp_path / "cache")
    with pytest.raises(PlanError, match=r"Raise `cache\.limit`"):
        base.require_cache(images)
