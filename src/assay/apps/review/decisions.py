"""Decisions of a person: edits in a ledger, stored before they count, undone and done again request by request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from assay.arrays import Bools
from assay.errors import AssayError, DataError, RunError
from assay.labels.edits import PERSON, Action, Cell, Edit
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Codes
from assay.messages import quoted

Kind = Literal["set", "unset", "drop", "keep"]
REASON = "in the review"
UNDONE = "undone in the review"


@dataclass(frozen=True)
class Decision:
    """What a person says of one cell: its label is `new`, unknown (`unset`), right (`keep`), or to stay out (`drop`).

    Without a tag it is of all tags of a multi-label head, and a `drop` of all heads: the image is no valid one.
    """

    row: int
    head: str
    tag: str | None
    action: Kind
    new: str | None


@dataclass(frozen=True)
class Stored:
    """Edits of one request, and the rows of the images that they concern."""

    edits: tuple[Edit, ...]
    rows: tuple[int, ...]


NOTHING = Stored((), ())


class Decisions:
    """The labels as a person has settled them so far.

    `samples` are those as read. `codes` and `settled` have an array a head, in the shape of its codes: the label now,
    and whether a person has settled it. `writing` is entered around every change of the file; it raises where
    another process writes to the run.
    """

    def __init__(self, samples: Samples, path: Path, *, writing: Callable[[], AbstractContextManager[object]]) -> None:
        self.samples, self.path, self._writing = samples, path, writing
        self.rows = {name: row for row, name in enumerate(samples.ids)}
        self.given = samples.codes()
        self.lock = threading.RLock()
        self.fault: str | None = None
        """Why the ledger cannot be read, where it was edited by hand; nothing is written to it until it is mended."""
        self._undo: list[Stored] = []
        self._redo: list[Stored] = []
        self._state: tuple[int, int] | None = None
        self._take(Ledger.read(path))

    @property
    def can_undo(self) -> bool:
        return bool(self._undo) and self.fault is None

    @property
    def can_redo(self) -> bool:
        return bool(self._redo) and self.fault is None

    def refresh(self) -> bool:
        """Read the ledger again where its file was changed by another; return whether it was."""
        with self.lock:
            if file_state(self.path) == self._state:
                return False
            self._undo, self._redo = [], []
            try:
                self._take(Ledger.read(self.path))
            except AssayError as error:
                self._state, self.fault = file_state(self.path), str(error)
            return True

    def decide(self, decisions: Sequence[Decision]) -> Stored:
        """Store decisions, all of them or none, as one unit of undo; those that change nothing are passed over.

        Raises DataError for one that cannot be, RunError where the run is being written to, SpaceError where the disk
        is full.
        """
        with self.lock, self._open():
            stored = self._set([edit for decision in decisions for edit in self._edits(decision)])
            if stored.edits:
                self._undo.append(stored)
                self._redo = []
            return stored

    def undo(self) -> Stored:
        """Undo the last request that was not undone yet. Raises as `decide` does."""
        with self.lock, self._open():
            if not self._undo:
                return NOTHING
            unit = self._undo[-1]
            self._revert(unit.edits)
            self._redo.append(self._undo.pop())
            return unit

    def redo(self) -> Stored:
        """Do again what was undone last. Raises as `decide` does."""
        with self.lock, self._open():
            if not self._redo:
                return NOTHING
            stored = self._set(self._redo[-1].edits)
            self._redo.pop()
            self._undo.append(stored)
            return stored

    def history(self, row: int) -> list[tuple[str, Edit]]:
        """Return the lines of the ledger on one image: date and edit."""
        name = self.samples.table["id"][row]
        return [(entry.date, entry.edit) for entry in self.ledger.entries if entry.edit.id == name]

    def dropped(self, row: int) -> bool:
        """Return whether an image is dropped: no valid one."""
        head, name = self.samples.space.heads[0], self.samples.table["id"][row]
        chains = (self.chains.get((name, head.name, tag)) for tag in head.cell_names)
        return any(chain and chain[-1].action == "drop" for chain in chains)

    def decided(self) -> Bools:
        """Return which images (N,) a person has settled a label of."""
        by_head = [head.any_cell(cells) for head, cells in zip(self.samples.space, self.settled, strict=True)]
        return np.asarray(np.any(by_head, axis=0))

    def wrong(self) -> Bools:
        """Return of which images (N,) a person has changed a label that was given."""
        by_head = [
            head.any_cell(settled & (given >= 0) & (now != given))
            for head, settled, given, now in zip(self.samples.space, self.settled, self.given, self.codes, strict=True)
        ]
        return np.asarray(np.any(by_head, axis=0))

    # Reading the ledger.

    def _take(self, ledger: Ledger) -> None:
        """Take over what a ledger says. Raises DataError for a line that does not fit the samples."""
        ledger.check(self.samples)
        chains: dict[Cell, list[Edit]] = {}
        for edit in ledger.effective():
            if edit.step == PERSON and edit.action in ("set", "unset", "drop"):
                chains.setdefault(edit.cell, []).append(edit)
        self.codes: list[Codes] = ledger.of_person().apply(self.samples).codes()
        self.settled: list[Bools] = [np.zeros(codes.shape, dtype=np.bool_) for codes in self.codes]
        for cell in chains:
            number, index = self._index(cell)
            self.settled[number][index] = True
        self.ledger, self.chains, self.fault, self._state = ledger, chains, None, file_state(self.path)

    def _open(self) -> AbstractContextManager[object]:
        self.refresh()
        if self.fault is not None:
            raise RunError(f"{self.fault} Until it is mended nothing is written to it.")
        return self._writing()

    # From decisions to edits.

    def _edits(self, decision: Decision) -> list[Edit]:
        """Return the edits of a decision, whose `old` is filled in when they are stored. Raises DataError."""
        row, space = decision.row, self.samples.space
        if not 0 <= row < len(self.samples):
            raise DataError(f"there is no image {row}. Their numbers go from 0 to {len(self.samples) - 1}.")
        heads = [head for head in space if head.name == decision.head]
        if not heads:
            raise DataError(f"there is no head {decision.head!r}. There are {quoted(head.name for head in space)}.")
        name, action = self.samples.table["id"][row], decision.action
        labels: list[tuple[Cell, str | None]]
        if decision.tag is not None:
            cells: list[Cell] = [(name, heads[0].name, decision.tag)]
        else:
            chosen = space.heads if action == "drop" else heads
            cells = [(name, head.name, tag) for head in chosen for tag in head.cell_names]
        if action == "keep":
            labels = [(cell, self._value(cell, self.chains.get(cell, ()))) for cell in cells]
            labels = [(cell, label) for cell, label in labels if label is not None]
            if not labels:
                raise DataError(f"{name!r} has no label under {decision.head!r} that could be right. Give it one.")
        else:
            labels = [(cell, decision.new if action == "set" else None) for cell in cells]
        done: Action = "set" if action == "keep" else action
        return [self._edit(cell, done, label) for cell, label in labels]

    def _edit(self, cell: Cell, action: Action, label: str | None) -> Edit:
        name, head_name, tag = cell
        head = self.samples.space[head_name]
        if tag not in head.cell_names:
            raise DataError(f"{head_name!r} has no tag {tag!r}. It has {quoted(head.classes)}.")
        if action == "set" and label not in head.value_names:
            raise DataError(f"{label!r} is no label of {head_name!r}. It has {quoted(head.value_names)}.")
        return Edit(id=name, head=head_name, tag=tag, action=action, new=label, step=PERSON, reason=REASON)

    def _set(self, edits: Sequence[Edit]) -> Stored:
        """Append edits to the chains of their cells, those left out that are the last there."""
        chains: dict[Cell, list[Edit]] = {}
        fresh: list[Edit] = []
        for edit in edits:
            chain = chains.setdefault(edit.cell, list(self.chains.get(edit.cell, ())))
            if not chain or chain[-1].identity != edit.identity:
                fresh.append(replace(edit, old=self._value(edit.cell, chain)))
                chain.append(fresh[-1])
        self._write(fresh, chains)
        return Stored(tuple(fresh), tuple(dict.fromkeys(self.rows[edit.id] for edit in fresh)))

    def _revert(self, edits: Sequence[Edit]) -> None:
        """Take edits, the last of their cells, from their chains.

        An undo reverts all equal edits above it: where a cell was set to the same before, all of its chain is undone,
        and the rest of it written again.
        """
        chains: dict[Cell, list[Edit]] = {}
        lines: list[Edit] = []
        for edit in reversed(edits):
            chain = chains.setdefault(edit.cell, list(self.chains[edit.cell]))
            chain.pop()
            again = any(one.identity == edit.identity for one in chain)
            undone = {one.identity: one for one in (*chain, edit)} if again else {edit.identity: edit}
            lines += [replace(one, action="undo", old=one.action, reason=UNDONE) for one in undone.values()]
            lines += chain if again else []
        self._write(lines, chains)

    def _write(self, lines: Sequence[Edit], chains: Mapping[Cell, list[Edit]]) -> None:
        """Append lines to the ledger and, once they are on disk, take over the chains that they leave."""
        if not lines:
            return
        try:
            self.ledger = self.ledger.append(lines)
        finally:  # also where the disk was full, and the file was cut to what it was
            self._state = file_state(self.path)
        for cell, chain in chains.items():
            number, index = self._index(cell)
            head = self.samples.space.heads[number]
            value = self._value(cell, chain)
            self.codes[number][index] = -1 if value is None else head.value_names.index(value)
            self.settled[number][index] = bool(chain)
            if chain:
                self.chains[cell] = chain
            else:
                self.chains.pop(cell, None)

    def _value(self, cell: Cell, chain: Sequence[Edit]) -> str | None:
        """Return the label of a cell after the edits of its chain."""
        if chain:
            return chain[-1].new
        number, index = self._index(cell)
        code = int(self.given[number][index])
        return None if code < 0 else self.samples.space.heads[number].value_names[code]

    def _index(self, cell: Cell) -> tuple[int, tuple[int, ...]]:
        """Return the number of the head of a cell, and where the cell is in its codes."""
        name, head_name, tag = cell
        number = next(n for n, head in enumerate(self.samples.space) if head.name == head_name)
        head, row = self.samples.space.heads[number], self.rows[name]
        return number, (row,) if tag is None else (row, head.index[tag])


def file_state(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file; None where there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_size, state.st_mtime_ns
