"""Muon, the optimizer with orthogonal updates."""

from copy import deepcopy
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim import Muon as OfMatrices

from e3d_deploy.config import ModelConfig, Semantics
from e3d_deploy.model import E3DLSTM
from e3d_deploy.training.muon import Muon, groups, orthogonal

RATE, BETAS, DECAY = 1e-2, (0.9, 0.99), 0.3
STEPS = 5
GATES = {"hidden_conv": 4, "input_conv": 7, "memory_conv": 4, "cell_to_output": 1, "memory_to_output": 1, "merge": 1}
"""Number of gates of each convolution of a cell, according to the paper."""
BFLOAT16 = 0.03
"""Maximum relative difference from PyTorch's Muon, which rounds to bfloat16 (measured: 0.012)."""

SMALLEST, LARGEST = 0.6, 1.3
"""Range of the singular values after five rounds (measured: 0.69 to 1.13)."""
ALIGNED = 1e-5
"""Maximum entry off the diagonal, between the singular vectors before and after (measured: 1.2e-6)."""


@pytest.mark.parametrize("shape", [(3, 8, 72), (1, 72, 8)])
def test_singular_values_become_about_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert SMALLEST < values.min() < values.max() < LARGEST
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    aligned = u.mT @ found @ v.mT  # the singular vectors do not change, so this is diagonal
    torch.testing.assert_close(aligned, torch.diag_embed(aligned.diagonal(dim1=1, dim2=2)), rtol=0, atol=ALIGNED)


@pytest.mark.parametrize("semantics", get_args(Semantics))
def test_each_gate_takes_the_step_of_pytorchs_muon(semantics: Semantics) -> None:
    """All other weights get updates of AdamW; norms and biases have no weight decay."""
    ours, other = network(semantics), network(semantics)
    optimizer = Muon(groups(ours, weight_decay=DECAY), lr=RATE, betas=BETAS)
    matrices: dict[str, list[Tensor]] = {}
    rest: dict[float, list[Tensor]] = {DECAY: [], 0.0: []}
    for name, weight in other.named_parameters():
        if name.startswith("cells") and weight.ndim == 5:
            parts = weight.detach().chunk(GATES[name.split(".")[-2]])
            matrices[name] = [part.flatten(1).clone().requires_grad_() for part in parts]
        else:
            rest[DECAY if name == "to_patch.weight" else 0.0].append(weight)
    every = [matrix for parts in matrices.values() for matrix in parts]
    expected = [
        OfMatrices(every, lr=RATE, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        *(AdamW(weights, lr=RATE, betas=BETAS, weight_decay=decay) for decay, weights in rest.items()),
    ]
    before = dict(deepcopy(ours).named_parameters())
    for step in range(STEPS):
        gradients = descend(ours, optimizer, step)
        for name, weight in other.named_parameters():
            weight.grad = gradients[name].clone()
        for name, parts in matrices.items():
            for part, gradient in zip(parts, gradients[name].chunk(len(parts)), strict=True):
                part.grad = gradient.flatten(1).clone()
        for one in expected:
            one.step()
    moved = {name: torch.cat(parts).view_as(before[name]) for name, parts in matrices.items()}
    assert {name.split(".")[-2] for name in moved} == set(GATES)
    for name, weight in ours.named_parameters():
        target = moved.get(name, dict(other.named_parameters())[name])
        limit = BFLOAT16 if name in moved else 0.0
        assert (weight - target).norm() <= limit * (target - before[name]).norm(), name


def test_a_resumed_optimizer_takes_the_same_steps() -> None:
    model = network("paper")
    optimizer = Muon(groups(model, weight_decay=DECAY), lr=RATE, betas=BETAS)
    descend(model, optimizer, 0)
    other = deepcopy(model)
    resumed = Muon(groups(other, weight_decay=DECAY), lr=RATE, betas=BETAS)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    descend(model, optimizer, 1)
    descend(other, resumed, 1)
    for one, same in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, same)


def network(semantics: Semantics) -> E3DLSTM:
    torch.manual_seed(0)
    return E3DLSTM(ModelConfig(image_size=(16, 16), patch_size=4, hidden=(8,), kernel_size=3, semantics=semantics))


def descend(model: E3DLSTM, optimizer: Muon, seed: int) -> dict[str, Tensor]:
    """Take an optimizer step; return the gradients, which are random for weights that the network does not use."""
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.rand(2, 4, 1, 16, 16), 2).square().sum().backward()
    gradients = {}
    for name, weight in model.named_parameters():
        if weight.grad is None or not weight.grad.any():
            weight.grad = torch.randn_like(weight)  # unused because the memory of the originals stays zero
        gradients[name] = weight.grad.clone()
    optimizer.step()
    return gradients
