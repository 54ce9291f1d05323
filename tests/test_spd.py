"""Selective projection decay, mostly on one weight vector of two numbers that starts at (0, 0)."""

import pytest
import torch
from torch import nn

from cellseg.core import CellsegError
from cellseg.regularizer_config import RegularizerConfig
from cellseg.regularizers import SPD, build_regularizer


def after(at, gradient, step, alpha=1.0):
    """Where SPD leaves a weight that was at one place, with a gradient there, and that a step moved."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    rule = build_regularizer(layer, RegularizerConfig(kind="spd", alpha=alpha))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([at]))
        layer.weight.grad = torch.tensor([gradient])
        rule.before_step()
        layer.weight.copy_(torch.tensor([step]))
        rule.after_step(123.0)
    return layer.weight.detach()[0].tolist()


def three_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 2, 1))


def test_projects_on_the_former_radius_where_the_gradient_asks_back():
    assert after([3.0, 4.0], [1.0, 0.0], [6.0, 8.0]) == pytest.approx([3, 4])
    assert after([3.0, 4.0], [0.1, 0.0], [0.0, 10.0], alpha=0.5) == pytest.approx([0, 7.5])


def test_leaves_what_the_gradient_asks_away_what_came_nearer_and_the_first_step():
    assert after([3.0, 4.0], [-1.0, 0.0], [6.0, 8.0]) == [6, 8]
    assert after([3.0, 4.0], [1.0, 0.0], [1.0, 1.0]) == [1, 1]
    assert after([0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]) == [-1, -1]
    assert after([3.0, 4.0], [1.0, 0.0], [6.0, 8.0], alpha=0.0) == [6, 8]


def test_never_goes_past_the_anchor():
    assert after([0.0, 1.0], [0.0, 1.0], [0.0, 10.0], alpha=5.0) == [0, 0]


def test_looks_at_every_tensor_alone_and_only_at_those_included():
    model = three_layers()
    rule = SPD(model, RegularizerConfig(kind="spd", alpha=1.0, include="*.weight"))
    start = [parameter.detach().clone() for parameter in model.parameters()]

    def shift():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)

    shift()
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 1.0 if index < 4 else -1.0)
    model[1].weight.grad = None
    rule.before_step()
    shift()
    rule.after_step(0.1)
    moved = [(p.detach() - first).mean().item() for p, first in zip(model.parameters(), start, strict=True)]
    assert moved == pytest.approx([1, 2, 2, 2, 2, 2], rel=1e-4)


def test_wants_float32_and_its_own_kind():
    model = three_layers()
    with pytest.raises(CellsegError, match="SPD wants kind 'spd', but got 'l2'"):
        SPD(model, RegularizerConfig(kind="l2", alpha=1.0))
    rule = SPD(model.bfloat16(), RegularizerConfig(kind="spd", alpha=1.0))
    model[2].bias.grad = torch.ones(2, dtype=torch.bfloat16)
    rule.before_step()
    with pytest.raises(CellsegError, match=r"'2.bias' is torch.bfloat16"):
        rule.after_step(0.1)
