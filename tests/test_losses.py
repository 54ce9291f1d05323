import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from cellseg.instances import representation
from cellseg.losses import confidence, consistency_target, foreground_target, representation_loss

NAMES = ("flow", "distance", "boundary")


def weak_weight(shape=(1, 2, 4, 4)):
    """Foreground labels only: the instance channel is 0."""
    weight = torch.zeros(shape)
    weight[:, 0] = 1
    return weight


def random_target(name, seed=0):
    """Targets of random probabilities that add up where the representation's do."""
    torch.manual_seed(seed)
    n_maps = representation(name).N_MAPS
    return torch.softmax(torch.randn(1, n_maps, 4, 4), 1) if name == "boundary" else torch.rand(1, n_maps, 4, 4)


def test_flow_loss_by_hand():
    maps = torch.zeros(1, 3, 2, 2)
    target = torch.zeros(1, 3, 2, 2)
    target[0, :, 0, 0] = torch.tensor([1.0, 0.0, 1.0])
    loss, parts = representation_loss(maps, target, torch.ones(1, 1, 2, 2), "flow")
    assert parts["foreground"].item() == pytest.approx(math.log(2))
    assert parts["flow"].item() == pytest.approx(0.5 * (25 / 2) / 4)
    assert loss.item() == pytest.approx(math.log(2) + 25 / 16)


def test_distance_loss_by_hand():
    maps, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    target[0, :, 0, 0] = torch.tensor([1.0, 0.6])
    loss, parts = representation_loss(maps, target, torch.ones(1, 2, 2, 2), "distance")
    assert parts["distance_map"].item() == pytest.approx(0.5 * (5 * 0.6) ** 2 / 4)
    assert loss.item() == pytest.approx(math.log(2) + 9 / 8)


def test_boundary_loss_is_the_cross_entropy_of_three_classes():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 5, requires_grad=True)
    classes = torch.randint(3, (2, 5, 5))
    target = functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()
    expected = functional.cross_entropy(maps, classes)
    (wanted,) = torch.autograd.grad(expected, maps)
    loss, parts = representation_loss(maps, target, torch.ones(2, 2, 5, 5), "boundary")
    (found,) = torch.autograd.grad(loss, maps)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(found, wanted, atol=1e-7)
    assert set(parts) == {"foreground", "boundary"}


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_have_no_gradient(name):
    maps = torch.randn(1, representation(name).N_MAPS, 4, 4, requires_grad=True)
    weight = torch.zeros(1, 1, 4, 4)
    weight[..., 0] = 1
    representation_loss(maps, random_target(name), weight, name)[0].backward()
    assert maps.grad[..., 1:].abs().max() == 0
    assert (maps.grad[..., 0] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_kept_is_zero_not_nan(name):
    maps = torch.randn(1, representation(name).N_MAPS, 4, 4)
    loss, _ = representation_loss(maps, random_target(name), torch.zeros(1, 2, 4, 4), name)
    assert loss.item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_one_channel_of_weight_weighs_both(name):
    maps, target = torch.randn(1, representation(name).N_MAPS, 4, 4), random_target(name)
    weight = (torch.rand(1, 1, 4, 4) > 0.4).float()
    one = representation_loss(maps, target, weight, name)[0]
    assert torch.equal(one, representation_loss(maps, target, weight.repeat(1, 2, 1, 1), name)[0])


@pytest.mark.parametrize("name", ["flow", "distance"])
def test_foreground_labels_reach_the_foreground_map_and_nothing_else(name):
    maps = torch.randn(1, representation(name).N_MAPS, 4, 4, requires_grad=True)
    loss, parts = representation_loss(maps, random_target(name), weak_weight(), name)
    loss.backward()
    assert (maps.grad[:, 0] != 0).all()
    assert maps.grad[:, 1:].abs().max() == 0
    assert loss.item() == parts["foreground"].item()


def test_foreground_labels_do_not_prefer_interior_to_boundary():
    torch.manual_seed(0)
    maps = torch.randn(1, 3, 4, 4, requires_grad=True)
    mask = (torch.rand(1, 4, 4) > 0.5).numpy()
    target = torch.from_numpy(representation("boundary").encode_foreground(mask[0]))[None]
    loss, _ = representation_loss(maps, target, weak_weight(), "boundary")
    loss.backward()
    assert torch.equal(maps.grad[:, 1], maps.grad[:, 2])  # the ratio of the two stays
    assert torch.allclose(maps.grad[:, 0], -maps.grad[:, 1:].sum(1), atol=1e-8)
    assert (maps.grad != 0).all()
    probability = 1 - torch.softmax(maps, 1)[0, 0]
    expected = functional.binary_cross_entropy(probability, torch.from_numpy(mask[0]).float())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weak_and_full_labels_in_one_batch(name):
    maps = torch.randn(2, representation(name).N_MAPS, 4, 4)
    target = random_target(name).repeat(2, 1, 1, 1)
    weight = torch.cat([weak_weight(), torch.ones(1, 2, 4, 4)])
    _, both = representation_loss(maps, target, weight, name)
    _, full = representation_loss(maps[1:], target[1:], weight[1:], name)
    _, weak = representation_loss(maps[:1], target[:1], weight[:1], name)
    other = representation(name).LOSS[1].name
    assert both[other].item() == pytest.approx(full[other].item(), rel=1e-5)
    assert both["foreground"].item() == pytest.approx((full["foreground"] + weak["foreground"]).item() / 2, rel=1e-5)


def test_consistency_trusts_clear_pixels_only():
    maps = torch.zeros(1, 3, 1, 4)
    maps[0, :, 0, 0] = torch.tensor([8.0, 5.0, 0.0])  # a cell, clear direction
    maps[0, :, 0, 1] = torch.tensor([8.0, 1.0, 0.0])  # a cell, unsure direction
    maps[0, :, 0, 2] = torch.tensor([-8.0, 0.0, 0.0])  # clear background
    maps[0, :, 0, 3] = torch.tensor([-0.1, 5.0, 0.0])  # unsure background
    target, weight = consistency_target(maps, 0.7, "flow")
    assert weight[0, 0, 0].tolist() == [1, 0, 1, 0]
    assert target[0, 1, 0, :2].tolist() == pytest.approx([1, 1])
    assert target[0, 1:, 0, 2:].abs().max() == 0


def test_consistency_of_distances():
    maps = torch.zeros(1, 2, 1, 3)
    maps[0, :, 0, 0] = torch.tensor([math.log(9), 2.0])  # p = .9, sure by .8; distance .4
    maps[0, :, 0, 1] = torch.tensor([math.log(4), 7.0])  # p = .8, sure by .6; distance above 1
    maps[0, :, 0, 2] = torch.tensor([-math.log(9), 2.0])  # p = .1: background has no distance
    target, weight = consistency_target(maps, 0.7, "distance")
    assert weight[0, 0, 0].tolist() == [1, 0, 1]
    assert target[0, 0, 0].tolist() == pytest.approx([0.9, 0.8, 0.1])
    assert target[0, 1, 0].tolist() == pytest.approx([0.4, 1, 0])


def test_consistency_of_classes():
    probabilities = torch.tensor([[0.2, 0.75, 0.05], [0.5, 0.3, 0.2]])
    target, weight = consistency_target(probabilities.log().T.reshape(1, 3, 1, 2), 0.7, "boundary")
    assert weight[0, 0, 0].tolist() == [1, 0]
    assert torch.allclose(target[0, :, 0].T, probabilities)
    assert foreground_target(target, "boundary")[0, 0, 0].tolist() == pytest.approx([0.8, 0.5])


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_agrees_with_its_student_asks_for_nothing(name):
    maps = torch.randn(1, representation(name).N_MAPS, 6, 6) * 4
    if name == "flow":
        maps[:, 1:] *= 5 / torch.linalg.vector_norm(maps[:, 1:], dim=1, keepdim=True)
    if name == "distance":
        maps[:, 1].clamp_(0, 5)
    maps = maps.requires_grad_()
    target, _ = consistency_target(maps.detach(), 0.0, name)
    inside = foreground_target(target, name) > 0.5
    representation_loss(maps, target, inside.float(), name)[0].backward()
    assert maps.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_confidence_of_tensors_is_that_of_arrays(name):
    module = representation(name)
    maps = np.random.default_rng(1).normal(0, 3, (module.N_MAPS, 8, 9)).astype(np.float32)
    found = confidence(torch.from_numpy(maps)[None], module)[0, 0].clamp(max=1).numpy()
    assert np.allclose(found, module.confidence(maps), atol=1e-6)
