"""Readers of data sets of Hugging Face, as it saved them or an `imagefolder`, and of Roboflow's `_classes.csv`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import polars as pl

from assay.errors import DataError
from assay.labels.file_kinds import HEAD as START
from assay.labels.file_kinds import is_image, kind_of
from assay.labels.readers.columns import Columns
from assay.labels.readers.exports import HEAD, Export, Json, LabelFile, Options, files_by_split, path_in, unpacked
from assay.labels.readers.folder import split_of
from assay.labels.readers.label_cells import JSON, HeadColumns
from assay.labels.readers.table_files import PARQUET, Rows, read_rows, rows_of_frame, texts
from assay.messages import printable, quoted

INFO = "dataset_info.json"
STATE = "state.json"
SPLITS = "dataset_dict.json"
ENDINGS = {"a JPEG image": "jpg", "a PNG image": "png", "a WebP image": "webp", "a TIFF image": "tif"}


@dataclass(frozen=True)
class _Part:
    """The files of a split, and what its columns hold by the library's own description."""

    name: str
    files: Sequence[Path]
    features: Mapping[str, Json]


@dataclass(frozen=True)
class _Images:
    """The images of a part: the path of each, None where there is none, and whether its bytes are held."""

    paths: list[str | None]
    held: list[bool]


def read_datasets(source: Path, options: Options) -> Export:
    """Return the images of a data set on disk: their bytes are written to files once, or their paths are used.

    Columns of `ClassLabel` are heads, lists of them tags; other label columns as in a table, or by `heads`. Raises
    DataError where no column holds images.
    """
    parts = _parts(source)
    features = parts[0].features
    image = next((name for name, kind in features.items() if type_of(kind) == "Image"), None)
    if image is None:
        raise DataError(f"{printable(source)}: has no column of images; its columns are {quoted(features)}.")
    images, tables = [], []
    for part in parts:
        frames = [_read(path, image) for path in part.files]
        images.append(_images(frames, image))
        tables.append(pl.concat([frame.drop(image) for frame in frames]))
    images = _distinct(images, [part.name for part in parts])
    root = options.root or (source if source.is_dir() else source.parent)
    if any(any(one.held) for one in images):
        name = f"{source.name}-images"
        root = unpacked(source, options.unpack, name, lambda out: _write(parts, images, image, out))
    rows = []
    for part, table, of_part in zip(parts, tables, images, strict=True):
        facts = {"image": pl.Series("image", of_part.paths, dtype=pl.String)}
        if len(parts) > 1:
            facts["split"] = pl.Series("split", [split_of(part.name)] * len(table), dtype=pl.String)
        labels = [named_classes(table[name], features[name]) for name in table.columns if name not in facts]
        rows.append((rows_of_frame(source, pl.DataFrame([*facts.values(), *labels])), part.name))
    heads = options.heads or {name: head for name in tables[0].columns if (head := head_of(name, features[name]))}
    return Export(joined_rows(source, rows), Columns("image", heads), root)


def holds_images(path: Path) -> bool:
    """Return whether a file is a Parquet file of which the library wrote down that it holds images."""
    if path.suffix.lower() not in PARQUET:
        return False
    try:
        return '"_type": "Image"' in pl.read_parquet_metadata(path).get("huggingface", "")
    except (OSError, pl.exceptions.PolarsError):
        return False


def _parts(source: Path) -> list[_Part]:
    """Return the parts of a data set. Raises DataError where it is none."""
    if (source / SPLITS).is_file():
        names = [Path(entry.text()).name for entry in Json.read(source / SPLITS)["splits"].items()]
        return [_of_arrow(source / name, name) for name in names]
    if (source / STATE).is_file():
        return [_of_arrow(source, source.name)]
    what = f"data set: no {SPLITS}, {STATE} or Parquet file"
    files = files_by_split(source, lambda path: path.suffix.lower() in PARQUET, what)
    if not source.is_dir() and source.suffix.lower() not in PARQUET:
        raise DataError(f"{printable(source)}: is no {what}. Give the folder that was saved.")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(file.split or "data", []).append(file.path)
    return [_Part(name, paths, _of_parquet(paths[0])) for name, paths in by_split.items()]


def _of_arrow(folder: Path, name: str) -> _Part:
    listed = Json.read(folder / STATE)["_data_files"].items()
    files = [folder / Path(entry["filename"].text()).name for entry in listed]
    return _Part(name, files, features_of(Json.read(folder / INFO)["features"]))


def features_of(features: Json) -> dict[str, Json]:
    """Return what each column holds, by the library's description."""
    return {name: features[name] for name in features.names()}


def _of_parquet(path: Path) -> dict[str, Json]:
    """Return what the columns hold: what the library wrote down, else a struct of bytes and path is an image."""
    try:
        described = pl.read_parquet_metadata(path).get("huggingface")
        schema = pl.read_parquet_schema(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{printable(path)}: is no Parquet file that can be read ({error}).") from error
    if described is not None:
        return features_of(Json(json.loads(described), printable(path))["info"]["features"])
    kinds = {name: "Image" if isinstance(kind, pl.Struct) else "Value" for name, kind in schema.items()}
    return {name: Json({"_type": kind}, printable(path)) for name, kind in kinds.items()}


def _read(path: Path, image: str) -> pl.DataFrame:
    """Return the rows of a file. Raises DataError where it cannot be read, or holds no images."""
    try:
        frame = (
            pl.read_parquet(path, hive_partitioning=False, glob=False)
            if path.suffix.lower() in PARQUET
            else pl.read_ipc_stream(path)
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{printable(path)}: cannot be read ({error}). Save the data set again.") from error
    kind = frame.schema.get(image)
    if not isinstance(kind, pl.Struct) or {field.name for field in kind.fields} != {"bytes", "path"}:
        raise DataError(f"{printable(path)}: the column {image!r} holds no images. Save the data set again.")
    return frame


def _images(frames: Sequence[pl.DataFrame], image: str) -> _Images:
    """Return the path of each image: its own where they differ and lead nowhere else, else its number."""
    cells = pl.concat([frame[image].struct.unnest() for frame in frames])
    held = cells["bytes"].is_not_null().to_list()
    given: list[str | None] = cells["path"].to_list()
    proper = [path for path, bytes_held in zip(given, held, strict=True) if bytes_held]
    keep = all(path is not None and _is_below(path) for path in proper) and len(set(proper)) == len(proper)
    numbered = [
        path if keep or not bytes_held else f"{row:07d}.{ending_of(start)}"
        for row, (path, bytes_held, start) in enumerate(zip(given, held, cells["bytes"], strict=True))
    ]
    return _Images(numbered, held)


def _is_below(path: str) -> bool:
    """Return whether a path names an image below any folder it is put in."""
    parts = PurePosixPath(path).parts
    return is_image(path) and not path.startswith("/") and ".." not in parts and "\\" not in path and "\0" not in path


def ending_of(start: bytes) -> str:
    """Return the ending of an image file by its first bytes."""
    kind = kind_of(start[:START])
    return ENDINGS.get(kind.name if kind else "", "png")


def _distinct(images: list[_Images], names: Sequence[str]) -> list[_Images]:
    """Return the images with the name of their part as a folder, where two parts have the same path."""
    counts = Counter(path for one in images for path in set(one.paths))
    if max(counts.values(), default=0) < 2:
        return images
    return [
        _Images([path if path is None else f"{name}/{path}" for path in one.paths], one.held)
        for one, name in zip(images, names, strict=True)
    ]


def _write(parts: Sequence[_Part], images: Sequence[_Images], image: str, out: Path) -> None:
    for part, of_part in zip(parts, images, strict=True):
        paths = iter(of_part.paths)
        for file in part.files:
            for content in _read(file, image)[image].struct.field("bytes"):
                path = next(paths)
                if content is not None and path is not None:
                    (out / path).parent.mkdir(parents=True, exist_ok=True)
                    (out / path).write_bytes(content)


# Class labels.


def type_of(kind: Json) -> object:
    named = kind.get("_type")
    return None if named is None else named.value


def _of_list(kind: Json) -> Json | None:
    """Return what a list holds; None of anything else. The library has spelt lists in three ways."""
    if isinstance(kind.value, list) and kind.value:
        return Json(kind.value[0], kind.at)
    return kind.get("feature")


def _names(kind: Json) -> list[str] | None:
    return [entry.text() for entry in kind["names"].items()] if type_of(kind) == "ClassLabel" else None


def head_of(column: str, kind: Json) -> HeadColumns | None:
    """Return the head of a column of class labels, of tags where it holds lists; None of another column."""
    inside = _of_list(kind)
    names = _names(inside or kind)
    if names is None:
        return None
    return HeadColumns(column=column, separator=JSON if inside else None, classes=tuple(dict.fromkeys(names)))


def named_classes(cells: pl.Series, kind: Json) -> pl.Series:
    """Return numbers of classes as their names, -1 as unknown; another column as it is."""
    inside = _of_list(kind)
    names = _names(inside or kind)
    if names is None:
        return cells

    def name(number: int | None) -> str | None:
        return None if number is None or number == -1 else Json(number, kind.at).choice(names, "class")

    if inside:
        lists = [None if one is None else [name(number) for number in one] for one in cells.to_list()]
        return pl.Series(cells.name, lists, dtype=pl.List(pl.String))
    return pl.Series(cells.name, [name(number) for number in cells.to_list()], dtype=pl.String)


# Tables beside images: Roboflow's `_classes.csv`, and Hugging Face's `imagefolder`.


CLASSES = "_classes.csv"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAMES = ("file_name", "image_file_name")


def read_imagefolder(source: Path, options: Options) -> Export:
    """Return the images of `metadata.csv`, `.jsonl` or `.parquet`, also of a folder for each split.

    Names in `file_name` start from the folder of the file. The label columns are `heads`, or those that a table would
    have. Raises DataError where no column names the images.
    """
    parts = []
    for file in files_by_split(source, lambda path: path.name in METADATA, " or ".join(METADATA)):
        rows = read_rows(file.path)
        image = next((one for one in NAMES if one in rows.names), None)
        if image is None:
            raise DataError(
                f"{printable(file.path)}: has no column {NAMES[0]!r}, which names the images. {rows.listed()}"
            )
        rows = texts(rows, [image])
        names = pl.concat_str(pl.lit(file.above), pl.col(image)).alias(NAMES[0])
        rows = replace(rows, frame=rows.frame.with_columns(names))
        if file.split and "split" not in rows.names:
            rows = replace(rows, frame=rows.frame.with_columns(split=pl.lit(file.split)))
        parts.append((rows, file.name))
    return Export(joined_rows(source, parts), Columns(NAMES[0], options.heads), _root(source, options))


def read_roboflow(source: Path, options: Options) -> Export:
    """Return the images of `_classes.csv`, also of a folder for each split.

    The first column names the image. The classes are tags, or, where `kind` says so or each image has exactly one,
    classes. Raises DataError for files with other classes.
    """
    root, name = _root(source, options), options.head or HEAD
    files = files_by_split(source, lambda path: path.name == CLASSES, CLASSES)
    parts = [_of_roboflow(file, root) for file in files]
    columns = parts[0].frame.columns
    for part, file in zip(parts, files, strict=True):
        if set(part.frame.columns) != set(columns):
            raise DataError(
                f"{printable(source)}: the classes of {files[0].name} are {quoted(columns[2:])}, and those of "
                f"{file.name} {quoted(part.frame.columns[2:])}. Export the parts together."
            )
    parts = [replace(part, frame=part.frame.select(columns)) for part in parts]
    rows = joined_rows(source, [(part, file.name) for part, file in zip(parts, files, strict=True)])
    image, split, *classes = columns
    if not classes:
        raise DataError(f"{printable(source)}: has no column beside that of the images. Add one for each class.")
    ones = rows.frame.select(pl.sum_horizontal(pl.col(classes).str.strip_chars().eq("1").fill_null(False)))
    single, wanted = len(rows.frame) > 0 and bool((ones.to_series() == 1).all()), options.kind_of(name)
    if single and not wanted:
        note = f"{name}: each image has exactly one class. If an image may have several: `kind: multilabel`."
        rows = replace(rows, notes=(*rows.notes, note))
    head = HeadColumns(columns=tuple(classes), kind=wanted or ("multiclass" if single else "multilabel"))
    of_split = split if rows.frame[split].is_not_null().any() else None
    return Export(replace(rows, source=source), Columns(image, {name: head}, split=of_split), root)


def _root(source: Path, options: Options) -> Path:
    return options.root or (source if source.is_dir() else source.parent)


def _of_roboflow(file: LabelFile, root: Path) -> Rows:
    """Return rows whose first column has the paths of the images below `root`, and the second the split."""
    rows = read_rows(file.path)
    image, *classes = rows.frame.columns
    of_split = next(free for free in ("split", "the split", "the split of the image") if free not in rows.names)
    cells = rows.frame[image].to_list()
    paths = [None if cell is None else path_in(root, [file.folder], str(cell)) for cell in cells]
    split = pl.lit(file.split, dtype=pl.String).alias(of_split)
    return replace(rows, frame=rows.frame.select(pl.Series(image, paths, dtype=pl.String), split, *classes))


def joined_rows(source: Path, parts: Sequence[tuple[Rows, str]]) -> Rows:
    """Return the rows of several files as those of one."""
    if len(parts) == 1:
        return parts[0][0]
    try:
        frame = pl.concat([rows.frame for rows, _ in parts], how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{printable(source)}: the files have columns of different types ({reason}).") from error
    lines = [f"{line} of {name}" for rows, name in parts for line in rows.lines]
    notes = tuple(note for rows, _ in parts for note in rows.notes)
    return Rows(source, frame, lines, parts[0][0].unit, notes)
