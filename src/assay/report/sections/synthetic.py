"""Images made up by a network: what they look like, how like real ones they are, what they were worth."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from assay.messages import plain
from assay.report.charts import metric_title
from assay.run.contents import RunContents, StepRecord

QUALITY = 88  # of the JPEG that a sheet becomes


def synthetic_section(run: RunContents) -> list[dict[str, Any]]:
    """One entry a finished step that made images up."""
    return [
        _told(run, step) for step in run.steps if step.kind == "synthesize" and step.done and not step.name.is_trial
    ]


def _told(run: RunContents, step: StepRecord) -> dict[str, Any]:
    samples = run.paths.step(step.name).samples
    classes = step.details["classes"]
    return {
        "name": plain(step.name),
        "count": sum(one["made"] for one in classes.values()),
        "kept": step.details["kept"],
        "gain": step.details.get("gain"),
        "metric": metric_title(step.details["metric"]) if "metric" in step.details else None,
        "beside": _embedded(samples / "real-and-made-up.png"),
        "progress": _embedded(samples / "progress.png"),
        "classes": [{**one, "name": plain(name), "nearest": _nearest(one)} for name, one in classes.items()],
    }


def _nearest(one: dict[str, Any]) -> str | None:
    name = one["nearest other class"]
    return None if name is None else plain(name)


def _embedded(path: Path) -> str | None:
    """A sheet as a data URL, smaller than the file; None where it was deleted."""
    if not path.exists():
        return None
    held = io.BytesIO()
    with Image.open(path) as sheet:
        sheet.convert("RGB").save(held, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode("ascii")
