"""TensorRT engines of a bundle: building, checking, caching, refitting and installing them."""
