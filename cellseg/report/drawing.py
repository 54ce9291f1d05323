"""Pixels and outlines for the page: an image made small, every outline a vector path of its own.

Outlines run through the centres of the cells' border pixels, so that neighbours stay apart, and are simplified
by less than a pixel. What this gives up: a whole slide is shown whole, and its cells are then specks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Labels
from cellseg.labels import instance_areas
from cellseg.outputs.overlays import for_display, is_grey

MAX_SIDE = 1000
"""Longest side of an image in the page, in pixels."""

TOLERANCE = 0.6
"""How far a simplified outline may lie from the traced one, in pixels of the page."""


def encode_image(image: NDArray[Any], max_side: int = MAX_SIDE) -> str:
    """Return an image as a data URI, small enough for a page.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        Raw values, shown as :func:`cellseg.outputs.overlays.for_display` says.
    max_side : int
        Longest side in pixels; larger images are averaged down by area.

    Returns
    -------
    str
        ``data:image/webp;base64,…``
    """
    import cv2
    from PIL import Image as Pillow

    shown = for_display(image)
    shrink = max_side / max(shown.shape[:2])
    if shrink < 1:
        size = (max(1, round(shown.shape[1] * shrink)), max(1, round(shown.shape[0] * shrink)))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    pixels = np.round(shown * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels[..., 0] if is_grey(shown) else pixels).save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def trace_outlines(labels: Labels, tolerance: float = TOLERANCE) -> str:
    """Return the outlines of all cells as SVG path data.

    Parameters
    ----------
    labels : int32 (H, W)
        Cells; each piece of a cell has its own outline, holes have none.
    tolerance : float
        How far the simplified outline may lie from the traced one, in pixels.

    Returns
    -------
    str
        Whole numbers, (x, y) of pixel centres counted from 0; empty without cells.

    Notes
    -----
    Border following by Suzuki and Abe (Computer Vision, Graphics, and Image Processing 30, 1985) and
    simplification by Douglas and Peucker (Cartographica 10, 1973), both as in OpenCV.
    """
    return "".join(map(_path_of, _contours(labels, tolerance)))


def _contours(labels: Labels, tolerance: float) -> Iterator[NDArray[np.int32]]:
    import cv2
    from scipy.ndimage import find_objects

    ids, _ = instance_areas(labels)
    compact = np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0).astype(np.int32)
    for place, box in enumerate(find_objects(compact), start=1):
        mask = (compact[box] == place).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        corner = np.array([box[1].start, box[0].start], np.int32)
        for contour in found:
            yield cv2.approxPolyDP(contour, tolerance, True)[:, 0] + corner


def _path_of(points: NDArray[np.int32]) -> str:
    steps = "".join(f"{' ' if x >= 0 else ''}{x}{' ' if y >= 0 else ''}{y}" for x, y in np.diff(points, axis=0))
    # A cell of one pixel has no extent: a line of length zero, which round ends make a dot.
    return f"M{points[0, 0]} {points[0, 1]}{'l' + steps.lstrip() if steps else 'h0'}z"
