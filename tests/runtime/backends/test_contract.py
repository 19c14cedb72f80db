"""Contract of all backends: the same tests for every spec, on fakes where the hardware is missing.

A backend without a fake is opened on this machine. If it cannot be opened, its tests are skipped with the reason.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.readme import backends_table
from e3d_deploy import contract, doctor, frames, runtime
from e3d_deploy.errors import BackendUnavailable, ConfigError, StreamError
from e3d_deploy.policies import POLICIES
from e3d_deploy.runtime import Bundle
from e3d_deploy.runtime.backends.protocol import Backend
from e3d_deploy.runtime.backends.registry import open_backend
from e3d_deploy.runtime.backends.spec import BackendSpec
from e3d_deploy.runtime.backends.specs import BACKENDS, find, register
from e3d_deploy.runtime.verify import agrees
from tests.fake_tensorrt_runtime import floats, pictures
from tests.manifests import with_policy
from tests.runtime.backends.cases import LARGEST, Case
from tests.runtime.test_young_ring import assert_empty_slots_are_zeros, with_junk
from tests.tools import e3d

ROUNDING = 5e-5
"""Tolerance for the same frames computed by other calls or in other batch sizes; measured 1.3e-6."""


def stepped(backend: Backend, seen: NDArray[Any], state: Any) -> tuple[NDArray[np.float32], Any]:
    """Step through all frames, [T, B, …]; return the last prediction and the last state."""
    for frame in seen:
        prediction, state = backend.step(frame, state)
    return prediction, state


def close_to(found: NDArray[Any], expected: NDArray[Any], name: str = "") -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING, err_msg=name)


def test_a_backend_matches_its_spec(case: Case) -> None:
    backend = case.backend
    assert backend.name == case.spec.name
    assert (backend.device is not None) == (case.spec.device == "gpu")
    assert backend.sizes == tuple(sorted(set(backend.sizes)))
    assert 1 in backend.sizes
    assert isinstance(backend.pads, bool)


def test_a_backend_agrees_with_the_recorded_reference(case: Case) -> None:
    assert agrees(case.bundle, case.backend)


def test_states_are_immutable_values(case: Case) -> None:
    backend, seen = case.backend, floats(7)
    _, held = stepped(backend, seen[:3], backend.initial_state(1))
    before = backend.to_arrays(held)
    first, following = stepped(backend, seen[3:], held)
    for one in (following, backend.gather([(held, 0)])):
        again, _ = stepped(backend, seen[3:], held)
        np.testing.assert_array_equal(again, first)
        backend.step(seen[0], one)
    for name, array in backend.to_arrays(held).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_gathered_streams_continue_unchanged(case: Case) -> None:
    backend, seen = case.backend, floats(4)
    young, old = (stepped(backend, seen[:count], backend.initial_state(1))[1] for count in (1, 4))
    for size in (size for size in backend.sizes if size <= LARGEST):
        rows = [old, young][:size] * max(1, size // 2)
        prediction, after = backend.step(np.concatenate([seen[0]] * size), backend.gather([(one, 0) for one in rows]))
        for row, one in enumerate(rows):
            expected, its = backend.step(seen[0], one)
            close_to(prediction[row : row + 1], expected)
            wanted = backend.to_arrays(its)
            for name, array in backend.to_arrays(backend.gather([(after, row)])).items():
                close_to(array, wanted[name], name)


def test_a_state_survives_conversion_to_arrays_and_back(case: Case) -> None:
    backend, seen = case.backend, floats(6)
    for count in (1, 6):  # The ring is partly filled after 1 frame and full after 6.
        _, state = stepped(backend, seen[:count], backend.initial_state(1))
        arrays = backend.to_arrays(state)
        expected = {tensor.name: (tensor.shape, tensor.dtype) for tensor in contract.states(case.bundle.config, 1)}
        assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == expected
        again = backend.to_arrays(backend.from_arrays(arrays))
        for name, array in again.items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)
            array[...] = 7  # The arrays are copies, so this must not change the state.
        returned = backend.step(seen[0], backend.from_arrays(arrays))[0]
        np.testing.assert_array_equal(returned, backend.step(seen[0], state)[0])


@pytest.mark.parametrize("junk", [1e3, np.nan])
def test_junk_in_empty_slots_of_arrays_is_cleared(case: Case, junk: float) -> None:
    backend, seen = case.backend, floats(6)
    for _ in range(2):  # The second round reuses the memory of the first.
        _, old = stepped(backend, seen, backend.initial_state(1))
        _, state = backend.step(seen[0], backend.initial_state(1))
        given = with_junk(backend.to_arrays(state), junk)
        taken = backend.from_arrays(given)
        for one in (taken, backend.gather([(taken, 0)]), backend.initial_state(1)):
            assert_empty_slots_are_zeros(backend.to_arrays(one))
        np.testing.assert_array_equal(backend.step(seen[1], taken)[0], backend.step(seen[1], state)[0])
        np.testing.assert_array_equal(given["history.0"][0, -1], junk)
        del old, state, taken, one


def test_clip_and_rollout_equal_single_steps(case: Case) -> None:
    backend, bundle = case.backend, case.bundle
    seen = floats(bundle.context_length)
    prediction, state = stepped(backend, seen, backend.initial_state(1))
    before, expected, last = backend.to_arrays(state), [prediction], state
    for _ in range(bundle.horizon - 1):
        following, last = backend.step(expected[-1], last)
        expected.append(following)
    wanted = backend.to_arrays(last)
    for forecast, after in (backend.clip(seen.swapaxes(0, 1)), backend.rollout(prediction, state)):
        close_to(forecast, np.stack(expected, axis=1))
        for name, array in backend.to_arrays(after).items():
            close_to(array, wanted[name], name)
    for name, array in backend.to_arrays(state).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_each_batch_size_returns_its_shapes(case: Case) -> None:
    for size in (size for size in case.backend.sizes if size <= LARGEST):
        prediction, state = case.backend.step(floats(1, size)[0], case.backend.initial_state(size))
        assert (prediction.shape, prediction.dtype) == ((size, 1, 16, 24), np.float32)
        assert len(case.backend.to_arrays(state)["written"]) == size


def test_pictures_give_the_same_predictions_as_their_frames(case: Case) -> None:
    backend, config = case.backend, case.bundle.config
    ours = theirs = backend.initial_state(1)
    for shown in pictures(3):
        seen = frames.to_frames(shown, image_size=config.image_size, channels=config.channels)
        found, ours = backend.step(shown, ours)
        expected, theirs = backend.step(seen, theirs)
        np.testing.assert_array_equal(found, expected)


def test_a_backend_can_be_closed_twice(case: Case) -> None:
    case.backend.initial_state(1)
    for _ in range(2):
        case.backend.close()
    with pytest.raises(StreamError), case.backend as backend:
        backend.initial_state(1)


def test_every_call_after_close_raises_the_same_error(case: Case) -> None:
    backend, seen = case.backend, floats(4)
    prediction, state = backend.step(seen[0], backend.initial_state(1))
    arrays = backend.to_arrays(state)
    backend.close()
    calls: list[Callable[[], object]] = [
        lambda: backend.initial_state(1),
        lambda: backend.gather([(state, 0)]),
        lambda: backend.step(seen[0], state),
        lambda: backend.clip(seen.swapaxes(0, 1)),
        lambda: backend.rollout(prediction, state),
        lambda: backend.to_arrays(state),
        lambda: backend.from_arrays(arrays),
    ]
    for call in calls:
        with pytest.raises(StreamError) as caught:
            call()
        assert str(caught.value) == f"{case.spec.name}: the backend was closed; load the bundle again"


def test_an_unsupported_policy_is_refused(arranged: tuple[BackendSpec, Bundle]) -> None:
    spec, bundle = arranged
    for policy in (*(one for one in POLICIES if one not in spec.policies), "fp4"):
        with pytest.raises(BackendUnavailable, match=f"^{spec.name} does not run {policy}, only .*; use ") as caught:
            open_backend(with_policy(bundle, policy), spec.name)
        assert caught.value.exit_code == 4


def test_a_duplicate_backend_name_is_refused() -> None:
    before = dict(BACKENDS)
    for name in ("openvino", "auto"):
        with pytest.raises(ConfigError, match=f"'{name}' is already registered; register the new backend under"):
            register(replace(find("onnxruntime"), name=name))
    assert before == BACKENDS


def test_a_registered_backend_appears_in_every_command(
    toy: BackendSpec, any_batch: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runtime.load(any_batch, "toy") as predictor:
        predictor.stream(renewal="none").push(pictures(1)[0, 0])
        assert predictor.backend.name == "toy"
    assert doctor.examine()["backends"]["toy"] is True
    assert ", toy;" in e3d("doctor").output
    for command in ("stream", "predict", "verify"):
        assert "emulated, toy." in " ".join(e3d(command, "--help").stdout.split())
    assert ", toy" in e3d("verify", bundle_path, "--backend", "tflite", code=2).output
    assert "toy: its nodes are not timed" in e3d("profile", bundle_path, "--backend", "toy", code=4).output
    assert "| `toy` | cpu | the ONNX graphs, unchanged, in NumPy | yes |" in backends_table()
    assert "| `toy` | fp32 | `pip install onnx` |" in backends_table()
    monkeypatch.setattr("e3d_deploy.runtime.choose.candidates", lambda: ["toy"])
    assert "auto selects toy" in e3d("doctor", "--bundle", bundle_path).stdout


def test_a_backend_whose_module_is_missing_names_the_remedy(
    toy: BackendSpec, any_batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    with monkeypatch.context() as patch:
        patch.setitem(BACKENDS, "toy", replace(toy, load=absent, hardware="a slide rule"))
        with pytest.raises(
            BackendUnavailable, match=r"^toy: onnx is not installed; pip install onnx, on a machine with a slide rule$"
        ):
            open_backend(Bundle.open(any_batch), "toy")
