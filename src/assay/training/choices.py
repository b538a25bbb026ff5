"""Settings that are chosen by name: `schedule: one_cycle` or `schedule: {kind: one_cycle, warm_up: 0.3}`."""

from __future__ import annotations

from assay.settings import Settings


class Choice(Settings):
    """One of several kinds of a setting; the bare name of the kind stands for its defaults."""


def by_name(value: object) -> object:
    """Spell a bare name out: `flat_cos` is `{kind: flat_cos}`."""
    return {"kind": value} if isinstance(value, str) else value


def by_key(value: object) -> object:
    """A bare name spelt out; a mapping without `kind` is of the kind its first key names: `{confidence: 0.9}`."""
    value = by_name(value)
    if isinstance(value, dict) and value and "kind" not in value:
        return {"kind": next(iter(value)), **value}
    return value
