"""Engines: real ones by TensorRT-RTX, which builds without a GPU, and the builder's logic on a fake."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from e3d_deploy.errors import BackendUnavailable, BundleError, EngineError
from e3d_deploy.export import to_tensorrt
from e3d_deploy.export.to_tensorrt import build, build_plan, library
from e3d_deploy.files import sha256
from e3d_deploy.runtime import Bundle


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra `rtx`)")


def test_rtx_builds_an_engine_of_each_graph(rtx: Any, bundle_path: Path) -> None:
    phases: list[tuple[str, float]] = []
    sidecars = build(
        Bundle.open(bundle_path), "tensorrt-rtx", progress=lambda phase, seconds: phases.append((phase, seconds))
    )
    bundle = Bundle.open(bundle_path)  # all hashes are checked, those of the plans among them
    assert set(sidecars) == {"step", "clip"}
    for graph, sidecar in sidecars.items():
        plan = bundle_path / "engines" / f"{graph}.tensorrt-rtx.plan"
        assert sidecar["sha256"] == sha256(plan) == bundle.manifest["files"][f"engines/{plan.name}"]
        assert sidecar["builder"] == rtx.__version__
        assert sidecar["precision"] == {"requested": "fp32", "proved": None}
        assert json.loads(plan.with_suffix(".json").read_text()) == sidecar
        # 0: nothing wrong but that there is no GPU; what is no engine says malformed.
        runtime = rtx.Runtime(rtx.Logger(rtx.Logger.ERROR))
        malformed = int(rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        assert not int(runtime.get_engine_validity(plan.read_bytes())[1]) & malformed
        assert int(runtime.get_engine_validity(b"x" * 4096)[1]) & malformed
    assert {phase.split(":")[0] for phase, _ in phases} == {"step", "clip"}
    assert all(seconds >= 0 for _, seconds in phases)


def test_an_altered_plan_is_refused(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_tensorrt, "library", lambda _: FakeTensorRT())
    build(Bundle.open(bundle_path), "tensorrt")
    plan = bundle_path / "engines" / "step.tensorrt.plan"
    plan.write_bytes(plan.read_bytes() + b"code")
    with pytest.raises(BundleError, match=r"step\.tensorrt\.plan: altered or truncated"):
        Bundle.open(bundle_path)


def test_tensorrt_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(to_tensorrt.MODULES, "tensorrt", ("no_such_tensorrt",))
    with pytest.raises(BackendUnavailable, match="\\[gpu\\]', on a machine with an NVIDIA GPU") as caught:
        library("tensorrt")
    assert caught.value.exit_code == 4


class FakeTensorRT:
    """The calls of TensorRT that the builder makes, written down; 10, 11 and RTX differ in one flag alone."""

    __version__ = "10.7.0"

    class ILogger:
        Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal", INFO="info")

        def __init__(self) -> None:
            pass

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    BuilderFlag = SimpleNamespace(TF32="tf32")

    def __init__(self, *, strongly_typed: int | None = 3, parses: bool = True, plan: bytes | None = b"plan") -> None:
        flags = {} if strongly_typed is None else {"STRONGLY_TYPED": strongly_typed}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)
        self.parses, self.plan = parses, plan
        self.calls: dict[str, Any] = {}

    def Builder(self, logger: Any) -> Any:
        def build_serialized_network(_: Any, config: Any) -> bytes | None:
            self.calls["tf32_cleared"] = self.calls.pop("cleared", None) == "tf32"
            self.calls["level"] = config.builder_optimization_level
            config.progress_monitor.phase_start("tactics", None, 2)
            go_on = config.progress_monitor.step_complete("tactics", 0)
            if self.calls.get("interrupt"):
                while go_on:
                    go_on = config.progress_monitor.step_complete("tactics", 1)
                self.calls["cancelled"] = True
                return None
            if self.plan is None:
                logger.log("error", "no tactic for Conv_3")
            return self.plan

        config = SimpleNamespace(
            set_memory_pool_limit=lambda pool, size: self.calls.update({pool: size}),
            clear_flag=lambda flag: self.calls.update(cleared=flag),
        )
        return SimpleNamespace(
            create_network=lambda flags: self.calls.update(flags=flags),
            create_builder_config=lambda: config,
            build_serialized_network=build_serialized_network,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        error = SimpleNamespace(
            node_operator=lambda: "Einsum", node_name=lambda: "t3/einsum", desc=lambda: "no such op"
        )
        return SimpleNamespace(parse_from_file=lambda _: self.parses, num_errors=1, get_error=lambda _: error)


def plan_of(trt: FakeTensorRT, **options: Any) -> bytes:
    settings = {"workspace_bytes": None, "optimization_level": 3, "progress": lambda *_: None} | options
    return build_plan(trt, Path("step.onnx"), **settings)


@pytest.mark.parametrize(("strongly_typed", "flags"), [(3, 8), (None, 0)])
def test_types_of_the_graph_are_kept_on_every_version(strongly_typed: int | None, flags: int) -> None:
    trt = FakeTensorRT(strongly_typed=strongly_typed)
    assert plan_of(trt, workspace_bytes=5_000_000, optimization_level=1) == b"plan"
    assert trt.calls == {"flags": flags, "workspace": 5_000_000, "tf32_cleared": True, "level": 1}


def test_a_graph_that_cannot_be_read_names_the_node() -> None:
    with pytest.raises(
        EngineError, match=r"step\.onnx: cannot be read by TensorRT 10\.7\.0 \(Einsum t3/einsum: no such"
    ):
        plan_of(FakeTensorRT(parses=False))


def test_a_graph_that_cannot_be_built_gives_the_last_error() -> None:
    with pytest.raises(EngineError, match="could not build it \\(no tactic for Conv_3\\)"):
        plan_of(FakeTensorRT(plan=None))


def test_ctrl_c_cancels_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    trt.calls["interrupt"] = True

    wait, waits = to_tensorrt.wait, []

    def interrupted_once(*arguments: Any, **options: Any) -> Any:
        waits.append(arguments)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return wait(*arguments, **options)

    monkeypatch.setattr(to_tensorrt, "wait", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        plan_of(trt)
    assert trt.calls["cancelled"]


def test_what_the_library_raises_comes_out_of_its_thread() -> None:
    trt = FakeTensorRT()
    trt.plan = property()  # type: ignore[assignment]  # bytes() of it is a TypeError
    with pytest.raises(TypeError):
        plan_of(trt)


def test_building_again_replaces_the_engines(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_tensorrt, "library", lambda _: FakeTensorRT())
    build(Bundle.open(bundle_path), "tensorrt")
    monkeypatch.setattr(to_tensorrt, "library", lambda _: FakeTensorRT(plan=b"another plan"))
    sidecars = build(Bundle.open(bundle_path), "tensorrt")
    assert sidecars["step"]["bytes"] == len(b"another plan")
    assert Bundle.open(bundle_path).manifest["engines"]["step.tensorrt"] == sidecars["step"]


def test_a_build_that_breaks_off_while_writing_leaves_a_bundle_that_opens(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_tensorrt, "library", lambda _: FakeTensorRT())
    build(Bundle.open(bundle_path), "tensorrt")
    monkeypatch.setattr(to_tensorrt, "library", lambda _: FakeTensorRT(plan=b"another plan"))
    written: list[Path] = []

    def write_one(path: Path, content: bytes) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_bytes(content)

    monkeypatch.setattr(to_tensorrt, "write_file", write_one)
    with pytest.raises(OSError, match="No space left"):
        build(Bundle.open(bundle_path), "tensorrt")
    assert Bundle.open(bundle_path).manifest["engines"] == {}
