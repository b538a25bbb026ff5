"""The log of submissions: scores, the one that counts, over all runs of a project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assay import cli
from assay.errors import DataError, RunError
from assay.export.submissions import choose, log_path, note_submission, read_log, set_score, submissions_of


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two runs of one project, three files handed in."""
    for run, file in (("runs/a", "one.csv"), ("runs/a", "two.csv"), ("runs/b", "three.csv")):
        folder = tmp_path / run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.yaml").touch()
        (tmp_path / file).write_text(f"image,label\n{file},cat\n")
        note_submission(folder, tmp_path / file, images=1, form="table")
    return tmp_path


def listed(*arguments: str | Path) -> list[dict[str, object]]:
    done = CliRunner().invoke(cli.app, ["submissions", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def test_a_file_is_noted_with_its_size_and_hash(project: Path) -> None:
    first, second = read_log(project / "runs/a")
    assert (Path(first.file).name, first.images, first.form, first.bytes) == ("one.csv", 1, "table", 24)
    assert (first.state, first.score, first.chosen) == ("", None, False)
    (project / "one.csv").unlink()
    (project / "two.csv").write_text("other")
    assert (first.state, second.state) == ("gone", "changed")


def test_scores_and_the_choice_hold_over_all_runs_of_a_project(project: Path) -> None:
    runs = project / "runs"
    listed(runs, "--score", "two.csv", "0.7002", "--choose", "two.csv")
    rows = listed(runs, "--choose", str(project / "three.csv"))
    assert [(Path(str(row["file"])).name, row["score"], row["chosen"]) for row in rows] == [
        ("one.csv", None, False),
        ("two.csv", 0.7002, False),
        ("three.csv", None, True),
    ]
    assert rows == listed(runs / "a", runs / "b", project)  # a run named twice is listed once


def test_the_table_names_state_score_and_what_counts(project: Path) -> None:
    (project / "one.csv").unlink()
    done = CliRunner().invoke(
        cli.app, ["submissions", str(project), "--score", "two.csv", "0.5", "--choose", "two.csv"]
    )
    assert done.exit_code == 0, done.output
    assert all(text in done.stdout for text in ("one.csv (gone)", "0.5", "counts", "--score three.csv VALUE"))


def test_a_file_written_again_is_the_newest_and_a_hash_names_it_too(project: Path) -> None:
    run, file = project / "runs/a", project / "one.csv"
    file.write_text("other")
    note_submission(run, file, images=2, form="table")
    logged = set_score(submissions_of([run]), "one.csv", 0.25)
    assert [one.submission.score for one in logged] == [None, None, 0.25]
    by_hash = choose(logged, logged[0].submission.sha256[:6])
    assert [one.submission.chosen for one in by_hash] == [True, False, False]


def test_a_log_of_an_earlier_version_is_read_and_completed(project: Path) -> None:
    path = log_path(project / "runs/a")
    path.write_text("file,sha256,date,images,form\n/x/old.csv,ab12,2026-01-01T00:00:00+00:00,3,table\n")
    (logged,) = set_score(submissions_of([project / "runs/a"]), "old.csv", 1.0)
    assert (logged.submission.bytes, logged.submission.score, logged.submission.state) == (None, 1.0, "gone")
    assert path.read_text().startswith("file,sha256,date,images,form,bytes,score,chosen\n")


@pytest.mark.parametrize(
    ("name", "score", "message"),
    [("none.csv", 0.5, "There are: one.csv, two.csv, three.csv"), ("one.csv", float("nan"), "finite number")],
)
def test_a_name_that_means_nothing_changes_nothing(name: str, score: float, message: str, project: Path) -> None:
    before = log_path(project / "runs/a").read_text()
    with pytest.raises(DataError, match=message):
        set_score(submissions_of([project]), name, score)
    assert log_path(project / "runs/a").read_text() == before


def test_two_files_of_one_name_are_not_guessed_between(project: Path) -> None:
    (project / "sub").mkdir()
    (project / "sub/one.csv").write_text("x")
    note_submission(project / "runs/b", project / "sub/one.csv", images=1, form="table")
    with pytest.raises(DataError, match="several files are called so"):
        choose(submissions_of([project]), "one.csv")


def test_no_run_and_a_damaged_log_are_said(project: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="is no run and holds none"):
        submissions_of([tmp_path / "empty"])
    log_path(project / "runs/a").write_text("file\nx\n")
    with pytest.raises(RunError, match="cannot be read"):
        submissions_of([project])
