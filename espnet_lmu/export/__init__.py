"""Trained models as ONNX and TorchScript files, which run without this package."""
