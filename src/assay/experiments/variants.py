"""The variants of a plan that an ablation compares: a step left out, or a value changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from assay.errors import PlanError
from assay.files import StepName, fingerprint
from assay.plan.plan import Plan, parse, to_yaml
from assay.steps import STEPS
from assay.steps.base import StepPlan
from assay.steps.ensemble import EnsembleSettings
from assay.steps.ensemble_members import MemberPlan, first_number

REPAIRS = tuple(kind for kind, step in STEPS.items() if step.repairs)

PLAIN, RIGHT = "no-repair", "no-repair-right-labels"
"""Names of variants between which the gap lies that repairs may close."""

Steps = tuple[StepPlan, ...]
Path = tuple[int, ...]
"""Indices of a step: of the outermost step that holds it in the plan, then within that, and so on."""


@dataclass(frozen=True)
class Variant:
    """A plan to be run beside the whole one."""

    name: str  # of its folder
    title: str  # in tables
    plan: Plan
    leaves_out: bool = False  # a step, so that being worse speaks for the step


def variants(plan: Plan, *, without: Sequence[str] = (), alternatives: Sequence[str] = ()) -> list[Variant]:
    """Return the plan itself, then its variants: those asked for, by default without each of its repairs in turn.

    `without` names steps (`steps.2`, `steps.3.repeat.steps.0`), `alternatives` changes (`steps.3.fit.size=128`, several
    at once with `;` between them). Raises PlanError for what is not there, and where there is nothing to compare.
    """
    paths = [_path(plan.steps, text) for text in without]
    if not (without or alternatives):
        paths = [path for path, step in walk(plan.steps) if _repairs(step)]
    if not (paths or alternatives):
        raise PlanError(
            f"the plan has no step that repairs ({', '.join(REPAIRS)}), so there is none to leave out. "
            "Name a step with --without steps.2, or a change with --alternative steps.1.fit.size=128."
        )
    left_out, changed = [_left_out(plan, path) for path in paths], [_changed(plan, text) for text in alternatives]
    # One named twice is one.
    return list({one.name: one for one in (Variant("whole", "whole plan", plan), *left_out, *changed)}.values())


def without_any_repair(plan: Plan, truth: FilePath) -> list[Variant]:
    """Return the plan without any of its repairs, and the same with the labels of a table of corrections.

    Raises PlanError where the plan has corrections of its own.
    """
    if plan.data.corrections is not None:
        raise PlanError("--truth: data.corrections settles labels already. Add the right labels to that table instead.")
    bare = plan.model_copy(update={"steps": without_repairs(plan.steps)})
    right = bare.model_copy(update={"data": plan.data.model_copy(update={"corrections": truth.absolute()})})
    return [Variant(PLAIN, "no repair", bare), Variant(RIGHT, "no repair, right labels", right)]


def walk(steps: Steps, above: Path = ()) -> Iterator[tuple[Path, StepPlan]]:
    """Yield every step with its indices, those within others too."""
    for index, step in enumerate(steps):
        yield (*above, index), step
        yield from walk(_held(step), (*above, index))


def left(steps: Steps, path: Path) -> Steps:
    """Return the steps without one of them.

    A `repeat` whose last repair was that goes with it: its rounds would be nothing but more training, and the plan
    with the step would be compared with one that trained as long on labels that never change. Where nothing
    before it makes a model, its steps stay, once. Ensembles name their members by the new numbers of steps, and lose
    those that were in what is gone.
    """
    after = _without(steps, path)
    moved = len(after) - len(steps)
    return tuple(one for step in after if (one := _renumbered(step, path[0], moved))) if moved else after


def _without(steps: Steps, path: Path) -> Steps:
    index, *inner = path
    before, step, after = steps[:index], steps[index], steps[index + 1 :]
    if not inner:
        return before + after
    held = _without(_held(step), tuple(inner))
    if step.kind == "repeat" and _any_repairs(_held(step)) and not _any_repairs(held):
        return before + (() if any(one.kind not in REPAIRS for one in before) else held) + after
    if not held:
        return before + after
    return (*before, _with(step, steps=held), *after)


def _renumbered(step: StepPlan, gone: int, moved: int) -> StepPlan | None:
    """Return a step whose members are named as after step `gone` (from 0) has gone and those behind it have moved.

    None for an ensemble of which one member is left, and for what holds nothing else.
    """
    settings: Any = step.settings
    if isinstance(settings, EnsembleSettings):
        named = [_member_after(member, gone, moved) for member in settings.members]
        members = tuple(member for member in named if member)
        enough = len(members) > 1 or len(members) == len(named)
        return _with(step, members=members) if enough else None
    if not (held := _held(step)):
        return step
    kept = tuple(one for each in held if (one := _renumbered(each, gone, moved)))
    return _with(step, steps=kept) if kept else None


def _member_after(member: MemberPlan, gone: int, moved: int) -> MemberPlan | None:
    number = first_number(member.step or "")
    if number == gone + 1:
        return None
    if member.step is None or number <= gone:
        return member
    return member.model_copy(update={"step": f"{number + moved:02d}-{member.step.partition('-')[2]}"})


def _with(step: StepPlan, **changed: Any) -> StepPlan:
    return step.model_copy(update={"settings": step.settings.model_copy(update=changed)})


def without_repairs(steps: Steps) -> Steps:
    """Return the steps without any of their repairs, those within others too, left out one after the other."""
    while path := next((path for path, step in walk(steps) if _repairs(step)), None):
        steps = left(steps, path)
    return steps


def _left_out(plan: Plan, path: Path) -> Variant:
    names = _names(plan.steps, path)
    title = f"without {'/'.join(names)}"
    steps = left(plan.steps, path)
    if not steps:
        raise PlanError(f"{title}: no step is left. Leave out another, or name a change with --alternative.")
    text = to_yaml(plan.model_copy(update={"steps": steps}))
    return Variant(f"without-{'-'.join(names)}", title, parse(text, title), leaves_out=True)


def _changed(plan: Plan, text: str) -> Variant:
    changes = [part.strip() for part in text.split(";")]
    for change in changes:
        if change.split(".")[0].split("=")[0] in ("data", "seed"):
            raise PlanError(
                f"--alternative {text}: metrics are compared on the same images and under the same seeds, so an "
                "alternative changes neither data nor seed. For seeds, give --seeds; for other data, train another run."
            )
    try:
        changed = parse(to_yaml(plan), "the plan", overrides=changes)
    except PlanError as error:
        raise PlanError(f"--alternative {text}: {error}") from error
    if changed == plan:
        raise PlanError(f"--alternative {text}: that is what the plan says already. Give another value.")
    plain = re.sub(r"[^\w.=+-]+", "_", text)
    name = plain if plain == text and len(text) <= 80 else f"{plain[:80]}-{fingerprint(text)[:6]}"
    return Variant(name, text, changed)


def _path(steps: Steps, text: str) -> Path:
    """Return the indices of a step named as in `--set`, with or without its kind."""
    keys = {_key(steps, path): path for path, _ in walk(steps)}
    wanted = text.strip()
    for name, path in keys.items():
        if wanted in (name, f"{name}.{_names(steps, path)[-1].kind}"):
            return path
    there = ", ".join(f"{name} ({_names(steps, path)[-1]})" for name, path in keys.items())
    raise PlanError(f"--without {text}: there is no such step. There are: {there}.")


def _key(steps: Steps, path: Path) -> str:
    index, *inner = path
    key = f"steps.{index}"
    return f"{key}.{steps[index].kind}.{_key(_held(steps[index]), tuple(inner))}" if inner else key


def _names(steps: Steps, path: Path) -> list[StepName]:
    """Return the names of a step and of those that hold it, outermost first, each within its own list."""
    index, *inner = path
    step = steps[index]
    return [StepName.at(index + 1, step.kind), *(_names(_held(step), tuple(inner)) if inner else [])]


def _held(step: StepPlan) -> Steps:
    held: Any = getattr(step.settings, "steps", ())
    return held if all(isinstance(one, StepPlan) for one in held) else ()


def _any_repairs(steps: Steps) -> bool:
    return any(_repairs(step) for _, step in walk(steps))


def _repairs(step: StepPlan) -> bool:
    """Return whether a step repairs anything; a list of suspects (`action: flag`) changes nothing."""
    action: Any = getattr(step.settings, "action", None)
    return step.kind in REPAIRS and getattr(action, "kind", None) != "flag"
