"""Predictions over HTTP: those of `assay predict`, within limits, and a message for all that is no request."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import uvicorn
from benchmarks.serve import MALFORMED, answer_to, form, is_refused, request
from typer.testing import CliRunner

import assay
from assay import cli
from assay.apps.serve import protocol
from assay.apps.serve.batches import Batches
from assay.apps.serve.explanations import TrainingImages, explainer_of
from assay.apps.serve.metrics import Metrics
from assay.apps.serve.openapi import document
from assay.apps.serve.requests import Limits
from assay.apps.serve.server import Access, Server, Service
from assay.apps.serve.start import Work, Workers
from assay.errors import DataError, RunError
from assay.labels.space import Head, LabelSpace
from assay.models.trained_model import TrainedModel
from assay.models.uncertainty import Uncertainty
from assay.predictions.conformal import present_cells
from assay.predictions.predictor import Predictor
from assay.progress import NoProgress
from assay.run.contents import read_run
from assay.training.devices import Hardware
from fake_processes import cannot_work, ends_at_once, note_process
from test_export import saved

TOKEN = "secret"
PLAN = (
    "data: {{folder: {}}}\nmodel: {{backbone: test_efficientnet, weights: none}}\n"
    "hardware: {{precision: fp32, layout: contiguous}}\nsteps: [{{probe: {{size: 32}}}}]\n"
)


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "plan.yaml").write_text(PLAN.format(colours))
    return assay.train(folder / "plan.yaml", run=folder / "run", device="cpu").folder


@pytest.fixture(scope="module")
def service(run: Path) -> Service:
    network = TrainedModel.load(run / "model")
    explainer = explainer_of(network, read_run(run), NoProgress(), device="cpu")
    return Service("colours", Predictor.load(run / "model", device="cpu"), explainer)


@contextmanager
def serving(service: Service, *, token: str | None = None, closing: threading.Event | None = None) -> Iterator[int]:
    """Answer requests for the block, at the port that it yields."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = Server(service, Access(port, token), closing or threading.Event())
        config = uvicorn.Config(server, http=protocol.JsonProtocol, log_level="critical", lifespan="off", ws="none")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield port
        finally:
            running.should_exit = True
            thread.join()
            server.close()


@pytest.fixture(scope="module")
def port(service: Service) -> Iterator[int]:
    with serving(service) as port:
        yield port


def ask(port: int, data: bytes) -> Any:
    status, body = answer_to(data, port)
    return json.loads(body) if status == 200 else (status, json.loads(body)["error"])


def get(port: int, path: str, more: str = "") -> tuple[int, bytes]:
    return answer_to(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{more}\r\n".encode(), port)


def files(colours: Path) -> list[Path]:
    return [colours / name / "0.png" for name in ("red", "green", "blue")]


# Predictions


def test_the_same_probabilities_as_of_predicting_from_a_form_and_from_json(port: int, run: Path, colours: Path) -> None:
    paths = files(colours)
    wanted = assay.load(run).predict(paths)
    contents = [path.read_bytes() for path in paths]
    listed = [
        {"name": path.name, "data": base64.b64encode(one).decode()} for path, one in zip(paths, contents, strict=True)
    ]
    as_json = request(json.dumps({"images": listed}).encode(), kind="application/json")
    for answer in (ask(port, request(form(*contents))), ask(port, as_json)):
        rows = [one["heads"]["label"] for one in answer["predictions"]]
        given = [[row["probabilities"][name] for name in wanted.space["label"].classes] for row in rows]
        assert np.allclose(given, wanted.probabilities, atol=1e-6)
        assert [row["label"] for row in rows] == wanted.labels("label")


def test_every_head_has_its_class_or_its_tags_and_the_most_probable_classes(colours: Path) -> None:
    space = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")))
    model = Service("two", Predictor(saved(space), (Hardware(),), "model"))
    answer = model.answer(np.array([0.1, 0.2, 0.7, 0.9, 0.01], np.float32), top=2)
    assert answer["kind"] == {"label": "c", "probabilities": {"c": pytest.approx(0.7), "b": pytest.approx(0.2)}}
    assert answer["tags"] == {"label": ["x"], "probabilities": {"x": pytest.approx(0.9), "y": pytest.approx(0.01)}}


def test_sets_and_how_foreign_an_image_is_come_with_a_calibrated_model() -> None:
    space = LabelSpace((Head("kind", ("a", "b", "c")),))
    cells = present_cells(space["kind"], np.zeros(40, np.int64), np.tile(np.float32([0.5, 0.3, 0.2]), (40, 1)))
    nothing = np.zeros(3, np.float32)
    examples, far = np.eye(3).astype(np.float16), np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    known = Uncertainty((cells,), 40, nothing, nothing.astype(np.int64), examples, far)
    model = Service("two", Predictor(replace(saved(space), uncertainty=known), (Hardware(),), "model"))
    cuts = model.set_cuts(0.9)
    assert model.answer(np.array([0.55, 0.3, 0.15], np.float32), set_cuts=cuts)["kind"]["set"] == ["a"]
    assert model.answer(np.array([0.1, 0.6, 0.5], np.float32), set_cuts=cuts)["kind"]["set"] == ["b", "c"]
    assert model.unlike_training(0.35) == {"unlike_training": 0.75}


def test_a_model_that_was_not_calibrated_has_no_sets(port: int, colours: Path) -> None:
    image = form(files(colours)[0].read_bytes())
    assert ask(port, request(image, path="/predict?coverage=0.9"))[0] == 422
    assert "between 0 and 1" in ask(port, request(image, path="/predict?coverage=1.2"))[1]
    assert "unlike_training" not in ask(port, request(image))["predictions"][0]


def test_requests_at_once_are_answered_each_its_own(port: int, service: Service, colours: Path) -> None:
    paths = files(colours) * 8
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda path: ask(port, request(form(path.read_bytes()))), paths))
    labels = [answer["predictions"][0]["heads"]["label"]["label"] for answer in answers]
    assert labels == [path.parent.name for path in paths]


def test_answers_and_requests_are_as_the_openapi_document_says(port: int, colours: Path) -> None:
    written = json.loads(get(port, "/openapi.json")[1])
    image = files(colours)[0].read_bytes()
    for path in ("/predict", "/explain"):
        operation = written["paths"][path]["post"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(ask(port, request(form(image), path=path)), schema)
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate({"images": [{"data": "aaaa", "name": "a"}]}, body)
    assert "$ref" not in json.dumps(written)  # of a schema within, it would begin at the document
    assert document(token=True)["security"] == [{"token": []}]


# Batches


def test_what_comes_while_a_batch_is_computed_is_the_next_batch() -> None:
    sizes, go = [], threading.Event()

    def compute(given: Any) -> list[int]:
        sizes.append(len(given))
        go.wait()
        return [2 * one for one in given]

    batches = Batches(compute, most=4, wait=0)
    first = batches.submit(1)
    while not sizes:
        time.sleep(0.001)
    others = [batches.submit(number) for number in range(2, 8)]
    others[0].cancel()
    go.set()
    batches.close()
    assert [first.result(), *(one.result() for one in others[1:])] == [2, 6, 8, 10, 12, 14]
    assert sizes == [1, 3, 2]


def test_a_batch_that_fails_fails_for_those_in_it_alone() -> None:
    batches = Batches(lambda given: [1 // one for one in given], most=1)
    failing, right = batches.submit(0), batches.submit(1)
    with pytest.raises(ZeroDivisionError):
        failing.result()
    assert right.result() == 1
    batches.close()


# What is refused


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_request_has_a_message_and_the_server_stays(port: int, colours: Path, kind: str) -> None:
    image, chance = files(colours)[0].read_bytes(), random.Random(kind)
    for _ in range(4):
        status, body = answer_to(MALFORMED[kind](image, chance), port)
        assert is_refused(status, body), (status, body)
    assert ask(port, request(form(image)))["predictions"]


def test_limits_are_named(service: Service, colours: Path) -> None:
    image = files(colours)[0].read_bytes()
    tight = replace(service, limits=Limits(bytes=9000, pixels=1000, images=1), metrics=Metrics())
    with serving(tight) as port:
        assert ask(port, request(form(image))) == (413, "a.jpg: has 32 x 32 pixels; 1,000 are the most that are read.")
        assert ask(port, request(form(image, image))) == (
            413,
            "these are more images than 1, the most at a time. Send the others in further requests.",
        )
        chunked = request(b"2329\r\n" + bytes(9001) + b"\r\n0\r\n\r\n")
        chunked = chunked.replace(f"Content-Length: {len(chunked)}".encode(), b"")
        head, _, body = chunked.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        chunked = b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", body])
        assert ask(port, chunked)[0] == 413


def test_slow_answers_and_too_many_at_a_time_are_503_and_slow_requests_408(
    service: Service, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(Service, "compute", lambda self, images: [go.wait(), *images][1:])
    busy = replace(service, limits=Limits(requests=1, seconds=0.3), metrics=Metrics())
    data = request(form(files(colours)[0].read_bytes()))
    with serving(busy) as port, ThreadPoolExecutor() as pool:
        first = pool.submit(ask, port, data)
        while not busy.metrics.running:
            time.sleep(0.001)
        assert "as many as may be" in ask(port, data)[1]
        assert first.result() == (503, "the answer took longer than 0.3 seconds. Ask again later.")
        go.set()
        assert status_of_the_slow(port, data[:-9]) == 408


def status_of_the_slow(port: int, data: bytes) -> int:
    """Send a part of a request, and wait."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data.replace(b"PORT", str(port).encode()))
        return int(connection.recv(65536).split()[1])


def test_slow_headers_are_408(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SLOWEST", 0.05)
    assert status_of_the_slow(port, b"POST /predict HTTP/1.1\r\nHost:") == 408


def test_with_a_token_only_who_knows_it_may_ask(service: Service, colours: Path) -> None:
    image = files(colours)[0].read_bytes()
    with serving(service, token=TOKEN) as port:
        for more in ("", "Authorization: Bearer wrong\r\n", f"Authorization: Basic {TOKEN}\r\n"):
            assert ask(port, request(form(image), more=more))[0] == 401
            assert get(port, "/metrics", more)[0] == get(port, "/model", more)[0] == 401
        right = f"Authorization: Bearer {TOKEN}\r\n"
        assert ask(port, request(form(image), more=right))["predictions"]
        assert get(port, "/metrics", right)[0] == 200
        for path in ("/", "/docs", "/main.js", "/dom.js", "/openapi.json", "/healthz", "/readyz"):
            assert get(port, path)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/server.py", "/../server.py", "/%2e%2e/server.py", "/..%2f..%2fserver.py", "//etc/passwd", "/%00"],
)
def test_no_file_of_the_disk_can_be_asked_for(port: int, path: str) -> None:
    status, body = get(port, path)
    assert (status, json.loads(body)["error"][:7]) == (404, "there i")


# Counts


def test_counts_are_text_for_prometheus_and_those_of_all_processes(port: int, service: Service, colours: Path) -> None:
    before = float(counted(service, 'assay_requests_total{endpoint="/predict",status="200"}'))
    ask(port, request(form(files(colours)[0].read_bytes())))
    assert float(counted(service, 'assay_requests_total{endpoint="/predict",status="200"}')) == before + 1
    counts = np.zeros((2, len(service.metrics._mine)))
    one, other = Metrics(counts, 0), Metrics(counts, 1)
    one.batch(3, 0.5)
    other.batch(32, 0.25)
    lines = other.text().splitlines()
    assert {'assay_batch_images_bucket{le="4"} 1', 'assay_batch_images_bucket{le="+Inf"} 2'} <= set(lines)
    assert {"assay_batch_images_sum 35", "assay_batch_images_count 2", "assay_batch_seconds_total 0.75"} <= set(lines)
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families)) == 5


def counted(service: Service, series: str) -> str:
    return next(line for line in service.metrics.text().splitlines() if line.startswith(series)).split()[-1]


# Explanations


def test_an_explanation_has_the_image_itself_among_the_nearest_training_images(service: Service, run: Path) -> None:
    train = read_run(run).samples.part("train")
    image = Path(str(train.paths[0])).read_bytes()
    with serving(service) as port:
        made = ask(port, request(form(image), path="/explain?class=blue"))
    assert (made["cams"][-1]["label"], made["note"]) == ("blue", "")
    best = made["neighbours"][0]
    assert (best["similarity"], best["labels"]) == (
        pytest.approx(1, abs=1e-3),
        {"label": train.table["label:label"][0]},
    )
    assert base64.b64decode(best["image"].partition(",")[2])[:3] == b"\xff\xd8\xff"


def test_a_class_that_is_none_and_a_model_of_several_networks_are_named(service: Service, colours: Path) -> None:
    image = files(colours)[0].read_bytes()
    with serving(service) as port:
        assert "the model has no such class" in ask(port, request(form(image), path="/explain?class=elm"))[1]
    with serving(replace(service, explainer=None)) as port:
        assert ask(port, request(form(image), path="/explain"))[0] == 404


def test_without_its_run_or_its_images_a_model_says_why_it_has_no_neighbours(run: Path, tmp_path: Path) -> None:
    network = TrainedModel.load(run / "model")
    assert explainer_of(network, None, NoProgress(), device="cpu").neighbours == 0
    copy = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("cache")))
    contents = read_run(copy)
    gone = replace(
        contents, samples=replace(contents.samples, root=tmp_path), as_read=replace(contents.as_read, root=tmp_path)
    )
    with pytest.raises(DataError, match="are gone"):
        TrainingImages.of(gone, network, NoProgress(), device="cpu")


# The end


def test_what_runs_is_finished_and_new_requests_are_refused(
    service: Service, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, closing = threading.Event(), threading.Event()
    compute = Service.compute
    monkeypatch.setattr(Service, "compute", lambda self, images: go.wait() and compute(self, images))
    data = request(form(files(colours)[0].read_bytes()))
    ending = replace(service, metrics=Metrics())
    with serving(ending, closing=closing) as port, ThreadPoolExecutor() as pool:
        running = pool.submit(ask, port, data)
        while not ending.metrics.running:
            time.sleep(0.001)
        closing.set()
        assert ask(port, data)[0] == get(port, "/readyz")[0] == 503
        assert get(port, "/healthz")[0] == 200
        go.set()
        assert running.result()["predictions"]


def test_the_command_answers_until_sigterm(run: Path, colours: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answers: list[Any] = []

    def visit() -> None:
        with suppress(ConnectionRefusedError):
            answers.append(ask(port, request(form(files(colours)[0].read_bytes()))))
            os.kill(os.getpid(), signal.SIGTERM)
            return
        threading.Timer(0.05, visit).start()

    visit()
    done = CliRunner().invoke(cli.app, ["serve", str(run), "--port", str(port), "--no-explain", "--device", "cpu"])
    assert (done.exit_code, f"http://127.0.0.1:{port}/" in done.output) == (0, True)
    assert answers[0]["predictions"]


def test_a_process_that_is_killed_is_replaced_and_all_end_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closing, names = threading.Event(), set[str]()

    def kill_one() -> None:
        first = (tmp_path / "0").read_text()
        os.kill(int(first), signal.SIGKILL)
        while (tmp_path / "0").read_text() in (first, ""):
            time.sleep(0.01)
        names.update((tmp_path / name).read_text() for name in "01")
        closing.set()

    workers = Workers(2, partial(note_process, str(tmp_path)), seconds=30)
    workers.run(closing, started=lambda: threading.Thread(target=kill_one).start())
    assert "Another one is started" in capsys.readouterr().err
    for name in names:
        with pytest.raises(ProcessLookupError):
            os.kill(int(name), 0)


@pytest.mark.parametrize(("work", "why"), [(cannot_work, "it has no memory"), (ends_at_once, r"ended before .*code 3")])
def test_a_process_that_cannot_start_ends_all_with_its_reason(work: Work, why: str) -> None:
    with pytest.raises(RunError, match=why):
        Workers(2, work, seconds=30).run(threading.Event(), started=lambda: None)


def test_images_are_computed_in_order_by_powers_of_two() -> None:
    sizes = []

    def predict(names: list[str], images: list[int], *, distances: bool) -> SimpleNamespace:
        sizes.append(len(images))
        return SimpleNamespace(probabilities=np.array(images, np.float32)[:, None], distances=None)

    predictor: Any = SimpleNamespace(predict=predict, saved=SimpleNamespace(uncertainty=None))
    images: Any = list(range(21))
    outputs = Service("model", predictor).compute(images)
    assert (sizes, [int(one.probabilities[0]) for one in outputs]) == ([16, 4, 1], images)
