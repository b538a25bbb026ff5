"""Problems of a plan as messages: the key, the rule it broke, the way out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import zip_longest
from typing import Any

from pydantic import ValidationError

from assay.errors import PlanError
from assay.plan.yaml_lines import Document, KeyPath, dots

Detail = Mapping[str, Any]
"""One error of pydantic: type, loc, msg, input, ctx."""

MAX_PROBLEMS = 5  # in a message
EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "dataclass_type": "a mapping (key: value)",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
"""pydantic's type of an error -> what the value must be."""

WRONG_TYPE = frozenset(kind for kind in EXPECTED if kind.endswith(("_type", "_parsing", "_required", "literal_error")))


@dataclass(frozen=True)
class Problem:
    """A key path and a message, the rest of a sentence that begins with the path."""

    path: KeyPath
    message: str


def refuse(document: Document, problems: Sequence[Problem]) -> PlanError:
    """Return one error for all problems, in the order of the document, at most five of them spelt out."""
    order = {path: position for position, path in enumerate(document.positions)}
    ranked = sorted(problems, key=lambda problem: _rank(problem.path, order))
    lines = [f"{document.where(p.path)}: {_sentence(p)}" for p in ranked[:MAX_PROBLEMS]]
    if len(ranked) > MAX_PROBLEMS:
        lines.append(f"and {len(ranked) - MAX_PROBLEMS} more.")
    return PlanError("\n".join(lines))


def explain(error: ValidationError, document: Document, path: KeyPath, schema: Mapping[str, Any]) -> list[Problem]:
    """Return the problems that pydantic reports of the part of a document at `path`.

    `schema` is the JSON schema of a whole plan: it knows which keys are known where. The several complaints
    about one value that fits no branch of a union become one problem.
    """
    grouped: dict[KeyPath, list[Detail]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(located(document, path, detail), []).append(detail)
    problems = []
    for where, details in grouped.items():
        deeper = any(other != where and other[: len(where)] == where for other in grouped)
        # Of a mapping that fits one branch of a union but for a key within, that key alone is reported.
        kept = [d for d in details if not (deeper and d["type"] in WRONG_TYPE)]
        problems += [Problem(where, message) for message in _messages(kept, document, where, schema)]
    return problems


def located(document: Document, path: KeyPath, detail: Detail) -> KeyPath:
    """Return the key path of an error in the part of a document at `path`.

    pydantic's `loc` also names the branches of unions; these are passed over. One named like a key beside the
    next, as in `{relabel: 0.8, otherwise: drop}`, is recognised by a value that has nothing within.
    """
    value, keys = document.find(path), list(path)
    for key, after in zip_longest(detail["loc"], detail["loc"][1:]):
        inside = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        branch = after in inside and not isinstance(inside.get(key), dict | list)
        if key in inside and not branch:
            value = inside[key]
            keys.append(key)
    if detail["type"] == "missing":
        keys.append(detail["loc"][-1])
    return tuple(keys)


def known_keys(schema: Mapping[str, Any], document: Document, path: KeyPath) -> list[str]:
    """Return the keys that a mapping at this path may have."""
    keys = (key for part in schemas(schema, document, path) for key in part.get("properties", {}))
    return list(dict.fromkeys(keys))


def known_kinds(schema: Mapping[str, Any], document: Document, path: KeyPath) -> list[str]:
    """Return the kinds that a mapping at this path may have."""
    kinds = (part.get("properties", {}).get("kind", {}) for part in schemas(schema, document, path))
    return [kind["const"] for kind in kinds if "const" in kind]


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return `did you mean epochs?`, or the known words; of `size:64` that a blank follows the colon."""
    key, colon, value = word.partition(":")
    if colon and key in known:
        return f"a blank follows the colon: `{key}: {value}`."
    if near := get_close_matches(word, known, n=1, cutoff=0.6):
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(known) or 'no key at all'}."


def value_text(value: Any) -> str:
    """Return a value as messages show it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _sentence(problem: Problem) -> str:
    gap = "" if problem.message.startswith(":") else " "
    return f"{dots(problem.path) or 'the plan'}{gap}{problem.message}"


def _messages(details: Sequence[Detail], document: Document, path: KeyPath, schema: Mapping[str, Any]) -> Iterator[str]:
    wanted = list(dict.fromkeys(_wanted(d) for d in details if d["type"] in EXPECTED))
    if wanted:
        value = details[0]["input"]
        tip = _tip(value, [d["ctx"]["expected"] for d in details if d["type"] == "literal_error"])
        yield f"is {value_text(value)}; it must be {' or '.join(wanted)}{tip}."
    others = [d for d in details if d["type"] not in EXPECTED]
    yield from dict.fromkeys(_other(d, document, path, schema) for d in others)


def _other(detail: Detail, document: Document, path: KeyPath, schema: Mapping[str, Any]) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            text = f"is not known; {suggestion(str(path[-1]), known_keys(schema, document, path[:-1]))}"
        case "missing":
            text = f"is missing; add it{_about(schema, document, path)}."
        case "too_short":
            text = f"has {context['actual_length']} entries; it must have at least {context['min_length']}."
        case "too_long":
            text = f"has {context['actual_length']} entries; it must have at most {context['max_length']}."
        case "union_tag_invalid":
            kinds = context["expected_tags"].replace("'", "").split(", ")
            text = f"is {value_text(context['tag'])}; {suggestion(str(context['tag']), kinds)}"
        case "union_tag_not_found":
            text = f"has no kind; add `kind:` with one of {', '.join(known_kinds(schema, document, path))}."
        case "value_error":
            text = f": {context['error']}."
        case _:
            text = f"is {value_text(detail['input'])}; {detail['msg'][0].lower()}{detail['msg'][1:]}."
    return text


def _wanted(detail: Detail) -> str:
    context = detail.get("ctx", {})
    numbers = {name: f"{value:g}" for name, value in context.items() if isinstance(value, float)}
    return EXPECTED[detail["type"]].format(**{**context, **numbers})


def _about(schema: Mapping[str, Any], document: Document, path: KeyPath) -> str:
    """Return the description of a key in the schema, in brackets."""
    properties = (part.get("properties", {}).get(path[-1], {}) for part in schemas(schema, document, path[:-1]))
    text = next((known["description"] for known in properties if "description" in known), "")
    return f" ({text[0].lower()}{text[1:].rstrip('.')})" if text else ""


def _tip(value: Any, expected: Sequence[str]) -> str:
    words = [word.strip(" '") for text in expected for word in text.replace(" or ", ", ").split(",")]
    near = get_close_matches(str(value), words, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def schemas(schema: Mapping[str, Any], document: Document, path: KeyPath) -> list[Mapping[str, Any]]:
    """Return the parts of a whole plan's schema for the value at a path: one for each thing it may be."""
    here = [schema]
    for end in range(len(path) + 1):
        branches = [branch for part in here for branch in _branches(part, schema)]
        here = _fitting(branches, document.find(path[:end]))
        if end < len(path):
            here = [inside for part in here for inside in _inside(part, path[end])]
    return here


def _branches(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the alternatives that a schema allows, references followed."""
    if "$ref" in part:
        yield from _branches(schema["$defs"][part["$ref"].removeprefix("#/$defs/")], schema)
    elif several := [*part.get("anyOf", ()), *part.get("oneOf", ()), *part.get("allOf", ())]:
        for branch in several:
            yield from _branches(branch, schema)
    else:
        yield part


def _fitting(branches: list[Mapping[str, Any]], value: Any) -> list[Mapping[str, Any]]:
    """Return the alternatives of the kind that the value names."""
    kind = value.get("kind") if isinstance(value, dict) else value if isinstance(value, str) else None
    named = [b for b in branches if kind is not None and b.get("properties", {}).get("kind", {}).get("const") == kind]
    return named or branches


def _inside(part: Mapping[str, Any], key: str | int) -> Iterator[Mapping[str, Any]]:
    if isinstance(key, int):
        one_each = part.get("prefixItems", ())
        inside = one_each[key] if key < len(one_each) else part.get("items")
    else:
        inside = part.get("properties", {}).get(key, part.get("additionalProperties"))
    if isinstance(inside, Mapping):
        yield inside


def _rank(path: KeyPath, order: Mapping[KeyPath, int]) -> tuple[int, int]:
    around = (path[:end] for end in range(len(path), -1, -1))
    return next((order[p] for p in around if p in order), 0), len(path)
