"""YAML 1.2, read and written: plain values, and for each its line and its spelling.

`3e-3` is a number and `no` is text. Keys are always text, as written. No value is ever an object of code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from assay.errors import PlanError

KeyPath = tuple[str | int, ...]
TAG = "tag:yaml.org,2002:"
PLAIN = re.compile(r"[A-Za-z_/][\w/.+-]*", re.ASCII)
NOT_TEXT_EVERYWHERE = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
WIDTH = 100
MAX_VALUES = 100_000


@dataclass(frozen=True)
class Document:
    """A value read from text: mappings, lists and scalars, with their lines."""

    value: Any
    name: str
    positions: Mapping[KeyPath, str] = field(default_factory=dict)
    """Key path -> "plan.yaml, line 7"; for an entry of a mapping, where its key stands."""
    texts: Mapping[KeyPath, str] = field(default_factory=dict)
    """Key path -> a scalar as it was written."""

    def at(self, path: KeyPath) -> Any:
        """Return the value at a path. Raises KeyError or IndexError."""
        return reduce(lambda value, key: value[key], path, self.value)

    def find(self, path: KeyPath) -> Any:
        """Return the value at a path, None where there is none."""
        try:
            return self.at(path)
        except (KeyError, IndexError, TypeError):
            return None

    def where(self, path: KeyPath) -> str:
        """Return file and line of a path, or of the nearest value around it."""
        around = (path[:end] for end in range(len(path), -1, -1))
        return next((self.positions[p] for p in around if p in self.positions), self.name)

    def part(self, path: KeyPath) -> Document:
        """Return what is at a path as a document."""
        size = len(path)
        positions = {p[size:]: line for p, line in self.positions.items() if p[:size] == path}
        texts = {p[size:]: text for p, text in self.texts.items() if p[:size] == path}
        return Document(self.at(path), self.name, positions, texts)

    def put(self, path: KeyPath, value: Any, *, source: Document | None = None) -> Document:
        """Return a document with another value at a path that exists, or whose parent does.

        Lines come from `source`, by default those of the old value.
        """
        source = source or Document(value, self.where(path))
        positions = {p: v for p, v in self.positions.items() if p[: len(path)] != path}
        texts = {p: v for p, v in self.texts.items() if p[: len(path)] != path}
        positions |= {path + p: v for p, v in source.positions.items()} | {path: source.where(())}
        texts |= {path + p: v for p, v in source.texts.items()}
        return Document(_with(self.value, path, value), self.name, positions, texts)


def read(text: str, name: str, *, lines: bool = True) -> Document:
    """Read YAML; `name` stands before the line in every message. An empty text is None.

    Raises PlanError for what is no YAML 1.2, a key set twice, or a tag.
    """
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark and lines else name
        raise PlanError(
            f"{where}: broken YAML: {error.problem or error.context}. "
            "Check the brackets, quotes, colons (a blank follows each) and indents there and just above."
        ) from error
    except YAMLError as error:
        reason = str(error).splitlines()[0]
        raise PlanError(f"{name}: broken YAML: {reason}. Save the file as plain UTF-8 text.") from error
    except RecursionError as error:
        raise PlanError(f"{name}: nested too deeply to be a plan. Check its brackets.") from error
    reader = _Reader(name, lines)
    value = None if node is None else reader.value(node, (), ())
    return Document(value, name, reader.positions, reader.texts)


def write(value: Any) -> str:
    """Return mappings, lists and scalars as YAML that `read` reads back as the same value."""
    if isinstance(value, dict) and value:
        return "\n".join(_mapping(value, 0)) + "\n"
    return flow(value) + "\n"


def flat(value: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """Return the scalars of nested mappings and lists by their key paths."""
    if not isinstance(value, dict | list):
        return {path: value}
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return {where: scalar for key, part in inside for where, scalar in flat(part, (*path, key)).items()}


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)}: {flow(inside)}" for key, inside in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
    return json.dumps(value)


class _Reader:
    """Collects lines and spellings on the way through the nodes."""

    def __init__(self, name: str, lines: bool) -> None:
        self.name, self.lines = name, lines
        self.positions: dict[KeyPath, str] = {}
        self.texts: dict[KeyPath, str] = {}

    def where(self, node: Node) -> str:
        return f"{self.name}, line {node.start_mark.line + 1}" if self.lines else self.name

    def value(self, node: Node, path: KeyPath, above: tuple[Node, ...]) -> Any:
        if any(node is parent for parent in above):
            raise PlanError(f"{self.where(node)}: an alias (*) that holds itself. Write the value out.")
        if len(self.positions) > MAX_VALUES:  # reached by aliases of aliases, which grow without bound
            raise PlanError(f"{self.name}: holds more than {MAX_VALUES:,} values. Use fewer aliases (*).")
        self.positions.setdefault(path, self.where(node))
        above = (*above, node)
        tag = node.tag or ""
        if isinstance(node, MappingNode) and tag == TAG + "map":
            return {key: self.value(v, (*path, key), above) for key, v in self.entries(node, path)}
        if isinstance(node, SequenceNode) and tag == TAG + "seq":
            return [self.value(v, (*path, i), above) for i, v in enumerate(node.value)]
        if isinstance(node, ScalarNode) and tag.startswith(TAG) and tag != TAG + "binary":
            self.texts[path] = node.value
            return _scalar(tag.removeprefix(TAG), node.value)
        raise PlanError(f"{self.where(node)}: the tag {tag} means nothing here. Remove it.")

    def entries(self, node: MappingNode, path: KeyPath) -> Iterator[tuple[str, Node]]:
        """Yield keys, as written, and the nodes of their values."""
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise PlanError(f"{self.where(key)}: a list or mapping cannot be a key. Put it after the colon.")
            here = (*path, key.value)
            if key.value in keys:
                first = self.positions[here]
                raise PlanError(f"{self.where(key)}: {dots(here)} is set twice, first at {first}. Keep one of them.")
            keys.add(key.value)
            self.positions[here] = self.where(key)
            yield key.value, value


def dots(path: KeyPath) -> str:
    """Return a key path as `--set` takes it: `steps.2.fit.epochs`; a key with a dot in it is quoted."""
    return ".".join(f'"{key}"' if "." in str(key) or key == "" else str(key) for key in path)


def _scalar(kind: str, text: str) -> Any:
    """Return the value of a plain or tagged scalar by the YAML 1.2 core schema; what fits no other type is text."""
    plain = text.replace("_", "").lower()
    try:
        if kind == "null":
            return None
        if kind == "bool" and plain in ("true", "false"):
            return plain == "true"
        if kind == "int":
            base = {"0x": 16, "0o": 8, "0b": 2}.get(plain.lstrip("+-")[:2], 10)
            return int(plain, base)
        if kind == "float":
            return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return text
    return text


def _with(value: Any, path: KeyPath, new: Any) -> Any:
    """Return a copy of nested mappings and lists with another value at one path."""
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    key: Any = path[0]
    inside = copy[key] if path[1:] else None
    copy[key] = _with(inside, path[1:], new)
    return copy


def _mapping(value: Mapping[str, Any], indent: int) -> list[str]:
    """Return the lines of a mapping, a key a line; what fits on a line stays on it."""
    lines = []
    for key, inside in value.items():
        start = " " * indent + _text(key) + ":"
        on_one_line = flow(inside)
        if not _holds_mappings(inside) and len(start) + 1 + len(on_one_line) <= WIDTH:
            lines.append(f"{start} {on_one_line}")
        elif isinstance(inside, dict) and inside:
            lines += [start, *_mapping(inside, indent + 2)]
        elif isinstance(inside, list) and inside:
            lines += [start, *_list(inside, indent + 2)]
        else:
            lines.append(f"{start} {on_one_line}")
    return lines


def _list(value: list[Any], indent: int) -> list[str]:
    lines = []
    for item in value:
        if isinstance(item, dict) and item:
            first, *rest = _mapping(item, indent + 2)
            lines += [" " * indent + "- " + first.lstrip(), *rest]
        else:
            lines.append(" " * indent + "- " + flow(item))
    return lines


def _holds_mappings(value: Any) -> bool:
    """Return whether a list of mappings (of steps) is in it: such are easier to edit with a line for each item."""
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in value)
    return isinstance(value, dict) and any(_holds_mappings(inside) for inside in value.values())


def _text(text: str) -> str:
    """Return text, unquoted where no reader of YAML could take it for anything else."""
    if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT_EVERYWHERE:
        return text
    return '"' + "".join(_character(c) for c in text) + '"'


def _character(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    if c.isprintable():
        return c
    code = ord(c)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
