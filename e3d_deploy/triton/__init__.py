"""Model repositories for NVIDIA Triton Inference Server: writing them, and the model that its Python backend runs."""
