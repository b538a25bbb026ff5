"""Images trained on by second on a GPU in bf16, ResNet-50 and ViT-S at 224 pixels, beside fastai and a plain loop.

    python -m benchmarks.gpu [--device cuda] [--images 4096] [--seconds 12]

Needs no data and no weights: the images are drawn, and the networks untrained. Takes at most 5 minutes. The share of
the peak is of what a product of two matrices reaches on the same card.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import SPEED, Benchmark, Cell, Options, Record, in_a_process, steps_of, table, train
from benchmarks.peers import contest
from benchmarks.planted import untouched
from benchmarks.speed import gflops, write_images

BACKBONES = {"ResNet-50": "resnet50", "ViT-S": "vit_small_patch16_224"}
BOUND = "one batch over and over"
PEERS = {"fastai": "fastai_peer", "timm + torchvision loop": "timm_loop", BOUND: "synthetic"}
EPOCHS = 1_000  # the seconds end them


def cells(options: Options) -> Iterator[Cell]:
    """Yield the products of matrices, and each contender on each network; nothing where there is no GPU."""
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("no GPU here\n")
        raise SystemExit
    yield Cell("products", 0, partial(in_a_process, gflops, options.side, 15, 5.0, options.device))
    for network in BACKBONES:
        for name in ("Assay", *PEERS):
            yield Cell(f"{network}/{name}", 0, partial(measure, options, network, name))


def measure(options: Options, network: str, name: str) -> Record:
    """Train one contender for the seconds that are given."""
    folder = options.work / "images"
    prepare(folder, options.images, options.size)
    task: Record = {"data": str(folder), "stage": "unfrozen", "epochs": EPOCHS, "size": options.size, "seed": 0}
    task |= {"batch": options.batch, "precision": "bf16", "backbone": BACKBONES[network], "device": options.device}
    if name == "Assay":
        record = {"images_per_second": assay_rate(options, folder, BACKBONES[network])}
    else:
        task |= {"max_seconds": options.seconds, "chosen": (None if name == "fastai" else workers(), True)}
        record = in_a_process(contest.compete, PEERS[name], task, PYTHONWARNINGS="ignore")
    kept = {key: record[key] for key in ("images_per_second", "flops_per_image") if key in record}
    card = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    return {"network": network, "contender": name, "card": card, **kept}


def workers() -> int:
    """Return a process a core that this one may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)


def prepare(folder: Path, count: int, size: int) -> None:
    """Draw JPEG files of two classes, smooth as photographs are, unless they are there."""
    if (folder / "images.json").exists():
        return
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / "drawn" / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8))
        coarse.resize((size + size // 8,) * 2, Image.Resampling.BICUBIC).save(path, quality=90)
    write_images(untouched(folder / "drawn"), folder)


def assay_rate(options: Options, folder: Path, backbone: str) -> float:
    """Return the images by second of a fit of the whole network."""
    fit = {"size": options.size, "batch": options.batch, "epochs": EPOCHS, "seconds": options.seconds}
    fit |= {"lr": contest.RATE, "augment": {"crop": list(contest.CROP), "flip": "both"}, "batch_norm": "train"}
    plan: Record = {"data": {"folder": str(folder / "drawn")}, "model": {"backbone": backbone, "weights": "none"}}
    plan |= {"hardware": {"precision": "bf16", "layout": "channels_last"}, "steps": [{"fit": fit}]}
    with options.scratch() as scratch:
        train(plan, scratch, "--device", options.device, PYTHONWARNINGS="ignore")
        return float(steps_of(scratch / "run")[-1]["details"]["images_per_second"])


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table: rates, how they compare with fastai's, and the share of the peak."""
    (products,) = (record for record in records if record["name"] == "products")
    trained = [record for record in records if record["name"] != "products"]
    rates = {(record["network"], record["contender"]): record["images_per_second"] for record in trained}
    flops = {record["network"]: record["flops_per_image"] for record in trained if "flops_per_image" in record}
    rows = []
    for (network, name), rate in rates.items():
        beside = f"{rate / rates[network, 'fastai']:.2f}" if rates.get((network, "fastai")) else ""
        share = f"{rate * flops[network] / 1e9 / products['bf16']:.1%}" if network in flops else ""
        rows.append([network, name, f"{rate:,.0f}", beside, share])
    card = trained[0]["card"] if trained else options.device
    about = f"{card}: {products['bf16'] / 1e3:.1f} TFLOP/s in bf16 ({products['setting']})."
    return [options.command, "", about, "", *table(["network", "contender", "images/s", "x fastai", "peak"], rows)]


if __name__ == "__main__":
    Benchmark(
        "gpu",
        __doc__,
        cells,
        lines=lines,
        settings={"device": "cuda", "images": 4096, "seconds": 12.0, "size": 224, "batch": 128, "side": 8192},
        seeds=None,
        data=False,
        page=SPEED,
    ).main()
