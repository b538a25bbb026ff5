from __future__ import annotations

import contextlib
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from pydantic import ValidationError

from assay.errors import ImageError, PlanError
from assay.images.decode import FORMATS, MAX_PIXELS, Resize, decode, read_square, resize, size_of, useful_side

RAMP = np.add.outer(np.arange(0, 120, 2), np.arange(0, 135, 3)).astype(np.uint8)  # (60, 45)
COLOURS = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels(path: Path) -> np.ndarray:
    image = decode(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds one byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert str(path) not in str(caught.value)
    assert path.name not in str(caught.value)
    assert len(str(caught.value)) < 120
    return str(caught.value)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "CMYK"])
def test_every_usual_mode_keeps_its_colours(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    path = saved(tmp_path, image, "a.tif")
    assert np.abs(pixels(path) - np.asarray(image.convert("RGB")).astype(int)).max() == 0


def test_the_inverted_cmyk_that_adobe_writes_comes_out_upright_in_colour(tmp_path: Path) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(saved(tmp_path, red, "a.jpg", quality=95))[8, 8] - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    assert pixels(saved(tmp_path, image.convert(mode), "a.png"))[0, :, 0].tolist() == [0, 255, 204]


@pytest.mark.parametrize("alpha", [0, bytes([0, 255])])
def test_a_palette_with_transparency_is_laid_over_white(tmp_path: Path, alpha: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path, image, "a.png", transparency=alpha)
    assert pixels(path)[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_a_palette_with_a_channel_of_transparency_is_laid_over_white(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("PA", (2, 2)), "a.tif")
    with Image.open(path) as image:
        assert image.mode == "PA"
    assert pixels(path)[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        path = saved(tmp_path, Image.fromarray(deep), name)
        assert pixels(path)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("mode", "order"), [("I;16", "<u2"), ("I;16B", ">u2")])
def test_sixteen_bits_of_either_byte_order(mode: str, order: str, tmp_path: Path) -> None:
    path = saved(tmp_path, Image.frombytes(mode, (2, 1), np.array([[0, 65535]], order).tobytes()), "a.tif")
    with Image.open(path) as image:
        assert image.mode == mode
    assert pixels(path)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[np.nan, 0, 1]], np.float32), [0, 0, 255]),
        (np.array([[7, 7, 7]], np.float32), [7, 7, 7]),
        (np.array([[-7, -7, -7]], np.float32), [0, 0, 0]),
    ],
)
def test_wide_numbers_by_their_range(tmp_path: Path, numbers: np.ndarray, expected: list[int]) -> None:
    assert pixels(saved(tmp_path, Image.fromarray(numbers), "a.tif"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_exif_turns_the_image_upright(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if name == "a.jpg" else {}
    path = saved(tmp_path, Image.fromarray(COLOURS), name, exif=exif, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert expected.shape == ((60, 45, 3) if orientation < 5 else (45, 60, 3))
    assert np.abs(pixels(path) - expected).max() == 0


def test_damaged_exif_beside_sound_pixels_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOURS), "a.jpg", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff")
    assert pixels(path).shape == (60, 45, 3)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_the_first_frame_of_an_animation(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert pixels(path)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", ["bmp", "gif", "jpg", "png", "webp", "tif", "ppm", "tga", "ico", "pcx", "jp2"])
def test_formats(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path, Image.new("RGB", (32, 32), (200, 100, 50)), f"a.{ending}")
    assert np.abs(pixels(path)[16, 16] - [200, 100, 50]).max() < 6


def test_a_format_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    assert "EPS" not in FORMATS
    path = saved(tmp_path, Image.new("RGB", (4, 4)), "a.eps")
    assert "PostScript" in refusal(path)


@pytest.mark.parametrize("name", ["a b.png", "a'b\"c.png", "ü漢字🌱.png", "line\nbreak.png", "-rf.png", "%s{}.png"])
def test_odd_names_simply_work(tmp_path: Path, name: str) -> None:
    assert pixels(saved(tmp_path, Image.new("RGB", (2, 2)), name)).shape == (2, 2, 3)


def test_broken_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_bytes(b"\x01\x02\x03 I am no image")
    assert "empty" in refusal(empty)
    assert "not an image" in refusal(text)
    assert "No such file" in refusal(tmp_path / "none.jpg")
    assert "not a file" in refusal(tmp_path)
    assert "null" in refusal(Path("a\0b.png"))


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a file" in refusal(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("at_least", [None, 16])
@pytest.mark.parametrize("options", [{"progressive": False}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_a_truncated_jpeg_is_refused(
    tmp_path: Path, share: float, options: dict[str, bool], at_least: int | None
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "a.jpg", **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ImageError, match="it is truncated: copy or download it again"):
        decode(path, at_least=at_least)


@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "tif", "webp"])
def test_half_a_file_of_another_format_is_refused(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), f"a.{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refusal(path)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b""]),
)
def test_any_bytes_at_all_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jpg"
    path.write_bytes(start + data)
    with contextlib.suppress(ImageError):  # anything else that it raised would fail the test
        assert decode(path).mode == "RGB"


@pytest.mark.parametrize("size", [(30_000, 30_000), (13_000, 13_800)])
def test_a_huge_image_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(header_of(*size))
    assert f"{MAX_PIXELS:,} pixels" in refusal(path)


def test_pillows_settings_and_warnings_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(header_of(10_000, 10_000))  # Pillow warns of this one
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=size_of, args=(path,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert size_of(path) == (10_000, 10_000)
        warnings.warn("of another library", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["of another library"]
    assert list(warnings.filters) == filters
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (1200, 1601), (333, 2000), (100, 80)])
def test_a_draft_is_small_but_never_below_what_is_needed(tmp_path: Path, width: int, height: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.new("RGB", (width, height), "teal"), "a.jpg", exif=exif)
    image = decode(path, at_least=128)
    assert min(image.size) >= min(128, width, height)
    assert min(image.size) < 256 or min(width, height) < 256
    assert (image.width > image.height) == (height > width)


def test_squash_keeps_every_corner(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("red", (0, 0, 20, 10))
    square = resize(image, 16, settings=Resize())
    assert square.shape == (16, 16, 3)
    assert square.dtype == np.uint8
    assert (square[:7, :7] == [255, 0, 0]).all()
    assert (square[9:] == 0).all()
    assert (square[:, 9:] == 0).all()


def test_crop_takes_the_centre_square() -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste("lime", (20, 0, 40, 20))
    assert (resize(image, 20, settings=Resize(policy="crop")) == [0, 255, 0]).all()


def test_pad_keeps_all_and_fills_the_rest() -> None:
    image = Image.new("RGB", (60, 30), "lime")
    square = resize(image, 20, settings=Resize(policy="pad", fill=(1, 2, 3)))
    assert (square[5:15] == [0, 255, 0]).all()
    assert (square[:5] == [1, 2, 3]).all()
    assert (square[15:] == [1, 2, 3]).all()
    assert resize(Image.new("RGB", (1, 5000)), 20, settings=Resize(policy="pad")).shape == (20, 20, 3)


@pytest.mark.parametrize("policy", ["squash", "crop", "pad"])
def test_a_centre_crop_is_that_of_two_resizings(policy: str) -> None:
    y, x = np.mgrid[:300, :400]
    waves = np.dstack([128 + 120 * np.sin(x / 40), 128 + 120 * np.cos(y / 30), (x + y) / 3])
    image = Image.fromarray(waves.astype(np.uint8))
    first = Image.fromarray(resize(image, 224, settings=Resize(policy=policy)))
    left, top = (224 - 160) // 2, (224 - 200) // 2
    literal = first.crop((left, top, left + 160, top + 200)).resize((224, 224), Image.Resampling.BILINEAR)
    both = resize(image, 224, settings=Resize(policy=policy, centre_crop=(200, 160)))
    difference = np.abs(both.astype(int) - np.asarray(literal).astype(int))
    assert difference.mean() < 1
    assert (difference > 8).mean() < 0.02  # only at the sharp rim of the padding


def test_a_centre_crop_scales_with_the_side_that_is_stored() -> None:
    image = Image.new("RGB", (100, 100), "red")
    image.paste("lime", (25, 25, 75, 75))
    square = resize(image, 80, settings=Resize(centre_crop=(32, 32)), size=64)
    assert (square[1:-1, 1:-1] == [0, 255, 0]).all()


def test_a_centre_crop_larger_than_the_size_is_refused() -> None:
    with pytest.raises(PlanError, match=r"\[200, 160\] does not fit into the size 128"):
        resize(Image.new("RGB", (9, 9)), 128, settings=Resize(centre_crop=(200, 160)))


def test_a_square_read_small_equals_one_read_in_full(tmp_path: Path) -> None:
    y, x = np.mgrid[:800, :600]
    image = Image.fromarray(np.dstack([x / 3, y / 4, (x + y) / 6]).astype(np.uint8))
    path = saved(tmp_path, image, "a.jpg", quality=95)
    for settings in (Resize(), Resize(policy="crop"), Resize(policy="pad"), Resize(centre_crop=(64, 32))):
        small = read_square(path, 64, settings=settings, size=64)
        assert np.abs(small.astype(int) - resize(image, 64, settings=settings)).mean() < 2


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        (Resize(), 60),
        (Resize(policy="crop"), 20),
        (Resize(policy="pad"), 60),
        (Resize(centre_crop=(8, 16)), 30),
    ],
)
def test_the_side_beyond_which_nothing_is_gained(settings: Resize, side: int) -> None:
    assert useful_side(60, 20, size=32, settings=settings) == side


def test_settings_are_closed() -> None:
    for wrong in ({"policy": "stretch"}, {"centre_crop": (0, 3)}, {"fill": (0, 0, 256)}, {"size": 3}):
        with pytest.raises(ValidationError):
            Resize.model_validate(wrong)


def test_a_size_needs_the_header_alone(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "a.jpg")
    path.write_bytes(path.read_bytes()[:-500])
    refusal(path)
    assert size_of(path) == (70, 50)
