"""What a server counts, as text that Prometheus reads; several processes count as one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from assay.arrays import Doubles

ENDPOINTS = ("/predict", "/explain", "other")
STATUSES = (200, 304, 307, 400, 401, 403, 404, 405, 408, 413, 415, 422, 500, 503, 507)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32)
RUNNING = "assay_requests_running"
FAMILIES = {
    "assay_requests_total": ("counter", "Requests by their answer."),
    "assay_request_seconds": ("histogram", "Seconds from the head of a request to the end of its answer."),
    "assay_batch_images": ("histogram", "Images of a batch that the network computed."),
    "assay_batch_seconds_total": ("counter", "Seconds that the network computed."),
    RUNNING: ("gauge", "Requests for predictions that are being answered."),
}


def _series() -> Iterator[str]:
    yield from (
        f'assay_requests_total{{endpoint="{endpoint}",status="{status}"}}'
        for endpoint in ENDPOINTS
        for status in STATUSES
    )
    for endpoint in ENDPOINTS[:2]:
        yield from _histogram("assay_request_seconds", SECONDS, f'endpoint="{endpoint}"')
    yield from _histogram("assay_batch_images", SIZES)
    yield from ("assay_batch_seconds_total", RUNNING)


def _histogram(name: str, limits: tuple[float, ...], label: str = "") -> Iterator[str]:
    comma, braces = ("," if label else ""), (f"{{{label}}}" if label else "")
    yield from (f'{name}_bucket{{{label}{comma}le="{limit:g}"}}' for limit in limits)
    yield from (f'{name}_bucket{{{label}{comma}le="+Inf"}}', f"{name}_sum{braces}", f"{name}_count{braces}")


SERIES = {name: number for number, name in enumerate(_series())}


class Metrics:
    """Counts (W, series) of W processes, of which this one adds to its row. Each series is of one thread."""

    def __init__(self, counts: Doubles | None = None, row: int = 0) -> None:
        """Begin to count; without `counts` for this process alone."""
        self._all = np.zeros((1, len(SERIES))) if counts is None else counts
        self._mine = self._all[row]
        self._mine[SERIES[RUNNING]] = 0  # of a process that was killed

    @property
    def running(self) -> int:
        """Requests that this process is answering."""
        return int(self._mine[SERIES[RUNNING]])

    def run(self, change: int) -> None:
        self._mine[SERIES[RUNNING]] += change

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        endpoint = path if path in ENDPOINTS else ENDPOINTS[-1]
        known = status if status in STATUSES else status // 100 * 100 if status // 100 * 100 in STATUSES else 500
        self._mine[SERIES[f'assay_requests_total{{endpoint="{endpoint}",status="{known}"}}']] += 1
        if endpoint != ENDPOINTS[-1]:
            self._observe("assay_request_seconds", SECONDS, seconds, f'endpoint="{endpoint}"')

    def batch(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self._observe("assay_batch_images", SIZES, images)
        self._mine[SERIES["assay_batch_seconds_total"]] += seconds

    def text(self) -> str:
        """Return the sums over all processes in Prometheus' text format."""
        totals, lines, family = self._all.sum(axis=0), [], ""
        for name, number in SERIES.items():
            if not name.startswith(family) or not family:
                family = next(one for one in FAMILIES if name.startswith(one))
                kind, purpose = FAMILIES[family]
                lines += [f"# HELP {family} {purpose}", f"# TYPE {family} {kind}"]
            lines.append(f"{name} {totals[number]:.10g}")
        return "\n".join(lines) + "\n"

    def _observe(self, name: str, limits: tuple[float, ...], value: float, label: str = "") -> None:
        series = list(_histogram(name, limits, label))
        for limit, bucket in zip((*limits, np.inf), series, strict=False):
            self._mine[SERIES[bucket]] += value <= limit
        self._mine[SERIES[series[-2]]] += value
        self._mine[SERIES[series[-1]]] += 1
