"""The kinds of steps a plan may name, one file each."""

from assay.steps import calibrate, combine, fit, probe, repeat, tune_thresholds
from assay.steps.combine_settings import CombineSettings
from assay.steps.fit_settings import FitSettings
from assay.steps.plans import RepeatSettings
from assay.steps.state import Step

STEPS: dict[str, Step] = {
    "probe": Step(probe.ProbeSettings, probe.run),
    "fit": Step(FitSettings, fit.run, on_every_process=True),
    "tune_thresholds": Step(tune_thresholds.TuneThresholdsSettings, tune_thresholds.run),
    "calibrate": Step(calibrate.CalibrateSettings, calibrate.run),
    "combine": Step(CombineSettings, combine.run, on_every_process=True),
    "repeat": Step(RepeatSettings, repeat.run, on_every_process=True),
}
