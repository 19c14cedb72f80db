"""Model configurations, parsed with the messages of Triton's client."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


def config_of(model: Path) -> model_config_pb2.ModelConfig:
    """Return the configuration of a model in a repository."""
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
