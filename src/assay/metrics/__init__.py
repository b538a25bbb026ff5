"""Metrics and their intervals, from arrays."""
