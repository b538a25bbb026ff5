"""Class names in several spellings, and names that stand for no label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.labels.readers.read import DataSettings, read_whole
from assay.labels.samples import Samples
from assay.labels.spelling import Spelling, alike, means_unknown, nfkc, number
from factories import put


def read_labels(base: Path, *labels: str, ending: str = "csv", **data: Any) -> Samples:
    """A table of an image for each label."""
    put(base, *(f"{i}.jpg" for i in range(len(labels))))
    rows = "".join(f'{i}.jpg,"{label}"\n' for i, label in enumerate(labels))
    (base / "t.csv").write_bytes(f"image,label\n{rows}".encode())
    return read_whole(DataSettings.model_validate({"table": "t.csv", **data}), base=base)


@pytest.mark.parametrize(
    ("names", "merge", "points"),
    [
        (["caf\u00e9", "cafe\u0301"], "nfkc", "U+00E9"),
        (["cat", "c\u200bat"], "nfkc", "U+200B"),
        (["red oak", "red\u00a0oak"], "nfkc", "U+00A0"),
        (["red oak", "red  oak"], "nfkc", "U+0020"),
        (["cat", "cat "], "nfkc", "U+0020"),
        (["cat", "\uff43\uff41\uff54"], "nfkc", "U+FF43"),
        (["\ufb01g", "fig"], "nfkc", "U+FB01"),
        (["cat", "Cat"], "case", "'Cat' (1 image)"),
        (["1", "1.0"], "numbers", "U+002E U+0030"),
        (["1", "01"], "numbers", "'01' (1 image)"),
        (["1.50", "1.5"], "numbers", "'1.50' (1 image)"),
        (["Cat", "cat\u00a0"], "[nfkc, case]", "U+00A0"),
        (["cat", "c\u0430t"], '{"c\u0430t": "cat"}', "U+0430"),
        (["red oak", "red_oak"], '{"red_oak": "red oak"}', "U+005F"),
        (["red-oak", "red\u2013oak"], '{"red\u2013oak": "red-oak"}', "U+2013"),
    ],
)
def test_one_class_in_two_spellings_is_named_with_the_line_that_merges_it(
    tmp_path: Path, names: list[str], merge: str, points: str
) -> None:
    samples = read_labels(tmp_path, *names, "dog")
    notes = [note for note in samples.notes if "are two classes" in note]
    assert len(notes) == 1
    assert f"`merge: {merge}` under `data`" in notes[0]
    assert points in notes[0]
    assert samples.space["label"].size == 3


@pytest.mark.parametrize(
    ("merge", "names", "merged"),
    [
        ("nfkc", ["caf\u00e9", "cafe\u0301 "], ["caf\u00e9"]),
        ("case", ["Cat", "CAT", "cat"], ["cat"]),
        ("numbers", ["1", "01", "1.0", "1.5", "-0", "0"], ["0", "1", "1.5"]),
        (["numbers", "nfkc", "case"], ["\uff11.0", "1", "\u200bA", "a"], ["1", "a"]),
        ({"kitty": "cat", "puss": "cat"}, ["kitty", "puss", "cat", "dog"], ["cat", "dog"]),
    ],
)
def test_merged_spellings_are_one_class(tmp_path: Path, merge: Any, names: list[str], merged: list[str]) -> None:
    samples = read_labels(tmp_path, *names, "zebra", merge=merge)
    assert list(samples.space["label"].classes) == [*merged, "zebra"]
    assert any("merged into" in note for note in samples.notes)
    assert not any("are two classes" in note for note in samples.notes)


@pytest.mark.parametrize("word", ["nan", "NaN", "?", "-", "unknown", "N/A", "none", "NULL", "\u2013", "n.a.", "#N/A"])
def test_a_word_for_unknown_is_named_and_blanked_where_asked(tmp_path: Path, word: str) -> None:
    samples = read_labels(tmp_path, "cat", "dog", word)
    note = next(note for note in samples.notes if "learnt as a class" in note)
    assert f'`missing: ["{word}"]` under `data`' in note
    assert (f"U+{ord(word[0]):04X}" in note) is not word.isalnum()
    samples = read_labels(tmp_path, "cat", "dog", f" {word}", missing=[word])
    assert samples.space["label"].classes == ("cat", "dog")
    assert samples.table["label:label"].to_list() == ["cat", "dog", None]
    assert any("labels that are unknown by `missing`" in note for note in samples.notes)


def test_folders_are_merged_and_blanked_too(tmp_path: Path) -> None:
    put(tmp_path / "p", "cat/1.jpg", "Cat/2.jpg", "dog/3.jpg", "unknown/4.jpg", "caf\u00e9/5.jpg", "cafe\u0301/6.jpg")
    data = {"folder": "p", "merge": ["nfkc", "case"], "missing": ["unknown"]}
    samples = read_whole(DataSettings.model_validate(data), base=tmp_path)
    assert samples.space["label"].classes == ("caf\u00e9", "cat", "dog")
    labels = dict(zip(samples.ids, samples.table["label:label"].to_list(), strict=True))
    assert labels["Cat/2.jpg"] == "cat"
    assert labels["unknown/4.jpg"] is None


def test_rows_of_one_image_may_differ_in_spelling_where_it_is_merged(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "t.csv").write_text("image,label\n1.jpg,Cat\n1.jpg,cat\n1.jpg,?\n2.jpg,dog\n")
    data = DataSettings.model_validate({"table": "t.csv", "merge": "case", "missing": ["?"]})
    assert read_whole(data, base=tmp_path).table["label:label"].to_list() == ["cat", "dog"]


def test_tags_are_merged_and_those_beside_an_unknown_one_are_all_that_is_known(tmp_path: Path) -> None:
    tags = {"tags": {"column": "label", "separator": ";", "classes": ["sea", "sun", "car"]}}
    cells = ["Sea;sun", "?", "sun;?", "car"]
    samples = read_labels(tmp_path, *cells, heads=tags, merge="case", missing=["?"])
    assert samples.codes()[0].tolist() == [[1, 1, 0], [-1, -1, -1], [-1, 1, -1], [0, 0, 1]]


def test_columns_of_0_and_1_take_words_for_unknown_and_are_merged(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "t.csv").write_text("image,Sea,sea,sun\n1.jpg,1,0,0\n2.jpg,0,-1,1\n3.jpg,-1,-1,1\n")
    data = {"table": "t.csv", "heads": {"h": {"columns": ["Sea", "sea", "sun"]}}, "merge": "case", "missing": ["-1"]}
    samples = read_whole(DataSettings.model_validate(data), base=tmp_path)
    assert samples.space["h"].classes == ("sea", "sun")
    assert samples.codes()[0].tolist() == [[1, 0], [-1, 1], [-1, 1]]


def test_lists_and_names_are_settled_too(tmp_path: Path) -> None:
    put(tmp_path, "i/Cat_1.jpg", "i/cat_2.jpg", "i/na_3.jpg")
    data = {"names": "{class}_{n}.jpg", "root": "i", "merge": "case", "missing": ["na"]}
    samples = read_whole(DataSettings.model_validate(data), base=tmp_path)
    assert samples.table["label:label"].to_list() == ["cat", "cat", None]
    (tmp_path / "l").mkdir()
    (tmp_path / "l/unknown.txt").write_text("i/na_3.jpg\n")
    (tmp_path / "l/cat.txt").write_text("i/Cat_1.jpg\n")
    samples = read_whole(DataSettings.model_validate({"lists": "l", "missing": ["unknown"]}), base=tmp_path)
    assert samples.codes()[0].tolist() == [[1], [0], [-1]]


def test_a_form_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate({"folder": "p", "merge": "nfc"})


def test_notes_are_bounded(tmp_path: Path) -> None:
    pairs = [name for i in range(40) for name in (f"class {i}", f"Class {i}")]
    notes = read_labels(tmp_path, *pairs, *pairs).notes
    assert len(notes) < 20
    (note,) = notes[-1:]
    assert "'Class 5'" in note
    assert "and 34 more groups differ only in case, and each is a class. One class: `merge: case`" in note


def test_blanks_at_the_ends_of_a_class_are_named(tmp_path: Path) -> None:
    (note,) = (note for note in read_labels(tmp_path, " cat", "dog\u200b", "red owl").notes if "merge" in note)
    assert note.startswith("label: ' cat', 'dog\\u200b' begin or end with a blank or an invisible character.")


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(NAMES)
def test_settling_a_name_twice_is_settling_it_once(name: str) -> None:
    assert nfkc(nfkc(name)) == nfkc(name)
    assert number(number(name)) == number(name)
    for spelling in (Spelling(("nfkc",)), Spelling(("nfkc", "case", "numbers")), Spelling(missing=("?", name))):
        settled = spelling(name)
        assert settled is None or spelling(settled) == settled


@given(st.lists(NAMES, max_size=6, unique=True))
def test_names_that_look_alike_are_each_in_one_group(names: list[str]) -> None:
    groups = alike(names)
    assert all(len(group) > 1 for group in groups)
    listed = [name for group in groups for name in group]
    assert len(listed) == len(set(listed))
    assert set(listed) <= set(names)


def test_ordinary_classes_mean_something() -> None:
    for name in ("cat", "nana", "1", "0", "other", "C++", "no", "none of these", "x", "A-", "日本"):
        assert not means_unknown(name)
