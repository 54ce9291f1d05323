"""Read windows of images too large to hold, and write images so that windows can be read.

A TIFF is read by window where its one full-resolution plane, or each of its channels, is uncompressed (memory map) or
cut into tiles or strips of at most :data:`MAX_SEGMENT_BYTES`; only the segments that a window touches are decoded.
Everything else (PNG, JPEG, a slide in one compressed strip) has to be decoded whole once: ``cellseg prepare`` and
``cellseg predict`` do that and write a tiled copy. What this gives up: windows of planes stored apart inside a page
(planar configuration 2), volumes and movies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.config import NormalizeConfig
from cellseg.core import CellsegError, Labels
from cellseg.files import atomic_path
from cellseg.images import check_ids, name_axes, reading_file
from cellseg.ranges import grid_step, value_range
from cellseg.tiff import open_tiff, require_bytes

SLIDE_PIXELS = 2**23
"""Images of more pixels are slides: training reads them by window and never holds them whole."""

MAX_SEGMENT_BYTES = 2**22
"""Largest decoded tile or strip; a file of larger ones is not read by window."""

TILE = 256
"""Side of the tiles written by :func:`write_tiled`, in pixels."""

_BAND_ROWS = 512


def is_slide(height: int, width: int) -> bool:
    """Whether an image of this size is too large to be held whole while training."""
    return height * width > SLIDE_PIXELS


def has_windows(path: str | Path) -> bool:
    """Whether windows of a file can be read without decoding all of it; False for a file that is no TIFF.

    Raises CellsegError if the file is missing or a damaged TIFF.
    """
    path = Path(path)
    with reading_file(path):
        if path.suffix.lower() == ".npy":
            return True
        with path.open("rb") as handle:
            if handle.read(2) not in (b"II", b"MM"):
                return False
        with _open_pages(path) as pages:
            return len(pages) > 0


def read_window(path: str | Path, rows: slice, columns: slice) -> NDArray[Any]:
    """Read a window of an image as raw values.

    Parameters
    ----------
    path : str or Path
        File for which :func:`has_windows` is true.
    rows, columns : slice
        Start and stop in pixels, inside the image.

    Returns
    -------
    ndarray (h, w) or (h, w, C)
        The same values as ``read_image(path)[rows, columns]``.

    Raises
    ------
    CellsegError
        If the file is damaged or cannot be read by window, or the window leaves the image.
    """
    path = Path(path)
    with reading_file(path):
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            _check_inside(path, rows, columns, array.shape)
            return np.array(array[rows, columns])
        with _open_pages(path) as pages:
            if not pages:
                raise CellsegError(f"{path}: cannot be read by window; re-run 'cellseg prepare', which tiles it")
            _check_inside(path, rows, columns, pages[0].shape)
            planes = [_read_page(page, rows, columns) for page in pages]
            return planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)


def read_label_window(path: str | Path, rows: slice, columns: slice) -> Labels:
    """Read a window of a label image as int32 ``(h, w)``; see :func:`read_window` and ``read_labels``."""
    labels = read_window(path, rows, columns)
    if labels.ndim == 3 and labels.shape[2] == 1:
        labels = labels[..., 0]
    if labels.ndim != 2:
        raise CellsegError(f"{path}: wanted labels of shape (height, width), got {labels.shape[2]} channels")
    return check_ids(labels, str(path))


def read_bands(path: str | Path, shape: tuple[int, int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the first row and the raw values of each band of rows; together they are the whole image.

    Parameters
    ----------
    path : str or Path
        File for which :func:`has_windows` is true.
    shape : (height, width)
        Its size in pixels.
    """
    for start in range(0, shape[0], _BAND_ROWS):
        rows = slice(start, min(start + _BAND_ROWS, shape[0]))
        yield start, read_window(path, rows, slice(0, shape[1]))


def read_grid(path: str | Path, shape: tuple[int, int], step: int) -> NDArray[Any]:
    """Read every ``step``-th row and column, ``image[::step, ::step]``, holding one band of rows at a time."""
    # Copies: a view would keep its band.
    return np.concatenate([band[-start % step :: step, ::step].copy() for start, band in read_bands(path, shape)])


def measure_ranges(path: str | Path, shape: tuple[int, int], rule: NormalizeConfig) -> list[tuple[float, float]]:
    """Find the value that becomes 0 and that which becomes 1 in each channel of a slide.

    Parameters
    ----------
    path : str or Path
        File for which :func:`has_windows` is true; read once from top to bottom, a band of rows at a time.
    shape : (height, width)
        Its size in pixels.
    rule : NormalizeConfig
        As for :func:`cellseg.images.normalize`.

    Returns
    -------
    list of (low, high)
        For each channel exactly the range that ``normalize`` uses on the whole image.
    """
    return ranges_of_bands(read_bands(path, shape), shape, rule)


def ranges_of_bands(
    bands: Iterable[tuple[int, NDArray[Any]]], shape: tuple[int, int], rule: NormalizeConfig
) -> list[tuple[float, float]]:
    """Find what :func:`measure_ranges` finds in an image that comes as bands: first row, raw values ``(h, W[, C])``."""
    step = grid_step(shape[0] * shape[1])
    grid, lows, highs = [], [], []
    for start, band in bands:
        planes = band.reshape(*band.shape[:2], -1)
        grid.append(planes[-start % step :: step, ::step].copy())  # a view would keep its band
        low, high = _extremes(planes)
        lows.append(low)
        highs.append(high)
    sample, low, high = np.concatenate(grid), np.nanmin(lows, axis=0), np.nanmax(highs, axis=0)
    extremes = [(float(a), float(b)) if a <= b else (0.0, 0.0) for a, b in zip(low, high, strict=True)]
    return [value_range(sample[..., channel], rule, known) for channel, known in enumerate(extremes)]


def write_tiled(path: str | Path, image: NDArray[Any]) -> None:
    """Write an image as a zstd-compressed tiled TIFF, atomically.

    Parameters
    ----------
    path : str or Path
        Final file, ending in ``.tif`` or ``.tiff``.
    image : ndarray (H, W) or (H, W, C)
        Raw values; every value and the dtype come back from ``read_image`` and :func:`read_window`. Booleans are
        stored as uint8, a single channel as ``(H, W)``.
    """
    import tifffile

    stored = image.astype(np.uint8) if image.dtype.kind == "b" else image
    stored = stored[..., 0] if stored.ndim == 3 and stored.shape[2] == 1 else stored
    options: dict[str, Any] = {"photometric": "rgb" if stored.ndim == 3 and stored.shape[2] == 3 else "minisblack"}
    if stored.ndim == 3:
        options["planarconfig"] = "contig"
    predictor = stored.dtype.kind in "ui"
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, stored, tile=(TILE, TILE), compression="zstd", predictor=predictor, metadata=None,
            software=False, bigtiff=stored.nbytes > 2**31, **options,
        )  # fmt: skip


@contextmanager
def _open_pages(path: Path) -> Iterator[list[Any]]:
    """Yield the tifffile pages of an image, one plane or one page a channel; none where it has no windows."""
    with open_tiff(path) as tiff:
        series = tiff.series[0].levels[0]
        shape, page, pages = tuple(series.shape), series.keyframe, list(series.pages)
        one_plane = len(pages) == 1 and series.axes in ("YX", "YXS") and shape == page.shape
        channels = (
            len(pages) > 1 and name_axes(series.axes, shape) in ("CYX", "SYX") and (len(pages), *page.shape) == shape
        )
        whole = all(one is not None and one.parent is tiff for one in pages)  # not of several files
        yield pages if whole and (one_plane or channels) and _is_cut_small(page) else []


def _read_page(page: Any, rows: slice, columns: slice) -> NDArray[Any]:
    if not page.keyframe.is_memmappable:
        return _decode_window(page, rows, columns)
    mapped = page.asarray(out="memmap")[rows, columns]
    return np.array(mapped, mapped.dtype.newbyteorder("="))


def _is_cut_small(page: Any) -> bool:
    if page.is_memmappable:
        return True
    apart = page.planarconfig == 2 and page.samplesperpixel > 1
    if apart or page.is_subsampled or page.imagedepth > 1 or page.bitspersample not in (8, 16, 32, 64):
        return False
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    return int(height * width * page.samplesperpixel * page.dtype.itemsize) <= MAX_SEGMENT_BYTES


def _check_inside(path: Path, rows: slice, columns: slice, shape: tuple[int, ...]) -> None:
    if not (0 <= rows.start < rows.stop <= shape[0] and 0 <= columns.start < columns.stop <= shape[1]):
        raise CellsegError(
            f"{path}: wanted rows {rows.start} to {rows.stop} and columns {columns.start} to {columns.stop}, "
            f"but the image is {shape[:2]}"
        )


def _decode_window(stored: Any, rows: slice, columns: slice) -> NDArray[Any]:
    """Decode the tiles or strips of a page that a window touches; its key frame, shared by like pages, describes it."""
    page = stored.keyframe
    height = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    width = page.tilewidth if page.is_tiled else page.imagewidth
    across = -(-page.imagewidth // width)
    samples = page.samplesperpixel
    out = np.full((rows.stop - rows.start, columns.stop - columns.start, samples), page.nodata, page.dtype)
    options: dict[str, Any] = {"_fullsize": False}
    if stored.jpegtables is not None or page.jpegheader is not None:
        options |= {"jpegtables": stored.jpegtables, "jpegheader": page.jpegheader}
    down = range(rows.start // height, (rows.stop - 1) // height + 1)
    right = range(columns.start // width, (columns.stop - 1) // width + 1)
    handle = stored.parent.filehandle
    for row, column in itertools.product(down, right):
        index = row * across + column
        if not stored.databytecounts[index]:
            continue  # a tile that was never written holds the file's "no data" value
        require_bytes(stored, stored.databytecounts[index])
        handle.seek(stored.dataoffsets[index])
        segment, (_, _, y, x, _), shape = page.decode(handle.read(stored.databytecounts[index]), index, **options)
        top, left = max(rows.start, y), max(columns.start, x)
        bottom, end = min(rows.stop, y + shape[1]), min(columns.stop, x + shape[2])
        piece = segment[0, top - y : bottom - y, left - x : end - x]
        out[top - rows.start : bottom - rows.start, left - columns.start : end - columns.start] = piece
    return out if len(page.shape) == 3 else out[..., 0]


def _extremes(planes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Smallest and largest finite value of each channel of ``(h, w, C)``; +inf and -inf where there is none."""
    if planes.dtype.kind != "f":
        return planes.min(axis=(0, 1)), planes.max(axis=(0, 1))
    finite = np.isfinite(planes)
    low = planes.min(axis=(0, 1), where=finite, initial=np.inf)
    return low, planes.max(axis=(0, 1), where=finite, initial=-np.inf)
