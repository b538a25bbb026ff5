"""Plant faults in a data set that is right: labels hidden, labels flipped, few a class, a long tail.

    python -m benchmarks.planted DATA OUT.csv [--hide 0.3] [--flip 0.15] [--keep 10] [--tail 50] [--seed 0]

The faults go into the training part, in this order: tail, keep, hide, flip. Validation is a fifth of the data that no
fault touches and no `--seed` moves. OUT.csv is a table with a split column, and OUT.yaml the `data:` that reads it.
The training labels as they were are those of `untouched(DATA)`, image by image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import assay
from assay.labels.edits import Edit, apply, current_values
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.plan.plan import from_source
from assay.plan.yaml_lines import write

Fault = Callable[[Samples], Samples]
Rows = npt.NDArray[np.int64]
STEP = "planted"


def untouched(source: Path) -> Samples:
    """The data as it is: its own split, or a stratified fifth for validation, drawn with seed 0."""
    from assay.labels.readers.read import read

    loaded = from_source(source)
    fixed = loaded.plan.data.split.model_copy(update={"val": 0.2, "test": 0.0, "seed": 0})
    return read(loaded.plan.data.model_copy(update={"split": fixed}), base=loaded.base)


def plant(source: Path, out: Path, faults: list[Fault]) -> dict[str, Any]:
    """Write the data of `source` with these faults as a table; return the `data:` that reads it, written beside it."""
    samples = untouched(source)
    for fault in faults:
        samples = fault(samples)
    out.parent.mkdir(parents=True, exist_ok=True)
    data = assay.write_table(samples, out)
    out.with_suffix(".yaml").write_text(write({"data": data}), encoding="utf-8")
    return data


def hide(samples: Samples, *, share: float, seed: int) -> Samples:
    """Make all labels of this share of the labelled training images unknown, head by head."""
    edits: list[Edit] = []
    for place, (head, codes) in enumerate(_training(samples)):
        known = np.flatnonzero(head.known(codes))
        edits += _unset(samples, head, _some(known, share, seed=[seed, place, 1]))
    return apply(samples, edits)


def flip(samples: Samples, *, share: float, seed: int) -> Samples:
    """Make this share of the known training labels wrong.

    Multi-class heads: another class, each as likely. Multi-label ones: of each tag this share of the positives off, and
    as many negatives on, so that every tag stays as frequent as it was.
    """
    edits: list[Edit] = []
    for place, (head, codes) in enumerate(_training(samples)):
        if head.kind == "multiclass":
            rows = _some(np.flatnonzero(codes >= 0), share, seed=[seed, place, 2])
            away = np.random.default_rng([seed, place, 3]).integers(1, head.size, len(rows))
            new = [head.classes[code] for code in (codes[rows] + away) % head.size]
            edits += _set(samples, head, rows, [None] * len(rows), new)
            continue
        for tag, name in enumerate(head.classes):
            off = _some(np.flatnonzero(codes[:, tag] == 1), share, seed=[seed, place, 2, tag])
            negatives = np.flatnonzero(codes[:, tag] == 0)
            on = _drawn(negatives, min(len(off), len(negatives)), seed=[seed, place, 3, tag])
            for rows, said in ((off, "0"), (on, "1")):
                edits += _set(samples, head, rows, [name] * len(rows), [said] * len(rows))
    return apply(samples, edits)


def keep(samples: Samples, *, each: int, seed: int) -> Samples:
    """Keep the labels of `each` training images of every class; those of the others become unknown, head by head."""
    edits: list[Edit] = []
    for place, (head, codes) in enumerate(_training(samples)):
        kept = [
            _drawn(rows, min(each, len(rows)), seed=[seed, place, 4, k])
            for k, rows in enumerate(_shown(head, codes))
        ]  # fmt: skip
        rest = np.setdiff1d(np.flatnonzero(head.known(codes)), np.concatenate(kept))
        edits += _unset(samples, head, rest)
    return apply(samples, edits)


def long_tail(samples: Samples, *, ratio: float, seed: int) -> Samples:
    """Take training images away until class k of K has largest * ratio^(-k / (K - 1)) (Cui et al. 2019, section 5.1).

    Classes count in their order, of the first head, which is multi-class; a class with fewer than that keeps its own.
    """
    head, codes = _training(samples)[0]
    if head.kind != "multiclass":
        raise SystemExit(f"--tail: {head.name} is no head of classes of which an image has one.")
    shown = _shown(head, codes)
    largest = max(len(rows) for rows in shown)
    gone = []
    for k, rows in enumerate(shown):
        wanted = max(1, round(largest * ratio ** (-k / (head.size - 1))))
        gone.append(_drawn(rows, max(0, len(rows) - wanted), seed=[seed, 5, k]))
    return samples.take(np.setdiff1d(np.arange(len(samples)), np.concatenate(gone)))


def _training(samples: Samples) -> list[tuple[Head, Codes]]:
    """Each head with the codes of all images, those outside of the training part as unknown."""
    outside = (samples.table["split"] != "train").to_numpy()
    found = list(zip(samples.space, samples.codes(), strict=True))
    for _, codes in found:
        codes[outside] = -1
    return found


def _shown(head: Head, codes: Codes) -> list[Rows]:
    """The images of each class."""
    if head.kind == "multiclass":
        return [np.flatnonzero(codes == k) for k in range(head.size)]
    return [np.flatnonzero(codes[:, k] == 1) for k in range(head.size)]


def _some(rows: Rows, share: float, *, seed: list[int]) -> Rows:
    return _drawn(rows, round(share * len(rows)), seed=seed)


def _drawn(rows: Rows, count: int, *, seed: list[int]) -> Rows:
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def _set(samples: Samples, head: Head, rows: Rows, tags: list[str | None], new: list[str]) -> list[Edit]:
    ids = samples.ids
    before = current_values(samples, head, rows, tags)
    return [
        Edit(id=ids[row], head=head.name, tag=tag, action="set", old=old, new=label, step=STEP)
        for row, tag, old, label in zip(rows.tolist(), tags, before, new, strict=True)
        if old != label
    ]


def _unset(samples: Samples, head: Head, rows: Rows) -> list[Edit]:
    ids = samples.ids
    classes: tuple[str | None, ...] = (None,) if head.kind == "multiclass" else head.classes
    cells = [(row, tag) for row in rows.tolist() for tag in classes]
    before = current_values(samples, head, np.array([row for row, _ in cells], np.int64), [tag for _, tag in cells])
    return [
        Edit(id=ids[row], head=head.name, tag=tag, action="unset", old=old, step=STEP)
        for (row, tag), old in zip(cells, before, strict=True)
        if old is not None
    ]


FAULTS: Mapping[str, tuple[Callable[..., Samples], str]] = {
    "tail": (long_tail, "ratio"),
    "keep": (keep, "each"),
    "hide": (hide, "share"),
    "flip": (flip, "share"),
}
"""Option -> what plants the fault, and what the number given is; in the order in which they are planted."""


def faults(*, seed: int, **sizes: float | None) -> list[Fault]:
    """The faults of these sizes, by the names of `FAULTS`, ready to be planted in their order."""
    return [
        partial(plants, **{size: sizes[name]}, seed=seed)
        for name, (plants, size) in FAULTS.items()
        if sizes.get(name) is not None
    ]


def main() -> None:
    """Plant, and say what is there now."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder, a table, or YAML with `data:` in it")
    parser.add_argument("out", type=Path, help="the .csv to write")
    parser.add_argument("--hide", type=float, help="share of the training images whose labels are hidden")
    parser.add_argument("--flip", type=float, help="share of the training labels left that are made wrong")
    parser.add_argument("--keep", type=int, help="images a class whose labels stay")
    parser.add_argument("--tail", type=float, help="times that the first class is as frequent as the last")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in FAULTS}
    plant(given.data, given.out, faults(seed=given.seed, **sizes))


if __name__ == "__main__":
    main()
