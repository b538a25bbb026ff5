"""Spellings of class names: those that look alike, those that stand for no label, and settings that settle both."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

import polars as pl
from pydantic import BeforeValidator, Field

from assay.messages import plain, yaml_text

Form = Literal["nfkc", "case", "numbers"]

Merge = Annotated[
    tuple[Form, ...] | dict[str, Annotated[str, Field(min_length=1)]],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value,
        json_schema_input_type=Form | tuple[Form, ...] | dict[str, Annotated[str, Field(min_length=1)]],
    ),
]
"""One form or a list of them, or the new name of each class that is renamed."""

MOST_NOTES = 12
"""Notes on names that look alike, of one head."""

MOST_ALIKE = 6
"""Groups of such names in one note."""

UNKNOWN_WORDS = frozenset({
    "nan", "-nan", "null", "nil", "none", "n/a", "na", "n.a.", "n.a", "#n/a", "#na", "<na>", "<nan>", "nat", "-1",
    "unknown", "unk", "undefined", "unspecified", "undetermined", "unidentified", "unsure", "uncertain", "missing",
    "not available", "not applicable", "not known", "not labelled", "not labeled", "no label", "unlabelled",
    "unlabeled", "tbd", "tba", "todo", "to do", "void", "empty", "blank", "#value!", "#ref!", "#name?", "#null!",
    "#div/0!", "#num!",
})  # fmt: skip
"""Class names, in lower case, that mostly stand for a label that is not known; so do names of marks alone."""

ALIKE = str.maketrans(
    "авекмнорстухіјѕԁԛԝһАВЕКМНОРСТУХІЈЅαοιρυνκχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ’‘`´ʼ“”„",
    "abekmhopctyxijsdqwhABEKMHOPCTYXIJSaoipuvkxABEZHIKMNOPTYX'''''\"\"\"",
)
"""Cyrillic and Greek letters, and quotes, that look like a Latin letter or a straight quote."""


def nfkc(name: str) -> str:
    """Return a name in Unicode's form NFKC, without invisible characters, with single blanks and none at its ends.

    Invisible are format characters (category Cf: zero-width ones, soft hyphens, direction marks), variation selectors
    and the combining grapheme joiner; blanks are all that `str.split` splits at.
    """
    visible = "".join(
        letter
        for letter in unicodedata.normalize("NFKC", name)
        if unicodedata.category(letter) != "Cf" and not ("\ufe00" <= letter <= "\ufe0f" or letter == "\u034f")
    )
    return " ".join(unicodedata.normalize("NFKC", visible).split())


def number(name: str) -> str:
    """Return a decimal number without needless zeros and signs (`01`, `1.0`, `+1` are `1`); other names as they are."""
    match = re.fullmatch(r"\s*([+-]?)0*([0-9]+)(?:[.,]([0-9]*?)0*)?\s*", name)
    if match is None:
        return name
    sign, whole, part = match.groups()
    value = whole + (f".{part}" if part else "")
    return f"-{value}" if sign == "-" and value != "0" else value


NORMALISED: dict[Form, Callable[[str], str]] = {"nfkc": nfkc, "case": str.lower, "numbers": number}
"""What each form of `merge` makes of a name."""


@dataclass(frozen=True)
class Spelling:
    """Names that are one class, and names that are no label; calling it settles a name."""

    merge: tuple[Form, ...] | Mapping[str, str] = ()
    missing: tuple[str, ...] = ()
    _known: dict[str, str | None] = field(default_factory=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.merge or self.missing)

    def __call__(self, name: str) -> str | None:
        """Return the class that a name stands for; None where it stands for a label that is not known."""
        if name not in self._known:
            merged = self._merged(name)
            unknown = {name, name.strip(), merged} & self._unknown
            self._known[name] = None if unknown or not merged.strip() else merged
        return self._known[name]

    @cached_property
    def _unknown(self) -> frozenset[str]:
        return frozenset((*self.missing, *map(self._merged, self.missing)))

    def _merged(self, name: str) -> str:
        if isinstance(self.merge, Mapping):
            return self.merge.get(name, name)
        for form, normalised in NORMALISED.items():  # in one order, however they are listed
            name = normalised(name) if form in self.merge else name
        return name


def settled_cells(cells: pl.Series, spelling: Spelling) -> tuple[pl.Series, Counter[tuple[str, str | None]]]:
    """Return class names as a spelling settles them, and how many cells each change of a name concerns."""
    names = cells.drop_nulls().value_counts(name="cells")
    changed = {name: spelling(name) for name in names[cells.name].to_list() if spelling(name) != name}
    if not changed:
        return cells, Counter()
    frequency = dict(names.rows())
    counts = Counter({(old, new): frequency[old] for old, new in changed.items()})
    return cells.replace_strict(changed, default=cells, return_dtype=pl.String), counts


def change_notes(changes: Mapping[tuple[str, str | None], int]) -> list[str]:
    """Return notes on the names that were merged, and on those that count as unknown."""
    merged: dict[str, list[str]] = defaultdict(list)
    for (old, new), count in changes.items():
        if new is not None:
            merged[new].append(f"{_quoted(old)} ({count:,})")
    notes = [f"merged into {_quoted(new)} by `merge`: {_listed(names)}." for new, names in merged.items()]
    blanked = [f"{_quoted(old)} ({count:,})" for (old, new), count in changes.items() if new is None]
    return [*notes, *([f"labels that are unknown by `missing`: {_listed(blanked)}."] if blanked else [])]


# Names that look alike or mean nothing, as notes.


def alike_key(name: str) -> str:
    """Return a text that names share which differ in form, case, invisible characters, marks or look-alike letters."""
    folded = number(nfkc(name.translate(ALIKE)).casefold())
    dashes = "".join("-" if unicodedata.category(letter) == "Pd" else letter for letter in folded)
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", dashes.replace("_", " ").strip() or dashes)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of two or more names that look alike, in order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[alike_key(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def merge_of(names: Sequence[str]) -> tuple[str, str]:
    """Return how names that look alike differ, and the value of `data.merge` that makes them one."""
    ways: tuple[tuple[tuple[Form, ...], str], ...] = (
        (("nfkc",), "differ only in Unicode form, invisible characters or blanks"),
        (("case",), "differ only in case"),
        (("numbers",), "are the same number"),
        (("nfkc", "case"), "differ only in case, Unicode form or blanks"),
        (("nfkc", "numbers"), "are the same number"),
    )
    for forms, why in ways:
        settle = Spelling(forms)
        if len({settle(name) for name in names}) == 1:
            return why, forms[0] if len(forms) == 1 else f"[{', '.join(forms)}]"
    pairs = ", ".join(f"{yaml_text(name)}: {yaml_text(names[0])}" for name in names[1:])
    return "look alike", f"{{{pairs}}}"


def spelling_notes(head: str, counts: Mapping[str, int], missing: Sequence[str]) -> list[str]:
    """Return notes on classes of a head that look alike, and on names that mostly mean an unknown label.

    `counts` are the images of each class; `missing` are the words that count as unknown already.
    """
    notes = []
    groups = alike(counts)
    by_way: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
    for group in groups:
        by_way[merge_of(group)].append(group)
    for (why, merge), same in list(by_way.items())[:MOST_NOTES]:
        each = [_listed([_described(name, group, counts[name]) for name in group], last="and") for group in same]
        count = {2: "two", 3: "three"}.get(len(same[0]), str(len(same[0])))
        are = f"{why} and are {count} classes" if len(same) == 1 else f"{why}, and each is a class"
        more = f"; and {len(same) - MOST_ALIKE} more groups" if len(same) > MOST_ALIKE else ""
        way = f"One class: `merge: {merge}` under `data`."
        notes.append(f"{head}: {'; '.join(each[:MOST_ALIKE])}{more} {are}. {way}")
    if len(by_way) > MOST_NOTES:
        notes.append(f"{head}: {sum(map(len, list(by_way.values())[MOST_NOTES:]))} more groups of classes look alike.")
    alone = set(counts).difference(*groups)
    edged = [name for name in counts if name in alone and name != _without_edges(name)]
    if edged:
        listed = _listed([_quoted(name) for name in edged])
        notes.append(
            f"{head}: {listed} {'begins or ends' if len(edged) == 1 else 'begin or end'} with a blank or an "
            "invisible character. Without: `merge: nfkc` under `data`."
        )
    words = [name for name in counts if means_unknown(name)]
    if words:
        listed = _listed([_described(name, [name], counts[name]) for name in words[:MOST_NOTES]], last="and")
        value = ", ".join(map(yaml_text, dict.fromkeys((*missing, *words))))
        learnt = "is learnt as a class" if len(words) == 1 else "are learnt as classes"
        notes.append(f"{head}: {listed} {learnt}. Where the label is not known: `missing: [{value}]` under `data`.")
    return notes


def _without_edges(name: str) -> str:
    """Return a name without blanks and format characters at its ends."""
    visible = [k for k, letter in enumerate(name) if letter.strip() and unicodedata.category(letter) != "Cf"]
    return name[visible[0] : visible[-1] + 1] if visible else name


def means_unknown(name: str) -> bool:
    """Return whether a class name mostly stands for a label that is not known."""
    word = nfkc(name).casefold()
    return word in UNKNOWN_WORDS or not re.search(r"[^?*#/_.\-\u2013\u2014\s]", word)


def code_points(text: str) -> str:
    """Return the code points of a text: `U+0065 U+0301`; of a long text the first six."""
    points = " ".join(f"U+{ord(letter):04X}" for letter in text[:6])
    return points + (" ..." if len(text) > 6 else "")


def _described(name: str, group: Sequence[str], count: int) -> str:
    """Return a name and its images, with the code points that tell it from a group where its letters do not."""
    start = _common_start(group) if len(group) > 1 else 0
    end = _common_start([other[start:][::-1] for other in group]) if len(group) > 1 else 0
    letters = name[start : len(name) - end]
    points = "" if letters.isascii() and letters.isalnum() else code_points(letters)
    images = "1 image" if count == 1 else f"{count:,} images"
    return f"{_quoted(name)} ({points + ', ' if points else ''}{images})"


def _common_start(names: Sequence[str]) -> int:
    """Return how many letters all names begin with."""
    return next(
        (k for k, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), min(map(len, names))
    )


def _quoted(name: str) -> str:
    return f"'{plain(name)}'"


def _listed(texts: Sequence[str], last: str = "") -> str:
    if last and len(texts) > 1:
        return f"{', '.join(texts[:-1])} {last} {texts[-1]}"
    return ", ".join(texts[:MOST_NOTES]) + (f" and {len(texts) - MOST_NOTES} more" if len(texts) > MOST_NOTES else "")
