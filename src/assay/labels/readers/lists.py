"""Readers of one list file a class, and of labels in file names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, drop_invalid_names, label_table
from assay.labels.image_files import natural_key, path_key, walk
from assay.labels.left_out import LeftOut
from assay.labels.readers.image_names import locate
from assay.labels.readers.table_files import Rows
from assay.labels.readers.text_files import read_lines
from assay.messages import printable

LISTS_HEAD = "tags"


def find_in_lists(
    folder: Path, *, images: str | None = None, root: Path | None = None, head: str = LISTS_HEAD
) -> RawLabels:
    """Return the images below `root` (default: the folder that holds `folder`), tagged by the lists that name them.

    A line is put into the pattern `images` as its `{id}`, or is a path below `root`. An image in no list has no
    tag, and that is known. Raises DataError for a line that names no image.
    """
    root = root or folder.parent
    lists = _lists(folder)
    named = _images(root, folder, images)
    paths, left_out = drop_invalid_names(named.values())
    tags: dict[str, list[str]] = {path: [] for path in paths}
    strange, notes = [], list[str]()
    for tag, path in lists.items():
        lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line]
        matched = named
        if images is None and any(line not in named for _, line in lines):
            others, of_names = _matched(path, lines, root)
            matched = {line: image for line, image in others.items() if image in tags} | named
            notes += of_names
        strange += [(path, number, line) for number, line in lines if line not in matched]
        for image in {matched[line]: None for _, line in lines if line in matched}:
            tags[image].append(tag)
    if strange:
        path, number, line = strange[0]
        wanted = images.replace("{id}", line) if images else line
        more = f" ({len(strange) - 1} more lines name none)" if len(strange) > 1 else ""
        raise DataError(
            f"{printable(path)}, line {number}: {line!r} is no image: there is no {wanted!r} below "
            f"{printable(root)}{more}. Remove the line, bring the image, or mend `images` or `root`."
        )
    return RawLabels(
        source=folder,
        root=root,
        table=label_table(paths, {head: pl.Series(list(tags.values()), dtype=pl.List(pl.String))}),
        heads=((head, "multilabel"),),
        classes={head: list(lists)},
        declared=frozenset([head]),
        left_out=left_out,
        notes=tuple(notes),
    )


def _matched(path: Path, lines: Sequence[tuple[int, str]], root: Path) -> tuple[dict[str, str], list[str]]:
    """Return the images of lines that are no paths as they stand, and notes."""
    names = [line for _, line in lines]
    located, notes = locate(Rows(path, pl.DataFrame(), [number for number, _ in lines], "line"), names, root)
    return {line: image for line, (image, reason) in zip(names, located, strict=True) if reason is None}, notes


def _lists(folder: Path) -> dict[str, Path]:
    """Return the list file of each class, in natural order."""
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: is no folder. `lists` is a folder of .txt files, one a class.")
    files = [name for name in os.listdir(folder) if name.lower().endswith(".txt") and not name.startswith(".")]
    if not files:
        raise DataError(f"{printable(folder)}: holds no .txt file. There must be one for each class.")
    return {printable(name[: -len(".txt")]): folder / name for name in sorted(files, key=natural_key)}


def _images(root: Path, folder: Path, images: str | None) -> dict[str, str]:
    """Return paths by the line that names them: images like the pattern, or all outside the folder of lists."""
    tree = walk(root)
    if images is None:
        lists = f"{os.path.relpath(folder, root)}/"
        paths = {path: path for path in tree.images if not path.startswith(lists)}
    else:  # a file named like the pattern counts, whatever its ending
        like = NamePattern.of(images)
        matches = [(like.match(path), path) for path in sorted((*tree.images, *tree.others), key=path_key)]
        paths = {match["id"]: path for match, path in matches if match}
    if not paths:
        wanted = f"like {images!r}" if images else f"outside {printable(folder)}"
        raise DataError(f"{printable(root)}: no image {wanted} in this folder. Mend `images` or `root`.")
    return paths


# Labels in file names: a pattern such as `{class}_{n}.jpg`.

HEADS = {"class": "label"}
"""Placeholders whose head has another name: `{class}` is the head of the folder form too."""

NO_HEADS = ("n", "id", "_")
"""Placeholders that label nothing; `{n}` is a number."""


@dataclass(frozen=True)
class NamePattern:
    """A pattern of paths. A placeholder stands for the shortest text that fits, without "/"; twice for the same."""

    text: str
    placeholders: tuple[str, ...]
    regex: re.Pattern[str]

    @staticmethod
    def of(text: str) -> NamePattern:
        """Parse a pattern. Raises ValueError for braces that hold no name."""
        literals, names = re.split(r"\{[^{}]*\}", text), re.findall(r"\{([^{}]*)\}", text)
        if any(brace in literal for literal in literals for brace in "{}") or not all(names):
            raise ValueError(f"{text!r}: a placeholder is a name in braces, such as {{class}} or {{n}}")
        groups: dict[str, int] = {}
        regex = re.escape(literals[0])
        for name, literal in zip(names, literals[1:], strict=True):
            if name in groups:
                regex += f"(?P=at{groups[name]})"
            else:
                some = "[0-9]+" if name == "n" else "[^/]+?"
                regex += some if name == "_" else f"(?P<at{groups.setdefault(name, len(groups))}>{some})"
            regex += re.escape(literal)
        return NamePattern(text, tuple(groups), re.compile(regex, re.DOTALL))

    @property
    def heads(self) -> dict[str, str]:
        """The placeholder of each head. Raises ValueError where two placeholders are one head."""
        wanted = [name for name in self.placeholders if name not in NO_HEADS]
        heads = {HEADS.get(name, name): name for name in wanted}
        if len(heads) < len(wanted):
            raise ValueError(f"{self.text!r}: {{class}} is the head `label`, and {{label}} stands beside it")
        return heads

    def match(self, path: str) -> dict[str, str] | None:
        """Return the text of each placeholder, or None where the path does not match."""
        match = self.regex.fullmatch(path)
        return None if match is None else {name: match[f"at{i}"] for i, name in enumerate(self.placeholders)}


def find_by_name(root: Path, pattern: str) -> RawLabels:
    """Return the images below `root` whose path (where the pattern has a "/") or name is like the pattern.

    Raises DataError where there are none.
    """
    like = NamePattern.of(pattern)
    tree = walk(root)
    # A file named like the pattern counts, whatever its ending; of the others only images are reported.
    everything = sorted((*tree.images, *tree.others), key=path_key)
    matches = {path: like.match(path if "/" in pattern else path.rpartition("/")[2]) for path in everything}
    paths, left_out = drop_invalid_names([path for path, match in matches.items() if match])
    if not paths:
        held = f"none of the {len(tree.images)} there is, such as" if tree.images else "there is none at all"
        such = f" {printable(tree.images[0])!r}" if tree.images else ""
        raise DataError(f"{printable(root)}: no image is named like {pattern!r}; {held}{such}. Mend `names` or `root`.")
    unlike = [LeftOut(printable(path), f"its name is not like {pattern}") for path in tree.images if not matches[path]]
    labels = {head: [(matches[path] or {})[name] for path in paths] for head, name in like.heads.items()}
    return RawLabels(
        source=root,
        root=root,
        table=label_table(paths, {head: pl.Series(names, dtype=pl.String) for head, names in labels.items()}),
        heads=tuple((head, "multiclass") for head in labels),
        classes={head: sorted(set(names)) for head, names in labels.items()},
        left_out=(*left_out, *unlike),
    )
