"""Packages that the process of a command imports when something of theirs is first asked for.

timm imports torchvision and its own data loaders for a few constants and a class that is only compared with, and torch
its compiler as soon as there is an optimiser: together a third of what a command imports. After `postpone` those
packages are found as ever, and executed later. Who imports `assay` as a library is not concerned.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import FunctionType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def _disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None, wrapping: bool = True) -> Any:
    """Return a function that is not to be compiled, as `torch._dynamo.disable` does: unchanged until there is one."""
    if fn is None:
        return partial(_disable, recursive=recursive, reason=reason, wrapping=wrapping)
    options = {"recursive": recursive, "reason": reason, "wrapping": wrapping}
    if not isinstance(fn, FunctionType):
        _execute(sys.modules[COMPILER])
        return sys.modules[COMPILER].disable(fn, **options)
    disabled: list[Callable[..., Any]] = []

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        disable = sys.modules[COMPILER].disable
        if disable is not _disable and not disabled:
            disabled.append(disable(fn, **options))
        return disabled[0](*args, **kwargs) if disabled else fn(*args, **kwargs)

    return call


def _constants() -> Mapping[str, Any]:
    names = vars(import_module("timm.data.constants"))
    return {name: value for name, value in names.items() if not name.startswith("_")}


POSTPONED: dict[str, Callable[[], Mapping[str, Any]]] = {
    "torchvision": dict,
    "torchvision.models": dict,
    "torchvision.ops": dict,
    "timm.data": _constants,
    COMPILER: lambda: {"disable": _disable, "graph_break": lambda *reason: None},  # of which an optimiser step has two
}
"""Packages that wait, and what gives the names that each has from the start."""

_waiting: dict[str, Loader] = {}  # packages that were imported and not executed yet
_lock = RLock()


def _execute(package: ModuleType) -> bool:
    """Execute a package that waits, and return whether it did. What it imports finds the names that it has so far."""
    with _lock:
        loader = _waiting.pop(package.__name__, None)
        if loader is not None:
            loader.exec_module(package)
        return loader is not None


class _Late(Loader):
    """Lets a package wait. Its modules can be imported before it is executed, but for those of the compiler."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def missing(name: str) -> Any:
            if not name.startswith("__") or name == "__all__":  # others are asked of all modules, by who looks for one
                _execute(module)
            if name not in vars(module):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            return vars(module)[name]

        _waiting[module.__name__] = self._loader
        vars(module).update(POSTPONED[module.__name__](), __getattr__=missing, __loader__=self._loader)
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader


class _Imported(Loader):
    """Gives a module that was imported while it was looked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Postponing(MetaPathFinder):
    """Finds the packages of `POSTPONED` as Python does, and lets them wait."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith(f"{COMPILER}."):  # its modules import each other, and begin with the package
            executed = _execute(sys.modules[COMPILER])
            return ModuleSpec(fullname, _Imported()) if executed and fullname in sys.modules else None
        spec = PathFinder.find_spec(fullname, path, target) if fullname in POSTPONED else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Late(spec.loader)
        return spec


def postpone() -> None:
    """Let the packages of `POSTPONED` wait in this process, where they are not imported yet."""
    sys.meta_path.insert(0, _Postponing())
