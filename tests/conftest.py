"""Small data sets that tests train on, and the browser that they open pages in."""

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import polars as pl
import pytest
import typer.testing
from benchmarks.browser import CHROMIUM, Page, chromium
from hypothesis import settings

import assay
from assay.progress import Lines
from factories import write_images

settings.register_profile("the same every time", derandomize=True)
settings.load_profile("the same every time")


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is written need not outlive the machine here, and waiting for a disk is a fifth of the time of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def commands_are_built_once() -> Iterator[None]:
    """The signatures of all commands are read at the first call of one, not at every one of hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def baselines_learn_briefly() -> Iterator[None]:
    """Forty epochs of a linear model are a fifth of a small run; test_baselines.py has them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assay.predictions.baselines.IMAGES_TRAINED_ON", 300)
        yield


@pytest.fixture(scope="session")
def forks() -> ForkServerContext:
    """New processes that begin with everything imported (`preloaded.py`): there is one server for all tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:  # the server looks there alone, and passes over what is not there
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ensure_running()
    return context


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 images of 3 classes that a linear model on pixels tells apart."""
    return write_images(tmp_path_factory.mktemp("colours") / "images", each=15)


@pytest.fixture
def tiny_plan(colours: Path) -> Callable[..., str]:
    """The text of a plan that trains in seconds, with `steps` filled in."""

    def text(*steps: str, data: str = f"folder: {colours}", model: str = "") -> str:
        listed = "".join(f"\n  - {step}" for step in steps)
        return (
            f"data: {{{data}}}\n"
            f"model: {{backbone: test_efficientnet, weights: none{model}}}\n"
            "hardware: {precision: fp32, layout: contiguous}\n"
            f"steps:{listed}\n"
        )

    return text


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """A page in Chromium, for a module: its event loop must not run where other tests start one."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    with chromium() as page:
        yield page


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave out charts, baselines and the report, which take seconds a run."""
    patch.setattr("assay.report.report.write_images", lambda folder, *given: None)
    patch.setattr("assay.run.train.baselines", lambda *given, **options: {})
    patch.setattr("assay.report.report.draw_run", lambda *given, **options: None)


@pytest.fixture
def plain_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that draw nothing, compare themselves with nothing and write no report: seconds that others test."""
    draw_nothing(monkeypatch)


@pytest.fixture
def carry_table(plain_runs: None, tiny_plan: Callable[..., str], tmp_path: Path) -> Callable[..., assay.Run]:
    """Carry out steps on images with the labels of a table; the lines said are kept in `carry_table.said`."""

    def carried(
        images: Path, table: pl.DataFrame, *steps: str, run: str = "run", heads: str = "", model: str = ""
    ) -> assay.Run:
        table.write_csv(tmp_path / "labels.csv")
        data = f"table: {tmp_path / 'labels.csv'}, root: {images}{heads}"
        (tmp_path / "plan.yaml").write_text(tiny_plan(*steps, data=data, model=model))
        progress = Lines()
        carried.said = progress.lines
        return assay.train(tmp_path / "plan.yaml", run=tmp_path / run, device="cpu", progress=progress)

    return carried
