"""data.audit: what training takes of an audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from assay.errors import AssayError, DataError
from assay.experiments.findings import Audit, Finding, drop_edits
from assay.labels.audit_folder import AuditSettings, audit_drops, sync_audit, with_audit
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.split import join_groups, split
from factories import make_samples

LABEL = Head("label", ("a", "b"))


def images(count: int = 12) -> Samples:
    rows = [{"id": f"{row}.jpg", "label": "ab"[row % 2], "hash": f"h{row}"} for row in range(count)]
    return make_samples(rows, LABEL)


def write_audit(folder: Path, samples: Samples) -> Path:
    """Write an audit in which 0.jpg and 2.jpg are copies, and 4.jpg is dark."""
    copies = Finding(kind="near_duplicates", score=1.0, images=("0.jpg", "2.jpg"), text="copies", group="one")
    edits = drop_edits(samples, {4: "nearly black"}, kind="dark")
    dark = Finding(kind="dark", score=1.0, images=("4.jpg",), text="dark", edits=edits[4])
    Audit("images", samples, {"near_duplicates": [copies], "dark": [dark]}).write(folder)
    return folder


def test_copies_that_an_audit_finds_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    samples = images()
    folder = write_audit(tmp_path, samples)
    grouped = with_audit(samples, AuditSettings(folder=folder), folder)
    for seed in range(8):
        sides = dict(zip(grouped.ids, split(grouped, val=0.4, seed=seed).table["split"], strict=True))
        assert sides["0.jpg"] == sides["2.jpg"]


def test_groups_that_share_an_image_are_one() -> None:
    given = {"1": "x", "2": "x", "3": "y"}
    samples = make_samples([{"id": name, "label": "a", "group": group} for name, group in given.items()], LABEL)
    joined = join_groups(samples, ["2", "3"], ["copies", "copies"])
    assert len(set(joined.table["group"].to_list())) == 1


def test_groups_of_one_name_in_data_and_audit_are_different() -> None:
    samples = make_samples([{"id": "1", "group": "x"}, {"id": "2", "group": "x"}, {"id": "3"}, {"id": "4"}], LABEL)
    groups = join_groups(samples, ["3"], ["x"]).table["group"].to_list()
    assert groups[0] == groups[1] != groups[2] is not None
    assert groups[3] is None


def test_proposed_drops_become_edits_that_stay_undone(tmp_path: Path) -> None:
    samples = split(images(), val=0.0)
    folder = write_audit(tmp_path, samples)
    edits, lines = audit_drops(samples, ["dark"], folder)
    assert not lines
    ledger = sync_audit(Ledger.read(tmp_path / "ledger.csv"), edits)
    assert ledger.of(()).apply(samples).codes()[0][4] == -1
    ledger = ledger.undo(ledger.effective())
    again = sync_audit(ledger, edits)
    assert again.of(()).apply(samples).codes()[0][4] == 0
    assert not sync_audit(again, []).effective()


def test_images_of_validation_and_changed_ones_are_not_dropped(tmp_path: Path) -> None:
    samples = split(images(), val=0.0)
    folder = write_audit(tmp_path, samples)
    held = pl.when(id=pl.lit("4.jpg")).then(pl.lit("val")).otherwise("split")
    other = pl.when(id=pl.lit("4.jpg")).then(pl.lit(b"new")).otherwise("hash")
    for column, value, word in (("split", held, "validation"), ("hash", other, "changed")):
        now = Samples(samples.table.with_columns(value.alias(column)), samples.space, samples.root)
        edits, (line,) = audit_drops(now, ["dark"], folder)
        assert not edits
        assert word in line


def spoil(name: str, text: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("audit.json", None), "is no audit"),
        (spoil("groups.csv", None), "no groups.csv"),
        (spoil("groups.csv", "image,group\nnobody.jpg,1\n"), "is no image of the audit"),
        (spoil("groups.csv", "image,group\n0.jpg,\n"), "line 2: `image` or `group` is blank"),
        (spoil("groups.csv", "picture,group\n0.jpg,1\n"), "'image'"),
        (spoil("samples.parquet", "no table"), "no table of samples"),
    ],
)
def test_an_audit_changed_by_hand_is_refused_with_the_line(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = write_audit(tmp_path, images())
    change(folder)
    with pytest.raises(AssayError, match=message):
        with_audit(images(), AuditSettings(folder=folder), folder)


def test_an_audit_of_other_data_is_refused(tmp_path: Path) -> None:
    folder = write_audit(tmp_path, images())
    others = make_samples([{"id": "x.jpg", "label": "a", "hash": "x"}], LABEL)
    with pytest.raises(DataError, match="audit of other data"):
        with_audit(others, AuditSettings(folder=folder), folder)


def test_images_that_are_new_or_changed_since_are_noted(tmp_path: Path) -> None:
    folder = write_audit(tmp_path, images(11))
    now = images(12)
    now = Samples(now.table.with_columns(hash=pl.lit(b"h0")), now.space, now.root)
    notes = with_audit(now, AuditSettings(folder=folder), folder).notes
    assert notes[0].startswith("1 images are not in the audit ('11.jpg')")
    assert notes[1].startswith("10 images have changed since")


def test_an_edited_audit_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_audit(tmp_path, images())
    (folder / "audit.json").write_text('{"name": "x"}')
    with pytest.raises(AssayError, match="Repeat `assay audit`"):
        Audit.read(folder)
