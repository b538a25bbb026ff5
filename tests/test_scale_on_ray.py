"""The same function on every shard, by the actors of a Ray cluster on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assay.errors import RunError
from assay.scale import on_ray
from shard_functions import run
from test_scale import assay, project

__all__ = ("project",)  # a fixture


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'assay-vision[ray]')")
    before = os.environ.pop("RAY_ADDRESS", None)
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray = on_ray.connect()
    yield ray
    ray.shutdown()
    os.environ |= {name: value for name, value in (("RAY_ADDRESS", before), ("PYTHONPATH", path)) if value is not None}


def test_results_are_those_of_processes_and_an_actor_that_is_killed_begins_again(cluster: Any, tmp_path: Path) -> None:
    texts = ["a", "once b", "c"]
    assert run(tmp_path, *texts, workers=2, executor="ray") == [f"{text} 1" for text in texts]
    assert len(list(tmp_path.glob("begun-1.tar-*"))) == 2
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_predictions_are_the_bytes_of_processes_of_this_machine(cluster: Any, project: Path) -> None:
    assay(project, "predict", "model", "shards", "--out", "ray.parquet", "--executor", "ray", "--workers", "2")
    assay(project, "predict", "model", "shards", "--out", "local.parquet", "--workers", "1")
    parts = [{part.name: part.read_bytes() for part in (project / f"{by}.parts").iterdir()} for by in ("ray", "local")]
    assert parts[0] == parts[1]
    assert (project / "ray.parquet").read_bytes() == (project / "local.parquet").read_bytes()


def test_a_cluster_that_is_gone_ends_the_work(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "PATIENCE", 0.1)
    monkeypatch.setattr(on_ray, "answers", lambda address: False)
    with pytest.raises(RunError, match=r"the Ray cluster at .* is gone. What is done is kept"):
        run(tmp_path, "wait", workers=1, executor="ray")


def test_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"Ray is not installed: pip install 'assay-vision\[ray\]'"):
        run(tmp_path, "a", workers=1, executor="ray")


def test_no_cluster_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'assay-vision[ray]')")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RunError, match=r"no Ray cluster answers at 127.0.0.1:1 \(RAY_ADDRESS\). Start it"):
        run(tmp_path, "a", workers=1, executor="ray")
