"""A class given away by what is not the subject is named; colours that fill an image are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from assay.arrays import Ints, Pixels
from assay.images.file_facts import FileFacts
from assay.labels.space import Codes, Head, LabelSpace
from assay.repair.shortcuts import Cue, auc_of, cue_scores, file_cues, image_cues, position_cues

COUNT, SIDE = 240, 32
SPACE = LabelSpace((Head("label", ("a", "b", "c")),))
CODES: Codes = np.random.default_rng(0).integers(0, 3, COUNT)
FOLDS: Ints = np.arange(COUNT) % 5


def textures(strength: float = 12.0) -> Pixels:
    """Return noisy images whose colour, everywhere, leans to the class by this many levels."""
    random = np.random.default_rng(1)
    level = random.normal(120, 15, (COUNT, 1, 1, 1)) + random.normal(0, 30, (COUNT, SIDE, SIDE, 3))
    level[np.arange(COUNT), :, :, CODES] += strength
    return np.clip(level, 0, 255).astype(np.uint8)


def named(cues: Sequence[Cue], space: LabelSpace = SPACE, codes: Codes = CODES) -> set[tuple[str, str]]:
    return {(one.cue, one.label) for one in cue_scores(space, [codes], cues, FOLDS) if one.named}


def facts(**columns: object) -> FileFacts:
    same = np.full(COUNT, 100)
    known = {"widths": same, "heights": same, "sizes": same, "formats": ("JPEG RGB",) * COUNT, "cameras": ("",) * COUNT}
    return FileFacts(**{**known, **columns})  # type: ignore[arg-type]


def mark(images: Pixels) -> Pixels:
    images[CODES == 1, -6:-1, -6:-1] = images[CODES == 1, -6:-1, -6:-1] // 2 + 120
    return images


def frame(images: Pixels) -> Pixels:
    for ring in (np.s_[:, :1], np.s_[:, -1:], np.s_[:, :, :1], np.s_[:, :, -1:]):
        part = images[ring]
        part[CODES == 1] = 0
    return images


@pytest.mark.parametrize(("plant", "cue"), [(mark, "corners"), (frame, "border")])
def test_a_planted_mark_or_frame_is_named(plant: Callable[[Pixels], Pixels], cue: str) -> None:
    assert named([*image_cues(plant(textures(0)))]) == {(cue, "b")}


@pytest.mark.parametrize("strength", [0.0, 12.0, 40.0])
def test_colour_that_fills_an_image_is_no_shortcut_and_is_measured(strength: float) -> None:
    scores = cue_scores(SPACE, [CODES], image_cues(textures(strength)), FOLDS)
    assert not [one for one in scores if one.named]
    assert (max(one.auc.value for one in scores if one.cue == "mean_colour") > 0.9) == (strength > 0)


@pytest.mark.parametrize(
    ("columns", "cue"),
    [
        ({"widths": 100 + 50 * (CODES == 1)}, "aspect"),
        ({"sizes": 100 + 900 * (CODES == 1)}, "file_size"),
        ({"formats": tuple("PNG RGB" if code == 1 else "JPEG RGB" for code in CODES)}, "format"),
        ({"cameras": tuple("One" if code == 1 else "Other" for code in CODES)}, "camera"),
    ],
)
def test_files_that_give_a_class_away(columns: dict[str, object], cue: str) -> None:
    shortcuts = named([*file_cues(facts(**columns), textures(0))])
    assert (cue, "b") in shortcuts
    assert {label for _, label in shortcuts} == {"b"}


def test_files_that_are_alike_have_no_score() -> None:
    cues = [cue for cue in file_cues(facts(), textures(0)) if cue.name in ("aspect", "format", "camera", "image_size")]
    assert cue_scores(SPACE, [CODES], cues, FOLDS) == []


def test_bytes_that_the_pixels_explain_are_no_shortcut() -> None:
    images = textures(0)
    flat = images // 8 + 100
    images[CODES == 1] = flat[CODES == 1]
    sizes = np.where(CODES == 1, 100, 1000)
    cues = [cue for cue in file_cues(facts(sizes=sizes), images) if cue.name == "file_size"]
    (best, *_) = cue_scores(SPACE, [CODES], cues, FOLDS)
    assert best.auc.value > 0.99
    assert not best.named


def test_position_counts_where_the_list_is_not_sorted_by_class() -> None:
    ids, halves = [f"{number}.jpg" for number in range(COUNT)], np.arange(COUNT) * 3 // COUNT
    noisy = np.where(np.arange(COUNT) % 4 == 0, CODES, halves)
    assert ("position", "a") in named([*position_cues(ids, SPACE, [noisy])], codes=noisy)
    assert not named([*position_cues(ids, SPACE, [CODES])])
    folders = [f"{code}/{number % 80:03}.jpg" for number, code in enumerate(halves)]
    assert not named([*position_cues(folders, SPACE, [halves])], codes=halves)  # a folder a class
    assert not [*position_cues([f"{code}/x.jpg" for code in halves], SPACE, [halves])]


def test_tags_and_unknown_labels() -> None:
    head, random = Head("tags", ("t", "rare"), "multilabel"), np.random.default_rng(2)
    cells = np.stack([(CODES == 1).astype(np.int64), np.zeros(COUNT, np.int64)], axis=1)
    cells[random.random(COUNT) < 0.3, 0] = -1
    cells[:3, 1] = 1  # too rare to be judged
    scores = cue_scores(LabelSpace((head,)), [cells], image_cues(mark(textures(0))), FOLDS)
    assert [(one.cue, one.label) for one in scores if one.named] == [("corners", "t")]
    assert {one.label for one in scores} == {"t"}
    assert set(scores[0].rows) <= set(np.flatnonzero(cells[:, 0] == 1))


def test_area_under_the_curve_with_ties_and_its_deviation() -> None:
    random = np.random.default_rng(3)
    positive = random.random(300) < 0.3
    scores = np.round(random.normal(size=300) + positive, 1)
    area = auc_of(scores, positive)
    assert area.value == pytest.approx(roc_auc_score(positive, scores))
    draws = [auc_of(np.round(random.normal(size=300) + positive, 1), positive).value for _ in range(300)]
    assert area.deviation == pytest.approx(np.std(draws), rel=0.3)
    assert auc_of(positive.astype(float), positive).metric().value == 1


def test_the_text_names_cue_class_and_control() -> None:
    best = cue_scores(SPACE, [CODES], image_cues(mark(textures(0))), FOLDS)[0]
    assert best.text.startswith("One corner of the image alone gives 'b' away: AUC ")
    assert "other patches 0." in best.text
