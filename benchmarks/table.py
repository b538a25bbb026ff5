"""docs/BENCHMARKS.md from the lines that were measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from assay.errors import DISTRIBUTION
from benchmarks.contenders import BASE, BOUND

Line = dict[str, Any]
PACKAGES = (DISTRIBUTION, "torch", "torchvision", "timm", "fastai", "accelerate", "pillow")


def document(lines: Sequence[Line], *, command: str, explanation: str) -> str:
    """The whole page; every metric is the median of the measurements of its cell."""
    parts = [
        "# Benchmarks",
        f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}. {machine()}. {packages(lines)}.",
        explanation,
    ]
    products = [line for line in lines if line["name"] == "matmul"]
    if products:
        parts.append(matmul_text(products))
    for data in dict.fromkeys(line["data"] for line in lines if "data" in line):
        chosen = [line for line in lines if line.get("data") == data]
        parts += [f"## {data}", rows(chosen), reached(chosen, products)]
    return "\n\n".join(part for part in parts if part) + "\n"


def rows(lines: Sequence[Line]) -> str:
    """The table of one data set."""
    header = (
        "| contender | setting | frozen images/s | x | unfrozen images/s | x | "
        "end to end s | validation accuracy (n) | peak memory MiB | runs |"
    )
    table = [header, "|" + " --- |" * 10]
    for contender in dict.fromkeys(line["contender"] for line in lines):
        own = [line for line in lines if line["contender"] == contender]
        setting = "; ".join(dict.fromkeys(str(line["setting"]) for line in own))
        cells = [contender, setting]
        for stage in ("frozen", "unfrozen"):
            rate, base = rate_of(lines, contender, stage), rate_of(lines, BASE, stage)
            cells += [shown(rate), shown(rate and base and rate / base, 2)]
        whole = [line for line in own if line["stage"] == "both"]
        cells += [shown(median(whole, "seconds"), 0), accuracy(whole)]
        counts = sorted({sum(line["stage"] == stage for line in own) for stage in {line["stage"] for line in own}})
        partial = "" if all(line["complete"] for line in own) else ", stopped early"
        memory = max(line["peak_memory_mb"] for line in own)
        cells += [f"{memory:.0f}", " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) + partial]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def reached(lines: Sequence[Line], products: Sequence[Line]) -> str:
    """What the metrics say about the bound and about the machine."""
    rate, bound = rate_of(lines, "Assay", "unfrozen"), rate_of(lines, BOUND, "unfrozen")
    said = []
    if rate and bound:
        said.append(f"Assay reaches {rate / bound:.1%} of the same model fed one synthetic batch.")
    flops = [line["flops_per_image"] for line in lines if line.get("flops_per_image")]
    if rate and flops and products:
        used = rate * flops[0] / 1e9
        shares = (
            f"{used / median(products, f'{kind}_gflops'):.1%} of its {kind} product rate" for kind in ("fp32", "bf16")
        )
        said.append(
            f"An image costs {flops[0] / 1e9:.2f} GFLOP to train on, so Assay uses {used:.1f} GFLOP/s of "
            f"this machine: {' and '.join(shares)}."
        )
    return " ".join(said)


def matmul_text(products: Sequence[Line]) -> str:
    """The machine's own rate."""
    return (
        f"Matrix products ({products[0]['setting']}, {products[0]['threads']} threads): "
        f"{shown(median(products, 'fp32_gflops'))} GFLOP/s in fp32, "
        f"{shown(median(products, 'bf16_gflops'))} in bf16."
    )


def rate_of(lines: Sequence[Line], contender: str, stage: str) -> float | None:
    """Median images per second of one cell."""
    return median(
        [line for line in lines if line["contender"] == contender and line["stage"] == stage],
        "images_per_second",
    )


def median(lines: Sequence[Line], key: str) -> float | None:
    """The median of a metric; none where there is none."""
    values = [line[key] for line in lines if line[key] is not None]
    return statistics.median(values) if values else None


def accuracy(lines: Sequence[Line]) -> str:
    """Accuracy in per cent, with the number of validation images."""
    value = median(lines, "accuracy")
    return "" if value is None else f"{100 * value:.1f} % ({lines[0]['n_val']})"


def shown(value: float | None, digits: int = 1) -> str:
    """A number for a cell, empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def machine() -> str:
    """The processor and its number of cores, as a person would say it."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = [row for row in information.read_text().splitlines() if row.startswith("model name")]
        name = found[0].split(":", 1)[1].strip() if found else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def packages(lines: Sequence[Line]) -> str:
    """Versions, as the contenders themselves saw them."""
    seen: dict[str, str] = {}
    for name in PACKAGES:
        try:
            seen[name] = version(name)
        except PackageNotFoundError:
            continue
    for line in lines:
        seen.update(line.get("versions", {}))
    return ", ".join(f"{name} {number}" for name, number in seen.items())
