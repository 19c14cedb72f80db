"""Streams that one thread steps together, opened by `Predictor.streams`; plain streams do not use this package."""
