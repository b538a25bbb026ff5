"""Faults that benchmarks plant: as many as asked for, in the training part alone, the same for a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import planted
from benchmarks.planted import faults, flip, hide, keep, long_tail, plant, untouched

import assay
from assay.labels.samples import Samples


@pytest.fixture(scope="module")
def multiclass(colours: Path) -> Samples:
    return untouched(colours)


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """200 images with any of three tags."""
    folder = tmp_path_factory.mktemp("tags")
    lines = ["image,tags"]
    for number in range(200):
        (folder / f"{number}.jpg").write_text(f"GIF89a {number}")
        lines.append(f"{number}.jpg," + (";".join(t for bit, t in enumerate("abc") if number >> bit & 1) or "-"))
    (folder / "tags.csv").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(
        'data: {table: tags.csv, heads: {tags: {column: tags, separator: ";", none: "-"}}}'
    )
    return untouched(folder / "data.yaml")


def changed(before: Samples, after: Samples) -> np.ndarray:
    return before.codes()[0] != after.codes()[0]


def in_training(samples: Samples) -> np.ndarray:
    return (samples.table["split"] == "train").to_numpy()


def test_labels_are_hidden(multiclass: Samples) -> None:
    after = hide(multiclass, 0.25, seed=1)
    gone = changed(multiclass, after)
    assert gone.sum() == (after.codes()[0] == -1).sum() == round(0.25 * in_training(multiclass).sum())


def test_labels_are_flipped_to_any_other_class(multiclass: Samples) -> None:
    found = [flip(multiclass, 0.5, seed=seed) for seed in range(20)]
    assert {int(changed(multiclass, after).sum()) for after in found} == {round(0.5 * in_training(multiclass).sum())}
    pairs = {(a, b) for after in found for a, b in zip(multiclass.codes()[0], after.codes()[0], strict=True) if a != b}
    assert len(pairs) == 6


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe without a network, that is sure of every second image and takes the others for the first class, twice."""

    def answers(samples: Samples, *, seed: int) -> list[np.ndarray]:
        (codes,), sure = samples.codes(), np.arange(len(samples)) % 2 == 0
        ones = np.eye(3, dtype=np.float32)
        return [np.where(sure[:, None], ones[codes], 0.6 * ones[0] + 0.1 * ones[1] + 0.3 * ones[2])]

    monkeypatch.setattr(planted, "probabilities_by_probe", answers)


def test_labels_become_the_next_class(multiclass: Samples, tags: Samples) -> None:
    after = planted.flip_next(multiclass, 0.25, seed=0)
    wrong, before = changed(multiclass, after), multiclass.codes()[0]
    assert wrong.sum() == round(0.25 * in_training(multiclass).sum())
    assert np.array_equal(after.codes()[0][wrong], (before[wrong] + 1) % 3)
    assert not changed(tags, planted.flip_next(tags, 0.25, seed=0)).any()


def test_hard_images_become_the_likeliest_other_class(multiclass: Samples, probe: None) -> None:
    after = planted.flip_hard(multiclass, 0.25, seed=0)
    wrong, training = changed(multiclass, after), in_training(multiclass)
    assert wrong.sum() == round(0.25 * training.sum())
    assert not wrong[training][::2].any()
    assert np.array_equal(after.codes()[0][wrong], np.where(multiclass.codes()[0][wrong] == 0, 2, 0))


def test_a_probe_knows_colours(multiclass: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "PROBE", "tf_efficientnet_lite0")
    monkeypatch.setattr(planted, "PROBE_SIZE", 32)
    part = multiclass.part("train")
    (answers,) = planted.probabilities_by_probe(part, seed=0)
    assert np.mean(answers.argmax(axis=1) == part.codes()[0]) > 0.9


def test_tags_are_flipped_and_stay_as_frequent(tags: Samples) -> None:
    after = flip(tags, 0.1, seed=0)
    assert after.counts(tags.space.heads[0]).tolist() == tags.counts(tags.space.heads[0]).tolist()
    positives = (tags.codes()[0][in_training(tags)] == 1).sum(axis=0)
    assert changed(tags, after).sum(axis=0).tolist() == [2 * round(0.1 * count) for count in positives.tolist()]


def test_four_labels_a_class_are_kept(multiclass: Samples, tags: Samples) -> None:
    assert keep(multiclass, 4, seed=0).part("train").counts(multiclass.space.heads[0]).tolist() == [4, 4, 4]
    kept = keep(tags, 4, seed=0).part("train")
    assert min(kept.counts(tags.space.heads[0])) >= 4
    assert kept.labelled().sum() <= 12


def test_a_long_tail_takes_training_images_away(multiclass: Samples) -> None:
    after = long_tail(multiclass, 4, seed=0)
    assert after.part("train").counts(after.space.heads[0]).tolist() == [12, 6, 3]
    assert after.part("val").ids == multiclass.part("val").ids


@pytest.mark.parametrize("name", ["hide", "flip", "flip_next", "flip_hard", "keep", "tail"])
def test_a_fault_is_seeded_and_leaves_validation_alone(name: str, multiclass: Samples, probe: None) -> None:
    size = {"hide": 0.5, "flip": 0.5, "flip_next": 0.5, "flip_hard": 0.3, "keep": 3, "tail": 4}[name]
    one, again, other = (
        fault(multiclass) for seed in (0, 0, 1) for fault in faults(seed=seed, **{name: size})
    )  # fmt: skip
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    assert one.part("val").fingerprint() == multiclass.part("val").fingerprint()


def test_what_is_planted_reads_back(colours: Path, tags: Samples, tmp_path: Path) -> None:
    plant(colours, tmp_path / "planted.csv", faults(seed=0, hide=0.3, flip=0.2))
    samples = assay.read(tmp_path / "planted.yaml")
    before = untouched(colours)
    assert samples.part("val").ids == before.part("val").ids
    assert np.array_equal(samples.part("val").codes()[0], before.part("val").codes()[0])
    train, known = samples.part("train").codes()[0], before.part("train").codes()[0]
    assert (train == -1).sum() == round(0.3 * len(train))
    assert (train[train >= 0] != known[train >= 0]).sum() == round(0.2 * (train >= 0).sum())
