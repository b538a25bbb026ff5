"""What leaves a run: model card, ONNX, submissions."""
