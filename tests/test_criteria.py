import math

import numpy as np
import pytest
import torch
from fakes import Constant, Fickle, Reader, four_disks, image_of, segmenter

from cellseg.config import ModelConfig, PredictConfig
from cellseg.instances import representation
from cellseg.label_free.criteria import CRITERIA, count_cells, measure, middle, rank_correlations, score
from cellseg.label_free.views import Views
from cellseg.predict import Segmenter

DISKS = [(image_of(four_disks()), 24.0)]


def test_a_perfect_network_scores_one():
    found = measure(segmenter(Reader()), DISKS)
    assert found.values["flips"] == found.values["scales"] == 1
    assert found.values["cycle"] > 0.97  # logits of ±8 are no certainty, and the smoothing of the maps is none
    assert found.values["confidence"] == pytest.approx(math.tanh(4), abs=1e-3)
    assert (found.cells, found.giants) == (4, 0.0)
    assert count_cells(segmenter(Reader()), DISKS) == 4


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("network", [Constant(-8.0, 0.0), Constant(-80.0, 5.0)], ids=["blank", "very sure"])
def test_a_network_that_finds_nothing_scores_zero(name, network):
    assert score(name, segmenter(network), DISKS) == 0


def test_a_fickle_network_scores_what_it_agrees():
    found = measure(segmenter(Fickle()), DISKS)
    assert found.values["flips"] == pytest.approx(6 / 7)  # 3 of 4 cells in every view
    assert found.values["scales"] == pytest.approx(6 / 7)
    expected = (6 / 7) ** 2 * found.values["cycle"]
    assert found.values["consensus"] == pytest.approx(expected ** (1 / 3))


def test_one_cell_over_the_whole_image_is_a_giant():
    found = measure(segmenter(Constant(8.0, 5.0)), DISKS * 2)
    assert (found.cells, found.giants) == (2, 1.0)


def test_an_image_without_cells_counts_as_zero_in_the_mean():
    blank = np.full_like(DISKS[0][0], -8)
    assert score("flips", segmenter(Reader()), [*DISKS, (blank, 24.0)]) == 0.5


@pytest.mark.parametrize("name", ["flow", "distance", "boundary"])
def test_cycle_is_nearly_one_for_ideal_maps_and_falls_when_they_are_wrong(name):
    module, labels = representation(name), four_disks()
    maps = module.ideal_maps(module.encode(labels))

    def cycle(maps):
        return CRITERIA["cycle"](Views(maps, module.foreground(maps), labels, (), ()), module)

    assert cycle(maps) > 0.98
    wrong = maps.copy()
    for term in module.LOSS[1:]:
        exchanged = term.kind == "cross_entropy"  # else opposite vectors, or no distance
        wrong[term.maps] = maps[term.maps][::-1] if exchanged else -maps[term.maps]
    assert cycle(wrong) == pytest.approx(0.5, abs=0.02)  # the foreground alone is still right


def test_all_representations_are_measured():
    for name in ("flow", "boundary"):
        maps = representation(name).ideal_maps(representation(name).encode(four_disks()))
        fake = Segmenter(
            Ideal(maps), ModelConfig(representation=name), PredictConfig(), torch.device("cpu"), {"diameter": 24.0}
        )
        assert set(measure(fake, [(np.zeros((96, 96, 3), np.float32), None)]).values) == set(CRITERIA)


class Ideal(torch.nn.Module):
    """Answers with the same maps, shown at whatever size."""

    def __init__(self, maps):
        super().__init__()
        self.maps = torch.from_numpy(maps)[None]

    def forward(self, images):
        return torch.nn.functional.interpolate(self.maps, images.shape[-2:], mode="nearest")


def test_the_middle_of_a_large_image():
    image = np.arange(100 * 60 * 3, dtype=np.float32).reshape(100, 60, 3)
    part, zoom = middle(image, 0.5, side=20)
    assert zoom == 0.5
    assert np.array_equal(part, image[30:70, 10:50])
    assert middle(image, 1.0, side=200)[0].shape == image.shape


def test_rank_correlation_over_checkpoints():
    lines = [{"step": n, "flips": n, "scales": -n, "cycle": 1, "val_f1": n**3} for n in range(4)]
    lines.append({"step": 9, "flips": 5})  # no true score: not used
    found = rank_correlations(lines)
    assert (found["flips"], found["scales"]) == (pytest.approx(1), pytest.approx(-1))
    assert found["cycle"] is None  # constant
    assert found["confidence"] is None  # never logged
    assert rank_correlations(lines[:2])["flips"] is None
