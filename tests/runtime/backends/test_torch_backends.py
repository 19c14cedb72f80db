"""The ring step compared with the model, and the backends `torch-compiled` and `torch-cuda-graph`.

No GPU is needed: `HostGpu` captures graphs on the fake CUDA of `fake_cuda`, whose GPU memory is host memory.
"""

import inspect
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.utils._python_dispatch import TorchDispatchMode

from e3d_deploy import checkpoint, contract, inventory
from e3d_deploy.bundle.folder import MODEL
from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.errors import BackendUnavailable, EngineError, ResourceLimit, StreamError
from e3d_deploy.model import E3DLSTM
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import initial_arrays
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.specs import installed
from e3d_deploy.runtime.backends.torch_compiled import TorchCompiledBackend
from e3d_deploy.runtime.backends.torch_cuda_graph import TorchGpu, TorchGraphBackend
from e3d_deploy.runtime.backends.torch_eager import TorchBackend
from e3d_deploy.runtime.backends.torch_ring import RingStep
from e3d_deploy.runtime.verify import verify
from e3d_deploy.step import REWRITES
from e3d_deploy.tf32 import arithmetic
from tests.fake_cuda import Machine
from tests.fake_torch_gpu import HostGpu, put_in_place
from tests.manifests import with_policy

ROUNDING = 5e-5
"""Tolerance of predictions and states after 11 steps; measured 1.5e-6, and 7.1e-6 with SSE4.1 kernels."""
LOW_ROUNDING = {"bf16": 0.15, "fp16": 0.02}
"""Tolerance of predictions after 11 steps by policy; measured 0.037 and 0.004 in random networks on noise."""
ARITHMETIC = """
import sys, torch
from e3d_deploy.tf32 import arithmetic
precision, setting = sys.argv[1:]
exec(setting)
products, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
def settings():
    return products.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.benchmark
def others():
    return mkldnn.matmul.fp32_precision, torch.backends.fp32_precision
before = settings(), others()
with arithmetic(precision):
    kind = "ieee" if precision == "fp32" else "tf32"
    assert settings() == (kind, kind, kind, True), settings()
    # Inductor reads the older names, which raise if the two sets of names disagree.
    assert products.allow_tf32 == cudnn.allow_tf32 == (precision == "tf32")
    assert torch.get_float32_matmul_precision() == ("highest" if precision == "fp32" else "high")
assert (settings(), others()) == before, (settings(), others(), before)
if "allow" in setting:
    assert (products.allow_tf32, cudnn.allow_tf32) == (True, False)
print("put back")
"""
SET_BEFORE = {
    "nothing": "",
    "by the old names": "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cudnn.allow_tf32 = False",
    "by the new names": "torch.backends.fp32_precision = 'tf32'",
}
STEPS = 11
"""Number of steps; more than twice the number of slots in the rings of the tiny network."""


def network(config: ModelConfig, semantics: Semantics = "paper") -> E3DLSTM:
    if semantics == "openstl":
        config = replace(config, hidden=(4, 4), layer_norm=False)
    torch.manual_seed(0)
    return E3DLSTM(replace(config, semantics=semantics)).eval().requires_grad_(False)


def tensors(config: ModelConfig, batch: int) -> list[Tensor]:
    arrays = initial_arrays(config, batch)
    return [torch.from_numpy(arrays[tensor.name]) for tensor in contract.states(config, batch)]


class Rings:
    """Ring step that alternates between two sets of states."""

    def __init__(self, model: E3DLSTM, batch: int, **options: Any) -> None:
        self.config, self.step = model.config, RingStep(model, **options)
        self.states, self.other = tensors(model.config, batch), tensors(model.config, batch)

    def __call__(self, frame: Tensor, *, full: bool = False) -> Tensor:
        prediction: Tensor = self.step(frame, self.states, self.other, full=full)
        self.states, self.other = self.other, self.states
        return prediction

    def arrays(self) -> dict[str, Any]:
        names = (tensor.name for tensor in contract.states(self.config))
        return {name: state.numpy() for name, state in zip(names, self.states, strict=True)}


def frames(count: int, batch: int) -> Tensor:
    """Return random frames, [count, B, C, H, W]."""
    return torch.rand(count, batch, 1, 16, 24, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("semantics", "window_length"),
    [("paper", 2), ("google", 2), ("openstl", 2), ("paper", 3)],
)
@pytest.mark.parametrize("rewrites", [tuple(REWRITES), ("frozen-memory",)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_ring_step_equals_the_model_beyond_a_full_ring(
    tiny_config: ModelConfig, semantics: Semantics, window_length: int, rewrites: tuple[str, ...], channels_last: bool
) -> None:
    model = network(replace(tiny_config, window_length=window_length), semantics)
    eager, rings = (
        TorchBackend(model, batch=2),
        Rings(model, 2, rewrites=rewrites, channels_last=channels_last),
    )
    state = eager.initial_state(2)
    for frame in frames(STEPS, 2):
        expected, state = eager.step(frame.numpy(), state)
        np.testing.assert_allclose(rings(frame), expected, rtol=0, atol=ROUNDING)
        found = rings.arrays()
        for name, array in eager.to_arrays(state).items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=ROUNDING, err_msg=name)


def test_streams_of_different_age_do_not_affect_each_other(tiny_model: E3DLSTM) -> None:
    young, old = Rings(tiny_model, 1), Rings(tiny_model, 1)
    for frame in frames(STEPS, 1):
        old(frame)
    both = Rings(tiny_model, 2)
    both.states = [torch.cat(pair) for pair in zip(young.states, old.states, strict=True)]
    for frame in frames(STEPS, 2):
        alone = torch.cat([young(frame[:1]), old(frame[1:])])
        torch.testing.assert_close(both(frame), alone, rtol=0, atol=ROUNDING)


def test_a_full_ring_needs_no_mask(tiny_model: E3DLSTM) -> None:
    masked, unmasked = Rings(tiny_model, 1), Rings(tiny_model, 1)
    seen = frames(STEPS, 1)
    first = seen[: tiny_model.config.history_length - 1]
    for frame in first:
        masked(frame)
    for frame in seen[len(first) :]:
        unmasked.states = [state.clone() for state in masked.states]
        torch.testing.assert_close(unmasked(frame, full=True), masked(frame), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("semantics", ["paper", "google", "openstl"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_low_types_are_close_and_leave_states_in_float32(
    tiny_config: ModelConfig, semantics: Semantics, precision: str, channels_last: bool
) -> None:
    model = network(tiny_config, semantics)
    exact, low = Rings(model, 1), Rings(model, 1, precision=precision, channels_last=channels_last)
    worst = max(float((exact(frame) - low(frame)).abs().max()) for frame in frames(STEPS, 1))
    assert 1e-5 < worst < LOW_ROUNDING[precision]
    assert {state.dtype for state in low.states} == {torch.float32, torch.int32}


def test_inputs_are_not_changed(tiny_model: E3DLSTM) -> None:
    rings = Rings(tiny_model, 2)
    before = [state.clone() for state in rings.states]
    rings(frames(1, 2)[0])
    assert all(torch.equal(one, other) for one, other in zip(rings.other, before, strict=True))


class InPlace:
    """Ring step that alternates between two sets of states with shared rings and overwrites one slot of them."""

    def __init__(self, model: E3DLSTM, batch: int, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.step = RingStep(model, in_place=True, **options)
        self.names = [tensor.name for tensor in contract.states(model.config)]
        sets = tensors(model.config, batch), tensors(model.config, batch)
        rings = [name.startswith("history") for name in self.names]
        self.reads, self.writes = [list(one) for one in sets], [list(one) for one in sets]
        for place in (place for place, ring in enumerate(rings) if ring):
            shared, K = sets[0][place].to(dtype), model.config.history_length
            for side in (0, 1):
                self.reads[side][place] = shared
                self.writes[1 - side][place] = torch.zeros_like(shared[:, 0])
        assert self.step.config.history_length == K
        self.side = 0

    def __call__(self, frame: Tensor, *, full: bool = False) -> Tensor:
        side, self.side = self.side, 1 - self.side
        self.step.save(self.reads[side], self.writes[1 - side])
        prediction: Tensor = self.step(frame, self.reads[side], self.writes[1 - side], full=full)
        return prediction

    def arrays(self) -> dict[str, Any]:
        return {name: one.float() for name, one in zip(self.names, self.reads[self.side], strict=True)}


@pytest.mark.parametrize("semantics", ["paper", "google", "openstl"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_rings_updated_in_place_equal_copied_rings(
    tiny_config: ModelConfig, semantics: Semantics, precision: str, dtype: torch.dtype
) -> None:
    """Bitwise, also if the rings have the low type, because the matrix products convert them to that type anyway."""
    model = network(tiny_config, semantics)
    copied, in_place = Rings(model, 2, precision=precision), InPlace(model, 2, dtype, precision=precision)
    for number, frame in enumerate(frames(STEPS, 2)):
        expected = copied(frame)
        torch.testing.assert_close(in_place(frame), expected, rtol=0, atol=0)
        for name, array in in_place.arrays().items():
            stored = torch.from_numpy(copied.arrays()[name])
            stored = stored.to(dtype).float() if name.startswith("history") else stored.float()
            torch.testing.assert_close(array, stored, rtol=0, atol=0, msg=f"{name} after step {number}")


def test_restoring_a_saved_slot_restores_the_state(tiny_model: E3DLSTM) -> None:
    rings = InPlace(tiny_model, 2)
    for frame in frames(STEPS, 2):
        rings(frame)
    before = {name: one.clone() for name, one in rings.arrays().items()}
    side, slot = rings.side, int(before["written"][0]) % tiny_model.config.history_length
    rings(frames(1, 2)[0])
    for place, name in enumerate(rings.names):
        if name.startswith("history"):
            rings.reads[side][place][:, slot] = rings.writes[1 - side][place]
    rings.side = side
    for name, one in rings.arrays().items():
        torch.testing.assert_close(one, before[name], rtol=0, atol=0, msg=name)


class Operators(TorchDispatchMode):
    """Mode that records the name and largest result of each operator that PyTorch runs, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            results = [one for one in torch.utils._pytree.tree_leaves(result) if isinstance(one, Tensor)]
            self.found.append((str(func), max((one.numel() for one in results), default=0)))
        return result


def test_a_full_ring_takes_fewer_operators_and_is_not_copied(tiny_config: ModelConfig) -> None:
    model = network(replace(tiny_config, history_length=STEPS))  # Then no other tensor is as large as a ring.
    copied = Rings(model, 1, precision="bf16", channels_last=True)
    in_place = InPlace(model, 1, torch.bfloat16, precision="bf16", channels_last=True)
    for frame in frames(STEPS, 1):
        copied(frame), in_place(frame)
    with Operators() as before, torch.no_grad():
        copied(frame)
    with Operators() as after, torch.no_grad():
        in_place(frame, full=True)
    layers, ring = len(model.config.hidden), copied.states[copied.step.place["history.0"]].numel()
    # In place, there is no mask and no cast of a ring per layer, but one slot per layer is saved.
    saving = 3 + layers
    assert len(after.found) - saving < len(before.found) - layers
    copies = {
        name: [one for one, size in found if size >= ring and "index_copy_" not in one]
        for name, found in (("before", before.found), ("after", after.found))
    }
    assert (len(copies["before"]) >= 2 * layers, copies["after"]) == (True, [])
    assert sum("flash_attention" in name for name, _ in after.found) == layers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch itself raises warnings.
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_inductor_compiles_under_each_arithmetic(precision: str) -> None:
    """Inductor reads TF32 by the older of PyTorch's two sets of names, and fails if the two sets disagree."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    linear, seen = nn.Linear(64, 64), torch.ones(32, 64)
    # Inductor reads TF32 only if it chooses among several kernels, as it does with constant weights.
    with arithmetic(precision), torch.no_grad(), inductor.patch(freezing=True, force_disable_caches=True):
        found = torch.compile(linear, mode="max-autotune")(seen)
    torch.testing.assert_close(found, linear(seen))


@pytest.mark.parametrize("set_before", ["nothing", "by the old names", "by the new names"])
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_arithmetic_restores_the_settings(precision: str, set_before: str) -> None:
    """With each of PyTorch's two sets of names, in separate processes, because a process may use only one of them."""
    done = subprocess.run(
        [sys.executable, "-c", ARITHMETIC, precision, SET_BEFORE[set_before]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "put back\n"), done.stderr


# torch-compiled


def test_the_compiled_step_passes_verify(exported: Path) -> None:
    """The step is traced and lowered but not compiled to C++, which would take minutes."""
    bundle = Bundle.open(exported / "tiny.e3d")
    backend = TorchCompiledBackend(bundle, threads=1, compiler="aot_eager")
    assert (backend.name, backend.sizes, backend.pads) == ("torch-compiled", (1,), False)
    assert verify(bundle, backend, open_backend(bundle, "torch")).passed
    backend.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch itself raises warnings.
def test_the_step_compiled_to_cpp_passes_verify(exported: Path) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    assert verify(bundle, open_backend(bundle, "torch-compiled", threads=1), open_backend(bundle, "torch")).passed


def test_a_missing_compiler_is_reported(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand so on")

    with pytest.raises(BackendUnavailable, match=r"compile the step \(No working.*found\); install a C\+\+ compiler"):
        TorchCompiledBackend(Bundle.open(exported / "tiny.e3d"), compiler=broken)  # type: ignore[arg-type]


# torch-cuda-graph


@pytest.fixture
def machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    put_in_place(machine, monkeypatch)
    return machine


def pictures(count: int, batch: int) -> Any:
    return np.random.default_rng(5).integers(0, 256, (count, batch, 16, 24, 1), np.uint8)


def test_graphs_pass_verify(exported: Path, machine: Machine) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    backend = open_backend(bundle, "torch-cuda-graph")
    assert (backend.name, backend.sizes, backend.pads) == ("torch-cuda-graph", (1,), True)
    assert verify(bundle, backend, open_backend(bundle, "torch")).passed
    assert (machine.counts["eager"], machine.counts["capture"]) == (6, 6), (
        "for each of two sets: saving, and a step with and without a mask"
    )
    assert machine.counts["replay"] > 10
    backend.measure(True)
    backend.clip(frames(4, 1).transpose(0, 1).numpy())
    assert backend.device_ms is None, "the time of a clip by steps would be that of its last step"
    backend.step(frames(1, 1)[0].numpy(), backend.initial_state())
    assert backend.device_ms > 0
    backend.close()
    assert (machine.allocated, machine.counts["release"]) == (0, 1)


def test_the_fake_has_the_methods_of_torch_gpu() -> None:
    for name, member in vars(TorchGpu).items():
        if not name.startswith("_"):
            assert list(inspect.signature(getattr(HostGpu, name)).parameters) == list(
                inspect.signature(getattr(TorchGpu, name)).parameters
            ), member
    # `torch.cuda.graph` runs only on a GPU, so only the names of its parameters are checked.
    inspect.signature(torch.cuda.graph).bind(None, pool=None, stream=None, capture_error_mode="thread_local")


def test_graphs_of_many_streams_equal_onnxruntime(any_batch: Path, machine: Machine) -> None:
    bundle = Bundle.open(any_batch)
    gpu, cpu = open_backend(bundle, "torch-cuda-graph"), open_backend(bundle, "onnxruntime", threads=1)
    assert gpu.sizes == cpu.sizes == bundle.sizes
    ours, theirs = gpu.initial_state(4), cpu.initial_state(4)
    for shown in pictures(STEPS, 4):
        prediction, ours = gpu.step(shown, ours)
        expected, theirs = cpu.step(shown, theirs)
        np.testing.assert_allclose(prediction, expected, rtol=0, atol=ROUNDING)
    ours, theirs = gpu.gather([(ours, 3), (ours, 0)]), cpu.gather([(theirs, 3), (theirs, 0)])
    held = gpu.to_arrays(ours)
    for shown in pictures(STEPS, 2):
        prediction, following = gpu.step(shown, ours)
        expected, _ = cpu.step(shown, theirs)
        np.testing.assert_allclose(prediction, expected, rtol=0, atol=ROUNDING)
    for name, array in gpu.to_arrays(ours).items():
        np.testing.assert_array_equal(array, held[name], err_msg="a referenced state does not change")
    returned = gpu.from_arrays(gpu.to_arrays(following))
    np.testing.assert_array_equal(gpu.to_arrays(returned)["cell.0"], gpu.to_arrays(following)["cell.0"])
    forecast, _ = gpu.clip(frames(4, 2).transpose(0, 1).numpy())
    expected, _ = cpu.clip(frames(4, 2).transpose(0, 1).numpy())
    np.testing.assert_allclose(forecast, expected, rtol=0, atol=ROUNDING)


def test_a_step_that_cannot_be_captured_runs_uncaptured(
    exported: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(HostGpu, "captures", False)
    bundle = Bundle.open(exported / "tiny.e3d")
    backend = open_backend(bundle, "torch-cuda-graph")
    with caplog.at_level(logging.WARNING):
        assert verify(bundle, backend, open_backend(bundle, "torch")).passed
    assert "kernel by kernel" in caplog.text
    assert (machine.counts["capture"], backend.captures, backend.compiles) == (6, False, True)
    assert machine.counts["eager"] > 10


@pytest.mark.parametrize("kind", [RuntimeError, FailOnRecompileLimitHit])
def test_a_step_that_cannot_be_compiled_runs_uncompiled(
    kind: type[Exception],
    exported: Path,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: RingStep) -> Callable[..., Tensor]:
        def step(*_: object, **__: object) -> Tensor:
            raise kind("Cannot find a working triton installation\nand so on")

        return step

    monkeypatch.setattr(HostGpu, "compiler", staticmethod(broken))
    bundle = Bundle.open(exported / "tiny.e3d")
    backend = open_backend(bundle, "torch-cuda-graph")
    assert verify(bundle, backend, open_backend(bundle, "torch")).passed
    assert caplog.text.count("cannot compile the step (Cannot find a working triton installation)") == 1
    assert (backend.captures, backend.compiles) == (True, False)


def test_full_rings_use_the_compiled_step(exported: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[bool] = []

    def compiler(ring: RingStep) -> Callable[..., Tensor]:
        def step(*args: Any, full: bool = False) -> Tensor:
            forms.append(full)
            prediction: Tensor = ring(*args, full=full)
            return prediction

        return step

    monkeypatch.setattr(HostGpu, "compiler", staticmethod(compiler))
    bundle = Bundle.open(exported / "tiny.e3d")
    backend, K = open_backend(bundle, "torch-cuda-graph"), bundle.config.history_length
    state = backend.initial_state()
    for shown in pictures(K + 3, 1):
        _, state = backend.step(shown, state)
    backend.to_arrays(state)
    assert forms == [True] * (2 + 4), "two to prepare, one per set; then the steps with full rings, from step K - 1 on"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_states_stay_values_when_kept_stepped_and_gathered(any_batch: Path, machine: Machine, precision: str) -> None:
    """Compare bitwise with the ring step on the host that copies rings."""
    bundle = with_policy(Bundle.open(any_batch), precision)
    gpu, model = open_backend(bundle, "torch-cuda-graph"), checkpoint.load(bundle.path / MODEL)
    last = precision != "fp32"

    def expected(arrays: dict[str, Any], frame: Any) -> tuple[Any, dict[str, Any]]:
        rings = Rings(model, 2, precision=precision, channels_last=last)
        rings.states = [torch.from_numpy(arrays[name].copy()) for name in sorted(arrays)]
        return rings(torch.from_numpy(frame)).numpy(), stored(rings.arrays(), precision)

    rng, seen = np.random.default_rng(0), frames(60, 2).numpy()
    held = [(state := gpu.initial_state(2), gpu.to_arrays(state))]
    for frame in seen:
        state, arrays = held[rng.integers(len(held))]
        act = rng.random()
        if act < 0.7:  # Mostly step the latest state, as an application does.
            state, arrays = held[-1] if act < 0.5 else (state, arrays)
            (prediction, state), (wanted, arrays) = gpu.step(frame, state), expected(arrays, frame)
            np.testing.assert_array_equal(prediction, wanted)
        elif act < 0.85:
            other, its = held[rng.integers(len(held))]
            state = gpu.gather([(other, 1), (state, 0)])
            arrays = {name: np.stack([its[name][1], arrays[name][0]]) for name in arrays}
        else:
            state = gpu.from_arrays(arrays)
        held = [*held[-3:], (state, arrays)]
        for one, its in held:
            for name, array in gpu.to_arrays(one).items():
                np.testing.assert_array_equal(array, its[name], err_msg=name)
    gpu.close()
    held.clear()
    assert machine.allocated == 0


@pytest.mark.parametrize("launched", [False, True])
def test_an_interrupted_step_leaves_its_state_intact(exported: Path, machine: Machine, launched: bool) -> None:
    """Ctrl-C arrives just before or after the launch, before the backend has recorded the step."""
    backend = open_backend(Bundle.open(exported / "tiny.e3d"), "torch-cuda-graph")
    state, frame = backend.initial_state(), frames(1, 1)[0].numpy()
    for seen in frames(STEPS, 1).numpy():
        _, state = backend.step(seen, state)
    before, steps = backend.to_arrays(state), dict(backend.steps)

    def interrupted(step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            if launched:
                step()
            raise KeyboardInterrupt

        return run

    backend.steps = {key: interrupted(step) for key, step in steps.items()}
    with pytest.raises(KeyboardInterrupt):
        backend.step(frame, state)
    backend.steps = steps
    for name, array in backend.to_arrays(state).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    prediction, _ = backend.step(frame, state)
    np.testing.assert_array_equal(prediction, backend.step(frame, backend.from_arrays(before))[0])


def test_a_state_of_another_backend_is_refused(exported: Path, machine: Machine) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    one, other = open_backend(bundle, "torch-cuda-graph"), open_backend(bundle, "torch-cuda-graph")
    state = other.initial_state()
    for use in (lambda: one.step(frames(1, 1)[0].numpy(), state), lambda: one.gather([(state, 0)])):
        with pytest.raises(StreamError, match="belongs to another backend; convert it"):
            use()


def stored(arrays: dict[str, Any], precision: str) -> dict[str, Any]:
    """Return states with the rounding of rings that are stored in the low type."""
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    return {
        name: torch.from_numpy(array).to(low).float().numpy() if name.startswith("history") else array.copy()
        for name, array in arrays.items()
    }


def test_a_lack_of_memory_for_the_graphs_leaves_nothing_behind(exported: Path, machine: Machine) -> None:
    backend = open_backend(Bundle.open(exported / "tiny.e3d"), "torch-cuda-graph")
    before = machine.allocated
    HostGpu.error = torch.OutOfMemoryError("CUDA out of memory. Tried")
    with pytest.raises(ResourceLimit, match="no memory left"):
        backend.initial_state()
    assert (machine.allocated, backend.steps, machine.counts["release"]) == (before, {}, 1)
    backend.step(frames(1, 1)[0].numpy(), backend.initial_state())


def test_workspaces_are_freed_and_a_failed_capture_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """This uses private functions of PyTorch, which its type stubs list."""
    calls: list[str] = []
    names = ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool")
    listed = (Path(torch.__file__).parent / "_C" / "__init__.pyi").read_text()
    for name in names:
        assert f"def {name}(" in listed
        monkeypatch.setattr(torch._C, name, lambda *_, name=name: calls.append(name), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    TorchGpu.release(object.__new__(TorchGpu))
    assert calls == [names[0], "empty_cache"]
    calls.clear()

    class Refused:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

        def __exit__(self, *_: object) -> None:
            raise AssertionError

    gpu = object.__new__(TorchGpu)
    gpu.device, gpu.stream, gpu.pool = torch.device("cuda", 0), None, (0, 1)  # type: ignore[assignment]
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", Refused)
    with pytest.raises(RuntimeError, match="not permitted"):
        gpu.capture(lambda: None)
    assert calls == [names[0], names[1], names[0]], "the workspaces are cleared before and after a capture"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), ResourceLimit, "no memory left"),
        (RuntimeError("CUDA error: an illegal memory access"), EngineError, "could not run the step"),
    ],
)
def test_a_failed_step_names_the_cause_and_keeps_the_state_before_it(
    exported: Path, machine: Machine, error: Exception, kind: type[Exception], words: str
) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    backend, frame = open_backend(bundle, "torch-cuda-graph"), frames(1, 1)[0].numpy()
    _, state = backend.step(frame, backend.initial_state())
    HostGpu.error = error
    with pytest.raises(kind, match=words):
        backend.step(frame, state)
    expected = open_backend(bundle, "torch")
    _, other = expected.step(frame, expected.initial_state())
    for _ in range(2):
        found, _ = backend.step(frame, state)
        np.testing.assert_allclose(found, expected.step(frame, other)[0], rtol=0, atol=ROUNDING)


def test_a_missing_gpu_is_reported_with_the_remedy(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match=r"finds no GPU; install a PyTorch built for CUDA, on a machine with"):
        open_backend(Bundle.open(exported / "tiny.e3d"), "torch-cuda-graph")


def test_a_gpu_backend_is_installed_only_with_a_driver_and_a_pytorch_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch": "2.11.0+cu130"}
    monkeypatch.setattr(inventory, "has_library", lambda _: True)
    monkeypatch.setattr(inventory, "version_of", lambda packages: there.get(packages[0]))
    for driver, version, expected in ((True, "2.13.0", True), (True, "2.13.0+cpu", False), (False, "2.13.0", False)):
        monkeypatch.setattr(inventory, "has_nvidia_driver", lambda found=driver: found)
        there["torch"] = version
        assert ("torch-cuda-graph" in installed()) == expected
        assert {"torch", "torch-compiled"} < set(installed())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_graphs_on_a_gpu_pass_verify(exported: Path) -> None:
    bundle = Bundle.open(exported / "tiny.e3d")
    backend = open_backend(bundle, "torch-cuda-graph")
    assert isinstance(backend, TorchGraphBackend)
    assert verify(bundle, backend, open_backend(bundle, "torch")).passed
    backend.close()
