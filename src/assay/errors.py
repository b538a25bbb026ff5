"""Errors that a user can mend, in one tree.

    AssayError            exit code 2, a message and no traceback
    ├── DataError         images, tables, labels
    │   └── ImageError    one image that cannot be used
    ├── PlanError         a plan, or a value set from the command line
    ├── ModelError        a backbone or its weights
    ├── RunError          a run folder: in use, read-only, unfinished, unreadable
    ├── SpaceError        no room left on the disk
    └── TrainingError     too little memory, and
        └── DivergedError a loss that is not finite

A message names the thing, the rule it broke and the way out. Anything that is not an
`AssayError` is a fault of ours: it keeps its traceback and ends with exit code 1.
"""

import re

DISTRIBUTION = "assay-vision"
"""The name on the package index, where `assay` is crowded; the import and the command are `assay`."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this package."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


class AssayError(Exception):
    """An error that the user can mend."""


class DataError(AssayError):
    """Images, tables or labels that cannot be used as they are."""


class ImageError(DataError):
    """One image that cannot be used; the message is the reason, without the path."""


class PlanError(AssayError):
    """A plan that contradicts itself, or has an unknown key or value."""


class ModelError(AssayError):
    """A backbone that does not exist, or weights that are missing or do not fit."""


class RunError(AssayError):
    """A run folder that is in use, read-only, unfinished or not a run."""


class SpaceError(AssayError):
    """The disk has no room for what must be written."""


class TrainingError(AssayError):
    """Training that cannot go on: a loss that is not finite, or too little memory."""


class DivergedError(TrainingError):
    """A loss that is not finite."""


def is_want_of_memory(error: Exception) -> bool:
    """Return whether an error means that there is no more memory; that of torch's CPU allocator has words alone."""
    words = re.search(r"out of memory|not enough memory|can't allocate memory", str(error))
    return isinstance(error, MemoryError) or words is not None
