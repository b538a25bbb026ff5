"""`backbone: auto`: candidates, the trial, and the choice that a run keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from assay import cli
from assay.errors import AssayError, ModelError, PlanError
from assay.files import RunFolder
from assay.images.decode import Resize
from assay.labels.space import Head
from assay.metrics.intervals import Estimate
from assay.models import candidates as listed
from assay.models import weights
from assay.models.candidates import candidates
from assay.models.classifier import ModelSettings
from assay.plan.plan import load, parse
from assay.progress import Lines
from assay.report.report import write_report
from assay.report.sections.feature_map import MapSettings
from assay.run import backbones
from assay.run.backbones import Measured, Work, best_that_pays, choose_backbone, ranked
from assay.run.train import Run, train
from factories import make_samples

NAMES = ("test_efficientnet.r160_in1k", "test_resnet.r160_in1k")


class Hub:
    """Stands in for the hub: tiny networks, some of them in the cache already, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reachable, self.cached = folder, True, set(NAMES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name in NAMES:
                save_file(timm.create_model(name.partition(".")[0]).state_dict(), self.path(name))

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def from_cache(self, repository: str, file: str, *, revision: str | None) -> str | None:
        name = repository.removeprefix("timm/")
        return str(self.path(name)) if name in self.cached and file.endswith(".safetensors") else None

    def download(self, repository: str, file: str, *, revision: str | None) -> str:
        self.cached.add(repository.removeprefix("timm/"))
        return str(self.path(repository.removeprefix("timm/")))

    def head(self, address: str, *, timeout: float) -> None:
        if not self.reachable:
            raise ConnectionError("no route")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with two tiny networks, which are the usual candidates."""
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(weights, "try_to_load_from_cache", hub.from_cache)
    monkeypatch.setattr(weights, "hf_hub_download", hub.download)
    monkeypatch.setattr(weights, "get_session", lambda: hub)
    monkeypatch.setattr(listed, "CANDIDATES", dict.fromkeys(NAMES, 1))
    monkeypatch.setattr(listed.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub


@pytest.fixture
def plan(hub: Hub, tiny_plan: Callable[..., str], tmp_path: Path, plain_runs: None) -> Path:
    text = tiny_plan("probe: {size: 32}").replace("backbone: test_efficientnet, weights: none", "backbone: auto")
    (tmp_path / "plan.yaml").write_text(text)
    return tmp_path / "plan.yaml"


def measured(name: str, seconds: float, right: np.ndarray) -> Measured:
    n, value = len(right), float(right.mean())
    return Measured((name,), 128, 8, seconds, Estimate("accuracy", value, n, (right - value) / n, digest=name.encode()))


def test_a_slower_backbone_has_to_be_better_beyond_chance_and_to_be_borne() -> None:
    right = np.arange(200) % 2.0
    fast, equal = measured("fast", 1.0, right), measured("equal", 2.0, np.roll(right, 1))
    better = measured("better", 3.0, np.maximum(right, np.arange(200) % 4 == 0))
    assert best_that_pays([better, fast, equal], lambda seconds: True) is better
    assert best_that_pays([better, fast, equal], lambda seconds: seconds < 3) is fast
    assert best_that_pays([equal, fast], lambda seconds: True) is fast


def test_time_decides_on_the_sample_and_on_what_can_be_borne() -> None:
    ten, usual = Work(128, Resize(), 10.0), Work(128, Resize(), None)
    assert (ten.limit, ten.sizes, Work(224, Resize(), 1.0).sizes) == (60.0, (128, 224), (224, 128))
    assert ten.sample(3, 0.003) == 800
    assert ten.sample(3, 0.03) == 200
    assert ten.sample(3, 0.015) == 392
    assert ten.bears(0.005, 0.003, 2_000)
    assert not ten.bears(0.05, 0.003, 2_000)
    assert usual.bears(0.01, 0.003, 2_000)
    assert not usual.bears(0.02, 0.003, 2_000)


def trained(plan: Path, folder: Path) -> tuple[Run, list[str]]:
    progress = Lines()
    return train(plan, run=folder, device="cpu", progress=progress), progress.lines


def require_page(folder: Path, rows: int) -> None:
    """The page of a run shows what was tried, with a chart, and the licence of each candidate."""
    html = write_report(folder, settings=MapSettings(n=0)).read_text()
    part = html[html.index('id="backbone"') :].partition('id="history"')[0]
    assert "<svg" in part
    assert part.count("<tr>") == 1 + rows + 1 + len(NAMES)
    assert "apache-2.0" in part


def test_a_run_chooses_its_backbone_once_and_shows_it(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "LARGER", 48)
    run, lines = trained(plan, tmp_path / "run")
    choice = run.record.backbones
    assert choice is not None
    assert [(row["backbones"], row["size"]) for row in choice["rows"][:2]] == [([name], 32) for name in NAMES]
    assert {len(row["backbones"]) for row in choice["rows"]} == {1, 2}
    assert {row["size"] for row in choice["rows"]} == {32, 48}
    assert load(tmp_path / "run/plan.yaml").plan.model == ModelSettings(backbone=choice["chosen"])
    assert ranked(choice)[0]["value"]["value"] == max(row["value"]["value"] for row in choice["rows"][:2])
    assert lines.count(f"backbone: {choice['chosen']}: {choice['why']}") == 1
    monkeypatch.setattr(backbones, "out_of_fold", None)
    again, lines = trained(plan, tmp_path / "run")
    assert again.record.backbones == choice
    assert any("nothing to do" in line for line in lines)
    require_page(tmp_path / "run", rows=5)


def test_a_trial_that_was_killed_goes_on_where_it_was(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "LARGER", 32)  # the second size is then `SMALLER`
    monkeypatch.setattr(backbones, "SMALLER", 48)
    whole, _ = trained(plan, tmp_path / "whole")
    judged, fitted = [], backbones.out_of_fold

    def killed(*given: Any, **options: Any) -> Any:
        judged.append(given)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return fitted(*given, **options)

    monkeypatch.setattr(backbones, "out_of_fold", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(plan, tmp_path / "run")
    ended, _ = trained(plan, tmp_path / "run")
    assert len(judged) == 3 + len(whole.record.backbones["rows"]) - 2
    values = [[row["value"] for row in run.record.backbones["rows"]] for run in (whole, ended)]
    assert values[0] == values[1]


def chosen(tmp_path: Path, images: int = 40, minutes: float | None = None, **model: Any) -> tuple[Any, list[str]]:
    """Choose a backbone for images that no trial reads."""
    head = Head("colour", ("red", "blue"))
    rows = [{"id": f"{n}", "colour": "red" if n % 2 else "blue", "split": "train"} for n in range(images)]
    samples, progress = make_samples(rows, head), Lines()
    context: Any = SimpleNamespace(
        model=ModelSettings(backbone="auto", **model),
        run=RunFolder(tmp_path / "run"),
        as_read=samples,
        seed=0,
        metric=None,
        progress=progress,
    )
    return choose_backbone(Work(32, Resize(), minutes), samples, context), progress.lines


def test_without_a_network_what_is_missing_and_what_to_do_are_named(hub: Hub, tmp_path: Path) -> None:
    hub.reachable, hub.cached = False, {NAMES[1]}
    choice, lines = chosen(tmp_path)
    assert choice["chosen"] == NAMES[1]
    assert choice["why"] == "the only one that can be had here"
    assert f"  left out: {NAMES[0]}: not to be had here (no route)" in lines
    assert any("assay backbones --fetch" in line and "HF_HUB_CACHE" in line for line in lines)
    hub.cached = set()
    with pytest.raises(ModelError, match=r"none of the candidates.*no route.*HF_HUB_CACHE"):
        chosen(tmp_path / "none")


def test_a_command_without_a_network_takes_what_is_here_or_says_what_to_do(
    hub: Hub, plan: Path, tmp_path: Path
) -> None:
    hub.reachable, hub.cached = False, {NAMES[1]}
    command = ["train", str(plan), "--device", "cpu", "--run"]
    result = CliRunner().invoke(cli.app, [*command, str(tmp_path / "run")])
    assert result.exit_code == 0, result.stderr
    assert f"left out: {NAMES[0]}: not to be had here (no route)" in result.output
    assert load(tmp_path / "run/plan.yaml").plan.model.backbone == NAMES[1]
    hub.cached = set()
    result = CliRunner().invoke(cli.app, [*command, str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "HF_HUB_CACHE" in result.stderr
    assert not RunFolder(tmp_path / "none").metrics.exists()


@pytest.mark.parametrize(("images", "minutes", "why"), [(40, 0.5, "a tenth of the minutes"), (9, None, "9 labelled")])
def test_too_little_for_a_trial_is_said(hub: Hub, tmp_path: Path, images: int, minutes: float | None, why: str) -> None:
    choice, _ = chosen(tmp_path, images, minutes)
    assert choice["chosen"] == NAMES[0]
    assert choice["why"].startswith(f"untried: {why}")


def test_a_stricter_licence_has_to_be_asked_for(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "PERMISSIVE", frozenset())
    with pytest.raises(ModelError, match=r"its licence is apache-2\.0"):
        chosen(tmp_path)
    choice, _ = chosen(tmp_path, candidates=NAMES[:1])
    assert choice["chosen"] == NAMES[0]


def test_usual_candidates_have_a_size_a_normalisation_and_a_licence() -> None:
    known = candidates(tuple(listed.CANDIDATES))
    assert [one.name for one in known if not one.permissive] == ["vit_small_patch16_dinov3.lvd1689m"]
    assert all(one.made_for >= 224 and one.megabytes and min(one.std) > 0 for one in known)


def test_other_networks_in_the_cache_are_candidates(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "CANDIDATES", {NAMES[0]: 1})
    for name in (*NAMES, "no_such_network.in1k"):
        (hub.folder / f"models--timm--{name}").mkdir()
    assert [one.name for one in candidates()] == list(NAMES)
    assert candidates()[1].weights == "cache"


def test_weights_are_listed_and_fetched(hub: Hub) -> None:
    hub.cached = {NAMES[0]}
    before = json.loads(CliRunner().invoke(cli.app, ["backbones", "--json"]).stdout)
    assert [one["weights"] for one in before] == ["cache", "hub"]
    result = CliRunner().invoke(cli.app, ["backbones", "--fetch"])
    assert result.exit_code == 0
    assert hub.cached == set(NAMES)
    assert "apache-2.0" in result.stdout
    hub.reachable, hub.cached = False, set()
    assert CliRunner().invoke(cli.app, ["backbones", "--fetch"]).exit_code == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{backbone: auto, weights: none}", "published weights"),
        ("{backbone: auto, init_from: runs/a}", "published weights"),
        ("{candidates: [resnet18]}", "candidates are for backbone: auto"),
    ],
)
def test_settings_that_contradict_auto_are_refused(model: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse(f"data: {{folder: x}}\nmodel: {model}\n", "plan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {backbone: auto}\nsweep: {sampler: grid, over: {model.head.dropout: [0, 0.1]}}",
            r"sweep\.over\.model\.backbone",
        ),
        ("steps: [{ensemble: {members: [{model: {backbone: auto}, steps: [probe]}]}}]", "chosen once a run"),
    ],
)
def test_a_search_and_members_name_their_backbones(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse(f"data: {{folder: x}}\n{text}\n", "plan")


@pytest.mark.parametrize("name", ["no_such_network", "resnet18.no_such_tag", "plain_cnn6"])
def test_a_candidate_without_weights_is_refused(name: str) -> None:
    with pytest.raises(AssayError, match=name):
        candidates([name])
