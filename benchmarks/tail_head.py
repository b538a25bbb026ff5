"""What a head learnt again gains after a fit whose metric counts classes alike already, on a long tail.

    python -m benchmarks.tail_head DATA [--seeds 0 1 2] [--tail 50] [--size 96] [--epochs 5] [--only 'eurosat*']

The training part is thinned to a long tail, of which a fifth, as imbalanced, validates; the fifth that is as it was
scores, and nothing is chosen by it. The plan is a probe and a short fit of the upper stages with
`metric: balanced_accuracy`: class weights and a uniform prior are theirs. All heads are of the features of one fit.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

import assay
from assay.arrays import Floats
from assay.labels.samples import Samples
from assay.metrics.tallies import groups
from assay.models.ensemble import load_model
from assay.plan.yaml_lines import write
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor
from assay.run.train import train
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed, steps_of
from benchmarks.long_tail import recalls
from benchmarks.planted import long_tail, untouched
from benchmarks.trainings import compare

SETS = ("eurosat", "seedlings")
PLAIN, CHOSEN = "as it was", "the best of all but machines"
KINDS: dict[str, Record | None] = {
    PLAIN: None,
    CHOSEN: {"kinds": ["crt", "tau_norm", "lws", "ncm", "logit_adjust", "levels"]},
    "levels": {"kinds": "levels"},
}
FIT: Record = {
    "freeze": 5, "views": 4, "lr": 1e-3, "optimizer": {"kind": "adamw", "weight_decay": 0.02}, "ema": 0.99,
    "schedule": "one_cycle", "loss": {"smoothing": 0.1}, "augment": {"crop": [0.5, 1.0], "flip": "both"},
}  # fmt: skip
HEADER = "| set | head | balanced accuracy | by seed | above as it was | Few | above as it was | by validation | kept |"
ROW = "| {set} | {head} | {texts[0]} | {seeds} | {texts[1]} | {texts[2]} | {texts[3]} | {gains} | {kept} |"


def measure(options: Options, case: tuple[str, str], seed: int) -> Record:
    """Train, or go on from what was trained; return true and predicted class of each image that is scored."""
    name, head = case
    folder = options.work / f"{name}-{seed}"
    folder.mkdir(exist_ok=True)
    whole = untouched(options.data / name)
    samples = long_tail(whole, options.tail, seed=seed).part("train")
    data = assay.write_table(samples, folder / "labels.csv")
    fit = {**FIT, "size": options.size, "epochs": options.epochs}
    steps: list[Record] = [{"probe": {"size": options.size}}, {"fit": fit}]
    steps += [] if KINDS[head] is None else [{"rebalance_head": KINDS[head]}]
    plan = {
        "data": {**data, "split": {"val": 0.2, "seed": seed}}, "seed": seed, "steps": steps,
        "metric": "balanced_accuracy", "take": "last_step",
        "model": {"backbone": "tf_efficientnet_lite0", "features": "all_stages"},
        "hardware": {"precision": "fp32", "layout": "channels_last"},
    }  # fmt: skip
    (folder / "plan.yaml").write_text(write(plan), encoding="utf-8")
    train(folder / "plan.yaml", run=folder / "run", device="cpu")
    test = whole.part("val")
    features, records = folder / "features.npy", steps_of(folder / "run")
    _, fitted, *_ = models = [folder / "run" / record["model"] for record in records]
    if not features.exists():
        np.save(features, features_of(fitted, test))
    (of_head,) = samples.space
    parts, found = groups(samples.counts(of_head)), records[-1]["details"].get(of_head.name, {})
    return {
        "truth": test.codes()[0].tolist(),
        "predicted": answers(models[-1], np.load(features)),
        "rare": list(next(part.classes for part in parts if (part.rule, part.name) == ("thirds", "few"))),
        "kept": found.get("kept"),
        "gain": found.get("gain"),
    }


def features_of(model: Path, samples: Samples) -> Floats:
    """Return the features (N, F) of images by a saved network."""
    images = zip(samples.ids, map(Path, samples.paths), strict=True)
    predictions = Predictions.joined(list(Predictor.untimed(model, device="cpu").stream(images, features=True)))
    assert predictions.features is not None
    return predictions.features


def answers(model: Path, features: Floats) -> list[int]:
    """Return the predicted class of each image by the head of a saved network of the same backbone."""
    saved = load_model(model)
    (network,) = saved.networks
    with torch.inference_mode():
        outputs = network.classifier.eval().classify(torch.from_numpy(features)).numpy()
    predicted: list[int] = saved.logits([outputs]).argmax(axis=1).tolist()
    return predicted


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the table: balanced accuracy and recall of the rare classes, and how far above the head as it was."""
    rows: list[Record] = []
    for group in SETS:
        of_set = [record for record in records if record["name"].startswith(f"{group}/")]
        of_set += list(if_better(of_set))
        if not of_set:
            continue
        texts = compare(of_set, recalls, images=len(of_set[0]["truth"]), base=f"{group}/{PLAIN}", resamples=2_000)
        for name, chosen in by_name(of_set).items():
            ones = np.ones((len(chosen[0]["truth"]), 1))
            rows.append({
                "set": group, "head": name.rpartition("/")[2],
                "texts": [text for pair in texts[name] for text in pair],
                "seeds": ", ".join(f"{recalls(record, ones)[0, 0]:.3f}" for record in chosen),
                "kept": ", ".join(record["kept"] for record in chosen if record["kept"]),
                "gains": ", ".join(f"{record['gain']['value']:+.3f}" for record in chosen if record["gain"]),
            })  # fmt: skip
    return options.section(HEADER, ROW, rows)


def if_better(records: Sequence[Record]) -> Iterator[Record]:
    """Yield what a plan has that keeps the new head only where cross-fitted validation gains by it."""
    for record in records:
        if record["gain"] is not None:
            (before,) = (
                one for one in records if (one["name"].rpartition("/")[2], one["seed"]) == (PLAIN, record["seed"])
            )
            kept = record if record["gain"]["value"] > 0 else {**before, "kept": PLAIN}
            yield {**kept, "name": f"{record['name']}, if better", "gain": None}


if __name__ == "__main__":
    cases = {f"{name}/{head}": (name, head) for name in SETS for head in KINDS}
    settings = {"tail": 50.0, "size": 96, "epochs": 5}
    Benchmark("tail head", __doc__, by_seed(measure, cases), lines=lines, settings=settings).main()
