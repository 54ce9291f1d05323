"""Networks whose answers are known: they read their maps off the image they are shown."""

import numpy as np
import torch

from cellseg.config import ModelConfig, PredictConfig
from cellseg.instances import distance
from cellseg.predict import Segmenter


class Reader(torch.nn.Module):
    """Takes the first two channels of the image for the maps of the distance representation."""

    def forward(self, images):
        return images[:, :2]


class Fickle(Reader):
    """Sees nothing in the upper left quarter of whatever it is shown."""

    def forward(self, images):
        maps = super().forward(images).clone()
        height, width = maps.shape[-2:]
        maps[:, 0, : height // 2, : width // 2] = -8
        maps[:, 1, : height // 2, : width // 2] = 0
        return maps


class Constant(torch.nn.Module):
    """Says the same of every pixel."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.tensor(values)[None, :, None, None]

    def forward(self, images):
        return self.values.expand(len(images), -1, *images.shape[-2:])


def segmenter(network, **settings):
    config = ModelConfig(representation="distance")
    return Segmenter(network, config, PredictConfig(**settings), torch.device("cpu"), {"diameter": 24.0})


def four_disks(side=96, radius=12):
    """One disk in the middle of each quarter, ids in reading order."""
    rows, columns = np.indices((side, side))
    labels = np.zeros((side, side), np.int32)
    places = [(side // 4, side // 4), (side // 4, 3 * side // 4), (3 * side // 4, side // 4)]
    for cell, (y, x) in enumerate([*places, (3 * side // 4, 3 * side // 4)], start=1):
        labels[(rows - y + 0.5) ** 2 + (columns - x + 0.5) ** 2 <= radius**2] = cell
    return labels


def image_of(labels):
    """The image in which a :class:`Reader` reads these labels."""
    maps = distance.ideal_maps(distance.encode(labels))
    return np.ascontiguousarray(np.concatenate([maps, np.zeros_like(maps[:1])]).transpose(1, 2, 0))
