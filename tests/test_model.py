"""The network compared with the released TensorFlow code, the slow reference, and itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.importing import compare_outputs, import_checkpoint
from e3d_deploy.model import E3DLSTM, E3DLSTMCell, OpenSTLConvolution, from_entry, to_entry, to_frames, to_patches
from e3d_deploy.training.sampling import after_context
from tests.golden import (
    GOLDEN,
    Arrays,
    cell_parameters,
    channels_first,
    model_parameters,
    read,
    volume,
)
from tests.reference import cell_step
from tests.tools import largest_difference

CELL = 5e-6  # measured 1.1e-6 (recalled state, next cell)
GRADIENT = 5e-6  # of the largest entry; measured 1.3e-6 in float32, 1.5e-6 in float64: TensorFlow's own rounding
FRAMES = 2e-5  # measured A 1.8e-6, C 3.6e-6
OPENSTL = 5e-6  # measured 9.4e-7 (a_plain), 8.9e-7 (b_normed)
STATES = 5e-5  # measured A 2.5e-6 (cell), C 5.5e-6 (memory)
LOSS = 1e-6  # relative; measured 1.4e-7
REFERENCE = 1e-12  # float64; measured 2.1e-15
GOLDEN_REFERENCE = 5e-6  # the reference in float64 against TensorFlow in float32; measured 7.9e-7
ALONE = 1e-12  # float64, a sample alone compared with the same sample in a batch; measured 0
DEPTH = 2
"""Frames in the window of the released code."""

both_variants = pytest.mark.parametrize(("variant", "semantics"), [("paper", "paper"), ("released", "google")])


# One cell


def golden_cell(semantics: Semantics) -> tuple[E3DLSTMCell, dict[str, Tensor], Arrays]:
    """Return the recorded cell, its inputs by name (history as states, [B, N, S·D, h, w]), and all arrays."""
    arrays, settings = read(GOLDEN / "cell.npz")
    hidden = settings["hidden"]
    cell = E3DLSTMCell(
        settings["in_channels"],
        hidden,
        hidden,
        kernel_size=5,
        layer_norm=True,
        norm_eps=1e-12,
        semantics=semantics,
    )
    cell.load_state_dict(cell_parameters(arrays, "w/cell/"))
    inputs = {name: volume(arrays[name]) for name in ("inputs", "hidden", "cell", "memory", "history")}
    return cell, inputs, arrays


def to_entries(history: Tensor) -> tuple[Tensor, ...]:
    """Convert past cells joined on the depth axis, [B, N, S·D, h, w], to S entries of a history, [B, D·h·w, N]."""
    return tuple(to_entry(cell, "paper") for cell in history.split(DEPTH, dim=2))


def call(cell: E3DLSTMCell, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the results of a call, and the state that it recalls, by their recorded names."""
    recalled: list[Tensor] = []
    handle = cell.recall.register_forward_hook(lambda module, args, output: recalled.append(output))
    output, new_cell, memory = cell(
        inputs["inputs"], inputs["hidden"], inputs["cell"], inputs["memory"], to_entries(inputs["history"])
    )
    handle.remove()
    return {"output": output, "new_cell": new_cell, "memory": memory, "attn": recalled[0]}


@both_variants
def test_cell_equals_the_released_one(variant: str, semantics: Semantics) -> None:
    cell, inputs, arrays = golden_cell(semantics)
    differences = {
        name: largest_difference(ours, volume(arrays[f"{variant}/{name}"])) for name, ours in call(cell, inputs).items()
    }
    assert max(differences.values()) < CELL, differences


@both_variants
def test_gradients_equal_those_of_the_released_cell(variant: str, semantics: Semantics) -> None:
    cell, inputs, arrays = golden_cell(semantics)
    for tensor in inputs.values():
        tensor.requires_grad_()
    given = call(cell, inputs)
    products = [given[name] * volume(arrays[f"cotangent/{name}"]) for name in ("output", "new_cell", "memory")]
    torch.stack(products).sum().backward()

    expected = {name: volume(arrays[f"{variant}/grad/{name}"]) for name in inputs}
    expected |= cell_parameters(arrays, f"{variant}/grad/cell/")
    ours = inputs | dict(cell.named_parameters())
    assert ours.keys() == expected.keys()
    differences = {}
    for name, gradient in expected.items():
        found = ours[name].grad
        assert found is not None
        differences[name] = largest_difference(found, gradient) / gradient.abs().max().item()
    assert max(differences.values()) < GRADIENT, differences


def as_numpy(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}


def call_reference(cell: E3DLSTMCell, inputs: dict[str, Tensor], depth: int) -> list[Tensor]:
    arrays = as_numpy(inputs)
    slots = arrays["history"].shape[2] // depth
    history = np.stack(np.split(arrays.pop("history"), slots, axis=2), axis=1)
    return [
        torch.tensor(array) for array in cell_step(as_numpy(dict(cell.named_parameters())), **arrays, history=history)
    ]


def test_reference_equals_the_released_cell() -> None:
    cell, inputs, arrays = golden_cell("paper")
    for name, ours in zip(("output", "new_cell", "memory"), call_reference(cell, inputs, DEPTH), strict=True):
        assert largest_difference(ours, volume(arrays[f"paper/{name}"])) < GOLDEN_REFERENCE, name


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("depth", [2, 3])
def test_cell_equals_the_reference(layer_norm: bool, depth: int) -> None:
    torch.manual_seed(3)
    B, P, N, M, h, w, slots = 2, 5, 3, 4, 2, 3, 4
    cell = E3DLSTMCell(P, N, M, kernel_size=3, layer_norm=layer_norm, norm_eps=1e-12, semantics="paper").double()
    for weight in cell.parameters():
        nn.init.normal_(weight, std=0.5)  # otherwise the norms would scale by 1 and shift by 0
    channels = {"inputs": P, "hidden": N, "cell": N, "memory": M}
    inputs = {name: torch.randn(B, size, depth, h, w).double() for name, size in channels.items()}
    states = torch.randn(B, slots, N, depth, h, w).double()
    ours = cell(*inputs.values(), tuple(to_entry(state, "paper") for state in states.unbind(1)))
    theirs = call_reference(cell, inputs | {"history": states.movedim(1, 2).flatten(2, 3)}, depth)
    for our, their in zip(ours, theirs, strict=True):
        assert largest_difference(our, their) < REFERENCE


# Whole networks


@contextmanager
def recording(model: E3DLSTM) -> Iterator[dict[str, list[Tensor]]]:
    """Return the inner states of every step by their recorded names."""
    states: dict[str, list[Tensor]] = {}

    def keep(layer: int, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            states.setdefault(f"{name}_l{layer}", []).append(tensor)

    handles = []
    for layer, cell in enumerate(model.cells):
        handles += [
            cell.register_forward_hook(
                lambda _, args, out, layer=layer: keep(layer, inputs=args[0], hidden=out[0], cell=out[1], memory=out[2])
            ),
            cell.recall.register_forward_hook(lambda _, args, out, layer=layer: keep(layer, attn=out)),
        ]
    yield states
    for handle in handles:
        handle.remove()


def golden_model(path: Path, semantics: Semantics) -> tuple[E3DLSTM, Arrays, int]:
    """Return a recorded network, all arrays, and the horizon."""
    arrays, settings = read(path)
    config = ModelConfig(
        image_size=(settings["height"], settings["width"]),
        patch_size=settings["patch"],
        hidden=settings["hidden"],
        norm_eps=1e-12,
        semantics=semantics,
    )
    model = E3DLSTM(config).eval().requires_grad_(False)
    model.load_state_dict(model_parameters(arrays, len(config.hidden)))
    return model, arrays, settings["total_length"] - settings["input_length"]


def flags(arrays: Arrays, case: str, horizon: int) -> Tensor:
    """Return a flag per frame, True if the true frame was the input: always in the context, then as recorded."""
    drawn = torch.tensor(arrays[f"{case}/flag_per_step"])
    return after_context(drawn, arrays["images"].shape[1] - horizon)


def frames_of(model: E3DLSTM, patches: np.ndarray) -> Tensor:
    return to_frames(channels_first(patches), model.config.patch_size)


@both_variants
@pytest.mark.parametrize("case", ["free", "mask"])
@pytest.mark.parametrize("name", ["A", "C"])
def test_network_equals_the_released_one(name: str, case: str, variant: str, semantics: Semantics) -> None:
    model, arrays, horizon = golden_model(GOLDEN / f"model_{name}_{variant}.npz", semantics)
    frames = channels_first(arrays["images"])
    with recording(model) as states:
        predictions = model(frames, horizon, flags(arrays, case, horizon))

    assert largest_difference(predictions, frames_of(model, arrays[f"{case}/gen"])) < FRAMES
    assert largest_difference(predictions[:, -horizon:], frames_of(model, arrays[f"{case}/out"])) < FRAMES
    difference = predictions - frames[:, 1:]
    loss = difference.square().sum() / 2 + difference.abs().sum()
    assert loss.item() == pytest.approx(arrays[f"{case}/loss_sum"], rel=LOSS)

    recorded = {key.removeprefix(f"{case}/") for key in arrays if key.startswith(f"{case}/") and "_l" in key}
    assert states.keys() == recorded - {"flag_per_step", "loss_sum", "loss_train"}
    differences = {
        state: largest_difference(torch.stack(steps), volume(arrays[f"{case}/{state}"]))
        for state, steps in states.items()
    }
    assert max(differences.values()) < STATES, differences


@pytest.mark.parametrize("name", ["a_plain.pth", "b_normed.ckpt"])
def test_network_equals_the_one_of_openstl(name: str) -> None:
    """Without gate norms, and with gate norms in colour; predictions replace frames after and within the context."""
    model = import_checkpoint(GOLDEN / "openstl" / name).model
    recorded = (GOLDEN / "openstl" / name).with_suffix(".npz")
    assert compare_outputs(model, recorded).worst < OPENSTL


def test_openstl_entries_mix_positions_and_are_converted_back() -> None:
    """A key of OpenSTL is N successive numbers in memory, channels first."""
    cell = torch.arange(2 * 3 * 2 * 2 * 2.0).reshape(2, 3, 2, 2, 2)
    entry = to_entry(cell, "openstl")
    assert entry[0, :2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert to_entry(cell, "paper")[0, :2].tolist() == [[0, 8, 16], [1, 9, 17]]
    for semantics in ("paper", "openstl"):
        assert torch.equal(from_entry(to_entry(cell, semantics), cell, semantics), cell)


def test_openstl_convolution_copies_its_result_to_both_frames_and_the_full_grid() -> None:
    found = OpenSTLConvolution(3, 5, 3, stride=2)(torch.randn(2, 3, 2, 4, 6))
    assert found.shape == (2, 5, 2, 4, 6)
    assert torch.equal(found[:, :, 0], found[:, :, 1])
    for row, column in ((0, 1), (1, 0), (1, 1)):
        assert torch.equal(found[..., row::2, column::2], found[..., ::2, ::2])


@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_equal_the_released_ones(channels: int, patch_size: int) -> None:
    arrays, _ = read(GOLDEN / "preprocess.npz")
    frames = channels_first(arrays[f"images_c{channels}"])
    patches = channels_first(arrays[f"patched_c{channels}_p{patch_size}"])
    assert torch.equal(to_patches(frames, patch_size), patches)
    assert torch.equal(to_frames(patches, patch_size), frames)


# Memory, history, window


def test_memory_moves_at_every_step(tiny_model: E3DLSTM, frame: Tensor) -> None:
    """google/e3d_lstm issue 29: the released cell returns the memory unchanged."""
    state = tiny_model.initial_state(batch=2)
    for _ in range(3):
        _, next_state = tiny_model.step(frame, state)
        assert not torch.equal(next_state.memory, state.memory)
        state = next_state


@pytest.mark.parametrize("semantics", ["google", "openstl"])
def test_memory_stays_zero(semantics: Semantics, tiny_config: ModelConfig, clip: Tensor) -> None:
    model = E3DLSTM(replace(tiny_config, semantics=semantics, hidden=(4, 4)))
    state = model.initial_state(batch=2)
    for frame in clip.unbind(1):
        _, state = model.step(frame, state)
        assert not state.memory.any()


def test_history_keeps_only_the_last_states(tiny_config: ModelConfig, tiny_model: E3DLSTM, clip: Tensor) -> None:
    K = tiny_config.history_length
    unlimited = E3DLSTM(replace(tiny_config, history_length=100))
    unlimited.load_state_dict(tiny_model.state_dict())
    state, by_hand, endless = (tiny_model.initial_state(batch=2) for _ in range(3))
    for frame in clip.unbind(1):
        prediction, state = tiny_model.step(frame, state)
        by_hand = by_hand._replace(history=tuple(entries[-K:] for entries in by_hand.history))
        expected, by_hand = unlimited.step(frame, by_hand)
        all_recalled, endless = unlimited.step(frame, endless)
        assert torch.equal(prediction, expected)
    assert [len(entries) for entries in state.history] == [K, K]
    assert [len(entries) for entries in endless.history] == [8, 8]
    assert not torch.equal(prediction, all_recalled)


def test_initial_zero_state_is_recalled(tiny_model: E3DLSTM) -> None:
    state = tiny_model.initial_state(batch=2)
    assert [[entry.shape for entry in entries] for entries in state.history] == [[(2, 48, 4)], [(2, 48, 6)]]
    assert not any(entry.any() for entries in state.history for entry in entries)


def test_window_holds_the_last_frames(tiny_config: ModelConfig, clip: Tensor) -> None:
    model = E3DLSTM(replace(tiny_config, window_length=3))
    state = model.initial_state(batch=2)
    for frame in clip.unbind(1):
        _, state = model.step(frame, state)
    assert torch.equal(state.window, to_patches(clip[:, -2:], 4).transpose(1, 2))


def test_step_does_not_change_its_input_state(tiny_model: E3DLSTM, clip: Tensor) -> None:
    _, state = tiny_model.step(clip[:, 0], tiny_model.initial_state(batch=2))
    once, _ = tiny_model.step(clip[:, 1], state)
    again, _ = tiny_model.step(clip[:, 1], state)
    assert torch.equal(once, again)


def test_samples_of_a_batch_are_independent(tiny_model: E3DLSTM, clip: Tensor) -> None:
    model, clip = tiny_model.double(), clip.double()
    together = model(clip, horizon=2)
    alone = torch.cat([model(sample[None], horizon=2) for sample in clip])
    assert largest_difference(together, alone) < ALONE


# Sizes of networks


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": (3, 7, 5)},
        {"hidden": (5,)},
        {"channels": 3},
        {"image_size": (8, 40)},
        {"window_length": 3},
        {"kernel_size": 5},
        {"patch_size": 8},
        {"layer_norm": False},
        {"semantics": "google", "hidden": (3, 7, 5)},
        {"semantics": "openstl", "hidden": (4, 4)},
        {"semantics": "openstl", "hidden": (4, 4), "stride": 2, "layer_norm": False, "channels": 3},
    ],
    ids=str,
)
def test_networks_of_every_shape_predict_and_learn(tiny_config: ModelConfig, changes: dict[str, object]) -> None:
    torch.manual_seed(4)
    config = replace(tiny_config, **changes)
    model = E3DLSTM(config)
    frames = torch.rand(2, 3, config.channels, *config.image_size)
    predictions = model(frames, horizon=3)
    assert predictions.shape == (2, 5, config.channels, *config.image_size)
    predictions.square().sum().backward()
    unmoved = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    # A memory of zeros gives no gradient to the kernel that reads it, nor, as biases start at zero, to the norm.
    frozen = {
        name for name, _ in model.named_parameters() if name.endswith(("memory_conv.weight", "memory_norm.weight"))
    }
    assert unmoved == (set() if config.semantics == "paper" else frozen)


def test_network_without_gate_norms_stays_finite(tiny_config: ModelConfig) -> None:
    torch.manual_seed(5)
    model = E3DLSTM(replace(tiny_config, layer_norm=False))
    norms = {name.split(".")[2] for name, _ in model.named_parameters() if "norm" in name}
    assert norms == {"cell_norm"}
    predictions = model(torch.rand(1, 2, 1, 16, 24), horizon=11)
    assert predictions.shape[1] == 12
    assert predictions.isfinite().all()


# Input frames


def test_without_truth_predictions_are_fed_back(tiny_model: E3DLSTM, clip: Tensor) -> None:
    unseen = after_context(torch.zeros(2, 2), context_length=4)
    assert torch.equal(tiny_model(clip[:, :4], horizon=3), tiny_model(clip, horizon=3, truth=unseen))


@pytest.mark.parametrize("changes", [{}, {"stride": 2, "layer_norm": False}], ids=str)
def test_forward_is_a_loop_of_steps_with_openstl_too(
    changes: dict[str, object], tiny_config: ModelConfig, clip: Tensor
) -> None:
    model = E3DLSTM(replace(tiny_config, semantics="openstl", hidden=(4, 4), **changes)).eval()
    state, expected = model.initial_state(batch=2), []
    for frame in clip.unbind(1):
        prediction, state = model.step(frame, state)
        expected.append(prediction)
    assert torch.equal(model(clip, horizon=1), torch.stack(expected, dim=1))


def test_truth_of_ones_uses_every_true_frame(tiny_model: E3DLSTM, clip: Tensor) -> None:
    state = tiny_model.initial_state(batch=2)
    expected = []
    for frame in clip[:, :-1].unbind(1):
        prediction, state = tiny_model.step(frame, state)
        expected.append(prediction)
    assert torch.equal(tiny_model(clip, horizon=3, truth=torch.ones(2, 5)), torch.stack(expected, dim=1))


def test_truth_applies_per_sample_and_step(tiny_model: E3DLSTM, clip: Tensor) -> None:
    mixed = tiny_model(clip, horizon=3, truth=after_context(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 4))
    shown = tiny_model(clip, horizon=3, truth=after_context(torch.ones(2, 2), 4))
    hidden = tiny_model(clip, horizon=3, truth=after_context(torch.zeros(2, 2), 4))
    assert torch.equal(mixed[0, :-1], shown[0, :-1])
    assert torch.equal(mixed[1, :-1], hidden[1, :-1])
    assert not torch.equal(mixed[0, -1], shown[0, -1])
    assert not torch.equal(mixed[1, -1], hidden[1, -1])


def test_predictions_may_replace_frames_of_the_context(tiny_model: E3DLSTM, clip: Tensor) -> None:
    """Reverse scheduled sampling replaces frames of the context by predictions."""
    truth = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]]).repeat(2, 1)
    predictions = tiny_model(clip, horizon=3, truth=truth)
    by_hand = torch.cat([clip[:, :1], predictions[:, :1], clip[:, 2:]], dim=1)
    assert torch.equal(predictions, tiny_model(by_hand, horizon=3, truth=torch.ones(2, 5)))


def test_recomputed_steps_give_the_same_gradients(tiny_model: E3DLSTM, clip: Tensor) -> None:
    tiny_model.requires_grad_(True)
    gradients = []
    for recompute in (False, True):
        predictions = tiny_model(clip, horizon=3, truth=torch.ones(2, 5), recompute=recompute)
        gradients.append(torch.autograd.grad(predictions.square().sum(), list(tiny_model.parameters())))
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
