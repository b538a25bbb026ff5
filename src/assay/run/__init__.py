"""Runs: their folder, preparation, the runner, evaluation."""
