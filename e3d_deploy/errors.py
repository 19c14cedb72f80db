"""Every error a user can meet.

E3DError
├── ConfigError          options or a configuration that cannot work        exit 2
├── ShapeError           a picture, frame or clip of the wrong form         exit 2
├── ClipError            a clip or video that cannot be read                exit 2
├── CheckpointError      a model file that is not one                       exit 5
│   └── CheckpointMissing    the path of a model file that is not there     exit 2
├── BundleError          a bundle that is damaged, foreign or too new       exit 5
│   └── BundleMissing        the path of a bundle that is not there         exit 2
├── TrainingError        a loss or a weight that is no finite number        exit 1
├── ExportError          a graph could not be made                          exit 1
├── EngineError          an engine could not be built, or does not run      exit 1
├── CacheError           engines kept to take again, some of them damaged   exit 5
├── BenchmarkError       a record of a benchmark that is none               exit 5
├── StreamError          a stream asked for what it cannot give             exit 1
├── SnapshotError        a snapshot file that is damaged or too new         exit 5
├── QualityError         a result beyond its budget                         exit 3
├── BackendUnavailable   this machine lacks a library or a device           exit 4
├── ResourceLimit        a device or a limit that somebody set is full      exit 7
└── SourceLost           a source or peer of video out of reach, or lost     exit 6
"""


class E3DError(Exception):
    """Base class of all errors; each message says what it got, what it expected and what to do about it."""

    exit_code = 1


class ConfigError(E3DError, ValueError):
    """An option or a configuration that cannot work."""

    exit_code = 2


class ShapeError(E3DError, ValueError):
    """A picture, frame or clip of the wrong shape, type, range or length."""

    exit_code = 2


class ClipError(E3DError):
    """A clip or video that cannot be read."""

    exit_code = 2


class CheckpointError(E3DError):
    """A model file that is not one of ours, or is damaged."""

    exit_code = 5


class CheckpointMissing(CheckpointError):
    """The path of a model file that is not there."""

    exit_code = 2


class BundleError(E3DError):
    """A bundle that is damaged, incomplete, or of a newer schema."""

    exit_code = 5


class BundleMissing(BundleError):
    """The path of a bundle, or of its archive, that is not there."""

    exit_code = 2


class TrainingError(E3DError):
    """Training whose loss or weights are no finite numbers any more."""


class ExportError(E3DError):
    """A graph that could not be made from a model."""


class EngineError(E3DError):
    """An engine that could not be built, or that does not run."""


class CacheError(E3DError):
    """Damaged engines in the cache."""

    exit_code = 5


class BenchmarkError(E3DError):
    """A file that is no result of a benchmark."""

    exit_code = 5


class StreamError(E3DError):
    """A stream asked for what it cannot give, or a network whose answer is not finite."""


class SnapshotError(E3DError):
    """A file of a snapshot that is damaged, or of another schema."""

    exit_code = 5


class QualityError(E3DError):
    """A result that is further from PyTorch than its budget allows."""

    exit_code = 3


class BackendUnavailable(E3DError):
    """A library or device that this machine does not have."""

    exit_code = 4


class ResourceLimit(E3DError):
    """Memory of a device, or a limit that somebody set, that is used up."""

    exit_code = 7


class SourceLost(E3DError):
    """A video source that cannot be reached or broke off while it played, or a peer that does not take a video."""

    exit_code = 6
