"""How a large image is cut: regions, blocks with their halos, and the one grid of windows a network looks through.

Blocks are units of work; windows are what the network sees. The windows lie on one grid that depends on the size of
the image alone, so what the network says of a pixel does not depend on the block in which it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

BLOCK = 2048
"""Side of a block by default, in pixels at the scale of decoding: about 0.5 GB while it is decoded."""

HALO_DIAMETERS = 3
"""Width of the halo around a block, in typical cell diameters."""

LEAST_HALO = 32
"""Least width of the halo in pixels of the image."""


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels ``[top, bottom) × [left, right)``."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """Return the region of all pixels of an image of shape ``(height, width, …)``."""
        return cls(0, 0, shape[0], shape[1])

    @property
    def rows(self) -> slice:
        """The rows as a slice."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """The columns as a slice."""
        return slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.bottom - self.top, self.right - self.left

    @property
    def size(self) -> int:
        """Number of pixels; 0 where the region is empty."""
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    def grown(self, by: int, shape: tuple[int, int]) -> Region:
        """Return the region with ``by`` more pixels on every side, cut off at the edges of an image."""
        return Region(
            max(0, self.top - by),
            max(0, self.left - by),
            min(shape[0], self.bottom + by),
            min(shape[1], self.right + by),
        )

    def common(self, other: Region) -> Region:
        """Return what two regions share; its size is 0 where that is nothing."""
        return Region(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def within(self, outer: Region) -> Region:
        """Return the region in coordinates that begin at the corner of ``outer``."""
        return Region(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)

    def scaled(self, old: tuple[int, int], new: tuple[int, int]) -> Region:
        """Return the region at another size of the image, borders rounded, so that neighbours stay neighbours."""
        rows = (round(place * new[0] / old[0]) for place in (self.top, self.bottom))
        columns = (round(place * new[1] / old[1]) for place in (self.left, self.right))
        (top, bottom), (left, right) = rows, columns
        return Region(top, left, bottom, right)

    def covered(self, old: tuple[int, int], new: tuple[int, int]) -> Region:
        """Return the region at another size of the image, borders rounded outward, so that all of it is covered."""
        return Region(
            self.top * new[0] // old[0],
            self.left * new[1] // old[1],
            -(-self.bottom * new[0] // old[0]),
            -(-self.right * new[1] // old[1]),
        )


@dataclass(frozen=True)
class Grid:
    """Where the windows lie: rows and columns at which they start, ascending, and their size ``(height, width)``."""

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    window: tuple[int, int]

    @property
    def is_single(self) -> bool:
        """Whether one window shows the whole image."""
        return len(self.tops) == len(self.lefts) == 1


def window_grid(shape: tuple[int, int], tile: int, overlap: float, flipped: tuple[int, ...] = ()) -> Grid:
    """Lay the windows through which a network sees an image.

    Parameters
    ----------
    shape : (height, width)
        Of the image at the network's scale.
    tile : int
        Side of a window. An image of which no side is longer than one and a half of it is one window.
    overlap : float
        Least share of a window that its neighbour sees too.
    flipped : tuple of int
        Axes along which the image is shown flipped (0 rows, 1 columns): the grid is mirrored with it.

    Returns
    -------
    Grid
        As MONAI's ``sliding_window_inference`` lays them: at equal steps, the last moved back to end at the edge.
    """
    if max(shape) <= tile * 3 // 2:
        return Grid((0,), (0,), shape)
    window = (min(tile, shape[0]), min(tile, shape[1]))
    starts = []
    for axis in (0, 1):
        last, step = shape[axis] - window[axis], max(1, int(window[axis] * (1 - overlap)))
        places = [min(start, last) for start in range(0, last + step, step)]
        starts.append(tuple(sorted(last - start for start in places) if axis in flipped else places))
    return Grid(starts[0], starts[1], window)


@dataclass(frozen=True)
class Block:
    """One unit of work: its place in the rows and columns of blocks, and its core in pixels of the image."""

    row: int
    column: int
    core: Region

    @property
    def place(self) -> tuple[int, int]:
        """Its row and column."""
        return self.row, self.column

    @property
    def name(self) -> str:
        """Name of its files, such as ``0003-0011``."""
        return f"{self.row:04}-{self.column:04}"


@dataclass(frozen=True)
class Plan:
    """How an image is cut into blocks, and what all of them must share to give one result.

    Attributes
    ----------
    shape : (height, width)
        Of the image in pixels.
    zoom : float
        Factor from the image to the network's scale.
    block : int
        Largest side of a core, in pixels at the scale of decoding.
    halo, largest_halo : int
        Context around a core in pixels of the image, and up to where it grows around cells it would cut.
    """

    shape: tuple[int, int]
    zoom: float
    block: int
    halo: int
    largest_halo: int

    def blocks(self) -> list[Block]:
        """List the blocks row by row; their cores are of about equal size, and every pixel is in exactly one."""
        rows, columns = (self._borders(side) for side in self.shape)
        return [
            Block(row, column, Region(rows[row], columns[column], rows[row + 1], columns[column + 1]))
            for row in range(len(rows) - 1)
            for column in range(len(columns) - 1)
        ]

    def _borders(self, side: int) -> list[int]:
        count = -(-side * max(1.0, self.zoom) // self.block)
        return [round(place) for place in np.linspace(0, side, max(1, int(count)) + 1)]


def make_plan(shape: tuple[int, int], zoom: float, reference_diameter: float, block: int = BLOCK) -> Plan:
    """Cut an image of a shape into blocks.

    Parameters
    ----------
    shape : (height, width)
        In pixels.
    zoom : float
        Factor from the image to the network's scale, where a typical cell has the reference diameter.
    reference_diameter : float
        In pixels at the network's scale.
    block : int
        Largest side of a core, in pixels at the scale of decoding: that of the image, or the network's where finer.

    Returns
    -------
    Plan
        With a halo of :data:`HALO_DIAMETERS` typical cells, which may grow to a quarter of a block, at least twofold.
    """
    halo = max(LEAST_HALO, int(np.ceil(HALO_DIAMETERS * reference_diameter / zoom)))
    return Plan(shape, zoom, block, halo, max(2 * halo, int(block / max(1.0, zoom)) // 4))
