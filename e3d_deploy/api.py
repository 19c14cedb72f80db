"""Stable Python API: everything that the commands of `e3d` do, as functions.

from e3d_deploy import api

api.export("model.safetensors", "kth.e3d")
if api.verify("kth.e3d").passed:
    forecasts = api.predict("kth.e3d", "clip.mp4", horizon=20)

A name is imported at its first use, so `import e3d_deploy.api` is fast and needs no library. Programs on a device
import `e3d_deploy.runtime`, which has the part of these names that needs NumPy and one inference library.
docs/api.md lists the names by task and says how long they stay.
"""

# ruff: noqa: PLC0414 (an import under its own name is public for type checkers)
from importlib import import_module
from typing import TYPE_CHECKING, Any

from e3d_deploy import errors

if TYPE_CHECKING:
    from e3d_deploy.bundle.folder import Bundle as Bundle
    from e3d_deploy.bundle.pack import pack as pack
    from e3d_deploy.bundle.pack import unpack as unpack
    from e3d_deploy.bundle.sidecar import EngineSidecar as EngineSidecar
    from e3d_deploy.card import Card as Card
    from e3d_deploy.card import Decay as Decay
    from e3d_deploy.checkpoint import load_model as load_model
    from e3d_deploy.checkpoint import save_model as save_model
    from e3d_deploy.config import EngineConfig as EngineConfig
    from e3d_deploy.config import ModelConfig as ModelConfig
    from e3d_deploy.config import TrainConfig as TrainConfig
    from e3d_deploy.data.form import Form as Form
    from e3d_deploy.data.inspect import DataContents as DataContents
    from e3d_deploy.data.live.feed import Feed as Feed
    from e3d_deploy.data.live.feed import FeedOptions as FeedOptions
    from e3d_deploy.data.rate import Selection as Selection
    from e3d_deploy.diff import diff as diff
    from e3d_deploy.doctor import examine as examine
    from e3d_deploy.doctor import find_faults as find_faults
    from e3d_deploy.doctor.bundle import examine_bundle as examine_bundle
    from e3d_deploy.errors import BackendUnavailable as BackendUnavailable
    from e3d_deploy.errors import BenchmarkError as BenchmarkError
    from e3d_deploy.errors import BundleError as BundleError
    from e3d_deploy.errors import BundleMissing as BundleMissing
    from e3d_deploy.errors import CacheError as CacheError
    from e3d_deploy.errors import CheckpointError as CheckpointError
    from e3d_deploy.errors import CheckpointMissing as CheckpointMissing
    from e3d_deploy.errors import ClipError as ClipError
    from e3d_deploy.errors import ConfigError as ConfigError
    from e3d_deploy.errors import E3DError as E3DError
    from e3d_deploy.errors import EngineError as EngineError
    from e3d_deploy.errors import ExportError as ExportError
    from e3d_deploy.errors import QualityError as QualityError
    from e3d_deploy.errors import ResourceLimit as ResourceLimit
    from e3d_deploy.errors import ServerLost as ServerLost
    from e3d_deploy.errors import ShapeError as ShapeError
    from e3d_deploy.errors import SnapshotError as SnapshotError
    from e3d_deploy.errors import SourceLost as SourceLost
    from e3d_deploy.errors import StreamError as StreamError
    from e3d_deploy.errors import TrainingError as TrainingError
    from e3d_deploy.export.bundle import export as export
    from e3d_deploy.export.engines.build import build as build
    from e3d_deploy.export.engines.cache import EngineCache as EngineCache
    from e3d_deploy.export.engines.refit import refit as refit
    from e3d_deploy.fleet import Fleet as Fleet
    from e3d_deploy.importing import Imported as Imported
    from e3d_deploy.importing import compare_outputs as compare_outputs
    from e3d_deploy.importing import import_checkpoint as import_checkpoint
    from e3d_deploy.inspect import BundleContents as BundleContents
    from e3d_deploy.inspect import ModelContents as ModelContents
    from e3d_deploy.inspect import inspect as inspect
    from e3d_deploy.live.observation import Observation as Observation
    from e3d_deploy.live.watch import Watch as Watch
    from e3d_deploy.live.watch import open_feed as open_feed
    from e3d_deploy.measure.forecasts import Forecasts as Forecasts
    from e3d_deploy.measure.profile import ProfileResult as ProfileResult
    from e3d_deploy.measure.profile import profile as profile
    from e3d_deploy.measure.results import BenchmarkResult as BenchmarkResult
    from e3d_deploy.model import E3DLSTM as E3DLSTM
    from e3d_deploy.policies import Budget as Budget
    from e3d_deploy.runtime.backends.specs import register as register
    from e3d_deploy.runtime.choose import Choice as Choice
    from e3d_deploy.runtime.choose import choose as choose
    from e3d_deploy.runtime.predictor import Predictor as Predictor
    from e3d_deploy.runtime.predictor import Stream as Stream
    from e3d_deploy.runtime.predictor import load as load
    from e3d_deploy.runtime.snapshot import Snapshot as Snapshot
    from e3d_deploy.runtime.streams.streams import SlotStream as SlotStream
    from e3d_deploy.runtime.streams.streams import Streams as Streams
    from e3d_deploy.serve.offers import offers_of as offers_of
    from e3d_deploy.serve.run import serving as serving
    from e3d_deploy.serve.settings import ServerSettings as ServerSettings
    from e3d_deploy.training.sizes import configs as configs
    from e3d_deploy.training.train import Machine as Machine
    from e3d_deploy.training.train import train as train
    from e3d_deploy.triton.config import Serving as Serving
    from e3d_deploy.triton.repository import write_repository as write_repository
    from e3d_deploy.workflows.benchmark import benchmark as benchmark
    from e3d_deploy.workflows.data import inspect_data as inspect_data
    from e3d_deploy.workflows.evaluate import EvaluationReport as EvaluationReport
    from e3d_deploy.workflows.evaluate import evaluate as evaluate
    from e3d_deploy.workflows.join import join_parts as join_parts
    from e3d_deploy.workflows.opening import open_predictor as open_predictor
    from e3d_deploy.workflows.predict import predict as predict
    from e3d_deploy.workflows.streaming import StreamingReport as StreamingReport
    from e3d_deploy.workflows.streaming import evaluate_streaming as evaluate_streaming
    from e3d_deploy.workflows.verify import Verification as Verification
    from e3d_deploy.workflows.verify import verify as verify

MODULES = {
    "bundle.folder": "Bundle",
    "bundle.pack": "pack unpack",
    "bundle.sidecar": "EngineSidecar",
    "card": "Card Decay",
    "checkpoint": "load_model save_model",
    "config": "EngineConfig ModelConfig TrainConfig",
    "data.form": "Form",
    "data.inspect": "DataContents",
    "data.live.feed": "Feed FeedOptions",
    "data.rate": "Selection",
    "diff": "diff",
    "doctor": "examine find_faults",
    "doctor.bundle": "examine_bundle",
    "export.bundle": "export",
    "export.engines.build": "build",
    "export.engines.cache": "EngineCache",
    "export.engines.refit": "refit",
    "fleet": "Fleet",
    "importing": "Imported compare_outputs import_checkpoint",
    "inspect": "BundleContents ModelContents inspect",
    "live.observation": "Observation",
    "live.watch": "Watch open_feed",
    "measure.forecasts": "Forecasts",
    "measure.profile": "ProfileResult profile",
    "measure.results": "BenchmarkResult",
    "model": "E3DLSTM",
    "policies": "Budget",
    "runtime.backends.specs": "register",
    "runtime.choose": "Choice choose",
    "runtime.predictor": "Predictor Stream load",
    "runtime.snapshot": "Snapshot",
    "runtime.streams.streams": "SlotStream Streams",
    "serve.offers": "offers_of",
    "serve.run": "serving",
    "serve.settings": "ServerSettings",
    "training.sizes": "configs",
    "training.train": "Machine train",
    "triton.config": "Serving",
    "triton.repository": "write_repository",
    "workflows.benchmark": "benchmark",
    "workflows.data": "inspect_data",
    "workflows.evaluate": "EvaluationReport evaluate",
    "workflows.join": "join_parts",
    "workflows.opening": "open_predictor",
    "workflows.predict": "predict",
    "workflows.streaming": "StreamingReport evaluate_streaming",
    "workflows.verify": "Verification verify",
}
"""Names by the module that defines them, except errors."""
LAZY = {name: f"e3d_deploy.{module}" for module, names in MODULES.items() for name in names.split()} | {
    name: "e3d_deploy.errors" for name, one in vars(errors).items() if isinstance(one, type)
}
"""Module of each public name."""
__all__ = sorted(LAZY)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, and store it in this module."""
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    return __all__
