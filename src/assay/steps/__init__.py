"""The kinds of steps a plan may name, one file each."""

from assay.steps import (
    calibrate,
    clean_labels,
    ensemble,
    fit,
    fit_settings,
    probe,
    pseudo_label,
    rebalance_head,
    repeat,
    synthesize,
    tune_thresholds,
)
from assay.steps.base import RepeatSettings, Step
from assay.steps.clean_labels import CleanLabelsSettings
from assay.steps.ensemble_settings import EnsembleSettings
from assay.steps.fit_settings import FitSettings
from assay.steps.synthesize import SynthesizeSettings


def _always(settings: object) -> bool:
    return True


STEPS: dict[str, Step] = {
    "probe": Step(probe.ProbeSettings, probe.run, computes=_always),
    "fit": Step(FitSettings, fit.run, on_every_process=True, computes=_always, check=fit_settings.check_fit),
    "clean_labels": Step(
        CleanLabelsSettings,
        clean_labels.run,
        on_every_process=True,
        relabels=True,
        computes=_always,
        holds=clean_labels.holds,
    ),
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
        holds=synthesize.holds,
    ),
    "ensemble": Step(
        EnsembleSettings,
        ensemble.run,
        on_every_process=True,
        computes=lambda settings: settings.kind != "average",  # which only joins answers that are there
        check=ensemble.check,
        inner=ensemble.inner,
        holds=ensemble.holds,
    ),
    "repeat": Step(RepeatSettings, repeat.run, on_every_process=True, holds=repeat.holds),
}
