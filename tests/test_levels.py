"""Images of more than 8 bits a channel, of several pages, of other colours and of many bands."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

import assay
from assay.arrays import Pixels
from assay.errors import ImageError, PlanError
from assay.images.decode import Resize, decode, read_square
from assay.images.levels import measure_levels, notes, traits
from assay.models.trained_model import TrainedModel
from assay.plan.plan import parse

RAMP = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)


def write_png(path: Path, values: NDArray[np.uint16]) -> Path:
    """Write 16-bit grey (1 band), with alpha (2), RGB (3) or RGBA (4), which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, bands = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def write_tiff(path: Path, values: NDArray[np.generic], *, order: str = "<", packed: bool = False) -> Path:
    """Write any numbers (H, W, bands), uncompressed or deflated, in either order of bytes."""
    height, width, bands = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if packed else data
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = [(256, [width]), (257, [height]), (258, [8 * values.dtype.itemsize] * bands), (259, [8 if packed else 1])]
    entries += [(262, [2 if bands > 2 else 1]), (273, [8]), (277, [bands]), (278, [height]), (279, [len(data)])]
    entries += [(338, [0] * (bands - 3))] if bands > 3 else []
    entries += [(339, [sample_format] * bands)]
    table, beyond, after = b"", b"", 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, numbers in entries:
        packed_numbers = struct.pack(f"{order}{len(numbers)}I", *numbers)
        fits = len(numbers) == 1
        value = packed_numbers if fits else struct.pack(f"{order}I", after + len(beyond))
        beyond += b"" if fits else packed_numbers
        table += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + value
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(entries)) + table + b"\0\0\0\0" + beyond)
    return path


def square(path: Path, levels: tuple[float, float] | None = (0, 4095)) -> Pixels:
    return read_square(path, 8, settings=Resize(levels=levels))


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_12_bits_in_a_png_of_16_are_neither_black_nor_cut_to_their_upper_byte(bands: int, tmp_path: Path) -> None:
    values = np.repeat(RAMP[:, :, None], bands, axis=2)
    if bands in (2, 4):
        values[:, :, -1] = 65535  # opaque
    read = square(write_png(tmp_path / "a.png", values))
    assert np.abs(read - np.rint(RAMP[:, :, None] / 4095 * 255)).max() <= 1
    assert len(np.unique(read)) > 60


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("bands", "kind"), [(1, "u2"), (3, "u2"), (1, "i2"), (1, "i4"), (1, "f4")])
def test_so_are_they_in_a_tiff(bands: int, kind: str, packed: bool, order: str, tmp_path: Path) -> None:
    values = np.repeat(RAMP[:, :, None], bands, axis=2).astype(kind)
    read = square(write_tiff(tmp_path / "a.tif", values, order=order, packed=packed))
    assert np.abs(read - np.rint(RAMP[:, :, None] / 4095 * 255)).max() <= 1


def test_the_upper_half_of_32_unsigned_bits_is_not_negative(tmp_path: Path) -> None:
    values = np.array([[[0], [2**31], [2**32 - 1]]], np.uint32)
    grey = np.asarray(decode(write_tiff(tmp_path / "a.tif", values), levels=(0, 2**32 - 1)))[:, :, 0]
    assert grey.tolist() == [[0, 128, 255]]


def test_numbers_beyond_the_levels_are_black_or_white(tmp_path: Path) -> None:
    values = np.array([[[-5.0], [0.5], [np.nan]], [[np.inf], [2.0], [1.0]]], np.float32)
    grey = np.asarray(decode(write_tiff(tmp_path / "a.tif", values), levels=(0, 1)))[:, :, 0]
    assert grey.tolist() == [[0, 128, 0], [255, 255, 255]]


def test_levels_are_those_of_all_images_without_a_few_dead_pixels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = []
    for number in range(4):
        values = random.integers(100 * number, 100 * number + 1000, (150, 150, 1)).astype(np.uint16)
        values[0, 0] = 65535
        paths.append(write_png(tmp_path / f"{number}.png", values))
    low, high = measure_levels(paths) or (0, 0)
    assert 0 <= low <= 3
    assert 1296 <= high <= 1300
    assert measure_levels([]) is None
    assert measure_levels([tmp_path / "none.png"]) is None


def test_a_data_set_of_one_value_has_a_white_above_its_black(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", np.full((4, 4, 1), 7, np.uint16))
    assert measure_levels([path]) == (7, 8)


def test_headers_tell_deep_images_pages_and_bands(tmp_path: Path) -> None:
    page = Image.new("L", (4, 4))
    page.save(tmp_path / "plain.jpg")
    page.save(tmp_path / "plain.png")
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page, page])
    write_tiff(tmp_path / "bands.tif", np.zeros((4, 4, 5), np.uint8))
    write_png(tmp_path / "deep.png", RAMP[:, :, None])
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    found = {path.name: set(kinds) for path in sorted(tmp_path.iterdir()) for kinds in traits([path])}
    assert {name: kinds for name, kinds in found.items() if kinds} == {
        "pages.tif": {"pages"}, "bands.tif": {"bands"}, "deep.png": {"deep"},
    }  # fmt: skip
    lines = list(notes(traits(sorted(tmp_path.iterdir())), (0, 4095), measured=1))
    assert "from 0 to 4,095 become black to white (measured on 1 of them)" in lines[0]
    assert "the first of each is read" in lines[1]
    assert "the first three are read as red, green and blue" in lines[2]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((4, 4, 13), np.uint16), "it has 13 bands of 16 bits, which are not read; save it as"),
        (np.zeros((4, 4, 1), np.float64), "it has 1 band of 64 float bits, which are not read"),
        (np.zeros((4, 4, 3), np.float32), "it has 3 bands of 32 float bits"),
    ],
)
def test_pixels_that_are_not_read_are_named(values: NDArray[np.generic], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(write_tiff(tmp_path / "a.tif", values))


def test_lab_and_one_bit_are_read(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 4), (200, 30, 40))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(red, *profiles, outputMode="LAB")
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    assert np.abs(np.asarray(decode(tmp_path / "lab.tif")).astype(int) - (200, 30, 40)).max() <= 3
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    assert (np.asarray(decode(tmp_path / "bit.png")) == 255).all()


def test_the_levels_of_the_data_travel_with_the_model(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, middle in (("dim", 1000), ("bright", 3000)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            values = (middle + random.integers(-400, 400, (20, 20, 1))).astype(np.uint16)
            write_png(tmp_path / "data" / name / f"{number}.png", values)
    (tmp_path / "plan.yaml").write_text(
        "data: {folder: data}\nmodel: {backbone: test_efficientnet, weights: none}\n"
        "hardware: {precision: fp32, layout: contiguous}\nsteps: [{probe: {size: 32}}]\n"
    )
    run = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    (note,) = (note for note in run.metrics["notes"] if "8 bits" in note)
    assert "10 images" in note
    low, high = TrainedModel.load(run.folder / "model").resize.levels or (0, 0)
    assert 590 <= low <= 620
    assert 3380 <= high <= 3400
    assert f"levels: [{low}, {high}]" in (run.folder / "plan.yaml").read_text()
    about = json.loads(next((run.folder / "cache").glob("*.json")).read_text())
    assert about["resize"]["levels"] == [low, high]


def test_levels_that_fall_are_refused() -> None:
    for data in (
        "data: {folder: a, levels: [9, 9]}",
        "data: {folder: a}\nsteps: [{probe: {resize: {levels: [2, 1]}}}]",
    ):
        with pytest.raises(PlanError, match="the value of white must be above that of black"):
            parse(data, "plan.yaml")
