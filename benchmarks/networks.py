"""Networks side by side: what each costs, and which learns best from few images alone.

    python -m benchmarks.networks DATA [--seeds 0 1 2] [--epochs 30] [--vgg-epochs 10] [--only NAME ...]

DATA holds the unpacked data sets. What was measured stays in WORK/networks.jsonl: a run that was broken off goes
on from there. Two sections of docs/RESULTS.md are written, and an image of the curves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from scipy import stats

from assay.models.weights import PACKAGES
from benchmarks.page import replace_section, table
from benchmarks.record import Record

CURVES = Path("docs/images/networks-curves.png")
COSTS = (
    *("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "seresnext50_32x4d"),
    *("densenet121", "factorized_densenet121", "vgg16", "vgg16_no_last_pool"),
    *("mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100"),
    *("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"),
    *("resnet_hyper", "simple_cnn", "plain_cnn6"),
)
PLAN = """\
data: {{folder: "{data}", split: {{val: 0.2, test: 0.2, seed: 0}}}}
model: {model}
seed: {seed}
steps:
  - fit: {{size: {size}, epochs: {epochs}, batch_norm: train, optimizer: {{kind: adam, weight_decay: 1e-4}}, {fit}}}
"""
PROBE = """\
data: {{folder: "{data}", split: {{val: 0.2, test: 0.2, seed: 0}}}}
model: {{backbone: {name}}}
steps:
  - probe: {{size: 128}}
"""
PLAIN = "lr: 1e-3, schedule: constant"
# What the recipe small-data does, at the length of the others.
TRICKS = (
    "lr: 1e-3, schedule: {kind: reduce_on_plateau, factor: 0.5, patience: 4}, loss: {smoothing: 0.1}, "
    "augment: {flip: both, rotate: 15, shift: 0.1, scale: [0.8, 1.2], shear: 10}"
)

ABOUT_COSTS = """\
An optimiser step is forward, backward and SGD in fp32 on {batch} images of {size} pixels, the median of 3 after one
that warms up, in the faster memory layout. Receptive field: the side in pixels of what one position of the last map
sees. The probe is a linear head on features of the published weights at 128 pixels, its accuracy that of the fifth of
eurosat that is opened once; only weights that come in a package were to be had here. `{command}`"""
ABOUT_LEARNING = """\
eurosat at {size} pixels, three fifths to train on, a fifth to choose the epoch by its loss, and the accuracy of a fifth
opened once (n = {n}, split seed 0); Adam, 32 images a step, as many epochs for each of a kind. The interval of a
difference is over seeds (t). The jump is the mean absolute change of the validation negative log-likelihood from one
epoch to the next. `{command}`"""


@dataclass(frozen=True)
class Variant:
    """A network and how it is trained, from nothing."""

    name: str
    model: str
    fit: str
    kind: str = "DenseNet-121"


VARIANTS = (
    Variant("DenseNet-121", "{backbone: densenet121, weights: none}", PLAIN),
    Variant("factorised", "{backbone: factorized_densenet121, weights: none, options: {noise: 0}}", PLAIN),
    Variant("factorised, tricks of `small-data`", "{backbone: factorized_densenet121, weights: none}", TRICKS),
    Variant("VGG-16", "{backbone: vgg16, weights: none}", "lr: 1e-4, schedule: constant", kind="VGG-16"),
    Variant(
        "VGG-16 without its last pooling",
        "{backbone: vgg16_no_last_pool, weights: none}",
        "lr: 1e-4, schedule: constant",
        kind="VGG-16",
    ),
)


def main() -> None:
    """Measure what is missing, and write the sections."""
    given = arguments()
    record = Record(given.work / "networks.jsonl")
    known = {json.dumps(line["key"]) for line in record.lines}
    for key, measure in measurements(given):
        if json.dumps(key) in known:
            continue
        sys.stderr.write(f"{key}\n")
        record.keep({"key": key, **measure()})
    wanted = {json.dumps(key) for key, _ in measurements(given)}
    write([line for line in record.lines if json.dumps(line["key"]) in wanted], given)


def measurements(given: argparse.Namespace) -> Iterator[tuple[list[Any], Any]]:
    """Every key, and what measures it."""
    for name in COSTS:
        if given.only is None or name in given.only:
            yield ["cost", name, given.size, given.batch], lambda name=name: cost(name, given)
            if name in PACKAGES:
                yield ["probe", name], lambda name=name: probe(name, given)
    for seed in given.seeds:
        for variant in VARIANTS:
            if given.only is None or variant.name in given.only:
                epochs = given.vgg_epochs if variant.kind == "VGG-16" else given.epochs
                key = ["learn", variant.name, seed, epochs, given.size]
                yield key, lambda variant=variant, seed=seed, epochs=epochs: learn(variant, seed, epochs, given)


def cost(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Parameters, sight, and the seconds of an optimiser step on the faster memory layout, in a process of its own."""
    code = f"from benchmarks.networks import print_cost; print_cost({name!r}, {given.size}, {given.batch})"
    command = [sys.executable, "-c", code]
    said: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return said


def probe(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The accuracy on test of a linear head on features of the published weights, at 128 pixels."""
    plan = PROBE.format(data=(given.data / "eurosat").resolve(), name=name)
    metrics, _ = run_plan(plan, given)
    found: dict[str, Any] = metrics["test"]["metrics"]["accuracy"]
    return found


def run_plan(text: str, given: argparse.Namespace) -> tuple[dict[str, Any], pl.DataFrame | None]:
    """Carry a plan out by a command of its own; its metrics, and the history of its first step, if it has one."""
    with tempfile.TemporaryDirectory(dir=given.work) as scratch:
        plan, run = Path(scratch) / "plan.yaml", Path(scratch) / "run"
        plan.write_text(text)
        command = [sys.executable, "-m", "assay", "train", str(plan), "--run", str(run), "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        history = run / "steps" / "01-fit" / "history.csv"
        return json.loads((run / "metrics.json").read_text()), pl.read_csv(history) if history.exists() else None


def print_cost(name: str, size: int, batch: int) -> None:
    """Measure one network and print it as JSON."""
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
    images, targets = torch.rand(batch, 3, size, size), torch.arange(batch) % 10
    fastest = float("inf")
    for layout in ("contiguous", "channels_last"):
        hardware = Hardware("cpu", "fp32", layout)  # type: ignore[arg-type]
        model.to(memory_format=hardware.memory_format)
        set_training_mode(model, "train")
        optimizer, placed = torch.optim.SGD(model.parameters(), lr=1e-3), hardware.to_device(images)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            torch.nn.functional.cross_entropy(model(placed), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - began)
        fastest = min(fastest, float(np.median(times[1:])))
    own = CUSTOM_BACKBONES.get(name)
    if name in PACKAGES:
        source = f"package `{PACKAGES[name][0].replace('_', '-')}`"
    elif own is not None and own.published is None:
        source = "none: trained from nothing"
    else:
        source = "download" if own is None else f"download, those of `{own.published}`"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = receptive_field(model.backbone, size=size).to_json()
    sys.stdout.write(json.dumps({"parameters": parameters, **found, "seconds": fastest, "weights": source}))


def learn(variant: Variant, seed: int, epochs: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train one variant by a command of its own; its test metrics, seconds and curve."""
    data = (given.data / "eurosat").resolve()
    text = PLAN.format(data=data, model=variant.model, seed=seed, size=given.size, epochs=epochs, fit=variant.fit)
    metrics, history = run_plan(text, given)
    assert history is not None
    step = metrics["steps"][0]
    shown = history.filter(pl.col("part") == "validation")
    return {
        "test": metrics["test"]["metrics"]["accuracy"],
        "validation": metrics["scores"]["metrics"]["accuracy"],
        "parameters": step["details"]["network"]["parameters"],
        "seconds an epoch": step["details"]["training_seconds"] / step["details"]["epochs"],
        "curves": {name: shown.filter(name=name).sort("epoch")["value"].to_list() for name in ("nll", "accuracy")},
    }


def write(lines: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """The two sections, and the curves."""
    costs = [line for line in lines if line["key"][0] == "cost"]
    learnt = [line for line in lines if line["key"][0] == "learn"]
    if costs:
        probed = {line["key"][1]: line for line in lines if line["key"][0] == "probe"}
        replace_section("networks", cost_lines(costs, probed, given))
    if learnt:
        replace_section("from nothing", learn_lines(learnt, given))
        draw(learnt)


def cost_lines(costs: list[dict[str, Any]], probed: dict[str, Any], given: argparse.Namespace) -> list[str]:
    """The table of all networks."""
    header = ["network", "parameters (10 classes)", "total stride", "receptive field", "seconds a step", "weights from"]
    header.append("probe on eurosat")
    rows = [
        [
            f"`{line['key'][1]}`",
            f"{line['parameters']:,}",
            line["stride"],
            "the whole image" if line["receptive_field"] is None else f"{line['receptive_field']:,}",
            f"{line['seconds']:.2f}",
            line["weights"],
            shown(probed.get(line["key"][1])),
        ]
        for line in costs
    ]
    told = ABOUT_COSTS.format(batch=given.batch, size=given.size, command=command(given))
    return ["## Networks", "", told, "", *table(header, rows)]


def shown(accuracy: dict[str, Any] | None) -> str:
    """An accuracy with its interval and n; nothing where it was not measured."""
    if accuracy is None:
        return ""
    return f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], n = {accuracy['n']}"


def learn_lines(learnt: list[dict[str, Any]], given: argparse.Namespace) -> list[str]:
    """The table of networks trained from nothing."""
    header = ["trained from nothing", "parameters", "epochs", "seeds", "accuracy on test"]
    header += ["against the first of its kind", "seconds an epoch", "jump of the validation loss"]
    rows = []
    for variant in VARIANTS:
        own = of_variant(learnt, variant)
        if not own:
            continue
        first = next(other for other in VARIANTS if other.kind == variant.kind)
        accuracies = [line["test"]["value"] for line in own.values()]
        rows.append(
            [
                variant.name,
                f"{next(iter(own.values()))['parameters']:,}",
                next(iter(own.values()))["key"][3],
                len(own),
                f"{np.mean(accuracies):.3f} ({', '.join(f'{value:.3f}' for value in accuracies)})",
                "" if first is variant else difference(own, of_variant(learnt, first)),
                f"{np.mean([line['seconds an epoch'] for line in own.values()]):.0f}",
                f"{np.mean([jump(line) for line in own.values()]):.3f}",
            ]
        )
    told = ABOUT_LEARNING.format(size=given.size, n=learnt[0]["test"]["n"], command=command(given))
    shown = f"![Validation loss by epoch, a panel a kind of network]({CURVES.relative_to('docs')})"
    return ["### Few images, nothing known before", "", told, "", *table(header, rows), "", shown]


def of_variant(learnt: list[dict[str, Any]], variant: Variant) -> dict[int, dict[str, Any]]:
    """Its lines by seed."""
    return {line["key"][2]: line for line in learnt if line["key"][1] == variant.name}


def difference(own: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> str:
    """Of accuracies, paired by seed, with a 95 % interval where there are seeds enough for one."""
    gains = [own[seed]["test"]["value"] - other[seed]["test"]["value"] for seed in own if seed in other]
    if len(gains) < 2:
        return f"{np.mean(gains):+.3f}" if gains else ""
    reach = float(stats.t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5)
    return f"{np.mean(gains):+.3f} [{np.mean(gains) - reach:+.3f}, {np.mean(gains) + reach:+.3f}]"


def jump(line: dict[str, Any]) -> float:
    """How far the validation loss jumps from epoch to epoch."""
    return float(np.mean(np.abs(np.diff(line["curves"]["nll"])))) if len(line["curves"]["nll"]) > 1 else 0.0


def draw(learnt: list[dict[str, Any]]) -> None:
    """Validation loss by epoch, a line a seed."""
    from assay.report.charts import save

    rows = [
        {"kind": variant.kind, "network": variant.name, "seed": seed, "epoch": epoch, "loss": value}
        for variant in VARIANTS
        for seed, line in of_variant(learnt, variant).items()
        for epoch, value in enumerate(line["curves"]["nll"], 1)
    ]  # fmt: skip
    base = alt.Chart(alt.Data(values=rows)).mark_line(strokeWidth=1.5).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("loss:Q", title="validation loss (nll)", scale=alt.Scale(type="log", nice=False)),
        color=alt.Color("network:N", title=None, sort=None, legend=alt.Legend(orient="top", columns=2, labelLimit=320)),
        detail="seed:N",
    )  # fmt: skip
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    panels = [
        base.transform_filter(f"datum.kind === '{kind}'").properties(width=380, height=260, title=kind)
        for kind in kinds
    ]
    chart = alt.hconcat(*panels).resolve_scale(color="independent", y="independent", x="independent")
    save(chart.configure(background="white"), CURVES)


def command(given: argparse.Namespace) -> str:
    """The command as given, without the places of this machine."""
    seeds, options = " ".join(map(str, given.seeds)), ("epochs", "vgg_epochs", "size", "batch")
    said = " ".join(f"--{name.replace('_', '-')} {getattr(given, name)}" for name in options)
    return f"python -m benchmarks.networks DATA --seeds {seeds} {said}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds the unpacked data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--vgg-epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32, help="of the timed steps")
    parser.add_argument("--only", nargs="*", default=None, help="names of networks or variants")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-networks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
