"""Building of engines: with TensorRT-RTX, which needs no GPU, and with a fake that checks the calls of the builder."""

import inspect
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from e3d_deploy import checkpoint, tensorrt_library
from e3d_deploy.config import EngineConfig, ModelConfig
from e3d_deploy.errors import BackendUnavailable, ConfigError, EngineError
from e3d_deploy.export.bundle import export
from e3d_deploy.export.engines import build as build_module
from e3d_deploy.export.engines import watch
from e3d_deploy.export.engines.build import build, library
from e3d_deploy.export.engines.plan import build_plan, default_buckets
from e3d_deploy.export.graph.layers import locate
from e3d_deploy.files import sha256
from e3d_deploy.model import E3DLSTM
from e3d_deploy.policies import POLICIES
from e3d_deploy.runtime import Bundle
from e3d_deploy.tensorrt_library import make_logger
from tests.fake_tensorrt import CLASSES, FakeTensorRT
from tests.manifests import with_graph

DYNAMIC = {"frame": (-1, 1, 16, 24), "history.0": (-1, 4, 48, 4), "shape": (3,)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a very small model and a clip for it."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = ModelConfig(image_size=(8, 8), patch_size=4, hidden=(4,), kernel_size=3, history_length=2)
    checkpoint.save(E3DLSTM(config), folder / "small.safetensors")
    np.save(folder / "clip.npy", np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
    return folder


def exported_at(small: Path, output: Path, **options: Any) -> Bundle:
    export(small / "small.safetensors", output, context_length=1, horizon=2, reference=small / "clip.npy", **options)
    return Bundle.open(output)


@pytest.fixture(scope="module")
def small_bundle(small: Path) -> Bundle:
    """Bundle of the small model in float32, which tests must not change."""
    return exported_at(small, small / "small.e3d")


def test_rtx_builds_every_graph(rtx: Any, small_bundle: Bundle, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(small_bundle.path, tmp_path / "small.e3d"))
    build_with_rtx(rtx, bundle, "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", [name for name in POLICIES if name != "fp32"])
def test_rtx_builds_every_graph_at_every_precision(precision: str, rtx: Any, small: Path, tmp_path: Path) -> None:
    bundle = exported_at(small, tmp_path / "small.e3d", precision=precision)
    build_with_rtx(rtx, bundle, precision)
    if precision == "fp8":
        with pytest.raises(EngineError, match=r"bfloat16 runs on 8\.0 and later, FP8 on 8\.9; remove others from"):
            build_plan(rtx, bundle.graph("step"), EngineConfig(compute_capabilities=("8.6",)))


def build_with_rtx(rtx: Any, bundle: Bundle, precision: str) -> None:
    """Build engines with TensorRT-RTX, and check everything that can be checked without a GPU."""
    phases: list[str] = []
    sidecars = build(bundle, "tensorrt-rtx", progress=phases.append)
    opened = Bundle.open(bundle.path)
    assert set(sidecars) == set(bundle.graphs) >= {"step", "clip"}
    for graph, sidecar in sidecars.items():
        plan = bundle.path / "engines" / f"{graph}.tensorrt-rtx.plan"
        assert sidecar.sha256 == sha256(plan) == opened.manifest.files[f"engines/{plan.name}"]
        assert sidecar.builder == rtx.__version__
        # Without a GPU there is no inspector, so the precision is taken from the types of the graph.
        proved = "tf32 allowed" if precision == "tf32" else precision
        found = sidecar.precision
        assert (found.requested, found.proved, found.by) == (precision, proved, "graph")
        assert json.loads(plan.with_suffix(".json").read_text()) == sidecar.to_json()
        # Without a GPU no engine is valid, but only content that is not an engine is reported as malformed.
        runtime = rtx.Runtime(rtx.Logger(rtx.Logger.INTERNAL_ERROR))
        malformed = int(rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        assert not int(runtime.get_engine_validity(plan.read_bytes())[1]) & malformed
        assert int(runtime.get_engine_validity(b"x" * 4096)[1]) & malformed
    assert {phase.split(":")[0] for phase in phases} == set(sidecars)
    assert all(phase.endswith(" s") for phase in phases)


@pytest.mark.slow
def test_rtx_makes_a_profile_of_each_bucket(rtx: Any, small: Path, tmp_path: Path) -> None:
    bundle = exported_at(small, tmp_path / "open.e3d", batch=None)
    one, two = (
        build_plan(rtx, bundle.graph("step"), EngineConfig(batches=batches))
        for batches in (((1, 1, 1),), ((1, 1, 1), (2, 4, 8)))
    )
    assert len(two) > 1.5 * len(one)  # measured 2.0: each bucket has kernels of its own


def test_rtx_builds_for_the_given_gpus(rtx: Any, small_bundle: Bundle) -> None:
    graph = small_bundle.graph("step")
    assert build_plan(rtx, graph, EngineConfig(compute_capabilities=("8.6", "8.9", "12.0")))
    with pytest.raises(EngineError, match=r"node t0/\S+ is a MatMul.*; remove 7\.5 from --compute-capability"):
        build_plan(rtx, graph, EngineConfig(compute_capabilities=("7.5", "8.6")))
    with pytest.raises(ConfigError, match=r"compute capability 9\.0: TensorRT 1\..* does not support it, only .*SM89"):
        build_plan(rtx, graph, EngineConfig(compute_capabilities=("9.0",)))
    with pytest.raises(EngineError, match="raise --workspace-mb"):
        build_plan(rtx, graph, EngineConfig(workspace_bytes=100))


def test_rtx_names_node_and_layer_of_an_unreadable_graph(rtx: Any, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "cells.2.memory_conv.weight"], ["t3/y"], name="t3/node_conv2d_5"),
            helper.make_node("Unique", ["t3/y"], ["y"], name="t3/node_unique"),
        ],
        "step",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "cells.2.memory_conv.weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    with pytest.raises(EngineError) as caught:
        build_plan(rtx, tmp_path / "g.onnx", EngineConfig())
    assert "cannot be read by TensorRT 1." in str(caught.value)
    assert "; node t3/node_unique is a Unique near cells.2.memory_conv" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("t3/conv", "cells.2.memory_conv.weight"),
        ("t3/conv", "cells.2.memory_conv.weight/fp16"),
        ("t3/cells.2.memory_conv/node_Conv_5", "view_3"),
    ],
)
def test_the_layer_of_a_node_is_known_from_its_name_or_its_weight(name: str, weight: str, tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", weight], ["y"], name=name)
    values = numpy_helper.from_array(np.ones(1, np.float32), weight)
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [], [values])), tmp_path / "g.onnx")
    said = locate(tmp_path / "g.onnx", f"cannot compile operation '{name}' for Turing")
    assert said == f"; node {name} is a Conv of cells.2.memory_conv"
    assert locate(tmp_path / "g.onnx", "no node here") == ""
    assert locate(tmp_path / "none.onnx", name) == ""


@pytest.mark.parametrize("fake", CLASSES, ids=lambda fake: fake.__name__)
def test_the_fake_has_the_signatures_of_the_bindings(fake: type, rtx: Any) -> None:
    real = getattr(rtx, fake.__name__)
    for name, method in vars(fake).items():
        if name.startswith("_") or not callable(method):
            continue
        ours = list(inspect.signature(method).parameters)[1:]
        documented = re.findall(rf"\b{name}\(self: [\w.]+(?:, (.*))?\) ->", getattr(real, name).__doc__)
        assert documented, f"{fake.__name__}.{name}"
        assert any(re.findall(r"(?:^|, )(\w+): ", one)[: len(ours)] == ours for one in documented), documented


def plan_of(trt: FakeTensorRT, config: EngineConfig | None = None, **options: Any) -> bytes:
    return build_plan(trt, Path("step.onnx"), config or EngineConfig(), **options)


@pytest.mark.parametrize(("strongly_typed", "flags"), [(3, 8), (None, 0)])
def test_types_of_the_graph_are_kept_on_every_version(strongly_typed: int | None, flags: int) -> None:
    trt = FakeTensorRT(strongly_typed=strongly_typed)
    assert plan_of(trt, EngineConfig(workspace_bytes=5_000_000, optimization_level=1)) == b"plan"
    called = {"network": flags, "workspace": 5_000_000, "cleared": ["tf32"], "level": 1, "compatibility": None}
    assert trt.calls == called


def test_tf32_is_allowed_if_it_is_requested() -> None:
    trt = FakeTensorRT()
    plan_of(trt, tf32=True)
    assert "cleared" not in trt.calls


def test_options_reach_the_builder() -> None:
    trt = FakeTensorRT()
    config = EngineConfig(
        refittable=True,
        version_compatible=True,
        hardware_compatibility="same-compute-capability",
        compute_capabilities=("8.6", "8.9"),
    )
    plan_of(trt, config)
    assert trt.calls["flags"] == ["version", "no lean", "refit"]  # a plan contains no code for the host
    assert trt.calls["compatibility"] == "same compute capability"
    assert trt.calls["capabilities"] == {0: "86", 1: "89"}


def test_the_engine_allocates_no_memory_if_the_library_has_that_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX has the option, TensorRT does not."""
    monkeypatch.setattr(FakeTensorRT.BuilderFlag, "REQUIRE_USER_ALLOCATION", "user allocation", raising=False)
    trt = FakeTensorRT()
    plan_of(trt, EngineConfig())
    assert trt.calls["flags"] == ["user allocation"]


def test_an_option_that_a_version_lacks_is_refused() -> None:
    trt = FakeTensorRT()
    trt.HardwareCompatibilityLevel = type("Levels", (), {"NONE": "none"})  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"SAME_COMPUTE_CAPABILITY: TensorRT 10\.7\.0 does not support it, only NONE"):
        plan_of(trt, EngineConfig(hardware_compatibility="same-compute-capability"))


def test_a_dynamic_batch_gets_a_profile_for_each_bucket() -> None:
    trt = FakeTensorRT()
    trt.inputs = DYNAMIC
    plan_of(trt, EngineConfig(batches=((1, 1, 1), (2, 4, 8))))
    first, second = trt.calls["profiles"]
    assert first == {"frame": ((1, 1, 16, 24),) * 3, "history.0": ((1, 4, 48, 4),) * 3}
    assert second["frame"] == ((2, 1, 16, 24), (4, 1, 16, 24), (8, 1, 16, 24))
    plan_of(trt)  # by default one stream, and for the step also two
    assert trt.calls["profiles"][2] == first
    assert trt.calls["profiles"][3]["frame"] == ((2, 1, 16, 24),) * 3


def test_by_default_only_the_step_is_built_for_two_streams() -> None:
    assert {graph: default_buckets(graph) for graph in ("step", "rollout", "clip")} == {
        "step": ((1, 1, 1), (2, 2, 2)),
        "rollout": ((1, 1, 1),),
        "clip": ((1, 1, 1),),
    }


def test_a_fixed_batch_gets_no_profile_and_a_remark() -> None:
    trt, remarks = FakeTensorRT(), []
    plan_of(trt, EngineConfig(batches=((1, 2, 3),)), remark=remarks.append)
    assert "profiles" not in trt.calls
    assert remarks == ["step.onnx: runs a fixed number of streams, so the batch buckets are ignored"]


def test_only_the_batch_axis_may_be_dynamic() -> None:
    trt = FakeTensorRT()
    trt.inputs, trt.axis = DYNAMIC, "time"
    with pytest.raises(EngineError, match="axis time of frame is dynamic, and only an axis named batch may be"):
        plan_of(trt)


def test_a_profile_that_is_refused_is_an_error() -> None:
    trt = FakeTensorRT()
    trt.inputs, trt.refuses_profiles = DYNAMIC, True
    with pytest.raises(EngineError, match="refuses a profile for 2, 4, 8 streams"):
        plan_of(trt, EngineConfig(batches=((2, 4, 8),)))


def test_a_timing_cache_grows_and_one_of_another_gpu_is_replaced(tmp_path: Path) -> None:
    file, remarks = tmp_path / "timing", []
    config = EngineConfig(timing_cache=str(file))
    for expected in (b"timed ", b"timed timed "):
        plan_of(FakeTensorRT(), config, remark=remarks.append)
        assert file.read_bytes() == expected
    assert remarks == []
    file.write_bytes(b"foreign")
    plan_of(FakeTensorRT(), config, remark=remarks.append)
    assert file.read_bytes() == b"timed "
    assert "a different GPU or version" in remarks[0]


def test_a_timing_cache_that_cannot_be_written_does_not_affect_the_engine(tmp_path: Path) -> None:
    remarks: list[str] = []
    config = EngineConfig(timing_cache=str(tmp_path / "no folder" / "timing"))
    assert plan_of(FakeTensorRT(), config, remark=remarks.append) == b"plan"
    assert "not written (No such file or directory)" in remarks[0]


def test_a_graph_that_cannot_be_read_names_the_node() -> None:
    trt = FakeTensorRT()
    trt.parses = False
    with pytest.raises(
        EngineError, match=r"step\.onnx: cannot be read by TensorRT 10\.7\.0 \(Einsum t3/einsum: no such"
    ):
        plan_of(trt)


def test_a_graph_that_cannot_be_built_reports_the_first_error() -> None:
    with pytest.raises(EngineError, match="could not build it \\(no tactic for Conv_3\\)"):
        plan_of(FakeTensorRT(plan=None))


def test_without_a_gpu_the_error_names_the_library_that_builds_without_one() -> None:
    trt = FakeTensorRT()
    trt.no_gpu = True
    with pytest.raises(BackendUnavailable, match="needs its driver; TensorRT-RTX builds without"):
        plan_of(trt)


def test_progress_shows_the_time_of_the_last_build() -> None:
    seen: list[str] = []
    plan_of(FakeTensorRT(), expected=13, progress=seen.append)
    assert seen == ["tactics, 0 s of about 13"] * 2


def test_ctrl_c_cancels_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    trt.waits_for_cancel = True

    wait, waits = watch.wait, []

    def interrupted_once(*arguments: Any, **options: Any) -> Any:
        waits.append(arguments)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return wait(*arguments, **options)

    monkeypatch.setattr(watch, "wait", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        plan_of(trt)
    assert trt.calls["cancelled"]


@pytest.mark.slow
def test_ctrl_c_ends_a_real_build_and_leaves_nothing(rtx: Any, bundle_path: Path, tmp_path: Path) -> None:
    before = {file.name for file in bundle_path.iterdir()}
    command = ["build", str(bundle_path), "--target", "tensorrt-rtx", "--cache", str(tmp_path / "cache")]
    # A test run in the background ignores SIGINT, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    building = subprocess.Popen([sys.executable, "-m", "e3d_deploy", *command], stderr=subprocess.PIPE, text=True)
    assert building.stderr is not None
    assert any(line.startswith("clip: not cached") for line in building.stderr)  # reads until the line or the end
    time.sleep(0.5)
    building.send_signal(signal.SIGINT)
    # An orderly shutdown of the interpreter crashed because of the builder's thread. The process ends within 2 s on an
    # idle machine, measured 1.1 s; a loaded machine may take longer.
    assert building.wait(60) == 130
    assert building.stderr.read().endswith("interrupted\n")
    building.stderr.close()
    assert {file.name for file in bundle_path.iterdir()} == before
    assert not [file for file in (tmp_path / "cache").iterdir() if file.name.startswith(".")]


def test_an_error_in_the_thread_of_the_builder_is_raised() -> None:
    trt = FakeTensorRT()
    trt.plan = property()  # type: ignore[assignment]  # bytes() of it is a TypeError
    with pytest.raises(TypeError):
        plan_of(trt)


def test_a_missing_tensorrt_is_an_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_library.MODULES, "tensorrt", ("no_such_tensorrt",))
    with pytest.raises(BackendUnavailable, match="\\[gpu\\]', on a machine with an NVIDIA GPU") as caught:
        library("tensorrt")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("tensorrt", {"compute_capabilities": ("8.6",)}, "TensorRT builds for the GPU of this machine"),
        ("tensorrt-rtx", {"version_compatible": True}, "TensorRT-RTX does not support it"),
        ("tensorrt-rtx", {"hardware_compatibility": "ampere-plus"}, "its engines are portable"),
        (
            "tensorrt-rtx",
            {"compute_capabilities": ("8.9", "9.0")},
            "compute capability 9.0, only 7.5, 8.6, 8.9; on such a GPU use tensorrt, onnxruntime-cuda",
        ),
    ],
)
def test_an_option_that_a_library_lacks_is_refused(
    target: Any, options: dict[str, Any], words: str, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRT()
    monkeypatch.setattr(build_module, "library", lambda _: trt)
    with pytest.raises(ConfigError, match=words):
        build(Bundle.open(bundle_path), target, EngineConfig(**options))
    assert trt.built == 0


def test_rtx_remarks_that_engines_are_for_other_machines(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "library", lambda _: FakeTensorRT())
    monkeypatch.setattr(build_module, "rtx_unsupported_reason", lambda: "TensorRT-RTX 1.7.1 neither builds for …")
    remarks: list[str] = []
    build(Bundle.open(bundle_path), "tensorrt-rtx", remark=remarks.append)
    assert remarks[0] == "the engines are for other machines: TensorRT-RTX 1.7.1 neither builds for …"


def test_the_builder_of_rtx_accepts_only_the_compute_capabilities_of_its_enum(rtx: Any) -> None:
    settings = rtx.Builder(make_logger(rtx)).create_builder_config()
    settings.num_compute_capabilities = 1
    tried = ("7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
    numbers = {one: rtx.ComputeCapability(int(one.replace(".", ""))) for one in tried}
    taken = tuple(one for one, number in numbers.items() if settings.set_compute_capability(number, 0))
    assert taken == tensorrt_library.capabilities(rtx)
    assert "9.0" not in taken


def test_rtx_builds_refittable_engines_only_with_a_driver(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    monkeypatch.setattr(build_module, "library", lambda _: trt)
    monkeypatch.setattr(build_module, "machine", lambda: {"nvidia_driver": False})
    with pytest.raises(BackendUnavailable, match="omit --refit, or build on the device"):
        build(Bundle.open(bundle_path), "tensorrt-rtx", EngineConfig(refittable=True))
    monkeypatch.setattr(build_module, "machine", lambda: {"nvidia_driver": True})
    build(Bundle.open(bundle_path), "tensorrt-rtx", EngineConfig(refittable=True))
    assert set(trt.calls["flags"]) == {"refit"}


def test_rtx_does_not_use_the_timing_cache(bundle_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_module, "library", lambda _: FakeTensorRT())
    remarks: list[str] = []
    config = EngineConfig(timing_cache=str(tmp_path / "timing"))
    build(Bundle.open(bundle_path), "tensorrt-rtx", config, remark=remarks.append)
    assert remarks == ["the timing cache is not used: TensorRT-RTX times no kernels when it builds"]
    assert not (tmp_path / "timing").exists()


def test_an_engine_of_another_precision_is_not_written(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "library", lambda _: FakeTensorRT())
    bundle = with_graph(Bundle.open(bundle_path), "clip", precision="fp16")
    with pytest.raises(EngineError, match=r"fp16 was requested, but the graph shows .* \d+ in fp32"):
        build(bundle, "tensorrt")
    assert Bundle.open(bundle_path).manifest.engines == {}
    assert not (bundle_path / "engines").exists()


def test_a_precision_that_a_library_does_not_run_is_refused(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "library", lambda _: FakeTensorRT())
    bundle = with_graph(Bundle.open(bundle_path), "step", precision="fp8")
    with pytest.raises(BackendUnavailable, match=r"tensorrt does not run fp8, only .*; use tensorrt-rtx, or export"):
        build(bundle, "tensorrt")


def test_building_again_replaces_the_engines(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "library", lambda _: FakeTensorRT())
    build(Bundle.open(bundle_path), "tensorrt")
    monkeypatch.setattr(build_module, "library", lambda _: FakeTensorRT(plan=b"another plan"))
    sidecars = build(Bundle.open(bundle_path), "tensorrt")
    assert sidecars["step"].bytes == len(b"another plan")
    assert Bundle.open(bundle_path).manifest.engines["step.tensorrt"] == sidecars["step"]


def test_engines_of_another_target_stay(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "library", lambda _: FakeTensorRT())
    opened = Bundle.open(bundle_path)
    build(opened, "tensorrt")
    build(opened, "tensorrt-rtx")  # with the manifest that was read before the first build
    targets = {name.partition(".")[2] for name in Bundle.open(bundle_path).manifest.engines}
    assert targets == {"tensorrt", "tensorrt-rtx"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimization_level": 6}, "expected 0 to 5"),
        ({"workspace_bytes": 0}, "expected 1 to"),
        ({"batches": ((1, 8, 4),)}, "the fewest, the usual and the most"),
        ({"batches": ((1, 2),)}, "the fewest, the usual and the most"),
        ({"compute_capabilities": ("86",)}, "expected one such as 8.6"),
        ({"hardware_compatibility": "all"}, "expected one of none, ampere-plus"),
    ],
)
def test_an_invalid_config_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineConfig(**fields)
