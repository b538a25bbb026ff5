from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit
from scipy import sparse

from assay.errors import DataError
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace, untagged
from assay.labels.split import SplitSettings, folds, one_fold_reason, split, split_table, stratify
from factories import make_samples


def samples(labels: list[str | None], **columns: list[Any]) -> Samples:
    """One multi-class head; every image has contents of its own unless `hash` says otherwise."""
    count = len(labels)
    names = [f"{i:06}.jpg" for i in range(count)]
    facts = {"id": names, "path": names, "split": [None] * count, "group": [None] * count, "hash": names}
    table = pl.DataFrame({**facts, **columns, "label:label": labels}, schema_overrides=TEXT)
    table = table.with_columns(pl.lit(1, pl.Float32).alias("weight:label"), pl.lit("given").alias("origin:label"))
    classes = tuple(sorted({label for label in labels if label is not None}))
    return Samples(table, LabelSpace((Head("label", classes),)), Path("/p"))


TEXT = dict.fromkeys(["split", "group", "hash", "label:label"], pl.String)


def sides(made: Samples) -> list[str]:
    return made.table["split"].to_list()


def counts(made: Samples) -> dict[str, tuple[int, int, int]]:
    rows = split_table(made).select("class", "train", "val", "test").rows()
    return {name: (train, val, test) for name, train, val, test in rows}


def test_every_class_is_parted_alike() -> None:
    made = split(samples(["a"] * 50 + ["b"] * 100 + ["c"] * 10), val=0.2, test=0.1, seed=0)
    assert counts(made) == {"a": (35, 10, 5), "b": (70, 20, 10), "c": (7, 2, 1)}
    assert made.notes == ()


def test_the_seed_alone_decides() -> None:
    data = samples(list("ab" * 50))
    first = sides(split(data, val=0.2, seed=1))
    assert sides(split(data, val=0.2, seed=1)) == first
    assert sides(split(data, val=0.2, seed=2)) != first
    backwards = split(data.take(np.arange(100)[::-1]), val=0.2, seed=1)
    assert sides(backwards)[::-1] == first
    assert backwards.ids == data.ids[::-1]


@pytest.mark.parametrize("column", ["group", "hash"])
def test_groups_and_copies_stay_together(column: str) -> None:
    names = [f"g{i // 3}" for i in range(300)]
    made = split(samples(list("abc") * 100, **{column: names}), val=0.2, seed=0)
    together = made.table.group_by(column).agg(pl.col("split").n_unique())
    assert together["split"].max() == 1
    assert counts(made) == dict.fromkeys("abc", (80, 20, 0))


def test_images_linked_by_a_chain_stay_together() -> None:
    made = split(
        samples(
            list("ab") * 20,
            group=["g", "g", "h", None, *[None] * 36],
            hash=["0", "1", "1", "0", *(str(i) for i in range(4, 40))],
        ),
        val=0.5,
        seed=0,
    )
    assert len(set(sides(made)[:4])) == 1


def test_uneven_groups_come_near_the_share() -> None:
    generator = np.random.default_rng(0)
    group = [str(i) for i in np.repeat(np.arange(100), generator.integers(1, 60, 100))]
    labels = generator.choice(list("abcd"), len(group), p=[0.5, 0.3, 0.15, 0.05]).tolist()
    made = split(samples(labels, group=group), val=0.2, seed=0)
    for train, val, _ in counts(made).values():
        assert val / (train + val) == pytest.approx(0.2, abs=0.02)


def test_every_class_is_in_train_and_then_in_val() -> None:
    labels = ["one"] + ["two"] * 2 + ["three"] * 3 + ["many"] * 200
    made = split(samples(labels), val=0.05, test=0.05, seed=0)
    names = counts(made)
    assert names["one"] == (1, 0, 0)
    assert names["two"] == (1, 1, 0)
    assert names["three"] == (1, 1, 1)
    assert any("'one': a single image" in note for note in made.notes)


@settings(max_examples=80, deadline=None)
@given(
    labels=st.lists(st.sampled_from([*"abcd", None]), min_size=1, max_size=40).filter(lambda row: set(row) != {None}),
    groups=st.lists(st.sampled_from([*"uvwxyz", None, None]), min_size=40, max_size=40),
    val=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]),
    test=st.sampled_from([0.0, 0.05]),
)
def test_what_always_holds(labels: list[str | None], groups: list[str | None], val: float, test: float) -> None:
    data = samples(labels, group=groups[: len(labels)])
    made = split(data, val=val, test=test, seed=0)
    assert set(sides(made)) <= {"train", "val", "test"}
    assert made.ids == data.ids
    parted = made.table.drop_nulls("group").group_by("group").agg(pl.col("split").n_unique())
    assert parted["split"].max() in (1, None)
    units = made.table.with_columns(pl.coalesce("group", "id").alias("unit")).drop_nulls("label:label")
    held = units.group_by("label:label").agg(pl.col("unit").n_unique()).rows()
    for name, parts in held:
        train, in_val, in_test = counts(made)[name]
        assert train > 0
        assert (in_val > 0) <= (val > 0)
        assert (in_test > 0) <= (test > 0)
        if val > 0 and parts >= 2 and len(held) == 1:
            assert in_val > 0


def test_no_validation_wanted_or_possible() -> None:
    wanted = split(samples(["a", "b"]), val=0.2, seed=0)
    assert sides(wanted) == ["train", "train"]
    assert wanted.notes[0].startswith("No image could be held back for validation")
    unwanted = split(samples(list("abab")), val=0, seed=0)
    assert sides(unwanted) == ["train"] * 4
    assert unwanted.notes == ()
    one_group = split(samples(list("abab"), group=["g"] * 4), val=0.5, seed=0)
    assert sides(one_group) == ["train"] * 4


def test_unlabelled_images_train_unless_a_copy_is_held_back() -> None:
    labels = [*("ab" * 10), None, *([None] * 20)]
    copies = [f"{i}" for i in range(21)] + [f"{i}" for i in range(20)]
    made = split(samples(labels, hash=copies), val=0.2, seed=0)
    assert sides(made)[20] == "train"
    assert sides(made)[21:] == sides(made)[:20]


def test_given_splits_are_kept() -> None:
    given = ["train", "val", "test", "train", "val", "test", None, None]
    made = split(samples([*"aaabbb", None, "a"], split=given), val=0.5, test=0.5, seed=0)
    assert sides(made) == [*given[:6], "train", "train"]


def test_given_splits_are_kept_in_any_order_of_rows() -> None:
    rows = [{"id": str(n), "kind": "ab"[n % 2], "split": "val" if n < 4 else "train"} for n in (9, 1, 8, 0, 5, 3, 4, 2)]
    made = split(make_samples(rows, Head("kind", ("a", "b"))), val=0.5)
    assert sides(made) == [row["split"] for row in rows]


def test_validation_comes_off_a_given_train() -> None:
    given = ["train"] * 40 + ["test"] * 10 + [None] * 5
    data = samples(list("ab") * 25 + [None] * 5, split=given)
    made = split(data, val=0.2, test=0.3, seed=0)
    assert counts(made) == {"a": (16, 4, 5), "b": (16, 4, 5)}
    assert sides(made)[40:50] == ["test"] * 10
    assert sides(made)[50:] == ["train"] * 5
    assert sides(split(data, val=0, seed=0)) == [side or "train" for side in given]


def test_a_given_train_is_untouched_where_others_have_no_split() -> None:
    made = split(samples(list("ab") * 20, split=["train"] * 20 + [None] * 20), val=0.2, seed=0)
    assert sides(made)[:20] == ["train"] * 20
    assert counts(made) == {"a": (18, 2, 0), "b": (18, 2, 0)}


def test_copies_across_given_splits_are_noted_and_the_given_wins() -> None:
    data = samples(list("abab"), split=["train", "train", "val", None], hash=["x", "y", "x", "x"])
    made = split(data, val=0.2, seed=0)
    assert sides(made) == ["train", "train", "val", "val"]
    assert any(note.startswith("2 images that are copies") for note in made.notes)


def test_a_class_that_cannot_be_learnt_or_checked_is_noted() -> None:
    made = split(samples(list("aabccc"), split=["train", "val", "val", *["train"] * 3]), val=0.2, seed=0)
    assert made.space["label"].classes == ("a", "b", "c")
    assert made.notes == (
        "label: 'b': no training image, so the model cannot learn it.",
        "label: 'c': no validation image, so no metric says how well it is learnt.",
    )


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="no labelled image is left to train on"):
        split(samples(["a", "b", None], split=["val", "test", None]), val=0.2, seed=0)


def several(heads: dict[str, list[Any]], *, unknown: list[list[str] | None] | None = None) -> Samples:
    """Lists of tags make a multi-label head, names a multi-class one; None is unknown, as are the tags of `unknown`."""
    count = len(next(iter(heads.values())))
    columns, space = [], []
    for name, labels in heads.items():
        tags = any(isinstance(label, list) for label in labels)
        kind = pl.List(pl.String) if tags else pl.String
        columns.append(pl.Series(f"label:{name}", labels, dtype=kind))
        if tags:
            columns.append(pl.Series(f"unknown:{name}", unknown or [None] * count, dtype=kind))
        columns += [pl.lit(1, pl.Float32).alias(f"weight:{name}"), pl.lit("given").alias(f"origin:{name}")]
        names = {one for label in labels if label is not None for one in (label if tags else [label])}
        space.append(Head(name, tuple(sorted(names)), "multilabel" if tags else "multiclass"))
    facts = samples(["x"] * count).table.select("id", "path", "split", "group", "hash")
    return Samples(facts.with_columns(columns), LabelSpace(tuple(space)), Path("/p"))


def mixed(count: int) -> Samples:
    generator = np.random.default_rng(0)
    colours, tags = ["red", "green", "blue"], ["t0", "t1", "t2", "t3"]
    chosen = generator.choice(3, count, p=[0.7, 0.27, 0.03])
    present = generator.random((count, 4)) < [0.5, 0.2, 0.05, 0.01]
    listed = [
        [tag for tag, on in zip(tags, row, strict=True) if on] if i % 4 else None for i, row in enumerate(present)
    ]
    return several({"label": [colours[code] if i % 3 else None for i, code in enumerate(chosen)], "tags": listed})


def test_all_heads_count_and_unknown_labels_do_not() -> None:
    made = split(mixed(2000), val=0.2, test=0.1, seed=0)
    for name, train, val, test in split_table(made).drop_nulls("class").select("class", "train", "val", "test").rows():
        total = train + val + test
        assert abs(val - 0.2 * total) <= 2, name
        assert abs(test - 0.1 * total) <= 2, name
    unknown = made.table.filter(~pl.Series(made.labelled()))
    assert set(unknown["split"]) == {"train"}


def test_the_table_of_a_split_counts_every_class() -> None:
    made = split(mixed(200), val=0.2, seed=0)
    table = split_table(made)
    counted = ["train", "val", "test"]
    assert table.columns == ["head", "class", *counted, *(f"{side} share" for side in counted)]
    assert table["head"].to_list() == ["label"] * 3 + ["tags"] * 5
    total = table.drop_nulls("class").select(pl.sum_horizontal(counted)).to_series().to_list()
    assert total == [int(n) for head in made.space for n in made.counts(head)]
    shares = table.filter(pl.col("head") == "label")
    assert shares["train share"].sum() == pytest.approx(1)
    assert shares["test share"].to_list() == [None] * 3


def test_shares_are_of_what_is_known() -> None:
    tags = [["p"], ["p", "q"], [], None, [], ["q"], [], None]
    unknown = [["q"], None, ["q"], None, None, None, None, None]
    data = several({"season": list("aab") + [None] * 5, "tags": tags}, unknown=unknown)
    data = replace(data, table=data.table.with_columns(split=pl.Series(["train"] * 5 + ["val"] * 3)))
    rows = {row["class"]: row for row in split_table(data).rows(named=True)}
    assert (rows["a"]["train"], rows["a"]["train share"], rows["a"]["val share"]) == (2, 2 / 3, None)
    assert (rows["p"]["train"], rows["p"]["train share"], rows["p"]["val share"]) == (2, 2 / 4, 0)
    assert (rows["q"]["train"], rows["q"]["train share"], rows["q"]["val share"]) == (1, 1 / 2, 1 / 2)
    # The third image may have q; whether it has no tag is not known.
    assert (rows[None]["train"], rows[None]["train share"], rows[None]["val share"]) == (1, 1 / 3, 1 / 2)


def test_no_tag_at_all_differs_from_not_known() -> None:
    assert untagged(np.array([[0, 0], [0, -1], [1, -1], [-1, -1], [1, 1], [0, 0]])) == (2, 4)
    assert untagged(np.full((3, 2), -1)) == (0, 0)


def planted(count: int, seed: int) -> Samples:
    """Two attributes and 12 tags that go with the scene, some on few images; a fifth to a half is unknown."""
    generator = np.random.default_rng(seed)
    frequent = 0.6 ** np.arange(8)
    scene = generator.choice(8, count, p=frequent / frequent.sum())
    season = generator.choice(4, count, p=[0.4, 0.3, 0.25, 0.05])
    leaning = np.where(generator.random((8, 12)) < 0.5, 1.7, 0.3)[scene]
    tags = generator.random((count, 12)) < np.geomspace(0.4, 0.004, 12) * leaning
    known = generator.random((count, 3)) < [0.8, 0.5, 0.7]
    return several(
        {
            "scene": [str(s) if k else None for s, k in zip(scene, known[:, 0], strict=True)],
            "season": [str(s) if k else None for s, k in zip(season, known[:, 1], strict=True)],
            "tags": [
                [f"t{tag}" for tag in np.flatnonzero(row)] if k else None
                for row, k in zip(tags, known[:, 2], strict=True)
            ],
        }
    )


@pytest.mark.parametrize("seed", range(4))
def test_no_further_from_the_share_than_another_implementation(seed: int) -> None:
    made = split(planted(2000, seed), val=0.2, seed=seed)
    labelled = made.labelled()
    pieces = [
        codes[:, None] == np.arange(head.size) if head.kind == "multiclass" else codes == 1
        for head, codes in zip(made.space, made.codes(), strict=True)
    ]
    cells = np.concatenate(pieces, axis=1)[labelled]
    peer = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=seed)
    ((_, drawn),) = peer.split(cells, cells)
    cells = cells[:, cells.sum(axis=0) > 2]  # of two, one is held back on purpose
    misses = [
        np.abs(cells[chosen].sum(axis=0) / cells.sum(axis=0) - 0.2)
        for chosen in ((made.table["split"] == "val").to_numpy()[labelled], drawn)
    ]
    ours, theirs = misses
    assert ours.mean() <= theirs.mean() + 5e-4
    assert ours.max() <= theirs.max() + 5e-3


def test_units_of_many_labels_come_near_the_shares() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((3000, 30)) < generator.uniform(0.01, 0.3, 30)
    cells = np.column_stack([labels, np.ones(3000)]).astype(np.int64)
    drawn = stratify(sparse.csr_array(cells), shares=np.array([0.7, 0.2, 0.1]), seed=0)
    for side, share in enumerate((0.7, 0.2, 0.1)):
        assert np.abs(cells[drawn == side].sum(axis=0) - share * cells.sum(axis=0)).max() < 6


def test_two_hundred_thousand_images_take_seconds() -> None:
    labels = np.random.default_rng(0).integers(0, 100, 200_000).astype(str).tolist()
    data = samples(labels)
    begin = time.perf_counter()
    made = split(data, val=0.2, seed=0)
    assert time.perf_counter() - begin < 15  # about 2 s on an idle core
    assert made.table["split"].value_counts(sort=True).rows() == [("train", 160_000), ("val", 40_000)]


@pytest.mark.parametrize(
    ("hashes", "reason"),
    [
        (["a"], "there is one labelled training image"),
        (["a", "a"], "all 2 labelled training images are copies of each other, or of one group"),
        (["a", "b"], "none of the classes has two of the 2 labelled training images that may be parted"),
    ],
)
def test_the_reason_why_images_lie_in_one_fold_is_the_true_one(hashes: list[str], reason: str) -> None:
    head = Head("label", ("x", "y"))
    rows = [{"id": str(row), "hash": content, "label": "xy"[row]} for row, content in enumerate(hashes)]
    assert one_fold_reason(make_samples(rows, head)) == reason


def test_a_fifth_validates_unless_these_are_very_many() -> None:
    usual = SplitSettings()
    assert [usual.share(count) * count for count in (100, 250_000, 1_000_000)] == [20, 50_000, 50_000]
    assert SplitSettings(val=0.3).share(1_000_000) == 0.3


def test_sides_and_folds_go_with_the_images_in_whatever_order_the_rows_are() -> None:
    ordered = samples(["a", "a", "b", "b", "c"] * 12)
    rows = np.random.default_rng(0).permutation(len(ordered))
    shuffled = ordered.take(rows)
    assert sides(split(shuffled, val=0.3)) == [sides(split(ordered, val=0.3))[row] for row in rows]
    assert folds(shuffled, 4, seed=0).tolist() == folds(ordered, 4, seed=0)[rows].tolist()
