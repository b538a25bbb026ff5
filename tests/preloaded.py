"""What the server of forked processes imports, so that each of them begins with it (the fixture `forks`)."""

from __future__ import annotations

import os

from assay.postponed import postpone

postpone()

import cleanlab.filter  # noqa: E402, F401
import scipy.optimize  # noqa: E402, F401

import assay.run.train  # noqa: E402
import assay.scale.shard_audit  # noqa: E402, F401

os.fsync = lambda descriptor: None  # a process is killed, the machine goes on
