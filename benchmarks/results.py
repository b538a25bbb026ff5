"""The data sets trained on from the command line, cold: what `make results` measures.

python -m benchmarks.results DATA [--only NAME ...]
"""

import json
from typing import NamedTuple

from benchmarks.harness import Options, Record, by_seed, one_off, run_assay, train
from benchmarks.trainings import bounds_text


class Case(NamedTuple):
    """A set, by a recipe, by steps, or else by the default plan; the name of the metric where it is not accuracy."""

    data: str
    goal: str
    command: str
    recipe: str | None = None
    plan: Record | None = None
    metric: str = "accuracy"


TAGS, ATTRIBUTES = "multi-label-fast", "attributes-fast"
PROBE: Record = {"steps": [{"probe": {"size": 128}}]}
CASES = {
    "eurosat, probe at 128": Case("eurosat", "0.90 within 20 s", "probe: {size: 128}", plan=PROBE),
    "eurosat, default plan": Case("eurosat", "0.96 within 4 min", "assay train eurosat/"),
    "seedlings, default plan": Case("seedlings", "0.96 within 9 min", "assay train seedlings/"),
    "flickr, tags": Case(
        "flickr", "micro F1 0.83 within 8 min", f"assay train flickr.yaml --recipe {TAGS}", TAGS, metric="micro_f1"
    ),
    "fashion, six attributes": Case(
        "fashion",
        "balanced accuracy 0.69 within 12 min",
        f"assay train fashion.yaml --recipe {ATTRIBUTES}",
        ATTRIBUTES,
        metric="balanced_accuracy",
    ),
}
HEADER = (
    "| what | accuracy on validation, 95 % interval | n | seed | steps | whole command | images/s of the fit "
    "| peak memory | goal | command |"
)
ROW = (
    "| {name} | {value} | {n} | {seed} | {step_seconds:.0f} s | {seconds:.0f} s | {rate} | {mib:,.0f} MiB | {goal} "
    "| `{command}` |"
)


def measure(options: Options, case: Case, seed: int) -> Record:
    """Run the command in an empty folder, and read what it left."""
    with options.scratch() as folder:
        if case.recipe or case.plan:
            recipe = ["--recipe", case.recipe] if case.recipe else []
            done = train({"data": options.data_of(case.data), **(case.plan or {})}, folder, *recipe)
        else:
            done = run_assay("train", options.data / case.data, "--run", folder / "run", "--json")
        metrics = json.loads((folder / "run" / "metrics.json").read_text())
    value, memory = metrics["scores"]["metrics"][case.metric], metrics["memory MiB"]
    rates = [step["details"].get("images_per_second") for step in metrics["steps"]]
    named = "" if case.metric == "accuracy" else f"{case.metric.replace('_', ' ')} "
    return {
        "value": named + bounds_text(value, ".4f"),
        "n": value["n"],
        "step_seconds": sum(step["seconds"] for step in metrics["steps"]),
        "seconds": done.seconds,
        "rate": next((rate for rate in reversed(rates) if rate), ""),
        "mib": memory.get("anonymous", memory["resident"]),
        "goal": case.goal,
        "command": case.command,
    }


if __name__ == "__main__":
    one_off("results", __doc__, by_seed(measure, CASES), HEADER, ROW).main()
