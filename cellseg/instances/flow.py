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
from scipy import ndimage, sparse, spatial

from cellseg.core import CellsegError, Labels
from cellseg.instances.diffusion import directions
from cellseg.instances.interface import IDEAL_LOGIT, ConfidenceRule, Maps, Term, drop_small, renumber, sigmoid

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

_JUMPS = 8
"""Doublings of the path: 256 steps of one pixel, enough for cells of several hundred pixels."""
_FRAGMENT = 0.5
"""A sink of less than this share of its neighbour's radius is taken for a fragment of the neighbour's cell."""
_MERGE_FRAGMENT, _MERGE_EQUAL = 0.8, 0.35
"""Two sinks are one cell when they are nearer than this share of the larger radius. Sinks alike in size are joined
more reluctantly: the centres of long cells lying side by side are only a cell's width apart."""


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
    target[1:] = directions(labels)
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
    """
    if maps.ndim != 3 or maps.shape[0] != N_MAPS:
        raise CellsegError(f"flow.decode wants maps of shape (3, H, W), got {maps.shape}")
    mask = maps[0] > foreground_threshold
    labels = np.zeros(mask.shape, np.int32)
    inside = np.flatnonzero(mask)
    if inside.size == 0:
        return labels
    labels.ravel()[inside] = _group(_arrivals(maps[1:] / FLOW_SCALE, mask)[inside], mask.shape, diameter)
    if flow_threshold is not None:
        labels = _drop_inconsistent(labels, maps, flow_threshold)
    return drop_small(labels, min_size)


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


def _arrivals(flow: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Flat index of the pixel where each pixel's path ends after ``2 ** _JUMPS`` steps."""
    import cv2

    height, width = mask.shape
    grid = np.indices(mask.shape, np.float32)
    move = np.where(mask, flow, np.float32(0))
    for _ in range(_JUMPS):
        map_y, map_x = grid[0] + move[0], grid[1] + move[1]
        for axis in (0, 1):
            move[axis] += cv2.remap(move[axis].copy(), map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    end = np.rint(grid + move).astype(np.intp)
    ends = np.clip(end[0], 0, height - 1) * width + np.clip(end[1], 0, width - 1)
    return np.asarray(ends.ravel(), np.intp)


def _group(arrivals: NDArray[np.intp], shape: tuple[int, int], diameter: float | None) -> NDArray[np.int32]:
    """Give each arrival its cell's number, from 1."""
    count = np.bincount(arrivals, minlength=shape[0] * shape[1]).reshape(shape)
    spots, n_spots = ndimage.label(count > 0, np.ones((3, 3)))
    index = np.arange(1, n_spots + 1)
    size = ndimage.sum_labels(count, spots, index)
    place = np.array(ndimage.center_of_mass(count, spots, index)).reshape(-1, 2)
    radius = np.sqrt(size / np.pi)
    if diameter is not None:
        radius = np.minimum(radius, diameter / 2)
    pairs = spatial.cKDTree(place).query_pairs(_MERGE_FRAGMENT * float(radius.max()), output_type="ndarray")
    apart = np.hypot(*(place[pairs[:, 0]] - place[pairs[:, 1]]).T)
    larger, smaller = radius[pairs].max(axis=1), radius[pairs].min(axis=1)
    near = pairs[apart < larger * np.where(smaller < _FRAGMENT * larger, _MERGE_FRAGMENT, _MERGE_EQUAL)]
    graph = sparse.coo_matrix((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(n_spots, n_spots))
    _, cell = sparse.csgraph.connected_components(graph, directed=False)
    return np.asarray(cell[spots.ravel()[arrivals] - 1] + 1, np.int32)


def _drop_inconsistent(labels: Labels, maps: Maps, threshold: float) -> Labels:
    """Remove cells whose own flow differs from the predicted one by more than ``threshold`` (mean square)."""
    expected = encode(labels)[1:]
    error = ((expected - maps[1:] / FLOW_SCALE) ** 2).sum(axis=0)
    mean = np.bincount(labels.ravel(), error.ravel()) / np.maximum(np.bincount(labels.ravel()), 1)
    return renumber(labels, mean <= threshold)
