"""Why the steps of a plan are these: assay plan says it as assay train does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import assay
from assay import cli
from assay.progress import GivenUpError, Lines
from factories import printed_json, write_images


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["plan", *arguments, "--device", "cpu"])


def shown(*arguments: str) -> dict[str, Any]:
    return printed_json(invoke(*arguments, "--json"))


class UpToSteps(Lines):
    """Ends a run when its first step begins."""

    def line(self, text: str) -> None:
        if text == "01-probe":
            raise GivenUpError
        super().line(text)


@pytest.fixture
def uneven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 30 red and 8 green images, and of 30 without a label, whose chosen steps are of small images."""
    for module in ("planner", "fit_stages"):
        monkeypatch.setattr(f"assay.plan.{module}.DEFAULT_SIZE", 32)
    monkeypatch.chdir(tmp_path)
    images = write_images(tmp_path / "uneven", each=30)
    (images / "blue").rename(images / "unlabelled")
    for number in range(8, 30):
        (images / "green" / f"{number}.png").unlink()
    return images


TINY_MODEL = ("model.backbone=test_efficientnet", "model.weights=none", "hardware.precision=fp32")


def with_changes(*changes: str) -> list[str]:
    return [word for change in (*TINY_MODEL, *changes) for word in ("--set", change)]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ((), ["no steps are given", "30 training images have no label, ", "classes are imbalanced: 24 "]),
        (
            ["metric=accuracy"],
            ["no steps", "30 training images", "classes are imbalanced: 24 ", "metric accuracy: fit"],
        ),
        (["repairs=false"], ["no steps are given"]),
    ],
)
def test_why_the_steps_are_these_is_said_as_training_says_it(
    changes: list[str], wanted: list[str], uneven: Path
) -> None:
    reasons = shown(str(uneven), *with_changes(*changes))["reasons"]
    assert len(reasons) == len(wanted)
    assert all(reason.startswith(text) for reason, text in zip(reasons, wanted, strict=True))
    trained = UpToSteps()
    with pytest.raises(GivenUpError):
        assay.train(uneven, run="run", overrides=(*TINY_MODEL, *changes), device="cpu", progress=trained)
    lines = [f"  {reason}" for reason in reasons]
    first = trained.lines.index(lines[0])
    assert trained.lines[first : first + len(lines)] == lines


def test_the_steps_of_a_table_have_their_reasons_above_the_estimates(uneven: Path) -> None:
    rows = [f"{path.relative_to(uneven)},{path.parent.name}" for path in sorted(uneven.glob("[rg]*/*.png"))]
    (uneven / "labels.csv").write_text("\n".join(["image,colour", *rows, ""]))
    done = invoke(str(uneven / "labels.csv"), *with_changes())
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    (reason,) = (line for line in lines if "classes are imbalanced: 24 training images of 'red', 6 of 'green'" in line)
    assert lines.index(reason) < next(row for row, line in enumerate(lines) if "01-probe" in line)
    steps = [*with_changes(), "--set", "steps=[{probe: {size: 32}}]"]
    assert shown(str(uneven / "labels.csv"), *steps)["reasons"] == []
