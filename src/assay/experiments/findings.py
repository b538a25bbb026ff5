"""What an audit finds in a data set, and the folder that holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from assay.errors import RunError
from assay.files import write_json
from assay.labels.audit_folder import AUDIT, EDITS, GROUPS, SAMPLES, DropKind, audit_step, write_edits, write_groups
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.messages import printable
from assay.repair.expectation import Curve, Point

Kind = (
    DropKind
    | Literal[
        "bright",
        "odd_aspect",
        "odd_size",
        "greyscale",
        "outliers",
        "small_classes",
        "overlapping_classes",
        "similar_names",
        "shortcuts",
    ]
)


class KindText(NamedTuple):
    """A kind of finding in words: its title, and what it means."""

    title: str
    meaning: str


KINDS: dict[Kind, KindText] = {
    "exact_duplicates": KindText("Exact duplicates", "the same bytes under several names"),
    "near_duplicates": KindText("Near duplicates", "the same image, resized, cropped, recompressed or altered"),
    "conflicting_labels": KindText("Conflicting labels", "copies of an image with different labels"),
    "leaks": KindText("Leaks", "copies of an image on both sides of the given split"),
    "dark": KindText("Dark", "nearly black images"),
    "bright": KindText("Bright", "nearly white images"),
    "blurred": KindText("Blurred", "images without sharp edges"),
    "low_information": KindText("Low information", "images with hardly any content"),
    "odd_aspect": KindText("Odd aspect ratio", "images much wider or taller than the others"),
    "odd_size": KindText("Odd size", "images much smaller or larger than the others"),
    "greyscale": KindText("Greyscale", "images without colour among images in colour"),
    "outliers": KindText("Outliers", "images unlike all others, by the features of a pretrained network"),
    "suspects": KindText("Suspect labels", "labels that are probably wrong, by models not trained on them"),
    "small_classes": KindText("Small classes", "classes with few images"),
    "overlapping_classes": KindText("Overlapping classes", "pairs of classes taken for each other"),
    "similar_names": KindText("Similar names", "class names that are easily confused, or are one name"),
    "shortcuts": KindText("Shortcuts", "properties besides the subject that give the label away"),
}
"""Every kind of finding, in the order of a report."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found: how bad it is (higher is worse within its kind), the images it concerns, and what it is.

    `images` are ids, the most telling first; those of a kind about classes are examples. `edits` are proposals, which
    nothing applies unasked. Images of findings of one `group` are to stay on one side of a split. `head` is that of the
    labels or `classes` it is about.
    """

    kind: Kind
    score: float
    images: tuple[str, ...]
    text: str
    edits: tuple[Edit, ...] = ()
    group: str | None = None
    head: str | None = None
    classes: tuple[str, ...] = ()


class ShortcutJson(TypedDict):
    """How surely a cue alone tells a class from the others: the AUC out of fold, and that of a control of its kind.

    `named`: the cue gives the class away, and there is a finding.
    """

    cue: str
    head: str
    label: str
    value: float
    low: float
    high: float
    n: int
    control: float | None
    named: bool


class PointJson(TypedDict):
    """A metric by the number of labelled images, with its 95 % interval."""

    images: int
    value: float
    low: float
    high: float


class CurveJson(TypedDict):
    """The learning curve of a head, and what twice the labels are expected to bring; None where that is not known."""

    head: str
    metric: str
    points: list[PointJson]
    twice: PointJson | None


class ExpectationJson(TypedDict):
    """What is expected of training."""

    heads: list[CurveJson]


class EditJson(TypedDict):
    """An edit as JSON: the columns of a ledger, without date and origin."""

    id: str
    head: str
    tag: str | None
    action: str
    old: str | None
    new: str | None
    reason: str
    score: float | None


class FindingJson(TypedDict):
    """A finding as JSON."""

    score: float
    images: list[str]
    text: str
    edits: list[EditJson]
    group: str | None
    head: str | None
    classes: list[str]


Findings = Mapping[Kind, Sequence[Finding]]
"""Findings by kind, the worst first."""


@dataclass(frozen=True)
class Audit:
    """What was found in a data set.

    `findings` holds every kind that was looked for, an empty list where nothing was found. `expectation` and
    `shortcuts` are as audit.json has them, None where they could not be estimated; `notes` say why. `seconds` are by
    stage.
    """

    name: str
    samples: Samples
    findings: Findings
    expectation: ExpectationJson | None = None
    shortcuts: Sequence[ShortcutJson] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] | None = None

    def counts(self) -> dict[Kind, int]:
        """Return the number of findings of each kind that was looked for, in the order of `KINDS`."""
        return {kind: len(self.findings[kind]) for kind in KINDS if kind in self.findings}

    def edits(self) -> list[Edit]:
        """Return all proposals, each cell once under each kind."""
        proposed = {edit.identity: edit for kind in KINDS for one in self.findings.get(kind, ()) for edit in one.edits}
        return list(proposed.values())

    def groups(self) -> dict[str, str]:
        """Return the group of each image that belongs to one: image -> group."""
        return {
            image: one.group
            for kind in KINDS
            for one in self.findings.get(kind, ())
            if one.group is not None
            for image in one.images
        }

    def to_json(self) -> dict[str, object]:
        """Return the content of audit.json: all but the table of images."""
        return {
            "name": self.name,
            "images": len(self.samples),
            "data": self.samples.fingerprint(),
            "counts": self.counts(),
            "findings": {kind: [finding_json(one) for one in self.findings[kind]] for kind in self.counts()},
            "expectation": self.expectation,
            "shortcuts": list(self.shortcuts),
            "notes": list(self.notes),
            "seconds": dict(self.seconds or {}),
        }

    def write(self, folder: Path) -> None:
        """Write samples, groups and edits, then audit.json, which makes the folder an audit."""
        self.samples.write(folder / SAMPLES)
        write_groups(folder / GROUPS, self.groups())
        write_edits(folder / EDITS, self.edits())
        write_json(folder / AUDIT, self.to_json())

    @staticmethod
    def read(folder: Path) -> Audit:
        """Read what `write` wrote. Raises RunError where the folder holds no audit, or one that was changed by hand."""
        path = folder / AUDIT
        if not path.is_file():
            raise RunError(f"{printable(folder)}: is no audit (it has no {AUDIT}). Make one with `assay audit DATA`.")
        samples = Samples.read(folder / SAMPLES)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            findings = {kind: [finding_of(kind, one) for one in record["findings"][kind]] for kind in record["counts"]}
            audit = Audit(
                record["name"],
                samples,
                findings,
                record["expectation"],
                record["shortcuts"],
                tuple(record["notes"]),
                record["seconds"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{printable(path)}: is no list of findings that can be read ({error!r}). Repeat `assay audit`."
            ) from error
        return audit


def expectation_json(curves: Sequence[Curve]) -> ExpectationJson:
    """Return learning curves as audit.json has them."""
    heads: list[CurveJson] = [
        {
            "head": curve.head,
            "metric": curve.metric,
            "points": [point_json(point) for point in curve.points],
            "twice": None if curve.twice is None else point_json(curve.twice),
        }
        for curve in curves
    ]
    return {"heads": heads}


def point_json(point: Point) -> PointJson:
    """Return a point of a learning curve as audit.json has it."""
    value, low, high = point.metric.value, point.metric.low, point.metric.high
    return {
        "images": point.images,
        "value": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
    }


def finding_json(finding: Finding) -> FindingJson:
    """Return a finding as audit.json has it; its kind is the key above."""
    edits: list[EditJson] = [
        {
            "id": edit.id, "head": edit.head, "tag": edit.tag, "action": edit.action, "old": edit.old, "new": edit.new,
            "reason": edit.reason, "score": edit.score,
        }
        for edit in finding.edits
    ]  # fmt: skip
    return {
        "score": finding.score,
        "images": list(finding.images),
        "text": finding.text,
        "edits": edits,
        "group": finding.group,
        "head": finding.head,
        "classes": list(finding.classes),
    }


def finding_of(kind: Kind, record: Mapping[str, Any]) -> Finding:
    """Return the finding that `finding_json` wrote. Raises KeyError or TypeError for another record."""
    return Finding(
        kind=kind,
        score=float(record["score"]),
        images=tuple(record["images"]),
        text=record["text"],
        edits=tuple(Edit(**edit, step=audit_step(kind)) for edit in record["edits"]),
        group=record["group"],
        head=record["head"],
        classes=tuple(record["classes"]),
    )


def drop_edits(samples: Samples, reasons: Mapping[int, str], *, kind: Kind) -> dict[int, tuple[Edit, ...]]:
    """Return the edits that leave images out, by row: a drop of each known label; none of an image without labels.

    `reasons` are by row.
    """
    rows, ids = np.array(list(reasons), np.int64), samples.ids
    edits: dict[int, list[Edit]] = {row: [] for row in reasons}
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        cells = head.columns(codes[rows])
        for index, cell in np.argwhere(cells >= 0).tolist():
            row = int(rows[index])
            edits[row].append(
                Edit(
                    id=ids[row],
                    head=head.name,
                    tag=head.cell_names[cell],
                    action="drop",
                    old=head.value_names[cells[index, cell]],
                    reason=reasons[row],
                    step=audit_step(kind),
                )
            )
    return {row: tuple(of_row) for row, of_row in edits.items()}


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings by falling score; those of equal score keep their order."""
    return sorted(findings, key=lambda one: -one.score)
