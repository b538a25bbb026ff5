"""Files that are not used: why, how many of each class, and as lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from assay.errors import DataError
from assay.messages import plain, shortened

NAMED = 5
"""Files of a reason that are named; metrics.json has them all."""


@dataclass(frozen=True)
class LeftOut:
    """A file that is not used, the reason, and the class that it would have had ("" where there is none).

    A reason is what is wrong and, after ": ", what to do.
    """

    path: str
    reason: str
    label: str = ""


class ReasonCount(TypedDict):
    """How many files a reason left out, by class ("" for none), with the way out and the first of them."""

    reason: str
    remedy: str
    files: int
    classes: dict[str, int]
    first: list[str]


def by_reason(left_out: Iterable[LeftOut]) -> list[ReasonCount]:
    """Return the counts of each reason, the most frequent first."""
    groups: dict[str, list[LeftOut]] = {}
    for one in left_out:
        groups.setdefault(one.reason.partition(": ")[0], []).append(one)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        {
            "reason": reason,
            "remedy": files[0].reason.partition(": ")[2],
            "files": len(files),
            "classes": dict(Counter(one.label for one in files).most_common()),
            "first": [one.path for one in files[:NAMED]],
        }
        for reason, files in ordered
    ]


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a line for each reason; none where nothing was left out."""
    return [f"left out: {reason_line(count)}" for count in by_reason(left_out)]


def require_all(left_out: Sequence[LeftOut], *, used: int) -> None:
    """Raise DataError where files were left out beside those `used`: what --strict is for."""
    if left_out:
        lines = "".join(f"\n  {line}" for line in left_out_lines(left_out))
        raise DataError(
            f"{len(left_out):,} of {len(left_out) + used:,} files cannot be used, and --strict allows none. "
            f"Mend them, take them out, or go without --strict.{lines}"
        )


def unreadable_as_left_out(unreadable: Mapping[str, str], labels: Mapping[str, str]) -> tuple[LeftOut, ...]:
    """Return reasons by image as files left out, with the label of each where it is known."""
    return tuple(LeftOut(path, reason, labels.get(path, "")) for path, reason in unreadable.items())


def reason_line(count: ReasonCount) -> str:
    """Return how many files a reason left out, what to do, their classes and the first of them, on a line."""
    number, remedy = count["files"], f": {plain(count['remedy'])}" if count["remedy"] else ""
    known = [(label, files) for label, files in count["classes"].items() if label]
    classes = ", ".join(f"{shortened(plain(label), 60)} {files:,}" for label, files in known[:NAMED])
    more = f" and {len(known) - NAMED} more classes" if len(known) > NAMED else ""
    names = ", ".join(repr(plain(path)) for path in count["first"])
    rest = f" and {number - len(count['first']):,} more" if number > len(count["first"]) else ""
    by_class = f" (by class: {classes}{more})" if classes else ""
    return f"{number:,} {'file' if number == 1 else 'files'}, {count['reason']}{remedy}{by_class}. {names}{rest}"
