"""Trainings beside each other, by several seeds, by which of the same images they name rightly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.metrics.intervals import Floats
from assay.plan.recipes import recipe_text
from assay.plan.yaml_lines import read
from assay.predictions.predict import Predictions
from benchmarks.harness import Options, Record, by_name, steps_of
from benchmarks.intervals import compare

FIT: Record = {"lr": 5e-4, "optimizer": {"kind": "adamw", "weight_decay": 0.02}, "schedule": "one_cycle"}
TABLE = "\n| training | epoch | accuracy | by seed | above the first row | whole command |"
ROW = "| {name} | {accuracy} | {seeds} | {gain} | {seconds:.0f} s |"


def training_lines(text: str, options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a training and model of it: its accuracy over its seeds, and how far it is above the first row.

    Records hold the `seconds` and by model which images are named rightly, as `correct`.
    """
    models = [
        {**record, "name": f"{record['name']} | {model}", "correct": correct}
        for name in by_name(records)
        for model in records[0]["correct"]
        for record in records
        if record["name"] == name and (correct := record["correct"][model])
    ]
    texts = compare(models, _accuracy, images=len(models[0]["correct"]), base=models[0]["name"], resamples=2_000)
    rows = []
    for name, chosen in by_name(models).items():
        ((accuracy, gain),) = texts[name]
        seeds = ", ".join(f"{np.mean(record['correct']):.3f}" for record in chosen)
        seconds = np.median([record["seconds"] for record in chosen])
        rows.append({"name": name, "accuracy": accuracy, "seeds": seeds, "gain": gain, "seconds": seconds})
    return options.section(text + TABLE, ROW, rows)


def _accuracy(record: Record, weights: Floats) -> Floats:
    correct = np.array(record["correct"], np.float64)
    return correct[None] @ weights / len(correct)


def recipe_steps(name: str, size: int, scale: float = 1.0) -> list[Record]:
    """Return the steps of a recipe, its probes and fits at another size, its fits `scale` times as long."""

    def changed(step: Record) -> Record:
        ((kind, settings),) = step.items()
        if kind == "repeat":
            return {kind: {**settings, "steps": [changed(inside) for inside in settings["steps"]]}}
        if kind == "fit":
            return {kind: {**settings, "size": size, "epochs": max(1, round(scale * settings["epochs"]))}}
        return {kind: {**settings, "size": size}} if kind == "probe" else step

    return [changed(step) for step in read(recipe_text(name), name).value["steps"]]


def validation_codes(run: Path) -> tuple[list[int], list[int]]:
    """Return the true and the predicted class of each validation image after the last step, in order of the names."""
    validation = labelled(Samples.read(run / "samples.parquet").part("val"))
    model = steps_of(run)[-1]["model"]
    answers = Predictions.read(run / model / "predictions.parquet", validation.space, model=model)
    predicted = dict(zip(answers.ids, answers.probabilities.argmax(axis=1).tolist(), strict=True))
    truth = dict(zip(validation.ids, validation.codes()[0].tolist(), strict=True))
    return [truth[name] for name in sorted(truth)], [predicted[name] for name in sorted(truth)]
