"""The ledger: the append-only list of all edits of a run's labels, in a CSV file."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from assay.errors import DataError
from assay.files import append, whole, writing
from assay.labels.edits import (
    ACTIONS,
    AUDIT_STEP,
    PERSON,
    Action,
    Edit,
    Origin,
    apply,
    persons_cells,
    standing_edits,
)
from assay.labels.readers.text_files import csv_records
from assay.labels.samples import Samples
from assay.messages import printable

COLUMNS = ("date", "step", "id", "head", "tag", "action", "old", "new", "origin", "score", "reason")
"""The columns of a ledger, in this order. A blank `tag`, `old`, `new`, `origin` or `score` is none."""

ORIGINS: dict[str, Origin] = {"pseudo": "pseudo", "corrected": "corrected"}
DATE = re.compile(rb"[0-9][-0-9T:Z]*(,|$)")  # or the beginning of one
BY_NAME: dict[str, Action] = {action: action for action in ACTIONS}


@dataclass(frozen=True)
class Entry:
    """An edit, where in the file its line begins, and when it was written (UTC, ISO 8601)."""

    line: int
    date: str
    edit: Edit


@dataclass(frozen=True)
class Selection:
    """Criteria that select edits; None selects all.

    `step` includes the steps within it. An edit concerns a class by its old or new label, or by its tag.
    """

    step: str | None = None
    head: str | None = None
    class_name: str | None = None
    min_score: float | None = None
    image: str | None = None

    def contains(self, edit: Edit) -> bool:
        """Return whether the selection contains the edit; an undo counts as the edit that it reverts."""
        return (
            (self.step is None or covers(self.step, edit.step))
            and (self.head is None or edit.head == self.head)
            and (self.class_name is None or _concerns(edit, self.class_name))
            and (self.min_score is None or (edit.score is not None and edit.score >= self.min_score))
            and (self.image is None or edit.id == self.image)
        )


ALL_EDITS = Selection()


@dataclass(frozen=True)
class Ledger:
    """The lines of a ledger file. `append`, `undo` and `without` write the file and return the new ledger.

    A process that is killed, or a machine that loses its power, may leave half a line at the end of the file: `torn`.
    It is left out in reading, and cut off by the next line that is written.
    """

    path: Path
    entries: tuple[Entry, ...] = ()
    torn: bytes = field(default=b"", compare=False)
    size: int | None = field(default=None, compare=False)  # bytes of the file, without what is torn
    lines: int = field(default=0, compare=False)  # in so many bytes

    @staticmethod
    def read(path: Path) -> Ledger:
        """Read a ledger; a missing file is an empty one.

        Raises DataError that names the first invalid line.
        """
        if not path.exists():
            return Ledger(path)
        # Not `read_rows`, which takes blank names for none: here every name must come back as it was.
        content = _content(path)
        torn = _torn(content)
        content = content[: len(content) - len(torn)]
        records = csv_records(path, content=content)
        line, header = next(records, (1, []))
        if header != list(COLUMNS):
            missing = [column for column in COLUMNS if column not in header]
            what = f"the column {missing[0]!r} is missing" if missing else "its columns are others, or in another order"
            raise DataError(
                f"{printable(path)}, line {line}: {what}. The first line of a ledger is {','.join(COLUMNS)}"
            )
        entries = tuple(_entry(f"{printable(path)}, line {line}", line, cells) for line, cells in records)
        return Ledger(path, entries, torn, len(content), _line_count(content))

    def append(self, edits: Sequence[Edit]) -> Ledger:
        """Write these edits below the others, dated now: all of them or none. They are on disk at the end.

        What is there is not written again: a line costs the same below 100,000 others. Raises SpaceError or RunError,
        with the file as it was, where the disk is full or read-only.
        """
        if not edits:
            return self
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines = _csv(_cells(now, edit) for edit in edits)
        if not self.path.exists() or not self.path.stat().st_size:
            with whole(self.path) as beside:
                beside.write_bytes(_csv([COLUMNS]) + lines)
            return Ledger.read(self.path)
        before = self._current()
        if before.torn:
            with writing(self.path):
                os.truncate(self.path, before.size or 0)
        if not _ends_a_line(self.path):  # an editor may have left out the last line break
            append(self.path, b"\n" + lines, sync=True)
            return Ledger.read(self.path)
        append(self.path, lines, sync=True)
        return before._with(lines)

    def _current(self) -> Ledger:
        """Return the ledger as it is on disk: this one, unless another process has written to the file."""
        same = self.size is not None and self.path.stat().st_size == self.size + len(self.torn)
        return self if same else Ledger.read(self.path)

    def _with(self, lines: bytes) -> Ledger:
        """Return the ledger with lines that were written below it, read as they will be read again."""
        records = csv_records(self.path, content=lines, first=self.lines)
        entries = [_entry(f"{printable(self.path)}, line {line}", line, cells) for line, cells in records]
        size, count = (self.size or 0) + len(lines), self.lines + _line_count(lines)
        return replace(self, entries=(*self.entries, *entries), torn=b"", size=size, lines=count)

    def undo(self, edits: Sequence[Edit], *, reason: str = "") -> Ledger:
        """Append lines that revert these edits.

        Raises DataError for an edit that is missing or was undone before, and for one that a later edit of the same
        cell depends on, unless that is undone with it.
        """
        effective, undone = self.effective(), {edit.identity for edit in self.undone()}
        stand = {edit.identity for edit in effective}
        for edit in edits:
            if edit.identity not in stand:
                why = "was undone before" if edit.identity in undone else "is not in the ledger"
                raise DataError(
                    f"{printable(self.path)}: {_named(edit)} {why}, so there is nothing to undo. Leave it out."
                )
        wanted = {edit.identity: edit for edit in edits}
        self._require_last(effective, wanted.keys())
        lines = [
            Edit(
                id=edit.id, head=edit.head, tag=edit.tag, step=edit.step,
                action="undo", old=edit.action, new=edit.new, reason=reason,
            )
            for edit in wanted.values()
        ]  # fmt: skip
        return self.append(lines)

    def with_dependents(self, edits: Sequence[Edit]) -> list[Edit]:
        """Return these edits and the later ones of the same cells, which depend on them, in order."""
        wanted = {edit.identity for edit in edits}
        changed: set[object] = set()
        edits_and_dependents = []
        for edit in self.effective():
            on_changed = _cell(edit) in changed or (edit.action != "add" and edit.id in changed)
            if edit.identity in wanted or on_changed:
                edits_and_dependents.append(edit)
                changed.add(edit.id if edit.action == "add" else _cell(edit))
        return edits_and_dependents

    def without(self, steps: Collection[str]) -> Ledger:
        """Write the ledger anew without the edits of these steps, which are to run again; undos stay."""
        return self.rewritten(
            [entry for entry in self.entries if entry.edit.action == "undo" or entry.edit.step not in steps]
        )

    def rewritten(self, entries: Sequence[Entry]) -> Ledger:
        """Write the ledger anew with these lines alone, and their dates."""
        with whole(self.path) as beside:
            beside.write_bytes(_csv([COLUMNS, *(_cells(entry.date, entry.edit) for entry in entries)]))
        return Ledger.read(self.path)

    def of(self, steps: Collection[str]) -> Ledger:
        """Return a ledger of the edits of a person, of an audit, of these steps and of steps within them; the file
        stays.
        """
        wanted = (PERSON, AUDIT_STEP, *steps)
        kept = [entry for entry in self.entries if any(covers(step, entry.edit.step) for step in wanted)]
        return Ledger(self.path, tuple(kept))

    def of_person(self) -> Ledger:
        """Return a ledger of the edits of a person alone: they apply to the samples as read."""
        return Ledger(self.path, tuple(entry for entry in self.entries if entry.edit.step == PERSON))

    def edits(self, selection: Selection = ALL_EDITS) -> list[Edit]:
        """Return the selected edits, undone ones too, but no undos."""
        return [entry.edit for entry, _ in self.listed(selection)]

    def listed(self, selection: Selection = ALL_EDITS) -> list[tuple[Entry, bool]]:
        """Return the selected lines, but no undos, and for each whether it counts: is not undone."""
        counting = standing_edits([entry.edit for entry in self.entries])
        return [
            (entry, counts)
            for entry, counts in zip(self.entries, counting, strict=True)
            if entry.edit.action != "undo" and selection.contains(entry.edit)
        ]

    def effective(self) -> list[Edit]:
        """Return the edits that were not undone."""
        return [entry.edit for entry, counts in self.listed() if counts]

    def undone(self) -> list[Edit]:
        """Return the edits that were undone."""
        return [entry.edit for entry, counts in self.listed() if not counts]

    def allowed(self, proposed: Sequence[Edit]) -> list[Edit]:
        """Return the edits that a step may make of those that it proposes.

        Left out are edits that were undone, cells that a person corrected, and new labels of dropped cells.
        """
        undone = {entry.edit.identity for entry in self.entries if entry.edit.action == "undo"}
        effective = self.effective()
        persons = persons_cells(effective)
        last = {edit.cell: edit.action for edit in effective if edit.action != "weight"}
        return [
            edit
            for edit in proposed
            if edit.identity not in undone
            and edit.cell not in persons
            and not (edit.action == "set" and last.get(edit.cell) == "drop")
        ]

    def apply(self, samples: Samples) -> Samples:
        """Return the samples with all edits applied. Raises DataError that names the line that does not fit."""
        return apply(
            samples,
            [entry.edit for entry in self.entries],
            where=lambda index: f"{printable(self.path)}, line {self.entries[index].line}",
        )

    def check(self, samples: Samples) -> None:
        """Raise DataError for the first line that does not fit the samples as read, an undo of nothing included."""
        self.apply(samples)
        heads = {head.name for head in samples.space}
        added = {entry.edit.id for entry in self.entries if "add" in (entry.edit.action, entry.edit.old)}
        ids = added.union(samples.ids)
        for entry in self.entries:
            if entry.edit.id not in ids or entry.edit.head not in heads:
                raise DataError(
                    f"{printable(self.path)}, line {entry.line}: there is no image {entry.edit.id!r} with a head "
                    f"{entry.edit.head!r} in these samples. Mend the line, or remove it."
                )

    def _require_last(self, effective: Sequence[Edit], wanted: Collection[tuple[str | None, ...]]) -> None:
        """Raise DataError for an edit that a later one depends on, so that the rest always fits the samples."""
        later: dict[object, Edit] = {}
        for edit in reversed(effective):
            cell = _cell(edit)
            above = edit.id if edit.action == "add" else cell
            if edit.identity not in wanted:
                later.setdefault(cell, edit)
                if edit.action != "add":
                    later.setdefault(edit.id, edit)
            elif above in later:
                raise DataError(
                    f"{printable(self.path)}: {_named(later[above])} builds on {_named(edit)}. Undo it as well."
                )


def _cell(edit: Edit) -> tuple[object, ...]:
    """Return the key of a chain of edits. A person's apply before a step's and do not depend on them."""
    return edit.cell, edit.action == "weight", edit.step == PERSON


def covers(step: str, name: str) -> bool:
    """Return whether `name` is `step` or lies within it, as `03-repeat/round-1/01-pseudo_label` in `03-repeat`."""
    return name == step or name.startswith(f"{step}/")


def _concerns(edit: Edit, name: str) -> bool:
    return edit.tag == name or (edit.tag is None and edit.action != "weight" and name in (edit.old, edit.new))


def _named(edit: Edit) -> str:
    what = [edit.action, *([repr(edit.new)] if edit.new is not None else [])]
    cell = [repr(edit.id), edit.head, *([edit.tag] if edit.tag is not None else [])]
    return f"the edit {' '.join(what)} of {', '.join(cell)} by {edit.step!r}"


def _entry(at: str, line: int, cells: Sequence[str]) -> Entry:
    if len(cells) != len(COLUMNS):
        raise DataError(
            f"{at}: {len(cells)} cells where a ledger has {len(COLUMNS)}. Put one that holds a comma in quotes."
        )
    date, step, name, head, tag, action, old, new, origin, score, reason = cells
    if not (step and name and head):
        raise DataError(f"{at}: `step`, `id` or `head` is blank. Fill it in, or remove the line.")
    if action not in BY_NAME or (action == "undo" and old not in BY_NAME):
        wrong, column = (old, "old") if action in BY_NAME else (action, "action")
        raise DataError(f"{at}: {wrong!r} in `{column}` is no action. An action is one of {', '.join(ACTIONS)}.")
    if origin and origin not in ORIGINS:
        raise DataError(f"{at}: the origin {origin!r} is none of {', '.join(ORIGINS)}, or blank. Mend it.")
    try:
        number = float(score) if score else None
    except ValueError as error:
        raise DataError(f"{at}: the score {score!r} is no number. Mend it, or leave it blank.") from error
    edit = Edit(
        id=name, head=head, tag=tag or None, action=BY_NAME[action], old=old or None, new=new or None,
        reason=reason, score=number, step=step, origin=ORIGINS.get(origin),
    )  # fmt: skip
    return Entry(line, date, edit)


def csv_bytes(edits: Sequence[Edit]) -> bytes:
    """Return undated edits as the content of a ledger file."""
    return _csv([COLUMNS, *(_cells("", edit) for edit in edits)])


def _cells(date: str, edit: Edit) -> list[str]:
    optional = [edit.tag, edit.action, edit.old, edit.new, edit.origin]
    score = "" if edit.score is None else repr(float(edit.score))  # all digits
    return [date, edit.step, edit.id, edit.head, *(cell or "" for cell in optional), score, edit.reason]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}).") from error


def _torn(content: bytes) -> bytes:
    """Return the half of a line that a killed process has left at the end of a ledger, else nothing.

    A last line that is whole but for its line break is an editor's, and so is half a one that begins with no date. A
    quote amid others is a fault, for the reader.
    """
    if b"\n" not in content or (content.endswith(b"\n") and content.count(b'"') % 2 == 0):
        return b""
    marks = np.frombuffer(content, np.uint8)
    outside_quotes = np.cumsum(marks == ord('"')) % 2 == 0
    ends = np.flatnonzero((marks == ord("\n")) & outside_quotes)
    tail = content[ends[-1] + 1 if len(ends) else 0 :]
    # Half a line may end within a letter.
    records = list(csv.reader(io.StringIO(tail.decode("utf-8", "replace"), newline="")))
    whole_line = tail.count(b'"') % 2 == 0 and len(records) == 1 and len(records[0]) == len(COLUMNS)
    return tail if DATE.match(tail) and not whole_line and len(records) < 2 else b""


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _line_count(content: bytes) -> int:
    return content.count(b"\n") + content.count(b"\r") - content.count(b"\r\n")


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    careful = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # csv leaves a lone \r unquoted, and then takes it for the end of the line
        (careful if "\r" in "".join(row) else plain).writerow(row)
    return text.getvalue().encode()
