"""Lists of suspect labels: the table in a run, its summary, and its lines on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from assay.arrays import Doubles
from assay.files import whole
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.metrics.intervals import Metric, wilson
from assay.progress import Progress
from assay.repair.confident_learning import HeadSuspects
from assay.repair.suspects import actions_done, restrict

Split = Literal["train", "val"]


@dataclass(frozen=True)
class SuspectRows:
    """Suspects under one head in one part of the split, and the edits that deal with them.

    `samples` are those that were judged. `table` holds the suspects left by `max_share` and by a person's decisions;
    `agreement` is the share of the judged labels that are the judge's prediction. Nothing is done about labels where
    the judge does not beat chance.
    """

    split: Split
    samples: Samples
    suspects: HeadSuspects
    table: pl.DataFrame
    edits: Sequence[Edit] = ()
    agreement: Metric | None = None
    beats_chance: bool = True
    action: str = "flag"  # what is done, by name
    gain: Metric | None = None  # of held-out labels predicted, by models that learn from repaired ones
    better: bool = True  # or that is not asked
    likely_counts: Doubles | None = None  # (K, K) as `counts`, by likelihood; of a head whose classes were all judged

    @property
    def images(self) -> list[str]:
        """The image of each line of the table."""
        ids = self.samples.ids
        return [ids[row] for row in self.table["row"].to_list()]


LISTED_CONFUSIONS = 3
NUMBERS = ("wrong", "quality", "confidence")
SUSPECT_COLUMNS = ("image", "head", "class", "given", "suggested", "label", *NUMBERS, "split", "done")


def write_suspects(path: Path, by_head: Sequence[SuspectRows]) -> None:
    """Write the suspects of all heads as CSV, the most suspicious first.

    `split` is the part that the image is in. `image`, `head` and `class` (of tags) name a label as a person's
    corrections do, and `label` is blank, for the person to fill in. `wrong` is the probability that the given label is
    wrong, `quality` that of the given label and `confidence` that of the suggested one by the judge, `done` what was
    done.
    """
    tables = [
        pl.DataFrame(
            {
                "image": of_head.images,
                "head": [of_head.suspects.head.name] * of_head.table.height,
                "class": of_head.table["tag"],
                **{name: of_head.table[name] for name in ("given", "suggested")},
                "label": [None] * of_head.table.height,
                **{name: of_head.table[name] for name in NUMBERS},
                "split": [of_head.split] * of_head.table.height,
                "done": actions_done(
                    of_head.table,
                    of_head.suspects.head,
                    of_head.samples.ids,
                    of_head.edits,
                    otherwise="softened" if of_head.action == "soft" else "flagged",
                ),
            },
            schema_overrides=dict.fromkeys(("image", "split", "head", "class", "label", "done"), pl.String),
        )
        for of_head in by_head
    ]
    empty = pl.DataFrame(schema=dict.fromkeys(SUSPECT_COLUMNS, pl.String))
    table = pl.concat(tables).sort("quality", maintain_order=True) if tables else empty
    with whole(path) as beside:
        table.write_csv(beside, float_precision=4)


def write_probabilities(path: Path, by_head: Sequence[SuspectRows]) -> None:
    """Write of every known label how probably it is wrong: image, head, class (of tags), given, quality, wrong, split.

    `quality` is the probability of the given label by the judge.
    """
    tables = [table for rows in by_head for table in _probabilities(rows)]
    with whole(path) as beside:
        pl.concat(tables).write_parquet(beside)


def _probabilities(rows: SuspectRows) -> Iterator[pl.DataFrame]:
    suspects, ids = rows.suspects, rows.samples.ids
    head = suspects.head
    (codes,) = restrict(rows.samples, [head.name]).codes()
    of_cells = zip(*(head.columns(one).T for one in (codes, suspects.quality, suspects.wrong)), strict=True)
    for tag, (given, quality, wrong) in zip(head.cell_names, of_cells, strict=True):
        known = np.flatnonzero(given >= 0)
        labels = [head.value_names[value] for value in given[known].tolist()]
        numbers = {"quality": quality[known].astype(np.float64), "wrong": wrong[known].astype(np.float64)}
        table = pl.DataFrame({"image": [ids[row] for row in known.tolist()], "given": labels, **numbers})
        texts = {"head": head.name, "class": tag, "split": rows.split}
        yield table.cast({"image": pl.String, "given": pl.String}).with_columns(
            **{name: pl.lit(text, pl.String) for name, text in texts.items()}
        )


def suspect_details(by_head: Sequence[SuspectRows], notes: Sequence[str]) -> dict[str, object]:
    """Return counts, noise rates, confident joint and noise matrix of each head, for done.json.

    Of validation labels there are the numbers judged and suspected, and how many the judge agrees with.
    """
    train, held = ([one for one in by_head if one.split == split] for split in ("train", "val"))
    heads = {
        of_head.suspects.head.name: {
            "n": of_head.suspects.n,
            "suspects": of_head.table.height,
            "edits": len(of_head.edits),
            "agreement": None if of_head.agreement is None else of_head.agreement.to_json(),
            "beats_chance": of_head.beats_chance,
            "gain": None if of_head.gain is None else of_head.gain.to_json(),
            "action": of_head.action,
            "noise_rate": of_head.suspects.noise_rate,
            "noise_rates": of_head.suspects.noise_rates,
            "counts": of_head.suspects.counts.tolist(),
            "joint": np.round(of_head.suspects.joint, 6).tolist(),
            "likely_counts": None if of_head.likely_counts is None else np.round(of_head.likely_counts, 3).tolist(),
            "noise_matrix": np.round(of_head.suspects.noise_matrix, 6).tolist(),
            "unjudged": list(of_head.suspects.unjudged),
        }
        for of_head in train
    }
    validation = {
        one.suspects.head.name: {
            "n": one.suspects.n,
            "suspects": one.table.height,
            "agreement": None if one.agreement is None else one.agreement.to_json(),
        }
        for one in held
    }
    return {"heads": heads, "validation": validation, "notes": list(notes)}


def suspect_lines(of_head: SuspectRows, progress: Progress) -> None:
    """Print how many labels of a head are suspect, and the commonest confusions."""
    suspects, name, count = of_head.suspects, of_head.suspects.head.name, of_head.table.height
    rate, verb = suspects.noise_rate, "is" if count == 1 else "are"
    if of_head.split == "val":
        if rate is not None:
            tail = "; no step changes these, a person may" if count else ""
            progress.line(f"  {name}: {count:,} of {suspects.n:,} validation labels {verb} suspect{tail}")
        return
    if rate is None:
        progress.line(f"  {name}: no label could be judged")
        return
    changed = f", {len(of_head.edits):,} edits" if of_head.edits else ""
    agreement = "" if of_head.agreement is None else f"; the judge agrees with {of_head.agreement.percent()}"
    estimate = Metric(rate, suspects.n, *wilson(rate * suspects.n, suspects.n)).percent()
    wrong = f"; estimated to be wrong: {estimate}" if of_head.beats_chance else ""
    progress.line(f"  {name}: {count:,} of {suspects.n:,} training labels {verb} suspect{changed}{wrong}{agreement}")
    if not of_head.beats_chance:
        progress.line("    the judge is no better than chance here, so that nothing is done about them")
        return
    if not of_head.better:
        progress.line(f"    nothing is done about them: {evidence(of_head.gain, REPAIRED)}")
    elif of_head.action != "flag" and of_head.gain is not None:
        joint = ": " if of_head.gain.beyond_chance else ", as asked, though "
        progress.line(f"    {DONE[of_head.action]}{joint}{evidence(of_head.gain, REPAIRED)}")
    if 2 * len(of_head.edits) > suspects.n and not (of_head.gain is not None and of_head.gain.beyond_chance):
        progress.line(
            f"    note: that is {len(of_head.edits) / suspects.n:.0%} of the labels, and where so many are wrong a "
            "judge takes right ones for wrong: set only_if_better: true, or action: flag and look at the list"
        )
    confusions = _commonest_confusions(suspects)
    if confusions:
        progress.line(f"    mostly {', '.join(confusions)}")
    if suspects.unjudged:
        progress.line(
            f"    not judged, for too few labels or answers that are all alike: {', '.join(suspects.unjudged)}"
        )


DONE: dict[str, str] = {
    "drop": "fits learn without them",
    "unset": "fits learn without them",
    "relabel": "fits learn from what is suggested, where it is sure enough",
    "soft": "fits learn from labels and the judge's answers, mixed",
    "weight": "they count less",
}
"""Action -> what it means, before the evidence for it."""


REPAIRED = "models of labels repaired by the judge"


def evidence(gain: Metric | None, models: str) -> str:
    """Return what models after a repair gain on labels held out from them."""
    if gain is None or gain.low is None or gain.high is None:
        return "no labels could be held out to tell whether that helps"
    points = f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}], n = {gain.n:,}"
    how = "more" if gain.low > 0 else "fewer" if gain.high < 0 else "no more, beyond chance,"
    return f"{models} predict {how} of the labels held out from them ({points})"


def _commonest_confusions(suspects: HeadSuspects) -> list[str]:
    """Return the commonest confusions as text, with their share of the labels judged."""
    head, counts = suspects.head, suspects.counts
    if head.multiclass:
        wrong = counts - np.diag(np.diagonal(counts))
        names = [f"{given} for {true}" for given in head.classes for true in head.classes]
    else:
        wrong = np.stack([counts[:, 0, 1], counts[:, 1, 0]], axis=1)
        names = [f"{tag} {how}" for tag in head.classes for how in ("missing", "too much")]
    shares = wrong.ravel() / suspects.n
    order = np.argsort(-shares, kind="stable")[:LISTED_CONFUSIONS]
    return [f"{names[cell]} ({shares[cell]:.1%})" for cell in order.tolist() if shares[cell] > 0]
