"""A plan: what is read, what is refused and in which words, values set from outside, the way back to YAML."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from assay.errors import AssayError, DataError, PlanError
from assay.files import RunFolder
from assay.plan import plan as plan_module
from assay.plan.plan import LoadedPlan, Plan, anchored, complete, from_source, json_schema, load, parse, plain, to_yaml
from assay.plan.recipes import recipe_names, recipe_summary, recipe_text
from assay.plan.yaml_lines import read
from assay.settings import Settings
from assay.steps.base import StepPlan
from assay.steps.repeat import RepeatSettings
from assay.training.losses import ByHead, LossSettings
from assay.training.optimizers import AdamW, OptimizerSettings, Sgd
from assay.training.schedules import Cosine, Cyclic, FlatCos, OneCycle, ScheduleSettings


class Look(Settings):
    """A step with nothing required."""

    size: int = Field(default=128, ge=16)


class Jitter(Settings):
    brightness: float = 0.0


class Augment(Settings):
    crop: tuple[float, float] | None = None
    jitter: Jitter | float | None = None


class Train(Settings):
    """A step with one of everything."""

    epochs: int = Field(default=8, ge=1)
    lr: float = Field(default=5e-4, gt=0, description="Top learning rate.")
    start: str = "previous"
    freeze: Literal["none", "backbone"] | int = "none"
    schedule: ScheduleSettings = OneCycle()
    optimizer: OptimizerSettings = AdamW()
    loss: LossSettings = ByHead()
    augment: Augment | None = None
    classes: dict[str, float] = Field(default_factory=dict)


class Strict(Settings):
    """A step that cannot be left empty."""

    times: int = Field(description="How often.")


STEPS = {"look": Look, "fit": Train, "strict": Strict, "repeat": RepeatSettings}
TEXT = """\
data:
  folder: photos/
model: {backbone: resnet18}
seed: 3
steps:
  - look
  - fit: {epochs: 3, schedule: flat_cos, lr: 3e-3}
  - repeat:
      times: 2
      steps:
        - look:
        - fit: {schedule: {kind: cosine, warm_up: 0.1}, augment: {crop: [0.3, 1], jitter: 0.3}}
"""


def plan_of(text: str = TEXT, *overrides: str) -> Plan:
    return parse(text, "plan.yaml", overrides=overrides, steps=STEPS)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(text, *overrides)
    return str(caught.value)


def with_steps(steps: str) -> str:
    return f"data: {{folder: photos}}\nsteps:\n{steps}"


def fit_of(*overrides: str) -> Train:
    return plan_of(TEXT, *overrides).steps[1].settings


def test_a_plan_is_read() -> None:
    plan = plan_of()
    assert (plan.data.folder, plan.model.backbone, plan.seed) == (Path("photos"), "resnet18", 3)
    assert [step.kind for step in plan.steps] == ["look", "fit", "repeat"]
    assert plan.steps[0].settings == Look()
    assert plan.steps[1].settings == Train(epochs=3, lr=0.003, schedule=FlatCos())


def test_steps_within_steps_are_read() -> None:
    inner = plan_of().steps[2].settings
    assert inner.times == 2
    assert inner.steps[0] == StepPlan(kind="look", settings=Look())
    augment = Augment(crop=(0.3, 1.0), jitter=0.3)
    assert inner.steps[1].settings == Train(schedule=Cosine(warm_up=0.1), augment=augment)


def test_steps_may_be_missing_or_empty() -> None:
    for text in ("data: {folder: x}", "data: {folder: x}\nsteps:", "data: {folder: x}\nsteps: []"):
        assert plan_of(text).steps == ()


def test_names_are_text_however_they_are_written() -> None:
    plan = plan_of(with_steps("  - fit: {start: 007, classes: {1: 0.5, no: 2, 2.50: 3}}\n  - fit: {start: no}"))
    assert plan.steps[0].settings.start == "007"
    assert plan.steps[0].settings.classes == {"1": 0.5, "no": 2, "2.50": 3}
    assert plan.steps[1].settings.start == "no"
    assert plan_of("data: {folder: 2024}").data.folder == Path("2024")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "plan.yaml is empty; a plan is a mapping with at least `data:` in it."),
        ("# a comment", "plan.yaml is empty;"),
        ("- a", "plan.yaml holds a list; a plan is a mapping"),
        ("photos", 'plan.yaml holds "photos"; a plan is a mapping'),
        ("seed: 0", "plan.yaml, line 1: data is missing; add it (where images and labels are"),
        ("data: {folder: [x\n", "plan.yaml, line 2: broken YAML"),
        ("data: {folder: ''}", "plan.yaml, line 1: data.folder: the path is empty; name one, or . for the folder of"),
        ("data: {folder: x}\ndata: 3", "plan.yaml, line 2: data is set twice, first at plan.yaml, line 1."),
        ("data: photos", 'plan.yaml, line 1: data is "photos"; it must be a mapping'),
        ("data: {folder: x}\nmodle: {}", "plan.yaml, line 2: modle is not known; did you mean model?"),
        ("data: {folder: x}\nseed: -1", "plan.yaml, line 2: seed is -1; it must be at least 0."),
        ("data: {folder: x}\nsteps: 3", "plan.yaml, line 2: steps is 3; it must be a list of steps"),
        ("data: {folder: x}\nseed: .inf", "plan.yaml, line 2: seed is Infinity; it must be a finite number."),
    ],
)
def test_refusals(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("fit: {epoch: 3}", "steps.0.fit.epoch is not known; did you mean epochs?"),
        ("fit: {zzz: 3}", "steps.0.fit.zzz is not known; known here: epochs, lr, start,"),
        ("fit: {lr: -1}", "steps.0.fit.lr is -1; it must be greater than 0."),
        ("fit: {lr: fast}", 'steps.0.fit.lr is "fast"; it must be a number.'),
        ("fit: {epochs: 2.5}", "steps.0.fit.epochs is 2.5; it must be a whole number."),
        (
            "fit: {freeze: bakbone}",
            "steps.0.fit.freeze is \"bakbone\"; it must be 'none' or 'backbone' or a whole number",
        ),
        ("fit: {augment: {crop: [1]}}", "steps.0.fit.augment.crop.1 is missing; add it."),
        ("fit: {augment: {crop: [1, 2, 3]}}", "steps.0.fit.augment.crop has 3 entries; it must have at most 2."),
        (
            "fit: {augment: {jitter: big}}",
            'steps.0.fit.augment.jitter is "big"; it must be a mapping (key: value) or a number.',
        ),
        (
            "fit: {augment: {jitter: {bright: 1}}}",
            "steps.0.fit.augment.jitter.bright is not known; did you mean brightness?",
        ),
        ("fit: {schedule: one_cylce}", 'steps.0.fit.schedule is "one_cylce"; did you mean one_cycle?'),
        ("fit: {schedule: {kind: flat_cos, flt: 1}}", "steps.0.fit.schedule.flt is not known; did you mean flat?"),
        (
            "fit: {schedule: {warm_up: 1}}",
            "steps.0.fit.schedule has no kind; add `kind:` with one of constant, flat_cos,",
        ),
        (
            "fit: {optimizer: {kind: adam, nesterov: true}}",
            "steps.0.fit.optimizer.nesterov is not known; known here: kind,",
        ),
        (
            "fit: {schedule: {kind: cyclic, cycle_steps: 4, cycle_epochs: 3}}",
            "steps.0.fit.schedule: cycle_epochs and cycle_steps both give the length of a cycle; keep one",
        ),
        ("fit: 3", "steps.0.fit is 3; it must be a mapping (key: value)."),
        ("fitt: {}", "steps.0.fitt is no step; did you mean fit?"),
        ("{look: {}, fit: {}}", "steps.0.fit stands beside look in one step. Begin a list entry of its own"),
        ("3", "steps.0 is 3; a step is `- kind: settings`, and the kinds are: look, fit, strict, repeat."),
        ("{}", "steps.0 is a mapping; a step is"),
        ("strict", "steps.0.strict.times is missing; add it (how often)."),
        ("repeat: {times: 2}", "steps.0.repeat.steps is missing; add it"),
        ("repeat: {times: 2, steps: []}", "steps.0.repeat.steps has 0 entries; it must have at least 1."),
        ("repeat: {times: 2, steps: 3}", "steps.0.repeat.steps is 3; it must be a list of steps"),
        ("repeat: {times: 0, steps: [look]}", "steps.0.repeat.times is 0; it must be at least 1."),
        ("repeat: {times: 1, steps: [fit: {lr: 0}]}", "steps.0.repeat.steps.0.fit.lr is 0; it must be greater than 0."),
    ],
)
def test_refused_steps(step: str, message: str) -> None:
    got = refusal(with_steps(f"  - {step}"))
    assert got.startswith(f"plan.yaml, line 3: {message}")
    assert "\n" not in got


def test_all_problems_are_listed_in_the_order_of_their_lines() -> None:
    lines = refusal("data: {folder: x, tabel: y}\nsteps:\n  - look: {size: 1}\n  - fti\nseed: x").splitlines()
    assert [line.split(":")[0] for line in lines] == [f"plan.yaml, line {n}" for n in (1, 3, 4, 5)]


def test_at_most_five_problems_are_listed() -> None:
    lines = refusal(with_steps("  - fit: {lr: 0}\n" * 7)).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "and 2 more."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps.1.fit.epochs=4", Train(epochs=4, lr=0.003, schedule=FlatCos())),
        ("steps.1.fit={lr: 1e-3}", Train(lr=0.001)),
        ("steps.1.fit=", Train()),
        ("steps.1.fit.schedule=cyclic", Train(epochs=3, lr=0.003, schedule=Cyclic())),
        ("steps.1.fit.schedule.flat=0.5", Train(epochs=3, lr=0.003, schedule=FlatCos(flat=0.5))),
        (
            "steps.1.fit.augment.crop=[0.5, 1]",
            Train(epochs=3, lr=0.003, schedule=FlatCos(), augment=Augment(crop=(0.5, 1))),
        ),
        ("steps.1.fit.loss.smoothing=0.1", Train(epochs=3, lr=0.003, schedule=FlatCos(), loss=ByHead(smoothing=0.1))),
        (
            "steps.1.fit.optimizer.weight_decay=0.02",
            Train(epochs=3, lr=0.003, schedule=FlatCos(), optimizer=AdamW(weight_decay=0.02)),
        ),
        ('steps.1.fit.classes."a.b"=2', Train(epochs=3, lr=0.003, schedule=FlatCos(), classes={"a.b": 2})),
        ("steps.1.fit.start=a=b", Train(epochs=3, lr=0.003, schedule=FlatCos(), start="a=b")),
        ("steps.1.fit.start=007", Train(epochs=3, lr=0.003, schedule=FlatCos(), start="007")),
    ],
)
def test_a_value_is_set(text: str, expected: Train) -> None:
    assert fit_of(text) == expected


def test_values_are_set_everywhere() -> None:
    plan = plan_of(
        TEXT, "seed=7", "steps.0.look.size=64", "steps.2.repeat.steps.1.fit.augment.crop.0=0.5", "data.split.val=0.3"
    )
    assert (plan.seed, plan.steps[0].settings.size, plan.data.split.val) == (7, 64, 0.3)
    assert plan.steps[2].settings.steps[1].settings.augment.crop == (0.5, 1.0)
    assert plan_of("data: {folder: x}", "model.backbone=resnet18").model.backbone == "resnet18"


def test_the_last_value_set_counts() -> None:
    assert fit_of("steps.1.fit.epochs=4", "steps.1.fit.epochs=5").epochs == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps.1.fit.epoch=4", "steps.1.fit.epoch is not known; did you mean epochs?"),
        ("steps.1.fit.lr=-1", "steps.1.fit.lr is -1; it must be greater than 0."),
        ("steps.9.fit.lr=1", "steps has no entry 9; its entries are 0 to 2."),
        ("steps.-1.fit.lr=1", "steps has no entry -1; its entries are 0 to 2."),
        ("steps.1.look.size=64", "steps.1 is fit, not look. The steps are: 0 look, 1 fit, 2 repeat."),
        ("seed.x=1", "seed is 3, and there is nothing in it to set. Set seed itself."),
        ("modell.backbone=x", "modell is not known; did you mean model?"),
        ("steps.1.fit.augment.crop.0=1", "the plan has no steps.1.fit.augment.crop, and one entry begins no list."),
        ("steps.1.fit.lr=[", "broken YAML"),
        ("steps", "a value is set by KEY=VALUE"),
        ("=3", "a value is set by KEY=VALUE"),
    ],
)
def test_refused_values(text: str, message: str) -> None:
    assert refusal(TEXT, text).startswith(f"--set {text}: {message}")


SETTINGS = st.one_of(
    st.builds(Look, size=st.integers(16, 999)),
    st.builds(Strict, times=st.integers()),
    st.builds(
        Train,
        epochs=st.integers(1, 99),
        lr=st.floats(1e-9, 1),
        start=st.text(max_size=12),
        freeze=st.sampled_from(["none", "backbone", 1, 3]),
        schedule=st.sampled_from([OneCycle(), FlatCos(flat=0.5), Cosine(warm_up=0.1), Cyclic(cycle_steps=9)]),
        optimizer=st.sampled_from([AdamW(), Sgd(nesterov=True), AdamW(betas=(0.8, 0.9))]),
        augment=st.none() | st.builds(Augment, jitter=st.none() | st.floats(0, 1) | st.builds(Jitter)),
        classes=st.dictionaries(st.text(max_size=5), st.floats(0, 9), max_size=3),
    ),
)
ENTRIES = SETTINGS.map(lambda s: StepPlan(kind=next(k for k, v in STEPS.items() if type(s) is v), settings=s))
NESTED = st.lists(ENTRIES, min_size=1, max_size=2).map(tuple)
REPEATS = st.builds(RepeatSettings, times=st.integers(1, 5), steps=NESTED)
ALL_ENTRIES = ENTRIES | REPEATS.map(lambda s: StepPlan(kind="repeat", settings=s))


@settings(deadline=None, max_examples=60)
@given(st.lists(ALL_ENTRIES, max_size=3), st.integers(0, 99), st.text("a1 /.'\":#-\n", min_size=1), st.booleans())
def test_a_plan_written_is_read_back_equal(steps: Any, seed: int, folder: str, full: Any) -> None:
    plan = Plan.model_validate({"data": {"folder": Path(folder)}, "seed": seed, "steps": tuple(steps)})
    assert parse(to_yaml(plan, full=full), "x", steps=STEPS) == plan


def test_a_plan_written_says_what_was_set_and_no_more() -> None:
    assert to_yaml(plan_of()) == TEXT.replace("data:\n  folder: photos/", "data: {folder: photos}").replace(
        "- look\n", "- look: {}\n"
    ).replace("- look:\n", "- look: {}\n").replace("3e-3", "0.003").replace(
        "epochs: 3, schedule: flat_cos, lr: 0.003", "epochs: 3, lr: 0.003, schedule: flat_cos"
    ).replace("[0.3, 1]", "[0.3, 1.0]")


def test_a_plan_written_in_full_says_the_defaults_too() -> None:
    text = to_yaml(plan_of(with_steps("  - look")), full=True)
    assert "look: {size: 128}" in text
    assert "seed: 0" in text


def test_a_dumped_plan_has_the_settings_of_its_steps() -> None:
    steps = plan_of().model_dump(mode="json")["steps"]
    assert steps[0] == {"look": {"size": 128}}
    assert steps[2]["repeat"]["steps"][1]["fit"]["schedule"]["warm_up"] == 0.1


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_a_mangled_plan_is_read_or_refused(data: Any) -> None:
    lines = TEXT.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        cut = data.draw(st.integers(0, len(lines[at])))
        lines[at] = lines[at][:cut] + data.draw(st.text(":{}[],- a1.\n~", max_size=4)) + lines[at][cut + 1 :]
    with suppress(PlanError):
        plan_of("\n".join(lines))


SCHEMA = json_schema(steps=STEPS)


def valid(text: str) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(read(text, "x").value)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$defs"]["Train"]["properties"]["lr"]["description"] == "Top learning rate."


@pytest.mark.parametrize(
    "steps",
    [
        "- look",
        "- look:",
        "- fit: {schedule: one_cycle}",
        "- fit: {schedule: {kind: cosine, warm_up: 0.1}}",
        "- fit: {loss: {smoothing: 0.1}}",
    ],
)
def test_the_schema_accepts(steps: str) -> None:
    assert valid(TEXT)
    assert valid(with_steps(steps))
    assert plan_of(with_steps(steps))


@pytest.mark.parametrize(
    "steps",
    [
        "- strict",
        "- fti: {}",
        "- {look: {}, fit: {}}",
        "- fit: {epoch: 1}",
        "- fit: {lr: -1}",
        "- fit: {schedule: one}",
        "- repeat: {times: 1, steps: [fti]}",
    ],
)
def test_the_schema_refuses(steps: str) -> None:
    assert not valid(with_steps(steps))
    refusal(with_steps(steps))


def source(path: Path, **options: Any) -> LoadedPlan:
    return from_source(path, steps=STEPS, **options)


def test_a_folder_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my photos.v2").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = source(Path("my photos.v2"), overrides=["data.split.val=0.3"])
    assert loaded.plan.data.folder == tmp_path / "my photos.v2"
    assert loaded.plan.data.split.val == 0.3
    assert (loaded.base, loaded.source_name, loaded.plan.steps) == (tmp_path, "my photos.v2", ())


@pytest.mark.parametrize("suffix", [".csv", ".TSV", ".parquet"])
def test_a_table_is_a_source(tmp_path: Path, suffix: str) -> None:
    table = tmp_path / f"labels{suffix}"
    table.touch()
    loaded = source(table)
    assert (loaded.plan.data.table, loaded.source_name) == (table, "labels")


def test_a_plan_file_is_a_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT, encoding="utf-8-sig")
    loaded = source(path, overrides=["steps.1.fit.epochs=9"])
    assert loaded == load(path, overrides=["steps.1.fit.epochs=9"], steps=STEPS)
    assert (loaded.base, loaded.source_name, loaded.later) == (tmp_path, "mine", ())
    assert loaded.plan == plan_of(TEXT, "steps.1.fit.epochs=9")


def test_values_for_steps_that_are_not_chosen_yet_wait_for_them(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("data: {folder: photos}")
    loaded = source(path, overrides=["steps.1.fit.epochs=9", "seed=4"])
    assert (loaded.plan.steps, loaded.plan.seed, loaded.later) == ((), 4, ("steps.1.fit.epochs=9",))
    whole = complete(loaded, [{"look": {}}, {"fit": {"lr": 0.1}}], steps=STEPS)
    assert [step.settings for step in whole.plan.steps] == [Look(), Train(lr=0.1, epochs=9)]
    assert (whole.plan.seed, whole.plan.data, whole.later) == (4, loaded.plan.data, ())
    given = source(path, overrides=["steps=[{look: {}}, {fit: {lr: 0.1}}]", "steps.1.fit.epochs=9"])
    assert (given.later, [step.settings for step in given.plan.steps]) == ((), [Look(), Train(lr=0.1, epochs=9)])
    wrong = source(path, overrides=["steps.1.fit.epoch=9"])
    with pytest.raises(PlanError, match=r"^--set steps.1.fit.epoch=9: .* did you mean epochs\?"):
        complete(wrong, [{"look": {}}, {"fit": {}}], steps=STEPS)


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("nowhere", None, DataError, "there is no such folder or file"),
        ("nowhere.csv", None, DataError, "there is no such folder or file"),
        ("nowhere.yaml", None, DataError, "there is no such folder or file"),
        ("image.jpg", b"x", PlanError, "no folder of images, no table"),
        ("latin.yaml", "data: {folder: caf\xe9}".encode("latin-1"), PlanError, "is not UTF-8 text"),
    ],
)
def test_refused_sources(tmp_path: Path, name: str, content: Any, kind: Any, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        source(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_the_folder_of_a_run_is_no_folder_of_images(tmp_path: Path) -> None:
    RunFolder(tmp_path).samples.touch()
    RunFolder(tmp_path).plan.touch()
    with pytest.raises(PlanError, match=r"is the folder of a run, not of images. Give its plan: .*plan\.yaml"):
        source(tmp_path)


def test_a_recipe_adds_what_the_source_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# Quick.\n# And good.\ndata: {split: {val: 0.1}}\nsteps:\n  - look\n  - fit: {epochs: 2}\n"
    monkeypatch.setattr(plan_module, "recipe_text", {"quick": text}.__getitem__)
    plan = source(tmp_path, recipe="quick", overrides=["steps.1.fit.lr=0.1"]).plan
    assert (plan.data.folder, plan.data.split.val) == (tmp_path, 0.1)
    assert [step.settings for step in plan.steps] == [Look(), Train(epochs=2, lr=0.1)]


@pytest.mark.parametrize("key", ["steps: [look]", "seed: 1"])
def test_a_recipe_and_a_plan_may_not_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(plan_module, "recipe_text", lambda _: "seed: 3\nsteps: [look]")
    path = tmp_path / "plan.yaml"
    path.write_text(f"data: {{folder: x}}\n{key}")
    with pytest.raises(PlanError, match=r"line 2: .* is set there and in recipe quick"):
        source(path, recipe="quick")


def test_a_mistake_in_a_recipe_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "recipe_text", lambda _: "seed: 3\nsteps:\n  - fit: {epoch: 1}")
    with pytest.raises(PlanError, match=r"^recipe quick, line 3: steps.0.fit.epoch is not known"):
        source(tmp_path, recipe="quick")


def test_recipes_are_plans() -> None:
    with pytest.raises(PlanError, match="--recipe nonesuch: there is no such recipe"):
        recipe_text("nonesuch")
    for name in recipe_names():
        assert recipe_summary(name)
        value = copy.deepcopy(read(recipe_text(name), name).value)
        value["data"] = {"folder": "x", **value.get("data", {})}
        parse(plan_module.write(value), name)


def test_the_steps_that_there_are_make_a_schema_and_a_plan() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    steps = "  - probe: {size: 128}\n  - fit: {freeze: backbone, epochs: 3, schedule: flat_cos, lr: 3e-3}\n"
    plan = parse(with_steps(steps + "  - repeat: {times: 2, steps: [probe]}"), "plan.yaml")
    assert [step.kind for step in plan.steps] == ["probe", "fit", "repeat"]
    assert parse(to_yaml(plan, full=True), "plan.yaml") == plan
    assert plain(plan)["steps"][1]["fit"]["epochs"] == 3


def test_every_refusal_is_the_users_to_mend() -> None:
    assert issubclass(PlanError, AssayError)


def test_a_copy_of_an_anchored_plan_means_the_same_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("data: {folder: photos}\nmodel: {weights: w.safetensors}\n")
    loaded = load(tmp_path / "plan.yaml")
    plan = anchored(loaded)
    assert plan.data.folder == tmp_path / "photos"
    assert plan.model.weights == str(tmp_path / "w.safetensors")
    assert parse(to_yaml(plan), "copy") == plan
    assert anchored(replace(loaded, plan=plan, base=tmp_path / "elsewhere")) == plan


PROBE, FIT, DROP = "probe: {size: 64}", "fit: {size: 64, epochs: 1}", "clean_labels: {action: drop}"


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((PROBE, DROP), "steps.1.clean_labels changes labels, and no step after it learns from them.*action: flag"),
        ((DROP,), "steps.0.clean_labels changes labels"),
        ((PROBE, "pseudo_label", "calibrate"), "steps.1.pseudo_label changes labels, and no step after it"),
        (
            (FIT, f"repeat: {{times: 1, steps: [{PROBE}, {DROP}]}}"),
            "steps.1.repeat.steps.1.clean_labels changes labels",
        ),
        (("pseudo_label", FIT), "steps.0.pseudo_label: there is no model yet"),
        (("tune_thresholds",), "steps.0.tune_thresholds: there is no model yet"),
        ((FIT, "calibrate", "clean_labels", FIT), "steps.1.calibrate changes a model that the fit after it replaces"),
        (
            (FIT, "repeat: {times: 3, steps: [clean_labels]}"),
            "steps.1.repeat repeats steps that .* every round is the same",
        ),
    ],
)
def test_a_step_that_cannot_have_an_effect_is_refused_when_the_plan_is_read(steps: tuple[str, ...], says: str) -> None:
    listed = "".join(f"  - {step}\n" for step in steps)
    with pytest.raises(PlanError, match=rf"plan.yaml, line \d+: {says}"):
        parse(f"data: {{folder: photos}}\nsteps:\n{listed}", "plan.yaml")


@pytest.mark.parametrize(
    "steps",
    [
        ("clean_labels",),
        (PROBE, "clean_labels"),
        (DROP, PROBE),
        (FIT, f"repeat: {{times: 2, steps: [{PROBE}, {DROP}]}}"),  # the second round learns from it
        (FIT, "calibrate", "pseudo_label", FIT),  # which asks the calibrated model
        (PROBE, f"repeat: {{times: 2, steps: [pseudo_label, {FIT}]}}", "calibrate"),
    ],
)
def test_steps_that_have_an_effect_are_accepted(steps: tuple[str, ...]) -> None:
    listed = "".join(f"  - {step}\n" for step in steps)
    assert len(parse(f"data: {{folder: photos}}\nsteps:\n{listed}", "plan.yaml").steps) == len(steps)
