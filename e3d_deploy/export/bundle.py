"""Export of a model to a bundle: graphs that share the weights of the model file, a reference clip and a manifest.

A *core* is the exported step in standard operators, from which the graphs are composed.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto

from e3d_deploy import __version__, checkpoint, contract
from e3d_deploy.bundle.folder import FLOAT32_STEP, MODEL, REFERENCE, WEIGHTS, new_bundle, write_manifest
from e3d_deploy.bundle.manifest import (
    SCHEMA,
    GraphEntry,
    History,
    Manifest,
    Precision,
    Preprocessing,
    Producer,
    Rounding,
    TensorEntry,
    describe_states,
)
from e3d_deploy.config import ModelConfig
from e3d_deploy.contrast import why_unfit_to_verify
from e3d_deploy.errors import ConfigError, ExportError
from e3d_deploy.export.graph.compose import clip_graph, rollout_graph, step_graph
from e3d_deploy.export.graph.to_onnx import export_core
from e3d_deploy.export.graph.variants import PLAIN, VARIANTS, Variant, expand, uses_winograd
from e3d_deploy.export.precision.types import LOW, stamp
from e3d_deploy.export.settings import ExportSettings, checked_settings
from e3d_deploy.files import place_of, sha256
from e3d_deploy.json_values import json_values
from e3d_deploy.model import E3DLSTM
from e3d_deploy.paths import check_path
from e3d_deploy.policies import EXACT, EXACT_DIFFERENCE, ROUNDING, Budget, default_budget
from e3d_deploy.progress import Notify, silent
from e3d_deploy.runtime.backends.rollout import rollout
from e3d_deploy.runtime.backends.spec import BackendSpec
from e3d_deploy.runtime.backends.specs import export_backends, find, shared_policies
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.runtime.backends.torch_settings import OwnSettings
from e3d_deploy.tensors import header_bytes, read_header

if TYPE_CHECKING:
    from e3d_deploy.export.precision.choose import Chosen
    from e3d_deploy.export.precision.drift import RealClips

log = logging.getLogger(__name__)

WINOGRAD_SHARE = 0.5
"""Share of the float32 budget that a graph with Winograd convolutions may use when ONNX Runtime runs it at export. The
rest is a margin for other libraries: on one network, OpenVINO was off by 2.0e-4 and ONNX Runtime by 1.5e-4."""
KINDS = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "I8": TensorProto.INT8,
    "F8_E4M3": TensorProto.FLOAT8E4M3FN,
}
"""ONNX type of each data type that weights in a safetensors file may have."""


def export(
    model_path: str | Path,
    output: str | Path,
    *,
    context_length: int | None = None,
    horizon: int | None = None,
    batch: int | None = None,
    precision: str = "fp32",
    budget: Budget | None = None,
    exclude: Sequence[str] = (),
    backend: str | None = None,
    calibration: str | Path | None = None,
    reference: str | Path | None = None,
    layout: str | None = None,
    overwrite: bool = False,
    progress: Notify = silent,
    target: str | None = None,
) -> Path:
    """Export the model in `model_path` as the bundle `output`; return its path.

    The folder appears only when the bundle is complete.

    Args:
        model_path: model file, such as `model.safetensors`.
        output: folder of the bundle to write, such as `kth.e3d`.
        context_length, horizon: number of frames that the clip graph takes and returns; the rollout graph returns
            `horizon` frames too. None for the lengths in the card of the model, or 10 if the card has none.
        batch: batch size of the graphs; None for any batch size.
        precision: one of `policies.POLICIES`, or `auto` for the cheapest policy that stays within its budget.
        budget: maximum loss of quality; None for the default budget of each policy.
        exclude: layers that stay in float32, by their names in `types.products`. More layers stay in float32 if the
            budget requires it.
        backend: backend that has to run the bundle, one of `specs.export_backends`. Only this backend, and backends
            with the same variant, get backend-specific graphs in addition to the shared graphs. If None, all backends
            get backend-specific graphs, and `auto` considers only policies that all backends run.
        calibration: clips to learn ranges from and to measure the drift on; None for clips of the package.
        reference: clip for which PyTorch's outputs are recorded; None for a clip of Moving MNIST or, if that does not
            fit the model, of the package's video.
        layout: axes of arrays in `calibration` and `reference`, one of `form.LAYOUTS`; None to infer them from shapes.
        overwrite: replace an existing bundle.
        progress: called with the name of each phase.
        target: old name of `backend`; deprecated, will be removed in version 0.3.

    Raises:
        CheckpointError: `model_path` is not a model.
        ConfigError: a length is below 1. `output` exists. A policy, layer or backend is unknown. `exclude` leaves too
            few layers in the low type. `calibration` or `layout` would have no effect. The calibration clips or the
            reference clip have too little contrast or motion.
        BackendUnavailable: `backend` does not run the policy, or a library is missing.
        QualityError: no policy stays within its budget.
        ClipError, ShapeError: a clip cannot be read, is too short or does not fit the model.
        ExportError: PyTorch cannot export the model, or the model predicts NaN or infinity.
    """
    if target is not None:
        warnings.warn("export(target=…) is now export(backend=…)", DeprecationWarning, stacklevel=2)
        backend = backend or target
    model_path, output = check_path("model_path", model_path), check_path("output", output)
    calibration = None if calibration is None else check_path("calibration", calibration)
    reference = None if reference is None else check_path("reference", reference)
    _check_used(precision, budget, calibration, reference, layout)
    with OwnSettings():
        settings = checked_settings(
            model_path,
            output,
            context_length=context_length,
            horizon=horizon,
            batch=batch,
            precision=precision,
            budget=budget,
            exclude=exclude,
            backend=backend,
            calibration=calibration,
            reference=reference,
            layout=layout,
        )
    if reference is not None and (lacking := why_unfit_to_verify(settings.clip, settings.context_length)):
        raise ConfigError(f"reference: {reference} {lacking} to distinguish networks; give another clip")
    place_of(output, make=True)
    with OwnSettings(), new_bundle(output, overwrite=overwrite) as folder:
        clips = _clips_of(settings)  # checks the clips before the long work begins
        checkpoint.save(settings.model, folder / MODEL)  # graphs read float32; the original file may be float16
        progress("recording PyTorch's predictions")
        recorded = record(settings.model, settings.clip, settings.context_length, settings.batch or 1)
        np.savez(folder / REFERENCE, **recorded.arrays)  # type: ignore[arg-type]
        composed = compose(settings, recorded, clips, progress)
        write_graphs(composed, folder)
        write_manifest(folder, manifest_of(settings, recorded.rounding, composed, folder))
    return output


def _check_used(
    precision: str, budget: Budget | None, calibration: Path | None, reference: Path | None, layout: str | None
) -> None:
    """Refuse arguments that would have no effect.

    Raises:
        ConfigError: `calibration` or `layout` would not be used.
    """
    if layout is not None and calibration is None and reference is None:
        raise ConfigError("--layout requires --calibration or --reference; give one of them, or leave --layout out")
    if calibration is not None and precision == "fp32" and budget is None:
        raise ConfigError(
            "calibration: not used with precision fp32 unless --budget is given; leave --calibration out, or "
            "give another --precision"
        )


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of an export, in memory."""

    model: ModelProto
    name: str
    """Name: `step`, `rollout` or `clip`."""
    file: str
    """Name of the file in the bundle."""
    backends: tuple[str, ...] | None = None
    """Backends that run this graph; None for all backends that have no graph of their own."""
    by: str = "types"
    """Means to reach the precision: `types` for low types in the graph, or `hint` for a float32 graph that the library
    is told to compute in a low type."""
    drift: Mapping[str, float | None] | None = None
    """Measured drift of a backend-specific graph, by measure; None for shared graphs and for fp32 without a budget."""


@dataclass(frozen=True, kw_only=True)
class Composed:
    """All graphs of an export, in memory."""

    graphs: Sequence[Graph]
    """Graphs of the bundle; the shared graphs come first."""
    precision: Precision
    """Precision policy of the graphs, with its measured drift."""
    low: Sequence[GraphProto]
    """Cores with weights in a low type; empty if the weights of all graphs are float32."""
    float32_step: ModelProto | None
    """Step graph in float32, which graphs with a low type are compared with; None if no graph has a low type."""


def _clips_of(settings: ExportSettings) -> "RealClips | None":
    """Return the clips for calibration and measurements; None for fp32 without a budget, which needs no clips."""
    if settings.precision == "fp32" and settings.budget is None:
        return None
    from e3d_deploy.export.precision.drift import real_clips  # needs ONNX Runtime

    return real_clips(settings.form, settings.context_length, settings.calibration, settings.clip)


def compose(settings: ExportSettings, recorded: "Recorded", clips: "RealClips | None", progress: Notify) -> Composed:
    """Export one step of the model, apply a precision that stays within its budget, and compose the graphs."""
    rounding = recorded.rounding
    progress("exporting one step")
    exported = export_core(settings.model, settings.batch)
    plain = expand(exported, VARIANTS[PLAIN])
    core, chosen, precision = _in_precision(settings, plain, rounding, clips, progress)
    low = [core] if precision.policy in LOW else []
    graphs = list(_graphs(settings, core, "", progress))
    for variant, specs in _own_variants(settings, precision.policy).items():
        hinted = all(precision.policy in spec.hinted for spec in specs)
        if hinted and precision.exclude:
            continue  # a hint applies to all layers, and cannot exclude any
        names = ", ".join(spec.name for spec in specs)
        progress(f"composing the step for {names}")
        checked = _checked_variant(settings, exported, VARIANTS[variant], recorded)
        if checked == VARIANTS[PLAIN]:
            continue  # the backend-specific graphs would equal the shared graphs
        own, drift = expand(exported, checked), None
        if chosen is not None:
            # CPUs have no TF32, so libraries compute tf32 graphs in float32 there.
            exact = precision.policy == "tf32" and all(spec.device == "cpu" for spec in specs)
            progress(f"{precision.policy}: measuring the drift of the graphs for {names}")
            own, found = chosen.on(own, "fp32" if exact else precision.policy, hinted=hinted)
            drift = json_values(asdict(found))
            if found.share_of(chosen.budget) > 1:
                log.warning(
                    "%s: backend-specific graphs exceed the budget, so the shared graphs are used; give a larger "
                    "--budget to keep the backend-specific graphs",
                    names,
                )
                continue
        if precision.policy in LOW and not hinted:
            low.append(own)
        graphs += _graphs(
            settings,
            own,
            f".{variant}",
            progress,
            backends=tuple(spec.name for spec in specs),
            by="hint" if hinted else "types",
            drift=drift,
        )
    float32_step = step_graph(plain, settings.model.config, settings.batch) if low else None
    return Composed(graphs=graphs, precision=precision, low=low, float32_step=float32_step)


def _graphs(
    settings: ExportSettings,
    core: GraphProto,
    suffix: str,
    progress: Notify,
    *,
    backends: tuple[str, ...] | None = None,
    by: str = "types",
    drift: Mapping[str, float | None] | None = None,
) -> Iterator[Graph]:
    """Compose the step, rollout and clip graphs from a core; `suffix` is added to the names of their files."""
    config, batch = settings.model.config, settings.batch
    makers: dict[str, Callable[..., ModelProto]] = {
        "step": step_graph,
        "rollout": partial(rollout_graph, horizon=settings.horizon),
        "clip": partial(clip_graph, context_length=settings.context_length, horizon=settings.horizon),
    }
    for name, make in makers.items():
        file = f"{name}{suffix}.onnx"
        progress(f"composing {file}")
        model = make(core, config, batch)
        yield Graph(model=model, name=name, file=file, backends=backends, by=by, drift=drift)


def _checked_variant(settings: ExportSettings, exported: GraphProto, variant: Variant, recorded: "Recorded") -> Variant:
    """Return a variant, without Winograd convolutions unless they suit the network and pass on the reference clip."""
    core = expand(exported, variant)
    passed = uses_winograd(core) and recorded.agrees(step_graph(core, settings.model.config, settings.batch))
    return variant if passed else variant.without_winograd


def _own_variants(settings: ExportSettings, policy: str) -> dict[str, list[BackendSpec]]:
    """Return the backends that get backend-specific graphs, by the name of the variant of these graphs."""
    found: dict[str, list[BackendSpec]] = {}
    for spec in map(find, export_backends()):
        variant = (spec.variants or {}).get(policy)
        if variant is not None and policy in spec.policies:
            found.setdefault(variant, []).append(spec)
    if settings.backend is None:
        return found
    return {variant: specs for variant, specs in found.items() if find(settings.backend) in specs}


def _in_precision(
    settings: ExportSettings, plain: GraphProto, rounding: Rounding, clips: "RealClips | None", progress: Notify
) -> tuple[GraphProto, "Chosen | None", Precision]:
    """Apply the precision of an export to a float32 core.

    Returns:
        The core in the precision of the export; the choice, which can be applied to other cores; and the entry in the
        manifest. Without clips the core stays in fp32, nothing is measured, and the choice is None.
    """
    if clips is None:
        return plain, None, Precision(policy="fp32", exclude=(), budget=EXACT.to_dict())
    from e3d_deploy.export.precision.choose import choose_precision  # needs ONNX Runtime

    backends = export_backends() if settings.backend is None else [settings.backend]
    policies = shared_policies(backends) if settings.precision == "auto" else [settings.precision]
    chosen = choose_precision(
        settings.model,
        plain,
        clips,
        budgets={policy: settings.budget or default_budget(policy, rounding.predictions) for policy in policies},
        batch=settings.batch,
        context_length=settings.context_length,
        exclude=settings.exclude,
        progress=progress,
    )
    return chosen.core, chosen, chosen.precision


def write_graphs(composed: Composed, folder: Path) -> None:
    """Write the graphs, and the weights of low types, to the folder of the model file."""
    weights, aliases = [MODEL], {}
    if composed.float32_step is not None:
        aliases = write_weights(composed.low, folder / WEIGHTS)
        share_weights(composed.float32_step, folder / MODEL)
        onnx.save(composed.float32_step, folder / FLOAT32_STEP)
        weights.append(WEIGHTS)
    for graph in composed.graphs:
        stamp(graph.model, "fp32" if graph.by == "hint" else composed.precision.policy)
        for file in weights:
            share_weights(graph.model, folder / file, aliases)
        onnx.save(graph.model, folder / graph.file)


def manifest_of(settings: ExportSettings, rounding: Rounding, composed: Composed, folder: Path) -> Manifest:
    """Return the manifest of a bundle whose other files are complete in `folder`."""
    config = settings.model.config
    K = config.history_length
    return Manifest(
        schema=SCHEMA,
        name=settings.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        producer=Producer(e3d_deploy=__version__, torch=torch.__version__, onnx=onnx.__version__),
        config=config.to_dict(),
        card=settings.card.to_dict(),
        context_length=settings.context_length,
        horizon=settings.horizon,
        batch=settings.batch or 1,
        dynamic_batch=settings.batch is None,
        history=History(slots=K, exact_for_steps=K, then=f"the last {K} cells"),
        preprocessing=Preprocessing(
            frames="float32 [B, C, H, W] in [0, 1]; uint8 pictures divided by 255",
            patching="inside the graphs",
            output="not clipped",
        ),
        rounding=rounding,
        precision=composed.precision,
        states=describe_states(contract.states_of(config)),
        graphs=tuple(describe(graph, composed.precision.policy) for graph in composed.graphs),
        verification={},
        engines={},
        files={file.name: sha256(file) for file in sorted(folder.iterdir())},
    )


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """PyTorch's outputs for the reference clip."""

    arrays: Mapping[str, NDArray[Any]]
    """Arrays of reference.npz, as docs/bundle.md lists them."""
    rounding: Rounding
    """Largest differences between PyTorch's outputs in float32 and in float64."""
    context_length: int
    batch: int
    config: ModelConfig

    def agrees(self, graph: ModelProto) -> bool:
        """Return True if a float32 step graph uses at most `WINOGRAD_SHARE` of the budget over the rollout.

        ONNX Runtime runs the graph. Without ONNX Runtime the graph cannot be checked, and the result is False.
        """
        try:
            from e3d_deploy.runtime.backends.emulated import Steps, session
        except ModuleNotFoundError:
            return False
        steps = Steps(session(graph), self.config, self.batch)
        clip, context_length = self.arrays["frames"], self.context_length
        context = np.repeat(clip[None, :context_length], self.batch, axis=0)
        predictions: list[NDArray[np.float32]] = []
        state: Mapping[str, NDArray[Any]] = {}
        for prediction, state in rollout(steps, context, len(clip) - 1):  # noqa: B007 (the last one is read)
            predictions.append(prediction[0])
        off = float(np.abs(np.stack(predictions) - self.arrays["predictions"]).max())
        states_off = max(
            float(np.abs(value - self.arrays[contract.NEXT + name]).max()) for name, value in state.items()
        )
        limits = (max(EXACT_DIFFERENCE, ROUNDING * one) for one in (self.rounding.predictions, self.rounding.states))
        return all(found <= WINOGRAD_SHARE * limit for found, limit in zip((off, states_off), limits, strict=True))


def record(model: E3DLSTM, clip: NDArray[np.float32], context_length: int, batch: int) -> Recorded:
    """Record PyTorch's outputs for a clip, and the difference between float32 and float64.

    Raises:
        ExportError: a prediction is NaN or infinite.
    """
    predictions, states = _rollout(model, clip, context_length, batch)
    if not np.isfinite(predictions).all():
        raise ExportError("the model predicts NaN or infinity on the reference clip; train it again")
    exact_predictions, exact_states = _rollout(copy.deepcopy(model).double(), clip, context_length, batch)
    rounding = Rounding(
        predictions=float(np.abs(predictions - exact_predictions).max()),
        states=max(float(np.abs(states[name] - exact).max()) for name, exact in exact_states.items()),
    )
    arrays = {contract.NEXT + name: value for name, value in states.items()}
    return Recorded(
        arrays={"frames": clip, "predictions": predictions[:, 0], **arrays},
        rounding=rounding,
        context_length=context_length,
        batch=batch,
        config=model.config,
    )


def _rollout(
    model: E3DLSTM, clip: NDArray[np.float32], context_length: int, batch: int
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Return PyTorch's predictions [T − 1, B, C, H, W] for a clip, and the states after the last step."""
    backend = TorchBackend(model, batch=batch)
    context = np.repeat(clip[None, :context_length], batch, axis=0)
    predictions, state = [], None
    for prediction, state in rollout(backend, context, len(clip) - 1):  # noqa: B007 (the last one is read)
        predictions.append(prediction)
    return np.stack(predictions), backend.to_arrays(state)


def describe(graph: Graph, policy: str) -> GraphEntry:
    """Return the entry of a graph in the manifest."""

    def tensors(values: Any) -> tuple[TensorEntry, ...]:
        return tuple(
            TensorEntry(
                name=value.name,
                dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                shape=tuple(side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    content = graph.model.graph
    return GraphEntry(
        name=graph.name,
        backends=graph.backends,
        file=graph.file,
        precision=policy,
        by=graph.by,
        drift=graph.drift,
        weights=tuple(sorted({place.value for one in content.initializer for place in one.external_data[:1]})),
        nodes=len(content.node),
        opset=graph.model.opset_import[0].version,
        inputs=tensors(content.input),
        outputs=tensors(content.output),
    )


def write_weights(cores: Sequence[GraphProto], path: Path) -> dict[str, str]:
    """Write the weights of a low type in some cores to a safetensors file; equal bytes are stored once.

    Returns:
        Names of the weights that are not stored, each with the name of the stored weight that has the same bytes. Such
        weights are, for example, reshaped copies.
    """
    kinds = {kind: name for name, kind in KINDS.items() if kind != TensorProto.FLOAT}
    initializers = {one.name: one for core in cores for one in core.initializer}
    low = [one for one in initializers.values() if one.data_type in kinds and one.dims]
    first: dict[tuple[int, bytes], str] = {}
    names = {one.name: first.setdefault((one.data_type, one.raw_data), one.name) for one in low}
    weights = [one for one in low if names[one.name] == one.name]
    header, size = {}, 0
    for one in weights:
        end = size + len(one.raw_data)
        header[one.name] = {"dtype": kinds[one.data_type], "shape": list(one.dims), "data_offsets": [size, end]}
        size = end
    path.write_bytes(b"".join([header_bytes(json.dumps(header)), *(one.raw_data for one in weights)]))
    return {name: stored for name, stored in names.items() if name != stored}


def share_weights(graph: ModelProto, model_file: Path, aliases: Mapping[str, str] = MappingProxyType({})) -> None:
    """Replace the weights in a graph with references to the model file, which all graphs share.

    After its header a safetensors file consists of little-endian arrays, which ONNX can read as external data.

    Args:
        aliases: result of `write_weights`.
    """
    header, start = read_header(model_file)
    for initializer in graph.graph.initializer:
        entry = header.get(aliases.get(initializer.name, initializer.name))
        if entry is None or KINDS.get(entry["dtype"]) != initializer.data_type:
            continue
        if entry["shape"] != list(initializer.dims) and initializer.name not in aliases:
            continue
        begin, end = entry["data_offsets"]
        assert end - begin == len(initializer.raw_data), initializer.name
        initializer.ClearField("raw_data")
        initializer.data_location = TensorProto.EXTERNAL
        place = {"location": model_file.name, "offset": start + begin, "length": end - begin}
        for key, value in place.items():
            initializer.external_data.add(key=key, value=str(value))
