"""The kinds of steps a plan may name, one file each."""

from assay.steps import fit, probe, repeat
from assay.steps.plans import RepeatSettings
from assay.steps.state import Step

STEPS: dict[str, Step] = {
    "probe": Step(probe.ProbeSettings, probe.run),
    "fit": Step(fit.FitSettings, fit.run, on_every_process=True),
    "repeat": Step(RepeatSettings, repeat.run, on_every_process=True),
}
