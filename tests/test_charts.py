from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from assay.errors import RunError
from assay.report import charts
from assay.report.charts import PARTS, confusion, curves, save


def history(
    names: list[str] | tuple[str, str] | tuple[str, str, str, str] = ("loss", "accuracy"), epochs: int = 4
) -> pl.DataFrame:
    rows = [
        {"step": "01-fit" if epoch < 2 else "02-fit", "epoch": float(epoch), "name": name, "part": part}
        | {"value": 1 / (1 + epoch), "best": epoch == 2 and part == "validation"}
        for name in names
        for epoch in range(epochs)
        for part in PARTS
    ]
    return pl.DataFrame(rows)


def cells(chart: Any) -> Any:
    return {(c["true"], c["predicted"]): c for c in chart.to_dict()["datasets"]["rows"]}


def test_curves_draw_every_metric_and_part(tmp_path: Path) -> None:
    paths = save(curves(history()), tmp_path / "curves")
    assert [path.name for path in paths] == ["curves.svg", "curves.png"]
    svg = paths[0].read_text(encoding="utf-8")
    for text in ("loss", "accuracy", "validation", "01-fit", "02-fit", "0.333"):
        assert f">{text}<" in svg
    with Image.open(paths[1]) as image:
        assert min(image.size) > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "curves.svg"]


def test_curves_of_heads_come_after_those_of_all_and_loss_first() -> None:
    names = ("season/accuracy", "nll", "accuracy", "loss")
    spec = curves(history(names)).to_dict()
    assert spec["facet"]["sort"] == ["loss", "accuracy", "negative log-likelihood", "season: accuracy"]


def test_heads_with_long_names_keep_their_own_panels() -> None:
    names = ["x" * 50 + "1" + "y" * 50 + "/nll", "x" * 50 + "2" + "y" * 50 + "/nll"]
    titles = curves(history(names)).to_dict()["facet"]["sort"]
    assert len(set(titles)) == 2
    assert all("negative log-likelihood" in title and len(title) < 50 for title in titles)


def test_curves_of_one_epoch_of_none_and_of_values_that_are_not_finite(tmp_path: Path) -> None:
    for rows in (history(epochs=1), history().clear()):
        assert save(curves(rows), tmp_path / "curves.svg")[0].stat().st_size > 500
    broken = history().with_columns(
        pl.when(pl.col("epoch") == 1).then(float("nan")).otherwise(pl.col("value")).alias("value")
    )
    assert len(curves(broken).to_dict()["datasets"]["rows"]) == 12


def test_confusion_counts_and_shares() -> None:
    found = cells(confusion(np.array([[3, 1], [0, 0]]), ["a", "b"]))
    assert found["a", "a"]["count"] == 3
    assert found["a", "b"]["share"] == 0.25
    assert set(found) == {("a", "a"), ("a", "b")}


def test_strange_class_names_stay_apart_and_harmless(tmp_path: Path) -> None:
    names = ["</script><b>", "a\nb", "a\\nb", "x" * 200 + "1", "x" * 200 + "2", "", "日本"]
    chart = confusion(np.eye(7, dtype=int), names, head="a\nhead")
    assert len(cells(chart)) == 7
    svg = save(chart, tmp_path / "confusion.svg")[0].read_text(encoding="utf-8")
    assert "<script" not in svg
    assert "</script>" not in svg
    assert "日本" in svg


def test_many_classes_show_the_most_mistaken_ones() -> None:
    matrix = np.diag(np.full(130, 5))
    matrix[129, 0] = 4
    chart = confusion(matrix, [f"c{i}" for i in range(130)])
    assert ("c129", "c0") in cells(chart)
    assert len({true for true, _ in cells(chart)}) == 100
    assert "100 classes with most mistakes, of 130" in " ".join(chart.to_dict()["title"]["subtitle"])


@pytest.mark.parametrize(("size", "written"), [(1, True), (20, True), (21, False)])
def test_counts_are_written_up_to_twenty_classes(size: int, written: bool) -> None:
    spec = confusion(np.eye(size, dtype=int), [str(i) for i in range(size)]).to_dict()
    assert (len(spec["layer"]) == 2) == written


def test_a_chart_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chart = confusion(np.eye(2, dtype=int), ["a", "b"])
    (target,) = save(chart, tmp_path / "c.png")
    before = target.read_bytes()

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(RunError):
        save(chart, target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


def test_a_name_with_a_dot_keeps_it(tmp_path: Path) -> None:
    chart = confusion(np.eye(1, dtype=int), ["a"])
    assert [path.name for path in save(chart, tmp_path / "head.v2")] == ["head.v2.svg", "head.v2.png"]
    assert charts.VERSION.count(".") == 1
