"""Findings about single images, about what gives labels away, and about classes and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from assay.experiments.findings import Finding, Kind, ShortcutJson, drop_edits, worst_first
from assay.experiments.label_findings import EXAMPLES
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.repair.class_names import similar_names, small_classes
from assay.repair.image_quality import Flagged, Quality
from assay.repair.shortcuts import CUE_TEXTS, CueScore

UNUSABLE = ("dark", "low_information", "blurred")
"""Kinds whose images are proposed to be left out; grey or oddly shaped ones are sound, and so is a subject on white."""


def quality_findings(samples: Samples, flagged: Mapping[Quality, Flagged]) -> dict[Kind, list[Finding]]:
    """Return a finding for each image of low quality, by kind."""
    ids = samples.ids
    findings: dict[Kind, list[Finding]] = {}
    for kind, images in flagged.items():
        rows = images.rows.tolist()
        reasons = dict(zip(rows, images.texts, strict=True)) if kind in UNUSABLE else {}
        edits = drop_edits(samples, reasons, kind=kind)
        findings[kind] = [
            Finding(kind=kind, score=score, images=(ids[row],), text=text, edits=edits.get(row, ()))
            for row, score, text in zip(rows, images.scores.tolist(), images.texts, strict=True)
        ]
    return findings


def shortcut_findings(samples: Samples, scores: Sequence[CueScore]) -> list[Finding]:
    """Return a finding for each class that a cue gives away."""
    ids = samples.ids
    findings = [
        Finding(
            kind="shortcuts",
            score=2 * one.auc.value - 1,
            images=tuple(ids[row] for row in one.rows.tolist()),
            text=one.text,
            head=one.head,
        )
        for one in scores
        if one.named
    ]
    return worst_first(findings)


def shortcut_rows(scores: Sequence[CueScore]) -> list[ShortcutJson]:
    """Return what cues give away, and for each other cue the class of each head that it tells best."""
    best: dict[tuple[str, str], CueScore] = {}
    for one in scores:
        best.setdefault((one.cue, one.head), one)  # those that give a class away come first
    return [
        {
            "cue": CUE_TEXTS[one.cue],
            "head": one.head,
            "label": one.label,
            "value": one.auc.value,
            "low": one.auc.low or 0.0,
            "high": one.auc.high or 0.0,
            "n": one.auc.n,
            "control": one.control,
            "named": one.named,
        }
        for one in scores
        if one.named or best[one.cue, one.head] is one
    ]


def class_findings(samples: Samples) -> dict[Kind, list[Finding]]:
    """Return classes with few images, and names that may be one class."""
    small, alike = [], []
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        small += [
            Finding(
                kind="small_classes", score=1 / (1 + one.images), images=_examples(samples, head, codes, one.label),
                text=one.text, head=head.name,
            )
            for one in small_classes(head, codes)
        ]  # fmt: skip
        for names in similar_names(head.classes):
            each = [_examples(samples, head, codes, name)[: EXAMPLES // 2] for name in names.names]
            text = f"{names.text}. One class: `merge: {names.merge}` under `data`"
            alike.append(
                Finding(kind="similar_names", score=names.score, images=tuple(chain(*each)), text=text, head=head.name)
            )
    return {"small_classes": worst_first(small), "similar_names": worst_first(alike)}


def _examples(samples: Samples, head: Head, codes: Codes, name: str) -> tuple[str, ...]:
    """Return some images of a class."""
    rows = head.present(codes)[:, head.index[name]].nonzero()[0][:EXAMPLES]
    return tuple(samples.take(rows).ids)
