"""Labels in file names: a pattern such as `{class}_{n}.jpg`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.found import Found, bare, named_in_unicode
from assay.labels.pictures import by_path, shown, walk
from assay.labels.samples import LeftOut

HEADS = {"class": "label"}
"""Placeholders whose head has another name: `{class}` is the one head of the folder form too."""

NO_HEADS = ("n", "id", "_")
"""Placeholders that tell pictures apart and label nothing; `{n}` is a number."""


@dataclass(frozen=True)
class NamePattern:
    """A pattern of paths. A placeholder stands for the shortest text that fits, without "/"; twice for the same."""

    text: str
    placeholders: tuple[str, ...]
    regex: re.Pattern[str]

    @staticmethod
    def of(text: str) -> NamePattern:
        """The pattern that a text says. Raises ValueError for braces that hold no name."""
        literals, names = re.split(r"\{[^{}]*\}", text), re.findall(r"\{([^{}]*)\}", text)
        if any(brace in literal for literal in literals for brace in "{}") or not all(names):
            raise ValueError(f"{text!r}: a placeholder is a name in braces, such as {{class}} or {{n}}")
        places: dict[str, int] = {}
        regex = re.escape(literals[0])
        for name, literal in zip(names, literals[1:], strict=True):
            if name in places:
                regex += f"(?P=at{places[name]})"
            else:
                some = "[0-9]+" if name == "n" else "[^/]+?"
                regex += some if name == "_" else f"(?P<at{places.setdefault(name, len(places))}>{some})"
            regex += re.escape(literal)
        return NamePattern(text, tuple(places), re.compile(regex, re.DOTALL))

    @property
    def heads(self) -> dict[str, str]:
        """Head -> its placeholder. Raises ValueError where two placeholders are one head."""
        wanted = [name for name in self.placeholders if name not in NO_HEADS]
        heads = {HEADS.get(name, name): name for name in wanted}
        if len(heads) < len(wanted):
            raise ValueError(f"{self.text!r}: {{class}} is the head `label`, and {{label}} stands beside it")
        return heads

    def match(self, path: str) -> dict[str, str] | None:
        """What stands for each placeholder, or None where the path is not like this."""
        found = self.regex.fullmatch(path)
        return None if found is None else {name: found[f"at{i}"] for i, name in enumerate(self.placeholders)}


def find_by_name(root: Path, pattern: str) -> Found:
    """The pictures below `root` whose path (where the pattern has a "/") or name is like the pattern.

    Raises DataError where there are none.
    """
    like = NamePattern.of(pattern)
    tree = walk(root)
    # Whatever its ending, a file named like the pattern is meant; of the others only pictures are missed.
    everything = sorted((*tree.pictures, *tree.others), key=by_path)
    found = {path: like.match(path if "/" in pattern else path.rpartition("/")[2]) for path in everything}
    paths, left_out = named_in_unicode([path for path, match in found.items() if match])
    if not paths:
        held = f"none of the {len(tree.pictures)} there is, such as" if tree.pictures else "there is none at all"
        such = f" {shown(tree.pictures[0])!r}" if tree.pictures else ""
        raise DataError(f"{shown(root)}: no picture is named like {pattern!r}; {held}{such}. Mend `names` or `root`.")
    unlike = [LeftOut(shown(path), f"its name is not like {pattern}") for path in tree.pictures if not found[path]]
    matches = [found[path] or {} for path in paths]
    labels = {head: [match[name] for match in matches] for head, name in like.heads.items()}
    return Found(
        source=root,
        root=root,
        table=bare(paths, {head: pl.Series(names, dtype=pl.String) for head, names in labels.items()}),
        heads=tuple((head, "exclusive") for head in labels),
        classes={head: sorted(set(names)) for head, names in labels.items()},
        left_out=(*left_out, *unlike),
    )
