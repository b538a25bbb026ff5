"""Heads and classes as a plan names them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from assay.errors import PlanError
from assay.labels.space import LabelSpace


def require(name: str, known: Sequence[str], what: str, where: str) -> None:
    """Raise PlanError that names the nearest where a name is not among those known."""
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        way_out = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
        raise PlanError(f"{where}: there is no {what} {name!r}. {way_out}")


def class_named(name: str, space: LabelSpace, where: str) -> tuple[int, int]:
    """The head and the class, by their places, of `class`, or of `head/class` where two heads have such a class.

    Raises PlanError where there is none, with the nearest, and where several heads have it.
    """
    plain = [(place, head.index[name]) for place, head in enumerate(space) if name in head.index]
    if len(plain) == 1:
        return plain[0]
    qualified = [f"{head.name}/{one}" for head in space for one in head.classes]
    if plain:
        fitting = [f"{head.name}/{name}" for head in space if name in head.index]
        raise PlanError(f"{where}: {len(plain)} heads have a class {name!r}. Say which: {' or '.join(fitting)}.")
    require(name, [*(one for head in space for one in head.classes), *qualified], "class", where)
    places = [(place, number) for place, head in enumerate(space) for number in range(head.size)]
    return places[qualified.index(name)]
