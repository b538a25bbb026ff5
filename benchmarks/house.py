"""Sizes and shape of the source tree: the table that CONTRIBUTING.md shows.

python -m benchmarks.house [ROOT] [--json]
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import table

PACKAGE = "assay"
FOLDERS = (
    *("labels", "images", "models", "metrics", "training", "predictions", "repair", "synthesis", "steps", "plan"),
    *("run", "experiments", "scale", "export", "report", "apps", "commands"),
)
"""The folders in the order in which data flows: each imports from itself and from those before it."""
SHARED = ("errors", "files", "arrays", "messages", "settings", "progress", "postponed")
"""Root modules that every folder may import."""
SMALL = 60  # lines
AVOIDED = (
    *("told", "said", "shown", "found", "own", "place", "few", "worth", "judged", "answered", "opened", "deciding"),
    *("seen", "aim", "apart", "tried", "picture", "figure", "committee", "lopsided"),
)
"""Words that are to be no part of a name."""
WANTED: dict[str, int] = {
    "lines in src": 26_500,
    "modules with exactly one importer": 45,
    f"files under {SMALL} lines in src": 15,
    "modules in import cycles": 0,
    "imports against the direction": 0,
    "`kind ==` tests of heads": 25,
    "`dict[str, Any]`": 60,
    "lines in benchmarks": 3_400,
    "lines in tests": 21_000,
    "avoided words in names": 0,
}
"""The largest value of each row."""
Graph = Mapping[str, set[str]]


def measure(root: Path) -> dict[str, int]:
    """Return the rows of the table for the tree at `root`, named as in `WANTED`."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((root / "src").rglob("*.py"))}
    trees = {_module(path.relative_to(root / "src")): ast.parse(text) for path, text in sources.items()}
    graph = imports(trees)
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    names = [module.rpartition(".")[2] for module in trees] + [name for node in nodes for name in defined_names(node)]
    rows = (
        _lines(*sources),
        len(single_importers(graph)),
        sum(_lines(path) < SMALL for path in sources if path.name != "__init__.py"),
        sum(map(len, cycles(graph))),
        len(against_direction(graph)),
        sum(map(_is_kind_test, nodes)),
        sum(isinstance(node, ast.Subscript) and ast.unparse(node) == "dict[str, Any]" for node in nodes),
        _lines(*(root / "benchmarks").rglob("*.py")),
        _lines(*(root / "tests").rglob("*.py")),
        len(avoided(names)),
    )
    return dict(zip(WANTED, rows, strict=True))


def imports(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return the modules that each module imports, those imported inside functions too.

    `from package import name` is an import of `package.name` where that is a module. What the package itself
    imports is left out: it passes on the public names when they are first used.
    """
    targets = {name: set(_targets(tree, trees)) - {name} for name, tree in trees.items()}
    return targets | {PACKAGE: set()}


def single_importers(graph: Graph) -> list[str]:
    """Return the modules that exactly one other module imports; packages do not count as imported."""
    packages = {name.rpartition(".")[0] for name in graph}
    counts = {name: sum(name in targets for targets in graph.values()) for name in graph if name not in packages}
    return sorted(name for name, count in counts.items() if count == 1)


def cycles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    reached = {name: _reachable(name, graph) for name in graph}
    groups = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph}
    return [list(group) for group in sorted(groups) if group]


def against_direction(graph: Graph) -> list[tuple[str, str]]:
    """Return the imports (module, imported) of a folder or root module that stands later in the order."""
    pairs = [(name, target) for name, targets in graph.items() for target in targets]
    return sorted((name, target) for name, target in pairs if _level(target) > _level(name))


def defined_names(node: ast.AST) -> Iterator[str]:
    """Yield what a node names: a class, a function, an argument, a variable, an attribute, or an import as."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            yield name
        case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
            yield name
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
            yield name


def avoided(names: Sequence[str]) -> list[str]:
    """Return the names of which an avoided word, or its plural, is a part: `set_aside_few`, `FewShot`, `figures`."""
    words = {*AVOIDED, *(f"{word}s" for word in AVOIDED)}
    return [name for name in names if words.intersection(parts(name))]


def parts(name: str) -> list[str]:
    """Return the words of an identifier, in small letters: `LastFew_row` -> last, few, row."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _is_kind_test(node: ast.AST) -> bool:
    """Return whether a node compares a variable or attribute `kind` with the kind of a head."""
    match node:
        case ast.Compare(left=ast.Name(id="kind") | ast.Attribute(attr="kind"), comparators=[ast.Constant(value=kind)]):
            return kind in ("multiclass", "multilabel")
    return False


def _module(path: Path) -> str:
    names = path.with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def _targets(tree: ast.Module, modules: Mapping[str, object]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else str(node.module) for name in names)


def _reachable(start: str, graph: Graph) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def _level(module: str) -> int:
    """Return the position of a module in the order: shared ones first, the other root modules last."""
    part = module.split(".")[1] if "." in module else ""
    if module == PACKAGE or part in SHARED:
        return -1
    return FOLDERS.index(part) if part in FOLDERS else len(FOLDERS)


def _lines(*paths: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def main() -> None:
    """Print the table, or the values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path())
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    values = measure(given.root)
    rows = [(name, f"{value:,}", f"at most {WANTED[name]:,}") for name, value in values.items()]
    text = json.dumps(values) if given.json else "\n".join(table(("", "now", "wanted"), rows))
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
