"""What runs on a CUDA device gives what the CPU gives; skipped where there is none."""

import json

import numpy as np
import pytest
import tifffile
import torch
from fakes import four_disks
from test_predict_slides import Whole, image_of

from cellseg.config import ModelConfig, NormalizeConfig, PredictConfig, check_config
from cellseg.core import Record
from cellseg.datasets.index import write_index
from cellseg.images import write_labels
from cellseg.metrics import match
from cellseg.models.build import build_model
from cellseg.predict import Segmenter, load
from cellseg.train import train

pytestmark = pytest.mark.gpu

RAW = NormalizeConfig(rule="none")


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda")


def segmenter(network, device, name="flow", **settings):
    config = ModelConfig(representation=name, normalize=RAW, size="tiny")
    return Segmenter(network.to(device), config, PredictConfig(tile=64, **settings), device, {"diameter": 24.0})


@pytest.mark.parametrize("name", ["flow", "distance", "boundary"])
def test_cells_are_those_of_the_cpu(cuda, name):
    image = image_of(four_disks(200), name, noise=0.1)
    network = Whole() if name != "distance" else TwoMaps()
    there, here = (segmenter(network, device, name) for device in (cuda, torch.device("cpu")))
    found, expected = there.segment(image, diameter=24.0), here.segment(image, diameter=24.0)
    assert expected.max() == 4
    assert match(expected, found, (0.95,))[0].f1 == 1


class TwoMaps(Whole):
    """Takes two channels for the maps."""

    def forward(self, images):
        return super().forward(images)[:, :2]


@pytest.mark.parametrize(("precision", "apart"), [("off", 2e-3), ("bf16", 0.1), ("fp16", 0.02)])  # off may be TF32
def test_maps_are_those_of_the_cpu_but_for_rounding(cuda, precision, apart):
    torch.manual_seed(0)
    network = build_model(ModelConfig(size="tiny")).eval()
    image = np.random.default_rng(0).random((190, 220, 3), np.float32)
    exact = segmenter(network, torch.device("cpu"), precision="off").maps(image)
    maps = segmenter(network, cuda, precision=precision).maps(image)
    assert np.abs(maps - exact).max() <= apart * np.abs(exact).max()


def test_several_windows_at_once_give_the_same_maps(cuda):
    image = np.random.default_rng(0).random((190, 220, 3), np.float32)
    alone, several = (segmenter(Whole(), cuda, precision="off", batch_size=count).maps(image) for count in (1, 8))
    assert np.allclose(alone, several, atol=1e-5)


class Greedy(Whole):
    """Wants more memory than there is for more than two windows."""

    def forward(self, images):
        if len(images) > 2:
            torch.empty(2**44, dtype=torch.uint8, device=images.device)  # 16 TiB
        return super().forward(images)


def test_memory_that_ends_halves_the_batch(cuda):
    image = np.random.default_rng(0).random((190, 220, 3), np.float32)
    with pytest.warns(UserWarning, match="out of memory with 5 windows at once, going on with 2"):
        maps = segmenter(Greedy(), cuda, precision="off").maps(image)
    assert np.allclose(maps, image.transpose(2, 0, 1), atol=1e-5)


def test_memory_that_ends_in_decoding_goes_on_with_the_cpu(cuda, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("cellseg.decoding.flow_torch.decode", full)
    with pytest.warns(UserWarning, match="out of memory on the GPU while decoding, going on with the CPU"):
        labels = segmenter(Whole(), cuda).segment(image_of(four_disks(), "flow", noise=0), diameter=24.0)
    assert labels.max() == 4


def test_training_and_prediction_find_the_device(cuda, tmp_path):
    labels = four_disks()
    tifffile.imwrite(tmp_path / "a.tif", ((labels > 0) * 120 + 40).astype(np.uint8))
    write_labels(tmp_path / "a_label.tif", labels)
    facts = ("disks", "train", "g", *labels.shape, 4, "instances", 24.0)
    write_index(tmp_path / "index.csv", [Record("a", tmp_path / "a.tif", tmp_path / "a_label.tif", *facts)])
    settings = {"steps": 2, "batch_size": 2, "crop_size": 64}
    data = {"train": [{"index": str(tmp_path / "index.csv")}]}
    weights = train(check_config({"data": data, "model": {"size": "tiny"}, "train": settings}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["device"].startswith("cuda")
    assert load(weights).device == torch.device("cuda")
    assert load(weights).segment(tifffile.imread(tmp_path / "a.tif")).shape == labels.shape
