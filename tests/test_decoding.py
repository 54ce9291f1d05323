"""What makes pixels a cell: by what is told, else by what the weights say."""

import numpy as np
import pytest
import torch

from cellseg.config import ModelConfig, PredictConfig, RunConfig, TrainConfig
from cellseg.core import CellsegError
from cellseg.decoding import Rule, decode, rule_of
from cellseg.devices import pick_device
from cellseg.instances import representation
from cellseg.models.build import build_model
from cellseg.predict import Segmenter
from cellseg.train import State, _about

CPU = pick_device("cpu")
NAMES = ("flow", "distance", "boundary")


def maps_of(name, logits):
    """Maps of three cells of 12 x 12 pixels, of which the network is more or less sure."""
    module = representation(name)
    labels = np.zeros((40, 60), np.int32)
    for number, column in enumerate((4, 22, 40), 1):
        labels[10:22, column : column + 12] = number
    maps = module.ideal_maps(module.encode(labels))
    for number, logit in enumerate(logits, 1):
        inside = labels == number
        if name == "boundary":  # interior against background; no boundary within
            maps[:, inside] = np.array([-logit / 2, logit / 2, -30])[:, None]
        else:
            maps[0][inside] = logit
    return maps


@pytest.mark.parametrize("name", NAMES)
def test_cells_of_a_low_mean_probability_are_dropped(name):
    maps = maps_of(name, (3.0, 0.5, 2.0))  # probabilities .95, .62, .88
    everything = decode(name, maps, Rule(), 10, CPU)
    assert everything.max() == 3
    found = decode(name, maps, Rule(min_score=0.75), 10, CPU)
    assert np.array_equal(np.unique(found), [0, 1, 2])
    assert np.array_equal(found > 0, (everything == 1) | (everything == 3))
    assert not decode(name, maps, Rule(min_score=0.99), 10, CPU).any()


@pytest.mark.parametrize("name", ["flow", "distance"])
def test_a_lower_probability_finds_fainter_cells(name):
    maps = maps_of(name, (3.0, -0.3, -2.0))  # probabilities .95, .43, .12
    assert decode(name, maps, Rule(), 10, CPU).max() == 1
    assert decode(name, maps, Rule(foreground=0.4), 10, CPU).max() == 2
    assert decode(name, maps, Rule(foreground=0.1), 10, CPU).max() == 3
    assert decode(name, maps, Rule(foreground=0.1, min_score=0.4), 10, CPU).max() == 2


def test_a_lower_probability_lets_interiors_grow_further():
    maps = maps_of("boundary", (3.0, 3.0, 3.0))
    rim = np.zeros((40, 60), bool)
    rim[9, 4:16] = True
    maps[:, rim] = np.array([0.4, -30, 0.0])[:, None]  # boundary at .40
    areas = [(decode("boundary", maps, Rule(foreground=p), 10, CPU) == 1).sum() for p in (0.5, 0.35)]
    assert areas[1] == areas[0] + 12


def test_the_plain_rule_is_what_every_representation_does_by_itself():
    noise = np.random.default_rng(0).normal(0, 2, (3, 60, 80)).astype(np.float32)
    for name in NAMES:
        maps = noise[: representation(name).N_MAPS]
        assert np.array_equal(decode(name, maps, Rule(), 10, CPU), representation(name).decode(maps, min_size=10))


def test_what_is_told_goes_before_what_the_weights_say():
    about = {"decoding": {"foreground": 0.4, "min_score": 0.7}}
    assert rule_of(PredictConfig(), {}) == Rule(0.5, 0.0)
    assert rule_of(PredictConfig(), about) == Rule(0.4, 0.7)
    assert rule_of(PredictConfig(min_score=0.0), about) == Rule(0.4, 0.0)
    assert rule_of(PredictConfig(foreground=0.5), about) == Rule(0.5, 0.7)
    assert rule_of(PredictConfig(min_score=0.6), {"decoding": {"foreground": 0.3}}) == Rule(0.3, 0.6)


def test_a_segmenter_reads_maps_by_the_rule_of_its_weights():
    maps = maps_of("flow", (3.0, 0.5, 2.0))
    model = build_model(ModelConfig(size="tiny"))
    found = [
        Segmenter(model, ModelConfig(size="tiny"), PredictConfig(), CPU, about)
        for about in ({}, {"decoding": {"min_score": 0.75}})
    ]
    assert [one.labels_of(maps, 10).max() for one in found] == [3, 2]
    assert found[0].fingerprint != found[1].fingerprint  # or blocks of one would be gone on with by the other


@pytest.mark.parametrize("step", [0, 7])
def test_a_student_inherits_the_rule_of_its_start(step):
    model = build_model(ModelConfig(size="tiny"))
    state = State(model, torch.optim.SGD(model.parameters(), 0.1), None, None, None, step=step)
    run = RunConfig(train=TrainConfig(init="teacher"))
    rule = {"foreground": 0.4, "min_score": 0.7}
    assert _about(state, run, {"decoding": rule})["decoding"] == rule
    assert "decoding" not in _about(state, run, {})


def test_a_gpu_without_memory_for_flows_leaves_them_to_the_cpu(monkeypatch):
    maps, tried = maps_of("flow", (3.0, 3.0, 3.0)), []

    def full(*_, **options):
        tried.append(options)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("cellseg.decoding.flow_torch.decode", full)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_: tensor)
    with pytest.warns(UserWarning, match="out of memory on the GPU while decoding, going on with the CPU"):
        assert decode("flow", maps, Rule(), 10, torch.device("cuda")).max() == 3
    assert len(tried) == 1


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5])
def test_a_probability_of_foreground_lies_between_none_and_all(value):
    with pytest.raises(ValueError, match="foreground"):
        PredictConfig(foreground=value)


def test_an_unknown_name_is_an_error():
    with pytest.raises(CellsegError, match="unknown representation 'shape'"):
        decode("shape", np.zeros((3, 4, 4), np.float32), Rule(), 10, CPU)
