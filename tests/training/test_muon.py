"""The optimizer with orthogonal steps."""

from copy import deepcopy

import pytest
import torch
from torch.optim import AdamW

from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training.muon import RMS, Muon, groups, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 72), (1, 72, 8)])
def test_singular_values_become_about_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    torch.testing.assert_close(found, u @ v, rtol=0, atol=0.2)


@pytest.mark.parametrize("semantics", ["paper", "openstl"])
def test_each_gate_of_each_convolution_moves_orthogonally(semantics: Semantics) -> None:
    model, _, before = stepped(semantics)
    gates = {"hidden_conv": 4, "input_conv": 7, "memory_conv": 4}
    checked = set()
    for name, weight in model.named_parameters():
        if name.startswith("cells") and weight.ndim == 5 and weight.grad is not None and weight.grad.any():
            count = gates.get(name.split(".")[-2], 1)
            change = (weight - before[name]).detach().reshape(count, len(weight) // count, -1)
            values = torch.linalg.svdvals(change) / (1e-2 * RMS * max(change.shape[1:]) ** 0.5)
            assert 0.5 < values.min() < values.max() < 1.3, name
            checked.add(name.split(".")[-2])
    unused = {"memory_conv"} if semantics == "openstl" else set()  # its memory stays zero
    assert (
        checked == {"hidden_conv", "input_conv", "memory_conv", "cell_to_output", "memory_to_output", "merge"} - unused
    )


def test_all_other_weights_move_as_by_adamw() -> None:
    model, _, before = stepped("paper")
    other = E3DLSTM(model.config)
    other.load_state_dict(before)
    optimizer = AdamW(other.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    for one, same in zip(other.parameters(), model.parameters(), strict=True):
        one.grad = same.grad
    optimizer.step()
    moved = dict(other.named_parameters())
    for name, weight in model.named_parameters():
        if weight.ndim < 5 or not name.startswith("cells"):
            torch.testing.assert_close(weight, moved[name], msg=name)


def test_a_resumed_optimizer_goes_on_alike() -> None:
    model, optimizer, _ = stepped("paper")
    other = E3DLSTM(model.config)
    other.load_state_dict(model.state_dict())
    resumed = Muon(groups(other, weight_decay=0.0), lr=1e-2, betas=(0.9, 0.99))
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for network, steps in ((model, optimizer), (other, resumed)):
        steps.zero_grad()
        descend(network, steps)
    for one, same in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, same)


def stepped(semantics: Semantics) -> tuple[E3DLSTM, Muon, dict[str, torch.Tensor]]:
    """Return a small network after one step, its optimizer, and the weights before."""
    torch.manual_seed(0)
    model = E3DLSTM(ModelConfig(image_size=(16, 16), patch_size=4, hidden=(8,), kernel_size=3, semantics=semantics))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = Muon(groups(model, weight_decay=0.0), lr=1e-2, betas=(0.9, 0.99))
    descend(model, optimizer)
    return model, optimizer, before


def descend(model: E3DLSTM, optimizer: Muon) -> None:
    torch.manual_seed(1)
    model(torch.rand(2, 4, 1, 16, 16), 2).square().sum().backward()
    optimizer.step()
