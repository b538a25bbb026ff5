"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file

import assay
from assay.cli import app, main
from assay.commands.endings import first_to_fail
from assay.errors import PlanError, TrainingError
from assay.progress import NoProgress
from assay.training.checkpoint import Checkpoint
from assay.training.devices import Hardware
from assay.training.fit_task import EpochLogits, FitState
from assay.training.loop import fit
from assay.training.processes import Machine, SingleProcess, asked_for_more, current_processes

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
STEPS = (
    "probe: {size: 32}",
    "fit: {size: 32, epochs: 1, batch: 8, freeze: backbone, views: 2, augment: {flip: horizontal}, lr: 1e-2}",
    "fit: {size: 32, epochs: 2, batch: 4, accumulate: 2, ema: 0.9, early_stop: 2, lr: 1e-4, optimizer: sgd, "
    "augment: {per_class: {red: {more: 1.5}}}}",
    "repeat: {times: 1, only_if_better: true, steps: [fit: {size: 32, epochs: 1, batch: 5, freeze: 3, lr: 1e-4, "
    "optimizer: sgd}]}",
    "fit: {size: 32, epochs: 1, batch: 7, lr: 1e-3, unlabelled: {method: flexmatch, threshold: 0.5, ratio: 1}}",
)


def launch(launcher: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Start two processes on the CPU."""
    command = [sys.executable, *launcher, *map(str, arguments), "--device", "cpu"]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=own, check=False, timeout=300)


def lines(run: Path) -> list[str]:
    """Return the lines of a run's log."""
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry["line"] for entry in entries if "line" in entry]


def counts(metrics: dict[str, Any]) -> list[Any]:
    scores = [step["scores"] for step in metrics["steps"]]
    return [
        [(name, metric["n"]) for name, metric in score["metrics"].items()]
        + [np.sum(head["confusion"]).tolist() for head in score["heads"].values()]
        for score in scores
    ]


def history(run: Path) -> dict[tuple[str, str, str], float]:
    import polars as pl

    rows = pl.concat([pl.read_csv(path) for path in sorted(run.rglob("history.csv"))]).rows(named=True)
    return {(row["step"], row["epoch"], f"{row['part']} {row['name']}"): row["value"] for row in rows}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run of one process, the same of two, and what the two printed."""
    from factories import write_images

    folder = tmp_path_factory.mktemp("processes")
    write_images(folder / "images", each=25)
    (folder / "images" / "red" / "broken.png").touch()
    write_images(folder / "unlabelled", each=3, seed=1)
    (folder / "unlabelled").rename(folder / "images" / "unlabelled")
    Image.new("RGB", (32, 32), "white").save(folder / "images" / "unlabelled" / "white.png")
    listed = "".join(f"\n  - {step}" for step in STEPS)
    (folder / "plan.yaml").write_text(
        "data: {folder: images, split: {val: 0.45}}\n"
        "model: {backbone: test_efficientnet, weights: none, features: all_stages}\n"
        f"hardware: {{precision: fp32, layout: channels_last}}\nsteps:{listed}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("run.train.baselines", "report.report.draw_run"):  # seconds; the two processes spend them
            patch.setattr(f"assay.{name}", lambda *given, **options: {})
        assay.train(folder / "plan.yaml", run=folder / "one", device="cpu")
    done = launch(TORCHRUN, "-m", "--", "assay", "train", folder / "plan.yaml", "--run", folder / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "one", folder / "two", done.stdout


def test_validation_counts_every_image_once(both: tuple[Path, Path, str]) -> None:
    one, two = (assay.load(run).metrics for run in both[:2])
    assert [step["name"] for step in two["steps"]] == [step["name"] for step in one["steps"]]
    assert counts(one) == counts(two)
    assert one["counts"] == two["counts"]
    assert [(left["path"], left["reason"][:13]) for left in two["left_out"]] == [("red/broken.png", "an empty file")]


def test_training_is_the_same_to_rounding(both: tuple[Path, Path, str]) -> None:
    one, two = (history(run) for run in both[:2])
    assert one.keys() == two.keys()
    for key, value in one.items():
        if not key[2].endswith(" seconds"):
            assert value == pytest.approx(two[key], rel=2e-3, abs=2e-3), key
    first, second = (load_file(run / "model" / "model.safetensors") for run in both[:2])
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-2, atol=1e-2)


def test_there_were_two_and_only_the_main_process_speaks_and_writes(both: tuple[Path, Path, str]) -> None:
    one, two, said = both
    assert lines(two)[0] == "2 processes"
    assert "processes" not in "".join(lines(one))
    assert [assay.load(run).metrics["processes"] for run in (one, two)] == [1, 2]
    assert said.count("reading plan\n") == 1
    assert said.count("The run is in") == 1
    assert lines(two).count("02-fit") == 1
    assert not list(two.rglob("*.part"))


def test_they_leave_out_the_same_images(both: tuple[Path, Path, str]) -> None:
    one, two = (json.loads((run / "steps/05-fit/foreign.json").read_bytes()) for run in both[:2])
    assert one == two
    assert one["images"] == ["unlabelled/white.png"]


def test_one_process_goes_on_with_what_two_have_done(both: tuple[Path, Path, str]) -> None:
    before = (both[1] / "metrics.json").read_bytes()
    assay.train(both[1].parent / "plan.yaml", run=both[1], device="cpu")
    assert (both[1] / "metrics.json").read_bytes() == before


def test_the_first_to_fail_speaks() -> None:
    store = torch.distributed.TCPStore("localhost", 0, is_master=True)
    ranks = {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    ranks |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    assert [first_to_fail(ranks), first_to_fail(ranks)] == [True, False]
    assert first_to_fail({"WORLD_SIZE": "2"})  # nobody to ask
    assert first_to_fail({})


@pytest.mark.parametrize(("rank", "message"), [("0", "No such option: --rum"), ("1", "")])
def test_a_wrong_option_is_said_once(
    rank: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["assay", "train", "photos", "--rum"])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert message in err
    assert bool(out + err) is bool(message)


ENDING = """
from assay.cli import main
from assay.errors import TrainingError
from assay.training.processes import Machine

def end(self, network, optimizer, *, clip):
    if self.rank == 1:
        raise TrainingError("it is planted. Dig it out.")
    optimizer.zero_grad()

Machine.optimizer_step = end
main()
"""


def test_one_that_ends_early_ends_the_other_and_one_message_says_why(
    tiny_plan: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    (tmp_path / "plan.yaml").write_text(tiny_plan("fit: {size: 32, epochs: 9, batch: 8}"))
    run = tmp_path / "run"
    done = launch(ACCELERATE, tmp_path / "ending.py", "train", tmp_path / "plan.yaml", "--run", run)
    assert done.returncode != 0
    assert lines(run)[0] == "2 processes"
    assert done.stderr.count("assay: ") == 1
    assert "assay: it is planted. Dig it out." in done.stderr


def killed_as_second(folder: Path, environment: dict[str, str]) -> None:
    """Train as one of two processes, of which the second kills itself in an optimiser step."""
    os.environ |= environment
    os.dup2(os.open(folder / f"said-{environment['RANK']}.txt", os.O_WRONLY | os.O_CREAT), 2)

    def end(self: Machine, network: Any, optimizer: Any, *, clip: Any) -> None:
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()

    Machine.optimizer_step = end  # type: ignore[method-assign]
    app(["train", str(folder / "plan.yaml"), "--run", str(folder / "run"), "--device", "cpu"])


def test_one_that_is_killed_ends_the_other_which_says_so(
    tiny_plan: Callable[..., str], tmp_path: Path, forks: ForkServerContext
) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan("fit: {size: 32, epochs: 9, batch: 8}"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **together} for rank in "01"]
    processes = [forks.Process(target=killed_as_second, args=(tmp_path, rank)) for rank in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [2, -signal.SIGKILL]
    assert lines(tmp_path / "run")[0] == "2 processes"
    said = (tmp_path / "said-0.txt").read_text()
    assert said.count("assay: ") == 1
    assert "assay: another process of this run ended, and it did not say why" in said
    assert not (tmp_path / "said-1.txt").read_text()


TRAIN = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
OPTIONS = ["-h", *(name for option in TRAIN.params for name in option.opts if name.startswith("-"))]


@pytest.mark.parametrize("option", OPTIONS)
def test_launchers_pass_on_every_option_of_train(option: str) -> None:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    given = ["train", "photos/", option, "value"]
    for parser, own in (
        (get_args_parser(), ["--nproc_per_node", "2", "-m", "--"]),
        (launch_command_parser(), ["--multi_gpu", "--num_processes", "2", "-m"]),
    ):
        parsed = parser.parse_args([*own, "assay", *given])
        assert (parsed.module, parsed.training_script, parsed.training_script_args) == (True, "assay", given)


def simple_launch(*arguments: str) -> dict[str, str]:
    """Return what `accelerate launch` sets for the one process that it starts itself."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    given = launch_command_parser().parse_args([*arguments, "--mixed_precision=no", "--dynamo_backend=no", "train.py"])
    given.num_machines, given.use_cpu, given.num_cpu_threads_per_process = 1, given.cpu, 1
    environment: dict[str, str] = prepare_simple_launcher_cmd_env(given)[1]
    return environment


def test_one_process_that_was_to_be_several_says_so(
    monkeypatch: pytest.MonkeyPatch, tiny_plan: Callable[..., str], plain_runs: None, tmp_path: Path
) -> None:
    assert asked_for_more({}) is None
    assert asked_for_more(simple_launch("--num_processes=1")) is None
    assert asked_for_more({"WORLD_SIZE": "1", **simple_launch("--num_processes=2")}) is None
    assert asked_for_more({"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert "4 were started (SLURM_STEP_NUM_TASKS)" in str(asked_for_more({"SLURM_STEP_NUM_TASKS": "4"}))
    for name, value in simple_launch("--cpu", "--num_processes=2").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "plan.yaml").write_text(tiny_plan("fit: {size: 32, epochs: 1, freeze: backbone}"))
    assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    assert lines(tmp_path / "run")[0] == (
        "note: one process trains: accelerate launch was asked for several and started one, as it does with --cpu or "
        "without --multi_gpu. To train in several: torchrun --nproc_per_node 2 -m -- assay train ..."
    )


def test_several_processes_do_not_share_one_named_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PlanError, match=r"'cuda:1': names one GPU, and 2 processes take one each. Give --device cuda,"):
        current_processes("cuda:1")


class Second(SingleProcess):
    """The second of two processes."""

    process_index = 1
    num_processes = 2
    is_main_process = False


def test_what_one_process_saw_of_an_unfinished_epoch_counts_once(tmp_path: Path) -> None:
    from test_loop import COURSE, job_of

    job = job_of()
    count = len(job.source.ids)
    answered = EpochLogits.of(torch.ones(count, COURSE.width), torch.ones(count), count)
    saver = Checkpoint(job, None, Machine(SingleProcess(), Hardware()), tmp_path / "checkpoint", 0.0)
    saver.write(FitState(batch=1, sums=[3.0, 1.0], counts=[4.0, 2.0]), answered)
    for together, share in ((SingleProcess(), 1.0), (Second(), 0.0)):
        machine = Machine(together, Hardware())
        progress, seen = Checkpoint(job_of(), None, machine, tmp_path / "checkpoint", 0.0).restore(COURSE.width)
        assert (progress.batch, progress.sums) == (1, [3.0 * share, share])
        assert progress.counts == [4.0 * share, 2.0 * share]
        assert seen.sums.unique().tolist() == seen.times.unique().tolist() == [share]


def test_one_image_is_too_few_for_the_statistics_of_a_process(tmp_path: Path) -> None:
    from test_loop import job_of, trained

    with pytest.raises(
        TrainingError, match=r"one had 1\. Raise batch, start fewer processes, or set batch_norm: frozen"
    ):
        trained(tmp_path, job_of(model=torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))), batch=1)


def test_what_is_watched_is_the_main_processs(tmp_path: Path) -> None:
    from test_loop import COURSE, job_of

    class Told(Second):
        def of_main(self, value: Any) -> Any:
            return 5.0

    machine = Machine(Told(), Hardware())
    progress = fit(job_of(), COURSE, machine=machine, checkpoint=tmp_path / "checkpoint", progress=NoProgress())
    assert [row["validation"]["loss"] for row in progress.history] == [5.0, 5.0]  # by which a rate may be lowered


def test_several_processes_save_at_the_end_of_an_epoch_only(tmp_path: Path) -> None:
    from test_loop import job_of

    savers = [
        Checkpoint(job_of(), None, Machine(t, Hardware()), tmp_path / "x", -1.0) for t in (SingleProcess(), Second())
    ]
    assert [saver.due() for saver in savers] == [True, False]
