"""The kinds of steps a plan may name, one file each."""

from assay.steps import (
    calibrate,
    clean_labels,
    combine,
    fit,
    fit_aim,
    probe,
    pseudo_label,
    rebalance_head,
    repeat,
    synthesize,
    tune_thresholds,
)
from assay.steps.clean_settings import CleanLabelsSettings
from assay.steps.combine_settings import CombineSettings
from assay.steps.fit_settings import FitSettings
from assay.steps.plans import RepeatSettings
from assay.steps.state import Step
from assay.steps.synthesize_settings import SynthesizeSettings


def _always(settings: object) -> bool:
    return True


STEPS: dict[str, Step] = {
    "probe": Step(probe.ProbeSettings, probe.run, computes=_always),
    "fit": Step(FitSettings, fit.run, on_every_process=True, computes=_always, check=fit_aim.check),
    "clean_labels": Step(CleanLabelsSettings, clean_labels.run, on_every_process=True, relabels=True, computes=_always),
    "pseudo_label": Step(pseudo_label.PseudoLabelSettings, pseudo_label.run, relabels=True, computes=_always),
    "rebalance_head": Step(
        rebalance_head.RebalanceHeadSettings, rebalance_head.run, computes=_always, check=rebalance_head.check
    ),
    "tune_thresholds": Step(tune_thresholds.TuneThresholdsSettings, tune_thresholds.run),
    "calibrate": Step(calibrate.CalibrateSettings, calibrate.run),
    "synthesize": Step(
        SynthesizeSettings,
        synthesize.run,
        on_every_process=True,
        relabels=True,
        computes=lambda settings: settings.fit is not None,  # its own network is trained in fp32 whatever is pinned
        check=synthesize.check,
    ),
    "combine": Step(
        CombineSettings,
        combine.run,
        on_every_process=True,
        computes=lambda settings: settings.kind != "committee",  # which only joins answers that are there
        check=combine.check,
        inner=combine.inner,
    ),
    "repeat": Step(RepeatSettings, repeat.run, on_every_process=True),
}
