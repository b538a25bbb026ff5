"""Quality on images that training never sees, against the wall time of the whole command.

    python -m benchmarks.anytime DATA [--sets eurosat flickr] [--budgets 0.5 2] [--seeds 0] [--only 'eurosat/*']

A fifth of the images is drawn by the seed and hidden from all contenders; of the labelled rest a fifth is validation,
the same for all. Assay gets `--minutes`. The others train as many epochs as fit into the minutes, by the pace that one
training of them, which is not counted, had here. Draws PLOT.svg and PLOT-dark.svg.
All of it takes days, so the records are kept with the code: a part at a time can be measured, and whoever has another
machine begins with `--work` elsewhere.
"""

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import altair as alt
import numpy as np

import assay
from assay.arrays import Floats
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.split import split
from assay.metrics.metrics import overall, probabilities_of, score, stream
from assay.plan.plan import parse
from assay.plan.yaml_lines import write
from assay.predictions.thresholds import best_global
from assay.report.charts import BLUE, DATA, INK, ORANGE, QUIET, Chart, metric_title, styled, with_data
from benchmarks.harness import (
    SPEED,
    Benchmark,
    Cell,
    Options,
    Record,
    by_name,
    commit,
    in_a_process,
    machine,
    run_assay,
    slug,
    table,
    train,
)
from benchmarks.peers import contest
from benchmarks.peers.reasons import PROBE, REASONS
from benchmarks.planted import keep
from benchmarks.plots import save_both
from benchmarks.speed import THREADS, write_images
from benchmarks.trainings import bounds_text, mean_text


class Case(NamedTuple):
    """A set, the metric that counts, whether Assay gets it as `--metric`, those beside it, and labels left a class."""

    data: str
    metric: str
    asked: bool = False
    beside: tuple[str, ...] = ()
    each: int | None = None


CASES = {
    "eurosat": Case("eurosat", "accuracy"),
    "seedlings": Case("seedlings", "accuracy"),
    "flickr": Case("flickr", "micro_f1", beside=("mean_average_precision",)),
    "fashion, accuracy": Case("fashion", "accuracy", asked=True),
    "fashion, balanced accuracy": Case("fashion", "balanced_accuracy", asked=True),
    "eurosat, 10 labels a class": Case("eurosat", "accuracy", each=10),
}
ASSAY, AUTO = "Assay", "Assay, backbone: auto"
CONTENDERS: Mapping[str, tuple[str, Record]] = {
    ASSAY: ("assay", {}),
    AUTO: ("assay", {"backbone": "auto"}),
    "fastai, best settings": ("fastai_peer", {"mode": "best"}),
    "fastai, fine_tune at its defaults": ("fastai_peer", {}),
    "timm + torchvision loop": ("timm_loop", {"mode": "best"}),
    PROBE: ("sklearn_peer", {}),
}
"""The module of `peers`, and what it changes of the task; or Assay, and what it has as `model:`."""
OURS = tuple(name for name, (module, _) in CONTENDERS.items() if module == "assay")

BELOW = {PROBE: PROBE, ASSAY: "Assay in half a minute"}
"""The linear models that others have to be above, and what they are called: those of Assay are its shortest run."""

BUDGETS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
LEAST = {AUTO: 10.0}
"""Minutes below which a contender is not asked: several backbones are compared and trained where there is time."""

VAL, TEST = 0.2, 0.2
TEMPERINGS = (0.0, 0.5, 1.0)  # of the log-prior that is taken out of the logits
PACE_MINUTES = 5.0
COLOURS = (BLUE, BLUE, ORANGE, ORANGE, QUIET, INK)
DASHES = ([1, 0], [5, 3], [1, 0], [5, 3], [1, 0], [2, 2])
ABOUT = (
    "Minutes are of the whole command; where it took longer, or Assay more than 5 % and 5 s less, its seconds are "
    "given. – (N s): not one epoch fits, the shortest training takes N s. Intervals of 95 % are over images for one "
    "seed, else over seeds."
)


def cells(options: Options) -> Iterator[Cell]:
    """Yield a cell for each contender within each budget, the shortest of all sets first; one for what needs none."""
    for case in options.sets:
        if case not in CASES:
            raise SystemExit(f"--sets {case}: no such set. There are: {'; '.join(CASES)}")
    for seed, minutes, case in itertools.product(options.seeds, [0.0, *options.budgets], options.sets):
        for name in CONTENDERS:
            if (name == PROBE) == (minutes == 0) and minutes >= LEAST.get(name, 0.0):
                measured = partial(measure, options, case, name, minutes, seed)
                yield Cell(f"{case}/{name}/{minutes:g} min", seed, measured, minutes or PACE_MINUTES)


def measure(options: Options, case: str, name: str, minutes: float, seed: int) -> Record:
    """Train one contender, and return its metrics on the hidden fifth, or the seconds of its shortest training."""
    folder = options.work / slug(f"{case}-{seed}")
    hidden = prepare(options, CASES[case], folder, seed)
    record = {"case": case, "contender": name, "minutes": minutes, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    record |= {"machine": machine(), "commit": commit()}
    module, changes = CONTENDERS[name]
    if name in OURS:
        return record | assay_within(options, CASES[case], folder, minutes, seed, changes)
    task: Record = {"data": str(folder), "stage": "both", "epochs": 1, **changes, "seed": seed}
    task |= {"size": options.size, "batch": options.batch, "weigh": CASES[case].metric == "balanced_accuracy"}
    task["weigh"] &= task.get("mode") == "best" or name == PROBE
    if name != PROBE:
        known = pace(folder / f"{slug(name)}.json", module, task)
        task |= {"chosen": known["chosen"], **length(known, 60 * minutes, best="mode" in changes)}
        if not task["epochs"]:
            return record | {"needs": known["epoch_starts"][1] if "mode" in changes else known["seconds"]}
    return record | trained(folder, CASES[case], hidden, module, task)


def prepare(options: Options, case: Case, folder: Path, seed: int) -> Samples:
    """Write the images that training may see and those it may not; return the latter."""
    from assay.labels.readers.read import read

    data = {**options.data_of(case.data), "split": {"val": 0, "test": TEST, "seed": seed}}
    plan = parse(write({"data": data, "steps": [{"probe": {"size": options.size}}]}), case.data)
    samples = read(plan.data, base=Path.cwd())
    if case.each is not None:
        samples = keep(samples, case.each, seed=seed)
    samples = split(samples, val=VAL, seed=seed)
    write_images(samples, folder)
    hidden = samples.part("test")
    hidden = hidden.take(np.flatnonzero(hidden.labelled()))
    table_of = assay.write_table(hidden, folder / "hidden.csv")
    (folder / "hidden.yaml").write_text(write({"data": table_of}), encoding="utf-8")
    return hidden


def assay_within(options: Options, case: Case, folder: Path, minutes: float, seed: int, model: Record) -> Record:
    """Run `assay train --minutes`, then score it on the hidden images, which is not counted."""
    data = json.loads((folder / "data.json").read_text())
    asked = ["--metric", case.metric] if case.asked else []
    with options.scratch() as scratch:
        plan = {"data": data, "seed": seed, **({"model": model} if model else {})}
        done = train(plan, scratch, "--minutes", minutes, *asked, **THREADS)
        scored = run_assay("evaluate", scratch / "run", folder / "hidden.yaml", "--json", **THREADS)
        stages = json.loads((scratch / "run" / "metrics.json").read_text())["stages"]
    metrics = json.loads(scored.output)["scores"]["metrics"]
    return {"seconds": done.seconds, "metrics": chosen(metrics, case), "stages": stages}


def pace(path: Path, module: str, task: Record) -> Record:
    """Return the record of the shortest training, from a file where it was done before."""
    if not path.exists():
        known = run_peer(module, task)
        path.write_text(json.dumps(known))
    known: Record = json.loads(path.read_text())
    return known


def length(known: Record, seconds: float, *, best: bool) -> Record:
    """Return the stage and the most epochs of it that fit into the seconds, by the pace of the shortest training.

    Where the whole network has no epoch, at best settings the head alone is trained.
    """
    start, whole = known["epoch_starts"]
    of_head, of_whole = whole - start, known["seconds"] - whole
    if (epochs := int((seconds - whole) / of_whole)) > 0 or not best:
        return {"stage": "both", "epochs": max(0, epochs)}
    return {"stage": "frozen", "epochs": max(0, int((seconds - start) / of_head))}


def run_peer(module: str, task: Record) -> Record:
    """Train in a process of its own, whose seconds count from here."""
    record: Record = in_a_process(
        contest.compete, module, {**task, "began": time.monotonic()}, PYTHONWARNINGS="ignore", **THREADS
    )
    return record


def trained(folder: Path, case: Case, hidden: Samples, module: str, task: Record) -> Record:
    """Train a peer, and return its seconds, epochs and metrics."""
    answers = folder / "answers.npz"
    done = run_peer(module, {**task, "answers": str(answers)})
    logits = np.load(answers)
    choosing = task.get("mode") == "best" or module == "sklearn_peer"
    metrics = decided(folder, case, hidden, logits["val"], logits["test"], choosing=choosing)
    kept = ("seconds", "setting", "images_per_second", "peak_memory_mb")
    return {**{name: done[name] for name in kept}, "stage": task["stage"], "epochs": task["epochs"], "metrics": metrics}


def decided(
    folder: Path, case: Case, hidden: Samples, val: Floats, test: Floats, *, choosing: bool
) -> dict[str, Record]:
    """Return the metrics of logits on the hidden images.

    Where a contender may choose, validation chooses how much of the prior is taken out for balanced accuracy, and the
    one threshold of tags.
    """
    images, space = contest.Images.read(str(folder)), hidden.space
    thresholds = 0.5
    known = codes_of(images, "val", space)
    if choosing and images.tags:
        thresholds = best_global(known[0], probabilities_of(space, val), "micro_f1")
    elif choosing and case.metric == "balanced_accuracy":
        priors = [head.counts(codes) for head, codes in zip(space, codes_of(images, "train", space), strict=True)]
        log_prior = np.concatenate([np.log(np.maximum(counts, 1) / counts.sum()) for counts in priors])

        def of_validation(share: float) -> float:
            probabilities = probabilities_of(space, val - share * log_prior)
            return dict(stream(space, known, probabilities))[case.metric]

        test = test - max(TEMPERINGS, key=of_validation) * log_prior
    scores = score(space, hidden.codes(), probabilities_of(space, test), thresholds=thresholds)
    return chosen({name: metric.to_json() for name, metric in overall(scores).items()}, case)


def codes_of(images: contest.Images, part: str, space: LabelSpace) -> list[contest.Ints]:
    """Return the codes of each head."""
    codes = np.array(images.parts[part].codes, np.int64)
    return [codes] if images.tags else list(codes.T)


def chosen(metrics: Mapping[str, Record], case: Case) -> dict[str, Record]:
    """Return the metrics of a case, each with its interval."""
    return {name: metrics[name] for name in (case.metric, *case.beside)}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table a case and metric, and draw the plot."""
    measured = [record for record in records if "metrics" in record]
    if not measured:
        return [options.command, "", "Nothing is measured yet."]
    draw(measured, options.plot)
    text = [options.command, "", ABOUT]
    for case in dict.fromkeys(record["case"] for record in records):
        rows = [record for record in records if record["case"] == case]
        for metric in (CASES[case].metric, *CASES[case].beside):
            n = max(record["metrics"][metric]["n"] for record in rows if "metrics" in record)
            seeds = ", ".join(map(str, sorted({record["seed"] for record in rows})))
            text += ["", f"**{case}**: {metric.replace('_', ' ')}, n = {n:,}, seeds {seeds}", ""]
            text += curve_table(rows, metric, options.budgets)
    return [*text, *flags(measured)]


def curve_table(rows: Sequence[Record], metric: str, budgets: Sequence[float]) -> list[str]:
    """Return a row a contender, a column a budget, and how far Assay is above the best of the others."""
    values = {(name, minutes): within(rows, name, minutes) for name in CONTENDERS for minutes in budgets}
    means = {
        cell: np.mean([row["metrics"][metric]["value"] for row in there]) for cell, there in values.items() if there
    }
    measured = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    texts = [
        [name, *(cell_text(values[name, minutes], rows, metric, name, minutes) for minutes in budgets)]
        for name in measured
    ]
    if set(measured) <= set(OURS):
        return table(["contender", *(f"{minutes:g} min" for minutes in budgets)], texts)
    above = ["Assay above the best other"]
    for minutes in budgets:
        others = [means[name, minutes] for name in CONTENDERS if name not in OURS and (name, minutes) in means]
        both = others and (ASSAY, minutes) in means
        above.append(f"{means[ASSAY, minutes] - max(others):+.3f}" if both else "")
    return table(["contender", *(f"{minutes:g} min" for minutes in budgets)], [*texts, above])


def within(rows: Sequence[Record], name: str, minutes: float) -> list[Record]:
    """Return the trainings of a contender for a budget; what needs none counts from the first that it fits into."""
    there = [row for row in rows if row["contender"] == name and "metrics" in row]
    if name == PROBE:
        return [row for row in there if row["seconds"] <= 60 * minutes]
    return [row for row in there if row["minutes"] == minutes]


def cell_text(there: Sequence[Record], rows: Sequence[Record], metric: str, name: str, minutes: float) -> str:
    """Return the value with its interval, over images for one seed, else over seeds, and what is to be said of it."""
    if not there:
        needs = [
            row["needs"] for row in rows if row["contender"] == name and row["minutes"] == minutes and "needs" in row
        ]
        return f"– ({max(needs):.0f} s)" if needs else ""
    seeds = [row["metrics"][metric] for row in there]
    text = bounds_text(seeds[0]) if len(seeds) == 1 else mean_text([one["value"] for one in seeds], ".3f")
    seconds = float(np.mean([row["seconds"] for row in there]))
    off, kept = seconds - 60 * minutes, max(3 * minutes, 5)
    missed = f", {seconds:.0f} s" if name != PROBE and (off > kept or (name in OURS and off < -kept)) else ""
    return text + missed + (" ↓" if below(there, rows, metric) else "")


def below(there: Sequence[Record], rows: Sequence[Record], metric: str) -> list[str]:
    """Return which linear models on frozen features score more than trainings do by the same seeds."""
    above = []
    for name, called in BELOW.items():
        of_name = [row for row in rows if row["contender"] == name and row["minutes"] in (0, min(BUDGETS))]
        linear = {row["seed"]: row["metrics"][metric]["value"] for row in of_name if "metrics" in row}
        gains = [row["metrics"][metric]["value"] - linear[row["seed"]] for row in there if row["seed"] in linear]
        above += [called] if gains and float(np.mean(gains)) < 0 else []
    return above


def flags(records: Sequence[Record]) -> list[str]:
    """Return a line for each contender that is somewhere below linear models, with the reason if it is known."""
    marked: dict[tuple[str, str, str], dict[str, None]] = {}
    for name, rows in by_contender(records).items():
        for row in rows:
            of_case = [one for one in records if one["case"] == row["case"]]
            for linear in below([row], of_case, CASES[row["case"]].metric):
                which = place(row)
                reason = REASONS.get(f"{name} ({which})") or REASONS.get(name, "**Not explained.**")
                marked.setdefault((linear, name, reason), {})[which] = None
    return [
        line
        for (linear, name, reason), where in marked.items()
        for line in ("", f"↓ below {linear}: {name} ({'; '.join(where)}). {reason}")
    ]


def place(record: Record) -> str:
    """Return the set and the minutes of a training, and where it is known what was trained in them."""
    if not record["minutes"]:
        return str(record["case"])
    epochs, stage = record.get("epochs"), {"frozen": "of the head alone", "both": "of everything"}
    what = f", {epochs} epoch{'s' * (epochs > 1)} {stage[record['stage']]}" if epochs else ""
    return f"{record['case']} in {record['minutes']:g} min{what}"


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the curves as `path`.svg, and for dark pages as `path`-dark.svg."""
    points: list[Record] = []
    cells = itertools.groupby(sorted(records, key=cell_of), cell_of)
    for (case, name, minutes), seeds in ((cell, list(rows)) for cell, rows in cells):
        value = np.mean([row["metrics"][CASES[case].metric]["value"] for row in seeds])
        taken = float(np.mean([row["seconds"] for row in seeds])) / 60
        points.append({"case": case, "contender": name, "minutes": taken, "value": float(value)})
        if not minutes:  # it stays what it is
            points.append({**points[-1], "minutes": max(BUDGETS)})
    save_both(chart(points), path)


def cell_of(record: Record) -> tuple[str, str, float]:
    """Return what the seeds of a training have in common."""
    return record["case"], record["contender"], record["minutes"]


def by_contender(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records with metrics of each contender."""
    return by_name([{**record, "name": record["contender"]} for record in records if "metrics" in record])


def chart(points: Sequence[Record]) -> Chart:
    """Return a panel a case, two beside each other, narrow enough for a phone."""
    names = [name for name in CONTENDERS if any(point["contender"] == name for point in points)]
    order = [list(CONTENDERS).index(name) for name in names]
    legend = alt.Legend(title=None, orient="top", columns=1, symbolType="stroke", symbolStrokeWidth=3, symbolSize=200)
    colour = alt.Color("contender:N", legend=legend, scale=alt.Scale(domain=names, range=[COLOURS[k] for k in order]))
    dash = alt.StrokeDash("contender:N", legend=legend, scale=alt.Scale(domain=names, range=[DASHES[k] for k in order]))
    ticks = alt.Axis(values=list(BUDGETS), format="~g", grid=False)
    x = alt.X("minutes:Q", title=None, axis=ticks, scale=alt.Scale(type="log", domain=[0.4, max(BUDGETS)], clamp=True))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5, format="~g"))
    panels = []
    for case in (case for case in CASES if any(point["case"] == case for point in points)):
        named = case if "," in case else f"{case}, {metric_title(CASES[case].metric)}"
        heading = alt.TitleParams(named, fontSize=11, fontWeight=600, anchor="start", color=INK)
        base = alt.Chart(alt.NamedData(DATA)).transform_filter(f"datum.case == {json.dumps(case)}")
        line = base.mark_line(strokeWidth=2, point={"size": 22}).encode(x=x, y=y, color=colour, strokeDash=dash)
        panels.append(line.properties(width=136, height=130, title=heading))
    rows = [alt.hconcat(*panels[at : at + 2], spacing=24) for at in range(0, len(panels), 2)]
    subtitle = ["On images that training never sees, by minutes", "of the whole command (2 cores)."]
    return with_data(styled(alt.vconcat(*rows, spacing=12), "The best model for the minutes", subtitle), list(points))


if __name__ == "__main__":
    Benchmark(
        "anytime",
        __doc__,
        cells,
        lines=lines,
        settings={"size": 128, "batch": 32},
        choices={"sets": tuple(CASES), "budgets": BUDGETS, "plot": Path("docs/images/anytime")},
        seeds=(0,),
        page=SPEED,
        work=Path("benchmarks/records/anytime"),
    ).main()
