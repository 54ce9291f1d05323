"""Numbers that blow up stop a run before anything bad is written; images without cells and with very many are fine."""

import math

import numpy as np
import pytest
import tifffile
import torch
from fakes import four_disks
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from cellseg import train as loop
from cellseg.checkpoint import load_state, load_weights
from cellseg.config import AugmentConfig, ModelConfig, check_config
from cellseg.core import CellsegError, Record
from cellseg.datasets.crops import CropDataset
from cellseg.datasets.index import write_index
from cellseg.images import read_labels, write_labels
from cellseg.label_free.judging import Stopped
from cellseg.losses import representation_loss
from cellseg.metrics import match
from cellseg.models.teacher import EmaTeacher
from cellseg.state import LEAST_SCALE, State, flaw
from cellseg.train import train, update

SIDE = 96


def write_image(folder, name, labels):
    image, truth = folder / f"{name}.tif", folder / f"{name}_label.tif"
    noise = np.random.default_rng(0).normal(0, 6, labels.shape)
    tifffile.imwrite(image, ((labels > 0) * 120 + 40 + noise).clip(0, 255).astype(np.uint8))
    write_labels(truth, labels)
    known = (int(labels.max()), "instances", 24.0 if labels.any() else None)
    return Record(name, image, truth, "d", "train", "g", *labels.shape, *known)


@pytest.fixture
def index(tmp_path):
    write_index(tmp_path / "index.csv", [write_image(tmp_path, name, four_disks(SIDE)) for name in "ab"])
    return tmp_path / "index.csv"


def make_run(index, **settings):
    common = {"steps": 4, "batch_size": 2, "crop_size": 32, "ema": 0.5, "log_every": 1, "save_every": 2}
    return check_config(
        {"data": {"train": [{"index": str(index)}]}, "model": {"size": "tiny"}, "train": common | settings}
    )


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_step(index, tmp_path, monkeypatch, clip_norm):
    run, calls = make_run(index, clip_norm=clip_norm), []

    def steep(maps, *rest):
        calls.append(0)
        if len(calls) == 4:  # finite itself, but its slope is 0 times infinity
            return (maps * 0).sum().sqrt(), {}
        return representation_loss(maps, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "representation_loss", steep)
        with pytest.raises(
            CellsegError, match="the norm of the gradients is nan at step 3, images a, b; the last good"
        ):
            train(run, tmp_path / "run", device="cpu")
    assert load_state(tmp_path / "run" / "last.pt")["step"] == 2
    went_on = train(run, tmp_path / "run", resume=True, device="cpu")
    whole = train(run, tmp_path / "whole", device="cpu")
    assert equal(*(load_weights(path)[0].state_dict() for path in (went_on, whole)))


def test_an_average_that_is_not_finite_is_never_written(index, tmp_path, monkeypatch):
    moved = EmaTeacher.update

    def blow_up(self, student, step):
        moved(self, student, step)
        if step == 3:
            next(self.model.parameters()).data[0] = math.inf

    monkeypatch.setattr(EmaTeacher, "update", blow_up)
    with pytest.raises(CellsegError, match=r"of the averaged weights is not finite at step 3, images a, b"):
        train(make_run(index), tmp_path / "run", device="cpu")
    saved = load_state(tmp_path / "run" / "last.pt")
    assert saved["step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["averaged"].values())
    assert not (tmp_path / "run" / "best.safetensors").exists()


def half_precision(**options):
    scaler = torch.amp.GradScaler("cpu", **options)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def state_of(fabric):
    layer = nn.Linear(2, 1, bias=False)
    student, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    return State(student, optimizer, None, None, fabric._precision.scaler), layer


def test_fp16_that_never_finds_a_scale_stops():
    fabric, run = half_precision(init_scale=1.0), check_config({"train": {"steps": 99}})
    state, layer = state_of(fabric)
    before = layer.weight.detach().clone()

    def endless(state, micro):
        slope = (layer.weight - layer.weight.detach()).square().sqrt().sum()
        return state.student(torch.ones(1, 2)).sum() * 0 + slope, {}, ["x"]

    with pytest.raises(Stopped, match=r"no gradient is finite whatever the loss is scaled with at step \d+, images x"):
        for state.step in range(50):
            update(state, run, fabric, endless, seed=0)
    assert state.step == math.ceil(math.log2(1 / LEAST_SCALE)) - 1  # halved at every step
    assert torch.equal(layer.weight, before)
    assert flaw(state) == ""


def test_the_loss_scale_is_resumed(index, tmp_path, monkeypatch):
    scales = []

    def fabric(run, device):
        scales.append(half_precision(init_scale=1024.0, growth_interval=3))
        return scales[-1]

    monkeypatch.setattr(loop, "make_fabric", fabric)
    run = make_run(index)
    whole = train(run, tmp_path / "whole", device="cpu")
    original = loop.update

    def dying(state, *rest):
        if state.step == 3:
            raise KeyboardInterrupt
        return original(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", dying)
        with pytest.raises(KeyboardInterrupt):
            train(run, tmp_path / "parts", device="cpu")
    saved = load_state(tmp_path / "parts" / "last.pt")["scaler"]
    assert (saved["scale"], saved["_growth_tracker"]) == (1024.0, 2)
    parts = train(run, tmp_path / "parts", resume=True, device="cpu")
    assert equal(*(load_weights(path)[0].state_dict() for path in (whole, parts)))
    ends = [load_state(tmp_path / name / "last.pt")["scaler"] for name in ("whole", "parts")]
    assert ends[0] == ends[1]
    assert (ends[0]["scale"], ends[0]["_growth_tracker"]) == (2048.0, 1)  # grown after three good steps


def test_images_without_a_cell_can_be_trained_on(tmp_path):
    record = write_image(tmp_path, "a", np.zeros((SIDE, SIDE), np.int32))
    write_index(tmp_path / "index.csv", [record])
    out = train(make_run(tmp_path / "index.csv", steps=2), tmp_path / "run", device="cpu")
    weights = load_weights(out)[0].state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize("representation", ["flow", "distance", "boundary"])
def test_crops_of_nothing_but_background_teach_background(tmp_path, representation):
    record = write_image(tmp_path, "a", np.zeros((SIDE, SIDE), np.int32))
    config = ModelConfig(representation=representation)
    crops = CropDataset([record], config, AugmentConfig(), diameters=[None], shape=(2, 32), seed=0)[0]
    assert crops.weight.max() == 1
    maps = torch.zeros_like(crops.target if representation != "boundary" else torch.zeros(2, 3, 32, 32))
    loss, _ = representation_loss(maps.requires_grad_(), crops.target, crops.weight, representation)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert torch.isfinite(maps.grad).all() and maps.grad.any()


def test_sixty_thousand_cells(tmp_path):
    ids = np.arange(1, 245 * 245 + 1, dtype=np.int32).reshape(245, 245)
    labels = np.kron(ids, np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], np.int32))
    record = write_image(tmp_path, "a", labels)
    assert np.array_equal(read_labels(record.labels), labels)
    counts = match(labels, labels, thresholds=(0.5,))[0]
    assert (counts.tp, counts.fp, counts.fn) == (60_025, 0, 0)
    assert match(labels, np.zeros_like(labels), thresholds=(0.5,))[0].fn == 60_025
    config = ModelConfig(representation="distance")
    crops = CropDataset([record], config, AugmentConfig(), diameters=[24.0], shape=(1, 64), seed=0)[0]
    assert torch.isfinite(crops.target).all()
    assert crops.target[:, 0].mean() > 0.2
