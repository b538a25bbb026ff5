"""One run of many that are compared: what the others have of it already is taken over from them."""

from __future__ import annotations

from pathlib import Path

from assay.plan import LoadedPlan, anchored
from assay.progress import Watch
from assay.run import Run, train
from assay.studies.sharing import share, take_over_persons


def train_beside(loaded: LoadedPlan, place: Path, *, device: str | None, watch: Watch) -> Run:
    """Train in `place`, one folder of several, with what the others and the folder above both have of it.

    Labels that a person settled in the run above are settled here too. The test split stays closed.
    """
    above = place.parent.parent
    if (above / "samples.parquet").exists():
        take_over_persons(place, above)
    if loaded.plan.steps:
        others = [other for other in sorted(place.parent.glob("*")) if other != place]
        shared = share(place, anchored(loaded), [above, *others])
        if shared:
            watch.line(f"taken over from another run: {', '.join(shared)}")
    return train(loaded, run=place, device=device, watch=watch, open_test=False)
