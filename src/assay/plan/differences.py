"""Where plans differ: the key path, and the value in each."""

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

BESIDE_THE_POINT = "track"
"""Who is told of a run changes nothing in it."""


@dataclass(frozen=True)
class Difference:
    """One key that is not the same in all plans; values are as a plan would spell them, None where it has none."""

    path: str
    values: tuple[str | None, ...]  # a plan

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "values": list(self.values)}


def differences(plans: Sequence[Plan]) -> list[Difference]:
    """The keys in which any plan differs from the first, defaults written out.

    Paths are those of the first plan (`steps.1.fit.lr`). Steps are matched by their kinds in order, so that one put in
    between does not part all that follow; a step that the first plan lacks is `steps.+2`, its place in its own plan.
    """
    first, *others = [_Written.of(plan) for plan in plans]
    found: list[Values] = [_apart(first, other) for other in others]
    rows: dict[KeyPath, Any] = {}
    for values in found:
        rows |= {path: own for path, (own, _) in values.items()}
    return [
        Difference(
            ".".join(map(str, path)),
            tuple(_spelt(value) for value in (own, *(values.get(path, (own, own))[1] for values in found))),
        )
        for path, own in sorted(rows.items(), key=lambda row: _place(row[0], list(first.full)))
    ]


@dataclass(frozen=True)
class _Written:
    """A plan, or a part of one, with every default written out, and with what was set alone."""

    full: Any
    short: Any

    @staticmethod
    def of(plan: Plan) -> _Written:
        full, short = (plain(plan, full=full) for full in (True, False))
        full.pop(BESIDE_THE_POINT, None)
        return _Written(full, short)

    def part(self, key: Any) -> _Written:
        """What is at a key; of a kind that is said by its name alone, what was set is nothing."""
        listed = isinstance(self.short, list)
        there = isinstance(self.short, Mapping) and key in self.short
        return _Written(self.full[key], self.short[key] if listed or there else ABSENT)


def _apart(first: _Written, other: _Written, path: KeyPath = ()) -> Values:
    """Key path -> the value here and there, wherever they differ."""
    own, its = first.full, other.full
    if isinstance(own, Mapping) and isinstance(its, Mapping):
        found: Values = {}
        for key in dict.fromkeys([*own, *its]):
            if key in own and key in its:
                found |= _apart(first.part(key), other.part(key), (*path, key))
            else:
                found[*path, key] = (own.get(key, ABSENT), its.get(key, ABSENT))
        return found
    if _are_steps(own) and _are_steps(its):
        return _steps_apart(first, other, path)
    return {} if own == its and type(own) is type(its) else {path: (own, its)}


def _steps_apart(first: _Written, other: _Written, path: KeyPath) -> Values:
    own, its = ([next(iter(step)) for step in written.full] for written in (first, other))
    blocks = SequenceMatcher(None, own, its, autojunk=False).get_matching_blocks()
    pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    found: Values = {}
    for a, b in pairs:
        found |= _apart(first.part(a), other.part(b), (*path, a))
    for a in sorted(set(range(len(own))) - {a for a, _ in pairs}):
        found[*path, a, own[a]] = (first.part(a).part(own[a]).short or {}, ABSENT)
    for b in sorted(set(range(len(its))) - {b for _, b in pairs}):
        found[*path, f"+{b}", its[b]] = (ABSENT, other.part(b).part(its[b]).short or {})
    return found


def _are_steps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) and len(item) == 1 for item in value)


def _place(path: KeyPath, order: Sequence[str]) -> list[tuple[int, int, str]]:
    """Sort key: as the first plan has it; a step that it lacks at its own place."""
    ranked = []
    for depth, key in enumerate(path):
        number = str(key).removeprefix("+")
        place = order.index(str(key)) if depth == 0 and key in order else int(number) if number.isdecimal() else 0
        ranked.append((place, int(str(key).startswith("+")), str(key)))
    return ranked


def _spelt(value: Any) -> str | None:
    return None if value is ABSENT else flow(value)
