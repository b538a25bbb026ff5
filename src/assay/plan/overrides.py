"""`--set KEY=VALUE`: a plan with one value changed before it is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from assay.errors import PlanError
from assay.plan.problems import known_kinds, schemas, value_text
from assay.plan.yaml_lines import Document, KeyPath, dots, read

Schema = Mapping[str, Any]


def override(document: Document, text: str, schema: Schema) -> Document:
    """Return the document with the value set that `text` (`steps.2.fit.epochs=4`) names; the value is YAML.

    List entries count from 0. Mappings missing on the way are created, and a name alone is spelt out:
    `schedule: cosine` becomes `{kind: cosine}`. Whether the keys are known is left to the check of the
    plan. `schema` is that of a whole plan. Raises PlanError.
    """
    name = f"--set {text}"
    key, equals, value = text.partition("=")
    words = [word.strip('"') if word.startswith('"') else word for word in re.findall(r'"[^"]*"|[^.]+', key.strip())]
    if not equals or not words:
        raise PlanError(f"{name}: a value is set by KEY=VALUE, for example --set steps.0.fit.epochs=4.")
    new = read(value, name, lines=False)
    path: KeyPath = ()
    for i, word in enumerate(words):
        document = _with_container(document, path, word, name=name, schema=schema)
        path = (*path, _entry(document, path, word, name=name))
        if i < len(words) - 1 and not _exists(document, path):
            document = document.put(
                path, _new_mapping(document, path, name=name, schema=schema), source=Document({}, name)
            )
    return document.put(path, new.value, source=new)


def _with_container(document: Document, path: KeyPath, word: str, *, name: str, schema: Schema) -> Document:
    """Return the document with a mapping or list at `path`, so that something can be set in it."""
    value = document.at(path)
    if isinstance(value, dict | list):
        return document
    if value is None:
        return document.put(path, {})
    if value == word and path and isinstance(path[-1], int):
        return document.put(path, {word: {}})
    if isinstance(value, str) and value in known_kinds(schema, document, path):
        return document.put(path, {"kind": value})
    raise PlanError(
        f"{name}: {dots(path)} is {value_text(value)}, and there is nothing in it to set. Set {dots(path)} itself."
    )


def _entry(document: Document, path: KeyPath, word: str, *, name: str) -> str | int:
    """Return the key or list index that a word names in what is at `path`."""
    value = document.at(path)
    if isinstance(value, list):
        if word.isdecimal() and int(word) < len(value):
            return int(word)
        there = f"its entries are 0 to {len(value) - 1}" if value else "it is empty"
        raise PlanError(f"{name}: {dots(path)} has no entry {word}; {there}.")
    is_step = len(path) > 1 and path[-2] == "steps" and len(value) == 1
    if is_step and word not in value:
        there = ", ".join(f"{i} {_kind(step)}" for i, step in enumerate(document.at(path[:-1])))
        raise PlanError(f"{name}: {dots(path)} is {next(iter(value))}, not {word}. The steps are: {there}.")
    return word


def _new_mapping(document: Document, path: KeyPath, *, name: str, schema: Schema) -> dict[str, str]:
    """Return a mapping for where the plan holds nothing, of the default kind if there are kinds."""
    if any(part.get("type") == "array" for part in schemas(schema, document, path)):
        raise PlanError(f"{name}: the plan has no {dots(path)}, and one entry begins no list. Write it in the plan.")
    known = [part.get("properties", {}).get(path[-1], {}) for part in schemas(schema, document, path[:-1])]
    kinds = [s["default"]["kind"] for s in known if isinstance(s.get("default"), dict) and "kind" in s["default"]]
    return {"kind": kinds[0]} if kinds else {}


def _exists(document: Document, path: KeyPath) -> bool:
    holder = document.at(path[:-1])
    return isinstance(holder, list) or path[-1] in holder


def _kind(step: Any) -> str:
    return str(next(iter(step), "?")) if isinstance(step, dict) else str(step)
