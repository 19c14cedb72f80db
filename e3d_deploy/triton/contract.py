"""Names that the model configuration, the model on the server and the client share."""

VERSION = "1"
"""Version of the inputs, outputs and parameters below; a client refuses a model of another version."""

PICTURE = "picture"
"""Input: the next picture of the stream, uint8 [H, W, C]."""
MAX_HORIZON = 1000
"""Maximum horizon of a request (frames). All streams of a batch wait for the longest forecast."""
HORIZON = "horizon"
"""Optional input: number of pictures to forecast after this one, int32 [1]; needed if `forecast` is requested."""
PREDICTION = "prediction"
"""Output: prediction of the next frame, float32 [C, H, W], as `Stream.prediction`."""
FORECAST = "forecast"
"""Output: the next pictures, uint8 [horizon, H, W, C], as `Stream.predict`; computed only if it is requested."""

START, END = "START", "END"
"""Control inputs of the sequence batcher: first picture and last picture.

An error that a new sequence can mend contains the word START. The id of a sequence is a number or a text; gRPC clients
can only send numbers below 2**63."""

CONTRACT = "e3d_contract"
"""Parameter of the model configuration: `VERSION`; only the flavour `python` has it."""
IDENTITY = "e3d_bundle"
"""Parameter: identity of the bundle."""
WRITER = "e3d_version"
"""Parameter: version of e3d_deploy that wrote the repository."""
CONTEXT = "e3d_context"
"""Parameter: frames of context that the model was trained with."""
RENEWAL = "e3d_renewal"
"""Parameter: renewal of the streams."""
BACKEND, THREADS = "e3d_backend", "e3d_threads"
"""Parameters that only the model on the server reads: name of the backend, and threads of a step, empty if the library
chooses. The model reads the idle time and the number of streams from `sequence_batching` in the configuration."""
