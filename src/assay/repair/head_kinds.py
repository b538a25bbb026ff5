"""Settings of the ways to learn a head again on a representation that stays."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from assay.arrays import Bools
from assay.labels.space import Codes, Head
from assay.progress import cores
from assay.settings import Choice, by_name

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

LINEAR_COSTS, RBF_COSTS = (1e-5, 1e-4, 1e-3), (1.0, 10.0)
THREADS = min(8, cores())  # each may hold a copy of the inputs of a machine


class Svm(Choice):
    """Support vector machines, one against the rest; probabilities by Platt scaling of out-of-fold decision values."""

    kind: Literal["svm"] = "svm"
    kernel: Literal["linear", "rbf"] = "linear"
    costs: tuple[Positive, ...] | None = Field(
        None, min_length=1, description="scikit-learn's C; by default 0.00001, 0.0001 and 0.001, with rbf 1 and 10."
    )
    gamma: float | None = Field(
        None, gt=0, description="Of rbf on standardised features; by default one over their number."
    )
    most: int = Field(
        10_000, ge=2, description="Images that rbf may be trained on: it holds a kernel value for every two."
    )


class Crt(Choice):
    """Classifier re-training: logistic regression in which classes count for their weights."""

    kind: Literal["crt"] = "crt"
    strengths: tuple[Positive, ...] = Field(
        (0.0001, 0.001, 0.01, 0.1, 1.0), min_length=1, description="scikit-learn's C; small pulls the weights to 0."
    )


class TauNorm(Choice):
    """The weights of a class divided by their length to the power of tau, its intercept left out."""

    kind: Literal["tau_norm"] = "tau_norm"
    tau: tuple[NotNegative, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0), min_length=1)


class Lws(Choice):
    """Learnable weight scaling: a factor a class for the logits as they were."""

    kind: Literal["lws"] = "lws"


class Ncm(Choice):
    """Nearest class mean, by cosine."""

    kind: Literal["ncm"] = "ncm"


class LogitAdjust(Choice):
    """The logits as they were plus tau times the logarithm of the class weights (Menon et al. 2021, post hoc)."""

    kind: Literal["logit_adjust"] = "logit_adjust"
    tau: tuple[NotNegative, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), min_length=1)


class Levels(Choice):
    """Logits adjusted as by `logit_adjust`, and then by a level a class, fitted on validation by the loss."""

    kind: Literal["levels"] = "levels"
    tau: tuple[NotNegative, ...] = Field((0.0, 0.5, 1.0, 1.5), min_length=1)
    pull: Positive = Field(10.0, description="A level is pulled to 0 as by so many validation images of its class.")


AnyKind = Svm | Crt | TauNorm | Lws | Ncm | LogitAdjust | Levels
KindName = Literal["svm", "crt", "tau_norm", "lws", "ncm", "logit_adjust", "levels"]
HeadKind = Annotated[AnyKind, Field(discriminator="kind"), by_name(AnyKind)]
"""How a head is learnt again, in a plan: a name, or a mapping with a kind."""

ALL_KINDS: tuple[AnyKind, ...] = (Svm(), Svm(kernel="rbf"), Crt(), TauNorm(), Lws(), Ncm(), LogitAdjust(), Levels())


def kind_name(kind: AnyKind) -> str:
    """Return the name of a kind in tables."""
    return f"svm {kind.kernel}" if isinstance(kind, Svm) else kind.kind


def kernel_bytes(images: int) -> int:
    """Return the memory of kernel values (N, N) in float64, and of the part that each thread copies for a fold."""
    return 8 * images**2 + THREADS * 4 * images**2


def unsupported_reason(kind: AnyKind, head: Head, *, images: int, linear: bool) -> str | None:
    """Return why a kind cannot learn from so many images, or go on from a head that is not linear; None if it can."""
    if isinstance(kind, Svm) and kind.kernel == "rbf" and images > kind.most:
        return (
            f"{head.name}: svm with kernel: rbf holds a kernel value for every two images, and for "
            f"{images:,} images takes about {kernel_bytes(images) / 2**30:,.1f} GiB; most: {kind.most:,} are allowed. "
            "Set kernel: linear, or raise most."
        )
    if kind.kind in ("tau_norm", "lws", "logit_adjust", "levels") and not linear:
        return (
            f"{head.name}: {kind.kind} goes on from the weights of a linear head, and the one before is not linear. "
            "Put a probe before it, or name other kinds."
        )
    return None


def learnable(head: Head, codes: Codes) -> Bools:
    """Return which classes (K,) have a training image; of tags, those that some images have and some have not."""
    present, decided = head.present(codes), head.decided(codes)
    if head.multiclass:
        return np.asarray(present.any(axis=0))
    return np.asarray(present.any(axis=0) & (decided & ~present).any(axis=0))
