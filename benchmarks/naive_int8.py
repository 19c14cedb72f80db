"""Quantise a naive export to int8 with the tools of ONNX Runtime and OpenVINO, as their documentation describes.

Both tools calibrate on the same inputs: the frames and states of rollouts over training clips.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from benchmarks.naive import Arrays, naive_onnxruntime
from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist
from e3d_deploy.errors import BackendUnavailable
from e3d_deploy.frames import to_frames
from e3d_deploy.onnxruntime_library import onnxruntime
from e3d_deploy.runtime.backends.protocol import initial_arrays

CONTEXT, HORIZON = 10, 10
NNCF = "pip install nncf"
"""Command that installs NNCF, which the package does not depend on; version 3.4 changes no other package."""


def training_clips(config: ModelConfig, count: int = 4) -> list[NDArray[np.float32]]:
    """Return Moving MNIST clips of the packaged training digits, each [T, C, H, W]."""
    digits, size = load_digits("train"), config.image_size
    clips = (
        moving_mnist(digits, np.random.default_rng((7, index)), length=CONTEXT + HORIZON, image_size=size)
        for index in range(count)
    )
    return [to_frames(clip, image_size=size, channels=config.channels) for clip in clips]


class Samples:
    """Inputs of a naive export's steps in rollouts over clips.

    Each iteration repeats the rollouts, because all states together would fill gigabytes of memory.
    """

    def __init__(self, file: Path, config: ModelConfig, clips: Sequence[NDArray[np.float32]], threads: int) -> None:
        self.file, self.config, self.clips, self.threads = file, config, clips, threads

    def __len__(self) -> int:
        return sum(len(clip) - 1 for clip in self.clips)

    def __iter__(self) -> Iterator[Arrays]:
        step = naive_onnxruntime(self.file, self.threads)
        for clip in self.clips:
            frame, state = clip[:1], initial_arrays(self.config, 1)
            for t in range(1, len(clip)):
                yield {contract.FRAME: frame, **state}
                prediction, state = step(frame, state)
                frame = clip[t : t + 1] if t < CONTEXT else prediction


def quantize_for_onnxruntime(source: Path, output: Path, samples: Samples) -> None:
    """Quantise convolutions and matrix products with ONNX Runtime's static quantiser (QDQ, per channel, min-max).

    The quantiser's default is every operator that it supports, which is slower and ruins the forecast (0.60 of SSIM is
    lost).
    """
    assert onnxruntime  # imports it without telemetry, before its tools import it
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.NamedTemporaryFile(suffix=".onnx") as prepared:
        quant_pre_process(source, prepared.name)
        quantize_static(prepared.name, output, Reader(), per_channel=True, op_types_to_quantize=["Conv", "MatMul"])


def quantize_for_openvino(source: Path, output: Path, samples: Samples) -> None:
    """Quantise with NNCF's defaults for post-training quantisation; write OpenVINO's XML.

    Raises:
        BackendUnavailable: NNCF is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # NNCF reports through it
    try:
        import nncf
    except ImportError as error:
        raise BackendUnavailable(f"nncf is not installed; install it with: {NNCF}") from error
    model = openvino.Core().read_model(source)
    quantized = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
    openvino.save_model(quantized, output, compress_to_fp16=False)
