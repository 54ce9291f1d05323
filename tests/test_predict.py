"""Segmenting with a network whose answers are known: which scale is chosen, what a mask of it becomes."""

import numpy as np
import pytest
import torch
from torch import nn

from cellseg.config import ModelConfig, PredictConfig
from cellseg.predict import SCALES, Segmenter


class SureAtOneSize(nn.Module):
    """Everything bright is foreground; the vectors are longest where bright stripes are ``width`` pixels wide."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, images):
        bright = images[:, :1] > 0.5
        changes = (bright[..., 1:] != bright[..., :-1]).float().mean().clamp(min=1e-6)
        found = 1 / changes  # mean width of a stripe in pixels
        norm = 5 * torch.exp(-((found / self.width).log() ** 2))
        logit = torch.where(bright, 8.0, -8.0)
        return torch.cat([logit, torch.full_like(logit, float(norm)), torch.zeros_like(logit)], dim=1)


def segmenter(width, reference=24.0):
    config = ModelConfig(reference_diameter=reference)
    return Segmenter(SureAtOneSize(width), config, PredictConfig(), torch.device("cpu"), {"diameter": 17.0})


@pytest.mark.parametrize("zoom", SCALES[1:-1])
def test_the_scale_is_chosen_at_which_the_network_is_surest(zoom):
    stripes = (np.arange(512) // round(16 / zoom)) % 2
    image = np.repeat(np.tile(stripes.astype(np.float32), (512, 1))[..., None], 3, axis=2)
    assert segmenter(width=16).estimate_diameter(image) == pytest.approx(24 / zoom)


def test_an_image_without_foreground_has_no_diameter_and_the_known_one_is_used():
    image = np.zeros((96, 96, 3), np.float32)
    assert segmenter(width=16).estimate_diameter(image) is None
    assert segmenter(width=16).segment(np.zeros((96, 96), np.uint8)).max() == 0


def test_of_a_large_image_the_middle_is_looked_at():
    image = np.zeros((3000, 96, 3), np.float32)
    image[:400, 16:80] = 1  # even the coarsest scale shows rows 476 to 2524 only
    assert segmenter(width=16).estimate_diameter(image) is None
    image[1400:1600, 16:80] = 1
    assert segmenter(width=16).estimate_diameter(image) is not None
