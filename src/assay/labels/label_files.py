"""Label files beside images, in the formats of other programs: recognised by content, and what to do with each."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from assay.labels.image_files import Tree
from assay.messages import plain, printable

LOOKED_AT = 3  # files of an ending in a folder
MOST_FILES = 100
MOST_BYTES = 1 << 26  # of a JSON file that is read whole; of a larger one the keys are looked for in its first bytes
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "image_path", "filepath", "id", "image_id", "img")

CONVERT = (
    'Write it as a table with the columns image and tags (a.jpg, "cat;dog"; "-" for none): docs/data-formats.md, '
    '"Labels of other programs", has the program. Then: data: {table: labels.csv, root: IMAGES, heads: {tags: '
    '{column: tags, separator: ";", none: "-"}}}'
)
JSON_KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("COCO annotations", ("images", "annotations", "categories"), "coco"),
    ("annotations of Datumaro (CVAT)", ("categories", "items"), "datumaro"),
    ("a project of the VGG Image Annotator (VIA)", ("_via_img_metadata",), CONVERT),
    ("VGG Image Annotator (VIA) annotations", ("filename", "regions", "file_attributes"), CONVERT),
    ("Label Studio annotations", ("annotations", "data"), "label_studio"),
    ("Label Studio annotations", ("completions", "data"), "label_studio"),
    ("Label Studio annotations", ("annotation_id", "lead_time"), "label_studio"),
    ("FiftyOne labels", ("classes", "labels"), "fiftyone"),
    ("LabelMe annotations", ("shapes", "imagePath"), CONVERT),
    ("Labelbox annotations", ("data_row", "projects"), CONVERT),
    ("V7 Darwin annotations", ("item", "annotations"), CONVERT),
    ("CreateML annotations", ("image", "annotations"), CONVERT),
)
"""Name, keys of the file or of its entries, and the form of `data` or the way; the first whose keys are all there."""


def label_file_notes(root: Path, tree: Tree) -> list[str]:
    """Return a note for each label file among the files that are no images: its format and the way that works today.

    Of many files of one ending in a folder, such as one an image, the first few are looked at.
    """
    by_kind: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in tree.others:
        by_kind[str(PurePosixPath(path).parent), PurePosixPath(path).suffix.lower()].append(path)
    some = [(path, len(paths)) for paths in by_kind.values() for path in paths[:LOOKED_AT]][:MOST_FILES]
    notes: dict[str, str] = {}
    for path, count in some:
        recognised = _recognised(root / path, tree.images, root)
        if recognised is not None:
            name, way = recognised
            more = f" (and {count - 1:,} more files like it)" if count > LOOKED_AT else ""
            notes.setdefault(
                name, f"{plain(printable(path))!r}{more} holds {name}: not read where a folder is given. {way}"
            )
    return list(notes.values())


def form_of_file(path: Path) -> str | None:
    """Return the form of `data` that reads a label file of another program; None for any other file."""
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            header = {cell.strip(' "') for cell in re.split(r"[,;\t]", _start(path).partition("\n")[0])}
            is_studio = {"annotation_id", "lead_time", "id"} <= header
            return "roboflow" if path.name == "_classes.csv" else "label_studio" if is_studio else None
        kind = _kind_of_json(path) if path.suffix.lower() == ".json" else None
    except (OSError, ValueError):
        return None
    return None if kind is None or kind[1] == CONVERT else kind[1]


def way_of(path: Path) -> str | None:
    """Return what a label file of another program holds and the way that works; None for any other file."""
    recognised = _recognised(path, (), path.parent) if path.is_file() else None
    return f"{printable(path)}: holds {recognised[0]}. {recognised[1]}" if recognised else None


def _recognised(path: Path, images: Sequence[str], root: Path) -> tuple[str, str] | None:
    """Return the name of a format and the way that works today; None for any other file."""
    try:
        match path.suffix.lower():
            case ".csv" | ".tsv":
                return _of_table(path, images, root)
            case ".json":
                return _of_json(path)
            case ".jsonl" | ".ndjson":
                with open(path, encoding="utf-8-sig") as file:
                    entry = json.loads(file.readline())
                way = f"To train on it: assay train {shlex.quote(printable(path))}"
                return ("a table of these images", way) if _names_image(entry) else None
            case ".xml":
                return _of_xml(_start(path))
            case ".txt" | ".yaml" | ".yml":
                return _of_list(path, _start(path)) or _of_text(_start(path))
    except (OSError, ValueError, csv.Error):  # not what its ending says
        pass
    return None


def _start(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(1 << 14).decode("utf-8", "replace")


def _of_table(path: Path, images: Sequence[str], root: Path) -> tuple[str, str] | None:
    lines = csv.reader(_start(path).lstrip("\ufeff").splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",")
    rows = [[cell.strip() for cell in row] for _, row in zip(range(20), lines, strict=False)]
    columns = rows[0] if rows else []
    if {"region_attributes", "file_attributes"} & set(columns):
        return "VGG Image Annotator (VIA) annotations", CONVERT
    if {"ImageID", "LabelName"} <= set(columns):
        return "Open Images labels", CONVERT
    if {"xmin", "ymin"} <= {column.casefold() for column in columns}:
        return "boxes of objects", CONVERT
    names = [index for index, column in enumerate(columns) if column.casefold() in IMAGE_COLUMNS]
    start = next((start for index in names for row in rows[1:] if (start := _start_of(row, index, images))), None)
    if start is None:
        return None
    table, base = shlex.quote(printable(path)), PurePosixPath(path.relative_to(root)).parent
    flags = [column for index, column in enumerate(columns) if column and index not in names and _is_flag(rows, index)]
    at = "" if PurePosixPath(start) == base else printable(root / start)
    if len(flags) > 1 and len(flags) == len(columns) - len(names):
        listed = ", ".join(json.dumps(column, ensure_ascii=False) for column in flags)
        of_root = f", root: {at}" if at else ""
        way = f"data: {{table: {printable(path)}{of_root}, heads: {{tags: {{columns: [{listed}], kind: multilabel}}}}}}"
        return "columns of 0 and 1 for each class", f"To train on them: {way}"
    return "a table of these images", f"To train on it: assay train {table}" + (
        f" --set data.root={shlex.quote(at)}" if at else ""
    )


def _start_of(row: Sequence[str], index: int, images: Sequence[str]) -> str | None:
    """Return the folder that the name of an image in a row starts from; None where there is no such image."""
    name = row[index] if index < len(row) else ""
    for path in images if name else ():
        for known in (path, path.rpartition(".")[0]):
            if known == name or known.endswith(f"/{name}"):
                return known[: len(known) - len(name)].rstrip("/") or "."
    return None


def _is_flag(rows: Sequence[Sequence[str]], index: int) -> bool:
    return len(rows) > 1 and all(row[index : index + 1] in (["0"], ["1"]) for row in rows[1:-1] or rows[1:])


def _of_json(path: Path) -> tuple[str, str] | None:
    kind = _kind_of_json(path)
    if kind is not None and kind[1] != CONVERT:
        line = f"{{{kind[1]}: {printable(path)}}}"
        return kind[0], f"To train on them: assay train {shlex.quote(printable(path))}, or data: {line}"
    return kind


def _kind_of_json(path: Path) -> tuple[str, str] | None:
    """Return the name of a format, and the form of `data` or the way."""
    if path.stat().st_size > MOST_BYTES:
        held = set(re.findall(r'"(\w+)"\s*:', _start(path)))
        return next(((name, way) for name, wanted, way in JSON_KINDS if {*wanted[:2]} <= held | {"annotations"}), None)
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    entries = [content, next(iter(content.values() if isinstance(content, dict) else content or ()), None)]
    for entry in entries:
        for name, keys, way in JSON_KINDS:
            if isinstance(entry, dict) and all(key in entry for key in keys):
                return name, way
    if isinstance(content, list) and _names_image(entries[1]):
        return "records that name images", _as_csv(path, "read_json")
    if isinstance(content, dict) and content and all(re.search(r"\.\w{3,4}$", str(key)) for key in list(content)[:20]):
        return "labels by image", CONVERT
    return None


def _names_image(entry: object) -> bool:
    return isinstance(entry, Mapping) and any(str(key).casefold() in IMAGE_COLUMNS for key in entry)


def _as_csv(path: Path, reader: str, options: str = "") -> str:
    table = printable(path.with_suffix(".csv"))
    given = f"{printable(path)!r}, {options}" if options else repr(printable(path))
    program = f"import polars as pl; pl.{reader}({given}).write_csv({table!r})"
    return f"Write it as a table: python -c {shlex.quote(program)} && assay train {shlex.quote(table)}"


def _of_xml(text: str) -> tuple[str, str] | None:
    if re.search(r"<annotation\b.*<(object|filename)>", text, re.DOTALL):
        return "Pascal VOC annotations", CONVERT
    if re.search(r"<annotations>.*<(meta|image)\b", text, re.DOTALL):
        way = "Export as `ImageNet` there (a folder for each class), and give that folder."
        return "CVAT annotations", f"{way} Of boxes or several tags: {CONVERT}"
    return None


def _of_list(path: Path, text: str) -> tuple[str, str] | None:
    """Return the way with lines such as `train/1.jpg 3`."""
    lines = text.splitlines()[:20]
    marks = {match[1] if (match := re.fullmatch(r"\S+\.\w{3,4}([ \t,;])[^\s,;]+ ?", line)) else "" for line in lines}
    if len(marks) != 1 or "" in marks:
        return None
    options = f'separator={json.dumps(marks.pop())}, has_header=False, new_columns=["image", "label"]'
    return "a list of images with their classes", _as_csv(path, "read_csv", options)


def _of_text(text: str) -> tuple[str, str] | None:
    lines = [line.strip() for line in text.splitlines()[:20] if line.strip()]
    if lines and all(re.fullmatch(r"\d+(\s+-?[\d.]+(e-?\d+)?){4,}", line) for line in lines):
        return "YOLO labels of objects", CONVERT
    if re.search(r"^names\s*:", text, re.MULTILINE) and re.search(r"^(train|val|nc)\s*:", text, re.MULTILINE):
        return "the description of a YOLO data set", CONVERT
    if lines and all(re.fullmatch(r"\S+\s+(-1|0|1)", line) for line in lines):
        return "a list of a class (Pascal VOC)", CONVERT
    return None
