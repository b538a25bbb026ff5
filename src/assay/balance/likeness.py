"""How like real pictures of a class those are that a network made up, by the features of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.figures.distances import Floats, frechet, spread

COLLAPSED = 0.5  # of the variety of real pictures: where a network makes few pictures again and again


@dataclass(frozen=True)
class Likeness:
    """Frechet distances to one half of a class's real pictures, each of n pictures to n, so that they compare."""

    n: int
    made: float  # of the made-up pictures
    real: float  # of the other half
    other: float | None  # of the nearest other class with n pictures; None where there is none
    nearest: int | None  # that class
    variety: float  # mean distance between two made-up pictures, by that between two real ones

    @property
    def collapsed(self) -> bool:
        """Whether the made-up pictures are much more alike than real ones."""
        return self.variety < COLLAPSED

    def to_json(self, classes: tuple[str, ...]) -> dict[str, Any]:
        return {
            "n": self.n,
            "frechet": {"made": self.made, "real": self.real, "other class": self.other},
            "nearest other class": None if self.nearest is None else classes[self.nearest],
            "variety": self.variety,
            "collapsed": self.collapsed,
        }


def likeness(real: Mapping[int, Floats], code: int, made: Floats, *, seed: int) -> Likeness:
    """Compare features made up for a class (m, F) with those of real pictures by class, each (n, F).

    The halves are drawn by `seed`. Raises ValueError where the class has fewer than four real pictures or there
    are fewer than two made-up ones.
    """
    own = real[code][np.random.default_rng(seed).permutation(len(real[code]))]
    n = min(len(own) // 2, len(made))
    half = own[:n]
    others = {
        other: frechet(features[:n], half) for other, features in real.items() if other != code and len(features) >= n
    }
    nearest = min(others, key=lambda other: others[other], default=None)
    return Likeness(
        n=n,
        made=frechet(made[:n], half),
        real=frechet(own[n : 2 * n], half),
        other=None if nearest is None else others[nearest],
        nearest=nearest,
        variety=spread(made) / max(spread(own), 1e-12),
    )
