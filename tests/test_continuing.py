"""A run that is killed again and again ends in the weights of one that was not."""

import multiprocessing
import os
import random
import signal
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from assay.steps.history import read_history
from conftest import write_pictures

FITS = {
    "frozen": "fit: {size: 32, freeze: backbone, epochs: 3, batch: 8, lr: 1e-2}",
    "unfrozen": "fit: {size: 32, epochs: 2, batch: 8, lr: 1e-3, augment: {crop: [0.5, 1], flip: horizontal}}",
    "mixed": "fit: {size: 32, epochs: 2, batch: 4, lr: 1e-3, augment: {flip: horizontal}, mix: {mixup: 1, cutmix: 1}}",
    "sampled": "fit: {size: 32, epochs: 2, batch: 8, lr: 1e-3, sampling: {kind: oversample, most: 2}, "
    "augment: {flip: horizontal, per_class: {red: {rotate: 90, more: 1.7}}}}",
    "ema": "fit: {size: 32, epochs: 2, batch: 4, accumulate: 2, ema: 0.9, optimizer: sgd, batch_norm: train}",
    "robust": "fit: {size: 32, epochs: 3, batch: 8, loss: {kind: generalised_cross_entropy, smoothing: 0.1}, ema: 0.9, "
    "mix: {mixup: 0.4}, augment: {erase: {probability: 0.5, patches: 3, fill: noise}}, early_stop: 1}",
    "fixmatch": "fit: {size: 32, epochs: 2, batch: 3, lr: 1e-2, unlabelled: {threshold: 0.34, ratio: 2}}",
    "flexmatch": "fit: {size: 32, epochs: 2, batch: 2, accumulate: 2, lr: 1e-2, ema: 0.9, augment: {flip: horizontal}, "
    "mix: {mixup: 1}, unlabelled: {method: flexmatch, threshold: 0.4, ratio: 2}}",
}
KILLS = {
    **{"frozen": 5, "unfrozen": 4, "mixed": 3, "sampled": 3, "ema": 5},
    **{"robust": 3, "fixmatch": 3, "flexmatch": 3},
}  # 29 in all


def life(plan: Path, run: Path, events: int | None) -> None:
    """Train until the end, or until so many things were done of those at which a kill would hurt most."""
    import assay
    from assay import files
    from assay.training import loop, machine

    left = [events]

    def dying(function):
        def counted(*args, **options):
            if left[0] is not None:
                left[0] -= 1
                if left[0] <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return counted

    files.os.fsync = dying(files.os.fsync)  # between the writing of a file
    files.os.replace = dying(files.os.replace)  # and its appearing
    machine.Machine.optimizer_step = dying(machine.Machine.optimizer_step)
    loop._Saver.due = lambda self: True
    assay.train(plan, run=run, device="cpu")


@pytest.fixture(scope="module")
def forks():
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["assay.run"])
    return context


def live(forks, *arguments) -> int:
    process = forks.Process(target=life, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("kind", FITS)
def test_killed_at_random_moments(kind, tiny_plan, tmp_path, forks):
    plan = tmp_path / "plan.yaml"
    pictures = write_pictures(tmp_path / "pictures", each=15)
    if "unlabelled" in FITS[kind]:
        (pictures / "unlabelled").mkdir()
        for picture in sorted(pictures.glob("*/1?.png")):
            picture.rename(pictures / "unlabelled" / f"{picture.parent.name}{picture.name}")
    plan.write_text(tiny_plan(FITS[kind], data=f"folder: {pictures}"))
    assert live(forks, plan, tmp_path / "whole", None) == 0
    moments = random.Random(kind)
    for _ in range(KILLS[kind]):
        assert live(forks, plan, tmp_path / "killed", moments.randint(2, 14)) in (0, -signal.SIGKILL)
    assert live(forks, plan, tmp_path / "killed", None) == 0
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(bool((whole[name] == killed[name]).all()) for name in whole)
    assert figures(tmp_path / "whole") == figures(tmp_path / "killed")


def figures(run):
    """All that the history of the fit says but the seconds, and whether unlabelled pictures were learnt from."""
    history = read_history(run / "steps" / "01-fit" / "history.csv").filter(pl.col("name") != "seconds")
    shares = history.filter(pl.col("name") == "above_threshold")["value"]
    assert shares.is_empty() or shares.max() > 0
    return history.to_dicts()
