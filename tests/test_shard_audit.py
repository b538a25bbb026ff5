"""assay audit over shards: what it finds, the same bytes by any number of processes and after a kill, bad input."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanlab.filter import find_label_issues
from PIL import Image

from assay.errors import DataError
from assay.experiments import audit_inputs
from assay.experiments.findings import Audit
from assay.labels.space import Head
from assay.progress import NoProgress
from assay.repair.duplicates import alike, perceptual_hashes
from assay.scale import shard_audit, shard_facts
from assay.scale.jobs import Function, Job, attempt, require_done
from assay.scale.reductions import least_confident
from assay.scale.shard_labels import LabelReport, judge_head
from factories import noise_pixels, write_images
from test_scale import assay
from test_shards import labelled, put_shards

SMALL = ("--set", "model.backbone=test_efficientnet", "--set", "model.weights=none")
FILES = ("audit.json", "edits.csv", "groups.csv", "samples.parquet")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of images of three colours, with two copies of one, a black one, one that is broken and a wrong label."""
    folder = tmp_path_factory.mktemp("audited")
    photos = write_images(folder / "photos", each=25, side=40)
    shutil.copy(photos / "red" / "0.png", photos / "red" / "same.png")
    broad = np.kron(np.random.default_rng(0).integers(0, 255, (5, 5, 3)), np.ones((8, 8, 1)))
    Image.fromarray(broad.astype(np.uint8)).save(photos / "red" / "large.png")
    Image.fromarray(broad[:, ::-1].astype(np.uint8)).resize((30, 30)).save(photos / "blue" / "small.png")
    Image.new("RGB", (40, 40), (1, 1, 1)).save(photos / "green" / "black.png")
    (photos / "blue" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (photos / "blue" / "7.png").rename(photos / "green" / "wrong.png")
    assay(folder, "shard", "photos", "--out", "shards", "--size", "90KB")
    assay(folder, "audit", "shards", "--out", "by two", "--workers", "2", *SMALL)
    return folder


def backwards(function: Function, jobs: Sequence[Job]) -> Iterator[Job]:
    """Work on shards in this process, the last one first."""
    for job in reversed(jobs):
        require_done(attempt(function, job))
        yield job


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work on shards in this process."""
    monkeypatch.setattr(shard_audit, "pick_executor", lambda *_, **__: (backwards, "cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_bytes_are_the_same_by_any_number_of_processes_and_in_any_order(project: Path) -> None:
    assay(project, "audit", "shards", "--out", "by one", "--executor", "local", *SMALL)
    parts = [f"shards/{path.name}" for path in (project / "by two" / "shards").iterdir()]
    assert len(parts) > 2
    for name in (*FILES, *parts):
        assert (project / "by one" / name).read_bytes() == (project / "by two" / name).read_bytes()


def test_what_is_found(project: Path) -> None:
    found = Audit.read(project / "by two")
    images = {kind: [set(one.images) for one in of_kind] for kind, of_kind in found.findings.items()}
    assert images["exact_duplicates"] == [{"red/0.png", "red/same.png"}]
    assert images["near_duplicates"] == [{"red/large.png", "blue/small.png"}]
    assert images["dark"] == [{"green/black.png"}]
    assert {"green/wrong.png"} in images["suspects"]
    assert len(images["suspects"]) < 8
    assert [one.path for one in found.samples.left_out] == ["blue/0.png"]
    (wrong,) = (one for one in found.findings["suspects"] if one.images == ("green/wrong.png",))
    assert [(edit.action, edit.old, edit.new) for edit in wrong.edits] == [("set", "green", "blue")]
    assert "outliers" not in found.findings
    quality, not_made = found.notes[-2:]
    assert quality.startswith("label: ridge regressions on features reach accuracy 0.")
    assert not_made.startswith("not made over shards: outliers, shortcuts, learning curves")


def test_what_is_made_of_single_images_is_that_of_an_audit_with_a_cache(project: Path) -> None:
    assay(project, "audit", "shards", "--out", "cached", *SMALL)
    one, other = Audit.read(project / "by two"), Audit.read(project / "cached")
    for kind in ("exact_duplicates", "near_duplicates", "conflicting_labels", "dark", "blurred", "odd_size"):
        assert {one.images for one in one.findings[kind]} == {one.images for one in other.findings[kind]}, kind


def test_after_a_kill_what_is_done_is_kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(project / "by two" / "shards", project / "again" / "shards")
    for part in sorted((project / "again" / "shards").iterdir())[1:]:
        part.unlink()
    (kept,) = (project / "again" / "shards").iterdir()
    before = kept.stat().st_mtime_ns
    assay(project, "audit", "shards", "--out", "again", "--executor", "local", *SMALL)
    assert kept.stat().st_mtime_ns == before
    assert all((project / "by two" / name).read_bytes() == (project / "again" / name).read_bytes() for name in FILES)
    monkeypatch.setattr(shard_facts.ExamineShard, "__call__", lambda *_: pytest.fail("done again"))
    assay(project, "audit", "shards", "--out", "again", "--executor", "local", *SMALL)


def test_the_output_says_what_was_not_made(project: Path) -> None:
    said = json.loads(assay(project, "audit", "shards", "--out", "by two", "--workers", "1", "--json", *SMALL))
    assert said["notes"][-1].startswith("not made over shards")
    assert said["seconds"] == {}


def test_images_in_files_are_not_shared_out(project: Path) -> None:
    message = assay(project, "audit", "photos", "--workers", "2", code=2)
    assert "--workers: processes share the work by shards, and photos is none" in message
    assert not (project / "audits").exists()


def test_images_none_of_which_can_be_read(tmp_path: Path) -> None:
    put_shards(tmp_path / "bad", a=labelled("cat", "1", "2"))
    message = assay(tmp_path, "audit", "bad", "--out", "audit", "--workers", "1", *SMALL, code=2)
    assert "None of the 2 images can be read. The first: 1.jpg: " in message
    assert not (tmp_path / "audit" / "audit.json").exists()


def test_shards_that_change_between_their_index_and_their_labels(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = audit_inputs.read_data(project / "shards")
    put_shards(tmp_path / "s", a=labelled("cat", "1"))
    changed = replace(data, samples=replace(data.samples, shards=()))
    monkeypatch.setattr(shard_audit, "read_data", lambda *_, **__: changed)
    with pytest.raises(DataError, match="has changed since it was read"):
        shard_audit.audit_shards(tmp_path / "s", tmp_path / "audit", progress=NoProgress())


def test_tags_are_not_judged_and_that_is_said(project: Path) -> None:
    names = [f"{colour}/{number}.png" for colour in ("red", "blue") for number in range(9)]
    lines = [f"{name},{'x;y' if row % 3 else 'x'}" for row, name in enumerate(names)]
    (project / "tags.csv").write_text("\n".join(["image,tags", *lines]))
    (project / "tags.yaml").write_text(
        "data: {shards: shards/, labels: tags.csv, image: image, heads: {t: {column: tags, separator: ;}}}"
    )
    assay(project, "audit", "tags.yaml", "--out", "tags", "--workers", "1", *SMALL)
    found = Audit.read(project / "tags")
    assert "suspects" not in found.findings
    assert "labels of 't' are not judged" in found.notes[-2]
    assert len(found.samples) == 16  # one is broken, one has another name


# What is computed.


def test_suspects_by_class_are_those_of_cleanlab() -> None:
    from cleanlab.count import compute_confident_joint

    generator = np.random.default_rng(0)
    codes = generator.integers(0, 4, 300)
    probabilities = generator.dirichlet(np.ones(4), 300) + 1.5 * np.eye(4)[np.where(codes % 2, codes, (codes + 1) % 4)]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    joint = compute_confident_joint(codes, probabilities)
    rows = least_confident(codes, probabilities[np.arange(300), codes], probabilities.argmax(axis=1), joint)
    expected = find_label_issues(
        codes, probabilities, filter_by="prune_by_class", confident_joint=joint, min_examples_per_class=1, n_jobs=1
    )
    assert rows.tolist() == np.flatnonzero(expected).tolist()
    assert len(rows) > 20


def test_labels_are_judged_alike_wherever_shards_are_cut() -> None:
    generator = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2, 3, -1], [40, 40, 40, 3, 10])  # too few of one class, and some without a label
    features = (generator.normal(size=(133, 6)) + 3 * np.eye(6)[codes]).astype(np.float32)
    codes[:4], fold = 1, generator.integers(0, 5, 133)
    features[40:60] = features[80:100] + 0.1  # two classes that are taken for each other

    def judged(cuts: list[int]) -> LabelReport | None:
        def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return ((rows, features[rows]) for rows in np.split(np.arange(133), cuts))

        return judge_head(Head("label", tuple("abcd")), codes, np.ones(133, np.float32), fold, parts)

    whole, cut = judged([]), judged([20, 90])
    assert whole is not None
    assert cut is not None
    assert {0, 1, 2, 3} <= set(whole.suspects.table["row"].to_list())
    assert whole.suspects.table["row"].to_list() == cut.suspects.table["row"].to_list()
    assert whole.suspects.unjudged == ("d",)
    assert [pair.classes for pair in whole.overlaps] == [(1, 2)]
    assert whole.quality == cut.quality


def test_hashes_of_copies_are_alike_and_others_are_not() -> None:
    pixels = noise_pixels(40, 64)
    pixels[1], pixels[2], pixels[3:5] = pixels[0][:, ::-1], pixels[0] // 2 + 40, 7
    assert np.flatnonzero(alike(perceptual_hashes(pixels))).tolist() == [0, 1, 2]


# Kills.


def live(project: Path, folder: Path, kill: int) -> None:
    """Audit the shards of a project until the kill, before its nth file is in place."""
    replace_file, count = os.replace, itertools.count(1)

    def deadly(source: Path, target: Path) -> None:
        if next(count) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(source, target)

    os.replace = deadly
    shard_audit.pick_executor = lambda *_, **__: (backwards, "cpu")
    torch.set_num_threads(1)
    shard_audit.audit_shards(project / "shards", folder, changes=SMALL[1::2], progress=NoProgress())


def test_killed_at_files_of_every_stage_it_ends_in_the_same_bytes(
    project: Path, tmp_path: Path, forks: ForkServerContext
) -> None:
    def ended(kill: int) -> int | None:
        process = forks.Process(target=live, args=(project, tmp_path, kill))
        process.start()
        process.join()
        return process.exitcode

    parts = [f"shards/{path.name}" for path in (project / "by two" / "shards").iterdir()]
    for kill in (2, len(parts) + 1):  # among the shards, and at what follows from them
        assert ended(kill) == -signal.SIGKILL, kill
    shard_audit.audit_shards(project / "shards", tmp_path, changes=SMALL[1::2], progress=NoProgress())
    for name in (*FILES, *parts):
        assert (project / "by two" / name).read_bytes() == (tmp_path / name).read_bytes(), name
