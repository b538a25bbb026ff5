"""How fast this machine multiplies matrices: GFLOP/s in fp32 and bf16, the median of several products.

python -m benchmarks.matmul [--side 1024] [--times 15] [--max-seconds 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch


def gflops(dtype: torch.dtype, *, side: int, times: int, max_seconds: float) -> float:
    """Median rate of the product of two `side` x `side` matrices, after one that warms up.

    At least one product is timed, and no further one once `max_seconds` are over.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.rand(side, side, generator=generator).to(dtype) for _ in range(2))
    torch.mm(left[:128], right)
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < times and (not rates or time.perf_counter() - began < max_seconds):
        start = time.perf_counter()
        torch.mm(left, right)
        rates.append(2 * side**3 / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


def main() -> None:
    """Measure and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--max-seconds", type=float, default=20.0, help="for each precision")
    given = parser.parse_args()
    rates = {
        f"{name}_gflops": round(gflops(dtype, side=given.side, times=given.times, max_seconds=given.max_seconds), 2)
        for name, dtype in [("fp32", torch.float32), ("bf16", torch.bfloat16)]
    }
    line = {
        "name": "matmul",
        "setting": f"{given.side} x {given.side}",
        "threads": torch.get_num_threads(),
        **rates,
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
