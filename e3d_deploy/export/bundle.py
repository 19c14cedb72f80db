"""Write a bundle: graphs that share the weights of the model file, a reference clip, a manifest."""

import copy
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto

from e3d_deploy import __version__, checkpoint, contract, frames
from e3d_deploy.bundle.folder import MODEL, REFERENCE, SCHEMA, WEIGHTS, YARDSTICK, new_bundle, write_manifest
from e3d_deploy.config import ModelConfig
from e3d_deploy.data.clips import PEDESTRIANS, read_clips
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist, suits
from e3d_deploy.errors import ConfigError, ExportError
from e3d_deploy.export.graph.compose import clip_graph, rollout_graph, step_graph
from e3d_deploy.export.graph.to_onnx import export_core, one_sided_convolutions
from e3d_deploy.export.precision.types import LOW, stamp
from e3d_deploy.files import sha256
from e3d_deploy.model import E3DLSTM
from e3d_deploy.policies import EXACT, POLICIES, Budget, budget_for
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.backends.rollout import rollout
from e3d_deploy.runtime.backends.specs import BACKENDS, check_runs, export_targets, shared_policies
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.step import TARGETS
from e3d_deploy.tensors import header_bytes, read_header

KINDS = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "I8": TensorProto.INT8,
    "F8_E4M3": TensorProto.FLOAT8E4M3FN,
}
"""ONNX types of weights, by their names in safetensors."""


def export(
    model_path: Path,
    output: Path,
    *,
    context_length: int | None = None,
    horizon: int | None = None,
    batch: int | None = None,
    optimize: str | None = None,
    precision: str = "fp32",
    budget: Budget | None = None,
    exclude: Sequence[str] = (),
    target: str | None = None,
    calibration: Path | None = None,
    reference: Path | None = None,
    overwrite: bool = False,
    progress: Notify = silent,
) -> Path:
    """Export the model in `model_path` as the bundle `output`; return its path.

    The folder appears when it is whole, not before.

    Args:
        context_length, horizon: frames that the clip graph takes and gives; the rollout graph gives as many. None:
            those of training where the model's card has them, else 10.
        batch: streams that the graphs run at once; None for any number.
        optimize: set of rewrites, of `step.TARGETS`; without it `gpu` for TensorRT, else `cpu`, which is also
            what ONNX Runtime needs on a GPU.
        precision: of `policies.POLICIES`, or `auto` for the cheapest that keeps its budget.
        budget: in the place of what each policy may cost.
        exclude: layers that stay in float32, by their names in `types.products`; more do where the budget wants it.
        target: backend that has to run it, of `specs.export_targets`; without it `auto` takes what runs everywhere.
        calibration: clips to learn ranges from and to measure the drift on; else some of the package's.
        reference: a clip to record PyTorch's answer to; else one of Moving MNIST or, where that does
            not fit the model, one of the package's videos.
        overwrite: replace a bundle that is there.
        progress: called with the name of each phase.

    Raises:
        CheckpointError: `model_path` is not a model.
        ConfigError: a length below 1, `output` is there already, a policy, layer or target that is not known, or
            rewrites that the target does not run.
        BackendUnavailable: the target does not run the policy.
        QualityError: no policy keeps its budget.
        ClipError, ShapeError: the reference clip cannot be used.
        ExportError: PyTorch could not export the model, or the model answers with NaN.
    """
    for name, value in (("context", context_length), ("horizon", horizon), ("batch", batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: got {value}, expected 1 or more")
    targets = export_targets()
    if target is not None and target not in targets:
        raise ConfigError(f"target: got {target!r}, expected one of {', '.join(targets)}")
    spec = None if target is None else BACKENDS[target]
    suited_for = optimize or (spec and spec.rewrites) or "cpu"
    if suited_for not in TARGETS:
        raise ConfigError(f"optimize: got {optimize!r}, expected one of {', '.join(TARGETS)}")
    if precision != "auto" and precision not in POLICIES:
        raise ConfigError(f"precision: got {precision!r}, expected auto or one of {', '.join(POLICIES)}")
    if exclude and precision in ("fp32", "tf32"):
        raise ConfigError(f"exclude: {precision} has no low type that a layer could be kept from")
    if target is not None and precision != "auto":
        check_runs(precision, target)
    model, card = checkpoint.load(model_path), checkpoint.read_card(model_path)
    config = model.config
    known_context, known_horizon = card.lengths()
    context_length, horizon = context_length or known_context, horizon or known_horizon
    clip = reference_clip(config, context_length + horizon, reference)

    output.resolve().parent.mkdir(parents=True, exist_ok=True)
    with new_bundle(output, overwrite=overwrite) as folder:
        checkpoint.save(model, folder / MODEL)  # float32, which the graphs share; the file may hold float16
        progress("recording what PyTorch computes")
        recorded, rounding = record(model, clip, context_length, batch or 1)
        np.savez(folder / REFERENCE, **recorded)  # type: ignore[arg-type]
        progress("exporting one step")
        exported = export_core(model, batch, TARGETS[suited_for])
        if spec and not spec.one_sided_pads and (found := one_sided_convolutions(exported)):
            raise ConfigError(
                f"optimize: {suited_for} leaves {len(found)} convolutions with pads on one side alone, which "
                f"{target} does not run; leave --optimize out"
            )
        core, chosen = exported, {"policy": precision, "exclude": [], "budget": EXACT.to_dict()}
        if precision != "fp32" or budget is not None:
            from e3d_deploy.export.precision.choose import choose_precision  # it needs ONNX Runtime

            policies = shared_policies(targets if target is None else [target]) if precision == "auto" else [precision]
            core, chosen = choose_precision(
                model,
                exported,
                clip,
                budgets={policy: budget or budget_for(policy, rounding["predictions"]) for policy in policies},
                batch=batch,
                context_length=context_length,
                exclude=exclude,
                calibration=calibration,
                progress=progress,
            )
        policy = str(chosen["policy"])
        progress("composing step.onnx")
        graphs = {"step": step_graph(core, config, batch)}
        progress("composing rollout.onnx")
        graphs["rollout"] = rollout_graph(core, config, batch, horizon=horizon)
        progress("composing clip.onnx")
        graphs["clip"] = clip_graph(core, config, batch, context_length=context_length, horizon=horizon)
        if policy in LOW:
            write_weights(core, folder / WEIGHTS)
            yardstick = step_graph(exported, config, batch)
            share_weights(yardstick, folder / MODEL)
            onnx.save(yardstick, folder / YARDSTICK)
        for name, graph in graphs.items():
            stamp(graph, policy)
            for weights in (MODEL, WEIGHTS) if policy in LOW else (MODEL,):
                share_weights(graph, folder / weights)
            onnx.save(graph, folder / f"{name}.onnx")
        manifest = {
            "schema": SCHEMA,
            "name": output.resolve().name.removesuffix(".e3d"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "producer": {"e3d_deploy": __version__, "torch": torch.__version__, "onnx": version("onnx")},
            "config": config.to_dict(),
            "card": card.to_dict(),
            "context_length": context_length,
            "horizon": horizon,
            "batch": batch or 1,
            "dynamic_batch": batch is None,
            "history": {
                "slots": config.history_length,
                "exact_for_steps": config.history_length,
                "then": f"the last {config.history_length} cells",
            },
            "preprocessing": {
                "frames": "float32 [B, C, H, W] in [0, 1]; uint8 pictures divided by 255",
                "patching": "inside the graphs",
                "output": "not clipped",
            },
            "rounding": rounding,
            "precision": chosen,
            "graphs": {name: describe(graph, policy) for name, graph in graphs.items()},
            "verification": {},
            "engines": {},
            "files": {file.name: sha256(file) for file in sorted(folder.iterdir())},
        }
        write_manifest(folder, manifest)
    return output


def reference_clip(config: ModelConfig, length: int, path: Path | None) -> NDArray[np.float32]:
    """A real clip for a model: of `path`, else one that suits it; float32 [T, C, H, W].

    Raises:
        ClipError, ShapeError: the clip in `path` is too short or does not fit.
    """
    if path is None and suits(config.image_size, config.channels):
        rng = np.random.default_rng(0)
        pictures: NDArray[Any] = moving_mnist(load_digits("test"), rng, length=length, image_size=config.image_size)
    else:
        source = path or PEDESTRIANS
        pictures = read_clips(source, image_size=config.image_size, channels=config.channels, most=length).frames[0]
        if len(pictures) < length:
            raise ConfigError(f"{source}: has {len(pictures)} frames, context and horizon need {length}")
    return frames.to_frames(pictures, image_size=config.image_size, channels=config.channels, name="reference")


def record(
    model: E3DLSTM, clip: NDArray[np.float32], context_length: int, batch: int
) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Record what PyTorch predicts for a clip, and how far its float32 is from its float64.

    Returns:
        The arrays of reference.npz (docs/bundle.md), and the largest differences of `predictions` and `states`.
    """
    predictions, states = _rollout(model, clip, context_length, batch)
    if not np.isfinite(predictions).all():
        raise ExportError("the model itself answers the reference clip with NaN or infinity; train it again")
    exact_predictions, exact_states = _rollout(copy.deepcopy(model).double(), clip, context_length, batch)
    rounding = {
        "predictions": float(np.abs(predictions - exact_predictions).max()),
        "states": max(float(np.abs(states[name] - exact).max()) for name, exact in exact_states.items()),
    }
    recorded = {contract.NEXT + name: value for name, value in states.items()}
    return {"frames": clip, "predictions": predictions[:, 0], **recorded}, rounding


def _rollout(
    model: E3DLSTM, clip: NDArray[np.float32], context_length: int, batch: int
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Predictions [T − 1, B, C, H, W] and the states after the last of them."""
    backend = TorchBackend(model, batch=batch)
    context = np.repeat(clip[None, :context_length], batch, axis=0)
    answers = list(rollout(backend, context, len(clip) - 1))
    return np.stack([prediction for prediction, _ in answers]), backend.to_arrays(answers[-1][1])


def describe(graph: ModelProto, policy: str = "fp32") -> dict[str, Any]:
    """A graph's entry in the manifest."""

    def tensors(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]

    return {
        "file": f"{graph.graph.name}.onnx",
        "precision": policy,
        "weights": sorted({place.value for one in graph.graph.initializer for place in one.external_data[:1]}),
        "nodes": len(graph.graph.node),
        "opset": graph.opset_import[0].version,
        "inputs": tensors(graph.graph.input),
        "outputs": tensors(graph.graph.output),
    }


def write_weights(core: GraphProto, path: Path) -> None:
    """The weights of a core that are in a low type, as a safetensors file."""
    kinds = {kind: name for name, kind in KINDS.items() if kind != TensorProto.FLOAT}
    weights = [one for one in core.initializer if one.data_type in kinds and one.dims]
    header, size = {}, 0
    for one in weights:
        end = size + len(one.raw_data)
        header[one.name] = {"dtype": kinds[one.data_type], "shape": list(one.dims), "data_offsets": [size, end]}
        size = end
    path.write_bytes(b"".join([header_bytes(json.dumps(header)), *(one.raw_data for one in weights)]))


def share_weights(graph: ModelProto, model_file: Path) -> None:
    """Let the graph read its weights from the model file, so that they are on disk once for all graphs.

    After its header a safetensors file is plain little-endian arrays, which ONNX calls external data.
    """
    header, start = read_header(model_file)
    for initializer in graph.graph.initializer:
        entry = header.get(initializer.name)
        if (
            entry is None
            or KINDS.get(entry["dtype"]) != initializer.data_type
            or entry["shape"] != list(initializer.dims)
        ):
            continue
        begin, end = entry["data_offsets"]
        assert end - begin == len(initializer.raw_data), initializer.name
        initializer.ClearField("raw_data")
        initializer.data_location = TensorProto.EXTERNAL
        place = {"location": model_file.name, "offset": start + begin, "length": end - begin}
        for key, value in place.items():
            initializer.external_data.add(key=key, value=str(value))
