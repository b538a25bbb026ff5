"""The training loop, on a network of one layer and images of four numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.arrays import Ints
from assay.errors import TrainingError
from assay.labels.space import Head, LabelSpace
from assay.progress import NoProgress
from assay.training import fit_task
from assay.training.devices import Hardware
from assay.training.fit_task import Batch, EpochLogits, FitConfig, FitState, FitTask, TimeLimit
from assay.training.loop import fit, optimizer_step
from assay.training.losses import ByHead, head_losses
from assay.training.objective import Objective, Targets, counts, dense
from assay.training.processes import Machine, SingleProcess
from assay.training.sampling import Order, Shuffled, number_repeats
from assay.training.schedules import Constant, Cosine, ReduceOnPlateau
from assay.training.stopping import graceful_stop

SPACE = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")))
COURSE = FitConfig(
    epochs=2, batch=4, seed=7, width=SPACE.width, schedule=Constant(), monitor="loss", higher_is_better=False
)
N = 12


@dataclass
class Numbers:
    """Twelve images of four numbers; a third of the labels is unknown. Mixed ones keep more the later they stand."""

    inputs: Tensor
    codes: list[Tensor]
    weights: Tensor
    seen: list[tuple[int, list[int]]]  # epoch and rows, in the order asked for
    mixed: bool = False

    @property
    def ids(self) -> list[str]:
        return [f"{row}.png" for row in range(len(self.inputs))]

    def expect(self, epoch: int, batches: Iterable[tuple[Ints, Ints]]) -> None:
        pass

    def batch(self, epoch: int, rows: Ints, partners: Ints) -> Batch:
        self.seen.append((epoch, rows.tolist()))
        rows, partners = rows % N, partners % N
        share = self.share(rows)[:, None]
        inputs = self.inputs[rows].lerp(self.inputs[partners], 1 - share) if self.mixed else self.inputs[rows]
        return Batch(inputs, self.truths(rows, partners))

    def counts(self, epoch: int, rows: Ints, partners: Ints) -> Tensor:
        return counts(self.truths(rows, partners))

    def truths(self, rows: Ints, partners: Ints) -> tuple[Targets, ...]:
        rows, partners = rows % N, partners % N
        share = self.share(rows)
        own, other = (
            Targets(*dense(SPACE, [codes[of] for codes in self.codes]), self.weights[of]) for of in (rows, partners)
        )
        return (own.shared(share), other.shared(1 - share)) if self.mixed else (own,)

    def share(self, rows: Ints) -> Tensor:
        return torch.from_numpy(rows).float() / N


def numbers(mixed: bool = False) -> Numbers:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N, 4, generator=generator)
    kind = torch.randint(0, 3, (N,), generator=generator)
    tags = torch.randint(0, 2, (N, 2), generator=generator)
    kind[::3], tags[1::3, 0] = -1, -1
    return Numbers(inputs, [kind, tags], torch.rand(N, 2, generator=generator) + 0.5, [], mixed)


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(4, SPACE.width))


def job_of(
    *,
    model: nn.Module | None = None,
    lr: float = 0.1,
    mixed: bool = False,
    factors: tuple[float, ...] | None = None,
    metrics: Callable[[int], float] = lambda epoch: 1.0 / (1 + epoch),
    saved: list[tuple[str, dict[str, Tensor]]] | None = None,
    order: Order = Shuffled(N, seed=7),  # noqa: B008  (immutable)
) -> FitTask:
    """A job; `metrics` gives the validation loss of an epoch, `saved` takes the weights saved."""
    model = model or network()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": lr, "top_lr": lr}])
    epochs = iter(range(1000))

    def save(which: str) -> None:
        if saved is not None:
            saved.append((which, weights(model)))

    return FitTask(
        network=model,
        optimizer=optimizer,
        source=numbers(mixed),
        order=order,
        objective=Objective(SPACE, head_losses(SPACE, ByHead()), factors),
        to_training_mode=lambda: model.train() and None,
        evaluate=lambda rows, logits: {"training": {}, "validation": {"loss": metrics(next(epochs))}},
        save=save,
    )


class One(SingleProcess):
    """One of several processes."""

    def __init__(self, rank: int, count: int) -> None:
        self.process_index, self.num_processes = rank, count


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(folder: Path, job: FitTask | None = None, **changes: Any) -> tuple[FitState, dict[str, Tensor], FitTask]:
    job = job or job_of()
    machine = Machine(SingleProcess(), Hardware())
    done = fit(
        job, replace(COURSE, **changes), machine=machine, checkpoint=folder / "checkpoint", progress=NoProgress()
    )
    return done, weights(job.network), job


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("batch", "accumulate"), [(3, 2), (2, 3), (3, 4), (1, 6), (5, 2)])
def test_accumulated_parts_are_one_large_batch(batch: int, accumulate: int, mixed: bool, tmp_path: Path) -> None:
    whole, large, _ = trained(tmp_path / "whole", job_of(mixed=mixed), batch=batch * accumulate)
    parts, small, _ = trained(tmp_path / "parts", job_of(mixed=mixed), batch=batch, accumulate=accumulate)
    assert same(large, small, 1e-6)
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one["training"]["loss"] == pytest.approx(other["training"]["loss"], rel=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("batch", "accumulate", "ranks"), [(12, 1, 1), (3, 4, 1), (6, 2, 2), (12, 1, 3)])
def test_the_parts_of_an_optimiser_step_have_the_gradient_of_the_whole(
    batch: int, accumulate: int, ranks: int, mixed: bool
) -> None:
    course = replace(COURSE, batch=batch, accumulate=accumulate)
    rows = np.random.default_rng(0).permutation(N)
    gradients = []
    for rank in range(ranks):  # each has the gradient of its part; Accelerate takes their mean
        job = job_of(mixed=mixed)
        machine = Machine(One(rank, ranks), Hardware())
        machine.optimizer_step = lambda *given, **named: None  # type: ignore[method-assign]
        progress = FitState(sums=[0.0, 0.0], counts=[0.0, 0.0])
        optimizer_step(job, course, progress, machine, job.network, rows, EpochLogits.empty(N, SPACE.width))
        gradients.append(gradient(job.network))
    job = job_of(mixed=mixed)
    whole = job.source.batch(0, rows, np.roll(rows, 1))
    job.objective(job.network(whole.inputs), whole.known).loss.backward()
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), gradient(job.network))


@pytest.mark.parametrize("batch", [1, 5, 7, 12])
def test_partners_are_the_images_of_the_optimiser_step_each_once(batch: int, tmp_path: Path) -> None:
    job, pairs = job_of(), []
    of = job.source.truths
    job.source.truths = lambda rows, partners: (pairs.append((rows, partners)), of(rows, partners))[1]
    trained(tmp_path, job, epochs=1, batch=batch)
    assert sum(len(rows) for rows, _ in pairs) == 2 * N  # the counts, then the batch
    for rows, partners in pairs:
        assert sorted(rows) == sorted(partners)
        assert len(rows) == 1 or (rows != partners).all()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("factors", [None, (0.5, 3.0)])
def test_the_loss_of_an_epoch_is_that_of_one_large_batch(
    factors: tuple[float, ...] | None, mixed: bool, tmp_path: Path
) -> None:
    job = job_of(lr=0.0, mixed=mixed, factors=factors)
    done, after, _ = trained(tmp_path, job, epochs=1, batch=5, accumulate=2)
    assert same(after, weights(network()))
    order = np.array([row for _, rows in job.source.seen for row in rows])
    steps = np.array_split(order, 2)
    batch = job.source.batch(0, order, np.concatenate([np.roll(rows, 1) for rows in steps]))
    with torch.inference_mode():
        found = job.objective(job.network(batch.inputs), batch.known)
    assert done.history[0]["training"]["loss"] == pytest.approx(float(found.loss), rel=1e-5)
    expected = [factor * s / c for factor, s, c in zip(factors or (1, 1), found.sums, found.counts, strict=True)]
    assert float(found.loss) == pytest.approx(float(sum(expected)), rel=1e-5)


def test_the_watch_is_told_the_mean_so_far(tmp_path: Path) -> None:
    class Listening(NoProgress):
        def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
            told.append((metrics or {})["loss"])

    told: list[float] = []
    machine = Machine(SingleProcess(), Hardware())
    done = fit(job_of(), replace(COURSE, epochs=1), machine=machine, checkpoint=tmp_path / "c", progress=Listening())
    assert len(told) == 3
    assert told[-1] == done.history[0]["training"]["loss"]


def test_an_unknown_label_changes_nothing(tmp_path: Path) -> None:
    job = job_of()
    known = job.source.codes[0] >= 0
    for codes in job.source.codes:
        codes[~known] = -1
    _, before, _ = trained(tmp_path / "one", job)
    job = job_of()
    for codes in job.source.codes:
        codes[~known] = -1
    job.source.inputs[~known] += 100.0
    _, after, _ = trained(tmp_path / "two", job)
    assert same(before, after)


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    _, _, job = trained(tmp_path, epochs=3, batch=5)
    orders = [[row for of, rows in job.source.seen if of == epoch for row in rows] for epoch in range(3)]
    assert [sorted(order) for order in orders] == [list(range(N))] * 3
    assert orders[0] != orders[1] != orders[2]


@dataclass(frozen=True)
class Listed:
    """The same images in every epoch."""

    images: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.images)

    def rows(self, epoch: int) -> Ints:
        return number_repeats(np.array(self.images), N)


def test_training_metrics_are_of_the_images_shown_each_once(tmp_path: Path) -> None:
    seen: list[tuple[list[int], Tensor]] = []

    def evaluate(rows: Ints, logits: Tensor) -> dict[str, dict[str, float]]:
        seen.append((rows.tolist(), logits))
        return {"validation": {"loss": 1.0}}

    job = replace(job_of(lr=0.0, order=Listed((3, 5, 3, 0, 3, 5, 11))), evaluate=evaluate)
    trained(tmp_path, job, epochs=2, batch=2)
    with torch.inference_mode():
        expected = job.network(job.source.inputs[[0, 3, 5, 11]])
    for rows, logits in seen:
        assert rows == [0, 3, 5, 11]
        torch.testing.assert_close(logits, expected)
    assert [row for epoch, rows in job.source.seen if epoch == 1 for row in rows] == [3, 5, 15, 0, 27, 17, 11]
    assert len(job.source.seen) == 2 * 4


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_share_of_every_optimiser_step_has_partners_and_the_rest_is_as_it_was(share: float, tmp_path: Path) -> None:
    job, pairs = replace(job_of(mixed=True), mixed=share), []
    of = job.source.counts
    job.source.counts = lambda epoch, rows, partners: (pairs.append((rows, partners)), of(epoch, rows, partners))[1]
    trained(tmp_path, job, epochs=1)
    assert [int((rows != partners).sum()) for rows, partners in pairs] == [round(4 * share)] * 3


@pytest.mark.parametrize(
    ("batch", "accumulate", "sizes"), [(4, 1, [4, 4, 4]), (5, 1, [4, 4, 4]), (5, 2, [3, 3, 3, 3]), (99, 1, [12])]
)
def test_batches_are_of_one_size_give_or_take_a_image(
    batch: int, accumulate: int, sizes: list[int], tmp_path: Path
) -> None:
    _, _, job = trained(tmp_path, epochs=1, batch=batch, accumulate=accumulate)
    assert [len(rows) for _, rows in job.source.seen] == sizes


@pytest.mark.parametrize(("batch", "accumulate", "steps"), [(4, 1, 3), (5, 1, 3), (4, 3, 1), (5, 2, 2), (1, 1, 12)])
def test_optimizer_steps_an_epoch(batch: int, accumulate: int, steps: int, tmp_path: Path) -> None:
    job, taken = job_of(), []
    step = job.optimizer.step
    job.optimizer.step = lambda *given, **named: (taken.append(1), step(*given, **named))[1]  # type: ignore[method-assign]
    trained(tmp_path, job, epochs=2, batch=batch, accumulate=accumulate)
    assert len(taken) == 2 * steps


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / str(number), job_of(model=network(0.5), order=Shuffled(N, seed)), seed=seed)[1]
        for number, seed in enumerate((1, 1, 2))
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    trained(tmp_path, job_of(model=network(0.5)))
    assert torch.equal(torch.rand(3), wanted)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    _, after, _ = trained(tmp_path, job_of(lr=1.0), epochs=1, batch=N, clip=1e-3)
    before = weights(network())
    moved = torch.cat([(after[name] - before[name]).flatten() for name in after]).norm()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_is_saved_and_the_weights_go_on(tmp_path: Path) -> None:
    saved: list[tuple[str, dict[str, Tensor]]] = []
    _, own, _ = trained(tmp_path / "ema", job_of(saved=saved), ema=0.5)
    _, plain, _ = trained(tmp_path / "plain")
    assert same(own, plain)
    expected, states = weights(network()), []
    for epochs in range(6):  # the weights after every optimiser step, each of them trained anew
        job = job_of(saved=None)
        step, left = job.optimizer.step, [epochs + 1]

        def counted(*given: Any, step: Any = step, left: list[int] = left, **named: Any) -> Any:
            left[0] -= 1
            return step(*given, **named) if left[0] >= 0 else None

        job.optimizer.step = counted  # type: ignore[method-assign]
        states.append(trained(tmp_path / str(epochs), job)[1])
    for number, state in enumerate(states):
        decay = min(0.5, (1 + number) / (10 + number))
        expected = {name: decay * expected[name] + (1 - decay) * state[name] for name in state}
    assert same(saved[-1][1], expected, 1e-6)


def test_best_is_saved_when_validation_is_better_and_last_always(tmp_path: Path) -> None:
    saved: list[tuple[str, dict[str, Tensor]]] = []
    losses = [3.0, 1.0, math.nan, 2.0]
    done, after, _ = trained(tmp_path, job_of(metrics=lambda epoch: losses[epoch], saved=saved), epochs=4)
    assert [which for which, _ in saved] == ["best", "last", "best", "last", "last", "last"]
    assert (done.best, done.best_epoch) == (1.0, 2)
    assert [row["best"] for row in done.history] == [True, True, False, False]
    assert same(saved[-1][1], after)


@pytest.mark.parametrize(("patience", "best"), [(None, 3), (3, 2)])
def test_of_equal_epochs_the_later_is_the_best_unless_it_would_never_end(
    tmp_path: Path, patience: int | None, best: int
) -> None:
    values = [3.0, 1.0, 1.0, 2.0]
    done, _, _ = trained(tmp_path, job_of(metrics=lambda epoch: values[epoch]), epochs=4, patience=patience)
    assert done.best_epoch == best


def test_a_metric_that_is_no_number_is_beaten_by_any(tmp_path: Path) -> None:
    losses = [math.nan, 5.0, 6.0]
    done, _, _ = trained(tmp_path, job_of(metrics=lambda epoch: losses[epoch]), epochs=3)
    assert (done.best, done.best_epoch) == (5.0, 2)


def test_without_validation_the_newest_epoch_is_the_best(tmp_path: Path) -> None:
    job = replace(job_of(), evaluate=lambda rows, logits: {"validation": {}})
    done, _, _ = trained(tmp_path, job, epochs=3, patience=1)
    assert (done.epoch, done.best, done.best_epoch) == (3, None, 3)


@pytest.mark.parametrize(
    ("losses", "patience", "epochs"), [([1, 2, 3, 4], 1, 2), ([1, 2, 0, 4, 5], 2, 5), ([3, 2, 1, 0], 1, 4)]
)
def test_patience(losses: list[float], patience: int, epochs: int, tmp_path: Path) -> None:
    job = job_of(metrics=lambda epoch: float(losses[epoch]))
    assert trained(tmp_path, job, epochs=len(losses), patience=patience)[0].epoch == epochs


def ticking(seconds: float) -> TimeLimit:
    """A limit by a clock that is a second later every time it is read."""
    return TimeLimit(seconds, clock=map(float, itertools.count()).__next__)


def test_a_fit_within_seconds_ends_within_an_epoch_with_the_rate_it_should_end_with(tmp_path: Path) -> None:
    changes = {"epochs": 100, "schedule": Cosine(), "limit": ticking(12.0)}
    done, _, job = trained(tmp_path, **changes)
    assert 6 <= done.total <= 12  # optimiser steps, validations left out
    assert done.total < 300
    assert [row["epoch"] for row in done.history] == list(range(1, math.ceil(done.total / 3) + 1))
    assert max(group["lr"] for group in job.optimizer.param_groups) < 0.02  # of 0.1
    again, _, untouched = trained(tmp_path, **changes)  # what is over stays so
    assert again == done
    assert untouched.source.seen == []  # type: ignore[attr-defined]


def test_a_plateau_lowers_the_learning_rate(tmp_path: Path) -> None:
    plateau = ReduceOnPlateau(factor=0.1, patience=0)
    done, _, _ = trained(tmp_path, job_of(metrics=lambda epoch: 1.0), epochs=3, schedule=plateau)
    assert [row["lr"] for row in done.history] == pytest.approx([0.1, 0.1, 0.01])


def test_a_loss_that_is_not_finite_names_the_images(tmp_path: Path) -> None:
    job = job_of()
    job.source.inputs[4] = math.inf
    job.source.codes[0][4] = 1
    with pytest.raises(TrainingError, match=r"not finite \(epoch 1, optimiser step \d+\).*Lower lr.*\b4\.png"):
        trained(tmp_path, job)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_names_the_batch_to_try(error: Exception, tmp_path: Path) -> None:
    class Greedy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    job = job_of(model=Greedy(4, SPACE.width))
    with pytest.raises(TrainingError, match=r"batch of 4 does not fit.*batch: 2 and accumulate: 6, which trains alike"):
        trained(tmp_path, job, accumulate=3)


def test_the_allocator_of_this_machine_is_understood(tmp_path: Path) -> None:
    class Vast(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.empty(1 << 55)

    with pytest.raises(TrainingError, match="does not fit into memory"):
        trained(tmp_path, job_of(model=Vast(4, SPACE.width)))


def test_other_faults_are_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        trained(tmp_path, job_of(model=nn.Linear(5, SPACE.width)))


@pytest.mark.parametrize(("ema", "mixed"), [(None, False), (0.9, False), (None, True)])
def test_a_fit_that_was_stopped_goes_on_to_the_same_weights(ema: float | None, mixed: bool, tmp_path: Path) -> None:
    import os
    import signal

    whole, wanted, _ = trained(tmp_path / "whole", job_of(model=network(0.5), mixed=mixed), ema=ema)
    job = job_of(model=network(0.5), mixed=mixed)
    step = job.optimizer.step

    def stopped(*given: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*given, **named)

    job.optimizer.step = stopped  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as left, graceful_stop():
        trained(tmp_path / "two", job, ema=ema)
    assert left.value.code == 143
    again, found, later = trained(tmp_path / "two", job_of(model=network(0.5), mixed=mixed), ema=ema)
    assert len(later.source.seen) == 5  # of 6
    assert same(found, wanted)
    assert [row["training"] for row in again.history] == [row["training"] for row in whole.history]


def test_mean_logits_of_very_many_images_are_those_of_a_random_part(monkeypatch: pytest.MonkeyPatch) -> None:
    every = EpochLogits.empty(50, 3)
    monkeypatch.setattr(fit_task, "MOST_LOGITS", 30)
    some = EpochLogits.empty(50, 3)
    rows, logits = np.array([*range(40), 7, 50 + 9]), torch.randn(42, 3)
    for kept in (every, some):
        kept.add(rows, logits)
    images, means = every.means(lambda tensor: tensor)
    part, of_part = EpochLogits.of(some.sums, some.times, 50).means(lambda tensor: tensor)
    assert images.tolist() == list(range(40))
    assert part.tolist() == [image for image in some.images.tolist() if image < 40]
    assert len(some.images) == 10
    assert of_part.allclose(means[np.isin(images, part)])
