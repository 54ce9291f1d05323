"""Pure operations on label images: integers ``(H, W)``, 0 background, every positive id one cell.

Ids may be sparse and as large as 2³¹ − 1; time and memory depend on the number of pixels, not on the ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Labels


def instance_areas(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the ids of a label image and their areas.

    Parameters
    ----------
    labels : int or bool (H, W)
        Label image.

    Returns
    -------
    ids : int64 (N,)
        The positive ids, ascending.
    areas : int64 (N,)
        Pixels of each.
    """
    if labels.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if int(labels.max()) <= 4 * labels.size:
        counts = np.bincount(labels.ravel())
        ids = np.flatnonzero(counts[1:]) + 1
        return ids, counts[ids]
    ids, areas = np.unique(labels[labels != 0], return_counts=True)
    return ids.astype(np.int64), areas.astype(np.int64)


def count_instances(labels: NDArray[Any]) -> int:
    """Count the cells: the different positive ids of int ``(H, W)``; one id in two pieces is one cell."""
    return len(instance_areas(labels)[0])


def median_diameter(labels: NDArray[Any]) -> float | None:
    """Give the median cell diameter in pixels.

    Parameters
    ----------
    labels : int or bool (H, W)
        Label image.

    Returns
    -------
    float or None
        Median over the cells of the diameter of the disk of equal area, ``2 √(area / π)``; None without cells.

    Examples
    --------
    >>> import numpy as np
    >>> round(median_diameter(np.ones((10, 10), dtype=int)), 3)  # 2 √(100 / π)
    11.284
    """
    areas = instance_areas(labels)[1]
    return float(np.median(2 * np.sqrt(areas / np.pi))) if len(areas) else None


def remove_small(labels: NDArray[Any], min_size: int) -> Labels:
    """Remove the cells of fewer than ``min_size`` pixels; the other ids stay as they are.

    Parameters
    ----------
    labels : int (H, W)
        Label image; not changed.
    min_size : int
        Smallest area in pixels that is kept, over all pieces of an id.

    Returns
    -------
    int32 (H, W)
        A new label image.
    """
    out = labels.astype(np.int32)
    ids, areas = instance_areas(out)
    small = ids[areas < min_size]
    if len(small):
        out[np.isin(out, small)] = 0
    return out


def split_disconnected(labels: NDArray[Any]) -> Labels:
    """Give each connected piece of each cell its own id.

    Parameters
    ----------
    labels : int (H, W)
        Label image; pieces that touch only at a corner count as connected.

    Returns
    -------
    int32 (H, W)
        Ids 1..N in the order in which rows meet them; cells that touch stay apart.
    """
    from skimage.measure import label

    return np.asarray(label(labels, background=0, connectivity=2), dtype=np.int32)


def outlines(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the inner boundaries of the cells.

    Parameters
    ----------
    labels : int (H, W)
        Label image.

    Returns
    -------
    bool (H, W)
        True for cell pixels one of whose four neighbours is background or another cell. The edge of the image
        is no boundary, so a cell that leaves it has an open outline.
    """
    edge = np.zeros(labels.shape, dtype=np.bool_)
    differs = labels[1:] != labels[:-1]
    edge[1:] |= differs
    edge[:-1] |= differs
    differs = labels[:, 1:] != labels[:, :-1]
    edge[:, 1:] |= differs
    edge[:, :-1] |= differs
    edge &= labels != 0
    return edge
