"""Muon for matrices, AdamW for the rest, against torch's own of each."""

import copy

import pytest
import torch
from torch import nn

from espnet_lmu.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 16), (24, 9), (9, 24)])
def test_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    result = orthogonalize(matrices)
    assert result.shape == matrices.shape
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ result @ v.mT  # the same singular vectors, so this is diagonal
    diagonal = values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(values, torch.diag_embed(diagonal), atol=1e-3, rtol=0)
    assert diagonal.sub(1).abs().median() < 0.25
    assert diagonal.min() > 0 and diagonal.max() < 1.3


def test_no_gradient_is_no_update():
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 3)), torch.zeros(2, 4, 3))


def take_steps(*optimizers):
    """Three steps of each with the same gradients."""
    parameters = [optimizer.param_groups[0]["params"] for optimizer in optimizers]
    for _ in range(3):
        for same in zip(*parameters, strict=True):
            gradient = torch.randn_like(same[0])
            for p in same:
                p.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()


def test_matrices_move_as_torchs_muon_moves_them():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(12, 20), (12, 20), (20, 12)]]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.3}
    start = copy.deepcopy(ours)
    take_steps(Muon(ours, **settings), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings))
    for p, q, before in zip(ours, theirs, start, strict=True):
        # torch's products are bfloat16
        assert (p - q).norm() < 0.02 * (q - before).norm()


def test_everything_else_moves_as_adamw_moves_it():
    torch.manual_seed(0)
    # bias, scalar, single row, single column, depthwise kernels
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(7,), (), (1, 7), (7, 1), (7, 1, 3), (7, 1, 3, 3)]]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    take_steps(Muon(ours, **settings), torch.optim.AdamW(theirs, **settings))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_a_convolution_is_the_matrix_of_its_taps():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1))
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1)
    for p in (kernel, matrix):
        Muon([p], lr=0.1).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_a_parameter_without_a_gradient_stays():
    used, unused = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    used.grad = torch.eye(3)
    Muon([used, unused]).step()
    assert not torch.equal(used, torch.ones(3, 3)) and torch.equal(unused, torch.ones(3, 3))


def test_goes_on_where_it_stopped():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 5, 3), nn.GELU(), nn.Conv1d(5, 2, 1))
    batches = torch.randn(4, 2, 3, 9)

    def train(model, optimizer, batches):
        for x in batches:
            optimizer.zero_grad()
            loss = optimizer.step(lambda x=x: _backward(model(x).square().mean()))
        return loss

    other = copy.deepcopy(model)
    once = train(model, Muon(model.parameters(), lr=0.02), batches)
    first = Muon(other.parameters(), lr=0.02)
    train(other, first, batches[:2])
    second = Muon(other.parameters(), lr=0.5)  # the rate, too, comes from the checkpoint
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(train(other, second, batches[2:]), once)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def _backward(loss):
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(
    "setting",
    [
        {"momentum": 1.0},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"betas": [0.9]},
        {"lr": -1},
        {"weight_decay": -0.1},
    ]
    + [{"lr": "1e-3"}, {"betas": ["0.9", "0.98"]}],
)
def test_a_setting_out_of_range_is_named(setting):
    with pytest.raises(ValueError, match=f"optim_conf: {next(iter(setting))}"):
        Muon([nn.Parameter(torch.ones(2, 2))], **setting)
