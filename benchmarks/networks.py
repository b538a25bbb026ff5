"""Networks side by side: what each costs, and which learns best from few images alone.

python -m benchmarks.networks DATA [--seeds 0 1] [--epochs 60] [--vgg-epochs 10] [--only NAME ...]
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl

from assay.models.weights import PACKAGES
from assay.plan import yaml_lines
from assay.plan.recipes import recipe_text
from benchmarks.harness import (
    Benchmark,
    Cell,
    Options,
    Record,
    by_name,
    by_seed,
    in_a_process,
    replace_section,
    seconds_of,
    train,
)
from benchmarks.trainings import bounds_text, mean_text

CURVES = Path("docs/images/networks-curves.png")
COSTS = (
    *("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "seresnext50_32x4d"),
    *("densenet121", "factorized_densenet121", "vgg16", "vgg16_no_last_pool"),
    *("mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100"),
    *("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"),
    *("resnet_hyper", "simple_cnn", "plain_cnn6"),
)
DENSENET, VGG = "DenseNet-121", "VGG-16"
FIT: Record = {"batch_norm": "train", "optimizer": {"kind": "adam", "weight_decay": 1e-4}, "schedule": "constant"}
SMALL_DATA: Record = yaml_lines.read(recipe_text("small-data"), "small-data").value
TRICKS: Record = SMALL_DATA["steps"][0]["fit"]  # at the length and size of the others
VARIANTS: dict[str, tuple[str, Record, Record]] = {
    DENSENET: (DENSENET, {"backbone": "densenet121"}, {"lr": 1e-3}),
    "factorised": (DENSENET, {"backbone": "factorized_densenet121", "options": {"noise": 0}}, {"lr": 1e-3}),
    "factorised, tricks of `small-data`": (DENSENET, SMALL_DATA["model"], TRICKS),
    VGG: (VGG, {"backbone": "vgg16"}, {"lr": 1e-4}),
    "VGG-16 without its last pooling": (VGG, {"backbone": "vgg16_no_last_pool"}, {"lr": 1e-4}),
}
"""Networks trained from nothing: the first of their kind, the model and the fit."""
COST_HEADER = (
    "| network | parameters (10 classes) | total stride | receptive field | seconds a step | weights from "
    "| probe on eurosat |"
)
COST_ROW = "| `{name}` | {parameters:,} | {stride} | {field} | {seconds:.2f} | {weights} | {probe} |"
LEARN_HEADER = (
    "| trained from nothing | parameters | epochs | seeds | accuracy on test | against the first of its kind "
    "| seconds an epoch | jump of the validation loss |"
)
LEARN_ROW = "| {name} | {parameters:,} | {epochs} | {seeds} | {accuracy} | {gain} | {seconds:.0f} | {jump:.3f} |"


def cells(options: Options) -> Iterator[Cell]:
    """Yield what each network costs, the probes of those with weights, and the trainings from nothing."""
    for name in COSTS:
        yield Cell(f"cost/{name}", 0, partial(in_a_process, cost, name, options.size, options.batch))
        if name in PACKAGES:
            plan = {"model": {"backbone": name}, "steps": [{"probe": {"size": 128}}]}
            yield Cell(f"probe/{name}", 0, partial(run_plan, options, plan))
    yield from by_seed(learn, {name: name for name in VARIANTS})(options)


def cost(name: str, size: int, batch: int) -> Record:
    """Return parameters, receptive field and the seconds of an optimiser step in the faster memory layout."""
    import torch

    from assay.labels.space import Head, LabelSpace
    from assay.models.backbones import set_training_mode
    from assay.models.classifier import ModelSettings, build_classifier
    from assay.models.custom import CUSTOM_BACKBONES
    from assay.models.layers import receptive_field
    from assay.training.devices import Hardware, keep_freed_memory

    keep_freed_memory()
    space = LabelSpace((Head("label", tuple("abcdefghij")),))
    model = build_classifier(ModelSettings(backbone=name, weights="none"), space, seed=0, base=Path(), size=size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, targets = torch.rand(batch, 3, size, size), torch.arange(batch) % 10

    def step(placed: torch.Tensor) -> None:
        torch.nn.functional.cross_entropy(model(placed), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    seconds = []
    for hardware in (Hardware("cpu", "fp32", "contiguous"), Hardware("cpu", "fp32", "channels_last")):
        model.to(memory_format=hardware.memory_format)
        set_training_mode(model, "train")
        timed = partial(step, hardware.to_device(images))
        seconds.append(float(np.median([seconds_of(timed) for _ in range(4)][1:])))
    published = CUSTOM_BACKBONES[name].published if name in CUSTOM_BACKBONES else ""
    source = "none: trained from nothing" if published is None else "download"
    source += f", those of `{published}`" if published else ""
    if name in PACKAGES:
        source = f"package `{PACKAGES[name][0].replace('_', '-')}`"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    field = receptive_field(model.backbone, size=size).to_json()
    return {"parameters": parameters, **field, "seconds": min(seconds), "weights": source}


def learn(options: Options, name: str, seed: int) -> Record:
    """Train one variant from nothing; return its metrics, seconds and curve."""
    kind, model, changes = VARIANTS[name]
    epochs = options.vgg_epochs if kind == VGG else options.epochs
    fit = {**FIT, **changes, "size": options.size, "epochs": epochs}
    plan = {"model": {**model, "weights": "none"}, "seed": seed, "steps": [{"fit": fit}]}
    record = run_plan(options, plan)
    losses = record["losses"]
    return {**record, "epochs": epochs, "jump": np.abs(np.diff(losses)).mean().item() if len(losses) > 1 else 0.0}


def run_plan(options: Options, plan: Record) -> Record:
    """Carry out a plan on eurosat; return the accuracy on test, and of a fit its seconds and validation losses."""
    data = {**options.data_of("eurosat"), "split": {"val": 0.2, "test": 0.2, "seed": 0}}
    with options.scratch() as folder:
        train({"data": data, **plan}, folder)
        metrics, history = (
            json.loads((folder / "run/metrics.json").read_text()),
            folder / "run/steps/01-fit/history.csv",
        )
        accuracy: Record = metrics["test"]["metrics"]["accuracy"]
        if not history.exists():
            return accuracy
        losses = pl.read_csv(history).filter(part="validation", name="nll").sort("epoch")["value"].to_list()
    details = metrics["steps"][0]["details"]
    seconds, parameters = details["training_seconds"] / details["epochs"], details["network"]["parameters"]
    return {**accuracy, "parameters": parameters, "seconds": seconds, "losses": losses}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return what each costs; write what the others learnt as another section, and draw their curves."""
    named, costs = by_name(records), []
    for name in [name for name in COSTS if f"cost/{name}" in named]:
        (row,), (probe,) = named[f"cost/{name}"], named.get(f"probe/{name}", [{}])
        field = "the whole image" if row["receptive_field"] is None else f"{row['receptive_field']:,}"
        accuracy = f"{bounds_text(probe)}, n = {probe['n']}" if probe else ""
        costs.append({**row, "name": name, "field": field, "probe": accuracy})
    learnt = [record for record in records if record["name"] in VARIANTS]
    if learnt:
        # A page elsewhere has its chart beside it.
        draw(learnt, CURVES if options.page.parent == CURVES.parents[1] else options.page.with_suffix(".png"))
        rows = [learn_row(name, named) for name in VARIANTS if name in named]
        chart = f"![Validation loss by epoch, a panel a kind of network]({CURVES.relative_to('docs')})"
        replace_section("from nothing", options.section(LEARN_HEADER, LEARN_ROW, rows, chart), page=options.page)
    return options.section(COST_HEADER, COST_ROW, costs)


def learn_row(name: str, named: dict[str, list[Record]]) -> Record:
    """Return how a variant learnt, over its seeds."""
    records, first = named[name], VARIANTS[name][0]
    base = {record["seed"]: record["value"] for record in named.get(first, []) if first != name}
    values = [record["value"] for record in records]
    gains = [record["value"] - base[record["seed"]] for record in records if record["seed"] in base]
    means = {key: np.mean([record[key] for record in records]) for key in ("seconds", "jump")}
    accuracy = f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
    return {**records[0], **means, "seeds": len(records), "accuracy": accuracy, "gain": mean_text(gains, "+.3f")}


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the validation loss by epoch, a line a seed and a panel a kind of network."""
    from assay.report.charts import save

    rows = [
        {"kind": VARIANTS[row["name"]][0], "network": row["name"], "seed": row["seed"], "epoch": epoch, "loss": value}
        for row in records
        for epoch, value in enumerate(row["losses"], 1)
    ]
    base = alt.Chart(alt.Data(values=rows)).mark_line(strokeWidth=1.5).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("loss:Q", title="validation loss (nll)", scale=alt.Scale(type="log", nice=False)),
        color=alt.Color("network:N", title=None, sort=None, legend=alt.Legend(orient="top", columns=2, labelLimit=320)),
        detail="seed:N",
    )  # fmt: skip
    panels = [
        base.transform_filter(f"datum.kind === '{kind}'").properties(width=380, height=260, title=kind)
        for kind in dict.fromkeys(row["kind"] for row in rows)
    ]
    chart = alt.hconcat(*panels).resolve_scale(color="independent", y="independent", x="independent")
    save(chart.configure(background="white"), path)


if __name__ == "__main__":
    settings = {"epochs": 60, "vgg_epochs": 10, "size": 64, "batch": 32}
    Benchmark("networks", __doc__, cells, lines=lines, settings=settings, seeds=(0, 1)).main()
