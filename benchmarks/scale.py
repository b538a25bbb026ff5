"""Speed and memory of the work on shards: images/s of indexing and of features, by executor, on generated images.

python -m benchmarks.scale --images 20000 --shards 20 [--side 64] [--classes 3] [--by apart:2 local:1 local:2 ray:2]
    [--work DIR] [--json]

`apart:2` is what decoding and the network come to, one after the other, in so many processes. `jobs:100000` is the
memory of the process that hands out so many shards, of which each is done at once.

With `--train STEPS`, the peak of memory alone of a training without a cache that ends after so many optimiser steps.

Each measurement is a process of its own, so that its peak of memory is its own too. Images are JPEG files of noise over
a gradient, in tar files; the network is the default backbone with weights that were never trained.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from PIL import Image

from assay.labels.samples import Samples
from assay.progress import GivenUpError, NoProgress, cores
from assay.scale.executors import pick_executor
from assay.scale.indexing import index_shards
from assay.scale.jobs import Job
from benchmarks.harness import children, table

CLASSES = 3  # unless asked for more
BATCH = 32  # images at a time, as where shards are predicted
TRAINING = """
cache: {limit: 0}
data: {shards: shards/}
hardware: {precision: fp32, layout: channels_last}
model: {weights: none}
steps: [fit: {size: 64, epochs: 1, batch: 32}]
"""


def class_names(count: int) -> tuple[str, ...]:
    """Return as many names: letters, or numbers where these are too few."""
    return tuple(ascii_lowercase[:count]) if count <= len(ascii_lowercase) else tuple(f"c{n:05d}" for n in range(count))


def write_shards(folder: Path, *, images: int, shards: int, side: int, classes: int) -> None:
    """Write images of random bytes into tar files; there already, they are kept."""
    names = class_names(classes)
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(images), shards)):
        path = folder / f"{number:05d}-of-{shards:05d}.tar"
        if path.exists():
            continue
        chance = np.random.default_rng(number)
        with tarfile.open(path.with_suffix(".part"), "w") as tar:
            for row in rows.tolist():
                pixels = np.linspace(0, 200, side)[:, None, None] + chance.integers(0, 56, (side, side, 3))
                content = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(content, "JPEG")
                for ending, data in (("jpg", content.getvalue()), ("cls", names[row % classes].encode())):
                    about = tarfile.TarInfo(f"{row:09d}.{ending}")
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
        path.with_suffix(".part").rename(path)


def write_model(folder: Path, size: int, classes: int) -> None:
    """Write a model that was never trained."""
    from assay.images.decode import Resize
    from assay.labels.space import Head, LabelSpace
    from assay.models.classifier import ModelSettings, build_classifier
    from assay.models.decision_rule import DecisionRule
    from assay.models.trained_model import TrainedModel

    space = LabelSpace((Head("label", class_names(classes)),))
    model = build_classifier(ModelSettings(weights="none"), space, seed=0, base=Path(), size=size)
    TrainedModel(model, space, size, size, Resize(), DecisionRule.plain(space)).save(folder)


def peak_memory(process: int | str = "self") -> float:
    """Return the largest resident memory of a process so far, in MiB; NaN where it is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return float("nan")
    peak = re.search(r"VmHWM:\s+(\d+)", text)
    return int(peak[1]) / 1024 if peak else float("nan")


class Stop(NoProgress):
    """Ends a training after so many optimiser steps; keeps the largest memory of the processes that decode."""

    def __init__(self, after: int) -> None:
        self.left, self.workers = after, 0.0

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        self.left -= metrics is not None  # as the loop reports
        self.workers = max([self.workers, *filter(np.isfinite, map(peak_memory, children(os.getpid())))])
        if self.left == 0:
            raise GivenUpError


def train(work: Path, steps: int) -> dict[str, float]:
    """Return the peaks of a training on the shards, without a cache of pixels."""
    import assay

    plan = work / "plan.yaml"
    plan.write_text(TRAINING, encoding="utf-8")
    shutil.rmtree(work / "run", ignore_errors=True)
    progress, begun = Stop(steps), peak_memory()
    with suppress(GivenUpError):
        assay.train(plan, run=work / "run", device="cpu", progress=progress)
    images = len(Samples.read(work / "run" / "samples.parquet"))
    return {"images": images, "steps": steps - progress.left, "imports MiB": begun, "driver MiB": peak_memory(),
            "worker MiB": progress.workers}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A function of shards that leaves the peak of its process in a folder."""

    function: object
    folder: Path

    def __call__(self, job: object, result: Path) -> None:
        self.function(job, result)  # type: ignore[operator]
        (self.folder / f"peak-{os.getpid()}").write_text(str(peak_memory()), encoding="utf-8")


@dataclass(frozen=True)
class Apart:
    """Decodes the images of a shard, then predicts them, and writes the seconds of both together."""

    model: Path

    def __call__(self, job: Job, result: Path) -> None:
        from assay.labels.readers.shard_index import read_index
        from assay.labels.shards import Member
        from assay.predictions.predictor import Predictor

        index, predictor = read_index(job.shard, job.index), Predictor.untimed(self.model, device="cpu")
        names = index.rows["name"].to_list()
        places = index.rows.select("name", "offset", "size").rows()
        began = time.perf_counter()
        images = [predictor.decode(Member(index.shard, name, *at)) for name, *at in places]
        for first in range(0, len(images), BATCH):
            predictor.predict(names[first : first + BATCH], images[first : first + BATCH], features=True)
        result.write_text(str(time.perf_counter() - began), encoding="utf-8")


def write_nothing(job: Job, result: Path) -> None:
    """Do a shard at once."""
    result.touch()


def hand_out(work: Path, count: int) -> dict[str, float]:
    """Return seconds and the peak of the process that hands out so many shards, which are empty files."""
    from assay.labels.shards import Shard, state_of

    folder = work / "jobs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06d}.tar").touch()
    before, began = peak_memory(), time.perf_counter()
    files = sorted(map(str, folder.iterdir()))
    jobs = [Job(Shard(file, state_of(file)), Path(f"{file}.index"), Path(f"{file}.result")) for file in files]
    run, _ = pick_executor("local", workers=2, device="cpu", progress=NoProgress())
    done = sum(1 for _ in run(write_nothing, jobs))
    return {"images": done, "seconds": time.perf_counter() - began, "before MiB": before, "driver MiB": peak_memory(),
            "worker MiB": float("nan")}  # fmt: skip


def measure(work: Path, name: str) -> dict[str, float]:
    """Return seconds and peaks of indexing (`index`), or of features by an executor (`local:2`)."""
    if name.startswith("jobs:"):
        return hand_out(work, int(name.partition(":")[2]))
    progress, peaks = NoProgress(), work / "peaks"
    shutil.rmtree(peaks, ignore_errors=True)
    peaks.mkdir()
    kind, _, workers = ("local", ":", str(cores())) if name == "index" else name.partition(":")
    began = time.perf_counter()
    by = "local" if kind == "apart" else kind
    run, device = pick_executor(by, workers=int(workers), device="cpu", progress=progress)

    def executor(function, jobs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return run(Measured(function, peaks), jobs)

    connected = time.perf_counter() - began
    if name == "index":
        shutil.rmtree(work / "shards" / ".assay", ignore_errors=True)
    began = time.perf_counter()
    shards = index_shards([str(work / "shards")], executor=executor, progress=progress)
    if kind == "apart":
        results = [work / "results" / f"apart-{number}" for number in range(len(shards.jobs))]
        results[0].parent.mkdir(exist_ok=True)
        jobs = [replace(job, result=result) for job, result in zip(shards.jobs, results, strict=True)]
        for _ in executor(Apart(work / "model"), jobs):
            pass
        seconds = sum(float(result.read_text()) for result in results) / int(workers)
        return {"images": shards.images, "seconds": seconds, "driver MiB": peak_memory(), "worker MiB": float("nan")}
    if name != "index":
        from assay.models.ensemble import load_model
        from assay.scale.shard_predictions import PredictShard, predict_shards

        began = time.perf_counter()
        function = PredictShard(work / "model", device, features=True)
        saved = load_model(work / "model")
        out = work / "results" / name.replace(":", "-")
        shutil.rmtree(out, ignore_errors=True)
        parts = predict_shards(shards, function, saved, folder=out, executor=executor, progress=progress)
        assert sum(map(len, parts)) == shards.images
    seconds = time.perf_counter() - began
    workers_peak = max((float(path.read_text()) for path in peaks.iterdir()), default=float("nan"))
    return {"images": shards.images, "seconds": seconds, "connect": connected, "driver MiB": peak_memory(),
            "worker MiB": workers_peak}  # fmt: skip


def main() -> None:
    """Print a row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--side", type=int, default=64, help="of the images, and of the network's input")
    parser.add_argument("--by", nargs="*", default=["local:1", "local:2", "ray:2"])
    parser.add_argument("--work", type=Path, help="a folder to keep the shards in")
    parser.add_argument("--train", type=int, metavar="STEPS", help="measure the memory of a training instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        done = train(given.work, given.train) if given.measure == "train" else measure(given.work, given.measure)
        sys.stdout.write(json.dumps(done) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = (given.work or Path(scratch)).absolute()
        layout = {"side": given.side, "classes": given.classes}
        write_shards(work / "shards", images=given.images, shards=given.shards, **layout)
        if given.train is None:
            write_model(work / "model", given.side, given.classes)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
        results: dict[str, dict[str, float]] = {}
        for name in ("index", *given.by) if given.train is None else ("train",):
            command = [sys.executable, "-m", "benchmarks.scale", "--work", str(work), "--measure", name]
            command += ["--train", str(given.train)] if given.train is not None else []
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
    if given.train is not None:
        sys.stdout.write(json.dumps(results["train"]) + "\n")
        return
    rows = [
        (name, f"{one['images']:,.0f}", f"{one['images'] / one['seconds']:,.0f}", f"{one['driver MiB']:,.0f}",
         f"{one['worker MiB']:,.0f}")
        for name, one in results.items()
    ]  # fmt: skip
    header = ("", "images", "images/s, with the start of processes", "driver MiB", "largest worker MiB")
    sys.stdout.write((json.dumps(results) if given.json else "\n".join(table(header, rows))) + "\n")


if __name__ == "__main__":
    main()
