"""Corrections: labels that a person settled, read from a table as edits."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.edits import PERSON, Action, Cell, Edit, apply, cell_values, standing_edits
from assay.labels.ledger import COLUMNS, Entry, Ledger
from assay.labels.readers.table_files import Rows, read_rows, texts
from assay.labels.samples import Samples
from assay.labels.shards import name_of
from assay.labels.space import Head
from assay.messages import nearest, printable, quoted

OF_PLAN = "said by data.corrections"
"""The reason of edits that come from the table of a plan."""

NO_LONGER = "no longer said by data.corrections"
"""The reason of undos of edits that are gone from the table."""

SUSPECTS = ("given", "suggested")
"""Columns by which a table is a list of suspects, as `clean_labels` writes it."""

UNKNOWN = "?"
TAG_WORDS = {"1": "1", "1.0": "1", "true": "1", "0": "0", "0.0": "0", "false": "0", UNKNOWN: None}
"""What a label of a tag may be written as, by a spreadsheet too -> the label."""

NUMBER = re.compile(r"\d+(\.\d+)?")


def corrections(path: Path | pl.DataFrame, samples: Samples) -> list[Edit]:
    """Return the edits of a table, or of its file, with the columns `image`, `head`, `class`, `label`.

    `head` may be left out where there is only one. Of a multi-class head, `class` is blank and `label` is a class; of
    a multi-label one, `class` names the tag and `label` is 1 or 0. `?` is unknown, where no class is called so. A blank
    label is unknown too, but in a list of suspects (with the columns `given` and `suggested`) it leaves the label. A
    label that is there already is an edit too: it keeps steps from changing it. `samples` are those as read, with the
    corrections made before and without the edits of steps.

    Raises DataError that names the line for an unknown image, head or class and for lines that disagree, and where a
    list of suspects has no label filled in. A file in the columns of a ledger, as a review writes it, holds the edits
    of a person that count at its end.
    """
    if isinstance(path, Path) and is_ledger(path):
        return _of_ledger(path, samples)
    rows = _correction_rows(path, samples)
    images = dict.fromkeys(samples.ids)
    cells: dict[Cell, tuple[str | None, int]] = {}
    for row, line in enumerate(rows.frame.iter_rows(named=True)):
        head = _head(rows, row, line.get("head"), samples)
        image = _known(line["image"], images)
        if image is None:
            example = f", such as {samples.ids[0]!r}" if len(samples) else ""
            raise DataError(f"{rows.at(row)}: there is no image {line['image']!r}. Name it as in the data{example}.")
        tag = _known(line.get("class"), head.index) or line.get("class")
        label = _label_of(head, line["label"])
        _require_label(rows, row, head, tag, label)
        first, first_row = cells.setdefault((image, head.name, tag), (label, row))
        if first != label:
            raise DataError(
                f"{rows.at(row)}: says {label or ''!r} of {image!r}, but "
                f"{rows.unit} {rows.lines[first_row]} says {first or ''!r}. Remove one of the two."
            )
    return _by_person({cell: label for cell, (label, _) in cells.items()}, samples)


def review_file(source: Path) -> Path:
    """Return where the decisions of a review of data lie: beside it, as NAME.review.csv.

    Those of shards at an address, or named by a pattern, lie in the working folder.
    """
    path = source.absolute()
    if not path.exists():
        return Path.cwd() / f"{name_of(source)}.review.csv"
    return path.parent / f"{path.name if path.is_dir() else path.stem}.review.csv"


def is_ledger(path: Path) -> bool:
    """Return whether a file has the columns of a ledger."""
    try:
        with open(path, "rb") as file:
            return file.readline().strip() == ",".join(COLUMNS).encode()
    except OSError:
        return False


def settled_edits(path: Path) -> dict[Cell, tuple[Edit, int]]:
    """Return the last edit that counts of each cell that a person settled in a ledger, and its line.

    Raises DataError where there is none.
    """
    ledger = Ledger.read(path)
    last = {
        entry.edit.cell: (entry.edit, entry.line)
        for entry, counts in ledger.listed()
        if counts and entry.edit.step == PERSON and entry.edit.action in ("set", "unset", "drop")
    }
    if not last and ledger.entries:
        raise DataError(
            f"{printable(path)}: is a ledger in which a person settled nothing. Leave it out of data.corrections."
        )
    return last


def _of_ledger(path: Path, samples: Samples) -> list[Edit]:
    """Return the edits of a person that a ledger ends in, on the values of now. Raises DataError by line."""
    images, heads = set(samples.ids), {head.name: head for head in samples.space}
    settled = settled_edits(path)
    for (name, head, _), (edit, line) in settled.items():
        if name not in images or not _names_classes(edit, heads):
            what = f"image {name!r}" if name not in images else f"label {edit.new or edit.tag!r} of {head!r}"
            raise DataError(f"{printable(path)}, line {line}: there is no {what} in this data. Remove its lines.")
    edits = _by_person({cell: edit.new for cell, (edit, _) in settled.items()}, samples)
    return [replace(edit, action="drop") if settled[edit.cell][0].action == "drop" else edit for edit in edits]


def _correction_rows(source: Path | pl.DataFrame, samples: Samples) -> Rows:
    """Return the lines of a table that settle a label. Raises DataError."""
    if isinstance(source, pl.DataFrame):
        rows = Rows(Path("the table"), source, range(1, len(source) + 1), "row")
    else:
        rows = read_rows(source)
    named = [rows.column("image"), rows.column("label")]
    rows = texts(rows, [*named, *(column for column in ("head", "class") if column in rows.names)])
    if "head" not in rows.names and len(samples.space) > 1:
        heads = ", ".join(repr(head.name) for head in samples.space)
        raise DataError(f"{printable(rows.source)}: has no column 'head', and the heads are {heads}. Add it.")
    if not rows.names.issuperset(SUSPECTS):
        return rows
    settled = rows.frame["label"].is_not_null()
    if not settled.any():
        raise DataError(
            f"{printable(rows.source)}: no cell of its column `label` is filled in, so nothing is settled. Write the "
            "right label of an image there: that of `suggested`, or any other. A blank one is left as it is."
        )
    lines = [line for line, kept in zip(rows.lines, settled, strict=True) if kept]
    return Rows(rows.source, rows.frame.filter(settled), lines, rows.unit)


def _known(name: str | None, names: Collection[str]) -> str | None:
    """Return the one of the names that is meant; None where none is.

    A spreadsheet writes 007 as 7, and 1 as 1.0: a number is taken for the only name that is the same number.
    """
    if name is None or name in names:
        return name
    for other in (name.strip(), name.removeprefix("'")):  # as a safe cell has it
        if other in names:
            return other
    value = _number(name.strip())
    same = [other for other in names if value is not None and _number(other) == value]
    return same[0] if len(same) == 1 else None


def _number(text: str) -> float | None:
    return float(text) if NUMBER.fullmatch(text) else None


def _label_of(head: Head, text: str | None) -> str | None:
    """Return a label as the data has it; None where it is unknown, the text where there is no such label."""
    if head.multiclass:
        return _known(text, head.index) or (None if text == UNKNOWN else text)
    return TAG_WORDS.get((text or UNKNOWN).strip().lower(), text)


def corrected(samples: Samples, path: Path | None) -> Samples:
    """Return the samples with the corrections of a table, if any; no ledger is kept."""
    return samples if path is None else apply(samples, corrections(path, samples))


def correct(ledger: Ledger, path: Path | pl.DataFrame, samples: Samples) -> Ledger:
    """Append the corrections of a table that are not the last edits of their cells. `samples` are those as read.

    Raises DataError, with the ledger as it was, for an invalid line.
    """
    edits = _read_corrections(path, ledger, samples)
    last = _final_edits(ledger)
    return ledger.append([edit for edit in edits if last.get(edit.cell) != edit.identity])


def sync_corrections(ledger: Ledger, path: Path | None, samples: Samples) -> Ledger:
    """Bring a run's ledger up to date with the table of its plan: undo what is gone from it, append what is new.

    Edits undone in the ledger stay undone, and later corrections in the ledger take precedence over the table.
    Raises DataError, with the ledger as it was, for an invalid line.
    """
    edits = _read_corrections(path, ledger, samples)
    of_plan = [edit for edit in ledger.effective() if edit.step == PERSON and edit.reason == OF_PLAN]
    gone = {edit.identity for edit in of_plan} - {edit.identity for edit in edits}
    if gone:
        ledger = ledger.undo([edit for edit in of_plan if edit.identity in gone], reason=NO_LONGER)
        edits = _read_corrections(path, ledger, samples)  # with the values of now as `old`
    newest = {entry.edit.identity: entry.edit for entry in ledger.entries}
    undone = {name for name, edit in newest.items() if edit.action == "undo" and edit.reason != NO_LONGER}
    known, last = undone | {edit.identity for edit in of_plan}.difference(gone), _final_edits(ledger)
    fresh = [edit for edit in edits if edit.identity not in known and last.get(edit.cell) != edit.identity]
    return ledger.append([replace(edit, reason=OF_PLAN) for edit in fresh])


def count_corrections(ledger: Ledger, samples: Samples) -> dict[str, dict[str, int]]:
    """Return, by part, how many labels a person settled and how many of them changed; `samples` are those as read."""
    edits = [edit for edit in ledger.effective() if edit.step == PERSON and edit.action != "weight"]
    of_edits = samples.with_ids({edit.id for edit in edits})
    part = dict(zip(of_edits.ids, of_edits.table["split"], strict=True))
    before = {edit.cell: edit.old for edit in reversed(edits)}
    after = {edit.cell: edit.new for edit in edits}
    counts = {name: {"labels": 0, "changed": 0} for name in ("train", "val", "test")}
    for cell, new in after.items():
        side = part.get(cell[0], "train")  # an image that a step added is in training
        if side is None:
            continue  # it is in no part: nothing is trained on it or scored
        counts[side]["labels"] += 1
        counts[side]["changed"] += int(new != before[cell])
    return counts


def fit_to_data(ledger: Ledger, samples: Samples) -> tuple[list[Entry], list[str]]:
    """Return the entries of a ledger that hold for changed data, and a line on each kind of change; none: all hold.

    A person's edits of images, heads or classes that the data no longer has are left out. Where the data gives another
    label than it did, the person's still counts. `samples` are those as read.
    """
    added = {entry.edit.id for entry in ledger.entries if entry.edit.action == "add"}
    known, heads = added.union(samples.ids), {head.name: head for head in samples.space}
    of_person = [entry.edit for entry in ledger.entries if entry.edit.step == PERSON]
    lost = {edit.cell for edit in of_person if not (edit.id in known and _names_classes(edit, heads))}
    changed = {cell: value for cell, value in _other_values(ledger, samples, lost).items() if cell[0] not in added}
    entries, left = [], dict(changed)  # of the edits of a cell the first that counts meets the value of now
    for entry, counts in zip(ledger.entries, standing_edits([entry.edit for entry in ledger.entries]), strict=True):
        edit = entry.edit
        if edit.step != PERSON or edit.cell not in lost:
            first = edit.step == PERSON and counts and edit.action != "weight" and edit.cell in left
            entries.append(replace(entry, edit=replace(edit, old=left.pop(edit.cell))) if first else entry)
    kinds = {
        "corrections of images, heads or classes that the data no longer has, left out": lost,
        "corrections of labels that the data gives otherwise now, which count all the same": changed,
    }
    return entries, [
        f"{what}: {len(cells):,} ({quoted(sorted({cell[0] for cell in cells}), 3)})"
        for what, cells in kinds.items()
        if cells
    ]


def _names_classes(edit: Edit, heads: Mapping[str, Head]) -> bool:
    """Return whether the data has the head and the class of an edit; of a multi-class head, that it sets."""
    if edit.head not in heads or heads[edit.head].multiclass != (edit.tag is None):
        return False
    name = edit.tag if edit.tag is not None else edit.new if edit.action != "weight" else None
    return name is None or name in heads[edit.head].index


def _other_values(ledger: Ledger, samples: Samples, lost: Collection[Cell]) -> dict[Cell, str | None]:
    """Return the present values of the cells that a person's first effective edit has another `old` of."""
    first: dict[Cell, Edit] = {}
    for edit in ledger.effective():
        if edit.step == PERSON and edit.action != "weight" and edit.cell not in lost:
            first.setdefault(edit.cell, edit)
    return {cell: value for cell, value in cell_values(samples, first).items() if value != first[cell].old}


def _read_corrections(path: Path | pl.DataFrame | None, ledger: Ledger, samples: Samples) -> list[Edit]:
    return [] if path is None else corrections(path, ledger.of_person().apply(samples))


def _final_edits(ledger: Ledger) -> dict[Cell, tuple[str | None, ...]]:
    """Return the identity of the last edit by a person of each cell."""
    return {edit.cell: edit.identity for edit in ledger.effective() if edit.step == PERSON and edit.action != "weight"}


def _by_person(labels: Mapping[Cell, str | None], samples: Samples) -> list[Edit]:
    """Return the edits that give cells these labels; None is unknown."""
    edits = []
    for cell, old in cell_values(samples, labels).items():
        (name, head, tag), new = cell, labels[cell]
        action: Action = "unset" if new is None else "set"
        edits.append(Edit(id=name, head=head, tag=tag, action=action, old=old, new=new, step=PERSON))
    return edits


def _head(rows: Rows, row: int, name: str | None, samples: Samples) -> Head:
    if name is None and len(samples.space) == 1:
        return samples.space.heads[0]
    for head in samples.space:
        if head.name == name:
            return head
    heads = ", ".join(repr(head.name) for head in samples.space)
    raise DataError(f"{rows.at(row)}: there is no head {name or ''!r}. Name one of {heads}.")


def _require_label(rows: Rows, row: int, head: Head, tag: str | None, label: str | None) -> None:
    if head.multiclass and tag is not None:
        raise DataError(
            f"{rows.at(row)}: an image has one class of {head.name!r}, so 'class' stays blank and 'label' names it."
        )
    if not head.multiclass and label not in (None, "0", "1"):
        raise DataError(f"{rows.at(row)}: the label {label!r} is none of 1 (has it), 0 (has it not), ? (unknown).")
    name = label if head.multiclass else tag or ""
    if name is not None and name not in head.index:
        hint = nearest(name, head.classes, 0.6) or f"Name one of {', '.join(map(repr, head.classes[:20]))}."
        raise DataError(f"{rows.at(row)}: {name!r} is no class of {head.name!r}. {hint}")
