"""Starting a server of predictions, in this process or in several, and ending it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np

from assay.apps.serve.metrics import SERIES, Metrics
from assay.apps.serve.protocol import JsonProtocol
from assay.apps.serve.requests import Limits
from assay.apps.serving import LOCAL, listen, run_until_stopped, set_by_signals
from assay.arrays import Doubles
from assay.errors import AssayError, RunError
from assay.postponed import postpone
from assay.progress import NoProgress, Progress


@dataclass(frozen=True)
class ServeSettings:
    """What is served, where, and by how many processes; `run` is the folder of the model's run, where it is known."""

    model: Path
    run: Path | None
    host: str
    port: int
    workers: int
    device: str | None
    token: str | None = None
    limits: Limits = field(default_factory=Limits)
    explains: bool = True

    @property
    def name(self) -> str:
        return (self.run or self.model).resolve().name


def serve(settings: ServeSettings, *, progress: Progress, started: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM; `started` is called with the address once they are answered.

    What runs then is finished, and new requests have the answer 503 meanwhile. Raises AssayError.
    """
    with listen(settings.host, settings.port) as listening:
        port = listening.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host

        def begun() -> None:
            started(f"http://{host}:{port}/")

        if settings.workers == 1:
            _work(settings, listening, Metrics(), progress, begun)
        else:
            counts = multiprocessing.RawArray("d", settings.workers * len(SERIES))
            work = partial(_work_in_process, settings, listening, counts)
            workers, closing = Workers(settings.workers, work, seconds=settings.limits.seconds + 15), threading.Event()
            progress.begin(f"starting {settings.workers} processes", 0)
            with set_by_signals(closing):
                workers.run(closing, started=begun)


def _work(
    settings: ServeSettings, listening: socket.socket, metrics: Metrics, progress: Progress, started: Callable[[], None]
) -> None:
    """Load the model, and answer requests in this process. Raises AssayError."""
    import torch  # not by the process that only starts others

    from assay.apps.serve.explanations import explainer_of
    from assay.apps.serve.server import Access, Server, Service
    from assay.models.trained_model import TrainedModel
    from assay.predictions.predictor import Predictor
    from assay.run.contents import read_run
    from assay.training.devices import pick_device

    device = pick_device(settings.device)
    torch.set_num_threads(max(1, torch.get_num_threads() // settings.workers))
    predictor = Predictor.load(settings.model, device=device)
    explainer = None
    if settings.explains and isinstance(predictor.saved, TrainedModel):
        run = read_run(settings.run) if settings.run is not None else None
        network = TrainedModel.load(settings.model)
        explainer = explainer_of(network, run, progress, device=device)
    service = Service(settings.name, predictor, explainer, settings.limits, metrics)
    closing, parent = threading.Event(), os.getppid()
    local = settings.host in LOCAL
    server = Server(service, Access(listening.getsockname()[1], settings.token, local), closing)
    if settings.workers > 1:  # whoever started this may be killed
        threading.Thread(target=_end_with, args=(parent, closing), daemon=True).start()
    try:
        run_until_stopped(
            server, listening, closing=closing, started=started, ended=lambda: server.idle, http=JsonProtocol
        )
    finally:
        server.close()


def _end_with(parent: int, closing: threading.Event) -> None:
    """Set `closing` once the parent process is gone."""
    while not closing.wait(1):
        if os.getppid() != parent:
            closing.set()


def _work_in_process(
    settings: ServeSettings, listening: socket.socket, counts: Doubles, row: int, reports: SimpleQueue[str]
) -> None:
    """Answer requests in a process that was started for it."""
    postpone()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the first process ends the others
    metrics = Metrics(np.frombuffer(counts, np.float64).reshape(-1, len(SERIES)), row)
    try:
        _work(settings, listening, metrics, NoProgress(), lambda: reports.put(""))
    except AssayError as error:
        reports.put(str(error))


Work = Callable[[int, "SimpleQueue[str]"], None]
"""What a process does, by its number. It puts "" in the queue once it works, or else why it cannot."""


class Workers:
    """Processes, of which each is ended by SIGTERM, and then has so many seconds. `work` can be pickled."""

    def __init__(self, count: int, work: Work, *, seconds: float) -> None:
        self._count, self._work, self._seconds = count, work, seconds
        self._context = multiprocessing.get_context("spawn")  # libraries that have threads do not outlive a fork
        self._reports: SimpleQueue[str] = self._context.SimpleQueue()
        self._processes: dict[int, BaseProcess] = {}

    def run(self, closing: threading.Event, *, started: Callable[[], None]) -> None:
        """Keep them at work until `closing` is set; `started` is called once all work. Raises RunError."""
        try:
            for number in range(self._count):  # the first makes what all keep on disk
                self._start(number)
            started()
            while not closing.wait(0.5):
                for number, process in list(self._processes.items()):
                    if not process.is_alive():
                        sys.stderr.write(f"A process ended (code {process.exitcode}). Another one is started.\n")
                        self._start(number)
        finally:
            self._stop()

    def _start(self, number: int) -> None:
        """Start a process, and wait until it works."""
        process = self._context.Process(target=self._work, args=(number, self._reports), daemon=True)
        process.start()
        self._processes[number] = process
        while self._reports.empty():
            process.join(0.05)
            if not process.is_alive() and self._reports.empty():
                raise RunError(f"A process ended before it answered (code {process.exitcode}); its lines are above.")
        if failure := self._reports.get():
            raise RunError(failure)

    def _stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(self._seconds)
            process.kill()
