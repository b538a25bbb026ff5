"""What is best done about suspect labels, by the share of labels that are wrong: for the choice of the default plan.

    python -m benchmarks.repair_choice DATA [--seeds 0 1] [--images 800] [--size 96] [--epochs 6] [--only 'eurosat*']

Labels of `--images` training images are flipped to other classes, each as likely; the upper stages are trained on them
and hand on their last epoch, so that validation chooses nothing. They are scored on other images with right labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

import assay
from assay.arrays import Ints, Reals
from assay.labels.readers.read import DataSettings, read
from assay.labels.samples import Samples
from assay.plan.yaml_lines import write
from assay.repair.judges import JUDGES, Posterior, Probabilities
from assay.run.train import train
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed, steps_of
from benchmarks.planted import flip
from benchmarks.trainings import compare, validation_codes

SETS = ("eurosat", "seedlings")
SHARES = (0.0, 0.2, 0.4, 0.1, 0.05)
PLAIN = "nothing"
ACTIONS: dict[str, object] = {PLAIN: None, "soft": "soft", "soft: wrong": {"soft": "wrong"}, "drop": "drop"}
HELD = 1_000  # images to score on
HEADER = "| set | wrong | estimated | done | accuracy, mean of the seeds | by seed | above nothing done |"
ROW = "| {set} | {share:.0%} | {estimated} | {action} | {accuracy} | {seeds} | {gain} |"


def measure(options: Options, case: tuple[str, float, str], seed: int) -> Record:
    """Train on labels of which so many are wrong; return which of the other images are named rightly."""
    name, share, action = case
    source = {**options.data_of(name), "split": {"val": 0.5, "seed": 0}}
    samples = read(DataSettings.model_validate(source), base=options.work)
    draw, split = np.random.default_rng(0), samples.table["split"].to_numpy()
    rows = [draw.permutation(np.flatnonzero(split == part)) for part in ("train", "val")]
    samples = samples.take(np.sort(np.concatenate([rows[0][: options.images], rows[1][:HELD]])))
    folder = options.work / name
    folder.mkdir(exist_ok=True)
    data = assay.write_table(flip(samples, share, seed=seed) if share else samples, folder / "labels.csv")
    fit: Record = {
        "size": options.size, "epochs": options.epochs, "freeze": 5, "views": 4, "lr": 1e-3, "take": "last",
        "keep": "last", "optimizer": {"kind": "adamw", "weight_decay": 0.02}, "schedule": "one_cycle",
        "loss": {"smoothing": 0.1}, "augment": {"crop": [0.5, 1.0], "flip": "both"}, "ema": 0.99,
    }  # fmt: skip
    clean = [] if action == PLAIN else [{"clean_labels": {"size": options.size, "action": ACTIONS[action]}}]
    plan: Record = {
        "data": data,
        "model": {"backbone": "tf_efficientnet_lite0", "features": "all_stages"},
        "hardware": {"precision": "fp32", "layout": "channels_last"},
        "seed": seed,
        "steps": [{"probe": {"size": options.size}}, *clean, {"fit": fit}],
    }
    (folder / "plan.yaml").write_text(write(plan), encoding="utf-8")
    train(folder / "plan.yaml", run=folder / "run", device="cpu")  # in one folder, whose cache the plans share
    truth, predicted = validation_codes(folder / "run")
    record: Record = {"correct": np.equal(truth, predicted).astype(int).tolist()}
    if clean:
        record["estimated"] = steps_of(folder / "run")[1]["details"]["heads"]["label"]["noise_rate"]
    return record


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a set, share and action: accuracies, and the paired difference to nothing done."""

    def accuracy_of(record: Record, weights: Reals) -> Reals:
        return np.array([record["correct"]]) @ weights / len(record["correct"])

    rows: list[Record] = []
    for group in dict.fromkeys(record["name"].rpartition("/")[0] for record in records):
        of_group = [record for record in records if record["name"].rpartition("/")[0] == group]
        images, base = len(of_group[0]["correct"]), f"{group}/{PLAIN}"
        texts = compare(of_group, accuracy_of, images=images, base=base, resamples=2_000)
        for name, chosen in by_name(of_group).items():
            estimated = [record["estimated"] for record in chosen if "estimated" in record]
            ((accuracy, gain),) = texts[name]
            rows.append({
                "set": group.partition("/")[0], "share": float(group.partition("/")[2]),
                "action": name.rpartition("/")[2], "accuracy": accuracy, "gain": gain,
                "estimated": f"{np.mean(estimated):.1%}" if estimated else "",
                "seeds": ", ".join(f"{np.mean(record['correct']):.3f}" for record in chosen),
            })  # fmt: skip
    return options.section(HEADER, ROW, rows)


def remembering(judge: Posterior) -> Posterior:
    """Return a judge that answers once where it is asked the same twice in a row: all actions ask the same."""
    last: dict[str, Probabilities] = {}

    def answer(samples: Samples, features: Reals, folds: Ints, **settings: Any) -> Probabilities:
        question = f"{samples.fingerprint()} {settings['seed']} {len(settings['held'])}"
        if question not in last:
            last.clear()
            last[question] = judge(samples, features, folds, **settings)
        return last[question]

    return answer


if __name__ == "__main__":
    cases = {
        f"{name}/{share:g}/{action}": (name, share, action) for share in SHARES for name in SETS for action in ACTIONS
    }
    JUDGES["both"] = remembering(JUDGES["both"])
    Benchmark(
        "repair choice", __doc__, by_seed(measure, cases), lines=lines, seeds=(0, 1),
        settings={"images": 800, "size": 96, "epochs": 6},
    ).main()  # fmt: skip
