"""Errors that users can meet, with the exit code of each.

E3DError
├── ConfigError          invalid option or configuration                    exit 2
├── ShapeError           picture, frame or clip of the wrong shape or type  exit 2
├── ClipError            clip or video that cannot be read                  exit 2
├── CheckpointError      invalid or damaged model file                      exit 5
│   └── CheckpointMissing    model file that does not exist                 exit 2
├── BundleError          damaged, incomplete or too new bundle              exit 5
│   └── BundleMissing        bundle that does not exist                     exit 2
├── TrainingError        loss or weights that became NaN or infinite        exit 1
├── ExportError          graph that could not be made from a model          exit 1
├── EngineError          engine that could not be built or does not run     exit 1
├── CacheError           damaged engine in the engine cache                 exit 5
├── BenchmarkError       file that is not a benchmark result                exit 5
├── StreamError          invalid use of a stream, or NaN in its prediction  exit 1
├── SnapshotError        damaged or too new snapshot file                   exit 5
├── QualityError         result that exceeds its budget                     exit 3
├── BackendUnavailable   library or device that this machine lacks          exit 4
├── ResourceLimit        memory or a configured limit that is used up       exit 7
├── SourceLost           video source or peer that is unreachable or lost   exit 6
└── ServerLost           Triton servers of which none answers               exit 6
"""


class E3DError(Exception):
    """Base class of all errors. The message tells what was got, what was expected, and what to do."""

    exit_code = 1


class ConfigError(E3DError, ValueError):
    """Invalid option or configuration value."""

    exit_code = 2


class ShapeError(E3DError, ValueError):
    """Picture, frame or clip of the wrong shape, type, range or length."""

    exit_code = 2


class ClipError(E3DError):
    """Clip or video that cannot be read."""

    exit_code = 2


class CheckpointError(E3DError):
    """Model file that is damaged or was not written by e3d_deploy."""

    exit_code = 5


class CheckpointMissing(CheckpointError):
    """Model file that does not exist."""

    exit_code = 2


class BundleError(E3DError):
    """Bundle that is damaged, incomplete, or of a newer schema."""

    exit_code = 5


class BundleMissing(BundleError):
    """Bundle, or archive of a bundle, that does not exist."""

    exit_code = 2


class TrainingError(E3DError):
    """Loss or weights that became NaN or infinite in training."""


class ExportError(E3DError):
    """Graph that could not be made from a model."""


class EngineError(E3DError):
    """Engine that could not be built, or does not run."""


class CacheError(E3DError):
    """Damaged engine in the engine cache."""

    exit_code = 5


class BenchmarkError(E3DError):
    """File that is not a benchmark result."""

    exit_code = 5


class StreamError(E3DError):
    """Invalid use of a stream, or a prediction that is not finite."""


class SnapshotError(E3DError):
    """Snapshot file that is damaged, or whose schema this version does not read."""

    exit_code = 5


class QualityError(E3DError):
    """Result that differs from PyTorch by more than its budget."""

    exit_code = 3


class BackendUnavailable(E3DError):
    """Library or device that this machine lacks."""

    exit_code = 4


class ResourceLimit(E3DError):
    """Memory, or a configured limit, that is used up."""

    exit_code = 7


class SourceLost(E3DError):
    """Video source that cannot be reached or ended unexpectedly, or a peer that does not accept a video."""

    exit_code = 6


class ServerLost(E3DError):
    """Triton servers of which none can be reached, answers in time, and has the model."""

    exit_code = 6
