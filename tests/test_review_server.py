from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from assay.apps.images import ImageFiles
from assay.apps.review import views
from assay.apps.review.decisions import Decision, Decisions
from assay.apps.review.learner import Labels, Learner
from assay.apps.review.learning import learning_folds
from assay.apps.review.opening import RunGuard
from assay.apps.review.queues import Scores
from assay.apps.review.server import create_app
from assay.apps.review.session import Estimates, ReviewSession
from assay.apps.review.training import TrainCommand, Trainer
from assay.errors import DataError, RunError
from assay.files import RunFolder
from assay.labels.corrections import corrections
from assay.labels.ledger import Ledger
from assay.labels.readers.read import DataSettings, read, read_to_label
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.run.environment import lock
from factories import make_samples, put, write_images

TOKEN, PORT = "secret", 8765
TREE = Head("tree", ("oak", "beech", "<script>alert(1)</script>"))
TAGS = Head("tags", ("leaf", "bark"), "multilabel")
SCRIPT = '<img src=x onerror="alert(1)">.jpg'


def trees(count: int = 12) -> Samples:
    rows = [{"id": f"{n}.jpg", "split": "val" if n % 4 == 0 else "train", "tree": "oak", "tags": ["leaf"]}
            for n in range(count)]  # fmt: skip
    rows[1] |= {"tree": None, "tags": None}
    rows[2]["id"] = SCRIPT
    return make_samples(rows, TREE, TAGS)


def scores(samples: Samples) -> Scores:
    generator = np.random.default_rng(0)
    trees = generator.dirichlet(np.ones(3), len(samples)).astype(np.float32)
    tags, known = generator.random((len(samples), 2), np.float32), samples.codes()
    wrong = [np.where(known[0] < 0, np.nan, 1 - trees[:, 0]), np.where(known[1] < 0, np.nan, np.abs(known[1] - tags))]
    return Scores(np.concatenate([trees, tags], axis=1), wrong, [trees[:, 1:].argmax(axis=1) + 1, 1 - known[1]])


def make_session(path: Path, samples: Samples | None = None, **more: Any) -> ReviewSession:
    samples = samples or trees()
    decisions = Decisions(samples, path, writing=more.pop("writing", nullcontext))
    return ReviewSession(
        name="trees", kind="data", decisions=decisions, images=ImageFiles(samples), command="assay train", **more
    )


def client_of(session: ReviewSession, *, inside: str = f"/{TOKEN}") -> TestClient:
    app = create_app(session, token=TOKEN, port=PORT, closing=threading.Event())
    return TestClient(app, base_url=f"http://127.0.0.1:{PORT}{inside}", raise_server_exceptions=False)


@pytest.fixture
def session(tmp_path: Path) -> ReviewSession:
    return make_session(tmp_path / "ledger.csv")


@pytest.fixture
def client(session: ReviewSession) -> TestClient:
    return client_of(session)


def decide(client: TestClient, *decisions: dict[str, Any]) -> Any:
    whole = [{"head": "tree", "action": "set", **one} for one in decisions]
    return client.post("/api/decide", json={"decisions": whole})


def labels(client: TestClient, *rows: int) -> list[Any]:
    return [row["labels"]["tree"] for row in client.post("/api/rows", json={"rows": list(rows)}).json()]


def rows_of(client: TestClient, queue: str, group: str = "") -> list[int]:
    answer = client.get("/api/queue", params={"id": queue, "group": group})
    assert answer.headers["x-assay-version"].isdecimal()
    return np.frombuffer(answer.content, "<i4").tolist()


# What a person decides


def test_a_decision_is_in_the_ledger_before_the_answer_and_counts_in_training(
    client: TestClient, session: ReviewSession
) -> None:
    answer = decide(client, {"row": 0, "new": "beech"}, {"row": 2, "action": "keep"}, {"row": 3, "action": "drop"})
    assert answer.json()["stored"] == 2 + 1 + 2  # what is no valid image is dropped under all heads
    after = Ledger.read(session.decisions.path).apply(session.samples)
    assert after.table["label:tree"].to_list()[:4] == ["beech", None, "oak", None]
    assert [codes.tolist() for codes in after.codes()] == [codes.tolist() for codes in session.decisions.codes]
    assert client.get("/api/state").json()["progress"] | {"decided": 3, "wrong_found": 2} == session.progress()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_undo_and_redo_go_request_by_request_also_where_a_label_comes_back(
    client: TestClient, session: ReviewSession, times: int
) -> None:
    for name in ("beech", "oak", "beech"):
        decide(client, {"row": 4, "new": name}, {"row": 5, "new": name})
    before = ["oak", "beech", "oak", "beech"][3 - times]
    for _ in range(times):
        assert client.post("/api/undo").json()["rows"] == [4, 5]
    assert labels(client, 4, 5) == [before, before]
    read = Ledger.read(session.decisions.path).apply(session.samples)
    assert read.codes()[0].tolist() == session.decisions.codes[0].tolist()
    for _ in range(times):
        client.post("/api/redo")
    assert labels(client, 4, 5) == ["beech", "beech"]
    assert make_session(session.decisions.path).decisions.codes[0].tolist() == session.decisions.codes[0].tolist()


def test_undo_of_nothing_changes_nothing(client: TestClient) -> None:
    assert client.post("/api/undo").json()["rows"] == client.post("/api/redo").json()["rows"] == []


def test_tags_are_settled_one_by_one_or_all_at_once(client: TestClient) -> None:
    decide(client, {"row": 0, "head": "tags", "tag": "bark", "new": "1"}, {"row": 3, "head": "tags", "action": "keep"})
    rows = client.post("/api/rows", json={"rows": [0, 1, 3]}).json()
    assert [row["labels"]["tags"] for row in rows] == [{"leaf": 1, "bark": 1}, None, {"leaf": 1, "bark": 0}]
    assert [row["decided"] for row in rows] == [["tags"], [], ["tags"]]


@pytest.mark.parametrize(
    ("decision", "says"),
    [
        ({"row": 99, "new": "oak"}, "no image 99"),
        ({"row": 0, "new": "elm"}, "'elm' is no label of 'tree'"),
        ({"row": 0, "head": "bird", "new": "oak"}, "no head 'bird'"),
        ({"row": 1, "action": "keep"}, "no label under 'tree' that could be right"),
        ({"row": 0, "head": "tags", "tag": "root", "new": "1"}, "no tag 'root'"),
        ({"row": 0, "action": "weigh"}, "action"),
        ({"row": "0", "new": "oak"}, "valid integer"),
    ],
)
def test_what_cannot_be_decided_is_named_and_nothing_is_stored(
    client: TestClient, session: ReviewSession, decision: dict[str, Any], says: str
) -> None:
    answer = decide(client, {"row": 5, "new": "beech"}, decision)
    assert answer.status_code == 422
    assert says in answer.json()["error"]
    assert not session.decisions.path.exists()


# What is shown


def test_queues_have_what_is_left_to_look_at(tmp_path: Path) -> None:
    session = make_session(tmp_path / "ledger.csv")
    session.publish(scores(session.samples), Estimates())
    client = client_of(session)
    state = client.get("/api/state").json()
    for queue in state["queues"]:
        assert len(rows_of(client, queue["id"])) == queue["count"]
        for group in queue["groups"]:
            assert len(rows_of(client, queue["id"], group["id"])) == group["count"]
    first = rows_of(client, "suspects")[0]
    assert first == session.scores.most_wrong(session.samples.space).argmax()  # type: ignore[union-attr]
    assert rows_of(client, "unlabelled") == [1]
    decide(client, {"row": first, "action": "drop"})
    assert first not in rows_of(client, "suspects")
    assert first in rows_of(client, "all")
    assert client.get("/api/queue", params={"id": "no such"}).status_code == 422


def test_a_random_audit_estimates_the_share_of_wrong_labels(client: TestClient) -> None:
    client.post("/api/random_audit", json={"n": 5})
    first, second, *_ = rows_of(client, "random_audit")
    decide(client, {"row": first, "new": "beech"}, {"row": second, "action": "keep"})
    decide(client, *({"row": row, "head": "tags", "action": "keep"} for row in (first, second)))
    audit = client.get("/api/state").json()["random_audit"]
    assert (audit["n"], audit["decided"], audit["wrong"], audit["value"]) == (5, 2, 1, 0.5)
    assert 0 < audit["low"] < 0.5 < audit["high"] < 1


def test_an_image_whose_file_is_gone_is_a_placeholder_with_a_note(client: TestClient) -> None:
    for address in ("/thumb/0?size=64", "/image/0"):
        answer = client.get(address)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        assert answer.headers["cache-control"] == "no-store"
    assert client.post("/api/rows", json={"rows": [0]}).json()[0]["note"] == "its file is gone"


# Who may ask


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("/api/state", {}, 404),
        ("/wrong/api/state", {}, 404),
        (f"/{TOKEN}/../../../../etc/passwd", {}, 404),
        (f"/{TOKEN}/%2e%2e/%2e%2e/server.py", {}, 404),
        (f"/{TOKEN}/..%2fserver.py", {}, 404),
        (f"/{TOKEN}/api/state", {"Host": "evil.example"}, 403),
        (f"/{TOKEN}/api/state", {"Host": f"127.0.0.1.evil.example:{PORT}"}, 403),
        (f"/{TOKEN}/api/state", {"Origin": "http://evil.example"}, 403),
        (f"/{TOKEN}/api/state", {"Origin": "null"}, 403),
        (f"/{TOKEN}/api/state", {"Sec-Fetch-Site": "cross-site"}, 403),
        (f"/{TOKEN}/api/state", {"Host": f"localhost:{PORT}", "Origin": f"http://localhost:{PORT}"}, 200),
    ],
)
def test_only_the_page_of_this_server_may_ask(
    session: ReviewSession, address: str, headers: dict[str, str], status: int
) -> None:
    answer = client_of(session, inside="").get(address, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_request_of_100_megabytes_is_refused_also_without_a_length(client: TestClient) -> None:
    assert client.post("/api/decide", content=b"x", headers={"Content-Length": "100000000"}).status_code == 413
    assert client.post("/api/decide", content=(b"x" * 1_000_000 for _ in range(100))).status_code == 413


def test_script_in_a_name_or_a_label_stays_text(client: TestClient, session: ReviewSession) -> None:
    decide(client, {"row": 2, "new": "<script>alert(1)</script>"})
    row = client.post("/api/rows", json={"rows": [2]})
    assert row.headers["content-type"] == "application/json"
    assert (row.json()[0]["id"], row.json()[0]["labels"]["tree"]) == (SCRIPT, TREE.classes[2])
    assert Ledger.read(session.decisions.path).entries[0].edit.id == SCRIPT


def test_200_requests_at_once_are_all_stored(client: TestClient, session: ReviewSession) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: decide(client, {"row": n % 12, "new": TREE.classes[n % 3]}), range(200)))
    assert {answer.status_code for answer in answers} == {200}
    read = Ledger.read(session.decisions.path)
    assert len(read.entries) == sum(answer.json()["stored"] for answer in answers)
    assert read.apply(session.samples).codes()[0].tolist() == session.decisions.codes[0].tolist()


# Other writers, and full disks


def test_a_ledger_edited_by_hand_is_read_again_or_its_fault_is_named(
    client: TestClient, session: ReviewSession
) -> None:
    decide(client, {"row": 0, "new": "beech"})
    path = session.decisions.path
    good = path.read_text().replace("beech", "<script>alert(1)</script>")
    path.write_text(good)
    assert client.get("/api/state").json()["can_undo"] is False
    assert labels(client, 0) == ["<script>alert(1)</script>"]
    path.write_text(good + "nonsense\n")
    assert "line 3" in client.get("/api/state").json()["locked"]
    refused = decide(client, {"row": 3, "new": "beech"})
    assert (refused.status_code, path.read_text()) == (409, good + "nonsense\n")
    path.write_text(good)
    assert decide(client, {"row": 3, "new": "beech"}).status_code == 200
    assert labels(client, 0, 3) == ["<script>alert(1)</script>", "beech"]


def test_while_the_run_is_trained_nothing_is_stored_and_the_page_learns_why(tmp_path: Path) -> None:
    def writing() -> nullcontext[None]:
        raise RunError("This run is being trained just now.")

    client = client_of(make_session(tmp_path / "ledger.csv", writing=writing, busy=lambda: "being trained"))
    refused = decide(client, {"row": 0, "new": "beech"})
    assert (refused.status_code, refused.json()["error"]) == (409, "This run is being trained just now.")
    assert client.get("/api/state").json()["locked"] == "being trained"
    assert labels(client, 0) == ["oak"]


def test_on_a_full_disk_the_decision_is_not_stored_and_can_be_made_again(
    client: TestClient, session: ReviewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(client, {"row": 0, "new": "beech"})
    before = session.decisions.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        refused = decide(client, {"row": 3, "new": "beech"})
    assert (refused.status_code, session.decisions.path.read_bytes()) == (507, before)
    assert "full" in refused.json()["error"]
    assert labels(client, 0, 3) == ["beech", "oak"]
    assert decide(client, {"row": 3, "new": "beech"}).status_code == 200
    assert client.post("/api/undo").json()["rows"] == [3]


# The real process

CRASH = """
import contextlib, pathlib, sys
from assay.apps.review.decisions import Decision, Decisions
from assay.labels.readers.read import DataSettings, read, read_to_label
from assay.labels.samples import Samples
folder = pathlib.Path(sys.argv[1])
decisions = Decisions(Samples.read(folder / "s.parquet"), folder / "ledger.csv", writing=contextlib.nullcontext)
for row in range(3, 5000):
    decisions.decide([Decision(row, "tree", None, "set", "beech")])
    print(row, flush=True)
"""


def test_a_kill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    samples = trees(5000)
    samples.write(tmp_path / "s.parquet")
    command = [sys.executable, "-c", CRASH, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        done = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        done += [int(line) for line in process.stdout.read().splitlines() if line]
    decisions = Decisions(samples, tmp_path / "ledger.csv", writing=nullcontext)
    assert set(done) <= set(np.flatnonzero(decisions.decided()).tolist())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", each=3, side=16)


@pytest.fixture
def served(photos: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "assay", "review", str(photos), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        address = next(match[0] for line in process.stdout if (match := re.search(r"http://\S+", line)))
        yield address, process
        process.kill()


def test_the_command_serves_refuses_a_second_one_and_ends_with_the_next_command(
    served: tuple[str, subprocess.Popen[str]], photos: Path
) -> None:
    from urllib.request import Request, urlopen

    address, process = served
    body = json.dumps({"decisions": [{"row": 0, "head": "label", "action": "set", "new": "red"}]}).encode()
    with urlopen(Request(f"{address}api/decide", body), timeout=30) as answer:
        assert json.load(answer)["stored"] == 1
    second = [sys.executable, "-m", "assay", "review", str(photos), "--no-browser"]
    refused = subprocess.run(second, capture_output=True, text=True, check=False)
    assert (refused.returncode, f"(pid {process.pid})" in refused.stderr) == (2, True)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "1 images are decided, 1 of them had a wrong label" in said
    assert f"--set data.corrections={photos}.review.csv" in said


# Training takes what was decided


def test_data_takes_the_file_of_a_review_as_corrections(session: ReviewSession) -> None:
    session.decide([Decision(0, "tree", None, "set", "beech"), Decision(3, "tree", None, "drop", None)])
    session.undo()
    session.decide([Decision(2, "tree", None, "set", "beech"), Decision(3, "tree", None, "drop", None)])
    edits = corrections(session.decisions.path, session.samples)
    assert {(edit.id, edit.head, edit.action) for edit in edits if edit.tag is None} == {
        (SCRIPT, "tree", "set"),
        ("3.jpg", "tree", "drop"),
    }
    path = session.decisions.path
    path.write_text(path.read_text().replace(",beech,", ",elm,"))
    with pytest.raises(DataError, match=r"line \d+: there is no label 'elm' of 'tree'"):
        corrections(path, session.samples)


def test_a_folder_without_labels_is_labelled_from_nothing_and_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, *(f"{n}.jpg" for n in range(12)), *(f"2024/{n}.jpg" for n in range(12)))
    data = DataSettings(folder=folder, classes=("oak", "beech", "elm"))
    samples = read_to_label(data, base=tmp_path)
    assert (samples.space.heads[0].classes, samples.labelled().sum()) == (("oak", "beech", "elm"), 0)
    path = tmp_path / "photos.review.csv"
    decisions = Decisions(samples, path, writing=nullcontext)
    decisions.decide([Decision(n, "label", None, "set", ("oak", "beech")[n % 2]) for n in range(20)])
    for settings in (data, DataSettings(folder=folder)):
        read_again = read(settings.model_copy(update={"corrections": path}), base=tmp_path)
        assert read_again.labelled().sum() == 20
        assert read_again.part("val").labelled().sum() > 0
        assert set(read_again.space.heads[0].classes) >= {"oak", "beech"}


# Training from the page


def trainer(tmp_path: Path, *, before: str | None = None, code: str = "print('trained')") -> Trainer:
    (tmp_path / "fake.py").write_text(code)
    words = ("fake", "train")
    return Trainer(TrainCommand(words, tmp_path / "run", (*words, before) if before else None), ended=lambda: None)


def wait(started: Trainer) -> dict[str, object]:
    started.start()
    for _ in range(1000):
        if started.state != "running":
            break
        time.sleep(0.02)
    return started.to_json()


@pytest.mark.parametrize(
    ("code", "state", "line"),
    [
        ("print('trained')", "done", "The model is trained with these decisions, in {folder}/run."),
        ("import sys; print('why'); sys.exit(2)", "failed", "why"),
    ],
)
def test_the_page_trains_by_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, state: str, line: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert wait(trainer(tmp_path, code=code)) == {
        "state": state,
        "line": line.format(folder=tmp_path.name),
        "worth": None,
    }


def test_without_a_run_before_data_is_trained_without_the_decisions_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = f"import sys; open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')"
    wait(trainer(tmp_path, before="without", code=code))
    assert (tmp_path / "calls").read_text().splitlines() == ["train without", "train"]


# A run


def test_a_run_is_held_while_it_is_trained_and_may_not_change_its_images(tmp_path: Path) -> None:
    run, samples = RunFolder(tmp_path), trees()
    samples.write(run.samples)
    guard = RunGuard(run, samples.ids)
    assert guard.reason() is None
    with lock(tmp_path):
        assert f"is being trained just now (pid {os.getpid()})" in (guard.reason() or "")
    samples.write(run.samples)
    assert guard.reason() is None
    trees(5).write(run.samples)
    assert "have changed" in (guard.reason() or "")


# The map and Grad-CAM


def test_the_map_keeps_neighbours_together_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    features = np.repeat(np.eye(2, 8), 30, axis=0) + generator.normal(0, 0.05, (60, 8))
    features[7] = np.nan
    monkeypatch.setattr(views, "MAPPED", 30)
    points = views.map_points(features.astype(np.float32), tmp_path)
    assert np.isnan(points[7]).all()
    one, other = (np.nanmean(part, axis=0) for part in (points[:30], points[30:]))
    spread = np.nanmax(np.linalg.norm(points[:30] - one, axis=1))
    assert np.linalg.norm(one - other) > spread
    monkeypatch.setattr(views, "tsne", None)
    assert np.array_equal(views.map_points(features.astype(np.float32), tmp_path), points, equal_nan=True)


def test_before_there_are_features_or_a_model_the_page_is_told_so(client: TestClient) -> None:
    for address in ("/api/map", "/gradcam/0?head=tree&class=oak", "/api/train"):
        assert client.get(address).status_code == 409


def test_the_map_is_coloured_by_class_and_of_tags_by_the_rarest(client: TestClient) -> None:
    client.post(
        "/api/decide", json={"decisions": [{"row": 3, "head": "tags", "tag": "bark", "action": "set", "new": "1"}]}
    )
    codes = [np.frombuffer(client.get(f"/api/classes?head={head}").content, "<i4").tolist() for head in (0, 1)]
    assert codes == [[-1 if row == 1 else 0 for row in range(12)], [{1: -1, 3: 1}.get(row, 0) for row in range(12)]]
    assert client.get("/api/classes?head=2").status_code == 422
    assert len(client.get("/api/state").json()["heads"][0]["colours"]) == len(TREE.classes)


def test_before_the_first_label_the_learner_has_no_opinion_and_every_fold_has_images() -> None:
    samples = make_samples([{"id": f"{n}.jpg", "split": "train", "hash": str(n % 40)} for n in range(60)], TREE)
    fold = learning_folds(samples, seed=0)
    assert set(fold.tolist()) == set(range(5))
    assert (fold[:20] == fold[40:]).all()  # copies
    codes = tuple(samples.codes())
    features = np.random.default_rng(0).standard_normal((60, 8), np.float32)
    learnt = Learner(samples.space, features, fold).learn(Labels(codes, codes, (codes[0] > 0,)))
    assert np.allclose(learnt.probabilities, 1 / 3)
    assert learnt.left is None
