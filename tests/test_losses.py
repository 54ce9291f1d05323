import math

import pytest
import torch

from cellseg.losses import consistency_target, flow_loss


def test_flow_loss_by_hand():
    maps = torch.zeros(1, 3, 2, 2)
    target = torch.zeros(1, 3, 2, 2)
    target[0, :, 0, 0] = torch.tensor([1.0, 0.0, 1.0])
    loss, parts = flow_loss(maps, target, torch.ones(1, 1, 2, 2))
    assert parts["foreground"].item() == pytest.approx(math.log(2))
    assert parts["flow"].item() == pytest.approx(0.5 * (25 / 2) / 4)
    assert loss.item() == pytest.approx(math.log(2) + 25 / 16)


def test_ignored_pixels_have_no_gradient():
    maps = torch.randn(1, 3, 4, 4, requires_grad=True)
    weight = torch.zeros(1, 1, 4, 4)
    weight[..., 0] = 1
    flow_loss(maps, torch.rand(1, 3, 4, 4), weight)[0].backward()
    assert maps.grad[..., 1:].abs().max() == 0
    assert (maps.grad[..., 0] != 0).all()


def test_nothing_kept_is_zero_not_nan():
    loss, _ = flow_loss(torch.randn(1, 3, 4, 4), torch.rand(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))
    assert loss.item() == 0


def test_consistency_trusts_clear_pixels_only():
    maps = torch.zeros(1, 3, 1, 4)
    maps[0, :, 0, 0] = torch.tensor([8.0, 5.0, 0.0])  # a cell, clear direction
    maps[0, :, 0, 1] = torch.tensor([8.0, 1.0, 0.0])  # a cell, unsure direction
    maps[0, :, 0, 2] = torch.tensor([-8.0, 0.0, 0.0])  # clear background
    maps[0, :, 0, 3] = torch.tensor([-0.1, 5.0, 0.0])  # unsure background
    target, weight = consistency_target(maps, 0.7)
    assert weight[0, 0, 0].tolist() == [1, 0, 1, 0]
    assert target[0, 1, 0, :2].tolist() == pytest.approx([1, 1])
    assert target[0, 1:, 0, 2:].abs().max() == 0
