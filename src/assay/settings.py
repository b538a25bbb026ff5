"""Base classes of settings, and settings that name a file or a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

Taken = Literal["weights", "backbone", "model", "member"]
"""The part of a source that is used: the weights in a file, or a run's backbone, network or whole model."""

OneOrMore = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | tuple[str, ...]
    ),
]
"""A text, or a list of texts."""


class Settings(BaseModel):
    """A part of a plan: immutable, without unknown keys or infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.require_consistent()
        return self

    def require_consistent(self) -> None:
        """Raise ValueError where settings contradict each other; called once all of them are read."""


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Source:
    """Marks a setting that names a file or a run on whose content the result of a step depends.

    The paths of all such settings are made absolute, step keys hold their content, and images that they were trained
    on leave validation and test. `words` are the values that name no path.
    """

    taken: Taken
    words: frozenset[str] = frozenset()


def sources(settings: Settings) -> Iterator[tuple[str, Source, str]]:
    """Yield the sources that a part of a plan names, at any depth: (key, mark, path as given)."""
    for name, mark, value in _fields(settings):
        if mark is not None:
            if value is not None and value not in mark.words:
                yield name, mark, value
            continue
        for inside in value if isinstance(value, tuple) else (value,):
            if isinstance(inside, Settings):
                yield from sources(inside)


def with_sources(settings: S, change: Callable[[Source, str], str]) -> S:
    """Return the settings with the path of each source changed."""
    changed = {}
    for name, mark, value in _fields(settings):
        if mark is None:
            new = _changed(value, change)
        else:
            new = value if value is None or value in mark.words else change(mark, value)
        if new is not value:
            changed[name] = new
    return settings.model_copy(update=changed) if changed else settings


def _fields(settings: Settings) -> Iterator[tuple[str, Source | None, Any]]:
    for name, field in type(settings).model_fields.items():
        mark = next((one for one in field.metadata if isinstance(one, Source)), None)
        yield name, mark, getattr(settings, name)


def _changed(value: Any, change: Callable[[Source, str], str]) -> Any:
    """Return the value with changed sources; the same object where nothing in it has changed."""
    if isinstance(value, Settings):
        return with_sources(value, change)
    if not isinstance(value, tuple):
        return value
    new = tuple(_changed(one, change) for one in value)
    return new if any(one is not old for one, old in zip(new, value, strict=True)) else value


def with_parts(value: Any, kind: type[S], change: Callable[[S], S]) -> Any:
    """Return settings, or a tuple of them, with each part of a kind changed, at any depth."""
    if isinstance(value, tuple):
        return tuple(with_parts(one, kind, change) for one in value)
    if isinstance(value, kind):
        return change(value)
    if not isinstance(value, Settings):
        return value
    parts = {name: getattr(value, name) for name in type(value).model_fields}
    new = {name: with_parts(part, kind, change) for name, part in parts.items()}
    changed = {name: part for name, part in new.items() if part is not parts[name] and part != parts[name]}
    return value.model_copy(update=changed) if changed else value


def require_rising(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return a range. Raises ValueError where it goes down."""
    if pair and pair[0] > pair[1]:
        raise ValueError(f"[{pair[0]}, {pair[1]}] must go from the lower number to the higher one")
    return pair


def _white_above_black(levels: tuple[float, float]) -> tuple[float, float]:
    if levels[0] >= levels[1]:
        raise ValueError(f"[{levels[0]:g}, {levels[1]:g}]: the value of white must be above that of black")
    return levels


BlackAndWhite = Annotated[tuple[float, float], AfterValidator(_white_above_black)]
"""The values that become black and white, of images of more than 8 bits a channel."""


# Settings that are chosen by name: `schedule: one_cycle` or `schedule: {kind: one_cycle, warm_up: 0.3}`.


class Choice(Settings):
    """One of several kinds of a setting; the bare name of the kind stands for its defaults."""


def parse_named(value: object) -> object:
    """Spell a bare name out: `flat_cos` is `{kind: flat_cos}`."""
    return {"kind": value} if isinstance(value, str) else value


def by_name(kinds: Any, parse: Callable[[object], object] = parse_named) -> BeforeValidator:
    """Return how a bare name is read; in the JSON schema those of all kinds that need no further setting."""
    settings = [kind.model_fields for kind in get_args(kinds)]
    names = [fields["kind"].default for fields in settings if not any(one.is_required() for one in fields.values())]
    return BeforeValidator(parse, json_schema_input_type=Literal[tuple(names)] | kinds)


def parse_tagged(value: object) -> object:
    """Spell a bare name out; the first key of a mapping without `kind` is its kind: `{confidence: 0.9}`."""
    value = parse_named(value)
    if isinstance(value, dict) and value and "kind" not in value:
        return {"kind": next(iter(value)), **value}
    return value
