"""Training within a budget of minutes: the time that is spent, the stages decided so far, and what each was worth.

A run with `minutes:` decides on a stage when the one before it is over, by the speeds measured until then, and notes it
in budget.json before it begins: a run that was killed goes on with the same stages, and its time counts on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from assay.errors import PlanError
from assay.files import RunFolder, StepName, fingerprint, whole, write_text
from assay.labels.subset import labelled
from assay.metrics.metrics import headline, higher_is_better
from assay.models.backbones import freeze
from assay.models.backbones import stages as stages_of_backbone
from assay.models.boundary import find_boundary
from assay.models.classifier import ModelSettings, takes_size
from assay.models.ensemble import load_model, replace_model
from assay.plan.fit_stages import LEAST_FIT, compared_fit
from assay.plan.plan import Plan, to_yaml
from assay.plan.planner import budgeted_stages, default_stages
from assay.plan.stages import (
    DEFAULT_SIZE,
    PROBE,
    PSEUDO_LABELS,
    READING,
    SIZES,
    UPPER,
    USUAL_FORWARD,
    WHOLE,
    Facts,
    Speeds,
    Stage,
    images_and_size,
    passes,
    relative_forward,
    sizes_that_answer,
)
from assay.predictions.inference import seconds_an_image
from assay.progress import format_seconds
from assay.run.backbones import ranked
from assay.run.conclusions import choose_model, minutes_text, stage_outcomes
from assay.run.prepare import PreparedRun, StepChoice
from assay.run.records import BackboneChoice, DoneRecord, StageOutcome
from assay.run.runner import state_if_done
from assay.steps.base import Context, State, StepPlan
from assay.steps.hardware import inference_for
from assay.steps.probe import ProbeSettings
from assay.steps.start import bare_classifier

NOTED = 2.0  # seconds after which the time spent is written again: what a kill may lose of it


@dataclass
class Budget:
    """The wall time of a run, over all the processes that worked on it, and the stages decided so far."""

    run: RunFolder
    seconds: float
    began: float  # when this process did, by `clock`
    clock: Callable[[], float] = time.monotonic
    before: float = 0.0  # seconds spent by earlier processes
    key: str = ""  # of the data and of what else the stages follow from; empty until these are read
    decided: list[Stage] = field(default_factory=list)
    over: bool = False  # no stage is left to be decided
    closing: float = 0.0  # seconds kept for what follows the last stage
    plan: str = ""  # a hash of the plan as it was given
    _noted: float = 0.0
    _ours: bool = True  # what is in the folder; an earlier run there is archived before anything of this one is written

    @staticmethod
    def open(
        run: RunFolder, seconds: float, began: float, *, plan: str = "", clock: Callable[[], float] = time.monotonic
    ) -> Budget:
        """Return the budget of a run; where it is the one that was begun in its folder, it goes on.

        Before it has a key, that is one of the same plan.
        """
        budget = Budget(run, seconds, began, clock, plan=plan, _ours=not run.plan.exists())
        if not run.budget.exists():
            return budget
        record = json.loads(run.budget.read_text(encoding="utf-8"))
        if record["seconds"] == seconds and (record["key"] or record["plan"] == plan):
            budget.before, budget.key, budget.over = record["spent"], record["key"], record["over"]
            budget.decided = [Stage(**stage) for stage in record["stages"]]
        else:
            budget._ours = False
        return budget

    def forget(self) -> None:
        """Remove what was noted before there is a key: a command that cannot be carried out has spent nothing."""
        if self._ours and not self.key:
            self.run.budget.unlink(missing_ok=True)

    def belongs_to(self, key: str) -> None:
        """Begin anew unless the stages decided so far follow from the same data and settings, whose hash is `key`."""
        if self.key == key:
            self._ours = True
        elif self.key:
            self.before, self.decided, self.over, self._ours = 0.0, [], False, False
        self.key = key

    def start_again(self) -> None:
        """Count the time from the start of this process: steps of a finished run are to run again."""
        self.before = 0.0

    @property
    def spent(self) -> float:
        return self.before + self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds until the command has to end; negative beyond."""
        return self.seconds - self.spent

    def left_for_stages(self) -> float:
        """Seconds until the last stage has to be over."""
        return self.left - self.closing

    def decide(self, stage: Stage | None) -> None:
        """Note a stage before it begins, or that there is no further one."""
        if stage is None:
            self.over = True
        else:
            self.decided.append(stage)
        self.write()

    def note(self) -> None:
        """Write the time spent, unless that was done a moment ago."""
        if self._ours and self.clock() - self._noted > NOTED:
            self.write()

    def write(self) -> None:
        self._noted, self._ours = self.clock(), True
        stages = [{"name": one.name, "step": one.step, "seconds": one.seconds} for one in self.decided]
        of_run = {"seconds": self.seconds, "key": self.key, "plan": self.plan}
        record = {**of_run, "spent": round(self.spent, 2), "over": self.over, "stages": stages}
        with whole(self.run.budget, sync=False) as beside:
            beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


# The stages of a run, decided one after the other.

# Seconds of what follows the last stage on a usual machine, fitted to runs on four sets (RESULTS.md).
CLOSING_ALONE, A_VALIDATION_IMAGE, A_HEAD = 4.5, 0.002, 0.8  # without a map of features; each head beyond the first
A_MAPPED_IMAGE, MAPPED = 0.001, 2_500  # beside its features; images of the map at most
SEVERAL = 1.5  # times as long where several networks answer
SPARE = 1.15  # ending late is worse than ending early
CLOSING_SHARE, CLOSING_MOST = 0.1, 0.25  # of a budget, at most; the second where all but the map takes so long
SLOWEST = 5.0
USED = 0.9  # of a budget, below which a run says that it is to end early
PROBE_FORWARD = 0.75  # of the seconds of a probe are features, at most
LEAST_MEASURED = 500  # images of a probe that show how fast linear models learn: of fewer, beginning takes longest


def closing_seconds(budget: float, facts: Facts, forward: float, stages: Sequence[Stage]) -> float:
    """Return the seconds of a budget that are kept for what follows these stages.

    They suffice for baselines, metrics, charts and page with a map of the features, which is smaller in a short budget.
    `forward` is how long an image takes through the backbone: where the machine is busy, all else takes longer too.
    """
    slower = min(max(forward / USUAL_FORWARD, 1.0), SLOWEST)
    alone = slower * (CLOSING_ALONE + A_VALIDATION_IMAGE * facts.validation + A_HEAD * (facts.heads - 1))
    sizes, several = sizes_that_answer(stages)
    images = min(facts.labelled + facts.unlabelled + facts.validation + facts.test, MAPPED)
    mapped = images * (relative_forward(sizes[-1]) * forward + slower * A_MAPPED_IMAGE)
    needed = SPARE * (SEVERAL if several else 1.0) * (alone + mapped)
    return min(needed, max(min(alone, CLOSING_MOST * budget), CLOSING_SHARE * budget))


def seconds_of_test(images: int, forward: float, stages: Sequence[Stage], second_cost: float = 1.0) -> float:
    """Return the seconds in which the model that these stages lead to predicts so many test images, read anew.

    It may be the mean of all fits. `forward` is how long an image takes through the backbone.
    """
    return images * forward * (passes(stages, second_cost) + READING * len(sizes_that_answer(stages)[0]))


class Staging:
    """Decides on the stages of a run, and keeps the best model so far where the run's model belongs."""

    def __init__(self, prepared: PreparedRun, choice: StepChoice, budget: Budget) -> None:
        """Measure what speeds can be, and print what is intended. Raises PlanError for several processes."""
        if prepared.context.processes.num_processes > 1:
            raise PlanError("minutes: one process decides as it goes, and this run has several. Drop minutes.")
        self.choice, self.budget, self.samples = choice, budget, prepared.samples
        self.context = replace(prepared.context, time_left=budget.left_for_stages)
        self.state, self.best = prepared.state, dict[str, float]()
        self.an_image: float | None = None  # seconds through the backbone at the default size, once these are measured
        budget.belongs_to(fingerprint(prepared.state.key, to_yaml(choice.plan_with([]))))
        if budget.over:
            finished = self.context.run.metrics.exists()  # if not, what runs again was begun by a process before
            if finished and state_if_done(self.plan.steps, prepared.state, self.context) is None:  # an edit was undone
                budget.start_again()
                given = minutes_text(budget.seconds / 60)
                self.context.progress.line(f"{given} anew: steps of the finished run begin again")
            return  # else the report is missing at most
        facts, self.speeds = _measured(choice.facts, prepared.state, self.context, sizes=SIZES)
        tests = len(labelled(prepared.samples.part("test")))
        self.facts = replace(with_second(facts, prepared.backbones, self.context.model), test=tests)
        self._print_intention()
        if not budget.decided:  # noted later: what an earlier run left in the folder is not archived yet
            budget.decided.append(self._stages()[0])

    @property
    def plan(self) -> Plan:
        """The plan with the steps decided so far."""
        return self.choice.plan_with([stage.step for stage in self.budget.decided])

    def further(self) -> StepPlan | None:
        """Return the step of the next stage, decided on by the time that is left now; None where nothing is to follow.

        What is best so far becomes the model of the run first.
        """
        if self.budget.over:
            return None
        self._hand_on()
        stage = next(iter(self._stages()), None)
        self.budget.decide(stage)
        if stage is None:
            return None
        self._keep_for_closing(self._speeds(self._records()))
        plan = self.plan
        write_text(self.context.run.plan, to_yaml(plan))
        self.context.progress.line(f"{_intended(stage, self.facts)}, {_about(self.budget.left)} are left")
        return plan.steps[-1]

    def after_epoch(self, step: str, row: Mapping[str, Any]) -> None:
        """Make the model of an epoch that of the run, where it validates better than what is handed on so far."""
        metrics = row["validation"]
        chief = headline(metrics, self.plan.metric)
        if not (row["best"] and chief) or not self._counts(StepName(step)):
            return
        if not self.best:  # this process has not decided yet: the one before it was killed
            self._hand_on(before=StepName(step).outermost.number)
        if not self._is_better(metrics, chief):
            return
        self.best, folder = dict(metrics), self.context.run.step(step)
        newest = folder.best if folder.best.spec.exists() else folder.last  # a fit may keep its last epoch alone
        replace_model(load_model(newest.path), self.context.run.model.path)

    def _counts(self, step: StepName) -> bool:
        """Return whether the epochs of a step validate on the images by which stages are compared."""
        return not step.depth or (step.outermost.kind == "repeat" and not step.is_trial)

    def _is_better(self, metrics: Mapping[str, float], chief: str) -> bool:
        before = self.best.get(chief)
        if before is None:
            return True
        return metrics[chief] > before if higher_is_better(chief) else metrics[chief] < before

    def outcomes(self) -> list[StageOutcome]:
        """Return what each stage was worth."""
        records = self._records()
        return stage_outcomes(self.budget.decided, records, self.samples, self.context.run, self.plan.metric)

    def _stages(self) -> list[Stage]:
        """Return the stages to come, by the speeds that the stages done have shown."""
        done, records = [stage.name for stage in self.budget.decided], self._records()
        speeds, stages = self._speeds(records), list[Stage]()
        models = [record.model for record in records.values()]
        unchanged = [name for number, name in enumerate(done[: len(models)]) if models[number] in models[:number]]
        for _ in range(2):  # what follows the fits takes longer with larger images and more networks
            self._keep_for_closing(speeds, stages)
            facts = replace(self.facts, passes=passes([*self.budget.decided, *stages], self.facts.second_cost))
            stages = budgeted_stages(facts, speeds, self.budget.left_for_stages(), done=done, unchanged=unchanged)
        return stages

    def _speeds(self, records: Mapping[StepName, DoneRecord]) -> Speeds:
        names = [stage.name for stage in self.budget.decided]
        fits = [self._fit_within(step.number) or record for step, record in records.items()]
        speeds = refined(self.facts, self.speeds, dict(zip(names, fits, strict=False)))
        self.an_image = speeds.forward
        return speeds

    def _fit_within(self, number: int) -> DoneRecord | None:
        """Return the record of a fit within a step, which compares it; None where there is none."""
        fit = self.context.run.step(compared_fit(number))
        return DoneRecord.read(fit) if fit.done.exists() else None

    def _keep_for_closing(self, speeds: Speeds, further: Sequence[Stage] = ()) -> None:
        stages = [*self.budget.decided, *further]
        of_test = seconds_of_test(self.facts.test, speeds.forward, stages, self.facts.second_cost)
        self.budget.closing = closing_seconds(self.budget.seconds, self.facts, speeds.forward, stages) + of_test

    def _records(self) -> dict[StepName, DoneRecord]:
        names = [StepName.at(number, next(iter(stage.step))) for number, stage in enumerate(self.budget.decided, 1)]
        run = self.context.run
        return {name: DoneRecord.read(run.step(name)) for name in names if run.step(name).done.exists()}

    def _hand_on(self, *, before: int | None = None) -> None:
        """Make the best model so far that of the run, for whoever needs one before it is finished.

        `before`: only of steps before that number; those from it on may be of other labels, and run again.
        """
        run, plan = self.context.run, self.plan
        records = {name: one for name, one in self._records().items() if before is None or name.number < before}
        choice = choose_model(records, self.samples, run, plan.take, metric=plan.metric, any_better=True)
        if choice is not None:
            record = records[StepName(choice["step"])]
            self.best = {name: metric["value"] for name, metric in (record.scores or {}).get("metrics", {}).items()}
            replace_model(load_model(run.path / (record.model or "")), run.model.path)

    def _print_intention(self) -> None:
        budget, progress = self.budget, self.context.progress
        stages = self._stages()
        begun = f", {_about(budget.before)} of them spent before" if budget.before else ""
        progress.line(f"{minutes_text(budget.seconds / 60)}{begun}. It is intended:")
        for stage in [*budget.decided, *stages]:
            progress.line(f"  {_intended(stage, self.facts)}")
        progress.line(f"  metrics and report: {_about(budget.closing)}")
        total = budget.spent + sum(stage.seconds for stage in stages) + budget.closing
        if not budget.decided and total < min(USED * budget.seconds, budget.seconds - LEAST_FIT):
            progress.line(f"  note: that is about {_about(total)}: nothing is known that gains by more of the time")
        short = sum(stage.seconds for stage in stages if stage.name == PROBE) - budget.left_for_stages()
        if short > 0:
            progress.line(
                f"  note: these minutes are too few: the probe and the report take {_about(short)} more. "
                "The probe is finished."
            )


def print_usual(prepared: PreparedRun) -> None:
    """Print what the default plan of a run takes here, by the speed of a batch of images."""
    if prepared.choice is None:
        return
    facts, speeds = _measured(prepared.choice.facts, prepared.state, prepared.context)
    stages = default_stages(facts, speeds)
    listed = ", ".join(f"{stage.name} {_about(stage.seconds)}" for stage in stages)
    total = sum(stage.seconds for stage in stages)
    prepared.context.progress.line(
        f"  intended: {listed}; about {_about(total)} before metrics and report. `--minutes` sets another budget"
    )


def _measured(facts: Facts, state: State, context: Context, *, sizes: Sequence[int] = ()) -> tuple[Facts, Speeds]:
    """Return the facts with those of the backbone, and speeds by that of one batch of images through it.

    `sizes` are those in pixels that may be asked of it besides the default one.
    """
    classifier = bare_classifier(state, context, size=DEFAULT_SIZE)
    inference = inference_for(classifier, ProbeSettings(size=DEFAULT_SIZE), context)
    forward = seconds_an_image(inference, state.samples.part("train").ids)
    refused = frozenset(size for size in sizes if not takes_size(classifier, size))
    facts = replace(facts, stages=len(stages_of_backbone(classifier.backbone)), refused=refused)
    freeze(classifier, facts.frozen)
    cached = find_boundary(classifier.backbone, size=DEFAULT_SIZE) is not None
    return replace(facts, cached=cached), Speeds.of_forward(forward, cached=cached, images=facts.labelled)


def with_second(facts: Facts, choice: BackboneChoice | None, model: ModelSettings) -> Facts:
    """Return the facts with the best backbone that `backbone: auto` compared beside the chosen one, if any.

    It reads the same stages as that of `model`, under the same head.
    """
    rows = ranked(choice) if choice is not None else []
    first = [row for row in rows if choice is not None and row["backbones"] == [choice["chosen"]]]
    others = [row for row in rows if row not in first]
    if not (first and others):
        return facts
    second = model.published(others[0]["backbones"][0]).model_dump(mode="json", exclude_defaults=True)
    return replace(facts, second=second, second_cost=others[0]["seconds"] / first[0]["seconds"])


def refined(facts: Facts, speeds: Speeds, records: Mapping[str, DoneRecord]) -> Speeds:
    """Return the speeds that the stages done have shown, the others as they were."""
    if (probe := records.get(PROBE)) is not None:
        learnt_from, computed = probe.details["images"], probe.details.get("computed", 0)
        images = computed * relative_forward(probe.details["size"])
        forward = speeds.forward
        if computed >= LEAST_MEASURED:  # else most features were there
            forward = min(forward, PROBE_FORWARD * probe.seconds / images)  # a batch was timed in a busy moment
        speeds = Speeds.of_forward(forward, cached=facts.cached, images=facts.labelled)
        if learnt_from >= LEAST_MEASURED:
            rest = probe.seconds - images * forward
            speeds = replace(speeds, linear=max(rest, 0.1) / learnt_from)
    if (upper := records.get(UPPER)) is not None:
        speeds = replace(speeds, upper=1 / max(upper.details["images_per_second"], 1.0))
    if (whole_network := records.get(WHOLE)) is not None:
        speeds = replace(speeds, training=1 / max(whole_network.details["images_per_second"], 1.0))
    return speeds


def _intended(stage: Stage, facts: Facts) -> str:
    """Return the name of a stage, its seconds, and the images that it learns from."""
    images, size = images_and_size(stage)
    count = "" if stage.name == PSEUDO_LABELS else f"{images or facts.labelled:,} images "  # those depend on the model
    return f"{stage.name}: {_about(stage.seconds)}" + (f", {count}at {size} pixels" if size else "")


def _about(seconds: float) -> str:
    return f"{max(seconds, 0):.0f} s" if seconds < 100 else f"{format_seconds(seconds)} min"
