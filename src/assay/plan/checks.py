"""From a document to settings: every part is checked by its settings class, and all problems are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError

from assay.errors import AssayError
from assay.plan.problems import Problem, explain, located, suggestion, value_text
from assay.plan.yaml_lines import Document, KeyPath
from assay.settings import Settings
from assay.steps.base import Context, State, Step, StepPlan, StepResult, StepSettings, steps_below

StepTable = Mapping[str, type[Settings]]
"""Kind of step -> its settings."""

STEP_LIST = tuple[StepPlan, ...]
Kind = TypeVar("Kind", bound=Settings)


@dataclass(frozen=True)
class Check:
    """Checks settings in a document, and collects the problems."""

    table: StepTable
    schema: Callable[[], Mapping[str, Any]]  # of a whole plan, for suggestions of keys
    problems: list[Problem] = field(default_factory=list)

    def settings(self, kind: type[Kind], document: Document, path: KeyPath) -> Kind | None:
        """Return the settings at a path, the lists of steps in them too; None where something is wrong.

        A number where text is wanted (a class named 7) is taken as the text it was written as.
        """
        before = len(self.problems)
        value = document.at(path)
        values = value if isinstance(value, dict) else {}
        inside: dict[str, tuple[Settings, ...]] = {}
        for name, known in kind.model_fields.items():
            if name in values and known.annotation == STEP_LIST:
                # A problem within a list of steps is not reported again of the list.
                inside[name] = self.steps(document, (*path, name)) or (PLACEHOLDER,) * (len(self.problems) > before)
            elif name in values and (holder := _holder(known.annotation)) and isinstance(values[name], list):
                inside[name] = self._holders(holder, document, (*path, name))
        settings = self._validated(kind, document, path, inside)
        return settings if len(self.problems) == before else None

    def steps(self, document: Document, path: KeyPath) -> tuple[StepPlan, ...]:
        """Return the steps listed at a path, without those that have problems."""
        raw = document.at(path)
        if raw is None:
            return ()
        if not isinstance(raw, list):
            self._add(path, f"is {value_text(raw)}; it must be a list of steps, each `- kind: settings`.")
            return ()
        steps = [self._step(document, (*path, i)) for i in range(len(raw))]
        return tuple(step for step in steps if step is not None)

    def _holders(self, kind: type[Settings], document: Document, path: KeyPath) -> tuple[Settings, ...]:
        """Return a list of settings that hold steps themselves; those that have problems are empty."""
        checked = (self.settings(kind, document, (*path, i)) for i in range(len(document.at(path))))
        empty = dict.fromkeys(_lists(kind), (PLACEHOLDER,))
        return tuple(kind.model_construct(None, **empty) if one is None else one for one in checked)

    def _step(self, document: Document, path: KeyPath) -> StepPlan | None:
        """Return one step: `kind: settings`, or `kind` alone."""
        raw = document.at(path)
        if isinstance(raw, str):
            raw = {raw: None}
        if not isinstance(raw, dict) or not raw:
            known = ", ".join(self.table)
            self._add(path, f"is {value_text(raw)}; a step is `- kind: settings`, and the kinds are: {known}.")
            return None
        kind, *others = raw
        if others:
            mend = f"stands beside {kind} in one step. Begin a list entry of its own: `- {others[0]}: ...`."
            self._add((*path, others[0]), mend)
            return None
        if kind not in self.table:
            self._add((*path, kind), f"is no step; {suggestion(kind, list(self.table))}")
            return None
        if raw[kind] is None:
            document = document.put(path, {kind: {}})
        settings = self.settings(self.table[kind], document, (*path, kind))
        return None if settings is None else StepPlan(kind=kind, settings=settings)

    def _validated(
        self, kind: type[Kind], document: Document, path: KeyPath, steps: Mapping[str, tuple[Settings, ...]]
    ) -> Kind | None:
        value = document.at(path)
        try:
            return kind.model_validate({**value, **steps} if isinstance(value, dict) else value)
        except ValidationError as error:
            written = _as_written(error, document, path)
            if written is not document:
                return self._validated(kind, written, path, steps)
            self.problems.extend(explain(error, document, path, self.schema()))
        except AssayError as error:
            self._add(path, f": {error}")
        return None

    def _add(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(path, message))


def _holder(annotation: Any) -> type[Settings] | None:
    """Return the settings of which a field is a list, if these hold steps."""
    of, *more = get_args(annotation) if get_origin(annotation) is tuple else (None,)
    if more != [...] or not (isinstance(of, type) and issubclass(of, Settings)):
        return None
    return of if _lists(of) else None


def _lists(kind: type[Settings]) -> list[str]:
    """Return the names of the settings that are lists of steps."""
    return [name for name, known in kind.model_fields.items() if known.annotation == STEP_LIST]


# Steps that can change nothing, which a plan must not have.


def without_effect(
    steps: Sequence[StepPlan], path: KeyPath, *, learnt_later: bool = False, model_before: bool = False
) -> Iterator[Problem]:
    """Yield a problem for each step of a list that cannot have an effect where it stands.

    `learnt_later`: whether a step after the list learns from labels; `model_before`: whether one before made a model.
    """
    for number, step in enumerate(steps):
        at, after = (*path, number, step.kind), steps[number + 1 :]
        kind, inner = _kind(step), getattr(step.settings, "steps", ())
        learnt = learnt_later or any(map(learns, after))
        if kind.edits(step.settings) and not learnt:
            instead = ", or set action: flag, which only lists them" if step.kind == "clean_labels" else ""
            yield Problem(
                at, f"changes labels, and no step after it learns from them. Put a probe or a fit after it{instead}."
            )
        if kind.needs_model and not model_before:
            yield Problem(at, ": there is no model yet. Put a probe or a fit before it.")
        elif step.kind in RULES and (other := _replaced_by(after)):
            yield Problem(
                at, f"changes a model that the {other} after it replaces by a new one. Put it after the {other}."
            )
        if inner:
            again = getattr(step.settings, "times", 1) > 1
            if again and not any(learns(one) or _kind(one).edits(one.settings) for one in inner):
                yield Problem(
                    at, "repeats steps that neither train nor change labels: every round is the same. Drop it."
                )
            of_round = again and any(map(learns, inner))
            judge = kind.repairs  # which begins anew, and hands on no model
            yield from without_effect(
                inner,
                (*at, "steps"),
                learnt_later=learnt or of_round or judge,
                model_before=not judge and (model_before or of_round),
            )
        model_before = model_before or learns(step) or step.kind == "ensemble"


RULES = ("calibrate", "tune_thresholds", "tune_views")
"""Steps that change how a model decides, and nothing that a later fit goes on from."""


def learns(step: StepPlan) -> bool:
    """Return whether a step, or one that it holds, learns from the labels so far and hands on what it learnt."""
    kind = _kind(step)
    return kind.learns or (not kind.repairs and any(_kind(one).learns for one in steps_below(step.settings)))


def _replaced_by(after: Sequence[StepPlan]) -> str | None:
    """Return the kind of the step that makes a new model before any asks the one so far; None where none does."""
    asking = next((one.kind for one in after if one.kind != "clean_labels"), None)
    return asking if asking in ("probe", "fit") else None


def _kind(step: StepPlan) -> Step:
    from assay.steps import STEPS

    kind = STEPS.get(step.kind)
    # The table of a check may have others under the same names, which may do anything.
    known = kind is not None and isinstance(step.settings, kind.settings)
    return kind if kind and known else Step(StepSettings, _run, learns=True, edits=_edits_nothing)


def _run(settings: Settings, state: State, context: Context) -> StepResult:
    return StepResult(None)


def _edits_nothing(settings: Settings) -> bool:
    return False


PLACEHOLDER = StepPlan(kind="", settings=Settings())


def _as_written(error: ValidationError, document: Document, path: KeyPath) -> Document:
    """Return the document with scalars as they were written wherever the settings want text or a path."""
    for detail in error.errors(include_url=False):
        where = located(document, path, detail)
        if detail["type"] in ("string_type", "path_type") and isinstance(document.find(where), int | float):
            document = document.put(where, document.texts.get(where, str(document.at(where))))
    return document
