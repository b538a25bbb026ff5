"""What a review is good for: a simulated person who knows the truth settles labels on the real server, over HTTP.

    python -m benchmarks.review DATA [--seeds 0 1 2] [--only 'worse' 'from nothing*']

The person looks at pages of 48 of the queue of suspects, and once that is empty of all labels, the most doubtful first.
A page is settled at once by what is true of most of it, its suggestions or its labels, and the rest is then corrected.
Keys and clicks: one to select the page, one to settle it; one for each other image, one for the suggestions or for each
label that is right among them, and one for each third class. Between pages the person waits until the server has
learnt. Of cifar10n the truth of half of the images is known: the person passes over the others, whose labels teach as
they are.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from cleanlab.rank import get_label_quality_scores

from assay.apps.review.learner import Labels, Learner
from assay.apps.review.learning import SIZE
from assay.arrays import Bools, Floats, Ints
from assay.experiments.audit_inputs import AuditInputs, read_data
from assay.labels.samples import Samples
from assay.labels.split import folds, split
from assay.plan.yaml_lines import write as to_yaml
from assay.predictions.out_of_fold import out_of_fold
from assay.progress import NoProgress
from assay.training.linear import fit_linear
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed, mean_and_interval, run_assay, train

PAGE, BATCH = 48, 25
SHARES, LABELS = (0.2, 0.3, 0.4), (50, 100, 200, 400)
DECISIONS = 800  # after which a model is trained again
HEADER = "| what | at | seeds | review | cleanlab's order | margin order | random | keys a decision |"
ROW = "| {what} | {at} | {seeds} | {review} | {cleanlab} | {margin} | {random} | {keys} |"
WAYS = ("review", "random", "uncertainty")
FIT = {"size": 64, "epochs": 6}  # of all stages, a few minutes for 10,000 images


class Person:
    """One who works in a review at this address, whose `truth` (N,) is -1 where it is not known."""

    def __init__(self, address: str, truth: Sequence[str | None]) -> None:
        self.address, self.truth, self.looked, self.keys = address, truth, 0, 0.0
        self.head = self.wait()["heads"][0]["name"]

    def call(self, path: str, body: object = None) -> Any:
        """Return the JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, data, headers), timeout=600) as answer:
            return json.load(answer)

    def wait(self) -> Record:
        """Return the state once all is learnt that was decided."""
        while True:
            state: Record = self.call("api/state")
            progress = state["progress"]
            if state["features"] and not progress["working"] and not progress["learning"] and len(state["queues"]) > 6:
                return state
            time.sleep(0.2)

    def queue(self, *names: str) -> list[int]:
        """Return the rows of the first of these queues that has any whose truth is known."""
        for name in names:
            with urllib.request.urlopen(f"{self.address}api/queue?id={name}", timeout=600) as answer:
                rows = np.frombuffer(answer.read(), "<i4").tolist()
            known = [row for row in rows if self.truth[row] is not None]
            if known:
                return known
        return []

    def decide(self, rows: Sequence[int], news: Sequence[str | None]) -> None:
        """Settle rows with one request: by a new label each, or by the present one where that is None."""
        if rows:
            decisions = [
                {"row": row, "head": self.head, "tag": None, "action": "keep" if new is None else "set", "new": new}
                for row, new in zip(rows, news, strict=True)
            ]
            self.call("api/decide", {"decisions": decisions})

    def label(self, rows: Sequence[int]) -> None:
        """Give rows their true labels."""
        self.decide(rows, [self.truth[row] for row in rows])

    def settle(self, page: Sequence[int]) -> None:
        """Settle a page as its suggestions and labels allow, and count the keys."""
        shown = self.call("api/rows", {"rows": page})
        suggested = [one["suggestion"].get(self.head, {}).get("class") for one in shown]
        given = [one["labels"][self.head] for one in shown]
        true = [self.truth[row] for row in page]
        right = [label == truth for label, truth in zip(given, true, strict=True)]
        accepted = [not kept and new == truth for kept, new, truth in zip(right, suggested, true, strict=True)]
        accept = sum(accepted) > sum(right) and None not in suggested
        self.decide(page, suggested if accept else [None] * len(page))
        wrong = [at for at, done in enumerate(accepted if accept else right) if not done]
        self.label([page[at] for at in wrong])
        keys = {"Enter" if accepted[at] else true[at] for at in wrong}
        self.keys += 2 + len(wrong) + len(keys)
        self.looked += len(page)
        self.wait()


@contextmanager
def served(source: str, folder: Path, *options: str) -> Iterator[str]:
    """Serve a review of a source in a folder for the block; features are kept in the folder, decisions are not."""
    (folder / "review.csv").unlink(missing_ok=True)
    command = [sys.executable, "-m", "assay", "review", source, "--no-browser", "--out", "review.csv", *options]
    with (
        open(folder / "log.txt", "w", encoding="utf-8") as log,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield next(line.strip() for line in process.stdout if line.strip().startswith("http://"))
        finally:
            process.terminate()


def write_plan(folder: Path, plan: Record) -> Path:
    """Write a plan into a folder, which is made, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(to_yaml(plan), encoding="utf-8")
    return folder / "plan.yaml"


def inputs_of(plan: Path) -> AuditInputs:
    """Return the images and features of a plan's data, as a review beside it has them."""
    data = read_data(plan)
    return AuditInputs.of(data, plan.parent / "review", device="cpu", progress=NoProgress(), size=SIZE)


def find_wrong(options: Options, column: str, seed: int) -> Record:
    """Settle labels of cifar10n by a column until 40 % are looked at; baselines are orders by the labels as given."""
    heads = {"label": {"column": column}}
    data = {**options.data_of("cifar10n"), "heads": heads, "split": {"val": 0.0, "seed": 0}}
    folder = options.work / "cifar10n"
    plan = write_plan(folder, {"data": data, "seed": seed, "steps": [{"probe": {"size": 128}}]})
    true = dict(pl.read_csv(options.data / "cifar10n" / "truth_half.csv").iter_rows())
    with served("plan.yaml", folder) as address:
        samples = read_data(plan).samples
        truth = [true.get(name) for name in samples.ids]
        known = np.array([one is not None for one in truth])
        given = samples.table["label:label"].to_numpy()
        wrong = known & (given != np.array(truth, dtype=object))
        person, order, keys, early = Person(address, truth), [], [], early_file(options, column, seed)
        while len(order) < max(SHARES) * known.sum():
            page = person.queue("suspects", "doubtful")[:PAGE]
            person.settle(page)
            order += page
            keys.append(person.keys / len(order))
            if len(order) - len(page) < DECISIONS <= len(order):
                shutil.copy(folder / "review.csv", early)
    record: Record = {"keys": keys[-1], "n": int(known.sum()), "wrong": int(wrong.sum())}
    for share in SHARES:
        count = int(share * known.sum())
        record[f"review {share}"] = float(wrong[order[:count]].sum() / wrong.sum())
        record[f"keys {share}"] = keys[min(len(keys) - 1, count // PAGE)]
    features = inputs_of(plan).features
    record |= orders(samples, features, wrong, known, seed)
    decided = order[: -(-DECISIONS // PAGE) * PAGE][:DECISIONS]
    return record | retrained(options, samples, features, truth, decided, seed)


def early_file(options: Options, column: str, seed: int) -> Path:
    """Return the decisions of a review after the first 800 or so."""
    return options.work / f"early-{column}-{seed}.csv"


def retrain(options: Options, column: str, seed: int) -> Record:
    """Train the same plan on the labels as given, and with the early decisions of `find_wrong` of this seed."""
    early, folder = early_file(options, column, seed), options.work / "retrained" / f"{column}-{seed}"
    if not early.exists():
        raise SystemExit(f"{early}: is not there. Measure 'wrong labels/{column}' of this seed first.")
    data = {**options.data_of("cifar10n"), "heads": {"label": {"column": column}}}
    data |= {"split": {"val": 0.2, "seed": seed}}
    record: Record = {}
    for name, more in (("without", {}), ("with", {"corrections": str(early)})):
        plan = {"data": {**data, **more}, "seed": seed, "steps": [{"fit": FIT}]}
        run = folder / name
        train(plan, run)
        scores = run_assay("evaluate", run / "run", options.data / "cifar10n" / "test", "--json").output
        accuracy = json.loads(scores)["scores"]["metrics"]["accuracy"]
        record |= {f"test {name}": accuracy["value"], "n": accuracy["n"]}
    return record


def orders(samples: Samples, features: Floats, wrong: Bools, known: Bools, seed: int) -> Record:
    """Return the shares of wrong labels that orders by out-of-fold probabilities of the same features find."""
    probabilities = out_of_fold(samples, features, folds(samples, 5, seed=seed), seed=seed).probabilities
    labels, rows = samples.codes()[0][known], np.flatnonzero(known)
    record = {}
    for name, method in (("cleanlab", "self_confidence"), ("margin", "normalized_margin")):
        order = rows[np.argsort(get_label_quality_scores(labels, probabilities[known], method=method))]
        for share in SHARES:
            record[f"{name} {share}"] = float(wrong[order[: int(share * len(rows))]].sum() / wrong.sum())
    return record


def retrained(
    options: Options, samples: Samples, features: Floats, truth: Sequence[str | None], decided: Sequence[int], seed: int
) -> Record:
    """Return the test accuracy of the linear probe on the labels as they were, and with the decisions."""
    plan = {"data": {"folder": str(options.data / "cifar10n" / "test"), "split": {"val": 0.0}}}
    test = inputs_of(write_plan(options.work / "cifar10n-test", plan))
    codes, classes = samples.codes()[0], samples.space.heads[0].index
    better = codes.copy()
    better[list(decided)] = [classes[str(truth[row])] for row in decided]
    record = {}
    for name, labels in (("without", codes), ("with", better)):
        linear = fit_linear(samples.space, features, [labels], samples.weights(), seed=seed)
        right = linear.logits(test.features).argmax(axis=1) == test.samples.codes()[0]
        record[f"test {name}"] = float(right.mean())
    return record


def from_nothing(options: Options, case: tuple[str, str], seed: int) -> Record:
    """Label images of which none has a label, and score the probe on the fixed fifth after some labels."""
    name, way = case
    folder = options.work / name
    inputs = inputs_of(write_plan(folder, {"data": options.data_of(name), "seed": seed}))
    samples, features = split(inputs.samples, val=0.2, seed=0), inputs.features
    (codes,) = samples.codes()
    held = samples.table["split"].to_numpy() == "val"
    if way == "review":
        order = by_review(samples, codes, held, folder)
    else:
        order = by_rule(samples, features, codes, held, way, seed)
    record = {}
    for count in LABELS:
        rows = np.array(order[:count])
        linear = fit_linear(samples.space, features[rows], [codes[rows]], np.ones((count, 1), np.float32), seed=seed)
        record[f"at {count}"] = float((linear.logits(features[held]).argmax(axis=1) == codes[held]).mean())
    return record


def by_review(samples: Samples, codes: Ints, held: Bools, folder: Path) -> list[int]:
    """Return the rows that a person labels by the queue of what is best labelled next, of images without any label."""
    names = samples.space.heads[0].classes
    copies = folder / "images"
    if not copies.exists():
        copies.mkdir()
        for row in np.flatnonzero(~held).tolist():
            shutil.copy(samples.paths[row], copies / f"{row:06}{samples.paths[row].suffix}")
    order: list[int] = []
    with served("images", folder, "--classes", ",".join(names)) as address:
        person = Person(address, [])
        count = person.call("api/state")["count"]
        ids = [one["id"] for one in person.call("api/rows", {"rows": list(range(count))})]
        numbers = [int(Path(name).stem) for name in ids]
        person.truth = [names[codes[number]] for number in numbers]
        while len(order) < max(LABELS):
            page = person.queue("next")[:BATCH]
            person.label(page)
            person.wait()
            order += [numbers[row] for row in page]
    return order


def by_rule(samples: Samples, features: Floats, codes: Ints, held: Bools, way: str, seed: int) -> list[int]:
    """Return the rows that `random` or `uncertainty` labels, in batches, by the learner of the review."""
    chance = np.random.default_rng(seed)
    fold = np.where(held, -1, chance.integers(0, 5, len(held)))
    learner, head = Learner(samples.space, features, fold), samples.space.heads[0]
    order = chance.permutation(np.flatnonzero(~held))[:BATCH].tolist()
    none = head.unknown(len(codes))
    while len(order) < max(LABELS):
        now, decided = none.copy(), np.zeros(len(codes), np.bool_)
        now[order], decided[order] = codes[order], True
        learner.learn(Labels((none,), (now,), (decided,)))
        pool, chance = learner.pool(head, decided), np.random.default_rng(seed + len(order))
        if way == "random":
            order += chance.permutation(pool.rows)[:BATCH].tolist()
        else:  # whose most probable class is least probable (Lewis & Gale 1994)
            order += pool.rows[np.argsort(pool.probabilities[pool.rows].max(axis=1), kind="stable")[:BATCH]].tolist()
    return order


def measure(options: Options, case: tuple[str, ...], seed: int) -> Record:
    """Measure one case."""
    if case[0] == "nothing":
        return from_nothing(options, (case[1], case[2]), seed)
    return {"wrong": find_wrong, "retrained": retrain}[case[0]](options, case[1], seed)


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row for each share of the images, or number of labels."""
    named, rows = by_name(records), []
    for name, chosen in named.items():
        if name.startswith("wrong"):
            for share in SHARES:
                row = {one: mean_and_interval(chosen, f"{one} {share}") for one in ("review", "cleanlab", "margin")}
                keys = mean_and_interval(chosen, f"keys {share}")
                what = f"{name}: share found, n = {chosen[0]['n']:,}, {chosen[0]['wrong']:,} wrong"
                rows.append(row | {"what": what, "at": f"{share:.0%}", "random": f"{share:.3f}", "keys": keys})
            without, retrained_ = (mean_and_interval(chosen, f"test {one}") for one in ("without", "with"))
            what = f"{name}: test accuracy of the probe, without decisions {without}, n = 2,000"
            blank = dict.fromkeys(("cleanlab", "margin", "random", "keys"), "")
            rows.append(blank | {"what": what, "at": f"{DECISIONS} decisions", "review": retrained_})
            rows[-1]["seeds"] = len(chosen)
        elif name.startswith("retrained"):
            without, with_ = (mean_and_interval(chosen, f"test {one}") for one in ("without", "with"))
            what = f"{name}: test accuracy of a fit, without decisions {without}, n = {chosen[0]['n']:,}"
            blank = dict.fromkeys(("cleanlab", "margin", "random", "keys"), "")
            rows.append(blank | {"what": what, "at": f"{DECISIONS} decisions", "review": with_})
        elif name.endswith("review"):
            ways = {way: named.get(name.removesuffix("review") + way, []) for way in WAYS}
            for count in LABELS:
                cells = {way: mean_and_interval(of_way, f"at {count}") for way, of_way in ways.items()}
                what = f"{name.removesuffix('/review')}: accuracy of the probe (uncertainty: {cells['uncertainty']})"
                blank = dict.fromkeys(("cleanlab", "margin", "keys"), "")
                rows.append(blank | {"what": what, "at": f"{count} labels", **cells})
        for row in rows:
            row.setdefault("seeds", len(chosen))
    return options.section(HEADER, ROW, rows)


if __name__ == "__main__":
    cases = {f"wrong labels/{column}": ("wrong", column) for column in ("random1", "worse")}
    cases |= {f"retrained/{column}": ("retrained", column) for column in ("random1", "worse")}
    cases |= {f"from nothing/{name}/{way}": ("nothing", name, way) for name in ("eurosat", "seedlings") for way in WAYS}
    Benchmark("review", __doc__, by_seed(measure, cases), lines=lines).main()
