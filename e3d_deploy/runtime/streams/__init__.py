"""Many streams, stepped together in a thread: `Predictor.streams` opens them; a plain `Stream` needs none of this."""
