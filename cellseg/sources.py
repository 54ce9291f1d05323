"""Where pixels come from: anything of a known size that gives the normalised pixels of a region.

An image in memory, an image shown at another zoom, and (in :mod:`cellseg.slides.pyramids`) a file too large for memory
look alike to what reads them, so that a slide takes the very path of a small image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cellseg.core import Image
from cellseg.resampling import apply_weights, axis_weights
from cellseg.scale import resize_image, zoomed_shape
from cellseg.slides.blocks import Region

_PIXELS_AT_ONCE = 2**22
"""Pixels read in one go to be shrunk: 50 MB once they are normalised."""


class Source(Protocol):
    """A normalised image that is read by region."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def key(self) -> str:
        """A name under which what is made of the image may be kept; empty where nothing is to be kept."""

    def read(self, region: Region) -> Image:
        """Return the pixels of a region inside the image, float32 ``(h, w, 3)``."""


@dataclass(frozen=True)
class InMemory:
    """A normalised image ``(H, W, 3)`` in memory."""

    image: Image
    key: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def read(self, region: Region) -> Image:
        """Return the pixels of a region, a view."""
        return self.image[region.rows, region.columns]


@dataclass(frozen=True)
class Zoomed:
    """A source shown at a zoom.

    Attributes
    ----------
    source : Source
        What is shown.
    zoom : float
        Areas are averaged when shrinking; see :func:`cellseg.scale.resize_image`.
    limit : int
        Where either size has no longer side than this, the image is small and is zoomed whole.
    """

    source: Source
    zoom: float
    limit: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels at the zoom."""
        return zoomed_shape(self.source.shape, self.zoom)

    @property
    def key(self) -> str:
        """The key of the source and the size it is shown at."""
        return self.source.key and f"{self.source.key} {self.shape}"

    def read(self, region: Region) -> Image:
        """Return the pixels of a region: exactly those of any larger region that holds it."""
        old, new = self.source.shape, self.shape
        if new == old:
            return self.source.read(region)
        if min(max(old), max(new)) <= self.limit:
            return resize_image(self.source.read(Region.whole(old)), self.zoom)[region.rows, region.columns]
        columns, across = axis_weights(old[1], new[1], region.columns, average=new[1] < old[1])
        height = max(1, int(_PIXELS_AT_ONCE / (across.stop - across.start) * new[0] / old[0]))
        parts = []
        for top in range(region.top, region.bottom, height):
            part = slice(top, min(top + height, region.bottom))
            rows, down = axis_weights(old[0], new[0], part, average=new[0] < old[0])
            pixels = self.source.read(Region(down.start, across.start, down.stop, across.stop))
            parts.append(apply_weights(apply_weights(pixels, rows, 0), columns, 1))
        return np.ascontiguousarray(np.concatenate(parts))
