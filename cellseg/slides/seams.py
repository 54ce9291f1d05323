"""Join the cells of blocks across seams: which pieces are one cell, and what number each cell gets.

Every block is decoded with a halo, so two neighbours decode the strip around their seam both. A cell narrower than
the halo lies wholly in that strip, is the same in both, and each block keeps the pixels of its own core: the pieces
fit without overlap. Pieces of two blocks are one cell where the two cells they were cut from overlap in the strip
with an IoU above one half, of which there is at most one. A cell that even the grown halo cuts is never whole in
either block; there the pieces are joined where one covers at least half of the other, so that it gets one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Labels
from cellseg.metrics.overlap import Overlap, overlap
from cellseg.slides.blocks import Block, Region

IntArray = NDArray[np.int64]

SEAMS = ((0, 1), (1, -1), (1, 0), (1, 1))
"""Where the neighbours of a block lie with which it shares a seam or a corner, each pair once."""

_NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Pieces:
    """What the core of one block holds of each cell found there, in order of ascending id.

    Attributes
    ----------
    ids : int64 (n,)
        In the labels of the block.
    pixels : int64 (n,)
        Pixels in the core, at the scale of decoding.
    confidence : float64 (n,)
        Sum of the foreground probability over them.
    first : int64 (n,)
        Row · width + column of the first of them in the image; the largest int64 where none is left at its scale.
    is_cut : bool (n,)
        Whether the cell reaches the outer edge of the halo, beyond which nothing was seen.
    """

    ids: IntArray
    pixels: IntArray
    confidence: NDArray[np.float64]
    first: IntArray
    is_cut: NDArray[np.bool_]


@dataclass(frozen=True)
class Cells:
    """The cells of a whole image.

    Attributes
    ----------
    numbers : mapping of (row, column) to int32 (largest id + 1,)
        For each block the number of the cell that each of its ids belongs to; 0 for what is no cell.
    scores : float64 (n,)
        Mean foreground probability of cells 1 to n.
    """

    numbers: Mapping[tuple[int, int], NDArray[np.int32]]
    scores: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of cells."""
        return len(self.scores)


def count_pieces(
    decoded: Labels,
    foreground: NDArray[np.float32],
    labels: Labels,
    core: Region,
    width: int,
    is_cut: NDArray[np.bool_],
) -> Pieces:
    """List what the core of a block holds of each cell.

    Parameters
    ----------
    decoded : int32 (h, w)
        Labels of the core at the scale of decoding.
    foreground : float32 (h, w)
        Foreground probability there.
    labels : int32 (H, W)
        Labels of the core at the scale of the image.
    core : Region
        Where it lies in the image.
    width : int
        Of the image in pixels.
    is_cut : bool (largest id + 1,)
        See :func:`cut_cells`.
    """
    size = len(is_cut)
    pixels = np.bincount(decoded.ravel(), minlength=size)
    sums = np.zeros(size)
    sums += np.bincount(decoded.ravel(), foreground.ravel().astype(np.float64), minlength=size)
    first = np.full(size, _NOWHERE)
    rows, columns = np.arange(core.top, core.bottom, dtype=np.int64), np.arange(core.left, core.right, dtype=np.int64)
    flat = rows[:, None] * width + columns
    first[labels.ravel()[::-1]] = flat.ravel()[::-1]  # the first of equal ids is written last
    ids = np.flatnonzero(pixels[1:]).astype(np.int64) + 1
    return Pieces(ids, pixels[ids].astype(np.int64), sums[ids], first[ids], is_cut[ids])


def cut_cells(decoded: Labels, region: Region, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which cells reach an outer edge of a region that is not an edge of the image, bool (largest id + 1,)."""
    cut = np.zeros(int(decoded.max(initial=0)) + 1, np.bool_)
    edges = (
        (region.top > 0, decoded[:1]),
        (region.left > 0, decoded[:, :1]),
        (region.bottom < shape[0], decoded[-1:]),
        (region.right < shape[1], decoded[:, -1:]),
    )
    for is_inside, edge in edges:
        if is_inside:
            cut[edge] = True
    cut[0] = False
    return cut


def same_cells(first: Labels, second: Labels, pieces: tuple[Pieces, Pieces]) -> IntArray:
    """Tell which cells of two blocks are one.

    Parameters
    ----------
    first, second : int32 (h, w)
        What the blocks made of the pixels that both decoded.
    pieces : (Pieces, Pieces)
        Of the two blocks; cells without a pixel in their block's core are no matter.

    Returns
    -------
    int64 (n, 2)
        Ids in the first and the second block.
    """
    table = overlap(first, second)
    ids = table.ids_true[table.pair_true], table.ids_pred[table.pair_pred]
    places = tuple(np.searchsorted(piece.ids, one) for piece, one in zip(pieces, ids, strict=True))
    known = [np.append(piece.ids, -1)[place] == one for piece, place, one in zip(pieces, places, ids, strict=True)]
    cut = np.append(pieces[0].is_cut, False)[places[0]] | np.append(pieces[1].is_cut, False)[places[1]]
    same = known[0] & known[1] & _is_same(table, cut)
    return np.stack([ids[0][same], ids[1][same]], axis=1)


def join(
    pieces: Mapping[tuple[int, int], Pieces],
    pairs: Iterable[tuple[tuple[int, int], tuple[int, int], IntArray]],
    min_size: int,
) -> Cells:
    """Give the cells of an image their numbers.

    Parameters
    ----------
    pieces : mapping of (row, column) to Pieces
        Of every block.
    pairs : iterable of (block, block, int64 (n, 2))
        Of every two blocks that share a seam or a corner the ids that are one cell.
    min_size : int
        Cells of fewer pixels, at the scale of decoding, are dropped.

    Returns
    -------
    Cells
        Numbered from 1 in the order in which rows meet them, so that the numbers do not depend on the blocks.
    """
    from scipy import sparse

    starts, total = {}, 0
    for name, one in pieces.items():
        starts[name], total = total, total + len(one.ids)
    ends = [
        np.stack([starts[a] + _places(pieces[a], ids[:, 0]), starts[b] + _places(pieces[b], ids[:, 1])])
        for a, b, ids in pairs
    ]
    edges = np.concatenate([np.zeros((2, 0), np.int64), *ends], axis=1)
    graph = sparse.coo_array((np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), shape=(total, total))
    n_cells, cell = sparse.csgraph.connected_components(graph, directed=False)
    pixels = np.bincount(cell, _all(pieces, "pixels"), minlength=n_cells)
    sums = np.bincount(cell, _all(pieces, "confidence"), minlength=n_cells)
    first = np.full(n_cells, _NOWHERE)
    np.minimum.at(first, cell, _all(pieces, "first"))
    kept = np.flatnonzero((pixels >= min_size) & (first != _NOWHERE))
    kept = kept[np.argsort(first[kept], kind="stable")]
    number = np.zeros(n_cells, np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    numbers = {name: _lookup(one.ids, number[cell[starts[name] :][: len(one.ids)]]) for name, one in pieces.items()}
    return Cells(numbers, sums[kept] / np.maximum(pixels[kept], 1))


def seams(blocks: Sequence[Block]) -> list[tuple[Block, Block]]:
    """List every two blocks that share a seam or a corner, each pair once."""
    at = {block.place: block for block in blocks}
    pairs = ((block, at.get((block.row + down, block.column + right))) for block in blocks for down, right in SEAMS)
    return [(block, other) for block, other in pairs if other is not None]


def _is_same(table: Overlap, cut: NDArray[np.bool_]) -> NDArray[np.bool_]:
    smaller = np.minimum(table.area_true[table.pair_true], table.area_pred[table.pair_pred])
    return np.where(cut, 2 * table.intersection >= smaller, 2 * table.intersection > table.union)


def _all(pieces: Mapping[tuple[int, int], Pieces], column: str) -> NDArray[Any]:
    return np.concatenate([getattr(one, column) for one in pieces.values()])


def _places(pieces: Pieces, ids: IntArray) -> NDArray[np.intp]:
    return np.searchsorted(pieces.ids, ids)


def _lookup(ids: IntArray, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    table = np.zeros(int(ids.max(initial=0)) + 1, np.int32)
    table[ids] = numbers
    return table
