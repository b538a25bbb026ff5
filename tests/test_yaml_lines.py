"""YAML in and out: types of YAML 1.2, lines, and a round trip of anything."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import PlanError
from assay.plan.yaml_lines import Document, dots, read, write

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=9), inside, max_size=4),
    max_leaves=15,
)


@settings(deadline=None)
@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    again = read(write(value), "x").value
    assert again == value
    assert repr(again) == repr(value)


@settings(deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="ab: -[]{}#&*!|>'\"%@`,?\n\t ", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(PlanError):
        read(text, "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-3", 0.003),
        ("1E5", 100000.0),
        ("017", 17),
        ("0x1F", 31),
        ("0o17", 15),
        ("-.inf", -math.inf),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("<<", "<<"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    got = read(f"a: {text}", "x").value["a"]
    assert (got, type(got)) == (value, type(value))


def test_keys_are_text_as_written() -> None:
    assert read("{1: a, 2.50: b, no: c, true: d, ~: e, 007: f}", "x").value == {
        "1": "a", "2.50": "b", "no": "c", "true": "d", "~": "e", "007": "f",
    }  # fmt: skip


def test_lines_and_texts_are_kept() -> None:
    document = read("a: 1\nb:\n  - x\n  - c: 1.50\n", "p.yaml")
    assert document.where(("a",)) == "p.yaml, line 1"
    assert document.where(("b", 1, "c")) == "p.yaml, line 4"
    assert document.where(("b", 0, "not", "there")) == "p.yaml, line 3"
    assert document.texts["b", 1, "c"] == "1.50"


def test_put_leaves_the_old_document_alone() -> None:
    old = read("a: {b: [1, 2]}", "p.yaml")
    new = old.put(("a", "b", 1), {"c": 5}, source=Document({"c": 5}, "elsewhere"))
    assert (old.value, new.value) == ({"a": {"b": [1, 2]}}, {"a": {"b": [1, {"c": 5}]}})
    assert (new.where(("a", "b", 1, "c")), new.where(("a", "b", 0))) == ("elsewhere", "p.yaml, line 1")


def test_anchors_stand_for_what_they_name() -> None:
    assert read("a: &x {k: 1}\nb: *x", "x").value == {"a": {"k": 1}, "b": {"k": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "p, line 2: a is set twice, first at p, line 1. Keep one of them."),
        ("a:\n  b: 1\n  b: 2", "p, line 3: a.b is set twice, first at p, line 2."),
        ("a: [1", "p, line 1: broken YAML: "),
        ("a: 1\n\tb: 2", "p, line 2: broken YAML: "),
        ("a: 1\n---\nb: 2", "p, line 2: broken YAML: "),
        ("a: *x", "p, line 1: broken YAML: "),
        ("a: \x00", "p: broken YAML: "),
        ("[x]: 1", "p, line 1: a list or mapping cannot be a key."),
        ("a: &x [*x]", "p, line 1: an alias (*) that holds itself."),
        ("a: !!python/object:os.system {}", "p, line 1: the tag tag:yaml.org,2002:python/object:os.system means"),
        ("a: !mine 3", "p, line 1: the tag !mine means nothing here. Remove it."),
        ("[" * 800, "p: nested too deeply to be a plan."),
    ],
)
def test_refusals_name_the_line(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        read(text, "p")
    assert str(caught.value).startswith(message)


def test_a_bomb_of_aliases_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(PlanError, match="holds more than 100,000 values"):
        read("\n".join(lines), "x")


def test_written_yaml_is_easy_on_the_eye() -> None:
    value = {"data": {"folder": "my photos/"}, "seed": 0, "steps": [{"probe": {"size": 64}}, {"fit": {"lr": 3e-3}}]}
    assert write(value) == (
        'data: {folder: "my photos/"}\nseed: 0\nsteps:\n  - probe: {size: 64}\n  - fit: {lr: 0.003}\n'
    )


def test_long_mappings_take_a_line_a_key() -> None:
    value = {"steps": [{"fit": {f"key_{i}": [0.25, 0.5] for i in range(6)}}]}
    lines = write(value).splitlines()
    assert lines[:3] == ["steps:", "  - fit:", "      key_0: [0.25, 0.5]"]
    assert read(write(value), "x").value == value


def test_dots() -> None:
    assert dots(("steps", 2, "fit", "a.b", "")) == 'steps.2.fit."a.b".""'
