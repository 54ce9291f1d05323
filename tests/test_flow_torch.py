"""The decoder on tensors gives the labels of the decoder on arrays."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from cellseg.core import CellsegError
from cellseg.instances import flow
from cellseg.models import flow_torch


def disks(radius, pitch, n):
    y, x = np.mgrid[: n * pitch, : n * pitch]
    inside = (y % pitch - pitch // 2) ** 2 + (x % pitch - pitch // 2) ** 2 <= radius**2
    return np.where(inside, (y // pitch) * n + x // pitch + 1, 0).astype(np.int32)


def ideal(labels):
    return flow.ideal_maps(flow.encode(labels))


def noisy(maps):
    blurred = np.stack([ndimage.gaussian_filter(map_, 1) for map_ in maps])
    return (blurred + np.random.default_rng(0).normal(0, 3, maps.shape)).astype(np.float32)


BAR = np.pad(np.ones((5, 900), np.int32), 3)
CASES = {
    "round": ideal(disks(12, 26, 6)),
    "touching": ideal(disks(13, 22, 6)),
    "tiny": ideal(disks(3, 7, 20)),
    "cut by the border": ideal(disks(12, 26, 4)[9:80, 14:]),
    "noise": noisy(ideal(disks(10, 22, 6))),
    "longer than the usual path": ideal(BAR),
    "no cell": np.full((3, 20, 30), -1, np.float32),
    "all foreground": np.full((3, 20, 30), 8, np.float32),
    "no pixel": np.zeros((3, 0, 5), np.float32),
    "one pixel": np.ones((3, 1, 1), np.float32),
}


def decode(maps, device="cpu", **options):
    labels = flow_torch.decode(torch.from_numpy(maps).to(device), **options)
    assert labels.dtype == torch.int32
    assert labels.device.type == device
    return labels.cpu().numpy()


@pytest.mark.parametrize("maps", CASES.values(), ids=CASES)
def test_labels_are_equal(maps):
    assert np.array_equal(decode(maps, min_size=1), flow.decode(maps, min_size=1))


@pytest.mark.parametrize("options", [{"min_size": 300}, {"foreground_threshold": 1.0}, {"diameter": 4.0}], ids=str)
def test_options_mean_the_same(options):
    expected = flow.decode(CASES["noise"], **options)
    assert not np.array_equal(expected, flow.decode(CASES["noise"]))  # the option matters here
    assert np.array_equal(decode(CASES["noise"], **options), expected)


def test_half_precision_maps_are_decoded_in_float32():
    maps = torch.from_numpy(CASES["noise"]).half()
    assert np.array_equal(flow_torch.decode(maps).numpy(), flow.decode(maps.float().numpy()))


def test_wrong_shapes_are_named():
    with pytest.raises(CellsegError, match=r"\(3, H, W\), got \(2, 4, 5\)"):
        flow_torch.decode(torch.zeros(2, 4, 5))


@pytest.mark.gpu
@pytest.mark.parametrize("maps", CASES.values(), ids=CASES)
def test_labels_are_equal_on_an_accelerator(maps):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    found, expected = decode(maps, "cuda", min_size=1), flow.decode(maps, min_size=1)
    assert np.array_equal(found > 0, expected > 0)
    assert (found != expected).mean() <= 0.001  # a fused multiplication may round a position to the next pixel
