import copy

import pytest
import torch
from torch import nn

from cellseg.regularizers import L2SP


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 2, 1))


def shift(model, by):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_zero_at_the_start_with_a_finite_zero_gradient(model):
    value = L2SP(model, 0.1)()
    value.backward()
    assert value.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_the_anchor_is_a_copy_and_moves_never(model):
    penalty = L2SP(model, 1.0)
    shift(model, 0.5)
    assert penalty().item() == pytest.approx(0.25 * size(model), rel=1e-5)
    assert all(not anchor.requires_grad and anchor.dtype == torch.float32 for anchor in penalty.anchors)


def test_the_paper_convention_is_half_the_sum(model):
    both = [L2SP(model, 0.3, convention=name) for name in ("sum", "paper")]
    shift(model, 0.1)
    assert both[1]().item() == pytest.approx(both[0]().item() / 2)


def test_alpha_zero_is_zero_and_leaves_gradients_alone(model):
    penalty = L2SP(model, 0.0)
    shift(model, 0.1)
    penalty.add_grad_()
    assert penalty().item() == 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("convention", ["sum", "paper"])
def test_the_injected_gradient_is_the_autograd_one(model, convention):
    twin = copy.deepcopy(model)
    one, two = (L2SP(m, 0.2, 0.05, convention=convention, new=["2.weight"]) for m in (model, twin))
    for m in (model, twin):
        shift(m, 0.3)
    one().backward()
    two.add_grad_()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)


def test_computing_changes_no_parameter(model):
    before = [parameter.detach().clone() for parameter in model.parameters()]
    penalty = L2SP(model, 0.2)
    penalty()
    penalty.add_grad_()
    penalty.distance()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_new_parameters_are_pulled_to_zero_by_beta(model):
    penalty = L2SP(model, 0.0, beta=2.0, new=["2.bias"])
    expected = 2.0 * model[2].bias.square().sum().item()
    assert penalty().item() == pytest.approx(expected)


def test_distance_is_relative_to_the_start(model):
    penalty = L2SP(model, 0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert penalty.distance() == pytest.approx(0.5, rel=1e-5)


def test_the_anchor_is_saved_and_loaded_not_retaken(model):
    penalty = L2SP(model, 1.0)
    saved = penalty.state_dict()
    shift(model, 0.5)
    again = L2SP(model, 1.0)
    assert again().item() == 0
    again.load_state_dict(saved)
    assert again().item() == pytest.approx(0.25 * size(model), rel=1e-5)
    assert set(saved) == {f"anchor_{index}" for index in range(6)}


def test_sgd_weight_decay_is_the_l2_penalty(model):
    twin = copy.deepcopy(model)
    decayed = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=2 * 0.3)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    everything = [name for name, _ in twin.named_parameters()]
    penalty = L2SP(twin, 0.0, beta=0.3, new=everything)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty().backward()
    decayed.step()
    plain.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
