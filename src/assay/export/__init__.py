"""Exports of a run: model card, ONNX, submissions."""
