from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from assay.errors import DataError, PlanError, RunError, SpaceError
from assay.images import cache
from assay.images.cache import BLOCK, Cache, append_images, build, in_order
from assay.images.decode import Resize
from assay.labels.left_out import LeftOut


def colour(number: int) -> tuple[int, int, int]:
    return (number * 7 % 256, number * 13 % 256, 255 - number % 256)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(50)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + number, 40), colour(number)).save(path)
    return paths


def made(paths: list[Path], folder: Path, **changes: Any) -> tuple[Cache, list[LeftOut]]:
    given = {"hashes": [None] * len(paths), "size": 16, "resize": Resize(), "folder": folder} | changes
    return build([path.name for path in paths], paths, **given)


def test_rows_keep_the_order_of_the_ids_and_the_pixels_of_the_files(photos: list[Path], tmp_path: Path) -> None:
    images, left_out = made(photos, tmp_path / "cache")
    assert left_out == []
    assert images.side == 20
    assert images.pixels.dtype == np.uint8
    assert list(images.rows) == [path.name for path in photos]
    for number, path in enumerate(photos):
        assert (images.pixels[images.rows[path.name]] == colour(number)).all()


def test_a_batch_is_gathered_in_the_order_asked_for(photos: list[Path], tmp_path: Path) -> None:
    images, _ = made(photos, tmp_path / "cache")
    rows = images.rows_of(["9.png", "3.png", "9.png"])
    batch = images.gather(rows)
    assert rows.tolist() == [9, 3, 9]
    assert batch.shape == (3, 3, 20, 20)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch[:, :, 4, 4].tolist() == [list(colour(9)), list(colour(3)), list(colour(9))]
    batch.zero_()  # its own memory: the cache stays as it is
    assert (images.pixels[9] == colour(9)).all()
    assert images.gather([]).shape == (0, 3, 20, 20)


def test_broken_images_have_no_row_and_are_named(photos: list[Path], tmp_path: Path) -> None:
    photos[0].write_bytes(b"")
    photos[7].write_text("no image")
    photos[30].unlink()
    for _ in range(2):  # made, then reopened
        images, left_out = made(photos, tmp_path / "cache")
        assert [image.path for image in left_out] == ["0.png", "7.png", "30.png"]
        assert "empty" in left_out[0].reason
        assert len(images.rows) == len(images.pixels) == 47
        assert images.rows["1.png"] == 0
        assert (images.pixels[images.rows["31.png"]] == colour(31)).all()


def test_only_broken_images_are_an_error_and_leave_nothing(photos: list[Path], tmp_path: Path) -> None:
    for path in photos:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)None of the 50 images.*0\.png: .*4\.png: ") as caught:
        made(photos, tmp_path / "cache")
    assert "5.png" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        made([], tmp_path)


def test_reopened_without_decoding(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = [f"hash {path.name}" for path in photos]
    first, _ = made(photos, tmp_path / "cache", hashes=hashes)
    monkeypatch.setattr(cache, "read_image", None)
    monkeypatch.setattr(cache, "size_of", None)
    again, _ = made(photos, tmp_path / "cache", hashes=hashes)
    assert (again.pixels == first.pixels).all()
    assert again.rows == first.rows


@pytest.mark.parametrize(
    "change",
    [
        {"size": 12},
        {"multiple": 1.0},
        {"resize": Resize(policy="crop")},
        {"resize": Resize(policy="pad", fill=(9, 9, 9))},
        {"resize": Resize(centre_crop=(8, 8))},
        {"hashes": ["a"] * 50},
    ],
)
def test_caches_of_other_settings_or_contents_stand_side_by_side(
    photos: list[Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    first, _ = made(photos, tmp_path / "cache")
    kept = first.pixels.copy()
    made(photos, tmp_path / "cache", **change)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2
    assert (made(photos, tmp_path / "cache")[0].pixels == kept).all()


def test_a_image_that_changed_is_decoded_again(photos: list[Path], tmp_path: Path) -> None:
    made(photos, tmp_path / "cache")
    Image.new("RGB", (33, 44), "white").save(photos[5])
    assert (made(photos, tmp_path / "cache")[0].pixels[5] == 255).all()


@pytest.mark.parametrize("damage", ["manifest", "half", "pixels"])
def test_a_damaged_cache_is_made_anew(photos: list[Path], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cache"
    made(photos, folder)
    (manifest,), (pixels,) = folder.glob("*.json"), folder.glob("*.pixels")
    if damage == "manifest":
        manifest.unlink()
    elif damage == "half":
        manifest.write_text(manifest.read_text()[:5])
    else:
        os.truncate(pixels, 1000)
    assert (made(photos, folder)[0].pixels[49] == colour(49)).all()
    assert json.loads(manifest.read_text())["side"] == 20


@pytest.mark.parametrize(
    ("sizes", "settings", "side"),
    [
        ([(64, 64)] * 3, Resize(), 64),  # trained at 128: no larger than the originals
        ([(128, 128)] * 3, Resize(), 128),
        ([(64, 64), (500, 400)], Resize(), 160),
        ([(300, 100)], Resize(policy="crop"), 100),
        ([(140, 100)], Resize(policy="pad"), 140),
        ([(100, 100)], Resize(centre_crop=(64, 64)), 50),
    ],
)
def test_the_side_is_no_larger_than_the_images_can_use(
    tmp_path: Path, sizes: list[tuple[int, int]], settings: Resize, side: int
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("RGB", size).save(path)
    assert made(paths, tmp_path / "cache", size=128, resize=settings)[0].side == side


def test_an_impossible_centre_crop_is_refused_before_anything_is_written(photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="centre_crop"):
        made(photos, tmp_path / "cache", resize=Resize(centre_crop=(200, 160)))
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_refused_before_it_is_written_to(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(SpaceError, match="preparing 50 images at 20 pixels"):
        made(photos, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_fills_up_leaves_nothing_behind(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, written = cache._append, []

    def full(file: Any, image: Any) -> None:
        written.append(append(file, image))
        if len(written) == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_append", full)
    with pytest.raises(SpaceError, match="disk is full"):
        made(photos, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_read_only_folder_is_refused(photos: list[Path], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(RunError, match="cannot be written"):
        made(photos, tmp_path / "cache")


def test_what_killed_runs_left_is_removed_and_what_grows_is_not(photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    old, new = folder / ".abc.pixels.1.part", folder / ".def.pixels.2.part"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    made(photos, folder)
    assert not old.exists()
    assert new.exists()


def test_progress_counts_up_to_all(photos: list[Path], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    made(photos, tmp_path / "cache", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(32, 50), (50, 50)]


def test_odd_names_simply_work(tmp_path: Path) -> None:
    names = ["a b.png", "line\nbreak.png", "ü漢.png", "quote'\".png", os.fsdecode(b"\xff.png")]
    paths = [tmp_path / name for name in names]
    for path in paths:
        with open(path, "wb") as file:
            Image.new("RGB", (4, 4), "red").save(file, "PNG")
    images, left_out = made(paths, tmp_path / "cache")
    assert left_out == []
    assert list(images.rows) == names


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (256, 256), "red").save(path)
    ids = [str(number) for number in range(600)]  # 118 MB of pixels
    before = anonymous()
    images, _ = build(ids, [path] * 600, hashes=ids, size=256, multiple=1.0, resize=Resize(), folder=tmp_path / "cache")
    for start in range(0, 600, 32):
        images.gather(range(start, min(start + 32, 600)))
    assert anonymous() - before < 40 << 20


def anonymous() -> int:
    """Bytes of memory that no file stands behind."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_added_images_are_gathered_with_the_others(tmp_path: Path) -> None:
    paths = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (16, 16), (number * 10, 0, 0)).save(path)
        paths.append(path)
    ids = [path.name for path in paths]
    folder = tmp_path / "cache"
    cache, _ = build(ids[:2], paths[:2], hashes=ids[:2], size=16, resize=Resize(), folder=folder)
    more = append_images(cache, ids[2:4], paths[2:4], size=16, folder=folder)
    most = append_images(more, ids[4:], paths[4:], size=16, folder=folder)
    wanted = ["3.png", "0.png", "4.png", "2.png", "3.png"]
    reds = most.gather(most.rows_of(wanted))[:, 0, 0, 0].tolist()
    assert reds == [30, 0, 40, 20, 30]
    assert len({cache.key, more.key, most.key}) == 3
    assert most.side == cache.side
    again = append_images(cache, ids[2:4], paths[2:4], size=16, folder=folder)
    assert again.key == more.key


def test_an_image_has_the_same_number_in_any_list_and_another_with_other_bytes(
    photos: list[Path], tmp_path: Path
) -> None:
    """What is computed of an image is kept by its number."""
    hashes = [f"hash of {path.name}" for path in photos]
    images, _ = made(photos, tmp_path / "cache", hashes=hashes)
    numbers = images.numbers_of([path.name for path in photos])
    assert len(set(numbers.tolist())) == len(photos)
    some, _ = made(photos[5:20][::-1], tmp_path / "other", hashes=hashes[5:20][::-1])
    assert np.array_equal(some.numbers_of(["7.png", "5.png"]), numbers[[7, 5]])
    (stored,) = cache.find_caches(tmp_path / "cache", [path.name for path in photos], hashes=hashes)
    assert np.array_equal(stored.cache.numbers_of(["3.png"]), numbers[[3]])
    changed, _ = made(photos, tmp_path / "cache", hashes=["edited", *hashes[1:]])
    assert np.flatnonzero(changed.numbers_of([path.name for path in photos]) != numbers).tolist() == [0]
    larger, _ = made(photos, tmp_path / "cache", hashes=hashes, size=24)
    assert not set(larger.numbers_of(["3.png"]).tolist()) & set(numbers.tolist())
    both = append_images(images, ["new"], photos[:1], size=16, folder=tmp_path / "cache")
    assert np.array_equal(both.numbers_of(["4.png"]), numbers[[4]])
    assert both.numbers_of(["new"])[0] not in numbers


def test_reading_that_is_given_up_may_end_in_one_of_its_own_threads() -> None:
    paths = [Path(str(number)) for number in range(BLOCK * 64)]
    suspended, ended, one_at_a_time = threading.Event(), threading.Event(), threading.Lock()
    errors: list[RuntimeError] = []

    def work(path: Path) -> int:
        if int(path.name) >= BLOCK:
            suspended.wait(10)
            with one_at_a_time:
                try:
                    images.close()
                except RuntimeError as error:  # a thread that waits for itself
                    errors.append(error)
                ended.set()
        return int(path.name)

    images: Any = in_order(work, paths)
    assert next(images) == 0
    suspended.set()
    assert ended.wait(10)
    assert not errors
