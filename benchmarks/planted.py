"""Plant faults in a data set that is right: labels hidden, labels flipped, labels of 10 images a class, a long tail.

    python -m benchmarks.planted DATA OUT.csv [--hide 0.3] [--flip 0.15] [--keep 10] [--tail 50] [--seed 0]
        [--flip-next 0.2] [--flip-hard 0.3]

The faults go into the training part, in this order: tail, keep, hide, and the flips. Validation is a fifth of the data
that no fault touches and no `--seed` moves. OUT.csv is a table with a split column, and OUT.yaml the `data:` that reads
it. The training labels as they were are those of `untouched(DATA)`, image by image.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import assay
from assay.arrays import Floats
from assay.images.decode import Resize, read_square
from assay.labels.edits import Edit, apply, current_values
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.split import folds
from assay.models.classifier import ModelSettings, build_classifier
from assay.plan.plan import from_source
from assay.plan.yaml_lines import write
from assay.predictions.out_of_fold import out_of_fold
from benchmarks.harness import Record

Fault = Callable[[Samples], Samples]
Rows = npt.NDArray[np.int64]


def untouched(source: Path) -> Samples:
    """Return the data as it is: its own split, or a stratified fifth for validation, drawn with seed 0."""
    from assay.labels.readers.read import read

    loaded = from_source(source)
    fixed = loaded.plan.data.split.model_copy(update={"val": 0.2, "test": 0.0, "seed": 0})
    return read(loaded.plan.data.model_copy(update={"split": fixed}), base=loaded.base)


def plant(source: Path, out: Path, faults: list[Fault]) -> Record:
    """Write the data of `source` with these faults as a table; return the `data:` that reads it, written beside it."""
    samples = untouched(source)
    for fault in faults:
        samples = fault(samples)
    out.parent.mkdir(parents=True, exist_ok=True)
    data = assay.write_table(samples, out)
    out.with_suffix(".yaml").write_text(write({"data": data}), encoding="utf-8")
    return data


def hide(samples: Samples, share: float, *, seed: int) -> Samples:
    """Make all labels of this share of the labelled training images unknown, head by head."""

    def hidden(index: int, head: Head, codes: Codes) -> None:
        codes[_share(np.flatnonzero(head.known(codes)), share, seed, index, 1)] = -1

    return _relabelled(samples, hidden)


def flip(samples: Samples, share: float, *, seed: int) -> Samples:
    """Make this share of the known training labels wrong.

    Multi-class heads: another class, each as likely. Multi-label ones: of each tag this share of the positives off, and
    as many negatives on, so that every tag stays as frequent as it was.
    """

    def flipped(index: int, head: Head, codes: Codes) -> None:
        if head.kind == "multiclass":
            rows = _share(np.flatnonzero(codes >= 0), share, seed, index, 2)
            offsets = np.random.default_rng([seed, index, 3]).integers(1, head.size, len(rows))
            codes[rows] = (codes[rows] + offsets) % head.size
            return
        for tag, column in enumerate(codes.T):
            off, negatives = (
                _share(np.flatnonzero(column == 1), share, seed, index, 2, tag),
                np.flatnonzero(column == 0),
            )
            on = _draw(negatives, len(off), seed, index, 3, tag)
            column[off], column[on] = 0, 1

    return _relabelled(samples, flipped)


def flip_next(samples: Samples, share: float, *, seed: int) -> Samples:
    """Make this share of the known training labels that of the next class, the last one's the first: asymmetric noise.

    Labels of a multi-label head stay: none of its tags is the next one.
    """

    def flipped(index: int, head: Head, codes: Codes) -> None:
        if head.multiclass:
            rows = _share(np.flatnonzero(codes >= 0), share, seed, index, 6)
            codes[rows] = (codes[rows] + 1) % head.size

    return _relabelled(samples, flipped)


def flip_hard(samples: Samples, share: float, *, seed: int) -> Samples:
    """Make this share of the known training labels wrong, on images that are hard: noise that depends on the image.

    Images are drawn by their probability of another class, and labelled as the likeliest other one, after Chen et al.
    2021 ("Beyond Class-Conditional Assumption"), who flip the likeliest mistakes. Labels of a multi-label head stay.
    """
    training = np.flatnonzero(_is_training(samples))
    answers = probabilities_by_probe(samples.take(training), seed=seed)

    def flipped(index: int, head: Head, codes: Codes) -> None:
        if not head.multiclass:
            return
        known = np.flatnonzero(codes[training] >= 0)
        rows, others = training[known], answers[index][known].astype(np.float64)
        given = (np.arange(len(rows)), codes[rows])
        hard = np.maximum(1 - others[given], 1e-6)
        others[given] = -1
        drawn = np.random.default_rng([seed, index, 7]).choice(
            len(rows), round(share * len(rows)), replace=False, p=hard / hard.sum()
        )
        codes[rows[drawn]] = others[drawn].argmax(axis=1)

    return _relabelled(samples, flipped)


def probabilities_by_probe(samples: Samples, *, seed: int) -> list[Floats]:
    """Return by head the probabilities (N, K) of images, by regressions on features that did not learn from them.

    The features are those of a network that no benchmark judges labels by.
    """
    settings = ModelSettings(backbone=PROBE, features="all_stages")
    network = build_classifier(settings, samples.space, seed=0, base=Path(), size=PROBE_SIZE).eval()
    features = np.empty((len(samples), network.feature_count), np.float32)
    for first in range(0, len(samples), 32):
        paths = samples.paths[first : first + 32]
        pixels = np.stack([read_square(path, PROBE_SIZE, settings=Resize(), size=PROBE_SIZE) for path in paths])
        with torch.inference_mode():
            features[first : first + 32] = network.features(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).numpy()
    answers = out_of_fold(samples, features, folds(samples, 5, seed=seed), seed=seed)
    return [answers.probabilities[:, columns] for _, columns in samples.space.each()]


PROBE, PROBE_SIZE = "tf_efficientnet_lite2", 96


def keep(samples: Samples, each: float, *, seed: int) -> Samples:
    """Keep the labels of `each` training images of every class; those of the others become unknown, head by head."""

    def thinned(index: int, head: Head, codes: Codes) -> None:
        kept = [_draw(rows, int(each), seed, index, 4, k) for k, rows in enumerate(_rows_by_class(head, codes))]
        codes[np.setdiff1d(np.flatnonzero(head.known(codes)), np.concatenate(kept))] = -1

    return _relabelled(samples, thinned)


def long_tail(samples: Samples, ratio: float, *, seed: int) -> Samples:
    """Take training images away until class k of K has largest * ratio^(-k / (K - 1)) (Cui et al. 2019, section 5.1).

    Classes count in their order, of the first head, which is multi-class; a class with fewer than that keeps its own.
    """
    head, codes = samples.space.heads[0], samples.codes()[0]
    if head.kind != "multiclass":
        raise SystemExit(f"--tail: {head.name} is no head of classes of which an image has one.")
    codes[~_is_training(samples)] = -1
    by_class, removed = _rows_by_class(head, codes), []
    largest = max(map(len, by_class))
    for code, rows in enumerate(by_class):
        count = max(1, round(largest * ratio ** (-code / (head.size - 1))))
        removed.append(_draw(rows, max(0, len(rows) - count), seed, 5, code))
    return samples.take(np.setdiff1d(np.arange(len(samples)), np.concatenate(removed)))


def _relabelled(samples: Samples, change: Callable[[int, Head, Codes], None]) -> Samples:
    """Return the samples with the training codes of each head (N,) or (N, K) as `change` leaves them; -1 is unknown."""
    training, ids = _is_training(samples), samples.ids
    edits: list[Edit] = []
    for index, (head, before) in enumerate(zip(samples.space, samples.codes(), strict=True)):
        after = before.copy()
        after[~training] = -1
        change(index, head, after)
        after[~training] = before[~training]
        cells = np.argwhere(after != before)
        tags = [head.classes[cell[1]] if len(cell) > 1 else None for cell in cells.tolist()]
        names = ("0", "1") if head.kind == "multilabel" else head.classes
        new = [None if code < 0 else names[code] for code in after[after != before].tolist()]
        old = current_values(samples, head, cells[:, 0], tags)
        edits += [
            Edit(
                id=ids[row], head=head.name, tag=tag, action="set" if label else "unset", old=known, new=label,
                step="planted",
            )
            for row, tag, known, label in zip(cells[:, 0].tolist(), tags, old, new, strict=True)
        ]  # fmt: skip
    return apply(samples, edits)


def _is_training(samples: Samples) -> npt.NDArray[np.bool_]:
    return (samples.table["split"] == "train").to_numpy()


def _rows_by_class(head: Head, codes: Codes) -> list[Rows]:
    if head.kind == "multiclass":
        return [np.flatnonzero(codes == code) for code in range(head.size)]
    return [np.flatnonzero(column == 1) for column in codes.T]


def _share(rows: Rows, share: float, *seed: int) -> Rows:
    return _draw(rows, round(share * len(rows)), *seed)


def _draw(rows: Rows, count: int, *seed: int) -> Rows:
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


FAULTS: Mapping[str, tuple[Callable[..., Samples], str]] = {
    "tail": (long_tail, "times that the first class is as frequent as the last"),
    "keep": (keep, "images a class whose labels stay"),
    "hide": (hide, "share of the training images whose labels are hidden"),
    "flip": (flip, "share of the training labels left that are made wrong, each other class as likely"),
    "flip_next": (flip_next, "share of them that become the next class"),
    "flip_hard": (flip_hard, "share of them that become the likeliest other class, on hard images"),
}
"""Option -> what plants the fault, and what its number means; in the order in which they are planted."""


def faults(*, seed: int, **sizes: float | None) -> list[Fault]:
    """Return the faults of these sizes, by the names of `FAULTS`, ready to be planted in their order."""
    planted = [(plants, size) for name, (plants, _) in FAULTS.items() if (size := sizes.get(name)) is not None]
    return [lambda samples, f=plants, size=size: f(samples, size, seed=seed) for plants, size in planted]  # type: ignore[misc]


def main() -> None:
    """Plant the faults that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder, a table, or YAML with `data:` in it")
    parser.add_argument("out", type=Path, help="the .csv to write")
    for name, (_, meaning) in FAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=meaning)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    plant(options.data, options.out, faults(**{name: getattr(options, name) for name in (*FAULTS, "seed")}))


if __name__ == "__main__":
    main()
