"""What a network makes of any region of an image, seen through windows that lie on one grid over all of it.

Windows overlap and are blended with Gaussian weights, as MONAI's ``sliding_window_inference`` does; a whole image
gets what that function gives. Unlike it, a region is computed from the windows that touch it and nothing else, and
its values do not depend on the region: a network with instance norm answers by what else its window shows, so the
windows must not move. What this gives up: windows at the rim of a region are looked at again for the next region,
unless they are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.core import Image
from cellseg.halving import Look, Most, look_in_batches
from cellseg.instances.interface import Maps
from cellseg.prefetch import prefetch
from cellseg.slides.blocks import Grid, Region
from cellseg.sources import Source

Row = dict[Region, torch.Tensor | None]
"""The windows of a row from left to right, with their maps where these are known."""

Memory = tuple[Callable[[Region], torch.Tensor | None], Callable[[Region, torch.Tensor], None]]
"""What looks the maps of a window up, and what keeps them."""

SAME = 1e-5
"""Largest difference between the pixels of a window that counts as none, in units of the normalised range."""

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

    def of(self, key: str, view: str) -> Memory:
        """Return what looks a window of a source and view up, and what keeps its maps; nothing of one without key."""
        if not key:
            return lambda window: None, lambda window, maps: None
        return lambda window: self.get((key, view, window)), lambda window, maps: self.put((key, view, window), maps)

    def get(self, key: Any) -> torch.Tensor | None:
        """Return what was kept under a key."""
        if key in self._maps:
            self._maps.move_to_end(key)
        return self._maps.get(key)

    def put(self, key: Any, maps: torch.Tensor) -> None:
        """Keep maps that use no memory of other maps."""
        if key in self._maps:
            self._bytes -= self._maps.pop(key).nbytes
        self._maps[key] = maps
        self._bytes += maps.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._maps.popitem(last=False)[1].nbytes

    def forget(self) -> None:
        """Keep nothing any more."""
        self._maps.clear()
        self._bytes = 0

    def __len__(self) -> int:
        """Return the number of windows that are kept."""
        return len(self._maps)


def blend(
    look: Look,
    source: Source,
    region: Region,
    grid: Grid,
    memory: Memory,
    most: Most | None = None,
    nothing: torch.Tensor | None = None,
) -> Maps:
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
    memory : Memory
        Where the maps of windows are taken from and put: :meth:`Kept.of` the source.
    most : Most, optional
        How many windows the network is shown at once; one by default.
    nothing : Tensor, shape (K, 1, 1), optional
        Raw maps of background. A window of one colour gets them unseen, whatever a network would make of it.

    Returns
    -------
    ndarray of float32, shape (K, h, w)
        The same values whatever the region, bit for bit.
    """
    weight = importance(grid.window)
    total, count = None, np.zeros(region.shape, np.float32)
    recall, keep = memory
    show = partial(look_in_batches, look, most=most or Most())
    for window, maps in _windows(show, source, _rows(region, grid, recall), keep, nothing):
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
    look: Callable[[list[Image]], Iterator[torch.Tensor]],
    source: Source,
    rows: Iterable[Row],
    keep: Callable[[Region, torch.Tensor], None],
    nothing: torch.Tensor | None,
) -> Iterator[tuple[Region, torch.Tensor]]:
    """Yield the windows of some rows with their maps ``(K, h, w)``.

    The pixels of a row are read together, since many files are stored in strips of whole rows, and while the network
    sees the row before.
    """
    for row, pixels in prefetch(partial(_pixels, source), rows):
        read = pixels()
        unseen = [nothing if nothing is not None and is_of_one_colour(window) else None for window in read]
        new = look([window for window, maps in zip(read, unseen, strict=True) if maps is None])
        found = iter(unseen)
        for window, known in row.items():
            maps = known
            if maps is None:
                blank = next(found)
                maps = next(new) if blank is None else blank
                keep(window, maps)
            yield window, maps.expand(-1, *window.shape)


def is_of_one_colour(image: Image) -> bool:
    """Whether all pixels of a normalised image ``(h, w, 3)`` have the same values, but for rounding."""
    first = image[0]  # told by one row, where there is something to see
    return bool(np.ptp(first, axis=0).max() < SAME and np.ptp(image, axis=(0, 1)).max() < SAME)


def _rows(region: Region, grid: Grid, known: Callable[[Region], torch.Tensor | None]) -> Iterator[Row]:
    """Yield the windows that touch a region, row by row, with the maps that are known."""
    height, width = grid.window
    for top in grid.tops:
        row = (Region(top, left, top + height, left + width) for left in grid.lefts)
        touching = {window: known(window) for window in row if window.common(region).size}
        if touching:
            yield touching


def _pixels(source: Source, row: Row) -> list[Image]:
    """Read the windows of a row that are not known."""
    new = [window for window, maps in row.items() if maps is None]
    if not new:
        return []
    band = Region(new[0].top, new[0].left, new[0].bottom, new[-1].right)
    pixels = source.read(band)
    return [pixels[window.rows, window.columns] for window in (one.within(band) for one in new)]
