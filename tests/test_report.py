"""The report of runs in every state; what it looks like in a browser is tested in test_report_page.py."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import assay
from assay import cli
from assay.errors import RunError
from assay.export.submissions import note_submission, set_score, submissions_of
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.messages import plain_lines
from assay.predictions.baselines import PURPOSES
from assay.predictions.predict import Predictions, scores_json
from assay.report.errors import least_certain, worst_errors
from assay.report.gallery import BUDGETS, LARGE_SIDE, SMALL_SIDE, Reader, sheets
from assay.report.report import write_report
from assay.report.sections.explanations import BUDGET as LOOKS
from assay.report.sections.feature_map import MapSettings
from assay.report.tables import metrics_table
from assay.run.contents import read_run
from assay.run.train import evaluate
from factories import write_images

SECTIONS = ["overview", "labels", "errors", "training", "data", "reproduce"]
PARTS = ["noise", "edits", "pseudo", "pairs", "classes", "confusion", "images", "looks", "calibration", "thresholds"]
PARTS += ["steps", "history", "hardware", "images-read", "map", "again", "plan", "layers"]
MODEL = "model: {backbone: test_efficientnet, weights: none}\nhardware: {precision: fp32, layout: contiguous}\n"
FIT = "fit: {size: 32, epochs: 2, lr: 2e-3}"
NO_MAP = MapSettings(n=0)


def train(folder: Path, data: str, *steps: str) -> Path:
    """A run of a plan of these steps."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = "".join(f"\n  - {step}" for step in steps)
    (folder / "plan.yaml").write_text(f"data: {{{data}}}\n{MODEL}steps:{listed}\n", encoding="utf-8")
    return assay.train(folder / "plan.yaml", run=folder / "run", device="cpu").folder


def page(run: Path, settings: MapSettings = NO_MAP) -> str:
    text = write_report(run, settings=settings).read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', text) == SECTIONS
    parts = re.findall(r'<div id="([\w-]+)" class="part', text)
    assert [name for name in parts if name not in ("synthetic", "submissions")] == PARTS
    return text


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return train(folder, f"folder: {colours}, split: {{val: 0.4}}", "probe: {size: 32}", FIT, "calibrate: {}")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def remove(run: Path, *names: str) -> None:
    for path in (run / name for name in names):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def tags(folder: Path, text: str) -> str:
    """A table of tags beside 24 images, and how a plan names it."""
    write_images(folder / "images", each=8)
    (folder / "tags.csv").write_text(text, encoding="utf-8")
    return f"table: {folder / 'tags.csv'}, root: {folder / 'images'}, image: file, split: {{val: 0.4}}"


def rows(tag: Any) -> str:
    return "".join(
        f"{name}/{number}.png,{tag(name, number)}\n" for name in ("red", "green", "blue") for number in range(8)
    )


def test_every_run_ends_with_a_page_and_says_so(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert "<section" in text
    assert "report: " in (finished / "log.jsonl").read_text(encoding="utf-8")
    with Image.open(finished / "figures" / "map.png") as image:
        assert min(image.size) > 500
    assert text.count("url(data:image/webp;base64,") >= 1


def test_the_page_tells_what_was_measured(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    metric = metrics["scores"]["metrics"]["accuracy"]
    text = page(finished)
    assert f"{100 * metric['value']:.1f}<small>%</small>" in text
    assert all(f">{name}</span>" in text for name in metrics["baselines"])
    assert all(f"<dt>{name}</dt><dd>{PURPOSES[name]}.</dd>" in text for name in metrics["baselines"])
    assert "Leak check passed" in text
    assert "02-fit" in text
    assert "not finished" not in text


def test_the_first_screen_gives_a_verdict_and_what_to_do(finished: Path) -> None:
    text = page(finished)
    metric = json.loads((finished / "metrics.json").read_text())["scores"]["metrics"]["accuracy"]
    first = text.split('class="hero"')[0]
    assert "Too few images to judge by: " in first  # 18 of them
    assert f"95\u00a0% interval {100 * metric['low']:.1f}\u00a0% to {100 * metric['high']:.1f}\u00a0%" in first
    assert f"<code>assay predict {finished} IMAGES --out labels.csv</code>" in first
    assert "n = 18 is too small to judge by" in text
    assert f"{round(metric['value'] * 18)} of 18 validation images named rightly" in text


def test_the_same_interval_is_in_the_terminal_on_the_page_and_after_evaluate(finished: Path) -> None:
    run = assay.load(finished)
    metric = run.metrics["scores"]["metrics"]["accuracy"]
    validation = evaluate(run, Samples.read(finished / "samples.parquet").part("val"))["scores"]["metrics"]["accuracy"]
    assert validation == pytest.approx(metric)
    text = f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
    assert text in "".join(plain_lines(metrics_table({"03-calibrate": run.metrics["scores"]})))
    assert f"{100 * metric['low']:.1f}–{100 * metric['high']:.1f}" in page(finished)


def test_galleries_show_the_number_they_are_sorted_by(finished: Path) -> None:
    labelled = read_run(finished).validation
    assert labelled is not None
    (head,) = labelled.samples.space
    for listed in (worst_errors, least_certain):
        scores = [image.score for image in listed(labelled, head, 24)]
        assert scores == sorted(scores)
    for images in re.findall(r'<div class="gallery">.*?</div>', page(finished), re.DOTALL):
        shares = [float(one) for one in re.findall(r"(?:label|ahead by) ([\d.]+)", images)]
        assert shares == sorted(shares)


def test_an_image_keeps_its_proportions(tmp_path: Path) -> None:
    """A tall one is padded to the left and right, although training squashes it."""
    tall = np.full((80, 40, 3), 250, np.uint8)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(tall).save(tmp_path / "images" / name / f"{number}.png")
    run = train(tmp_path, f"folder: {tmp_path / 'images'}, split: {{val: 0.5}}", "probe: {size: 32}")
    tiles, _ = Reader.of(read_run(run)).tiles(["a/0.png"], side=40)
    assert [int(tiles[0, 20, column, 0]) for column in (2, 20, 38)] == [128, 250, 128]
    shutil.rmtree(tmp_path / "images")
    assert (Reader.of(read_run(run)).tiles(["a/0.png"], side=40)[0] == 250).all()


def test_the_same_run_gives_the_same_page_but_for_the_time(run: Path) -> None:
    first, second = (page(run, MapSettings()).split("<footer>")[0] for _ in range(2))
    assert first == second


def test_a_run_that_was_killed_shows_what_there_is(run: Path) -> None:
    remove(run, "metrics.json", "report.html", "steps/03-calibrate", "steps/02-fit/done.json", "model")
    text = page(run, MapSettings())
    assert "not finished" in text
    assert "Step <b>02-fit</b> is under way" in text
    assert "01-probe" in text
    assert "There is no map" not in text


def test_a_run_killed_in_its_first_epochs_shows_the_curves_of_its_checkpoint(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assay.training import loop

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    ended = loop._end_epoch
    monkeypatch.setattr(loop, "_end_epoch", lambda *args: kill() if args[2].epoch == 1 else ended(*args))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, f"folder: {colours}, split: {{val: 0.4}}", FIT)
    step = read_run(tmp_path / "run").steps[0]
    assert step.done is None
    text = page(tmp_path / "run")
    assert "There is no metric yet" in text


def test_a_run_that_has_only_read_its_images(run: Path) -> None:
    remove(run, "metrics.json", "steps", "model")
    text = page(run, MapSettings())
    assert "No step has begun." in text
    assert "There is no model yet." in text


def test_numbers_in_a_panel_stand_beside_one_another() -> None:
    from assay.report.sections.history import _numbered

    def point(x: float, value: float, mark: str = "alone") -> dict:
        return {"x": x, "value": value, "part": "validation", "mark": mark}

    rows = [point(1, 0.5), point(2, 0.51), point(2.5, 0.9), point(9, 0.0), point(10, 0.5, "best"), point(9.9, 0.5, "")]
    assert [row["numbered"] for row in _numbered(rows, 10.5)] == [False, True, True, True, True, False]


def test_what_is_no_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run that can be reported on"):
        write_report(tmp_path)
    found = CliRunner().invoke(cli.app, ["report", str(tmp_path / "none")])
    assert found.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_page_again(run: Path) -> None:
    (run / "report.html").unlink()
    found = CliRunner().invoke(
        cli.app, ["report", str(run), "--map", "20", "--perplexity", "5", "--json", "--device", "cpu"]
    )
    assert found.exit_code == 0, found.output
    assert "20 of 45 images" in " ".join((run / "report.html").read_text(encoding="utf-8").split())


def test_what_was_handed_in_of_the_runs_of_a_project(run: Path) -> None:
    assert "What was handed in" not in page(run)
    other = Path(shutil.copytree(run, run.parent / "other"))
    (run.parent / "answer.csv").write_text("image,label\n")
    for folder in (run, other):
        note_submission(folder, run.parent / "answer.csv", images=3, form="table")
    set_score(submissions_of([other]), "answer.csv", 0.7002)
    table = page(run).partition("What was handed in")[2].partition("</table>")[0]
    assert re.findall(r"<td>(run|other)</td><td>(answer.csv)", table) == [
        ("run", "answer.csv"),
        ("other", "answer.csv"),
    ]
    assert "0.7002" in table


def test_no_errors_at_all(run: Path) -> None:
    judged = read_run(run).validation
    assert judged is not None
    step, logits = run / "steps" / "03-calibrate", 20 * np.eye(3, dtype=np.float32)[judged.codes[0]]
    right = Predictions.of(judged.samples.ids, judged.samples.space, logits, model="")
    right.write(step / "best" / "predictions.parquet")
    done = json.loads((step / "done.json").read_text())
    (step / "done.json").write_text(json.dumps(done | {"scores": scores_json(right, judged.samples)}))
    text = page(run)
    assert "sets that hold the class of an image" in text
    assert "Every validation image is answered rightly." in text
    assert "No answer is wrong." in text
    assert "Where it is worst" not in text


def test_no_validation(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text(
        "file,label,split\n"
        + "".join(
            f"{place.relative_to(colours)},{place.parent.name},train\n" for place in sorted(colours.glob("*/*.png"))
        )
    )
    data = f"table: {tmp_path / 'split.csv'}, root: {colours}, image: file, split: {{val: 0}}"
    text = page(train(tmp_path, data, FIT))
    assert "nothing here says how good it is" in text
    assert "No labelled image was held back and scored" in text


def test_one_tag(tmp_path: Path) -> None:
    table = "file,tags\n" + rows(lambda name, _: "blue" if name == "blue" else "-")
    data = tags(tmp_path, table) + ', heads: {tags: {column: tags, separator: ";", none: "-"}}'
    text = page(train(tmp_path, data, "probe: {size: 32}"), MapSettings())
    assert "<b>1 tag</b>" in text
    assert "threshold 0.50" in text


def test_tags_show_thresholds_and_outcomes(tmp_path: Path) -> None:
    table = "file,tags\n" + rows(
        lambda name, number: "" if number == 7 else f"{name};warm" if name == "red" else name if number else "-"
    )
    data = tags(tmp_path, table) + ', heads: {tags: {column: tags, separator: ";", none: "-"}}'
    text = page(train(tmp_path, data, "probe: {size: 32}", "tune_thresholds: {by: class}"), MapSettings())
    assert "<b>4 tags</b>" in text
    assert "rightly absent" in text
    assert "thresholds of tags" in text
    assert "3 unlabelled" in text or "without a label" in text


def test_several_heads_with_unknown_labels(tmp_path: Path) -> None:
    table = "file,colour,size\n" + rows(
        lambda name, number: f"{name},{'' if number < 4 else 'large' if number % 2 else 'small'}"
    )
    data = tags(tmp_path, table) + ", heads: {colour: {column: colour}, size: {column: size}}"
    text = page(train(tmp_path, data, "probe: {size: 32}", FIT), MapSettings())
    assert "<b>2 questions</b>" in text
    assert 'data-head="h1"' in text


def test_a_image_deleted_since_is_shown_from_the_cache_and_without_it_named_as_gone(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", each=8)
    run = train(tmp_path, f"folder: {images}, split: {{val: 0.4}}", "probe: {size: 32}")
    (images / "red" / "1.png").unlink()
    assert ">gone</span>" not in page(run)
    shutil.rmtree(run / "cache")
    assert ">gone</span>" in page(run)
    shutil.rmtree(images)
    text = page(run, MapSettings())
    assert "There is no map. The decoded images are gone" in text


def test_a_thousand_classes_stay_light(tmp_path: Path) -> None:
    """Most of them declared only: the baselines take long over classes that occur."""
    images = write_images(tmp_path / "images", each=30)
    table = "file,label\n" + "".join(f"{name}/{n}.png,c{n}\n" for name in ("red", "green", "blue") for n in range(30))
    (tmp_path / "labels.csv").write_text(table)
    head = f"heads: {{label: {{column: label, classes: [{', '.join(f'c{n}' for n in range(1000))}]}}}}"
    data = f"table: {tmp_path / 'labels.csv'}, root: {images}, image: file, {head}, split: {{val: 0.3}}"
    text = page(train(tmp_path, data, "fit: {size: 16, epochs: 1}"), MapSettings())
    assert "1,000 classes" in text
    assert "the 40 classes in most mistakes, of 1,000" in text
    assert len(text.encode()) < 1_500_000


def test_edits_are_shown_with_their_images(run: Path) -> None:
    ledger = Ledger.read(run / "ledger.csv")
    id_ = next(id_ for id_ in read_run(run).samples.ids if id_.startswith("red"))
    edit = Edit(id=id_, head="label", action="set", old="red", new="blue", step="person", reason="<i>seen</i>")
    ledger.append([edit]).undo([edit])
    text = page(run)
    assert "1 of them undone" in text
    assert "&lt;i&gt;seen&lt;/i&gt;" in text


def test_a_report_that_cannot_be_written_ends_no_run(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RunError("the disk said no")

    monkeypatch.setattr("assay.report.report.write_report", refuse)
    run = train(tmp_path, f"folder: {colours}", "probe: {size: 32}")
    assert (run / "metrics.json").exists()
    assert "no report was written: the disk said no" in (run / "log.jsonl").read_text()


def test_a_fault_in_the_report_surfaces_once_all_else_is_written(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("assay.report.report.write_report", break_)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, f"folder: {colours}", "probe: {size: 32}")
    assert (tmp_path / "run" / "metrics.json").exists()


def test_ten_thousand_noisy_images_stay_below_eight_megabytes() -> None:
    """Noise is what compresses worst. 600 images at a fifteenth of what the 9,000 that a page shows may take."""
    noise = np.random.default_rng(0).integers(0, 255, (600, 64, 64, 3), dtype=np.uint8)
    small = sheets(noise, budget=BUDGETS["small"] // 15, options=SMALL_SIDE)
    assert sum(len(sheet.data) for sheet in small) <= BUDGETS["small"] / 15
    large = sheets(np.repeat(noise[:28], 15, axis=0), budget=BUDGETS["large"], options=LARGE_SIDE)
    assert sum(len(sheet.data) for sheet in large) <= BUDGETS["large"]
    # In base64, beside them some 1.3 MB of captions and places, measured with names of a hundred letters.
    assert (sum(BUDGETS.values()) + LOOKS) * 4 / 3 < 6_500_000
    assert [(sheet.columns, sheet.rows) for sheet in small] == [(24, 24), (24, 1)]


@pytest.mark.skipif(os.name == "nt", reason="bytes that are no UTF-8 are no name there")
def test_names_that_are_no_text_are_written_out() -> None:
    from assay.messages import plain

    assert plain("a\udcffb\n\u202e") == "a\\xffb\\n\\u202e"


def test_validation_of_one_class_alone(tmp_path: Path) -> None:
    table = "file,label,split\n" + rows(lambda name, n: f"{name},{'val' if name == 'red' and n % 2 else 'train'}")
    data = tags(tmp_path, table).removesuffix(", split: {val: 0.4}") + ", heads: {label: {column: label}}"
    run = train(tmp_path, data, "probe: {size: 32}")
    shown = [row for row in read_run(run).scores["heads"]["label"]["per_class"] if row["support"]]
    assert [row["class"] for row in shown] == ["red"]
    text = page(run)
    assert "4 were held back for validation" in text
    words = re.sub(r"<[^>]*>", " ", text.split("<main>")[1].split("<script")[0])
    assert not re.search(r"\b(nan|inf|None)\b", words)


def test_suspicion_colours_the_map_where_labels_were_judged(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", each=20)
    wrong = [images / "red" / f"{number}.png" for number in range(3)]
    for place in wrong:
        place.rename(images / "blue" / f"wrong-{place.name}")
    run = train(tmp_path, f"folder: {images}, split: {{val: 0.2}}", "probe: {size: 32}", "clean_labels: {}")
    text = page(run, MapSettings())
    told = json.loads(text.split('id="page-data">')[1].split("</script>")[0])["map"]
    ids = read_run(run).samples.ids
    named = told["suspicion"]
    assert max(named) > 0.5
    assert len(named) == len(told["x"]) == len(ids)
