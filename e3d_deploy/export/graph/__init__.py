"""ONNX graphs of a model: the step as PyTorch exports it, the graphs composed from it, and their cost."""
