"""The settings of `data`, and reading samples in any of its forms."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import permutations
from operator import attrgetter
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field, field_validator

from assay.errors import DataError
from assay.labels.audit_folder import AuditOption, AuditSettings, with_audit
from assay.labels.build import RawLabels, build_samples, require_learnable
from assay.labels.corrections import corrected, is_ledger, settled_edits
from assay.labels.image_files import natural_key
from assay.labels.readers.columns import Columns
from assay.labels.readers.exports import Options
from assay.labels.readers.folder import find_in_folder, find_unlabelled, has_loose_images, is_unlabelled
from assay.labels.readers.formats import FORMATS
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.lists import LISTS_HEAD as TAGS
from assay.labels.readers.lists import LabelledList, NamePattern, find_by_name, find_in_lists, find_in_rows
from assay.labels.readers.shards import find_in_shards
from assay.labels.readers.table import find_in_table, raw_labels
from assay.labels.readers.table_files import read_rows
from assay.labels.samples import Samples
from assay.labels.shards import absolute_addresses, is_address
from assay.labels.space import Kind, LabelSpace
from assay.labels.spelling import Merge, Spelling
from assay.labels.split import SplitSettings, split
from assay.messages import printable
from assay.settings import BlackAndWhite, OneOrMore, Settings

HELD_BACK = ("val_rows", "val_labels", "test_rows", "test_labels")

ALLOWED: dict[str, tuple[str, ...]] = {
    "folder": ("classes",),
    "table": ("root", "image", "heads", "group", "weight", "annotator", "delimiter", "split.column", "split.values"),
    "lists": ("root", "images", "head"),
    "names": ("root",),
    "rows": ("root", "labels", "class_names", *HELD_BACK),
    "shards": ("image", "heads", "group", "weight", "annotator", "labels", "index", "split.column", "split.values"),
    **{form: one.options for form, one in FORMATS.items()},
}
"""Settings beside the split that each form allows."""

REQUIRED = {"names": "root", "rows": "labels"}
"""The setting that a form requires."""

PATHS = (
    "folder", "table", "lists", "root", "rows", "labels", "class_names", *HELD_BACK, *FORMATS, "unpack", "corrections",
    "index",
)  # fmt: skip


class DataSettings(Settings):
    """The images and their labels: a folder, a table, lists, file names, integers, or a file of another program."""

    folder: Path | None = Field(default=None, description="A folder with a folder of images for each class.")
    classes: tuple[str, ...] = Field(
        default=(),
        description="All classes of `folder`, where it has no folder for some or for any of them: images in other "
        "folders have no label. Without a labelled image the labels are those of `corrections`.",
    )
    table: Path | None = Field(
        default=None, description="A CSV, TSV, Parquet, JSON Lines or Excel file that names images and labels."
    )
    lists: Path | None = Field(
        default=None,
        description="A folder with a .txt file for each class, which names an image that shows it a line.",
    )
    names: str | None = Field(
        default=None,
        description="How file names tell labels, such as {class}_{n}.jpg or {breed}/{colour}_{n}.jpg: n is a number, "
        "id and _ are anything, any other name is a head (class is the head `label`).",
    )
    rows: Path | None = Field(default=None, description="A list of images, one a line, that go with `labels`.")
    shards: OneOrMore = Field(
        default=(),
        description="Tar files (key.jpg beside key.json or key.cls) or Parquet files that hold the images: a path, an "
        "address such as s3://..., a pattern, a range {000..127}, a folder, or a list of these.",
    )
    label_studio: Path | None = Field(default=None, description="An export of Label Studio: JSON, JSON-MIN or CSV.")
    datumaro: Path | None = Field(default=None, description="Datumaro's JSON, as CVAT exports it; or its folder.")
    imagenet: Path | None = Field(default=None, description="ImageNet's lists beside synsets.txt, as of CVAT.")
    coco: Path | None = Field(default=None, description="COCO JSON, or a folder of a file for each split.")
    roboflow: Path | None = Field(default=None, description="A _classes.csv of Roboflow, or a folder of several.")
    imagefolder: Path | None = Field(default=None, description="A folder with metadata.csv, .jsonl or .parquet.")
    datasets: Path | None = Field(default=None, description="A folder that Hugging Face `datasets` saved.")
    fiftyone: Path | None = Field(default=None, description="A folder with labels.json and data/, of FiftyOne.")
    kind: Kind | dict[str, Kind] | None = Field(
        default=None,
        description="Whether an image of another program's file has one class or any number, of all heads or by head; "
        "default: any number where an image has several.",
    )
    crop: Literal["boxes"] | None = Field(default=None, description="Each box of `coco` is an image of its own.")
    unpack: Path | None = Field(
        default=None,
        description="The folder that images out of `datasets`, and boxes, are written to; default: in .assay/ beside "
        "the data.",
    )
    root: Path | None = Field(
        default=None,
        description="The folder that names of images start from; default: the folder of the table or list, or the "
        "one that holds `lists`.",
    )
    index: Path | None = Field(
        default=None,
        description="The folder that the index of `shards` is kept in; default: in .assay/ beside them, or in the "
        "working folder where they are elsewhere.",
    )
    image: str | None = Field(
        default=None,
        description="The column of a table that names the images; of Parquet `shards`, the one that holds them.",
    )
    heads: dict[str, HeadColumns] = Field(
        default_factory=dict, description="The label columns of a table; default: the one that plainly holds labels."
    )
    group: str | None = Field(default=None, description="The column whose equal cells stay on one side of the split.")
    weight: str | None = Field(default=None, description="The column of weights, 0 or more.")
    annotator: str | None = Field(
        default=None,
        description="The column of annotators: of several rows of an image the most frequent label is taken, and a "
        "tie is unknown.",
    )
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="What parts the cells of a text table."
    )
    images: str | None = Field(
        default=None,
        description="Where the image of a line of `lists` is, such as images/im{id}.jpg; default: a path.",
    )
    head: str | None = Field(
        default=None,
        min_length=1,
        description="The name of the head of `lists` (default: tags) or of another program's file (default: label).",
    )
    labels: Path | None = Field(
        default=None,
        description="Integers row for row with `rows`, a column a head, -1 for unknown. `rows`, `labels` and "
        "`class_names` start from where the plan is, or, where there is no such file, from `root`. Of `shards`, a "
        "table that names their images; default: the labels within them.",
    )
    class_names: Path | None = Field(
        default=None,
        description="Lines `name type`: type t goes to the t-th head, where an integer is the place of a class.",
    )
    val_rows: Path | None = Field(default=None, description="The images for validation, which go with `val_labels`.")
    val_labels: Path | None = Field(default=None, description="Integers row for row with `val_rows`.")
    test_rows: Path | None = Field(default=None, description="The images for the test, which go with `test_labels`.")
    test_labels: Path | None = Field(default=None, description="Integers row for row with `test_rows`.")
    corrections: Path | None = Field(
        default=None,
        description="A table of labels that a person settled, with the columns image, head, class, label.",
    )
    audit: AuditOption | None = Field(
        default=None,
        description="The folder of an audit of these images, or a mapping: `{folder: audits/photos, drop: [dark]}`.",
    )
    merge: Merge = Field(
        default=(),
        description="Class names that are one class: nfkc (the same in Unicode's form NFKC, without invisible "
        "characters and needless blanks), case (all in lower case), numbers (1.0 and 01 are 1), a list of these, or "
        "a mapping {name: new name}.",
    )
    missing: tuple[str, ...] = Field(
        default=(), description="Class names or cells that stand for a label that is not known, such as ?."
    )
    levels: BlackAndWhite | None = Field(
        default=None,
        description="The values that become black and white, of images of more than 8 bits; default: measured.",
    )
    split: SplitSettings = SplitSettings()

    @field_validator(*PATHS, mode="before")
    @classmethod
    def _require_no_empty_path(cls, value: object) -> object:
        if value == "":  # which would be the folder of the plan
            raise ValueError("the path is empty; name one, or . for the folder of the plan")
        return value

    @property
    def spelling(self) -> Spelling:
        return Spelling(self.merge, self.missing)

    def require_consistent(self) -> None:
        given = [form for form in FORMS if getattr(self, form) not in (None, ())]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(FORMS)} (given: {', '.join(given) or 'none'})")
        form = given[0]
        optional = dict.fromkeys(name for names in ALLOWED.values() for name in names)
        unused = [name for name in optional if name not in ALLOWED[form] and attrgetter(name)(self)]
        if unused:
            raise ValueError(f"{', '.join(unused)}: means nothing beside `{form}`")
        if form in REQUIRED and getattr(self, REQUIRED[form]) is None:
            raise ValueError(f"`{form}` needs `{REQUIRED[form]}` beside it")
        for one, other in permutations(HELD_BACK, 2):
            if one[:3] == other[:3] and getattr(self, one) is not None and getattr(self, other) is None:
                raise ValueError(f"`{one}` needs `{other}` beside it: they go together row for row")
        if self.names is not None and not NamePattern.of(self.names).heads:
            raise ValueError(f"names: {self.names!r} labels nothing; name a head in it, such as {{class}}")
        if self.images is not None and (NamePattern.of(self.images).placeholders != ("id",) or "{_}" in self.images):
            raise ValueError(f"images: {self.images!r} must hold {{id}}, and no other placeholder")


def resolve_paths(data: DataSettings, *, base: Path) -> dict[str, Path]:
    """Return the given paths as absolute ones; relative ones start from `base`."""
    given = {name: getattr(data, name) for name in PATHS if getattr(data, name) is not None}
    paths = {name: _absolute(base, path) for name, path in given.items()}
    for name in ("rows", "labels", "class_names", *HELD_BACK):
        if name in given and "root" in given and not paths[name].exists():
            below = _absolute(paths["root"], given[name])
            paths[name] = below if below.exists() else paths[name]
    return paths


def _raw(data: DataSettings, *, base: Path) -> RawLabels:
    """Return what the reader of the data's form finds; relative paths start from `base`."""
    data = data.model_copy(update={"shards": absolute_addresses(data.shards, base)})
    return FORMS[_form(data)](data, resolve_paths(data, base=base))


def _classes_settled(paths: Mapping[str, Path]) -> list[str]:
    """Return the classes that a person gave images which lie in no class folder; none where no image does."""
    settled = paths.get("corrections")
    if settled is None or not is_ledger(settled) or not has_loose_images(paths["folder"]):
        return []
    names = {edit.new for edit, _ in settled_edits(settled).values() if edit.new is not None}
    return sorted(names, key=natural_key)


def _columns(data: DataSettings) -> Columns:
    return Columns(
        data.image, data.heads, data.split.column, data.group, data.weight, data.annotator, data.split.values
    )


def _rows(data: DataSettings, paths: Mapping[str, Path]) -> RawLabels:
    held_back = [
        LabelledList(paths[f"{part}_rows"], paths[f"{part}_labels"], part)
        for part in ("val", "test")
        if f"{part}_rows" in paths
    ]
    lists = [LabelledList(paths["rows"], paths["labels"]), *held_back]
    return find_in_rows(lists, class_names=paths.get("class_names"), root=paths.get("root"))


def _export(form: str, data: DataSettings, paths: Mapping[str, Path]) -> RawLabels:
    """Return the images of a file of another program, with a note that it was read as such."""
    options = Options(paths.get("root"), data.head, data.kind, data.heads, data.crop, paths.get("unpack"))
    export = FORMATS[form].read(paths[form], options)
    raw = raw_labels(export.rows, root=export.root, columns=export.columns, spelling=data.spelling)
    note = f"Read as {FORMATS[form].title}: `{form}` under `data`."
    return replace(raw, left_out=(*export.left_out, *raw.left_out), notes=(note, *raw.notes))


FORMS: dict[str, Callable[[DataSettings, Mapping[str, Path]], RawLabels]] = {
    "folder": lambda data, paths: find_in_folder(paths["folder"], classes=data.classes or _classes_settled(paths)),
    "table": lambda data, paths: find_in_table(
        paths["table"],
        root=paths.get("root"),
        columns=_columns(data),
        delimiter=data.delimiter,
        spelling=data.spelling,
    ),
    "lists": lambda data, paths: find_in_lists(
        paths["lists"], images=data.images, root=paths.get("root"), head=data.head or TAGS
    ),
    "names": lambda data, paths: find_by_name(paths["root"], data.names or ""),
    "rows": _rows,
    "shards": lambda data, paths: find_in_shards(
        data.shards,
        index=paths.get("index"),
        columns=_columns(data),
        table=paths.get("labels"),
        spelling=data.spelling,
    ),
    **{form: partial(_export, form) for form in FORMATS},
}
"""The reader of each form, by the key that a plan names it with; it takes the absolute paths too."""


def read(data: DataSettings, *, base: Path) -> Samples:
    """Return samples to train on, with their split; relative paths start from `base`.

    Contents are hashed, nothing is decoded. Raises DataError for data that cannot be trained on.
    """
    samples = read_whole(data, base=base)
    for head, _, codes in samples.space.each(samples.codes()):
        named = getattr(data, _form(data))
        source = printable(" ".join(named) if isinstance(named, tuple) else str(named))
        require_learnable(source, head, codes, notes=samples.notes, in_table=data.table is not None)
    if data.audit is not None:
        samples = with_audit(samples, data.audit, audit_folder(data.audit, base=base))
    return _split(samples, data.split)


def _split(samples: Samples, settings: SplitSettings) -> Samples:
    """Return the samples split as the settings say, with a note where validation is less than a usual share."""
    share = settings.share(len(samples))
    drawn = split(samples, val=share, test=settings.test, seed=settings.seed)
    if settings.val is not None or share == settings.share(1) or (samples.table["split"] == "val").any():
        return drawn
    count = int((drawn.table["split"] == "val").sum())
    note = (
        f"Validation is {count:,} images drawn at random, not a fifth of so many. Another share: `split: {{val: 0.2}}`."
    )
    return replace(drawn, notes=(*drawn.notes, note))


def audit_folder(audit: AuditSettings, *, base: Path) -> Path:
    """Return the absolute path of the audit that the data names."""
    return _absolute(base, audit.folder)


def read_to_label(data: DataSettings, *, base: Path) -> Samples:
    """Return samples to be labelled by a person, without corrections: split as for training where any has a label,
    else all in training. Raises DataError where there is no image.
    """
    samples = build_samples(_raw(data, base=base), data.spelling, unlabelled=True)
    if data.audit is not None:
        samples = with_audit(samples, data.audit, audit_folder(data.audit, base=base))
    if samples.labelled().any():
        return _split(samples, data.split)
    return replace(samples, table=samples.table.with_columns(split=pl.lit("train")))


def read_to_look_at(data: DataSettings, *, base: Path) -> Samples:
    """Return samples with the corrections of the data and the split that came with it, labelled or not.

    Raises DataError where there is no image.
    """
    paths = resolve_paths(data, base=base)
    if "folder" in paths and not data.classes and "corrections" not in paths and is_unlabelled(paths["folder"]):
        raw = find_unlabelled(paths["folder"])
    else:
        raw = _raw(data, base=base)
    return corrected(build_samples(raw, data.spelling, unlabelled=True), paths.get("corrections"))


def read_whole(data: DataSettings, *, base: Path) -> Samples:
    """Return samples to score a model on: not split, with any number of classes.

    Where none of a folder's images has a label, the labels are those of the corrections.
    """
    paths = resolve_paths(data, base=base)
    raw = _raw(data, base=base)
    if data.folder is None or "corrections" not in paths or not raw.declared:
        return build_samples(raw, data.spelling)
    samples = build_samples(raw, data.spelling, unlabelled=True)
    labelled = samples if samples.labelled().any() else corrected(samples, paths["corrections"])
    if not labelled.labelled().any():
        where = printable(paths["corrections"])
        raise DataError(f"{where}: settles no label, and the folder gives none. Settle some with `assay review`.")
    return labelled


def with_image_column(data: DataSettings, image: str | None) -> DataSettings:
    """Return the data with this image column, where one is given. Raises DataError where they are no table."""
    if image is None:
        return data
    if data.table is None:
        raise DataError(f"--image {image}: names a column of a table, and these images are in none. Leave it out.")
    return data.model_copy(update={"image": image})


def like_training(data: DataSettings, trained: DataSettings, space: LabelSpace, *, base: Path) -> DataSettings:
    """Return data to score a model on, read as those that it was trained on where they do not say how themselves.

    That is how class names are merged, which are missing, and of a table that has those columns, which hold labels.
    """
    update: dict[str, object] = {}
    if not data.spelling:
        update |= {"merge": trained.merge, "missing": trained.missing}
    if data.table is not None and not data.heads:
        names = read_rows(resolve_paths(data, base=base)["table"], delimiter=data.delimiter).names
        named = {head.name: HeadColumns(column=head.name) for head in space if head.multiclass}
        flags = {head.name: HeadColumns(columns=head.classes) for head in space if not head.multiclass}
        for heads in (trained.heads, named | flags):
            if heads and all(set(head.sources) <= names for head in heads.values()):
                update["heads"] = heads
                break
    return data.model_copy(update=update)


def _form(data: DataSettings) -> str:
    return next(form for form in FORMS if getattr(data, form) not in (None, ()))


def _absolute(base: Path, path: Path | None) -> Path:
    if path is not None and is_address(str(path)):
        return path
    return Path(os.path.abspath(base / (path or "")))
