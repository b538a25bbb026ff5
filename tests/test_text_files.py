"""Tables as programs of all kinds save them: encodings, delimiters, decimal commas, blank rows, Excel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import DataError
from assay.labels.readers.read import DataSettings, read_whole
from assay.labels.readers.table_files import read_rows
from assay.labels.readers.text_files import MARKS, read_table_text, read_text
from assay.labels.samples import Samples
from factories import put

TEXT = "image,label\n1.jpg,café\n2.jpg,Straße\n"


def read_bytes(base: Path, data: bytes, name: str = "t.csv", **settings: Any) -> Samples:
    """The images 1.jpg and 2.jpg, and a table of these bytes."""
    put(base, "1.jpg", "2.jpg")
    (base / name).write_bytes(data)
    return read_whole(DataSettings.model_validate({"table": name, **settings}), base=base)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TEXT.encode(), ""),
        (TEXT.encode("utf-8-sig"), ""),
        (TEXT.encode("utf-16"), "UTF-16"),
        ("\ufeff".encode("utf-16-be") + TEXT.encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16-LE"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (TEXT.encode("cp1252"), r"Windows-1252, with 'café', 'Straße'"),
    ],
)
def test_the_usual_encodings_are_read_and_named(tmp_path: Path, data: bytes, said: str) -> None:
    samples = read_bytes(tmp_path, data)
    assert samples.space["label"].classes == ("café", "Straße")
    assert any(said in note for note in samples.notes) if said else not any("was read as" in n for n in samples.notes)


@pytest.mark.parametrize(
    ("label", "encoding"),
    [("кот", "cp1251"), ("狗", "gbk"), ("猫", "shift-jis"), ("고양이", "euc-kr"), ("γάτα", "cp1253"), ("小貓", "big5")],
)
def test_encodings_that_cannot_be_known_are_refused(tmp_path: Path, label: str, encoding: str) -> None:
    with pytest.raises(DataError, match=r"t\.csv: is not UTF-8 in line 2, and its encoding cannot be known"):
        read_bytes(tmp_path, f"image,label\n1.jpg,{label}\n2.jpg,b\n".encode(encoding))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image;label\n1.jpg;a\n2.jpg;b\n", "semicolons"),
        ("image\tlabel\n1.jpg\ta\n2.jpg\tb\n", "tabs"),
        ("image|label\n1.jpg|a\n2.jpg|b\n", "bars"),
        ("image;weight;label\n1.jpg;0,5;a\n2.jpg;1,5;b\n", "semicolons"),
        ('image;label;note\n1.jpg;"a";"x, y"\n2.jpg;b;\n', "semicolons"),
        ("sep=;\nimage;label\n1.jpg;a\n2.jpg;b\n", ""),
        ('"sep=|"\r\nimage|label\r\n1.jpg|a\r\n2.jpg|b\r\n', ""),
        ("image,label\n1.jpg,a\n2.jpg,b\n,\n,,\n \n\n", "3 blank rows were"),
        ("image;label\r\n1.jpg;a\r\n2.jpg;b\r\n;\r\n", "1 blank row was"),
    ],
)
def test_the_usual_delimiters_are_seen_and_named(tmp_path: Path, text: str, said: str) -> None:
    samples = read_bytes(tmp_path, text.encode())
    assert samples.table["label:label"].to_list() == ["a", "b"]
    assert any(said in note for note in samples.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.jpg,a\n2.jpg,b\n", r"line 1: '1\.jpg' is an image, where the names"),
        ("1.jpg,0,0\n2.jpg,0,1\n", r"line 1: '1\.jpg' is an image"),
        ("1,a\n2,b\n", "If the first line is data, write the names"),
        ("1.jpg a\n2.jpg b\n", "If they are parted by ' ', say so with `delimiter`"),
        ("# of May\nimage,label\n1.jpg,a\n", "line 1: '# of May' is one cell, and the next row has 2"),
        ("image,label\n", "has no rows below the names"),
        ("image,label\n7,a\n", r"There are images such as '1\.jpg'"),
    ],
)
def test_a_table_without_its_first_line_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_bytes(tmp_path, text.encode())


def test_a_line_is_counted_below_one_that_names_the_delimiter(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 4: names no image"):
        read_bytes(tmp_path, b"sep=;\nimage;label\n1.jpg;a\n;b\n")


def test_a_delimiter_within_cells_is_none(tmp_path: Path) -> None:
    tags = {"tags": {"column": "tags", "separator": ";"}}
    samples = read_bytes(tmp_path, b"image,tags\n1.jpg,a;b\n2.jpg,b;c\n", heads=tags)
    assert samples.table["label:tags"].to_list() == [["a", "b"], ["b", "c"]]
    tabbed = read_bytes(tmp_path, b"image,label\n1.jpg,a\n2.jpg,b\n", name="t.tsv")
    assert tabbed.space["label"].classes == ("a", "b")


@pytest.mark.parametrize(("weights", "values"), [("0,5 1,25", [0.5, 1.25]), ("0,500 2,000", [0.5, 2.0])])
def test_decimal_commas_of_weights(tmp_path: Path, weights: str, values: list[float]) -> None:
    one, two = weights.split()
    samples = read_bytes(tmp_path, f"image;weight;label\n1.jpg;{one};a\n2.jpg;{two};b\n".encode())
    assert samples.weights()[:, 0].tolist() == values
    assert any("have decimal commas" in note for note in samples.notes)


@pytest.mark.parametrize("weights", [["1,500", "2,000"], ["1,5", "2.5"]])
def test_commas_that_may_part_thousands_are_refused(tmp_path: Path, weights: list[str]) -> None:
    with pytest.raises(DataError, match="is no number of 0 or more"):
        read_bytes(tmp_path, "image;weight;label\n1.jpg;{};a\n2.jpg;{};b\n".format(*weights).encode())


def test_flags_with_decimal_commas(tmp_path: Path) -> None:
    samples = read_bytes(tmp_path, b"image;a;b\n1.jpg;1,0;0\n2.jpg;0,0;1\n", heads={"h": {"columns": ["a", "b"]}})
    assert samples.codes()[0].tolist() == [[1, 0], [0, 1]]


# Excel


def test_an_excel_file_names_the_library_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    with pytest.raises(DataError, match=r"pip install 'assay-vision\[excel\]'.*save the sheet as CSV"):
        read_bytes(tmp_path, b"PK", name="t.xlsx")


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5).map(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL.filter(bool), CELL), min_size=1, max_size=5),
    mark=st.sampled_from(list(MARKS)),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_quoted_table_is_read_whatever_its_mark(
    rows: list[tuple[str, str]], mark: str, encoding: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [("a", "b"), *rows]
    text = "".join(mark.join('"{}"'.format(cell.replace('"', '""')) for cell in row) + "\r\n" for row in lines)
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(text.encode(encoding))
    table = read_table_text(path, usual=",")
    assert [tuple(cells) for _, cells in table.records] == lines
    assert table.delimiter == mark


@given(data=st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_text_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(data)
    try:
        text, _ = read_text(path)
    except DataError:
        return
    assert isinstance(text, str)


def test_a_sheet_of_excel(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    xlsxwriter = pytest.importorskip("xlsxwriter")
    book = xlsxwriter.Workbook(tmp_path / "t.xlsx")
    sheet = book.add_worksheet()
    book.add_worksheet()
    for row, cells in enumerate([("image", "label", "n"), ("1.jpg", "a", 1), ("2.jpg", "b", 2.5)]):
        sheet.write_row(row, 0, cells)
    book.close()
    rows = read_rows(tmp_path / "t.xlsx")
    assert rows.frame.rows() == [("1.jpg", "a", "1"), ("2.jpg", "b", "2.5")]
