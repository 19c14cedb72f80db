"""Many streams that one thread steps together, opened by `Predictor.streams`; a plain `Stream` does not use this."""
