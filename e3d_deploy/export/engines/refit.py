"""Refit of engines: reuse of the engines of one bundle for a bundle with different weights, without a new build."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, TensorProto, numpy_helper

from e3d_deploy.bundle.folder import Bundle
from e3d_deploy.bundle.plans import check_sources, load_plan, sources, weights_sha256
from e3d_deploy.bundle.sidecar import EngineSidecar
from e3d_deploy.errors import BackendUnavailable, EngineError
from e3d_deploy.export.engines.install import move_in, staging
from e3d_deploy.export.engines.precision_check import check_precision
from e3d_deploy.progress import Notify, silent
from e3d_deploy.tensorrt_library import Target, library, make_logger

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def refit(
    bundle: Bundle | str | Path, source: Bundle | str | Path, target: Target, *, progress: Notify = silent
) -> dict[str, EngineSidecar]:
    """Refit the engines of the bundle `source` with the weights of `bundle`, and install them in `bundle`.

    Every replaceable weight of an engine is replaced, or the refit is refused. The refitted engines have to be
    verified on the GPU, like engines after a build.

    Args:
        bundle: bundle that gets the engines, opened or as the path of its folder.
        source: bundle with refittable engines. Its graphs may differ from those of `bundle` only in weights.

    Returns:
        The sidecar of each graph; its `refitted_from` is the hash of the plan of `source`.

    Raises:
        BackendUnavailable: the library is not installed, or no GPU here can load an engine.
        BundleError: a plan of `source` does not have its recorded hash, or was built for a different version or GPU.
            `bundle` was exported again during the refit.
        EngineError: `source` has no engines or they are not refittable, the graphs differ in more than weights, a
            weight is missing, or the refit fails.
    """
    bundle, source = Bundle.of(bundle), Bundle.of(source)
    trt = library(target)
    names = [name for name in bundle.graphs if f"{name}.{target}" in source.manifest.engines]
    if not names:
        raise EngineError(
            f"{source.path}: has no engine for {target}; run `e3d build {source.path} --target {target} --refit`"
        )
    sidecars = {}
    with staging(bundle) as stage:
        for name in names:
            sidecar = source.manifest.engines[f"{name}.{target}"]
            if not sidecar.options.refittable:
                raise EngineError(
                    f"{source.path}: its engine {name}.{target} was built without --refit; build it again with --refit"
                )
            if found := difference(source.onnx(name, target), bundle.onnx(name, target)):
                raise EngineError(
                    f"{name}: {bundle.path} differs from {source.path} in more than weights: {found}; build the engine "
                    "with `e3d build`"
                )
            progress(f"{name}: refitting")
            old = load_plan(source, name, target=target, version=trt.__version__)
            plan = _refitted(trt, old, bundle.graph(name, target))
            check_sources(bundle, name, target)
            if plan == old and weights_sha256(bundle) != weights_sha256(source):
                raise EngineError(
                    f"{name}: the refitted engine equals the old one although the weights differ; build the engine "
                    "with `e3d build`"
                )
            (stage / f"{name}.{target}.plan").write_bytes(plan)
            made_from = sources(bundle, name, target)
            sidecars[name] = replace(
                sidecar,
                key=None,
                parts=None,
                graph_sha256=made_from["graph_sha256"],
                weights_sha256=made_from["weights_sha256"],
                refitted_from=sidecar.sha256,
                precision=check_precision(trt, plan, bundle.onnx(name, target), bundle.entry(name, target).precision),
                cached=False,
                bytes=len(plan),
                sha256=hashlib.sha256(plan).hexdigest(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        move_in(bundle, target, stage, sidecars)
    return sidecars


def _refitted(trt: Any, plan: bytes, graph: Path) -> bytes:
    logger = make_logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendUnavailable(
            f"TensorRT {trt.__version__}: cannot load the engine to refit it ({logger.reason}); refit it on a machine "
            "with the GPU that the engine is for, or build a new engine with `e3d build`"
        )
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    complete = parser.refit_from_file(str(graph))
    missing = refitter.get_missing_weights()
    if not complete or missing:
        given = {tensor.name for tensor in onnx.load(graph, load_external_data=False).graph.initializer}
        unknown = missing or [name for name in refitter.get_all_weights() if name not in given]
        listed = ", ".join(sorted(unknown)) or "unnamed"
        words = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)) or logger.reason
        raise EngineError(
            f"{graph}: not every weight of the engine can be replaced; missing: {listed} ({words}); build the engine "
            "with `e3d build`"
        )
    if not refitter.refit_cuda_engine():
        raise EngineError(f"{graph}: TensorRT {trt.__version__} could not refit the engine ({logger.reason})")
    settings = engine.create_serialization_config()
    if (flag := getattr(trt.SerializationFlag, "INCLUDE_REFIT", None)) is not None:
        settings.set_flag(flag)  # keeps the engine refittable
    return bytes(engine.serialize_with_config(settings))


def difference(one: bytes, other: bytes) -> str | None:
    """Return the first names whose tensors or nodes differ between two graphs, except in the values of weights.

    Returns:
        At most three names in one text; None if the graphs differ in weights only.
    """
    first, second = (onnx.load_from_string(content).graph for content in (one, other))
    for what in (_tensors, _nodes, _constants):
        here, there = what(first), what(second)
        if here != there:
            names = sorted(name for name in {**here, **there} if here.get(name) != there.get(name))
            return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
    return None


def _tensors(graph: GraphProto) -> dict[str, object]:
    ends = {value.name: value.SerializeToString(deterministic=True) for value in (*graph.input, *graph.output)}
    return ends | {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}


def _nodes(graph: GraphProto) -> dict[str, object]:
    return {node.name: (index, node.SerializeToString(deterministic=True)) for index, node in enumerate(graph.node)}


def _constants(graph: GraphProto) -> dict[str, object]:
    """Return the constants of a graph that a refit cannot change: shapes, axes and indices."""
    return {
        tensor.name: numpy_helper.to_array(tensor).tobytes()
        for tensor in graph.initializer
        if tensor.data_type not in FLOATS and not tensor.external_data
    }
