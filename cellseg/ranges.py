"""The two values of an image that become 0 and 1: percentiles on a regular grid of its pixels.

The grid bounds the cost on large images, and a slide read band by band gives exactly the range of the whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.config import NormalizeConfig

PERCENTILE_PIXELS = 2**20
"""Percentiles of larger images are taken on a regular grid of about this many pixels."""


def value_range(
    plane: NDArray[Any], rule: NormalizeConfig, extremes: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Give the values of a plane that become 0 and 1 under a rule.

    Parameters
    ----------
    plane : ndarray (H, W)
        Raw values of any integer, float or bool dtype.
    rule : NormalizeConfig
        As for :func:`cellseg.images.normalize`.
    extremes : (low, high), optional
        The smallest and largest finite value of the whole image, where the plane already is its grid of pixels.

    Returns
    -------
    (low, high) : float
        Equal where the plane holds a single finite value or none.
    """
    if rule.rule == "none":
        return 0.0, float(np.iinfo(plane.dtype).max) if plane.dtype.kind in "ui" else 1.0
    step = grid_step(plane.size) if extremes is None else 1
    pixels = _finite(plane[::step, ::step])
    if rule.rule == "percentile_nonzero":
        pixels = pixels[pixels != 0]
    low, high = np.percentile(pixels, (rule.low, rule.high)) if pixels.size else (0.0, 0.0)
    if low == high and extremes is not None:
        low, high = extremes
    elif low == high and (pixels := _finite(plane)).size:
        low, high = pixels.min(), pixels.max()
    return float(low), float(high)


def grid_step(n_pixels: int) -> int:
    """Return the step of the regular grid on which percentiles of an image of so many pixels are taken."""
    return max(1, int(np.ceil(np.sqrt(n_pixels / PERCENTILE_PIXELS))))


def _finite(plane: NDArray[Any]) -> NDArray[Any]:
    if plane.dtype.kind == "b":
        return plane.astype(np.uint8).ravel()
    return plane[np.isfinite(plane)].astype(np.float64) if plane.dtype.kind == "f" else plane.ravel()
