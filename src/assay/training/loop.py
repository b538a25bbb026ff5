"""The training loop; there is one.

`fit` runs the epochs, `optimizer_step` is one optimiser step; a `Checkpoint` stops and restarts a fit anywhere between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from assay.arrays import Ints
from assay.errors import DivergedError, PlanError, TrainingError, is_want_of_memory
from assay.progress import GivenUpError, Progress
from assay.training.checkpoint import Average, Checkpoint
from assay.training.devices import warm_seconds
from assay.training.fit_task import VALIDATION, EpochLogits, FitConfig, FitState, FitTask, Pace, Unlabelled
from assay.training.optimizers import set_rate
from assay.training.processes import Machine
from assay.training.sampling import partners, split_batches
from assay.training.schedules import rate
from assay.training.stopping import finishing, interruptible, leave, stop_requested


def fit(task: FitTask, config: FitConfig, *, machine: Machine, checkpoint: Path, progress: Progress) -> FitState:
    """Train to the last epoch, from `checkpoint` (the state between two optimiser steps) where there is one.

    A row below N is an image; the n-th repeat of image i in an epoch is row i + n * N.
    Every random draw is a function of (seed, epoch, optimiser step, image), so that what follows a
    checkpoint is what would have followed without it, bit for bit on a CPU with the same thread count.
    Raises DivergedError where the loss is not finite, TrainingError where memory does not suffice.
    """
    average = Average(task.network, config.ema) if config.ema else None  # one more copy of the weights
    saver = Checkpoint(task, average, machine, checkpoint, config.save_every)
    state, epoch_logits = saver.restore(config.width)
    forward = machine.wrap(task.network)  # with several processes, gradients are averaged in every backward pass
    per_epoch = len(split_batches(np.arange(task.order.length), config.step_size))
    state.total = state.total or config.epochs * per_epoch
    pace = _pace(config, state, per_epoch)
    # The caller's generators stay as they are. A signal waits for a checkpoint.
    with torch.random.fork_rng(devices=machine.seeded_devices), finishing():
        while state.epoch * per_epoch < state.total and not _out_of_patience(state, config):
            batches = split_batches(task.order.rows(state.epoch), config.step_size)  # one an optimiser step
            task.to_training_mode()
            task.source.expect(state.epoch, _passes(batches[state.batch :], task, config, machine))
            for rows in batches[state.batch :]:  # those before are in the checkpoint
                started = time.perf_counter()
                step = state.epoch * per_epoch + state.batch
                if step >= state.total:  # the time is up within the epoch
                    break
                _set_rate(task.optimizer, config, state, step, per_epoch)
                # For dropout: augmentation has random numbers of its own, by seed, epoch and image.
                torch.manual_seed(_seed(config.seed, step, machine.rank))
                optimizer_step(task, config, state, machine, forward, rows, epoch_logits)
                if average is not None:
                    average.update(task.network, step)
                state.batch += 1
                if pace is not None:  # the main process decides, and with it how far the rate has come down
                    state.total = round(machine.of_main(float(pace.total(step + 1, state.total))) or 0)
                progress.advance(len(rows), _running_metrics(task, state))
                state.seconds += time.perf_counter() - started
                stopping = machine.any(stop_requested())  # all processes stop after the same optimiser step
                if stopping or saver.due():
                    saver.write(state, epoch_logits)
                if stopping:
                    leave()
            epoch = state.epoch
            try:
                _end_epoch(task, config, state, machine, average, epoch_logits)
            except (KeyboardInterrupt, SystemExit):
                if state.epoch == epoch:  # stopped in the evaluation, which is all that is left of the epoch
                    saver.write(state, epoch_logits)
                raise
            if pace is not None:
                pace.validated()
            progress.line(_line(state, config))
            try:
                # Before the checkpoint, so that no kill leaves an epoch unreported; it may be reported twice.
                progress.epoch(state.history[-1])
            except GivenUpError:
                saver.write(state, epoch_logits)
                raise
            saver.write(state, epoch_logits)
            if machine.any(stop_requested()):
                leave()
    return state


def _passes(batches: Sequence[Ints], task: FitTask, config: FitConfig, machine: Machine) -> Iterator[tuple[Ints, Ints]]:
    """Yield the rows and partners of every pass of this process."""
    for rows in batches:
        mixed_with = partners(rows, task.mixed)
        for mine in _parts(rows, config, machine):
            yield rows[mine], mixed_with[mine]


def _parts(rows: Ints, config: FitConfig, machine: Machine) -> list[Ints]:
    """Return the positions of each pass of an optimiser step on this process.

    There are none where a pass has fewer images than there are processes.
    """
    passes = np.array_split(np.arange(len(rows)), min(config.accumulate, len(rows)))
    return [chunk[machine.rank :: machine.count] for chunk in passes]


def optimizer_step(
    task: FitTask,
    config: FitConfig,
    state: FitState,
    machine: Machine,
    forward: nn.Module,
    rows: Ints,
    epoch_logits: EpochLogits,
) -> None:
    """Take one optimiser step on these rows, in `config.accumulate` passes of at most `config.batch` images.

    Raises DivergedError where the loss is not finite, TrainingError where memory does not suffice.
    """
    mixed_with = partners(rows, task.mixed)  # (B,)
    # Label weight (H,) of the whole step: every pass divides by it, so that their gradients add up to that of one large
    # batch. Between processes gradients are averaged, not added: hence the division by their number.
    divisors = task.source.counts(state.epoch, rows, mixed_with) / machine.count
    for mine in _parts(rows, config, machine):
        batch = task.source.batch(state.epoch, rows[mine], mixed_with[mine])
        try:
            with machine.hardware.autocast():
                outputs = forward(batch.inputs)  # (b, W)
            loss, sums, counts = task.objective(outputs, batch.known, divisors)
            totals = sums.tolist()  # waits for the device, once a pass
            if not all(map(math.isfinite, totals)):
                ids = task.source.ids
                raise _not_finite(state, [ids[row % len(ids)] for row in rows[mine]])
            machine.backward(loss)  # adds to the gradients of the passes before
        except RuntimeError as error:
            raise _too_large(error, config) from error
        except ValueError as error:
            raise _too_small(error, len(mine)) from error
        epoch_logits.add(rows[mine], outputs)
        state.add(totals, counts.tolist())
    if task.unlabelled is not None:
        _learn_from_unlabelled(task.unlabelled, len(rows), config, state, machine, forward)
    machine.optimizer_step(task.network, task.optimizer, clip=config.clip)


def _learn_from_unlabelled(
    unlabelled: Unlabelled, count: int, config: FitConfig, state: FitState, machine: Machine, forward: nn.Module
) -> None:
    """Add the gradients of the images with unknown labels that accompany `count` labelled ones."""
    try:
        for loss, names in unlabelled.losses(count, forward, machine):
            if not math.isfinite(float(loss.detach())):
                raise _not_finite(state, names)
            machine.backward(loss)
    except RuntimeError as error:
        raise _too_large(error, config) from error


def step_seconds(task: FitTask, config: FitConfig, machine: Machine) -> float:
    """Return the seconds of a warm optimiser step, for a dry run.

    Consumes the task: the learning rate is 0 from here on, and every pseudo-label threshold about 0, so that the
    slowest case is timed.
    """
    unlabelled = task.unlabelled
    (rows, *_) = split_batches(task.order.rows(0), config.step_size)
    epoch_logits, forward = EpochLogits.empty(len(task.source.ids), config.width), machine.wrap(task.network)
    set_rate(task.optimizer, 0.0)
    task.to_training_mode()
    if unlabelled is not None:
        unlabelled.select_all()

    def step() -> None:
        if unlabelled is not None:
            unlabelled.rewind()  # to the same images, which are decoded by now
        state = FitState.of(len(task.objective.losses))
        optimizer_step(task, config, state, machine, forward, rows, epoch_logits)

    with torch.random.fork_rng(devices=machine.seeded_devices):
        return warm_seconds(step, machine.hardware)


def _end_epoch(
    task: FitTask,
    config: FitConfig,
    state: FitState,
    machine: Machine,
    average: Average | None,
    epoch_logits: EpochLogits,
) -> None:
    """Evaluate and save the network, and add a row to the history."""
    sums, counts = machine.sum(torch.tensor([state.sums, state.counts], dtype=torch.float64)).tolist()
    lr = max(group["lr"] for group in task.optimizer.param_groups)
    rows, means = epoch_logits.means(machine.sum)  # (M,), (M, W)
    # Validation and the saved models use the averaged weights; training metrics are of the passes of the epoch.
    with average.applied_to(task.network) if average is not None else nullcontext():
        with interruptible() if machine.count == 1 else nullcontext():  # several would stop at different images
            metrics_by_part = task.evaluate(rows, means)
        metrics_by_part.setdefault("training", {})["loss"] = _mean_loss(task, sums, counts)
        if task.unlabelled is not None:
            metrics_by_part["training"]["above_threshold"] = task.unlabelled.above_threshold
            metrics_by_part["unlabelled"] = task.unlabelled.end_epoch()
        _require_monitored(config.monitor, metrics_by_part["validation"])
        monitored = machine.of_main(metrics_by_part["validation"].get(config.monitor))
        if monitored is not None:
            metrics_by_part["validation"][config.monitor] = (
                monitored  # reduce_on_plateau reads it: rates must not differ
            )
        better = monitored is None or state.best is None or _better(monitored, state.best, config)
        if machine.is_main:
            if better:
                task.save("best")
            task.save("last")
    state.epoch += 1
    if better:
        state.best, state.best_epoch = monitored, state.epoch
    state.history.append(
        {"epoch": state.epoch, "lr": lr, "seconds": round(state.seconds, 3), **metrics_by_part, "best": better}
    )
    state.batch = 0
    state.clear_losses()
    epoch_logits.clear()


def _set_rate(optimizer: torch.optim.Optimizer, config: FitConfig, state: FitState, step: int, per_epoch: int) -> None:
    monitored = [row["validation"].get(config.monitor, math.nan) for row in state.history]
    now = rate(
        config.schedule,
        step,
        total=state.total,
        per_epoch=per_epoch,
        history=monitored,
        higher_is_better=config.higher_is_better,
    )
    set_rate(optimizer, now.lr_factor, momentum=now.momentum)


def _pace(config: FitConfig, state: FitState, per_epoch: int) -> Pace | None:
    """Return what adapts the length of a fit to its time; None where it has no limit."""
    if (limit := config.limit) is None:
        return None
    before, steps = state.seconds, VALIDATION * limit.validated / config.step_size
    most = config.epochs * per_epoch
    return Pace(lambda: limit.left(before), most=most, per_epoch=per_epoch, validation_steps=steps)


def _mean_loss(task: FitTask, sums: list[float], counts: list[float]) -> float:
    both = torch.tensor([sums, counts], dtype=torch.float64)
    return float(task.objective.mean(both[0], both[1]))


def _running_metrics(task: FitTask, state: FitState) -> dict[str, float]:
    loss = {"loss": _mean_loss(task, state.sums, state.counts)}
    return loss if task.unlabelled is None else loss | {"above threshold": task.unlabelled.above_threshold}


def _seed(seed: int, step: int, rank: int) -> int:
    # Processes that dropped the same units would try half as many.
    return int(np.random.SeedSequence([seed, step, rank] if rank else [seed, step]).generate_state(1)[0])


def _better(value: float, best: float, config: FitConfig) -> bool:
    """Return whether an epoch is better than the best before it; of equal ones the later has learnt for longer."""
    if math.isnan(best):
        return not math.isnan(value)
    if value == best:
        return config.patience is None  # which would never run out
    return value > best if config.higher_is_better else value < best


def _out_of_patience(state: FitState, config: FitConfig) -> bool:
    return config.patience is not None and state.epoch - state.best_epoch >= config.patience


def _too_large(error: RuntimeError, config: FitConfig) -> Exception:
    if not is_want_of_memory(error):
        return error
    return TrainingError(
        f"a batch of {config.batch} does not fit into memory. Set batch: {max(1, config.batch // 2)} "
        f"and accumulate: {config.accumulate * 2}, which trains alike."
    )


def _too_small(error: ValueError, count: int) -> Exception:
    if "Expected more than 1 value per channel" not in str(error):
        return error
    return TrainingError(
        f"batch_norm: train takes statistics over the images of a process, and one had {count}. Raise batch, start "
        "fewer processes, or set batch_norm: frozen."
    )


def _require_monitored(name: str, metrics: Mapping[str, float]) -> None:
    """Raise PlanError where validation lacks the metric; without any validation the last epoch is the best."""
    if metrics and name not in metrics:
        raise PlanError(f"monitor: {name}: is not measured on this data. Choose one of {', '.join(metrics)}.")


def _not_finite(state: FitState, names: Sequence[str]) -> DivergedError:
    return DivergedError(
        f"the loss is not finite (epoch {state.epoch + 1}, optimiser step {state.batch + 1}). "
        f"Lower lr, or set clip: 1.0. The batch held: {', '.join(names)}"
    )


def _line(state: FitState, config: FitConfig) -> str:
    row = state.history[-1]
    metrics = {name.replace("_", " "): row["training"].get(name) for name in ("loss", "above_threshold")}
    metrics["val loss"] = row["validation"].get("loss")
    if config.monitor != "loss":
        metrics[config.monitor] = row["validation"].get(config.monitor)
    text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
    of = f"/{config.epochs}" if config.limit is None else ""
    return f"  epoch {state.epoch}{of}  {text}{'  best' if row['best'] else ''}"
