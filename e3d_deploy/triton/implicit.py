"""Models whose states Triton keeps: the step graph in Triton's own ONNX Runtime or TensorRT backend.

Triton calls this implicit state. After each request, it keeps the outputs `next_NAME` as the inputs `NAME` of the next
request of the same stream.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.bundle.plans import load_plan
from e3d_deploy.contract import FRAME, NEXT, PREDICTION, Tensor
from e3d_deploy.errors import BundleError
from e3d_deploy.progress import Notify
from e3d_deploy.runtime.backends.specs import check_runs
from e3d_deploy.triton.config import TYPES, Message, Serving, Value, facts, instances, parameters, sequences, tensor
from e3d_deploy.triton.implicit_graph import with_columns

INITIAL_STATE = "initial_state"
"""Folder of a model from which Triton reads the initial values of states that are not zero."""
RENEWAL = "none"
"""Renewal of the streams: Triton keeps one state from the first frame on."""


def write_onnxruntime(folder: Path, version: Path, bundle: Bundle, serving: Serving, progress: Notify) -> Message:
    """Write the step graph with its weights, and return the configuration without the name of the model.

    Args:
        folder: folder of the model.
        version: folder of the version.

    Raises:
        BackendUnavailable: ONNX Runtime does not run the precision of the graph.
    """
    backend = "onnxruntime-cuda" if serving.on_gpu("onnxruntime") else "onnxruntime"
    entry = bundle.entry("step", backend)
    check_runs(entry.precision, backend)
    graph = bundle.onnx("step", backend)
    if bundle.dynamic_batch:
        graph = with_columns(graph, [one.name for one in bundle.states.tensors if len(one.shape) == 1])
    (version / "model.onnx").write_bytes(graph)
    for name in entry.weights:  # ONNX Runtime looks for them next to the graph
        progress(name)
        (version / name).write_bytes(bundle.held[name].data)
    _write_initial_values(folder, bundle)
    threads = {} if serving.threads is None else {"intra_op_thread_count": str(serving.threads)}
    return {
        "backend": "onnxruntime",
        "max_batch_size": serving.max_batch if bundle.dynamic_batch else 0,
        **_tensors(bundle, serving, batched=bundle.dynamic_batch),
        "instance_group": instances(serving.on_gpu("onnxruntime")),
        "parameters": parameters({**facts(bundle, RENEWAL), **threads}),
    }


def write_tensorrt(folder: Path, version: Path, bundle: Bundle, serving: Serving, progress: Notify) -> Message:
    """Write the plan of the step, and return the configuration without the name of the model.

    The model takes one stream per call, even if the plan takes more. Triton cannot store the state `written` [B] of
    several streams: the initial value of a state without axes other than the batch axis has no bytes.

    Raises:
        BundleError: the bundle has no TensorRT plan of the step for one stream, or the plan is damaged.
    """
    sidecar = bundle.manifest.engines.get("step.tensorrt")
    if sidecar is None:
        there = ", ".join(bundle.manifest.engines) or "no engines"
        raise BundleError(
            f"{bundle.path}: has no engine step.tensorrt, its manifest lists {there}, and Triton serves only plans of "
            f"TensorRT; build one: `e3d build {bundle.path} --target tensorrt`"
        )
    profile = _profile(bundle, (sidecar.parts or {}).get("profile", "fixed"))
    progress("step.tensorrt.plan")
    plan = load_plan(bundle, "step", target="tensorrt", version=sidecar.builder)
    (version / "model.plan").write_bytes(plan)
    _write_initial_values(folder, bundle)
    more: dict[str, Value] = {"profile": [str(profile)]} if profile else {}
    return {
        "backend": "tensorrt",
        "max_batch_size": 0,
        **_tensors(bundle, serving, batched=False),
        "instance_group": instances(True, **more),
        "parameters": parameters(facts(bundle, RENEWAL)),
    }


def _profile(bundle: Bundle, buckets: str) -> int:
    """Return the index of the first optimization profile of a plan that takes one stream.

    Args:
        buckets: fewest, usual and most streams of each profile, such as `1 1 1, 2 2 2`; `fixed` for a plan that takes
            a fixed number of streams.
    """
    fewest = [bucket.split()[0] for bucket in buckets.split(", ")]
    if fewest == ["fixed"]:
        return 0
    if "1" not in fewest:
        raise BundleError(
            f"{bundle.path}: its engine step.tensorrt takes {fewest[0]} or more streams at once, and Triton "
            f"calls it with one; build it with a bucket for one stream: `e3d build {bundle.path} --target tensorrt`"
        )
    return fewest.index("1")


def _tensors(bundle: Bundle, serving: Serving, *, batched: bool) -> dict[str, Value]:
    """Return the input, the output and the states of the configuration.

    Args:
        batched: the model takes batches, so that the shapes in the configuration lack the batch axis.
    """
    C, (H, W) = bundle.config.channels, bundle.config.image_size
    shape = [C, H, W] if batched else [1, C, H, W]
    states = [_state(one, _dims(one, batched=batched)) for one in bundle.states.tensors]
    return {
        "input": [tensor(FRAME, TYPES["float32"], shape)],
        "output": [tensor(PREDICTION, TYPES["float32"], shape)],
        # Neither graph takes START or END, and Triton refuses controls that the graph does not take.
        "sequence_batching": sequences(serving, state=states),
    }


def _dims(state: Tensor, *, batched: bool) -> list[int]:
    """Return the shape of a state in the configuration; `with_columns` makes `written` [B] a column [B, 1]."""
    return list(state.shape[1:]) or [1] if batched else list(state.shape)


def _state(state: Tensor, dims: Sequence[int]) -> Message:
    form: Message = {"data_type": tensor("", TYPES[state.dtype], dims)["data_type"], "dims": list(dims)}
    value: Message = {"data_file": state.name} if state.initial else {"zero_data": True}
    return {
        "input_name": state.name,
        "output_name": NEXT + state.name,
        **form,
        "initial_state": [{"name": "initial", **form, **value}],
    }


def _write_initial_values(folder: Path, bundle: Bundle) -> None:
    """Write the initial values of the states that are not zero, one file for each state of one stream."""
    values = folder / INITIAL_STATE
    for state in bundle.states.tensors:
        if state.initial:
            values.mkdir(exist_ok=True)
            array = np.full(state.shape, state.initial, np.dtype(state.dtype).newbyteorder("<"))
            (values / state.name).write_bytes(array.tobytes())
