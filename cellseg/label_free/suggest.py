"""Which images to annotate first: those a network is least sure of, and not all of one kind.

Doubt is one minus a label-free criterion (:mod:`cellseg.label_free.criteria`). Annotating the most doubtful images
alone would often mean annotating the same difficulty several times, so each further image must also look unlike those
already chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Image, Record
from cellseg.datasets.modality import describe
from cellseg.datasets.windowed import load_view
from cellseg.images import read_size
from cellseg.instances import representation
from cellseg.label_free.criteria import CRITERIA, middle, zoom_of
from cellseg.label_free.views import Views, found_again, see
from cellseg.predict import Segmenter
from cellseg.scale import resize_image

SURE = 0.75
"""A cell is drawn as sure when it is found again in at least this share of the views."""

_THUMBNAIL, _DETAIL = 128, 256


@dataclass(frozen=True)
class Doubt:
    """What a network makes of one image.

    Attributes
    ----------
    name : str
        Id of the image.
    path : Path
        Its file.
    agreement : float
        The criterion, in [0, 1]; 0 where no cell is found.
    cells : int
        Cells found in the part that was looked at.
    diameter : float
        Cell diameter in pixels at which it was shown.
    looks : float64 (F,)
        What it looks like: :func:`cellseg.datasets.modality.describe`, and the logarithms of diameter and cells.
    """

    name: str
    path: Path
    agreement: float
    cells: int
    diameter: float
    looks: NDArray[np.float64]


def doubt(segmenter: Segmenter, name: str, path: Path, criterion: str) -> Doubt:
    """Judge one image file by one of :data:`cellseg.label_free.criteria.CRITERIA`; of a large one its middle."""
    view = _view(segmenter, path)
    diameter = segmenter.estimate_diameter(view) or segmenter.about.get("diameter")
    diameter = float(diameter or segmenter.config.reference_diameter)
    views = see(segmenter, *middle(view, zoom_of(segmenter, diameter)))
    cells = int(views.labels.max(initial=0))
    step = max(1, max(view.shape[:2]) // _THUMBNAIL)
    looks = describe(view[::step, ::step], middle(view, 1.0, _DETAIL)[0])
    return Doubt(
        name,
        path,
        CRITERIA[criterion](views, representation(segmenter.config.representation)),
        cells,
        diameter,
        np.append(looks, [np.log2(diameter), np.log2(1 + cells)]),
    )


def choose(agreements: Sequence[float], looks: NDArray[np.float64], count: int) -> list[int]:
    """Choose images by doubt and variety.

    Parameters
    ----------
    agreements : sequence of float, N
        In [0, 1]; doubt is one minus it.
    looks : float64 (N, F)
        What the images look like; each column is brought to unit spread.
    count : int
        How many to choose, at most N.

    Returns
    -------
    list of int
        Places of the images chosen: the most doubtful first, then each time the one with the largest product of doubt
        and distance in looks to the nearest one chosen before; where all products are 0, the most doubtful.
    """
    doubts = 1 - np.asarray(agreements, np.float64)
    spread = looks.std(axis=0)
    looks = (looks - looks.mean(axis=0)) / np.where(spread > 1e-9, spread, 1)
    chosen: list[int] = []
    nearest = np.full(len(doubts), np.inf)
    while len(chosen) < min(count, len(doubts)):
        products = doubts * (nearest if chosen else 1)
        left = [place for place in range(len(doubts)) if place not in chosen]
        best = max(left, key=lambda place: (round(float(products[place]), 12), float(doubts[place])))
        chosen.append(best)
        nearest = np.minimum(nearest, np.linalg.norm(looks - looks[best], axis=1))
    return chosen


def picture_of(segmenter: Segmenter, found: Doubt) -> tuple[Image, Views, NDArray[np.bool_]]:
    """Return the part of an image that was looked at, its views, and which of its cells are sure, bool (N,)."""
    part, zoom = middle(_view(segmenter, found.path), zoom_of(segmenter, found.diameter))
    views = see(segmenter, part, zoom)
    return resize_image(part, zoom), views, found_again(views.labels, views.flips + views.scales) >= SURE - 1e-9


def _view(segmenter: Segmenter, path: Path) -> Image:
    height, width = read_size(path)
    record = Record(path.name, path, None, "", "", "", height, width, None, "", None)
    return load_view(record, segmenter.config)
