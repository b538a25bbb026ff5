"""Predictions of a run over HTTP: `assay serve`."""
