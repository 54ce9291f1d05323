"""What every representation must do, whichever it is."""

import json

import numpy as np
import pytest
import tifffile
import torch
from pydantic import ValidationError

from cellseg.adapt import adapt
from cellseg.config import ModelConfig, PredictConfig, check_config
from cellseg.core import CellsegError, Record
from cellseg.datasets.index import write_index
from cellseg.images import write_labels
from cellseg.instances import representation
from cellseg.predict import Segmenter, load
from cellseg.train import train

NAMES = ("flow", "distance", "boundary")
MOVES = {
    "flip y": (lambda a: a[..., ::-1, :], [[-1, 0], [0, 1]]),
    "flip x": (lambda a: a[..., ::-1], [[1, 0], [0, -1]]),
    "rot90": (lambda a: np.rot90(a, axes=(-2, -1)), [[0, -1], [1, 0]]),
    "transpose": (lambda a: np.swapaxes(a, -1, -2), [[0, 1], [1, 0]]),
}


@pytest.fixture
def disks():
    rows, columns = np.indices((60, 71))
    labels = np.zeros((60, 71), np.int32)
    for number, (y, x, r) in enumerate([(18, 20, 12), (30, 45, 15), (50, 12, 8)], start=1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= r**2] = number
    return labels


@pytest.mark.parametrize("name", NAMES)
def test_config_and_modules_name_the_same_representations(name):
    module = representation(ModelConfig(representation=name).representation)
    assert module.__name__ == f"cellseg.instances.{name}"


def test_an_unknown_representation_is_named():
    with pytest.raises(CellsegError, match="unknown representation 'stars'; known: flow, distance, boundary"):
        representation("stars")
    with pytest.raises(ValidationError):
        ModelConfig(representation="stars")


@pytest.mark.parametrize("name", NAMES)
def test_terms_cover_every_map_and_the_first_is_the_foreground(name):
    module = representation(name)
    assert module.LOSS[0].name == "foreground"
    assert {map_ for term in module.LOSS for map_ in range(module.N_MAPS)[term.maps]} == set(range(module.N_MAPS))
    assert set(module.VECTORS) <= set(range(module.N_MAPS))


@pytest.mark.parametrize("name", NAMES)
def test_foreground_of_a_mask_and_of_labels_agree(name, disks):
    module = representation(name)
    for target in (module.encode(disks), module.encode_foreground(disks > 0)):
        assert target.shape == (module.N_MAPS, *disks.shape)
        assert target.dtype == np.float32
        assert np.array_equal(module.foreground(module.ideal_maps(target)) > 0.5, disks > 0)


@pytest.mark.parametrize("name", NAMES)
def test_confidence_is_a_share(name):
    module = representation(name)
    maps = np.random.default_rng(0).normal(0, 6, (module.N_MAPS, 20, 30)).astype(np.float32)
    confidence = module.confidence(maps)
    assert confidence.shape == (20, 30)
    assert confidence.dtype == np.float32
    assert 0 <= confidence.min() < 0.5 < confidence.max() <= 1


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("name", NAMES)
def test_the_moved_target_is_the_target_of_moved_labels(name, move, disks):
    module, (turn, matrix) = representation(name), move
    moved = module.warp(np.ascontiguousarray(turn(module.encode(disks))), np.array(matrix, float))
    expected = module.encode(np.ascontiguousarray(turn(disks)))
    # Where the two coordinates' medians lie between pixels, a centre may fall one pixel aside.
    assert np.quantile(np.abs(moved - expected), 0.97) < 1e-3


class Equivariant(torch.nn.Module):
    """A network whose output turns with its input: the image, its slopes dy and dx, or copies of it."""

    def __init__(self, n_maps, vectors):
        super().__init__()
        self.n_maps, self.vectors = n_maps, vectors

    def forward(self, x):
        maps = x[:, :1].repeat(1, self.n_maps, 1, 1)
        for axis, vector in zip((2, 3), self.vectors, strict=False):
            maps[:, vector] = (torch.roll(x, 1, axis) - torch.roll(x, -1, axis))[:, 0]
        return maps


@pytest.mark.parametrize("name", NAMES)
def test_flips_at_test_time_turn_vectors_back(name):
    module, config = representation(name), ModelConfig(representation=name)
    image = np.random.default_rng(0).random((40, 50, 3), np.float32)
    network = Equivariant(module.N_MAPS, module.VECTORS)
    segmenter = Segmenter(network, config, PredictConfig(), torch.device("cpu"), {})
    plain = segmenter.maps(image)
    for axes in ((0,), (1,), (0, 1)):
        assert np.allclose(plain, segmenter.flipped_maps(image, axes), atol=1e-6)
    assert np.abs(plain).max() > 0.5


class Ideal(torch.nn.Module):
    """A network that answers with given maps, whatever it is shown."""

    def __init__(self, maps):
        super().__init__()
        self.maps = torch.from_numpy(maps)[None]

    def forward(self, x):
        assert x.shape[-2:] == self.maps.shape[-2:]
        return self.maps


@pytest.mark.parametrize("name", NAMES)
def test_min_size_counts_pixels_at_the_scale_of_the_network(name):
    labels = np.zeros((60, 60), np.int32)
    labels[5:15, 5:15], labels[20:50, 20:50] = 1, 2  # 100 and 900 pixels as the network sees them
    module = representation(name)
    network = Ideal(module.ideal_maps(module.encode(labels)))
    image = np.linspace(0, 1, 43200, dtype=np.float32).reshape(120, 120, 3)  # shown at half its size
    for min_size, count in ((80, 2), (120, 1), (1000, 0)):
        settings = PredictConfig(min_size=min_size)
        segmenter = Segmenter(network, ModelConfig(representation=name), settings, torch.device("cpu"), {})
        assert segmenter.segment_normalized(image, 48.0).max() == count


@pytest.mark.parametrize("name", NAMES)
def test_one_word_of_the_configuration_trains_and_adapts_each(name, disks, tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", ((disks > 0) * 150 + 50).astype(np.uint8))
    write_labels(tmp_path / "labels.tif", disks)
    facts = ("disks", "train", "g", *disks.shape, 3, "instances", 24.0)
    write_index(tmp_path / "index.csv", [Record("one", tmp_path / "image.tif", tmp_path / "labels.tif", *facts)])
    data = [{"index": str(tmp_path / "index.csv")}]
    settings = {"steps": 1, "batch_size": 1, "crop_size": 64, "ema": 0.9, "log_every": 1}
    run = {"data": {"train": data}, "model": {"size": "tiny", "representation": name}, "train": settings}
    train(check_config(run), tmp_path / "teacher", device="cpu")
    run = run | {"train": settings | {"init": str(tmp_path / "teacher")}, "data": {"train": data, "unlabelled": data}}
    settings = {"method": "consistency", "batch_size": 1, "confidence": 0.0, "watch": 0}
    weights = adapt(check_config(run | {"adapt": settings}), tmp_path / "out", device="cpu")
    logged = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])
    assert {term.name for term in representation(name).LOSS} <= set(logged)
    segmenter = load(weights, device="cpu")
    assert segmenter.config.representation == name
    assert segmenter.segment(tifffile.imread(tmp_path / "image.tif"), diameter=24.0).shape == disks.shape


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("name", NAMES)
def test_the_vectors_of_a_flipped_image_are_named_in_order(name, axis, disks):
    module = representation(name)
    flipped = np.flip(module.encode(disks), axis + 1).copy()
    for vector in module.VECTORS[axis : axis + 1]:
        flipped[vector] *= -1
    expected = module.encode(np.ascontiguousarray(np.flip(disks, axis)))
    assert np.quantile(np.abs(flipped - expected), 0.97) < 1e-3
