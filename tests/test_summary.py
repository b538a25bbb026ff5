from __future__ import annotations

from typing import Any

from assay.summary import of_evaluation, of_run


def scores(**heads: dict[str, float]) -> dict[str, Any]:
    found = {
        head: {
            "figures": {
                name: {"value": v, "n": 40, "low": v - 0.1, "high": v + 0.05} for name, v in values.items()
            }
        }
        for head, values in heads.items()
    }
    return {"figures": {}, "heads": found}


def test_the_steps_stand_below_the_baselines_and_the_test_split_at_the_foot() -> None:
    steps = [
        {"name": "01-probe", "seconds": 1234.4, "scores": scores(label={"accuracy": 0.75, "nll": 0.5})},
        {"name": "02-pick", "seconds": 1.0},
    ]
    baselines = {"majority class": scores(label={"accuracy": 0.25, "nll": 2.25})}
    metrics = {"baselines": baselines, "steps": steps, "test": scores(label={"accuracy": 0.5})}
    assert of_run(metrics).splitlines() == [
        "                accuracy                NLL    n",
        "majority class  0.250 (0.150 to 0.300)  2.250  40",
        "01-probe        0.750 (0.650 to 0.800)  0.500  40  1,234 s",
        "test split      0.500 (0.400 to 0.550)         40",
    ]


def test_several_heads_have_a_table_each_and_one_without_labels_says_so() -> None:
    found = {
        "validation": scores(a={"accuracy": 0.5}, b={}),
        "scores": scores(a={"accuracy": 0.25}, b={}),
        "n": 40,
    }
    assert of_evaluation(found).splitlines() == [
        "a",
        "                accuracy                n",
        "validation      0.500 (0.400 to 0.550)  40",
        "these pictures  0.250 (0.150 to 0.300)  40",
        "",
        "b: no known labels to score on",
    ]


def test_without_any_figures_it_says_why() -> None:
    assert "No labelled pictures" in of_run({"baselines": {}, "steps": [], "test": None})
    assert "these pictures" in of_evaluation({"validation": None, "scores": scores(a={"nll": 1.0}), "n": 1})
