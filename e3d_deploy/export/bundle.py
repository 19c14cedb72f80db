"""Write a bundle: graphs that share the weights of the model file, a reference clip, a manifest."""

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
from e3d_deploy.export.plan import Plan, plan_export
from e3d_deploy.export.precision.types import LOW, stamp
from e3d_deploy.files import place_of, sha256
from e3d_deploy.json_values import json_values
from e3d_deploy.model import E3DLSTM
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
"""Share of the budget of float32 that a graph with Winograd's convolutions may use when it is exported. The rest is for
other engines: of one network OpenVINO's graph was off by 2.0e-4 where ONNX Runtime's was by 1.5e-4."""
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
    precision: str = "fp32",
    budget: Budget | None = None,
    exclude: Sequence[str] = (),
    backend: str | None = None,
    calibration: Path | None = None,
    reference: Path | None = None,
    layout: str | None = None,
    overwrite: bool = False,
    progress: Notify = silent,
    target: str | None = None,
) -> Path:
    """Export the model in `model_path` as the bundle `output`; return its path.

    The folder appears when it is whole, not before.

    Args:
        context_length, horizon: frames that the clip graph takes and gives; the rollout graph gives as many. None:
            those of training where the model's card has them, else 10.
        batch: streams that the graphs run at once; None for any number.
        precision: of `policies.POLICIES`, or `auto` for the cheapest that keeps its budget.
        budget: in the place of what each policy may cost.
        exclude: layers that stay in float32, by their names in `types.products`; more do where the budget wants it.
        backend: backend that has to run it, of `specs.export_backends`; only it, and those that share its form, get
            graphs of their own beside those for all. Without it all do, and `auto` takes what runs everywhere.
        calibration: clips to learn ranges from and to measure the drift on; else some of the package's.
        reference: a clip to record PyTorch's answer to; else one of Moving MNIST or, where that does
            not fit the model, one of the package's videos.
        layout: axes of arrays in both, one of `form.LAYOUTS`; else found out by their shapes.
        overwrite: replace a bundle that is there.
        progress: called with the name of each phase.
        target: former name of `backend`; deprecated, to be removed with version 0.2.

    Raises:
        CheckpointError: `model_path` is not a model.
        ConfigError: a length below 1, `output` is there already, or a policy, layer or backend that is not known.
        BackendUnavailable: the backend does not run the policy.
        QualityError: no policy keeps its budget.
        ClipError, ShapeError: the reference clip cannot be used.
        ExportError: PyTorch could not export the model, or the model answers with NaN.
    """
    if target is not None:
        warnings.warn("export(target=…) is now export(backend=…)", DeprecationWarning, stacklevel=2)
        backend = backend or target
    with OwnSettings():
        plan = plan_export(
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
    if reference is not None and (lacking := why_unfit_to_verify(plan.clip, plan.context_length)):
        raise ConfigError(f"reference: {reference} {lacking} to tell one network from another; give another clip")
    place_of(output, make=True)
    with OwnSettings(), new_bundle(output, overwrite=overwrite) as folder:
        clips = _clips_of(plan)  # checked before the work
        checkpoint.save(plan.model, folder / MODEL)  # float32, which the graphs share; the file may hold float16
        progress("recording what PyTorch computes")
        recorded = record(plan.model, plan.clip, plan.context_length, plan.batch or 1)
        np.savez(folder / REFERENCE, **recorded.arrays)  # type: ignore[arg-type]
        composed = compose(plan, recorded, clips, progress)
        write_graphs(composed, folder)
        write_manifest(folder, manifest_of(plan, recorded.rounding, composed, folder))
    return output


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of an export, in memory."""

    model: ModelProto
    name: str
    """Name: `step`, `rollout` or `clip`."""
    file: str
    """Name of its file."""
    backends: tuple[str, ...] | None = None
    """Backends that it is for; None for all that have no graph of their own."""
    by: str = "types"
    """Way to the precision, as in `GraphEntry`."""
    drift: Mapping[str, float | None] | None = None
    """Measured loss of a backend's own graph, by measure."""


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Graphs of an export, in memory."""

    graphs: Sequence[Graph]
    """Graphs for all backends first."""
    precision: Precision
    """Policy of the graphs, and its measured cost."""
    low: Sequence[GraphProto]
    """Cores whose weights have a low type; empty where none has."""
    yardstick: ModelProto | None
    """Step graph in float32; None where the step graph is that."""


def _clips_of(plan: Plan) -> "RealClips | None":
    """Return the clips that the precision of a plan is measured on; None for plain fp32, which is not measured."""
    if plan.precision == "fp32" and plan.budget is None:
        return None
    from e3d_deploy.export.precision.drift import real_clips  # it needs ONNX Runtime

    return real_clips(plan.form, plan.context_length, plan.calibration, plan.clip)


def compose(plan: Plan, recorded: "Recorded", clips: "RealClips | None", progress: Notify) -> Composed:
    """Export one step of the model, in the precision that keeps its budget, and put the graphs together from it."""
    rounding = recorded.rounding
    progress("exporting one step")
    exported = export_core(plan.model, plan.batch)
    plain = expand(exported, VARIANTS[PLAIN])
    core, chosen, precision = _in_precision(plan, plain, rounding, clips, progress)
    low = [core] if precision.policy in LOW else []
    graphs = list(_graphs(plan, core, "", progress))
    for variant, specs in _own_variants(plan, precision.policy).items():
        hinted = all(precision.policy in spec.hinted for spec in specs)
        if hinted and precision.exclude:
            continue  # a hint is for all layers
        names = ", ".join(spec.name for spec in specs)
        progress(f"composing the step for {names}")
        form = _form(plan, exported, VARIANTS[variant], recorded)
        if form == VARIANTS[PLAIN]:
            continue  # it is the graph for all
        own, drift = expand(exported, form), None
        if chosen is not None:
            # Processors have no tf32: libraries compute such graphs in float32 there.
            exact = precision.policy == "tf32" and all(spec.device == "cpu" for spec in specs)
            progress(f"{precision.policy}: the drift of the graphs for {names}")
            own, found = chosen.on(own, "fp32" if exact else precision.policy, hinted=hinted)
            drift = json_values(asdict(found))
            if found.share_of(chosen.budget) > 1:
                log.warning("%s: takes the graphs for all, its own lose too much; a larger --budget keeps them", names)
                continue
        if precision.policy in LOW and not hinted:
            low.append(own)
        graphs += _graphs(
            plan,
            own,
            f".{variant}",
            progress,
            backends=tuple(spec.name for spec in specs),
            by="hint" if hinted else "types",
            drift=drift,
        )
    yardstick = step_graph(plain, plan.model.config, plan.batch) if low else None
    return Composed(graphs=graphs, precision=precision, low=low, yardstick=yardstick)


def _graphs(
    plan: Plan,
    core: GraphProto,
    suffix: str,
    progress: Notify,
    *,
    backends: tuple[str, ...] | None = None,
    by: str = "types",
    drift: Mapping[str, float | None] | None = None,
) -> Iterator[Graph]:
    """Yield step, rollout and clip of a core; `suffix` ends the names of their files."""
    config, batch = plan.model.config, plan.batch
    makers: dict[str, Callable[..., ModelProto]] = {
        "step": step_graph,
        "rollout": partial(rollout_graph, horizon=plan.horizon),
        "clip": partial(clip_graph, context_length=plan.context_length, horizon=plan.horizon),
    }
    for name, make in makers.items():
        file = f"{name}{suffix}.onnx"
        progress(f"composing {file}")
        model = make(core, config, batch)
        yield Graph(model=model, name=name, file=file, backends=backends, by=by, drift=drift)


def _form(plan: Plan, exported: GraphProto, variant: Variant, recorded: "Recorded") -> Variant:
    """Return a variant, without Winograd's convolutions unless they suit the network and the reference proves them."""
    core = expand(exported, variant)
    proved = uses_winograd(core) and recorded.agrees(step_graph(core, plan.model.config, plan.batch))
    return variant if proved else variant.without_winograd


def _own_variants(plan: Plan, policy: str) -> dict[str, list[BackendSpec]]:
    """Return the names of the variants of graphs that some backends have for themselves, and these backends."""
    found: dict[str, list[BackendSpec]] = {}
    for spec in map(find, export_backends()):
        variant = (spec.variants or {}).get(policy)
        if variant is not None and policy in spec.policies:
            found.setdefault(variant, []).append(spec)
    if plan.backend is None:
        return found
    return {variant: specs for variant, specs in found.items() if find(plan.backend) in specs}


def _in_precision(
    plan: Plan, plain: GraphProto, rounding: Rounding, clips: "RealClips | None", progress: Notify
) -> tuple[GraphProto, "Chosen | None", Precision]:
    """Return a core in the policy of a plan, measured on some clips, and how others are brought there.

    Plain fp32 is not measured.
    """
    if clips is None:
        return plain, None, Precision(policy="fp32", exclude=(), budget=EXACT.to_dict())
    from e3d_deploy.export.precision.choose import choose_precision  # it needs ONNX Runtime

    backends = export_backends() if plan.backend is None else [plan.backend]
    policies = shared_policies(backends) if plan.precision == "auto" else [plan.precision]
    chosen = choose_precision(
        plan.model,
        plain,
        clips,
        budgets={policy: plan.budget or default_budget(policy, rounding.predictions) for policy in policies},
        batch=plan.batch,
        context_length=plan.context_length,
        exclude=plan.exclude,
        progress=progress,
    )
    return chosen.core, chosen, chosen.precision


def write_graphs(composed: Composed, folder: Path) -> None:
    """Write graphs, and weights of low types, beside the model that they share."""
    weights, aliases = [MODEL], {}
    if composed.yardstick is not None:
        aliases = write_weights(composed.low, folder / WEIGHTS)
        share_weights(composed.yardstick, folder / MODEL)
        onnx.save(composed.yardstick, folder / FLOAT32_STEP)
        weights.append(WEIGHTS)
    for graph in composed.graphs:
        stamp(graph.model, "fp32" if graph.by == "hint" else composed.precision.policy)
        for file in weights:
            share_weights(graph.model, folder / file, aliases)
        onnx.save(graph.model, folder / graph.file)


def manifest_of(plan: Plan, rounding: Rounding, composed: Composed, folder: Path) -> Manifest:
    """Return the manifest of the files in a folder."""
    config = plan.model.config
    K = config.history_length
    return Manifest(
        schema=SCHEMA,
        name=plan.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        producer=Producer(e3d_deploy=__version__, torch=torch.__version__, onnx=onnx.__version__),
        config=config.to_dict(),
        card=plan.card.to_dict(),
        context_length=plan.context_length,
        horizon=plan.horizon,
        batch=plan.batch or 1,
        dynamic_batch=plan.batch is None,
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
    """PyTorch's answer to the reference clip."""

    arrays: Mapping[str, NDArray[Any]]
    """Arrays of reference.npz (docs/bundle.md)."""
    rounding: Rounding
    """Largest differences of its float32 from its float64."""
    context_length: int
    batch: int
    config: ModelConfig

    def agrees(self, graph: ModelProto) -> bool:
        """Return True if a step graph in float32 keeps a share of the budget over the rollout, on ONNX Runtime.

        False where ONNX Runtime is missing, as nothing is proved then.
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
    """Record what PyTorch predicts for a clip, and how far its float32 is from its float64."""
    predictions, states = _rollout(model, clip, context_length, batch)
    if not np.isfinite(predictions).all():
        raise ExportError("the model itself answers the reference clip with NaN or infinity; train it again")
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
    """Predictions [T − 1, B, C, H, W] and the states after the last of them."""
    backend = TorchBackend(model, batch=batch)
    context = np.repeat(clip[None, :context_length], batch, axis=0)
    predictions, state = [], None
    for prediction, state in rollout(backend, context, len(clip) - 1):  # noqa: B007 (the last one is read)
        predictions.append(prediction)
    return np.stack(predictions), backend.to_arrays(state)


def describe(graph: Graph, policy: str) -> GraphEntry:
    """Return a graph's entry in the manifest."""

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
    """Write the weights of some cores that are in a low type as a safetensors file, the same bytes once.

    Returns:
        Name under which the bytes of a weight are in the file, if it is another, as for the same in another shape.
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
    """Let the graph read its weights from the model file, so that they are on disk once for all graphs.

    After its header a safetensors file is plain little-endian arrays, which ONNX calls external data.

    Args:
        aliases: from `write_weights`.
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
