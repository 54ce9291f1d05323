"""Cells as flows: a foreground map and, at every pixel of a cell, the direction toward its centre.

Targets follow Cellpose (Stringer, Wang, Michaelos, Pachitariu, Nature Methods 2021): heat diffuses from
the pixel nearest a cell's median position, zero outside the cell, and the flow is the direction of the
heat's gradient. Decoding follows the predicted flow for many steps at once by composing the step map
with itself, and groups the pixels that arrive together. Only directions are kept, so a cell that lies in
several pieces is encoded, and comes back, as several cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError, Labels
from cellseg.instances.diffusion import directions
from cellseg.instances.interface import IDEAL_LOGIT, ConfidenceRule, Maps, Term, renumber, sigmoid
from cellseg.instances.sinks import group_ends

N_MAPS = 3
"""Maps of this representation: foreground, dy, dx."""

FLOW_SCALE = 5.0
"""The network predicts this multiple of the unit flow (Cellpose), so that both losses weigh alike."""

LOSS: tuple[Term, ...] = (
    Term("foreground", "bce", slice(0, 1)),
    Term("flow", "mse", slice(1, 3), scale=FLOW_SCALE, weight=0.5),
)
"""The form of Cellpose: binary cross-entropy plus half the squared error of the scaled flow."""

VECTORS: tuple[int, ...] = (1, 2)
CONFIDENCE: ConfidenceRule = "direction"

LARGEST_SIDE = 32_766
"""OpenCV looks up positions in images of at most this height and width."""

_STEPS = 256
"""Steps of one pixel that every path is followed, enough for cells of several hundred pixels."""
_STILL, _ON_THE_WAY = 0.25, 0.5
"""Paths are followed no further once none moves by more than the first (in pixels), and for twice as many steps while
one gets forward by more than the second (in pixels a step), as in the arms of very large cells."""

ROUNDING = np.float32(1.5 * 2**15)
"""A float32 to which this is added is rounded to a multiple of 1/256, of which sums with row numbers are exact."""


def encode(labels: Labels) -> Maps:
    """Make the foreground and flow targets of an instance image.

    Returns
    -------
    ndarray of float32, shape (3, H, W)
        Foreground (0 or 1), then the flow (dy, dx) of :func:`cellseg.instances.diffusion.directions`, 0 outside
        cells.
    """
    if labels.ndim != 2:
        raise CellsegError(f"flow.encode wants labels of shape (H, W), got {labels.shape}")
    target = np.zeros((N_MAPS, *labels.shape), np.float32)
    np.greater(labels, 0, out=target[0])
    directions(labels, target[1:])
    return target


def encode_foreground(mask: NDArray[np.bool_]) -> Maps:
    """Make the target of a foreground mask ``(H, W)``: the mask, and flow 0, which no loss may look at."""
    return np.concatenate([mask[None].astype(np.float32), np.zeros((2, *mask.shape), np.float32)])


def ideal_maps(target: Maps) -> Maps:
    """Return the raw network output whose decoding a perfect network would get: logits of ±8, scaled flow.

    Parameters
    ----------
    target : ndarray of float32, shape (3, H, W)
        Output of :func:`encode`.
    """
    maps = np.empty_like(target)
    maps[0] = np.where(target[0] > 0, IDEAL_LOGIT, -IDEAL_LOGIT)
    maps[1:] = FLOW_SCALE * target[1:]
    return maps


def decode(
    maps: Maps,
    *,
    foreground_threshold: float = 0.0,
    min_size: int = 10,
    diameter: float | None = None,
    flow_threshold: float | None = None,
) -> Labels:
    """Group the foreground pixels whose flow leads to the same place.

    Parameters
    ----------
    maps : ndarray of float32, shape (3, H, W)
        Raw network output: foreground logit, ``FLOW_SCALE`` · dy, ``FLOW_SCALE`` · dx.
    foreground_threshold : float
        A pixel is foreground where its logit exceeds this.
    min_size : int
        Cells of fewer pixels are dropped.
    diameter : float, optional
        Typical cell diameter in pixels; bounds how far apart two sinks of one cell may lie. By default each
        sink's own number of pixels decides, so that small and large cells may share an image.
    flow_threshold : float, optional
        Cells whose mean squared difference between predicted flow and the flow of the cell found exceeds this are
        dropped (Cellpose uses 0.4); None keeps all and costs nothing.

    Returns
    -------
    ndarray of int32, shape (H, W)
        Instance image with consecutive ids.

    Raises
    ------
    CellsegError
        If the shape is wrong or the image larger than ``LARGEST_SIDE``.
    """
    if maps.ndim != 3 or maps.shape[0] != N_MAPS:
        raise CellsegError(f"flow.decode wants maps of shape (3, H, W), got {maps.shape}")
    if max(maps.shape) > LARGEST_SIDE:
        raise CellsegError(f"flow.decode wants at most {LARGEST_SIDE:,} pixels a side, got {maps.shape[1:]}; divide it")
    mask = maps[0] > foreground_threshold
    labels = np.zeros(mask.shape, np.int32)
    inside = np.flatnonzero(mask)
    if inside.size == 0:
        return labels
    ends = _ends(maps[1:], mask)[inside]
    count = np.bincount(ends, minlength=mask.size)
    place = np.flatnonzero(count)
    cells = np.zeros(mask.size, np.int32)
    cells[place] = group_ends(place, count[place], mask.shape, diameter, min_size)
    labels.ravel()[inside] = cells[ends]
    return labels if flow_threshold is None else _drop_inconsistent(labels, maps, flow_threshold)


def foreground(maps: Maps) -> NDArray[np.float32]:
    """Return the foreground probability ``(H, W)`` of raw network output ``(3, H, W)``."""
    return sigmoid(maps[0])


def confidence(maps: Maps) -> NDArray[np.float32]:
    """Return how sure raw network output is, shape (H, W): low where the direction is unsure.

    Parameters
    ----------
    maps : ndarray of float32, shape (3, H, W)
        Raw network output.

    Returns
    -------
    ndarray of float32, shape (H, W)
        On cells the norm of the predicted flow clipped to [0, 1], elsewhere the probability of background.
    """
    norm = np.hypot(maps[1], maps[2]) / np.float32(FLOW_SCALE)
    return np.asarray(np.where(maps[0] > 0, np.minimum(norm, 1), 1 - foreground(maps)), np.float32)


def transform_flow(flow: NDArray[np.float32], matrix: NDArray[np.floating]) -> NDArray[np.float32]:
    """Turn flow vectors as a geometric transform turns directions, and bring them back to unit norm.

    Parameters
    ----------
    flow : ndarray of float32, shape (2, H, W)
        Unit or zero vectors (dy, dx), already moved to their new pixels.
    matrix : ndarray, shape (2, 2)
        Maps an input offset (dy, dx) to the output offset: ``diag(-1, 1)`` for a vertical flip,
        ``[[0, -1], [1, 0]]`` for ``np.rot90(image)``; a pure scale changes nothing.

    Returns
    -------
    ndarray of float32, shape (2, H, W)
        Unit vectors; zero stays zero.
    """
    turned = np.tensordot(np.asarray(matrix, np.float32), flow, axes=1)
    norm = np.hypot(turned[0], turned[1])
    return np.asarray(turned / np.where(norm > 1e-6, norm, 1), np.float32)


def warp(target: Maps, matrix: NDArray[np.floating]) -> Maps:
    """Turn the vectors of a target whose pixels were already moved; see :func:`transform_flow`.

    Parameters
    ----------
    target : ndarray of float32, shape (3, H, W)
        Foreground, dy, dx at their new pixels.
    matrix : ndarray, shape (2, 2)
        Maps an input offset (dy, dx) to the output offset.
    """
    return np.concatenate([target[:1], transform_flow(target[1:], matrix)])


def _ends(maps: Maps, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Flat index of the pixel where each pixel's path ends, following ``maps / FLOW_SCALE`` within the mask.

    The steps double: where n steps lead from where n steps lead is where 2 n steps lead. No path leaves the image.
    How far a path moves is computed in the same bits wherever in the image its cell lies, so that a part of the image
    decoded alone gives the same cells.
    """
    import cv2

    height, width = mask.shape
    share = mask.astype(np.float32) / np.float32(FLOW_SCALE)
    moves = (maps[0] * share, maps[1] * share)
    for move in (moves[0], moves[1].T):  # the rims do not lead out
        np.maximum(move[0], 0, out=move[0])
        np.minimum(move[-1], 0, out=move[-1])
    rows = np.arange(height, dtype=np.float32)[:, None] - ROUNDING
    columns = np.arange(width, dtype=np.float32) - ROUNDING
    at_y, at_x, further = (np.empty(mask.shape, np.float32) for _ in range(3))
    steps, gained = 1, np.inf
    while not path_ends(gained, steps, height + width):
        np.add(moves[0], ROUNDING, out=at_y)
        np.add(moves[1], ROUNDING, out=at_x)
        at_y += rows
        at_x += columns
        gained = 0.0
        for move in moves:
            cv2.remap(move, at_x, at_y, cv2.INTER_LINEAR, dst=further, borderMode=cv2.BORDER_REPLICATE)
            move += further
            gained = max(gained, cv2.norm(further, cv2.NORM_INF))
        steps *= 2
    y, x = (np.rint(move, out=move).astype(np.intp) for move in moves)
    ends = np.clip(y + np.arange(height)[:, None], 0, height - 1) * width
    ends += np.clip(x + np.arange(width), 0, width - 1)
    return np.asarray(ends.ravel(), np.intp)


def path_ends(gained: float, steps: int, longest: int) -> bool:
    """Say whether paths of ``steps`` steps are long enough.

    Parameters
    ----------
    gained : float
        How far, in pixels along an axis, the second half of its steps took the path that got furthest by it.
    steps : int
        Steps of one pixel, a power of two.
    longest : int
        The most steps that make sense, in which a path could cross the image.
    """
    if gained <= _STILL:
        return True
    return steps >= _STEPS and (gained < _ON_THE_WAY * steps / 2 or steps >= longest)


def _drop_inconsistent(labels: Labels, maps: Maps, threshold: float) -> Labels:
    """Remove cells whose own flow differs from the predicted one by more than ``threshold`` (mean square)."""
    error = maps[1:] / np.float32(-FLOW_SCALE)
    expected = np.zeros_like(error)
    directions(labels, expected)
    np.square(np.add(error, expected, out=error), out=error)
    flat = labels.ravel()
    mean = np.bincount(flat, (error[0] + error[1]).ravel()) / np.maximum(np.bincount(flat), 1)
    return renumber(labels, mean <= threshold)
