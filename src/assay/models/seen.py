"""The pictures whose labels a backbone was trained on, by content: it has them by heart, and may not judge them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from assay.errors import PlanError, RunError
from assay.files import whole
from assay.labels.samples import Samples
from assay.models.classifier import ModelSettings

FILE = "trained_on.npy"
Seen = npt.NDArray[np.uint64]
"""Sorted, one number a picture: the first 8 bytes of the SHA-256 of its file."""

NOTHING: Seen = np.empty(0, dtype=np.uint64)


def seen(hashes: Iterable[str | None]) -> Seen:
    """The pictures of these hashes (hexadecimal; None, of a picture never read, is left out)."""
    return np.unique(_numbers(hashes))


def seen_at_start(settings: ModelSettings, base: Path) -> Seen:
    """What the backbone of a plan has seen before its first step: nothing, or what the run it comes from has."""
    if settings.init_from is not None:
        return read_seen(base / settings.init_from / "model")
    if settings.weights in ("pretrained", "none"):
        return NOTHING
    return read_seen((base / settings.weights).parent)


def read_seen(folder: Path) -> Seen:
    """What the backbone of the model in a folder has seen; nothing where no file says so. Raises RunError."""
    path = folder / FILE
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


def write_seen(folder: Path, pictures: Seen) -> None:
    """Write it beside a model, or take away what an earlier model left where there is nothing to say."""
    if len(pictures) == 0:
        (folder / FILE).unlink(missing_ok=True)
        return
    with whole(folder / FILE) as beside, open(beside, "wb") as file:
        np.save(file, pictures)


def count_seen(pictures: Seen, samples: Samples) -> int:
    """How many of the samples are among these pictures."""
    return int(np.isin(_numbers(samples.hashes), pictures).sum())


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
