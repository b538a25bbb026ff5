"""Pictures that steps added to those read, seen like any other by whatever asks for pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from assay.labels.samples import Samples
from assay.pixels.cache import Cache, extended
from assay.pixels.decode import Resize
from assay.steps.state import Context


def seeing_added(context: Context, samples: Samples) -> Context:
    """The same context, whose pictures are those of these samples: those read, and those added since."""
    known = set(context.as_read.ids)
    added = samples.take(np.array([row for row, name in enumerate(samples.ids) if name not in known], dtype=np.int64))
    if len(added) == 0:
        return context

    def pictures(size: int, resize: Resize) -> Cache:
        cache = context.pictures(size, resize)
        missing = [row for row, name in enumerate(added.ids) if name not in cache.rows]
        rest = added.take(np.array(missing, dtype=np.int64))
        if len(rest) == 0:
            return cache
        return extended(cache, rest.ids, rest.paths, size=size, folder=context.run / "cache")

    return replace(context, pictures=pictures)
