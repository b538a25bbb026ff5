"""Names of images in a table that are not the paths of their files."""

from __future__ import annotations

import string
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import DataError
from assay.labels.readers.image_names import Wanted, locate
from assay.labels.readers.read import DataSettings, read_whole
from assay.labels.readers.table_files import Rows
from assay.labels.readers.to_label import find_images
from assay.labels.samples import Samples
from factories import put


def read_named(base: Path, *names: str, files: tuple[str, ...], root: str = ".") -> Samples:
    """A table beside its images whose rows name them so; the first row is of class a, all others of class b."""
    put(base / root, *files)
    rows = "".join('"{}",{}\n'.format(name.replace('"', '""'), "b" if i else "a") for i, name in enumerate(names))
    (base / "t.csv").write_bytes(f"image,label\n{rows}".encode())
    return read_whole(DataSettings(table=Path("t.csv"), root=Path(root)), base=base)


FILES = ("img/3/000123.png", "img/3/000124.png", "img/4/7.JPG")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("000123", "img/3/000123.png"),
        ("img/3/000123", "img/3/000123.png"),
        ("123", "img/3/000123.png"),
        ("123.0", "img/3/000123.png"),
        ("7.jpg", "img/4/7.JPG"),
        ("IMG/4/7.jpg", "img/4/7.JPG"),
        (r"img\3\000123.png", "img/3/000123.png"),
        (r"C:\data\img\3\000123.png", "img/3/000123.png"),
        (r"\\server\share\3\000123.png", "img/3/000123.png"),
        ("https://host.org/a/img/3/000123.png?size=1#x", "img/3/000123.png"),
        ("s3://bucket/3/000123.png", "img/3/000123.png"),
        ("file:///home/me/img/3/000123.png", "img/3/000123.png"),
        ("file:///C:/me/img/3/000123.png", "img/3/000123.png"),
        ("/data/upload/3/000123.png", "img/3/000123.png"),
        ("/data/local-files/?d=img/3/000123.png", "img/3/000123.png"),
        ("http://host.org/other/000123", "img/3/000123.png"),
        ("../3/000123.png", "img/3/000123.png"),
        ("~/pets/3/000123.png", "img/3/000123.png"),
        ("img/%33/000123.png", "img/3/000123.png"),
        ("000123.png?token=1&dl=0", "img/3/000123.png"),
        ("/data/upload/9/0f1e2d3c-000123.png", "img/3/000123.png"),
        ("'img/3/000123.png'", "img/3/000123.png"),
        ('"000123.png"', "img/3/000123.png"),
        (" img/3/000123.png\u200b", "img/3/000123.png"),
    ],
)
def test_a_name_is_matched_to_its_file_and_this_is_said(tmp_path: Path, name: str, file: str) -> None:
    samples = read_named(tmp_path, name, "img/3/000124.png", files=FILES)
    assert samples.ids == [file, "img/3/000124.png"]
    assert any(f"such as '{name}' for '{file}'".replace("\u200b", "\\u200b") in note for note in samples.notes)


def test_composed_and_decomposed_letters_are_one_name(tmp_path: Path) -> None:
    samples = read_named(tmp_path, "caf\u00e9.jpg", "b.jpg", files=("cafe\u0301.jpg", "b.jpg"))
    assert samples.ids == ["cafe\u0301.jpg", "b.jpg"]


def test_a_name_in_percents_is_that_of_an_address(tmp_path: Path) -> None:
    files = ("a b.jpg", "%20.jpg")
    assert read_named(tmp_path, "http://h/a%20b.jpg", "%20.jpg", files=files).ids == ["a b.jpg", "%20.jpg"]


def test_names_that_may_be_several_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv, line 2: '1' may be 'a/1\.jpg' or 'b/1\.jpg'.*`root`"):
        read_named(tmp_path, "1", "2", files=("a/1.jpg", "b/1.jpg", "a/2.jpg", "b/2.jpg"))
    with pytest.raises(DataError, match=r"'5' may be '5\.jpg' or '5\.png'.*the ending"):
        read_named(tmp_path / "e", "5", files=("5.jpg", "5.png"))


def test_the_folder_that_holds_all_names_is_taken(tmp_path: Path) -> None:
    files = ("train/1.jpg", "train/2.jpg", "train/3.jpg", "test/1.jpg", "test/2.jpg")
    assert read_named(tmp_path, "1", "2", "3", files=files).ids == ["train/1.jpg", "train/2.jpg", "train/3.jpg"]


def test_two_names_of_one_file_are_refused_unless_they_are_the_same(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'/up/4/1\.jpg' and '/up/3/1\.jpg' \(line 2\) may both be '1\.jpg'"):
        read_named(tmp_path, "/up/3/1.jpg", "/up/4/1.jpg", files=("1.jpg",))
    with pytest.raises(DataError, match=r"may both be '01\.jpg'"):
        read_named(tmp_path / "n", "1", "001", files=("01.jpg",))
    put(tmp_path / "s", "1.jpg", "2.jpg")
    (tmp_path / "s/t.csv").write_text("image,label\n/up/1.jpg,a\n./1.jpg,a\n2.jpg,b\n")
    assert read_whole(DataSettings(table=Path("t.csv")), base=tmp_path / "s").ids == ["1.jpg", "2.jpg"]


def test_a_missing_image_is_not_sought_in_other_folders_where_most_names_are_paths(tmp_path: Path) -> None:
    samples = read_named(
        tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg", "b/4.jpg", files=("a/1.jpg", "a/2.jpg", "a/3.jpg", "4.jpg")
    )
    assert samples.ids == ["a/1.jpg", "a/2.jpg", "a/3.jpg"]
    assert [(left.path, left.reason) for left in samples.left_out] == [("b/4.jpg", "no such file: there is '4.jpg'")]


def test_another_ending_is_named_and_not_taken(tmp_path: Path) -> None:
    samples = read_named(tmp_path, "1.jpg", "2.jpg", "3.jpg", files=("1.jpg", "2.jpg", "3.png"))
    assert [(left.path, left.reason) for left in samples.left_out] == [("3.jpg", "no such file: there is '3.png'")]


def test_images_to_label_are_matched_too(tmp_path: Path) -> None:
    put(tmp_path, "d/1.png", "d/2.png")
    (tmp_path / "t.csv").write_text("id_code;n\n2;x\n1;y\n3;z\n")
    images = find_images(tmp_path / "t.csv")
    assert images.files == [("2", tmp_path / "d/2.png"), ("1", tmp_path / "d/1.png"), ("3", tmp_path / "3")]
    assert any("without the ending" in note for note in images.notes)
    (tmp_path / "l.txt").write_text("d\\2.png\nd\\1.png\n")
    assert [path for _, path in find_images(tmp_path / "l.txt").files] == [tmp_path / "d/2.png", tmp_path / "d/1.png"]


def test_lines_of_lists_are_matched_too(tmp_path: Path) -> None:
    put(tmp_path, "i/1.png", "i/2.png", "i/3.png")
    (tmp_path / "l").mkdir()
    (tmp_path / "l/sea.txt").write_text("1\nC:\\x\\i\\3.png\n")
    (tmp_path / "l/sun.txt").write_text("i/2.png\n3\n")
    samples = read_whole(DataSettings(lists=Path("l")), base=tmp_path)
    assert samples.table["label:tags"].to_list() == [["sea"], ["sun"], ["sea", "sun"]]
    assert sum("without the ending" in note for note in samples.notes) == 2
    (tmp_path / "l/sun.txt").write_text("i/2.png\n4\n")
    with pytest.raises(DataError, match=r"sun\.txt, line 2: '4' is no image"):
        read_whole(DataSettings(lists=Path("l")), base=tmp_path)


def test_a_path_that_leaves_the_folder_is_refused_whatever_lies_there(tmp_path: Path) -> None:
    put(tmp_path, "away.jpg")
    with pytest.raises(DataError, match=r"line 3: '\.\./away\.jpg' leaves the data folder"):
        read_named(tmp_path, "1.jpg", "../away.jpg", files=("1.jpg",), root="data")
    with pytest.raises(DataError, match=r"line 3: '\.\./away\.jpg' leaves the data folder"):
        read_named(tmp_path, "1.jpg", "../away.jpg", files=("1.jpg", "away.jpg"), root="data")


PART = st.text(string.ascii_letters + string.digits + " é_-", min_size=1, max_size=6).filter(
    lambda part: part == part.strip()
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(PART, min_size=1, max_size=3), st.sampled_from(["/", "\\"]), st.sampled_from(["", "C:\\", "/srv/", "./"])
)
def test_a_path_has_the_same_parts_however_it_is_written(parts: list[str], mark: str, before: str) -> None:
    wanted = Wanted.of(f' "{before}{mark.join(parts)}" ').parts
    assert wanted[len(wanted) - len(parts) :] == tuple(parts)


@settings(max_examples=30, deadline=None)
@given(names=st.lists(PART.map(str.casefold), min_size=1, max_size=6, unique=True))
def test_every_file_is_matched_by_its_stem_or_refused(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = put(tmp_path_factory.mktemp("data"), *(f"d/{name}.png" for name in names))
    rows = Rows(root, pl.DataFrame({"image": names}), range(2, 99), "line")
    located, _ = locate(rows, names, root)
    assert [path for path, _ in located] == [f"d/{name}.png" for name in names]
