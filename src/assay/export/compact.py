"""A model in smaller and faster files: int8 by onnxruntime, OpenVINO; each held against the model.

A file is kept only where the headline metric on validation loses at most half a point by it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from assay.arrays import Floats
from assay.errors import DataError, ModelError, install_command
from assay.export.int8 import write_int8
from assay.export.onnx import Exported, single
from assay.files import whole, whole_folder
from assay.images.decode import read_square
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile
from assay.labels.subset import labelled
from assay.metrics.intervals import Metric
from assay.metrics.metrics import estimates, gain, headline
from assay.models.trained_model import TrainedModel
from assay.predictions.predict import Predictions, score_predictions
from assay.predictions.predictor import Predictor

MOST_LOST = 0.005  # of the headline metric
CALIBRATION = 200  # training images
BATCH = 32
TIMED = 30  # images, one by one

Network = Callable[[Floats], Floats]
"""Images (N, 3, side, side) in [0, 1] -> probabilities (N, W)."""


@dataclass(frozen=True)
class Format:
    """A kind of file (or folder): how it is written beside `model.onnx`, how it is run on one core, and what both need.

    write: the path of the ONNX file, training images (N, 3, side, side), and the path to write; yields once the file is
        there, and writes it anew, slower and nearer to the model, if it is asked for more.
    packages: import name -> the line that installs it.
    """

    file: str
    write: Callable[[Path, Floats, Path], Iterator[None]]
    open: Callable[[Path], Network]
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Held:
    """A file held against the model on n validation images; seconds are of an image on one core."""

    file: str
    megabytes: float
    largest: float
    mean: float
    metric: str
    change: Metric
    seconds: float
    seconds_torch: float
    attempts: int = 1  # files, of which this is the last

    def __str__(self) -> str:
        others = f"; of {self.attempts} that were tried, the last" if self.attempts > 1 else ""
        return (
            f"{self.metric.replace('_', ' ')} {self.change.value:+.4f}{self.change.limits()}, n = {self.change.n:,}; "
            f"difference of a probability {self.mean:.1e} on average, {self.largest:.1e} at most; "
            f"{1e3 * self.seconds:.2f} ms an image on one core, torch {1e3 * self.seconds_torch:.2f} ms "
            f"({self.seconds_torch / self.seconds:.1f} times as fast); {self.megabytes:.1f} MB{others}"
        )

    def to_json(self) -> dict[str, object]:
        return {**vars(self), "change": self.change.to_json()}


def export_compact(
    predictor: Predictor, format_name: str, network: Path, samples: Samples, *, metric: str | None
) -> Held:
    """Write a file of one of `FORMATS` beside the ONNX file `network`, and return how it compares with the model.

    It is the first of the format's that loses at most half a point of the metric. Raises ModelError, with nothing
    written, for a missing package, and where all lose more; DataError without labelled validation images.
    """
    require_format(format_name)
    chosen, saved = FORMATS[format_name], single(predictor.saved)
    validation, train = labelled(samples.part("val")), samples.part("train")
    if len(validation) == 0:
        raise DataError(
            "no validation image has a known label to hold the file against. Raise split.val, or label some."
        )
    expected = Predictions.joined(list(predictor.stream(zip(validation.ids, validation.paths, strict=True))))
    rows = [row for row, name in enumerate(expected.ids) if name not in expected.unreadable]
    if not rows:
        raise DataError("no validation image can be read. Put them back, and export again.")
    validation, expected = validation.take(rows), expected.take(rows)
    path = network.with_name(chosen.file)
    with (whole if path.suffix else whole_folder)(path) as beside:
        for attempts, _ in enumerate(chosen.write(network, _calibration_images(saved, train), beside), 1):
            held = _held(path.name, beside, chosen.open(beside), saved, validation, expected, metric)
            if held.change.value >= -MOST_LOST:
                return replace(held, attempts=attempts)
        raise ModelError(
            f"{path}: not written: it loses more than {MOST_LOST:g} of the metric ({held}). Export the others, or "
            "fine-tune the network for longer."
        )


def require_format(name: str) -> None:
    """Raise ModelError where a package that a format needs is missing, with the line that installs it."""
    for package, line in FORMATS[name].packages.items():
        try:
            import_module(package)
        except ImportError as error:
            raise ModelError(f"--{name} needs the package {package}. Install it: {line}") from error


def _calibration_images(saved: TrainedModel, train: Samples) -> Floats:
    """Return at most 200 training images, drawn at random, that can be read."""
    order = np.random.default_rng(0).permutation(len(train)).tolist()
    readable = (train.paths[row] for row in order if train.paths[row].is_file())
    images = list(islice(readable, CALIBRATION))
    if not images:
        raise DataError("no training image is there to calibrate by. Put them back, and export again.")
    return np.concatenate(list(_batches(saved, images)))


def _batches(saved: TrainedModel, images: Sequence[ImageFile]) -> Iterator[Floats]:
    for first in range(0, len(images), BATCH):
        squares = [
            read_square(image, saved.side, settings=saved.resize, size=saved.size)
            for image in images[first : first + BATCH]
        ]
        yield np.stack(squares).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def _held(
    name: str,
    path: Path,
    network: Network,
    saved: TrainedModel,
    samples: Samples,
    expected: Predictions,
    metric: str | None,
) -> Held:
    images = samples.paths
    probabilities = np.concatenate([network(batch) for batch in _batches(saved, images)])
    difference = np.abs(probabilities - expected.probabilities)
    scores = [score_predictions(one, samples) for one in (expected, replace(expected, probabilities=probabilities))]
    before, after = (estimates(one) for one in scores)
    wanted = headline(before, None if metric == "nll" else metric)
    assert wanted is not None
    timed = next(_batches(saved, images[:TIMED]))
    return Held(
        name,
        _bytes(path) / 1e6,
        float(difference.max()),
        float(difference.mean()),
        wanted,
        gain([before[wanted]], [after[wanted]]),
        _seconds(network, timed),
        _seconds(_torch_network(saved), timed),
    )


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.iterdir())


def _seconds(network: Network, images: Floats) -> float:
    """Return the median CPU seconds of an image by itself, on one thread: other work on the machine counts little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for row in (0, 0, *range(len(images))):  # the first ones warm up
            began = time.process_time()
            network(images[row : row + 1])
            times.append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[2:])


def _torch_network(saved: TrainedModel) -> Network:
    module = Exported(saved).eval()

    def run(images: Floats) -> Floats:
        with torch.inference_mode():
            probabilities: Floats = module(torch.from_numpy(images))[0].numpy()
        return probabilities

    return run


def open_onnx(path: Path) -> Network:
    """Return the network of an ONNX file, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(images: Floats) -> Floats:
        probabilities: Floats = session.run(["probabilities"], {"images": images})[0]
        return probabilities

    return run


# OpenVINO: the ONNX file converted.


def write_openvino(network: Path, images: Floats, folder: Path) -> Iterator[None]:
    """Write model.xml and model.bin, with weights of 32 bits."""
    import openvino

    openvino.save_model(openvino.convert_model(str(network)), str(folder / "model.xml"), compress_to_fp16=False)
    yield


def open_openvino(folder: Path) -> Network:
    """Return the network that OpenVINO runs on a CPU, on one thread."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", settings)

    def run(images: Floats) -> Floats:
        probabilities: Floats = compiled({"images": images})["probabilities"]
        return probabilities

    return run


FORMATS: dict[str, Format] = {
    "int8": Format(
        "model.int8.onnx",
        write_int8,
        open_onnx,
        dict.fromkeys(("onnx", "onnxruntime"), install_command("onnx")),
    ),
    "openvino": Format("openvino", write_openvino, open_openvino, {"openvino": install_command("openvino")}),
}
