"""What is begun while libraries are imported, and what is imported only when it is asked for."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from assay.commands import hash_ahead, output
from assay.labels import ahead, image_files
from assay.labels.ahead import file_state, print_hashes
from assay.labels.image_files import content_hashes
from factories import COLOURS, write_images

NAMES = [f"{colour}/{number}.png" for colour in sorted(COLOURS) for number in range(2)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of each of three classes, last changed long ago."""
    folder = write_images(tmp_path / "photos", each=2)
    for name in NAMES:
        os.utime(folder / name, (1e9, 1e9))
    return folder


def begun(*lines: str) -> None:
    """As if a process had been begun that printed this much before it was killed."""
    file = io.BytesIO("".join(lines).encode())
    ahead._begun.append((subprocess.Popen(["true"]), file))


def printed(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> str:
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        work()
    return stream.getvalue()


@pytest.mark.parametrize("form", ["folder", "plan", "table"])
def test_what_was_hashed_ahead_is_not_hashed_again(
    form: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.yaml").write_text("data: {folder: photos}\nsteps: [probe]\n")
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"photos/{name},{name[:3]}\n" for name in NAMES))
    source = {"folder": photos, "plan": tmp_path / "plan.yaml", "table": tmp_path / "labels.csv"}[form]
    monkeypatch.setattr(sys, "argv", ["", str(source), str(os.getppid())])
    line = printed(monkeypatch, hash_ahead.main)
    root, paths = hash_ahead._files(source)
    expected = content_hashes(root, paths)
    begun(line)
    monkeypatch.setattr(image_files, "kind_of", None)  # what reads a file cannot do without
    assert content_hashes(root, paths) == expected
    assert expected[0] == (hashlib.sha256((photos / NAMES[0]).read_bytes()).hexdigest(), "")


def test_what_has_changed_since_is_hashed_again(photos: Path) -> None:
    states = [file_state(os.stat(photos / name)) for name in NAMES]
    rows = [
        f'["{photos / name}", {", ".join(map(str, state))}, "old"]' for name, state in zip(NAMES, states, strict=True)
    ]
    begun(f"[{', '.join(rows)}]\n")
    (photos / NAMES[1]).write_bytes((photos / NAMES[2]).read_bytes())
    digests = [digest for digest, _ in content_hashes(photos, NAMES)]
    assert [digest == "old" for digest in digests] == [name != NAMES[1] for name in NAMES]


def test_a_line_cut_off_by_the_kill_is_left_out() -> None:
    begun('[["a", 1, 2, 3, "one"]]\n', '[["b", 1, 2, 3, "tw')
    assert ahead.collect() == {"a": ((1, 2, 3), "one")}
    assert ahead.collect() == {}


def test_a_file_that_may_just_be_changing_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead.time, "time_ns", lambda: 10_000_000_000)
    rows = [("old", (1, 7_000_000_000, 1), "x"), ("new", (1, 9_000_000_000, 1), "x")]
    assert printed(monkeypatch, lambda: print_hashes(rows)) == '[["old", 1, 7000000000, 1, "x"]]\n'


def test_the_orphan_of_a_killed_command_ends(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", str(photos), "0"])  # no process has that number
    assert printed(monkeypatch, hash_ahead.main) == ""


@pytest.mark.parametrize(
    ("changes", "cores", "torch", "expected"),
    [
        (None, 2, False, True),
        (["steps.1.fit.epochs=2"], 2, False, True),
        (["data.folder=others"], 2, False, False),
        (None, 1, False, False),
        (None, 2, True, False),
    ],
)
def test_where_images_are_hashed_ahead(
    changes: list[str] | None, cores: int, torch: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, ...]] = []
    monkeypatch.setattr(output, "begin", lambda *arguments: begun.append(arguments))
    monkeypatch.setattr(output, "cores", lambda: cores)
    monkeypatch.setattr(output.sys, "modules", {"torch": None} if torch else {})
    output.hash_ahead(Path("photos"), changes)
    assert begun == ([("assay.commands.hash_ahead", "photos", str(os.getpid()))] if expected else [])


def test_no_module_of_the_working_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("open('run', 'w')\n")
    monkeypatch.chdir(tmp_path)
    ahead.begin("json.tool")
    ahead._begun[0][0].wait()
    ahead.collect()
    assert not (tmp_path / "run").exists()


POSTPONED = """
from assay.postponed import postpone
postpone()
import assay.models.classifier, timm.data, torch, torchvision

assert torchvision.transforms.Resize(4).size == 4
assert timm.data.create_transform(8).transforms
assert timm.data.IMAGENET_DEFAULT_MEAN == (0.485, 0.456, 0.406)
assert not hasattr(torchvision, "nothing")
weight = torch.zeros(2, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=1.0)  # torch asks its compiler to leave optimisers alone
assert torch.compile(lambda: weight.sum() + 1, backend="eager")() == 1
optimizer.zero_grad()
from torch._dynamo.utils import counters
assert counters["frames"]["ok"] > 0
print("whole")
"""


def test_a_package_that_waits_is_whole_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", POSTPONED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("whole\n", 0), done.stderr
