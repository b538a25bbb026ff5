"""Runs on the machines of a Ray cluster: as torchrun trains them; who was lost begins again; bad input is refused."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from assay.cli import app
from assay.errors import RunError, TrainingError
from assay.files import add_to_log
from assay.progress import Lines, kept_handler
from assay.scale import runs_on_ray
from assay.scale.runs_on_ray import share_of, spread_on_ray, train_together
from test_processes import TORCHRUN, launch
from test_scale_on_ray import cluster

__all__ = ("cluster",)  # a fixture

LOST = type("WorkerHealthCheckFailedError", (Exception,), {"__module__": "ray.train"})


class Failed(Exception):
    """What ended the processes, by rank."""

    def __init__(self, **worker_failures: BaseException) -> None:
        super().__init__(*worker_failures.values())
        self.worker_failures = worker_failures


class Cluster(SimpleNamespace):
    """A Ray of so many cores and GPUs, whose processes end as they are told, and else train."""

    def __init__(self, *ends: BaseException, cores: int = 4, gpus: int = 0) -> None:
        super().__init__(ends=list(ends), asked=[], shut=False)
        self._size = {"CPU": float(cores), "GPU": float(gpus)}

    def cluster_resources(self) -> dict[str, float]:
        return self._size

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address="machine:6379")

    def shutdown(self) -> None:
        self.shut = True

    def trainer(self, work: Callable[..., object], **options: Any) -> SimpleNamespace:
        def fit() -> None:
            self.asked.append(options["scaling_config"])
            if self.ends:
                raise self.ends.pop(0)
            work(options["train_loop_config"])

        return SimpleNamespace(fit=fit)

    # Tasks: each is done when it is waited for.

    exceptions = SimpleNamespace(
        **{name: type(name, (Exception,), {}) for name in ("RayTaskError", "RuntimeEnvSetupError")},
        **{name: type(name, (Exception,), {}) for name in ("OutOfMemoryError", "WorkerCrashedError", "RayActorError")},
    )

    def remote(self, **options: Any) -> Callable[..., SimpleNamespace]:
        self.asked.append(options)
        return lambda function: SimpleNamespace(remote=lambda *given: (function, given))

    def wait(self, tasks: list[Any], *, timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        self.most = max(len(tasks), getattr(self, "most", 0))
        return tasks[:1], tasks[1:]

    def get(self, task: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
        if self.ends:
            raise self.ends.pop(0)
        function, given = task
        return function(*given)

    def cancel(self, task: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        self.cancelled = [*getattr(self, "cancelled", []), task[1][1]]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    """Make a cluster the one that is there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    monkeypatch.setattr(runs_on_ray, "FOLLOWED", 0.01)

    def made(*ends: BaseException, **size: int) -> Cluster:
        ray = Cluster(*ends, **size)
        modules = {"ray.train": {"RunConfig": dict, "ScalingConfig": dict}}
        modules["ray.train.torch"] = {"TorchConfig": dict, "TorchTrainer": ray.trainer}
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(runs_on_ray, "connect", lambda: ray)
        return ray

    return made


def train_in(folder: Path, *, workers: int = 2, device: str | None = None) -> list[str]:
    """Train with a function that writes the device to the log, and return the lines that were printed."""
    lines = Lines()
    log = folder / "log.jsonl"
    log.parent.mkdir(exist_ok=True)
    add_to_log(log, line="of an earlier command")

    def train(device: str) -> None:
        add_to_log(log, line=f"trained on {device}")
        add_to_log(log, warning="of a library")

    train_together(train, folder, workers=workers, device=device, progress=lines)
    return lines.lines


def test_lines_of_the_log_are_passed_on(there: Callable[..., Cluster], tmp_path: Path) -> None:
    ray = there()
    assert train_in(tmp_path) == ["trained on cpu"]
    assert ray.asked == [{"num_workers": 2, "use_gpu": False, "resources_per_worker": {"CPU": 1}}]
    assert not list(tmp_path.rglob(".ray"))


def test_a_process_takes_a_gpu_where_there_are_some_and_a_core_a_thread(
    there: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    ray = there(cores=16, gpus=2)
    assert train_in(tmp_path) == ["trained on cuda"]
    assert ray.asked == [{"num_workers": 2, "use_gpu": True, "resources_per_worker": {"CPU": 3, "GPU": 1}}]
    assert [share_of(ray, device).room for device in (None, "cpu")] == [2, 5]


def test_lost_processes_begin_again_and_not_for_ever(there: Callable[..., Cluster], tmp_path: Path) -> None:
    gone = Failed(one=LOST("gone"))
    there(gone, Failed(one=RuntimeError("Connection closed by peer [::1]:1"), two=LOST("gone")))
    again = "a process of this training was lost: all begin again where the last epoch ended"
    assert train_in(tmp_path) == [again, again, "trained on cpu"]
    there(gone, gone, gone)
    with pytest.raises(TrainingError, match=r"a process was killed at work on the run \(3 times"):
        train_in(tmp_path)


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (
            Failed(one=LOST("gone"), two=RunError("it is planted. Dig it out.")),
            RunError,
            "^it is planted. Dig it out.$",
        ),
        (Failed(one=ModuleNotFoundError("No module named 'assay'")), RunError, "cannot do the work .*same version"),
        (Failed(one=LOST("gone"), two=ZeroDivisionError("ours")), RuntimeError, "training by Ray Train failed"),
        (ValueError("of Ray"), RuntimeError, "training by Ray Train failed:\nof Ray"),
    ],
)
def test_what_ends_it_is_raised(
    end: BaseException, error: type[Exception], message: str, there: Callable[..., Cluster], tmp_path: Path
) -> None:
    ray = there(end)
    with pytest.raises(error, match=message):
        train_in(tmp_path)
    assert len(ray.asked) == 1


def test_what_this_machine_has_no_room_for_is_refused_and_a_cluster_may_grow(
    there: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there()
    with pytest.raises(RunError, match=r"--workers 5: needs 5 cores, and this machine has 4. Give at most 4"):
        train_in(tmp_path, workers=5)
    with pytest.raises(RunError, match=r"--device cuda: the Ray cluster has no GPU"):
        train_in(tmp_path, device="cuda")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    note = "note: 5 workers need 5 cores, and the cluster has 4: they wait until it has grown"
    assert train_in(tmp_path, workers=5) == [note, "trained on cpu"]


def test_a_cluster_that_is_gone_ends_the_training(
    there: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threading import Event

    let_go = Event()
    monkeypatch.setattr(runs_on_ray, "PATIENCE", 0.02)
    monkeypatch.setattr("assay.scale.on_ray.answers", lambda address: False)
    monkeypatch.setattr(runs_on_ray, "answers", lambda address: False)
    there()
    with pytest.raises(RunError, match=r"the Ray cluster at machine:6379 is gone. What is done is kept"):
        train_together(lambda device: let_go.wait(), tmp_path, workers=1, device=None, progress=Lines())
    let_go.set()


def test_ray_train_is_not_installed(
    there: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there()
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(RunError, match=r"Ray Train is not installed .*: pip install 'assay-vision\[ray\]'"):
        train_in(tmp_path)


def test_a_signal_keeps_its_handler() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with kept_handler(signal.SIGTERM):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_machine_without_the_folder_or_of_another_version(tmp_path: Path) -> None:
    from assay import __version__

    with pytest.raises(RunError, match=r"nowhere: cannot be entered on .* folders that all machines share"):
        runs_on_ray._enter(str(tmp_path / "nowhere"), __version__)
    with pytest.raises(RunError, match=rf"has version {__version__}, and this one 0.0.1"):
        runs_on_ray._enter(str(tmp_path), "0.0.1")


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (
            ["--workers", "2"],
            {},
            "--workers: counts processes on a Ray cluster. Add --executor ray; without one, start",
        ),
        (["--executor", "local", "--workers", "2"], {}, "start the processes by torchrun"),
        (["--executor", "ray"], {}, "how many processes train together is part of a run. Say it: --workers 2"),
        (["--executor", "ray", "--workers", "2"], {"WORLD_SIZE": "2"}, "train --executor ray: it works in one process"),
    ],
)
def test_options_of_train(
    options: Sequence[str], environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["train", str(tmp_path), "--run", str(tmp_path / "run"), *options])
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()


# Many runs


def divided(number: int) -> int:
    if number == 13:
        raise RunError("it is planted. Dig it out.")
    return 20 // number


def spread(*numbers: int, workers: int | None = None) -> tuple[list[int], list[str]]:
    lines = Lines()
    return list(spread_on_ray(workers=workers, device="cpu", progress=lines)(divided, numbers)), lines.lines


def test_runs_are_tasks_as_many_at_once_as_wanted(there: Callable[..., Cluster]) -> None:
    ray = there()
    assert spread(1, 2, 4, workers=2) == ([20, 10, 5], [])
    assert (ray.most, ray.asked) == (2, [{"num_cpus": 1, "num_gpus": 0, "max_retries": 2}])
    assert spread(1, 2, 4, 5, 10) == ([20, 10, 5, 4, 2], [])
    assert ray.most == 4  # there is no room for more
    note = "note: 5 workers, and the cluster has room for 4: others begin as it grows"
    assert spread(1, 2, 4, 5, 10, workers=9) == ([20, 10, 5, 4, 2], [note])


def test_what_goes_wrong_in_a_task_ends_all(there: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_on_ray, "answers", lambda address: True)
    ray = there()
    with pytest.raises(RunError, match=r"^it is planted. Dig it out.$"):
        spread(1, 13, 2, 4, workers=2)
    assert ray.cancelled == [2]
    with pytest.raises(RuntimeError, match=r"(?s)work in another process failed:.*ZeroDivisionError"):
        spread(0)
    there(Cluster.exceptions.WorkerCrashedError("gone"))
    with pytest.raises(TrainingError, match=r"a process was killed at work on a run \(its process ended 3 times\)"):
        spread(1)


@pytest.mark.parametrize("command", ["sweep", "ablate"])
def test_options_of_many_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = CliRunner().invoke(app, [command, str(tmp_path), "--run", str(tmp_path / "run"), "--workers", "2"])
    assert (refused.exit_code, "Add --executor ray; without one" in refused.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


# With Ray


def test_two_processes_of_ray_end_in_the_bytes_of_torchrun(
    cluster: Any, tiny_plan: Callable[..., str], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(tiny_plan("fit: {size: 32, epochs: 2, batch: 8, freeze: 3, lr: 1e-3}"))
    options = ["--executor", "ray", "--workers", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, ["train", str(plan), "--run", str(tmp_path / "ray"), *options])
    assert done.exit_code == 0, done.output
    assert "2 processes" in done.output
    by_torchrun = launch(TORCHRUN, "-m", "--", "assay", "train", plan, "--run", tmp_path / "torchrun")
    assert by_torchrun.returncode == 0, by_torchrun.stderr
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("ray", "torchrun")]
    assert weights[0] == weights[1]


def test_trials_on_ray_are_those_of_this_machine(cluster: Any, tiny_plan: Callable[..., str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    search = "sweep: {sampler: grid, over: {steps.0.fit.batch: [8, 16, 36]}}\n"
    plan.write_text(tiny_plan("fit: {size: 32, epochs: 1, freeze: backbone}") + search)
    printed: list[Any] = []
    for name, *options in (("here",), ("ray", "--executor", "ray", "--workers", "2")):
        folder = ["--run", str(tmp_path / name), "--device", "cpu", "--json"]
        done = CliRunner().invoke(app, ["sweep", str(plan), *folder, *options])
        assert done.exit_code == 0, done.output
        printed.append([{**trial, "seconds": None} for trial in json.loads(done.stdout)["trials"]])
    assert printed[0] == printed[1]
