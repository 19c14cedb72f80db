"""TensorRT engines of a bundle: built, proved, kept and put into it."""
