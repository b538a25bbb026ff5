"""The page of an audit: a summary, then each kind of finding as a gallery, its worst cases first."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import altair as alt
from markupsafe import Markup

from assay import __version__
from assay.experiments.audit import STAGES_FOLDER
from assay.experiments.findings import KINDS, Audit, CurveJson, ExpectationJson, Finding, Kind
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.messages import SPLITS, plain
from assay.report.charts import metric_title
from assay.report.drawing import BLUE, PAPER, QUIET, Drawing, axis, base, drawing, inline
from assay.report.gallery import Gallery, Reader, captions, fetch, label_text
from assay.report.page import write_page

PAGE = "audit.html"
FIRST = 24  # cases of a kind that are open; the others unfold
CASES = 60  # of a kind on the page; all are in audit.json
IMAGES = 150  # of a kind on the page
SIDE_BY_SIDE = 8  # images of a case
CUES = 40  # of the bars
LARGE = 12  # cases of a kind whose images are large


class Section(NamedTuple):
    """A section of the page: its title, and the kinds of findings in it."""

    title: str
    kinds: tuple[Kind, ...]


SECTIONS: dict[str, Section] = {
    "copies": Section("Copies", ("leaks", "conflicting_labels", "exact_duplicates", "near_duplicates")),
    "labels": Section("Labels", ("suspects", "outliers")),
    "classes": Section("Classes", ("overlapping_classes", "small_classes", "similar_names")),
    "images": Section(
        "Images", ("dark", "bright", "blurred", "low_information", "odd_aspect", "odd_size", "greyscale")
    ),
    "cues": Section("Shortcuts", ("shortcuts",)),
}
"""The sections in their order, those first that falsify a metric."""

ADVICE: dict[Kind, str] = {
    "leaks": "Train with this audit: all copies of an image stay on one side of the split.",
    "conflicting_labels": "Settle in the review which label is right, or make the label of all copies unknown.",
    "exact_duplicates": "Train with this audit: all copies stay on one side of the split. One of them is enough.",
    "near_duplicates": "Train with this audit: all copies stay on one side of the split.",
    "suspects": "Settle them in the review, or leave them out by a step clean_labels.",
    "outliers": "Drop what is no valid image of the task.",
    "overlapping_classes": "Settle the confused images in the review. Merge the classes if people confuse them too.",
    "small_classes": "Label more of them, or merge them: no metric of so few images is certain.",
    "similar_names": "Merge the names in the plan (data.spelling) if they are one class.",
    "dark": "Drop those on which nothing can be seen.",
    "bright": "Drop those on which nothing can be seen, in the review: a subject before white is sound.",
    "blurred": "Drop those whose subject cannot be recognised.",
    "low_information": "Drop those without a subject.",
    "odd_aspect": "Check that cropping keeps the subject (data.resize).",
    "odd_size": "Replace those too small to recognise the subject.",
    "greyscale": "Check that no class has most of them: a model would learn that instead.",
    "shortcuts": "Remove the cue from the images, or collect images of each class without it.",
}
"""What to do about each kind of finding."""


def write_audit_page(audit: Audit, folder: Path, *, data: str) -> Path:
    """Write audit.html into the folder of an audit; `data` is what was audited, as the command line names it.

    Thumbnails come from what the audit decoded, else from the images themselves.
    Raises SpaceError or RunError.
    """
    gallery, chosen = Gallery(), {kind: _chosen(findings) for kind, findings in audit.findings.items()}
    labels = _labels(audit.samples, {id_ for kind in chosen.values() for one in kind for id_ in one.images})
    parts: dict[str, object] = {
        "name": audit.name,
        "version": __version__,
        "images": len(audit.samples),
        "labelled": int(audit.samples.labelled().sum()),
        "heads": audit.samples.space.heads,
        "found": sum(audit.counts().values()),
        "concerned": len(_concerned(audit)),
        "sections": [_section(id_, audit, chosen, labels, gallery) for id_ in SECTIONS],
        "cues": sorted(audit.shortcuts, key=lambda one: (not one["named"], -one["value"]))[:CUES],
        "curves": _curves(audit.expectation),
        "notes": audit.notes,
        "seconds": sum((audit.seconds or {}).values()),
        "source": shlex.quote(data),
        "folder": shlex.quote(str(folder)),
        "grouped": len(audit.groups()),
        "droppable": [
            kind
            for kind, findings in audit.findings.items()
            if any(edit.action == "drop" for one in findings for edit in one.edits)
        ],
    }
    thumbnails = fetch(gallery, Reader.of_samples(audit.samples, folder / STAGES_FOLDER))
    script = {"images": captions(gallery, thumbnails, audit.samples, _suggested(chosen.get("suspects", ())))}
    return write_page(folder / PAGE, "audit.html.jinja", thumbnails=thumbnails, script=script, parts=parts)


def _concerned(audit: Audit) -> set[str]:
    """Return the images that have a finding; those of a finding about classes are examples."""
    about = [kind for kind in audit.findings if kind not in (*SECTIONS["classes"].kinds, "shortcuts")]
    return {id_ for kind in about for one in audit.findings[kind] for id_ in one.images}


def _chosen(findings: Sequence[Finding]) -> list[Finding]:
    """Return the worst cases, as many as the page has room for."""
    ends = accumulate(min(len(one.images), SIDE_BY_SIDE) for one in findings[:CASES])
    return list(findings[: sum(end <= IMAGES for end in ends)])


def _section(
    id_: str, audit: Audit, chosen: Mapping[Kind, Sequence[Finding]], labels: Labels, gallery: Gallery
) -> dict[str, object]:
    """Return a section: its kinds with findings, and the titles of those without and of those not looked for."""
    title, kinds = SECTIONS[id_]
    titles = {kind: KINDS[kind].title.lower() for kind in kinds}
    return {
        "id": id_,
        "title": title,
        "kinds": [_kind(kind, audit, chosen[kind], labels, gallery) for kind in kinds if chosen.get(kind)],
        "clean": [titles[kind] for kind in kinds if kind in chosen and not chosen[kind]],
        "skipped": [titles[kind] for kind in kinds if kind not in chosen],
    }


def _kind(kind: Kind, audit: Audit, chosen: Sequence[Finding], labels: Labels, gallery: Gallery) -> dict[str, object]:
    """Return a kind of finding as the template shows it; the cases in those that are open and those that unfold."""
    findings = audit.findings[kind]
    cases = [_case(one, labels, gallery, large=number < LARGE) for number, one in enumerate(chosen)]
    return {
        "id": kind,
        **KINDS[kind]._asdict(),
        "advice": ADVICE[kind],
        "count": len(findings),
        "single": all(len(one.images) == 1 for one in findings),
        "cases": [cases[:FIRST], cases[FIRST:]],
        "more": len(findings) - len(cases),
    }


def _case(finding: Finding, labels: Labels, gallery: Gallery, *, large: bool) -> dict[str, object]:
    """Return a finding as the template shows it: rows of images side by side; of a suspect label both labels."""
    rows, edit = _rows(finding, labels), finding.edits[0] if finding.kind == "suspects" and finding.edits else None
    return {
        "text": finding.text,
        "score": finding.score,
        "rows": [
            [
                {"number": number, "label": label, "part": _part(finding, labels[id_])}
                for number, id_, label in zip(gallery.add(ids, large=large), ids, texts, strict=True)
            ]
            for ids, texts in rows
        ],
        "more": len(finding.images) - sum(len(ids) for ids, _ in rows),
        "head": plain(edit.head) if edit and len(labels[edit.id].by_head) > 1 else "",
        "given": _value(edit, edit.old) if edit else "",
        "suggested": _value(edit, edit.new) if edit else "",
    }


def _rows(finding: Finding, labels: Labels) -> list[tuple[list[str], list[str]]]:
    """Return rows of images with what stands below each: a row a class where classes overlap, else one row."""
    if finding.kind != "overlapping_classes" or finding.head is None:
        ids = list(finding.images[:SIDE_BY_SIDE])
        if finding.kind == "conflicting_labels" and finding.head is not None:
            return [(ids, [labels[id_].by_head[finding.head] for id_ in ids])]
        return [(ids, _differing(ids, labels))]
    rows = []
    for name in finding.classes:
        ids = [id_ for id_ in finding.images if name in labels[id_].classes[finding.head]][:SIDE_BY_SIDE]
        rows.append((ids, [plain(name)] * len(ids)))
    return rows


class Label(NamedTuple):
    """The part that an image is in, its label as text and its classes, by head."""

    part: str
    by_head: dict[str, str]
    classes: dict[str, set[str]]


Labels = Mapping[str, Label]
"""By the id of the image."""


def _labels(samples: Samples, ids: Collection[str]) -> Labels:
    """Return the labels of these images."""
    subset = samples.take([row for row, id_ in enumerate(samples.ids) if id_ in ids])
    parts = [SPLITS.get(split or "", "") for split in subset.table["split"]]
    heads = list(subset.space.each(subset.codes()))
    return {
        id_: Label(
            parts[row],
            {head.name: label_text(head, codes, row) or "no label" for head, _, codes in heads},
            {head.name: {head.classes[one] for one in head.classes_of(codes[row])} for head, _, codes in heads},
        )
        for row, id_ in enumerate(subset.ids)
    }


def _differing(ids: Sequence[str], labels: Labels) -> list[str]:
    """Return the label of each image; of several heads those labels that are not equal for all of them."""
    of_images = [labels[id_].by_head for id_ in ids]
    heads = list(of_images[0]) if of_images else []
    if len(heads) == 1:
        return [label[heads[0]] for label in of_images]
    heads = [head for head in heads if len({label[head] for label in of_images}) > 1]
    return ["; ".join(f"{plain(head)}: {label[head]}" for head in heads) for label in of_images]


def _part(finding: Finding, label: Label) -> str:
    """Return the part of an image where it matters: of leaks, and of suspect labels that no repair changes."""
    is_held = finding.kind == "suspects" and label.part != SPLITS["train"]
    return label.part if finding.kind == "leaks" or is_held else ""


def _suggested(suspects: Sequence[Finding]) -> dict[str, str]:
    """Return the label suggested for each image."""
    return {one.images[0]: f"suggested: {_value(one.edits[0], one.edits[0].new)}" for one in suspects if one.edits}


def _value(edit: Edit, value: str | None) -> str:
    """Return a label as text; of a tag whether an image has it."""
    if value is None or edit.tag is None:
        return plain(value or "unknown")
    return plain(edit.tag) if value == "1" else f"not {plain(edit.tag)}"


def _curves(expectation: ExpectationJson | None) -> list[dict[str, object]]:
    """Return the learning curve of each head: its points, and as a chart."""
    return [
        {**one, "title": metric_title(one["metric"]), "svg": _curve(one)}
        for one in (expectation or {"heads": []})["heads"]
    ]


def _curve(one: CurveJson) -> Markup:
    points = [{**point, "part": "measured"} for point in one["points"]]
    if one["twice"] is not None:
        points += [{**point, "part": "expected"} for point in (one["points"][-1], one["twice"])]
    return inline(_curve_drawing(tuple(dict.fromkeys(point["images"] for point in points))), points)


@lru_cache(maxsize=8)
def _curve_drawing(images: tuple[int, ...]) -> Drawing:
    """Draw a metric by the number of labelled images, each doubling as wide; what is only expected is dashed."""
    scale = alt.Scale(type="log", base=2, nice=False, padding=16)
    ticks = axis(title="labelled images", format=",d", values=list(images), grid=False)
    x, y = alt.X("images:Q", scale=scale, axis=ticks), alt.Y("value:Q", axis=axis(format=".0%"))
    y = y.scale(zero=False, nice=True)
    measured, expected = (
        base().transform_filter(f"datum.part == '{part}'").encode(x=x, y=y) for part in ("measured", "expected")
    )
    layers = [
        expected.mark_line(color=QUIET, strokeWidth=1.5, strokeDash=[4, 4]),
        expected.mark_rule(color=QUIET, strokeWidth=1.5, opacity=0.55).encode(y="low:Q", y2="high:Q"),
        expected.mark_point(color=QUIET, fill=PAPER, opacity=1, size=46),
        measured.mark_rule(color=BLUE, strokeWidth=1.5, opacity=0.55).encode(y="low:Q", y2="high:Q"),
        measured.mark_line(color=BLUE, strokeWidth=2),
        measured.mark_circle(color=BLUE, opacity=1, size=46),
    ]
    return drawing(alt.layer(*layers), height=200)
