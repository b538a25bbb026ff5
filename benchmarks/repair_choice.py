"""What is best done about suspect labels, by the share of labels that are wrong: for the choice of the default plan.

    python -m benchmarks.repair_choice DATA [--seeds 0 1] [--images 800] [--size 96] [--epochs 6] [--only 'eurosat*']

Labels of `--images` training images are flipped to other classes, each as likely; the upper stages are trained on them
and hand on their last epoch, so that validation chooses nothing. They are scored on other images with right labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from assay.arrays import Ints, Reals
from assay.labels.samples import Samples
from assay.repair.judges import JUDGES, Posterior, Probabilities
from assay.run.train import train
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed, steps_of
from benchmarks.trainings import compare, validation_codes
from benchmarks.upper_fits import held_half, write_plan

SETS = ("eurosat", "seedlings")
SHARES = (0.0, 0.2, 0.4, 0.1, 0.05)
PLAIN = "nothing"
ACTIONS: dict[str, object] = {PLAIN: None, "soft": "soft", "soft: wrong": {"soft": "wrong"}, "drop": "drop"}
HEADER = "| set | wrong | estimated | done | accuracy, mean of the seeds | by seed | above nothing done |"
ROW = "| {set} | {share:.0%} | {estimated} | {action} | {accuracy} | {seeds} | {gain} |"


def measure(options: Options, case: tuple[str, float, str], seed: int) -> Record:
    """Train on labels of which so many are wrong; return which of the other images are named rightly."""
    name, share, action = case
    folder = options.work / name
    folder.mkdir(exist_ok=True)
    clean = [] if action == PLAIN else [{"clean_labels": {"size": options.size, "action": ACTIONS[action]}}]
    write_plan(options, folder, held_half(options, name), share=share, seed=seed, repairs=clean)
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
