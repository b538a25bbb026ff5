"""Settings that are chosen by name: `schedule: one_cycle` or `schedule: {kind: one_cycle, warm_up: 0.3}`."""

from __future__ import annotations

from assay.settings import Settings


class Choice(Settings):
    """One of several kinds of a setting; the bare name of the kind stands for its defaults."""


def by_name(value: object) -> object:
    """Spell a bare name out: `flat_cos` is `{kind: flat_cos}`."""
    return {"kind": value} if isinstance(value, str) else value
