"""The differences between plans: key paths, and the value in each plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from assay.plan.plan import Plan, plain
from assay.plan.yaml_lines import KeyPath, flow

Values = dict[KeyPath, tuple[Any, Any]]
ABSENT = None
"""The value of a key that a plan does not have: plans hold no empty values."""

IGNORED = "track"
"""Trackers change nothing in a run."""


@dataclass(frozen=True)
class Difference:
    """One key that is not the same in all plans; values are as a plan would spell them, None where it has none."""

    path: str
    values: tuple[str | None, ...]  # one for each plan

    def to_json(self) -> dict[str, object]:
        return {"path": self.path, "values": list(self.values)}


def differences(plans: Sequence[Plan]) -> list[Difference]:
    """Return the keys in which any plan differs from the first, defaults written out.

    Paths are those of the first plan (`steps.1.fit.lr`). Steps are matched by their kinds in order, so that one
    inserted leaves those after it matched; a step that the first plan lacks is `steps.+2`, its index in its plan.
    """
    first, *others = [_Written.of(plan) for plan in plans]
    by_plan: list[Values] = [_compare(first, other) for other in others]
    rows = {path: value for values in by_plan for path, (value, _) in values.items()}
    return [
        Difference(
            ".".join(map(str, path)),
            tuple(_spelt(one) for one in (value, *(values.get(path, (value, value))[1] for values in by_plan))),
        )
        for path, value in sorted(rows.items(), key=lambda row: _order(row[0], list(first.full)))
    ]


@dataclass(frozen=True)
class _Written:
    """A plan, or a part of one: with every default written out, and with only what was set."""

    full: Any
    short: Any

    @staticmethod
    def of(plan: Plan) -> _Written:
        full, short = (plain(plan, full=full) for full in (True, False))
        full.pop(IGNORED, None)
        return _Written(full, short)

    def part(self, key: Any) -> _Written:
        """Return what is at a key; of a kind given by its name alone, nothing was set."""
        listed = isinstance(self.short, list)
        there = isinstance(self.short, Mapping) and key in self.short
        return _Written(self.full[key], self.short[key] if listed or there else ABSENT)


def _compare(first: _Written, other: _Written, path: KeyPath = ()) -> Values:
    """Return key path -> the value in the first and in the other, wherever they differ."""
    left, right = first.full, other.full
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        values: Values = {}
        for key in dict.fromkeys([*left, *right]):
            if key in left and key in right:
                values |= _compare(first.part(key), other.part(key), (*path, key))
            else:
                values[*path, key] = (left.get(key, ABSENT), right.get(key, ABSENT))
        return values
    if _are_steps(left) and _are_steps(right):
        return _compare_steps(first, other, path)
    return {} if left == right and type(left) is type(right) else {path: (left, right)}


def _compare_steps(first: _Written, other: _Written, path: KeyPath) -> Values:
    left, right = ([next(iter(step)) for step in written.full] for written in (first, other))
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    values: Values = {}
    for a, b in pairs:
        values |= _compare(first.part(a), other.part(b), (*path, a))
    for a in sorted(set(range(len(left))) - {a for a, _ in pairs}):
        values[*path, a, left[a]] = (first.part(a).part(left[a]).short or {}, ABSENT)
    for b in sorted(set(range(len(right))) - {b for _, b in pairs}):
        values[*path, f"+{b}", right[b]] = (ABSENT, other.part(b).part(right[b]).short or {})
    return values


def _are_steps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) and len(item) == 1 for item in value)


def _order(path: KeyPath, keys: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return a sort key: the order of the first plan; a step that it lacks by its index."""
    ranked = []
    for depth, key in enumerate(path):
        number = str(key).removeprefix("+")
        index = keys.index(str(key)) if depth == 0 and key in keys else int(number) if number.isdecimal() else 0
        ranked.append((index, int(str(key).startswith("+")), str(key)))
    return ranked


def _spelt(value: Any) -> str | None:
    return None if value is ABSENT else flow(value)
