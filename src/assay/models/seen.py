"""The pictures whose labels a model was trained on, by content: it has them by heart, and may not judge them.

`trained_on.npy` beside a model is of its backbone; `learnt_from.npy` is of the whole network, its head included, where
that is more.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from assay.errors import PlanError, RunError
from assay.files import whole
from assay.labels.samples import Samples

FILE = "trained_on.npy"
LEARNT = "learnt_from.npy"
Seen = npt.NDArray[np.uint64]
"""Sorted, one number a picture: the first 8 bytes of the SHA-256 of its file."""

NOTHING: Seen = np.empty(0, dtype=np.uint64)


def seen(hashes: Iterable[str | None]) -> Seen:
    """The pictures of these hashes (hexadecimal; None, of a picture never read, is left out)."""
    return np.unique(_numbers(hashes))


def read_seen(folder: Path) -> Seen:
    """What the backbone of the model in a folder has seen; nothing where no file says so. Raises RunError."""
    return read_hashes(folder / FILE)


def read_learnt(folder: Path) -> Seen:
    """Return the images whose labels any layer of the model in a folder was trained on. Raises RunError."""
    return np.union1d(read_seen(folder), read_hashes(folder / LEARNT))


def read_hashes(path: Path) -> Seen:
    """Return the images that a file lists; none where there is no such file. Raises RunError."""
    try:
        found: Seen = np.load(path)
    except FileNotFoundError:
        return NOTHING
    except (OSError, EOFError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}), so nobody knows on which pictures this model was trained. "
            "Train the run again."
        ) from error
    return found


def write_seen(folder: Path, pictures: Seen, learnt: Seen = NOTHING) -> None:
    """Write what the backbone and what the whole network was trained on beside a model."""
    write_hashes(folder / FILE, pictures)
    learnt = np.union1d(pictures, learnt)
    write_hashes(folder / LEARNT, NOTHING if len(learnt) == len(pictures) else learnt)


def write_hashes(path: Path, pictures: Seen) -> None:
    """Write a list of images, or take away an earlier one where there is nothing to list."""
    if len(pictures) == 0:
        path.unlink(missing_ok=True)
        return
    held = io.BytesIO()  # numpy writing to a full disk raises an error that does not say so
    np.save(held, pictures)
    with whole(path) as beside:
        beside.write_bytes(held.getbuffer())


def count_seen(pictures: Seen, samples: Samples) -> int:
    """How many of the samples are among these pictures."""
    return int(are_seen(pictures, samples).sum())


def are_seen(pictures: Seen, samples: Samples) -> npt.NDArray[np.bool_]:
    """Return which samples (N,) are among these images; one whose content is not known is not."""
    hashes = samples.hashes
    known = np.array([name is not None for name in hashes], dtype=np.bool_)
    known[known] = np.isin(_numbers(hashes), pictures)
    return known


def refuse_seen(pictures: Seen, samples: Samples, *, what: str) -> None:
    """Refuse to let a backbone judge labels that it was trained on; `what` names the step.

    Raises PlanError.
    """
    judged = samples.take(np.flatnonzero(samples.labelled()))
    count = count_seen(pictures, judged)
    if count:
        raise PlanError(
            f"{what}: the backbone was fine-tuned on {count:,} of the {len(judged):,} pictures whose labels it is to "
            "judge, and would only repeat what it was told. Judge by features of pretrained weights, or by "
            "fine-tuning anew in every fold."
        )


def _numbers(hashes: Iterable[str | None]) -> Seen:
    return np.array([int(name[:16], 16) for name in hashes if name is not None], dtype=np.uint64)
