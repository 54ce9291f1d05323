"""A segmenter around a network whose maps are known."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from cellseg.config import ModelConfig, PredictConfig, RunConfig
from cellseg.core import CellsegError
from cellseg.devices import autocast_type, check_precision, pick_device
from cellseg.instances import representation
from cellseg.predict import Segmenter
from cellseg.train import make_fabric


class Fixed(nn.Module):
    """Returns the same maps whatever it is shown."""

    def __init__(self, maps):
        super().__init__()
        self.maps = torch.from_numpy(maps)[None]

    def forward(self, images):
        return self.maps


@pytest.fixture
def truth():
    """Two cells of 12 x 12 pixels and, between them, one a pixel wide that halving misses."""
    labels = np.zeros((40, 60), np.int32)
    labels[10:22, 4:16] = 1
    labels[8:30, 24:25] = 2
    labels[10:22, 40:52] = 3
    return labels


def segmenter(truth, reference):
    module = representation("flow")
    maps = np.asarray(module.ideal_maps(module.encode(truth)), np.float32)
    return Segmenter(Fixed(maps), ModelConfig(reference_diameter=reference), PredictConfig(), torch.device("cpu"), {})


def test_an_image_of_one_grey_value_holds_no_cell_whatever_the_network_says(truth):
    labels, scores = segmenter(truth, reference=24.0).segment_with_scores(np.full((40, 60), 7, np.uint8), diameter=24.0)
    assert labels.shape == (40, 60)
    assert not labels.any()
    assert len(scores) == 0


def test_ids_are_consecutive_also_where_a_cell_is_lost_in_shrinking(truth):
    small = np.eye(20, 30, dtype=np.uint8)  # shown at twice its size, to the cells of the truth
    labels, scores = segmenter(truth, reference=24.0).segment_with_scores(small, diameter=12.0)
    assert np.array_equal(np.unique(labels), [0, 1, 2])
    assert len(scores) == 2
    assert labels[8, 4] == 1
    assert labels[8, 23] == 2  # the truth's third
    assert np.array_equal(labels, segmenter(truth, reference=24.0).segment(small, diameter=12.0))


@pytest.mark.parametrize("diameter", [0, -40, float("nan"), float("inf")])
def test_a_diameter_that_is_none_is_refused(truth, diameter):
    with pytest.raises(CellsegError, match=f"diameter {diameter:g}: wanted a number of pixels above 0; left away or"):
        segmenter(truth, reference=24.0).segment(np.eye(40, 60, dtype=np.uint8), diameter=diameter)


def test_the_diameter_of_an_index_is_to_be_told(truth):
    by_index = dataclasses.replace(
        segmenter(truth, reference=24.0), settings=PredictConfig(diameter="index", min_size=10)
    )
    image = np.eye(40, 60, dtype=np.uint8)
    with pytest.raises(CellsegError, match=r"predict\.diameter = 'index': an image alone has no index; give its"):
        by_index.segment(image)
    assert by_index.segment(image, diameter=24.0).max() == 3


class Counting(Fixed):
    """Maps that say how many pixels were shown, in a network that sees every view."""

    def __init__(self):
        super().__init__(np.zeros((3, 1, 1), np.float32))
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape[-2:]))
        maps = torch.zeros(1, 3, *images.shape[-2:])
        maps[:, 0] = images.shape[-1]
        maps[:, 1] = images[:, 0]  # a vector dy that follows the pixels shown
        return maps


def test_augmentation_averages_four_flips_and_two_scales_and_turns_vectors_back():
    network = Counting()
    settings = PredictConfig(tta=True)
    one = Segmenter(network, ModelConfig(), settings, torch.device("cpu"), {})
    image = np.zeros((40, 64, 3), np.float32)
    image[:, :, :] = 0.5
    image[..., 2] = np.linspace(0, 1, 64)
    maps = one.maps(image)
    assert sorted(network.shapes) == [(28, 45), *[(40, 64)] * 4, (57, 91)]
    assert maps.shape == (3, 40, 64)
    assert np.allclose(maps[0], (4 * 64 + 45 + 91) / 6)
    # dy keeps its sign in the plain view, the columns flipped and both scales, and changes it in the other two
    assert np.allclose(maps[1], (4 - 2) * 0.5 / 6, atol=1e-6)
    plain = Segmenter(network, ModelConfig(), PredictConfig(), torch.device("cpu"), {})
    assert np.allclose(plain.maps(image)[1], 0.5)


class Precise(nn.Module):
    """Says in what numbers it computes."""

    def forward(self, images):
        ones = torch.ones(3, 3, 1, 1)
        maps = nn.functional.conv2d(images, ones)
        self.dtype = maps.dtype
        return maps


def pretend(monkeypatch, onednn, instructions, machine="x86_64"):
    """Make the CPU another one."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr("platform.machine", lambda: machine)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.bfloat16), ("bf16", torch.bfloat16), ("off", torch.float32)]
)
def test_precision_is_that_of_the_settings(precision, dtype, monkeypatch):
    pretend(monkeypatch, onednn=True, instructions=True)
    network, settings = Precise(), PredictConfig(precision=precision)
    one = Segmenter(network, ModelConfig(), settings, torch.device("cpu"), {})
    image = np.full((40, 50, 3), 0.25, np.float32)
    image[0, 0] = (0, 0.25, 0.5)
    maps = one.maps(image)
    assert network.dtype == dtype
    assert maps.dtype == np.float32
    assert np.all(maps == 0.75)  # exact in either


@pytest.mark.parametrize(
    ("cpu", "dtype", "word"),
    [
        ((True, True), torch.bfloat16, "bf16-mixed"),
        ((True, False), None, "32-true"),  # AVX-512 alone: emulated
        ((False, False), None, "32-true"),  # AVX2
        ((True, False, "aarch64"), torch.bfloat16, "bf16-mixed"),
    ],
)
def test_bf16_is_chosen_where_the_cpu_has_it(cpu, dtype, word, monkeypatch):
    pretend(monkeypatch, *cpu)
    assert autocast_type("auto", torch.device("cpu")) == dtype
    assert make_fabric(RunConfig(), "cpu")._precision.precision == word


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_bf16_is_chosen_where_the_gpu_has_it_without_emulation(able, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or able)
    assert autocast_type("auto", torch.device("cuda")) == dtype


def test_a_torch_without_onednn_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert autocast_type("auto", torch.device("cpu")) is None


def test_what_a_device_has_not_is_named():
    with pytest.raises(CellsegError, match="precision fp16: not on device cpu; wanted one of auto, bf16, off"):
        Segmenter(Precise(), ModelConfig(), PredictConfig(precision="fp16"), torch.device("cpu"), {})
    with pytest.raises(CellsegError, match="precision bf16: not on device mps; wanted one of auto, fp16, off"):
        check_precision("bf16", torch.device("mps"))
    check_precision("fp16", torch.device("cuda"))
    assert autocast_type("fp16", torch.device("cuda")) == torch.float16
    assert autocast_type("auto", torch.device("mps")) is None
    with pytest.raises(CellsegError, match="--device tpu: not available here; wanted one of auto, cpu, cuda, mps"):
        pick_device("tpu")
