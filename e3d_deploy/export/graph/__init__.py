"""ONNX graphs of a model: the step as PyTorch exports it, what is composed from it, and its cost."""
