"""How good a network is on images without labels: criteria that need none, each in [0, 1], larger is better.

Every criterion looks at the cells found and is 0 where there are none, because a network that finds nothing is
perfectly sure of it and perfectly consistent. So a field that is truly empty is worth 0 too, for every network
alike. ``confidence`` alone is unsafe; whether another one may be trusted is shown by its rank correlation with the
true F1 (:func:`rank_correlations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Image
from cellseg.instances import representation
from cellseg.instances.interface import Representation
from cellseg.label_free.views import Views, agreement, see
from cellseg.labels import instance_areas
from cellseg.predict import Segmenter
from cellseg.scale import WINDOW, middle_of, zoom_for

Shown = tuple[Image, float | None]
"""A normalised image ``(H, W, 3)`` and the diameter of its cells in pixels, None to leave its scale alone."""

GIANT = 0.5
"""A cell that covers more than this share of an image is a giant."""


@dataclass(frozen=True)
class Findings:
    """What the criteria say of a network, as means over images.

    Attributes
    ----------
    values : dict of str to float
        Each criterion of :data:`CRITERIA`.
    cells : int
        Cells found in all images together.
    giants : float
        Share of the images in which one cell covers more than :data:`GIANT` of the image.
    """

    values: dict[str, float]
    cells: int
    giants: float


def flips(views: Views, module: Representation) -> float:
    """Agreement of the instances found in the flipped images, F1 at IoU 0.5."""
    return agreement(views.labels, views.flips)


def scales(views: Views, module: Representation) -> float:
    """Agreement of the instances found a little finer and coarser, F1 at IoU 0.5."""
    return agreement(views.labels, views.scales)


def cycle(views: Views, module: Representation) -> float:
    """Encode–decode consistency: how alike the maps and the encoding of the cells decoded from them are.

    The mean over the terms of the representation: for probabilities and distances the sum of the smaller over the
    sum of the larger values (Ružička), for vectors the mean cosine over cells and foreground, shorter vectors
    counting less and opposite ones 0.
    """
    if not views.labels.any():
        return 0.0
    target = module.encode(views.labels)
    cells, likely = views.labels > 0, module.foreground(views.maps)
    parts = [_ruzicka(likely, cells.astype(np.float32))]
    for term in module.LOSS[1:]:
        predicted = views.maps[term.maps] / term.scale
        if module.VECTORS:
            inside = cells | (likely > 0.5)
            predicted = predicted / np.maximum(np.hypot(*predicted), 1)
            cosine = (predicted * target[term.maps]).sum(axis=0)
            parts.append(float(np.clip(cosine[inside], 0, 1).mean()))
        elif term.kind == "mse":
            parts.append(_ruzicka(np.clip(predicted, 0, 1) * (likely > 0.5), target[term.maps]))
        else:
            shares = np.exp(predicted - predicted.max(axis=0))
            parts.append(_ruzicka(likely * shares / shares.sum(axis=0), target[term.maps]))
    return float(np.mean(parts))


def confidence(views: Views, module: Representation) -> float:
    """Mean confidence at the pixels of the cells found, by the rule of the representation. Unsafe alone."""
    cells = views.labels > 0
    return float(module.confidence(views.maps)[cells].mean()) if cells.any() else 0.0


def consensus(views: Views, module: Representation) -> float:
    """Geometric mean of ``flips``, ``scales`` and ``cycle``: all three are needed."""
    return float(np.cbrt(flips(views, module) * scales(views, module) * cycle(views, module)))


CRITERIA: dict[str, Callable[[Views, Representation], float]] = {
    "flips": flips,
    "scales": scales,
    "cycle": cycle,
    "confidence": confidence,
    "consensus": consensus,
}
"""The criteria by the names that ``adapt.criterion`` gives them."""


def measure(segmenter: Segmenter, images: Sequence[Shown]) -> Findings:
    """Compute every criterion as its mean over images, of large ones over their middle.

    Parameters
    ----------
    segmenter : Segmenter
        The network to judge.
    images : sequence of (float32 (H, W, 3), float or None)
        At least one image with its cell diameter.
    """
    module = representation(segmenter.config.representation)
    seen = [see(segmenter, *middle(image, zoom_of(segmenter, diameter))) for image, diameter in images]
    values = {name: float(np.mean([rule(views, module) for views in seen])) for name, rule in CRITERIA.items()}
    areas = [instance_areas(views.labels)[1] for views in seen]
    giants = [area.max(initial=0) > GIANT * views.labels.size for area, views in zip(areas, seen, strict=True)]
    return Findings(values, sum(map(len, areas)), float(np.mean(giants)))


def score(name: str, segmenter: Segmenter, images: Sequence[Shown]) -> float:
    """Compute one criterion of :data:`CRITERIA` as its mean over images."""
    return measure(segmenter, images).values[name]


def count_cells(segmenter: Segmenter, images: Sequence[Shown]) -> int:
    """Count the cells of the same parts of the images that :func:`measure` looks at."""
    return sum(int(segmenter.segment_at(*middle(i, zoom_of(segmenter, d))).max(initial=0)) for i, d in images)


def zoom_of(segmenter: Segmenter, diameter: float | None) -> float:
    """Return the factor that brings cells of a diameter to the size the network knows."""
    return zoom_for(diameter, segmenter.config.reference_diameter)


def middle(image: Image, zoom: float, side: int = WINDOW) -> tuple[Image, float]:
    """Cut the middle out of an image, at most ``side`` pixels high and wide once shown at the zoom; and the zoom."""
    part = middle_of((image.shape[0], image.shape[1]), zoom, side)
    return image[part.rows, part.columns], zoom


def rank_correlations(lines: Iterable[Mapping[str, Any]], truth: str = "val_f1") -> dict[str, float | None]:
    """Rank-correlate each criterion with a true score over the checkpoints of a log.

    Parameters
    ----------
    lines : iterable of mapping
        Lines of the logs of one or more runs; those that hold both the truth and a criterion are used.
    truth : str
        Key of the true score.

    Returns
    -------
    dict of str to float or None
        Spearman's coefficient of each criterion; None with fewer than three checkpoints or where one is constant.
    """
    from scipy.stats import spearmanr

    lines = list(lines)
    result: dict[str, float | None] = {}
    for name in CRITERIA:
        pairs = np.array([(line[name], line[truth]) for line in lines if name in line and truth in line])
        varied = len(pairs) >= 3 and all(len(np.unique(column)) > 1 for column in pairs.T)
        result[name] = float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic) if varied else None
    return result


def cost_of_choice(lines: Iterable[Mapping[str, Any]], truth: str = "val_f1") -> dict[str, float | None]:
    """Return how much of a true score is lost where a criterion chooses the checkpoint, against the best in hindsight.

    Parameters
    ----------
    lines : iterable of mapping
        Lines of the log of one run; those that hold both the truth and a criterion are used. Of checkpoints that a
        criterion likes alike the first is chosen, as a run does.
    truth : str
        Key of the true score.

    Returns
    -------
    dict of str to float or None
        For each criterion, 0 where it chooses the best checkpoint; None where no line is usable.
    """
    lines = list(lines)
    result: dict[str, float | None] = {}
    for name in CRITERIA:
        pairs = [(line[name], line[truth]) for line in lines if name in line and truth in line]
        chosen = max(pairs, key=lambda pair: pair[0])[1] if pairs else None
        result[name] = max(true for _, true in pairs) - chosen if chosen is not None else None
    return result


def _ruzicka(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    larger = float(np.maximum(first, second).sum())
    return float(np.minimum(first, second).sum()) / larger if larger else 0.0
