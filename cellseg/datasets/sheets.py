"""Draw islands of flat cells that touch on all sides, as epithelial cells grow."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]


def draw_islands(rng: np.random.Generator, size: tuple[int, int]) -> Iterator[tuple[int, int, Mask]]:
    """Yield cells of islands as first row, first column and the mask in that box.

    An island is a wavy ellipse cut into the regions nearest to points of a shaken lattice (a Voronoi diagram), in
    coordinates that are bent, so that no border is straight; a few regions stay empty. Cells of one image share no
    pixel.

    Parameters
    ----------
    rng : numpy Generator
        Source of all randomness.
    size : (height, width)
        Image size in pixels.
    """
    taken = np.zeros(size, bool)
    for _ in range(int(rng.integers(1, 5))):
        island = _island(rng, size) & ~taken
        taken |= island
        pitch = rng.uniform(13, 36)
        nearest = _regions(rng, size, pitch) * island
        empty = rng.random(int(nearest.max(initial=0)) + 1) < rng.uniform(0, 0.2)
        for top, left, mask in _pieces(nearest * ~empty[nearest]):
            if mask.sum() >= 0.2 * pitch**2:
                yield top, left, mask


def _island(rng: np.random.Generator, size: tuple[int, int]) -> Mask:
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    reach = np.ones_like(angle)
    for order in range(2, 7):
        reach += rng.normal(0, 0.22 / np.sqrt(order)) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    radii = rng.uniform(0.12, 0.65, 2) * min(size)
    x = rng.uniform(0, size[1]) + radii[0] * np.clip(reach, 0.4, 1.8) * np.cos(angle)
    y = rng.uniform(0, size[0]) + radii[1] * np.clip(reach, 0.4, 1.8) * np.sin(angle)
    canvas = np.zeros(size, np.uint8)
    cv2.fillPoly(canvas, [np.rint(np.stack([x, y], axis=1)).astype(np.int32)], 1)
    return canvas.astype(bool)


def _regions(rng: np.random.Generator, size: tuple[int, int], pitch: float) -> NDArray[np.int64]:
    """Give each pixel the number, from 1, of the nearest point of a shaken lattice."""
    rows, columns = (np.arange(-pitch, length + pitch, pitch) for length in size)
    lattice = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    points = lattice + rng.uniform(-0.42, 0.42, lattice.shape) * pitch
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1).astype(np.float32)
    for axis in range(2):
        bend = cv2.GaussianBlur(rng.standard_normal(size, dtype=np.float32), (0, 0), pitch / 5)
        places[..., axis] += 0.1 * pitch * bend / bend.std()
    stretch = np.array([1.0, rng.uniform(0.6, 1.6)])
    found = cKDTree(points * stretch).query(places.reshape(-1, 2) * stretch)[1]
    return np.asarray(found, np.int64).reshape(size) + 1


def _pieces(labels: NDArray[np.int64]) -> Iterator[tuple[int, int, Mask]]:
    """Yield the largest 4-connected piece of every region."""
    from skimage.measure import label, regionprops

    for region in regionprops(labels):
        parts = label(region.image, connectivity=1)
        mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        yield region.bbox[0], region.bbox[1], np.asarray(mask, np.bool_)
