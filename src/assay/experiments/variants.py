"""A plan with a step left out or a value changed: what an ablation compares it with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from assay.errors import PlanError
from assay.files import fingerprint
from assay.plan.plan import Plan, parse, to_yaml
from assay.steps import STEPS
from assay.steps.base import StepPlan

REPAIRS = tuple(kind for kind, step in STEPS.items() if step.repairs)

Steps = tuple[StepPlan, ...]
Path = tuple[int, ...]
"""Positions of a step: in the plan, then in the list of the step that holds it, and so on."""


@dataclass(frozen=True)
class Variant:
    """A plan to be carried out beside the whole one."""

    name: str  # of its folder
    said: str  # to people
    plan: Plan
    leaves_out: bool = False  # a step, so that being worse speaks for the step


def variants(plan: Plan, *, without: Sequence[str] = (), alternatives: Sequence[str] = ()) -> list[Variant]:
    """The plan itself, then each variant: those asked for, or, where none is, without each of its repairs in turn.

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
    found = [Variant("whole", "whole plan", plan)]
    found += [_left_out(plan, path) for path in paths]
    found += [_changed(plan, text) for text in alternatives]
    return list({variant.name: variant for variant in found}.values())  # what was named twice is one


def walk(steps: Steps, above: Path = ()) -> Iterator[tuple[Path, StepPlan]]:
    """Every step with its positions, those within others too."""
    for place, step in enumerate(steps):
        yield (*above, place), step
        yield from walk(_held(step), (*above, place))


def left(steps: Steps, path: Path) -> Steps:
    """The steps without one of them.

    A `repeat` whose last repair was that goes with it: its rounds would be nothing but more training, and the plan
    with the step would be compared with one that trained as long on labels that never change. Where nothing
    before it makes a model, its steps stay, once.
    """
    place, *inner = path
    before, step, after = steps[:place], steps[place], steps[place + 1 :]
    if not inner:
        return before + after
    held = left(_held(step), tuple(inner))
    if step.kind == "repeat" and _any_repairs(_held(step)) and not _any_repairs(held):
        return before + (() if any(one.kind not in REPAIRS for one in before) else held) + after
    if not held:
        return before + after
    changed = step.model_copy(update={"settings": step.settings.model_copy(update={"steps": held})})
    return (*before, changed, *after)


def without_repairs(steps: Steps) -> Steps:
    """The steps without any of their repairs, those within others too, left out one after the other."""
    while path := next((path for path, step in walk(steps) if _repairs(step)), None):
        steps = left(steps, path)
    return steps


def _left_out(plan: Plan, path: Path) -> Variant:
    names = _names(plan.steps, path)
    said = f"without {'/'.join(names)}"
    steps = left(plan.steps, path)
    if not steps:
        raise PlanError(f"{said}: no step is left. Leave out another, or name a change with --alternative.")
    text = to_yaml(plan.model_copy(update={"steps": steps}))
    return Variant(f"without-{'-'.join(names)}", said, parse(text, said), leaves_out=True)


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
    """The positions of a step that is named as `--set` would."""
    spelt = {_spelt(steps, path): path for path, _ in walk(steps)}
    wanted = text.strip()
    for name, path in spelt.items():
        if wanted in (name, f"{name}.{_names(steps, path)[-1].partition('-')[2]}"):
            return path
    there = ", ".join(f"{name} ({_names(steps, path)[-1]})" for name, path in spelt.items())
    raise PlanError(f"--without {text}: there is no such step. There are: {there}.")


def _spelt(steps: Steps, path: Path) -> str:
    place, *inner = path
    own = f"steps.{place}"
    return f"{own}.{steps[place].kind}.{_spelt(_held(steps[place]), tuple(inner))}" if inner else own


def _names(steps: Steps, path: Path) -> list[str]:
    """The names that the folders of a step, and of those that hold it, have in a run."""
    place, *inner = path
    step = steps[place]
    return [f"{place + 1:02d}-{step.kind}", *(_names(_held(step), tuple(inner)) if inner else [])]


def _held(step: StepPlan) -> Steps:
    held: Any = getattr(step.settings, "steps", ())
    return held if all(isinstance(one, StepPlan) for one in held) else ()


def _any_repairs(steps: Steps) -> bool:
    return any(_repairs(step) for _, step in walk(steps))


def _repairs(step: StepPlan) -> bool:
    """Whether a step mends anything; a list of suspects (`action: flag`) changes nothing, and is worth none."""
    action: Any = getattr(step.settings, "action", None)
    return step.kind in REPAIRS and getattr(action, "kind", None) != "flag"
