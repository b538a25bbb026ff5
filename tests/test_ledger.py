from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from assay.errors import DataError
from assay.labels.corrections import NO_LONGER, correct, corrections, count_corrections, fit_to_data, sync_corrections
from assay.labels.edits import PERSON, Edit, apply, current_values, standing_edits
from assay.labels.ledger import COLUMNS, Ledger, Selection
from assay.labels.samples import Samples
from assay.labels.space import Head
from factories import make_samples

SEASON = Head("season", ("spring", "autumn"))
TAGS = Head("tags", ("beach", "city", "night"), "multilabel")
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
HEADER = ",".join(COLUMNS)


MIXED = make_samples(
    [
        {"id": "a", "season": "autumn", "tags": ["night", "beach"], "split": "train"},
        {"id": "b", "season": None, "tags": [], "split": "val"},
        {"id": "c", "season": "spring", "tags": None, "split": "train"},
        {"id": "d", "season": None, "tags": ["city"], "unknown tags": ["night"]},
        {"id": "e", "season": "spring", "tags": ["city"], "split": "test"},
    ],
    SEASON,
    TAGS,
)


def season(name: str, action: str, old: str | None, new: str | None = None, **more: object) -> Edit:
    return Edit(**{"id": name, "head": "season", "action": action, "old": old, "new": new, "step": "03-clean", **more})  # type: ignore[arg-type]


def tag(name: str, which: str, action: str, old: str | None, new: str | None = None, **more: object) -> Edit:
    return replace(season(name, action, old, new, **more), head="tags", tag=which)


def row(made: Samples, name: str) -> dict[str, object]:
    return made.table.filter(id=name).row(0, named=True)


def same(one: Samples, other: Samples) -> bool:
    return one.table.equals(other.table) and one.table.schema == other.table.schema and one.space == other.space


# What each action does


@pytest.mark.parametrize(
    ("edit", "label", "origin"),
    [
        (season("a", "set", "autumn", "spring"), "spring", "pseudo"),
        (season("d", "set", None, "spring"), "spring", "pseudo"),
        (season("a", "set", "autumn", "spring", origin="corrected"), "spring", "corrected"),
        (season("a", "set", "autumn", "spring", step=PERSON), "spring", "corrected"),
        (season("a", "unset", "autumn"), None, "given"),
        (season("a", "drop", "autumn"), None, "dropped"),
    ],
)
def test_the_label_of_an_multiclass_head(edit: Edit, label: str | None, origin: str) -> None:
    made = apply(MIXED, [edit])
    assert (row(made, edit.id)["label:season"], row(made, edit.id)["origin:season"]) == (label, origin)
    assert made.table.filter(pl.col("id") != edit.id).equals(MIXED.table.filter(pl.col("id") != edit.id))
    assert made.table.drop("label:season", "origin:season").equals(MIXED.table.drop("label:season", "origin:season"))


@pytest.mark.parametrize(
    ("edit", "codes"),
    [
        (tag("a", "beach", "set", "1", "0"), [0, 0, 1]),
        (tag("a", "city", "set", "0", "1"), [1, 1, 1]),
        (tag("a", "city", "unset", "0"), [1, -1, 1]),
        (tag("a", "night", "drop", "1"), [1, 0, -1]),
        (tag("c", "city", "set", None, "1"), [-1, 1, -1]),
        (tag("c", "city", "set", None, "0"), [-1, 0, -1]),
        (tag("d", "night", "set", None, "1"), [0, 1, 1]),
    ],
)
def test_the_tags_of_an_multilabel_head(edit: Edit, codes: list[int]) -> None:
    made = apply(MIXED, [edit])
    index = MIXED.ids.index(edit.id)
    expected = MIXED.codes()[1]
    expected[index] = codes
    assert made.codes()[1].tolist() == expected.tolist()
    assert made.codes()[0].tolist() == MIXED.codes()[0].tolist()
    assert row(made, edit.id)["origin:tags"] == ("pseudo" if edit.action == "set" else "given")


def test_a_image_whose_last_known_tag_goes_is_unknown() -> None:
    made = apply(MIXED, [tag("d", "beach", "unset", "0"), tag("d", "city", "unset", "1")])
    assert (row(made, "d")["label:tags"], row(made, "d")["unknown:tags"]) == (None, None)
    assert not made.take([3]).labelled()[0]


def test_a_image_of_which_everything_is_known_lists_nothing_unknown() -> None:
    made = apply(MIXED, [tag("d", "night", "set", None, "0")])
    assert (row(made, "d")["label:tags"], row(made, "d")["unknown:tags"]) == (["city"], None)


def test_tags_share_the_strongest_origin() -> None:
    pseudo, right = tag("c", "city", "set", None, "1"), tag("c", "beach", "set", None, "0", origin="corrected")
    for edits in ([pseudo, right], [right, pseudo]):
        assert row(apply(MIXED, edits), "c")["origin:tags"] == "corrected"
        assert row(apply(apply(MIXED, edits[:1]), edits[1:]), "c")["origin:tags"] == "corrected"


def test_weights() -> None:
    made = apply(MIXED, [season("a", "weight", "1.0", "0.1"), season("a", "weight", "0.1", "0.25")])
    assert made.weights()[0].tolist() == [0.25, 1.0]
    assert made.weights()[1:].tolist() == MIXED.weights()[1:].tolist()
    tags = Edit(id="a", head="tags", action="weight", old="1", new="0", step="s")
    assert apply(MIXED, [tags]).weights()[0].tolist() == [1.0, 0.0]


def test_a_synthetic_image() -> None:
    edits = [
        season("new", "add", None, "/run/new.png", tag="autumn"),
        tag("new", "night", "add", None, "/run/new.png"),
        tag("other", "city", "add", None, "/run/other.png"),
        tag("new", "city", "set", None, "0"),
    ]
    made = apply(MIXED, edits)
    assert made.ids == [*MIXED.ids, "new", "other"]
    assert made.table[: len(MIXED)].equals(MIXED.table)
    assert made.table.schema == MIXED.table.schema
    assert made.codes()[0][-2:].tolist() == [1, -1]
    assert made.codes()[1][-2:].tolist() == [[-1, 0, 1], [-1, 1, -1]]
    assert made.paths[-2] == Path("/run/new.png")
    assert made.table["split"][-2:].to_list() == ["train", "train"]
    assert made.table["origin:tags"][-2:].to_list() == ["synthetic", "synthetic"]
    assert made.weights()[-2:].tolist() == [[1, 1], [1, 1]]


# What is refused


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (season("zebra", "set", None, "spring"), "no image 'zebra'"),
        (season("a", "set", "autumn", "winter"), r"'winter', which is no class of 'season'.*'spring', 'autumn'"),
        (season("a", "set", "autumn", None), "'', which is no class"),
        (replace(season("a", "drop", "autumn"), head="mood"), "no head 'mood', only 'season', 'tags'"),
        (tag("a", "forest", "set", None, "1"), "'forest', which is no class of 'tags'"),
        (replace(tag("a", "x", "set", None, "1"), tag=None), "'', which is no class of 'tags'"),
        (tag("a", "beach", "set", "1", "yes"), "not to 'yes'"),
        (season("a", "set", "autumn", "spring", tag="beach"), "multi-class.*'beach'"),
        (season("a", "unset", "autumn", "spring"), "no `new` such as 'spring'"),
        (season("a", "set", "spring", "autumn"), "label of 'a' under 'season' is 'autumn', not 'spring'"),
        (season("d", "unset", "spring"), "is unknown, not 'spring'"),
        (season("a", "set", None, "spring"), "is 'autumn', not unknown"),
        (tag("a", "city", "set", "1", "0"), "'a' under 'tags', 'city' is '0', not '1'"),
        (season("a", "weight", "0.5", "0.1"), "weight of 'a' under 'season' is 1.0, not 0.5"),
        (season("a", "weight", "1", "many"), "a weight is a number"),
        (season("a", "weight", "1", "-1"), "a weight is a number"),
        (tag("a", "beach", "weight", "1", "0.5"), "not to a class"),
        (season("b", "set", None, "spring"), "'b' is in the val part"),
        (season("e", "weight", "1", "0"), "'e' is in the test part"),
        (season("a", "add", None, "a.png", tag="spring"), "'a' cannot be added"),
        (season("new", "add", None, None, tag="spring"), "'new' cannot be added"),
        (season("new", "add", None, "new.png", tag="winter"), "'winter', which is no class"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit: Edit, says: str) -> None:
    with pytest.raises(DataError, match=f"{edit.id}.*03-clean.*{says}"):
        apply(MIXED, [season("c", "drop", "spring"), edit])


def test_a_chain_of_edits_must_fit_link_by_link() -> None:
    chain = [season("a", "unset", "autumn"), season("a", "set", None, "spring"), season("a", "set", "spring", "autumn")]
    assert row(apply(MIXED, chain), "a")["label:season"] == "autumn"
    for wrong in (chain[1:], chain[:1] + chain[2:]):
        with pytest.raises(DataError, match="does not fit"):
            apply(MIXED, wrong)
    twice = [season("n", "add", None, "n.png", tag="spring"), season("n", "add", None, "n.png", tag="autumn")]
    with pytest.raises(DataError, match="two classes"):
        apply(MIXED, twice)


# A person wins


def test_a_person_may_edit_every_split() -> None:
    made = apply(MIXED, [season("b", "set", None, "spring", step=PERSON), tag("e", "city", "unset", "1", step=PERSON)])
    assert row(made, "b")["label:season"] == "spring"
    assert made.codes()[1][4].tolist() == [0, -1, 0]


def test_a_step_leaves_alone_what_a_person_corrected_before_or_after() -> None:
    step = [season("a", "set", "autumn", "spring"), season("a", "drop", "spring"), tag("a", "city", "set", "0", "1")]
    person = [season("a", "set", "autumn", "autumn", step=PERSON), tag("a", "night", "set", "1", "0", step=PERSON)]
    for edits in (step + person, person + step):
        made = apply(MIXED, edits)
        assert (row(made, "a")["label:season"], row(made, "a")["origin:season"]) == ("autumn", "corrected")
        assert made.codes()[1][0].tolist() == [1, 1, 0]


# The file


def of(path: Path, *edits: Edit) -> Ledger:
    return Ledger.read(path / "ledger.csv").append(edits)


def test_a_ledger_that_is_not_there_is_empty_and_appending_writes_it(tmp_path: Path) -> None:
    first, second = season("a", "drop", "autumn", score=0.25), season("c", "unset", "spring", reason="far off")
    assert Ledger.read(tmp_path / "ledger.csv").effective() == []
    assert of(tmp_path).entries == ()
    assert not (tmp_path / "ledger.csv").exists()
    of(tmp_path, first)
    before = (tmp_path / "ledger.csv").read_bytes()
    ledger = of(tmp_path, second)
    assert (tmp_path / "ledger.csv").read_bytes().startswith(before)
    assert ledger.effective() == [first, second]
    assert [entry.line for entry in ledger.entries] == [2, 3]
    assert ledger == Ledger.read(tmp_path / "ledger.csv")
    assert (tmp_path / "ledger.csv").read_text().splitlines()[0] == HEADER


def test_a_last_line_without_a_line_break_is_kept(tmp_path: Path) -> None:
    first, second = season("a", "drop", "autumn"), season("c", "unset", "spring")
    path = of(tmp_path, first).path
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n"))
    assert of(tmp_path, second).effective() == [first, second]


EDITS = st.builds(
    Edit,
    id=NAMES,
    head=NAMES,
    tag=st.none() | NAMES,
    action=st.sampled_from(["set", "unset", "drop", "weight", "add"]),
    old=st.none() | NAMES,
    new=st.none() | NAMES,
    reason=st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    score=st.none() | st.floats(allow_nan=False),
    step=NAMES,
    origin=st.sampled_from([None, "pseudo", "corrected"]),
)


@settings(max_examples=40, deadline=None)
@given(edits=st.lists(EDITS, max_size=5))
@example(edits=[season("a\rb", "set", "\r", 'x"\n,'), season("\x00", "drop", " ")])
def test_what_was_written_is_read(edits: list[Edit], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    of(folder, *edits[:2])
    assert of(folder, *edits[2:]).edits() == edits


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the column 'date' is missing"),
        (HEADER.replace("score,", ""), "line 1: the column 'score' is missing"),
        (HEADER.replace("old,new", "new,old"), "line 1: its columns are others, or in another order"),
        (HEADER + ",note", "its columns are others"),
        (HEADER + "\n,03,a,season,,drop,autumn,,,,\n,03,c,season,,drop", "line 3: 6 cells where a ledger has 11"),
        (HEADER + "\n\n,03,a,season,,erase,autumn,,,,", "line 3: 'erase' in `action` is no action.*set, unset, drop"),
        (HEADER + "\n,03,a,season,,undo,erase,,,,", "line 2: 'erase' in `old` is no action"),
        (HEADER + "\n,03,,season,,drop,autumn,,,,", "line 2: .*`id`.* is blank"),
        (HEADER + "\n,03,a,season,,drop,autumn,,,high,", "line 2: the score 'high' is no number"),
        (HEADER + "\n,03,a,season,,set,autumn,spring,guessed,,", "line 2: the origin 'guessed' is none of pseudo"),
        (HEADER + '\n,03,"a,season', "line 2: cannot be read"),
        (HEADER + "\n,03,\udcff,season,,drop,,,,,", "not UTF-8"),
    ],
)
def test_a_ledger_edited_by_hand_is_refused_by_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "ledger.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"ledger\.csv.*{says}"):
        Ledger.read(path)
    assert path.read_bytes() == text.encode(errors="surrogateescape")


def test_half_a_line_of_a_killed_process_is_left_out_and_cut_off_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    before = Ledger(path).append([season("a", "drop", "autumn", reason='a "quoted"\nreason')])
    whole = path.read_bytes()
    last = Ledger(path).append([season('d\n\u00f6"', "drop", "spring", reason='"\n"')])
    written = path.read_bytes()
    for end in range(len(whole), len(written)):
        path.write_bytes(written[:end])
        cut = Ledger.read(path)
        if cut.torn:
            assert (cut, cut.torn) == (before, written[len(whole) : end])
        elif cut != before:  # all of the line is there but the end of its reason
            assert replace(cut.entries[-1].edit, reason='"\n"') == last.entries[-1].edit
        after = cut.append([season("c", "drop", "spring")])
        assert after == Ledger.read(path)
        assert after.entries[:-1] == cut.entries
        assert not Ledger.read(path).torn


def test_a_line_is_added_without_writing_the_others_again(tmp_path: Path) -> None:
    many = [season(f"image-{number}", "drop", "autumn") for number in range(20_000)]
    ledger = Ledger(tmp_path / "ledger.csv").append(many)
    inode = ledger.path.stat().st_ino
    other = Ledger(ledger.path, ledger.entries).append([season("b", "drop", "autumn")])  # of unknown size
    after = ledger.append([season("a", "drop", "autumn")])  # and now of another size than this one knows
    assert ledger.path.stat().st_ino == inode
    assert [entry.edit.id for entry in after.entries[-2:]] == ["b", "a"]
    assert after.entries[-1].line == other.entries[-1].line + 1 == 20_003


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (",03,zebra,season,,drop,autumn,,,,", "no image 'zebra'"),
        (",03,a,mood,,drop,autumn,,,,", "no head 'mood'"),
        (",03,a,tags,forest,set,,1,,,", "'forest', which is no class"),
        (",03,a,season,,set,autumn,winter,,,", "'winter', which is no class"),
        (",03,a,season,,drop,spring,,,,", "'autumn', not 'spring'"),
        (",03,zebra,season,,undo,drop,,,,", "no image 'zebra'"),
        (",03,a,mood,,undo,drop,,,,", "head 'mood'"),
    ],
)
def test_a_ledger_of_other_samples_is_refused_by_line(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "ledger.csv").write_text(f'{HEADER}\n,03,c,season,,drop,spring,,,,"two\nlines"\n{line}\n')
    with pytest.raises(DataError, match=rf"ledger\.csv, line 4: .*{says}"):
        Ledger.read(tmp_path / "ledger.csv").check(MIXED)


def test_edits_are_selected_by_step_head_class_and_score(tmp_path: Path) -> None:
    one = season("a", "set", "autumn", "spring", score=0.9)
    two = tag("a", "city", "set", "0", "1", step="05-pseudo_label", score=0.5)
    three = season("c", "weight", "1", "0.5")
    ledger = of(tmp_path, one, two, three)
    assert ledger.edits(Selection(step="03-clean")) == [one, three]
    assert ledger.edits(Selection(head="tags")) == [two]
    assert ledger.edits(Selection(class_name="autumn")) == ledger.edits(Selection(class_name="spring")) == [one]
    assert ledger.edits(Selection(class_name="city")) == [two]
    assert ledger.edits(Selection(class_name="0.5")) == []
    assert ledger.edits(Selection(image="a")) == [one, two]
    assert ledger.edits(Selection(step="03")) == []
    assert ledger.edits(Selection(min_score=0.5)) == [one, two]
    assert ledger.edits(Selection(min_score=0.6, step="03-clean")) == [one]
    ledger = ledger.undo([one])
    assert ledger.edits() == [one, two, three]


# Undo


def test_an_undone_edit_does_not_count_also_when_it_is_proposed_again(tmp_path: Path) -> None:
    one, two = season("a", "set", "autumn", "spring"), tag("a", "beach", "drop", "1")
    ledger = of(tmp_path, one, two).undo([one], reason="it was right")
    assert (ledger.effective(), ledger.undone()) == ([two], [one])
    assert ledger.entries[-1].edit.reason == "it was right"
    assert same(ledger.apply(MIXED), apply(MIXED, [two]))
    again = replace(one, score=0.1, reason="other words")
    assert ledger.allowed([again]) == []
    assert ledger.append([again]).effective() == [two]
    assert ledger.allowed([season("a", "drop", "autumn")]) == [season("a", "drop", "autumn")]
    ledger.check(MIXED)


def test_a_second_undo_and_one_of_nothing_are_refused(tmp_path: Path) -> None:
    one = season("a", "drop", "autumn")
    ledger = of(tmp_path, one).undo([one])
    before = ledger.path.read_bytes()
    with pytest.raises(DataError, match="drop of 'a', season by '03-clean' was undone before"):
        ledger.undo([one])
    with pytest.raises(DataError, match="is not in the ledger"):
        ledger.undo([season("c", "drop", "spring")])
    assert ledger.path.read_bytes() == before


def test_what_a_later_edit_builds_on_is_undone_with_it_only(tmp_path: Path) -> None:
    one, two = season("a", "unset", "autumn"), season("a", "set", None, "spring", step="05-pseudo_label")
    ledger = of(tmp_path, one, two, season("a", "weight", "1", "0.5"))
    with pytest.raises(DataError, match="set 'spring' of 'a', season by '05-pseudo_label' builds on the edit unset"):
        ledger.undo([one])
    assert ledger.undo([one, two]).effective() == ledger.effective()[2:]


def test_what_builds_on_an_edit_is_named(tmp_path: Path) -> None:
    one, two = season("a", "unset", "autumn"), season("a", "set", None, "spring", step="05-pseudo_label")
    weight, mine = season("a", "weight", "1", "0.5"), season("a", "drop", "autumn", step=PERSON)
    added, edited = season("new", "add", None, "n.png", tag="spring"), season("new", "drop", "spring")
    ledger = of(tmp_path, one, weight, two, mine, added, edited)
    assert ledger.with_dependents([one]) == [one, two]
    assert ledger.with_dependents([two, weight]) == [weight, two]
    assert ledger.with_dependents([added]) == [added, edited]
    assert ledger.with_dependents([mine]) == [mine]
    assert ledger.undo([two]).with_dependents([one]) == [one]


def test_the_edits_of_a_step_that_holds_others(tmp_path: Path) -> None:
    inside = season("a", "drop", "autumn", step="03-repeat/round-1/01-clean_labels")
    ledger = of(tmp_path, inside, season("c", "drop", "spring", step="03-repeated")).undo([inside])
    assert ledger.edits(Selection(step="03-repeat")) == [inside]
    assert [counts for _, counts in ledger.listed()] == [False, True]


def test_a_synthetic_image_that_was_edited_goes_with_its_edits(tmp_path: Path) -> None:
    added, edited = season("new", "add", None, "n.png", tag="spring"), season("new", "drop", "spring")
    ledger = of(tmp_path, added, edited)
    with pytest.raises(DataError, match="builds on"):
        ledger.undo([added])
    ledger = ledger.undo([added, edited])
    assert same(ledger.apply(MIXED), MIXED)
    ledger.without({"03-clean"}).check(MIXED)


def test_a_person_may_change_their_mind(tmp_path: Path) -> None:
    step, person = season("a", "set", "autumn", "spring"), season("a", "drop", "autumn", step=PERSON)
    ledger = of(tmp_path, step, person).undo([person])
    assert row(ledger.apply(MIXED), "a")["label:season"] == "spring"
    ledger = ledger.append([person])
    assert ledger.effective() == [step, person]
    assert row(ledger.apply(MIXED), "a")["label:season"] is None
    assert ledger.undo([person]).effective() == [step]


def test_a_step_may_not_label_what_was_dropped_or_corrected(tmp_path: Path) -> None:
    ledger = of(
        tmp_path,
        season("a", "drop", "autumn"),
        season("a", "weight", "1", "0.5"),
        tag("a", "city", "drop", "0"),
        season("d", "set", None, "spring", step=PERSON),
    )
    pseudo = [
        season("a", "set", None, "spring", step="05"),
        tag("a", "city", "set", None, "1", step="05"),
        season("d", "drop", "spring", step="05"),
        tag("d", "night", "set", None, "1", step="05"),
    ]
    assert ledger.allowed(pseudo) == pseudo[3:]
    assert ledger.undo(ledger.edits(Selection(step="03-clean"))).allowed(pseudo) == [*pseudo[:2], pseudo[3]]


def test_a_step_that_runs_again_leaves_the_rest_as_it_was(tmp_path: Path) -> None:
    one, two = season("a", "drop", "autumn"), season("c", "drop", "spring", step="05")
    mine = season("d", "set", None, "spring", step=PERSON)
    ledger = of(tmp_path, one, two, mine).undo([two]).without({"05"})
    assert ledger.edits() == [one, mine]
    assert ledger.append([two]).effective() == [one, mine]


# Properties


def state(head: Head, code: int) -> str | None:
    """How a ledger writes a code of one cell."""
    if head.multiclass:
        return None if code < 0 else head.classes[code]
    return (None, "0", "1")[code + 1]


@st.composite
def edited(draw: st.DrawFn) -> tuple[Samples, list[Edit]]:
    """Samples of odd names, and edits that fit: cell by cell, mixed in any order that keeps each cell's own."""
    names = st.lists(NAMES, min_size=1, max_size=3, unique=True)
    heads = (Head("one", tuple(draw(names))), Head("many", tuple(draw(names)), "multilabel"))
    ids = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    tags = st.lists(st.sampled_from(heads[1].classes), unique=True)
    labels = st.none() | st.sampled_from(heads[0].classes)
    rows = [{"id": name, "one": draw(labels), "many": draw(st.none() | tags), "split": "train"} for name in ids]
    made = make_samples(rows, *heads)
    chains: list[list[Edit]] = []
    for head, codes in zip(heads, made.codes(), strict=True):
        multiclass = head.multiclass
        for index, name in enumerate(ids):
            for column in [0] if multiclass else range(head.size):
                code = int(codes[index] if multiclass else codes[index, column])
                later = draw(st.lists(st.integers(-1, head.size - 1 if multiclass else 1), max_size=3))
                states = [state(head, code), *(state(head, new) for new in later)]
                unknown = st.sampled_from(["unset", "drop"])
                chains.append([
                    Edit(
                        id=name, head=head.name, tag=None if multiclass else head.classes[column],
                        action="set" if new is not None else draw(unknown), old=old, new=new, step=f"{number:02}",
                    )
                    for number, (old, new) in enumerate(pairwise(states))
                ])  # fmt: skip
    turns = draw(st.permutations([number for number, chain in enumerate(chains) for _ in chain]))
    return made, [chains[number].pop(0) for number in turns]


CASES = settings(max_examples=20, deadline=None)


@CASES
@given(case=edited(), seed=st.integers(0, 99))
def test_the_order_of_edits_of_different_cells_does_not_matter(case: tuple[Samples, list[Edit]], seed: int) -> None:
    made, edits = case
    shuffled = [edits[index] for index in np.random.default_rng(seed).permutation(len(edits))]
    order: dict[object, list[Edit]] = {}
    for edit in edits:
        order.setdefault(edit.cell, []).append(edit)
    shuffled = [order[edit.cell].pop(0) for edit in shuffled]
    assert same(apply(made, shuffled), apply(made, edits))


@CASES
@given(case=edited(), cut=st.integers(0, 20))
def test_edits_applied_in_two_parts_give_the_same(case: tuple[Samples, list[Edit]], cut: int) -> None:
    made, edits = case
    before = made.table.clone()
    assert same(apply(apply(made, edits[:cut]), edits[cut:]), apply(made, edits))
    assert made.table.equals(before)


@CASES
@given(case=edited())
def test_the_last_edit_of_a_cell_says_what_is_known(case: tuple[Samples, list[Edit]]) -> None:
    made, edits = case
    after, position = apply(made, edits), {name: index for index, name in enumerate(made.ids)}
    last = {edit.cell: edit for edit in edits}
    for head in made.space:
        of_head = [edit for edit in last.values() if edit.head == head.name]
        rows = np.array([position[edit.id] for edit in of_head], dtype=np.int64)
        assert current_values(after, head, rows, [edit.tag for edit in of_head]) == [edit.new for edit in of_head]


@CASES
@given(case=edited())
def test_undoing_everything_gives_the_samples_as_read(
    case: tuple[Samples, list[Edit]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, edits = case
    ledger = of(tmp_path_factory.mktemp("ledger"), *edits)
    ledger.check(made)
    assert same(ledger.apply(made), apply(made, edits))
    undone = ledger.undo(edits)
    assert undone.effective() == []
    assert undone.undone() == edits
    assert same(undone.apply(made), made)
    assert undone.allowed(edits) == []


@CASES
@given(case=edited(), data=st.data())
def test_an_undo_that_is_taken_leaves_what_fits(
    case: tuple[Samples, list[Edit]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, edits = case
    ledger = of(tmp_path_factory.mktemp("ledger"), *edits)
    chosen = data.draw(st.lists(st.sampled_from(edits), unique_by=lambda edit: edit.identity)) if edits else []
    gone = {edit.identity for edit in chosen}
    try:
        ledger = ledger.undo(chosen)
    except DataError:
        later = {edit.cell for edit in edits if edit.identity not in gone}
        assert any(edit.cell in later for edit in chosen)
        return
    assert ledger.effective() == [edit for edit in edits if edit.identity not in gone]
    ledger.check(made)


@CASES
@given(case=edited(), data=st.data())
def test_an_undo_with_what_builds_on_it_is_always_taken(
    case: tuple[Samples, list[Edit]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, edits = case
    ledger = of(tmp_path_factory.mktemp("ledger"), *edits)
    chosen = data.draw(st.lists(st.sampled_from(edits), unique_by=lambda edit: edit.identity)) if edits else []
    both = ledger.with_dependents(chosen)
    assert {edit.identity for edit in chosen} <= {edit.identity for edit in both}
    ledger.undo(both).check(made)


def test_many_edits_at_once() -> None:
    count = 20_000
    rows = [
        {"id": str(n), "season": "spring", "tags": ["city"] if n % 2 else None, "split": "train"} for n in range(count)
    ]
    many = make_samples(rows, SEASON, TAGS)
    edits = [season(str(n), "set", "spring", "autumn") for n in range(0, count, 2)]
    edits += [tag(str(n), "night", "set", "0" if n % 2 else None, "1") for n in reversed(range(count))]
    made = apply(many, edits)
    assert made.counts(SEASON).tolist() == [count // 2, count // 2]
    assert made.counts(TAGS).tolist() == [0, count // 2, count]
    assert all(standing_edits(edits))


# Corrections


def corrected(path: Path, text: str, which: Samples = MIXED) -> list[Edit]:
    (path / "mine.csv").write_bytes(text.encode())
    return corrections(path / "mine.csv", which)


def test_corrections_of_every_kind(tmp_path: Path) -> None:
    text = "image,head,class,label\na,season,,spring\nb,tags,city,1\nb,tags,night,\ne,season,,\na,season,,spring\n"
    edits = corrected(tmp_path, text)
    assert edits == [
        season("a", "set", "autumn", "spring", step=PERSON),
        season("e", "unset", "spring", step=PERSON),
        tag("b", "city", "set", "0", "1", step=PERSON),
        tag("b", "night", "unset", "0", step=PERSON),
    ]
    made = apply(MIXED, edits)
    assert [codes.tolist() for codes in made.codes()] == [
        [0, -1, 0, -1, -1],
        [[1, 0, 1], [0, 1, -1], [-1, -1, -1], [0, 1, -1], [0, 1, 0]],
    ]


def test_the_only_head_need_not_be_named(tmp_path: Path) -> None:
    one = make_samples([{"id": "a", "season": "spring"}], SEASON)
    assert corrected(tmp_path, "image,label\na,spring\n", one) == [season("a", "set", "spring", "spring", step=PERSON)]
    assert corrected(tmp_path, "image,head,class,label\na,,,\n", one) == [season("a", "unset", "spring", step=PERSON)]
    assert corrected(tmp_path, "image,label\n", one) == []


SUSPECTS = (
    "image,head,class,given,suggested,label,quality,confidence,done\n"
    "a,season,,autumn,spring,spring,0.0550,0.8375,flagged\n"
    "b,tags,city,0,1,1,0.1000,0.9000,flagged\n"
    "b,tags,night,0,1,,0.2000,0.8000,flagged\n"
    "e,season,,spring,autumn,?,0.2000,0.8000,flagged\n"
)


@pytest.mark.parametrize(
    "text",
    [
        SUSPECTS,
        "\ufeff" + SUSPECTS.replace(",", ";").replace("0.", "0,"),
        SUSPECTS.replace(",", "\t").replace("\n", "\r\n"),
        "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in SUSPECTS.splitlines()),
        SUSPECTS.replace("1,1,", "1.0,1.0,").replace("spring,spring", "spring, spring ") + ",,,,,,,,\n",
        SUSPECTS.replace("0,1,1,", "FALSE,TRUE,TRUE,"),
    ],
)
def test_a_list_of_suspects_is_taken_as_a_spreadsheet_saves_it_and_blanks_leave_labels(
    tmp_path: Path, text: str
) -> None:
    assert corrected(tmp_path, text) == [
        season("a", "set", "autumn", "spring", step=PERSON),
        season("e", "unset", "spring", step=PERSON),
        tag("b", "city", "set", "0", "1", step=PERSON),
    ]


def test_numbers_that_a_spreadsheet_rewrote_are_taken_for_the_only_such_name(tmp_path: Path) -> None:
    head = Head("n", ("01", "2", "2.5"))
    one = make_samples([{"id": "007", "n": "01"}, {"id": "8", "n": "2"}, {"id": "8.0", "n": "2"}], head)
    edits = corrected(tmp_path, "image,label\n7,2.0\n8,1\n", one)
    assert [(edit.id, edit.new) for edit in edits] == [("007", "2"), ("8", "01")]
    with pytest.raises(DataError, match=r"no image '8\.00'"):  # two images it may be
        corrected(tmp_path, "image,label\n8.00,2\n", one)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SUSPECTS.replace("spring,spring", "spring,").replace(",1,1,", ",1,,").replace("?", ""), "no cell of its col"),
        (SUSPECTS.replace("spring,spring", "spring,sprin"), "line 2: 'sprin' is no class.* Did you mean 'spring'"),
        ("image,head,class\n", "no column 'label'"),
        ("image,label\na,spring\n", "no column 'head'.*'season', 'tags'"),
        ("image,head,class,label\na,mood,,spring\n", "line 2: there is no head 'mood'"),
        ("image,head,class,label\na,,,spring\n", "line 2: there is no head ''"),
        ("image,head,class,label\na,season,,spring\nz,season,,spring\n", "line 3: there is no image 'z'"),
        ("image,head,class,label\na,season,,winter\n", "line 2: 'winter' is no class of 'season'"),
        ("image,head,class,label\na,season,spring,1\n", "line 2: .*'class' stays blank"),
        ("image,head,class,label\na,tags,,1\n", "line 2: '' is no class of 'tags'"),
        ("image,head,class,label\na,tags,forest,1\n", "line 2: 'forest' is no class of 'tags'"),
        ("image,head,class,label\na,tags,city,yes\n", "line 2: the label 'yes' is none of 1"),
        ("image,head,class,label\na,tags,city,1\nb,tags,city,0\na,tags,city,\n", "line 4: says '' .*line 2 says '1'"),
    ],
)
def test_corrections_that_cannot_be_are_refused_by_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"mine\.csv.*{says}"):
        corrected(tmp_path, text)


def test_a_second_correction_builds_on_the_first(tmp_path: Path) -> None:
    first = corrected(tmp_path, "image,head,label\na,season,spring\n")
    ledger = of(tmp_path, *first)
    second = corrected(tmp_path, "image,head,label\na,season,\n", ledger.apply(MIXED))
    assert row(ledger.append(second).apply(MIXED), "a")["label:season"] is None


def table(path: Path, *lines: str) -> Path:
    (path / "mine.csv").write_text("image,head,class,label\n" + "".join(f"{line}\n" for line in lines))
    return path / "mine.csv"


def label(ledger: Ledger, name: str) -> object:
    return row(ledger.apply(MIXED), name)["label:season"]


def test_corrections_are_taken_once_and_the_newest_counts(tmp_path: Path) -> None:
    ledger = correct(of(tmp_path), table(tmp_path, "a,season,,spring", "b,season,,spring"), MIXED)
    assert correct(ledger, tmp_path / "mine.csv", MIXED) == ledger
    assert count_corrections(ledger, MIXED) == {
        "train": {"labels": 1, "changed": 1},
        "val": {"labels": 1, "changed": 1},
        "test": {"labels": 0, "changed": 0},
    }
    for wanted in ("autumn", "spring"):
        ledger = correct(ledger, table(tmp_path, f"a,season,,{wanted}"), MIXED)
        assert label(ledger, "a") == wanted
    ledger = correct(ledger, table(tmp_path, "a,season,,autumn"), MIXED)
    assert count_corrections(ledger, MIXED)["train"] == {"labels": 1, "changed": 0}


def test_a_ledger_follows_the_table_of_its_plan(tmp_path: Path) -> None:
    ledger = sync_corrections(of(tmp_path), table(tmp_path, "a,season,,spring", "e,season,,autumn"), MIXED)
    assert (label(ledger, "a"), label(ledger, "e")) == ("spring", "autumn")
    assert sync_corrections(ledger, tmp_path / "mine.csv", MIXED) == ledger
    ledger = sync_corrections(ledger, table(tmp_path, "a,season,,"), MIXED)
    assert (label(ledger, "a"), label(ledger, "e")) == (None, "spring")
    assert {entry.edit.reason for entry in ledger.entries if entry.edit.action == "undo"} == {NO_LONGER}
    ledger = sync_corrections(ledger, table(tmp_path, "a,season,,spring", "e,season,,autumn"), MIXED)
    assert (label(ledger, "a"), label(ledger, "e")) == ("spring", "autumn")
    assert label(sync_corrections(ledger, None, MIXED), "a") == "autumn"


def test_later_edits_of_a_person_take_precedence_over_the_table(tmp_path: Path) -> None:
    mine = table(tmp_path, "a,season,,spring", "b,season,,spring")
    ledger = sync_corrections(of(tmp_path), mine, MIXED)
    ledger = ledger.undo(ledger.edits(Selection(image="b")))
    other = tmp_path / "other.csv"
    other.write_text("image,head,label\na,season,\n")
    ledger = sync_corrections(correct(ledger, other, MIXED), mine, MIXED)
    assert (label(ledger, "a"), label(ledger, "b")) == (None, None)


def test_a_table_that_cannot_be_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    ledger = sync_corrections(of(tmp_path), table(tmp_path, "a,season,,spring"), MIXED)
    before = ledger.path.read_bytes()
    mine = table(tmp_path, "c,season,,autumn", "zebra,season,,spring")
    for taken in (correct, sync_corrections):
        with pytest.raises(DataError, match=r"mine\.csv, line 3: there is no image 'zebra'"):
            taken(ledger, mine, MIXED)
    assert ledger.path.read_bytes() == before


def test_corrections_fit_changed_data(tmp_path: Path) -> None:
    """Of a gone image they are left out, of a label that the data gives otherwise they count, undone ones too."""
    ledger = correct(of(tmp_path), table(tmp_path, "a,season,,spring", "b,season,,spring", "e,season,,autumn"), MIXED)
    assert fit_to_data(ledger, MIXED) == (list(ledger.entries), [])
    ledger = correct(ledger, table(tmp_path, "a,season,,"), MIXED)
    rows = [row for row, name in enumerate(MIXED.ids) if name != "b"]
    relabelled = MIXED.table.with_columns(pl.when(id="a").then(None).otherwise("label:season").alias("label:season"))
    now = replace(MIXED, table=relabelled).take(rows)
    entries, lines = fit_to_data(ledger, now)
    assert [line.partition(":")[2] for line in lines] == [" 1 ('b')", " 1 ('a')"]
    fitted = replace(ledger, entries=tuple(entries))
    assert [(edit.id, edit.old, edit.new) for edit in fitted.effective()] == [
        ("a", None, "spring"), ("e", "spring", "autumn"), ("a", "spring", None)
    ]  # fmt: skip
    assert row(fitted.apply(now), "e")["label:season"] == "autumn"
