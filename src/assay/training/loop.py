"""The training loop. There is one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from assay.arrays import Ints
from assay.errors import DivergedError, PlanError, TrainingError
from assay.progress import GivenUpError, Progress
from assay.training.checkpoint import (
    Average,
    load_tensors,
    optimizer_tensors,
    out_of,
    restore_optimizer,
    save_tensors,
    stop_requested,
    within,
)
from assay.training.devices import Machine
from assay.training.fit_task import EpochLogits, FitConfig, FitState, FitTask, Unlabelled
from assay.training.optimizers import set_rate
from assay.training.sampling import partners, split_batches
from assay.training.schedules import rate


def fit(job: FitTask, course: FitConfig, *, machine: Machine, checkpoint: Path, progress: Progress) -> FitState:
    """Train to the end of the course, from `checkpoint` if there is one.

    Every random draw is a function of (seed, epoch, optimiser step, image), so that what follows a
    checkpoint is what would have followed without it, bit for bit on a CPU with the same thread count.
    Raises DivergedError where the loss is not finite, TrainingError where memory does not suffice.
    """
    average = Average(job.network, course.ema) if course.ema else None
    fit_state, answered = _restore(job, course, average, machine, checkpoint)
    forward = machine.wrap(job.network)
    per_epoch = len(split_batches(np.arange(job.order.length), course.step_size))
    saver = _Saver(job, average, machine, checkpoint, course.save_every)
    with torch.random.fork_rng(devices=machine.seeded_devices):
        while fit_state.epoch < course.epochs and not _exhausted(fit_state, course):
            steps = split_batches(job.order.rows(fit_state.epoch), course.step_size)
            job.to_training_mode()
            started = time.perf_counter()
            for rows in steps[fit_state.batch :]:
                done = fit_state.epoch * per_epoch + fit_state.batch
                _set_rate(job.optimizer, course, fit_state, done, per_epoch)
                # For dropout; images have their own draws.
                torch.manual_seed(_seed_of(course.seed, done, machine.rank))
                optimizer_step(job, course, fit_state, machine, forward, rows, answered)
                if average is not None:
                    average.update(job.network, done)
                fit_state.batch += 1
                progress.advance(len(rows), _so_far(job, fit_state))
                if saver.due():
                    fit_state.seconds += time.perf_counter() - started
                    started = time.perf_counter()
                    saver.write(fit_state, answered)
                stop_requested(leave=True)
            fit_state.seconds += time.perf_counter() - started
            _end_epoch(job, course, fit_state, machine, average, answered)
            progress.line(_line(fit_state, course))
            try:
                progress.epoch(fit_state.history[-1])  # before the checkpoint: told of every one
            except GivenUpError:
                saver.write(fit_state, answered)
                raise
            saver.write(fit_state, answered)
            stop_requested(leave=True)
    return fit_state


def optimizer_step(
    job: FitTask,
    course: FitConfig,
    fit_state: FitState,
    machine: Machine,
    forward: nn.Module,
    rows: Ints,
    answered: EpochLogits,
) -> None:
    """One optimiser step on these rows: the loss of each part of them, its gradient, and the change of the weights.

    Raises DivergedError where the loss is not finite, TrainingError where memory does not suffice.
    """
    # Each part is divided by the counts of the whole, and partners are of the whole, so that parts add up to
    # the loss of one large batch.
    others = partners(rows, job.mixed)
    over = job.source.counts(fit_state.epoch, rows, others) / machine.count
    for part in np.array_split(np.arange(len(rows)), min(course.accumulate, len(rows))):
        places = part[machine.rank :: machine.count]  # none where a part has fewer images than there are processes
        mine = rows[places]
        batch = job.source.batch(fit_state.epoch, mine, others[places])
        try:
            with machine.hardware.autocast():
                answers = forward(batch.inputs)
            loss, sums, counts = job.objective(answers, batch.known, over)
            totals = sums.tolist()
            if not all(map(math.isfinite, totals)):
                ids = job.source.ids
                raise _not_finite(fit_state, [ids[row % len(ids)] for row in mine])
            machine.backward(loss)
        except RuntimeError as error:
            raise _too_large(error, course) from error
        except ValueError as error:
            raise _too_small(error, len(mine)) from error
        answered.add(mine, answers)
        fit_state.sums = _added(fit_state.sums, totals)
        fit_state.counts = _added(fit_state.counts, counts.tolist())
    if job.unlabelled is not None:
        _follow_unlabelled(job.unlabelled, len(rows), course, fit_state, machine, forward)
    machine.optimizer_step(job.network, job.optimizer, clip=course.clip)


def _follow_unlabelled(
    unlabelled: Unlabelled, count: int, course: FitConfig, fit_state: FitState, machine: Machine, forward: nn.Module
) -> None:
    """Add the gradients of what is learnt from images with unknown labels, beside `count` labelled ones."""
    try:
        for loss, names in unlabelled.losses(count, forward, machine):
            if not math.isfinite(float(loss.detach())):
                raise _not_finite(fit_state, names)
            machine.backward(loss)
    except RuntimeError as error:
        raise _too_large(error, course) from error


def _end_epoch(
    job: FitTask,
    course: FitConfig,
    fit_state: FitState,
    machine: Machine,
    average: Average | None,
    answered: EpochLogits,
) -> None:
    sums, counts = machine.sum(torch.tensor([fit_state.sums, fit_state.counts], dtype=torch.float64)).tolist()
    lr = max(group["lr"] for group in job.optimizer.param_groups)
    shown, logits = answered.means(machine.sum)
    with averaged(job.network, average):
        parts = job.evaluate(shown, logits)
        parts.setdefault("training", {})["loss"] = _mean_loss(job, sums, counts)
        if job.unlabelled is not None:
            parts["training"]["above_threshold"] = job.unlabelled.above_threshold
            parts["unlabelled"] = job.unlabelled.end_epoch()
        _require_monitored(course.monitor, parts["validation"])
        monitored = machine.of_main(parts["validation"].get(course.monitor))
        if monitored is not None:
            parts["validation"][course.monitor] = monitored  # a schedule may watch it, and rates must not differ
        better = monitored is None or fit_state.best is None or _better(monitored, fit_state.best, course)
        if machine.is_main:
            if better:
                job.save("best")
            job.save("last")
    fit_state.epoch += 1
    if better:
        fit_state.best, fit_state.best_epoch = monitored, fit_state.epoch
    fit_state.history.append(
        {"epoch": fit_state.epoch, "lr": lr, "seconds": round(fit_state.seconds, 3), **parts, "best": better}
    )
    fit_state.batch, fit_state.sums, fit_state.counts = 0, _zeros(job), _zeros(job)
    answered.forget()


@contextmanager
def averaged(network: nn.Module, average: Average | None) -> Iterator[None]:
    """Within the block the network has its averaged weights."""
    if average is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in network.state_dict().items()}
    network.load_state_dict(average.tensors)
    try:
        yield
    finally:
        network.load_state_dict(own)


class _Saver:
    """Writes a checkpoint when one is due: often enough to lose little, seldom enough to cost under 2 %."""

    def __init__(self, job: FitTask, average: Average | None, machine: Machine, path: Path, every: float) -> None:
        self.job, self.average, self.machine, self.path, self.every = job, average, machine, path, every
        self.last, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        # Several processes would have to agree on the moment and bring together what each has seen of the
        # epoch: they save at the end of one only.
        late = time.monotonic() - self.last > max(self.every, 50 * self.cost)
        return self.machine.count == 1 and (late or stop_requested())

    def write(self, fit_state: FitState, answered: EpochLogits) -> None:
        if not self.machine.is_main:
            return
        began = time.monotonic()
        tensors = within("network", self.job.network.state_dict())
        tensors |= {"logits": answered.sums, "times": answered.times}
        if self.average is not None:
            tensors |= within("average", self.average.tensors)
        if self.job.unlabelled is not None:
            tensors |= within("unlabelled", self.job.unlabelled.state())
        state, numbers = optimizer_tensors(self.job.optimizer)
        values = {"fit_state": asdict(fit_state), "optimizer": numbers, "scaler": self.machine.scaler_state()}
        save_tensors(self.path, tensors | within("optimizer", state), values)
        self.last = time.monotonic()
        self.cost = self.last - began


def _restore(
    job: FitTask, course: FitConfig, average: Average | None, machine: Machine, checkpoint: Path
) -> tuple[FitState, EpochLogits]:
    if not checkpoint.exists():
        return FitState(sums=_zeros(job), counts=_zeros(job)), EpochLogits.nothing(len(job.source.ids), course.width)
    tensors, values = load_tensors(checkpoint, device=machine.hardware.device)
    job.network.load_state_dict(out_of("network", tensors))
    restore_optimizer(job.optimizer, out_of("optimizer", tensors), values["optimizer"])
    machine.restore_scaler(values["scaler"])
    if average is not None:
        average.restore(out_of("average", tensors))
    if job.unlabelled is not None:
        job.unlabelled.restore(out_of("unlabelled", tensors))
    fit_state = FitState(**values["fit_state"])
    answered = EpochLogits(tensors["logits"].cpu(), tensors["times"].cpu())
    if not machine.is_main:  # what one process saw of an unfinished epoch counts once
        fit_state.sums, fit_state.counts = _zeros(job), _zeros(job)
        answered.forget()
    return fit_state, answered


def _set_rate(
    optimizer: torch.optim.Optimizer, course: FitConfig, fit_state: FitState, done: int, per_epoch: int
) -> None:
    watched = [row["validation"].get(course.monitor, math.nan) for row in fit_state.history]
    now = rate(
        course.schedule,
        done,
        total=course.epochs * per_epoch,
        per_epoch=per_epoch,
        history=watched,
        higher_is_better=course.higher_is_better,
    )
    set_rate(optimizer, now.lr_factor, momentum=now.momentum)


def _zeros(job: FitTask) -> list[float]:
    return [0.0] * len(job.objective.losses)


def _added(so_far: list[float], more: list[float]) -> list[float]:
    return [a + b for a, b in zip(so_far, more, strict=True)]


def _mean_loss(job: FitTask, sums: list[float], counts: list[float]) -> float:
    both = torch.tensor([sums, counts], dtype=torch.float64)
    return float(job.objective.mean(both[0], both[1]))


def _so_far(job: FitTask, fit_state: FitState) -> dict[str, float]:
    """What is shown of an epoch while it goes on."""
    loss = {"loss": _mean_loss(job, fit_state.sums, fit_state.counts)}
    return loss if job.unlabelled is None else loss | {"above threshold": job.unlabelled.above_threshold}


def _seed_of(seed: int, step: int, rank: int) -> int:
    place = [seed, step, rank] if rank else [seed, step]  # processes that drop the same units would see half as many
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def _better(value: float, best: float, course: FitConfig) -> bool:
    if math.isnan(best):
        return not math.isnan(value)
    return value > best if course.higher_is_better else value < best


def _exhausted(fit_state: FitState, course: FitConfig) -> bool:
    return course.patience is not None and fit_state.epoch - fit_state.best_epoch >= course.patience


def _too_large(error: RuntimeError, course: FitConfig) -> Exception:
    said = ("not enough memory", "can't allocate memory")  # by the CPU's allocator, which has no error of its own
    if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in said):
        return error
    return TrainingError(
        f"a batch of {course.batch} does not fit into memory. Set batch: {max(1, course.batch // 2)} "
        f"and accumulate: {course.accumulate * 2}, which trains alike."
    )


def _too_small(error: ValueError, count: int) -> Exception:
    if "Expected more than 1 value per channel" not in str(error):
        return error
    return TrainingError(
        f"batch_norm: train takes statistics over the images of a process, and one had {count}. Raise batch, start "
        "fewer processes, or set batch_norm: frozen."
    )


def _require_monitored(name: str, metrics: Mapping[str, float]) -> None:
    """Without validation the last epoch is the best; with it, a metric that is not there chooses nothing."""
    if metrics and name not in metrics:
        raise PlanError(f"monitor: {name}: is not measured on this data. Choose one of {', '.join(metrics)}.")


def _not_finite(fit_state: FitState, names: Sequence[str]) -> DivergedError:
    return DivergedError(
        f"the loss is not finite (epoch {fit_state.epoch + 1}, optimiser step {fit_state.batch + 1}). "
        f"Lower lr, or set clip: 1.0. The batch held: {', '.join(names)}"
    )


def _line(fit_state: FitState, course: FitConfig) -> str:
    row = fit_state.history[-1]
    training = {"loss": "loss", "above_threshold": "above threshold"}
    metrics = {said: row["training"][name] for name, said in training.items() if name in row["training"]} | {
        ("val loss" if name == "loss" else name): row["validation"][name]
        for name in dict.fromkeys(["loss", course.monitor])
        if name in row["validation"]
    }
    shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return f"  epoch {fit_state.epoch}/{course.epochs}  {shown}{'  best' if row['best'] else ''}"
