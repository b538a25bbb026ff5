"""The choice of precision and memory layout, with made-up clocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from assay.errors import PlanError
from assay.files import RunFolder
from assay.progress import Lines
from assay.run.prepare import pinned_hardware
from assay.training import devices
from assay.training.devices import (
    Hardware,
    HardwareSettings,
    Trial,
    candidates,
    choose_fastest,
    pick_device,
    plan_trial,
)
from assay.training.processes import Machine, SingleProcess

LAYOUTS: tuple[devices.Layout, ...] = ("contiguous", "channels_last")
PRECISIONS: tuple[devices.Precision, ...] = ("fp32", "bf16")
OPTIONS = [Hardware("cpu", precision, layout) for precision in PRECISIONS for layout in LAYOUTS]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a step moves it."""
    now = [0.0]
    monkeypatch.setattr("assay.training.devices.time.perf_counter", lambda: now[0])
    return now


def steps_taking(clock: list[float], seconds: list[list[float]], taken: list[Hardware]) -> Callable[..., object]:
    """`prepare` for options that take these seconds, step by step, in the order of the options."""
    lists = iter(seconds)

    def prepare(option: Hardware) -> Callable[[], object]:
        times = iter(next(lists))

        def step() -> None:
            taken.append(option)
            clock[0] += next(times)

        return step

    return prepare


def test_the_fastest_is_chosen_by_its_best_step(clock: list[float]) -> None:
    taken: list[Hardware] = []
    seconds = [[9, 2, 3], [5, 1.5, 4], [4, 2, 1], [2, 9, 1.25]]
    best, told = choose_fastest(OPTIONS, steps_taking(clock, seconds, taken))
    assert best == OPTIONS[2]
    assert told == {"fp32 contiguous": 2, "fp32 channels_last": 1.5, "bf16 contiguous": 1, "bf16 channels_last": 1.25}
    assert len(taken) == 12


def test_what_is_far_too_slow_is_given_up_after_one_step(clock: list[float]) -> None:
    taken: list[Hardware] = []
    best, told = choose_fastest(OPTIONS[:3], steps_taking(clock, [[1, 1, 1], [3], [2.9, 0.5, 0.5]], taken))
    assert best == OPTIONS[2]
    assert told["fp32 channels_last"] == 3
    assert [taken.count(option) for option in OPTIONS[:3]] == [3, 1, 3]


def test_the_safest_wins_a_draw(clock: list[float]) -> None:
    best, _ = choose_fastest(OPTIONS, steps_taking(clock, [[1, 1]] * 4, []), repeats=1)
    assert best == OPTIONS[0]


@pytest.mark.parametrize(
    ("images", "options", "batch", "repeats"),
    [
        (None, 4, 32, 2),
        (100_000, 4, 32, 2),
        (13_824, 4, 30, 2),  # 414 images in 12 passes, each of which costs 4 more
        (8_000, 4, 16, 2),
        (6_000, 4, 18, 1),
        (4_000, 3, 16, 1),
        (1_728, 2, 8, 1),
        (1_500, 1, 32, 0),
    ],
)
def test_a_trial_takes_three_hundredths_of_the_images_at_most(
    images: int | None, options: int, batch: int, repeats: int
) -> None:
    trial = plan_trial(OPTIONS, images=images, batch=32, repeats=2)
    assert (trial.options, trial.batch, trial.repeats) == (OPTIONS[:options], batch, repeats)
    if images is not None and options > 1:
        assert options * batch * (1 + repeats) <= 0.03 * images


def test_a_choice_tells_what_its_trial_took(clock: list[float]) -> None:
    choice = Trial(OPTIONS[:2], 8, 1).choose(steps_taking(clock, [[9, 2], [5, 1]], []))
    assert (choice.hardware, choice.batch, choice.taken) == (OPTIONS[1], 8, 17)
    assert choice.seconds == {"fp32 contiguous": 2, "fp32 channels_last": 1}
    untimed = Trial(OPTIONS[:1], 32, 0).choose(steps_taking(clock, [], []))
    assert (untimed.hardware, untimed.seconds, untimed.taken) == (OPTIONS[0], {}, 0)


def test_real_steps_are_timed() -> None:
    best, told = choose_fastest([Hardware()], lambda option: lambda: sum(range(1000)))
    assert best == Hardware()
    assert list(told) == ["fp32 contiguous"]


@pytest.mark.parametrize(("bf16", "half"), [(True, "bf16"), (False, "fp16")])
def test_half_precision_on_cuda_is_what_the_chip_has(bf16: bool, half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: bf16)
    found = [(option.device, option.precision, option.layout) for option in candidates("cuda:1")]
    assert found[:3] == [("cuda:1", "fp32", layout) for layout in LAYOUTS] + [("cuda:1", half, "channels_last")]
    assert found[3:] == [("cuda:1", half, "contiguous")]


@pytest.mark.parametrize(("pays", "precisions"), [(True, {"fp32", "bf16"}), (False, {"fp32"})])
def test_bf16_on_a_cpu_only_where_it_pays(pays: bool, precisions: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_bf16_pays", lambda: pays)
    found = candidates("cpu")
    assert found[0] == Hardware()
    assert {option.precision for option in found} == precisions


@pytest.mark.parametrize(("pays", "precision"), [(True, "bf16"), (False, "fp32")])
def test_mixed_precision_is_chosen_once_a_run(
    pays: bool, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, progress = RunFolder(tmp_path), Lines()
    mixed = HardwareSettings(precision="mixed", layout="channels_last")
    monkeypatch.setattr(devices, "_bf16_pays", lambda: pays)
    chosen = pinned_hardware(mixed, "cpu", run, progress=progress)
    assert chosen == Hardware("cpu", precision, "channels_last")  # type: ignore[arg-type]
    assert ("fp32, since cpu is fast in neither" in progress.lines[0]) is not pays
    monkeypatch.setattr(devices, "_bf16_pays", lambda: not pays)  # the clock differs from run to run
    assert pinned_hardware(mixed, "cpu", run, progress=progress) == chosen
    assert len(progress.lines) == 1


def test_whether_bf16_pays_is_measured() -> None:
    found = candidates("cpu")
    assert len(found) in (len(LAYOUTS), 2 * len(LAYOUTS))
    assert len(set(found)) == len(found)


def there(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)


@pytest.mark.parametrize(("cuda", "mps", "best"), [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps")])
def test_the_best_device_there_is(cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device(None) == best
    assert pick_device("cpu") == "cpu"


def test_a_device_may_be_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, cuda=True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert pick_device("cuda:1") == "cuda:1"
    with pytest.raises(PlanError, match=r"cuda:2.*cuda:0, cuda:1.*--device"):
        pick_device("cuda:2")


@pytest.mark.parametrize("wanted", ["cuda", "cuda:1", "gpu", "", "mps", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch)
    with pytest.raises(PlanError, match=r"this machine has cpu\. Choose one of them with --device"):
        pick_device(wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_images_are_placed_in_the_layout(layout: devices.Layout) -> None:
    placed = Hardware(layout=layout).to_device(torch.rand(2, 3, 4, 5))
    assert placed.shape == (2, 3, 4, 5)
    assert placed.is_contiguous(memory_format=Hardware(layout=layout).memory_format)


@pytest.mark.parametrize("shape", [(2, 7), (4,), (2, 3, 4)])
def test_features_are_placed_as_they_are(shape: tuple[int, ...]) -> None:
    values = torch.rand(shape)
    assert torch.equal(Hardware(layout="channels_last").to_device(values), values)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_precision_of_a_product(precision: devices.Precision, dtype: torch.dtype) -> None:
    with Hardware(precision=precision).autocast():
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == dtype


def test_a_choice_survives_json() -> None:
    assert Hardware(**Hardware("cuda", "fp16", "channels_last").to_json()) == Hardware("cuda", "fp16", "channels_last")


def stepped(machine: Machine, clip: float | None = None) -> nn.Linear:
    network = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    machine.backward(network(torch.tensor([[3.0, 4.0, 0.0]])).sum())
    machine.optimizer_step(network, optimizer, clip=clip)
    assert network.weight.grad is None
    return network


def test_without_fp16_nothing_is_scaled() -> None:
    machine = Machine(SingleProcess(), Hardware("cpu", "bf16"))
    assert stepped(machine).weight.tolist() == [[-2.0, -3.0, 1.0]]
    assert machine.scaler_state() == {}
    machine.restore_scaler({})


def test_fp16_scales_and_a_clip_sees_the_gradient_itself() -> None:
    machine = Machine(SingleProcess(), Hardware("cpu", "fp16"))
    assert stepped(machine).weight.tolist() == [[-2.0, -3.0, 1.0]]
    assert stepped(machine, clip=1.0).weight.tolist()[0] == pytest.approx([0.4, 0.2, 1.0], abs=1e-5)
    assert machine.scaler_state()["scale"] > 1
    again = Machine(SingleProcess(), Hardware("cpu", "fp16"))
    again.restore_scaler({**machine.scaler_state(), "scale": 8.0})
    assert again.scaler_state()["scale"] == 8.0


def test_a_machine_alone_sums_nothing() -> None:
    machine = Machine(SingleProcess(), Hardware())
    network = nn.Linear(1, 1)
    assert machine.wrap(network) is network
    assert machine.sum(torch.tensor([2.0])).tolist() == [2.0]
    assert (machine.of_main(3.0), machine.of_main(None)) == (3.0, None)
    assert (machine.rank, machine.count, machine.is_main, machine.seeded_devices) == (0, 1, True, [])
