"""Predictions of models: inference, test-time augmentation, out-of-fold, thresholds, calibration."""
