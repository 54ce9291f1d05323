"""What a network makes of any region of an image, seen through windows that lie on one grid over all of it.

Windows overlap and are blended with Gaussian weights, as MONAI's ``sliding_window_inference`` does; a whole image
gets what that function gives. Unlike it, a region is computed from the windows that touch it and nothing else, and
its values do not depend on the region: a network with instance norm answers by what else its window shows, so the
windows must not move. What this gives up: windows at the rim of a region are looked at again for the next region,
unless they are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.blocks import Grid, Region
from cellseg.core import Image
from cellseg.instances.interface import Maps
from cellseg.sources import Source

Look = Callable[[NDArray[np.float32]], torch.Tensor]
"""A network: images ``(B, h, w, 3)`` of one size in, raw maps ``(B, K, h, w)`` of any float type out."""

KEPT_BYTES = 2**28
"""Memory for the maps of windows seen lately: two rows of windows of a slide 20,000 pixels wide."""


class Kept:
    """The maps of the windows seen lately, so that the next block need not look through them again.

    Parameters
    ----------
    limit : int
        Bytes; the windows not asked for longest go first.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._maps: OrderedDict[Any, torch.Tensor] = OrderedDict()

    def __reduce__(self) -> tuple[type[Kept], tuple[int]]:
        """Send none of it along to another process."""
        return Kept, (self._limit,)

    def get(self, key: Any) -> torch.Tensor | None:
        """Return what was kept under a key."""
        if key in self._maps:
            self._maps.move_to_end(key)
        return self._maps.get(key)

    def put(self, key: Any, maps: torch.Tensor) -> None:
        """Keep maps that use no memory of other maps."""
        self._maps[key] = maps
        self._bytes += maps.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._maps.popitem(last=False)[1].nbytes


def blend(look: Look, source: Source, region: Region, grid: Grid, kept: Kept, view: str = "") -> Maps:
    """Compute the raw maps of a region from all windows that touch it.

    Parameters
    ----------
    look : callable
        The network.
    source : Source
        The image, at the network's scale.
    region : Region
        Inside the image.
    grid : Grid
        The windows of the whole image.
    kept : Kept
        Windows of sources with a key are taken from here and put here.
    view : str
        Tells looks at the same source apart.

    Returns
    -------
    ndarray of float32, shape (K, h, w)
        The same values whatever the region, bit for bit.
    """
    weight = importance(grid.window)
    total, count = None, np.zeros(region.shape, np.float32)
    for window, maps in _windows(look, source, region, grid, kept, view):
        here = window.common(region)
        inner, outer = here.within(window), here.within(region)
        part = maps[:, inner.rows, inner.columns].float().numpy()
        if grid.is_single:
            return np.ascontiguousarray(part)
        if total is None:
            total = np.zeros((len(maps), *region.shape), np.float32)
        share = weight[inner.rows, inner.columns]
        total[:, outer.rows, outer.columns] += part * share
        count[outer.rows, outer.columns] += share
    assert total is not None
    total /= count
    return total


@lru_cache(maxsize=8)
def importance(window: tuple[int, int]) -> NDArray[np.float32]:
    """Return MONAI's Gaussian weights of a window, float32 ``(h, w)``, in (0, 1]."""
    from monai.data.utils import compute_importance_map

    return np.asarray(compute_importance_map(window, mode="gaussian").numpy(), np.float32)


def _windows(
    look: Look, source: Source, region: Region, grid: Grid, kept: Kept, view: str
) -> Iterator[tuple[Region, torch.Tensor]]:
    """Yield the windows that touch a region, row by row, with their maps ``(K, h, w)``."""
    height, width = grid.window
    for top in grid.tops:
        row = [Region(top, left, top + height, left + width) for left in grid.lefts]
        row = [window for window in row if window.common(region).size]
        known = {window: kept.get((source.key, view, window)) for window in row} if source.key else {}
        new = [window for window in row if known.get(window) is None]
        if new:  # the pixels of a row are read together, since many files are stored in strips of whole rows
            band = Region(top, new[0].left, top + height, new[-1].right)
            pixels = source.read(band)
        for window in row:
            maps = known.get(window)
            if maps is None:
                maps = _look_at(look, pixels, window.within(band))
                if source.key:
                    kept.put((source.key, view, window), maps)
            yield window, maps


def _look_at(look: Look, pixels: Image, window: Region) -> torch.Tensor:
    return look(pixels[None, window.rows, window.columns])[0].cpu().contiguous()
