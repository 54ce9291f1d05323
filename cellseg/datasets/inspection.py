"""Read every file of a data set once: what it holds, whether it is whole, what it looks like.

Slides are read one at a time and band by band; one that cannot be read by window is decoded once and written as a
tiled copy. Ids that a 16-bit label file wrapped to negative numbers are put right.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError, Labels
from cellseg.images import check_ids, read_image, read_labels, read_size, reading_file, write_labels
from cellseg.labels import instance_areas, split_disconnected
from cellseg.slides.bands import LabelFile
from cellseg.slides.windows import has_windows, is_slide, read_bands, read_grid, read_window, write_tiled

THUMBNAIL = 256
"""Longest side of a thumbnail, and side of the detail, in pixels."""

_BAND_ROWS = 1024
_ONE_SLIDE = threading.Lock()


@dataclass(frozen=True)
class Inspected:
    """What one image file holds.

    Attributes
    ----------
    path : Path
        The file to use: the image itself or its tiled copy.
    size : (height, width)
        In pixels.
    channels : int
        As stored; 1 for grey.
    dtype : dtype
        As stored.
    thumbnail, detail : ndarray (h, w, channels)
        Raw values: every n-th row and column, and the middle at full resolution.
    is_constant : bool
        Whether all pixels have one value.
    tiled : bool
        Whether ``path`` is a tiled copy.
    """

    path: Path
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    thumbnail: NDArray[Any]
    detail: NDArray[Any]
    is_constant: bool
    tiled: bool


@dataclass(frozen=True)
class InspectedLabels:
    """What one label file holds.

    Attributes
    ----------
    path : Path
        The file to use: the labels themselves or their tiled copy.
    size : (height, width)
        In pixels.
    diameters : float64 (n,)
        Diameter in pixels, of the disk of equal area, of every cell.
    n_pieces : int
        Connected pieces of a single id; of several ids, their number.
    tiled : bool
        Whether ``path`` is a tiled copy.
    """

    path: Path
    size: tuple[int, int]
    diameters: NDArray[np.float64]
    n_pieces: int
    tiled: bool


def inspect_image(path: Path, copy: Path) -> Inspected:
    """Decode an image once and describe it.

    Parameters
    ----------
    path : Path
        Image file of any kind that ``read_image`` knows.
    copy : Path
        Where a tiled copy goes if it is a slide that cannot be read by window.

    Returns
    -------
    Inspected
        Slides are inspected one at a time and, where they can be read by window, never held whole.

    Raises
    ------
    CellsegError
        If the file is damaged, cut short or no image.
    """
    size = read_size(path)
    if not is_slide(*size):
        image = read_image(path)
        thumbnail = image[:: _step(image.shape), :: _step(image.shape)]
        return _inspected(path, image.shape[:2], thumbnail, _middle(image), bool(image.min() == image.max()))
    with _alone(size):
        tiled = not has_windows(path)
        if tiled:
            image = read_image(path)
            size = (image.shape[0], image.shape[1])
            write_tiled(copy, image)
            del image
            path = copy
        rows, columns = (slice(max(0, (n - THUMBNAIL) // 2), min(n, (n + THUMBNAIL) // 2)) for n in size)
        thumbnail, detail = read_grid(path, size, _step(size)), read_window(path, rows, columns)
        is_constant = all((band == thumbnail.flat[0]).all() for _, band in read_bands(path, size))  # until one differs
        return _inspected(path, size, thumbnail, detail, is_constant, tiled)


def inspect_labels(path: Path, copy: Path) -> InspectedLabels:
    """Decode a label file once and describe it.

    Parameters
    ----------
    path : Path
        Label file of any kind that ``read_labels`` knows.
    copy : Path
        Where a tiled copy goes if it is of a slide and cannot be read by window.

    Returns
    -------
    InspectedLabels
        Of slides as :func:`inspect_image`.

    Raises
    ------
    CellsegError
        As ``read_labels``.
    """
    size = _label_size(path)
    with _alone(size):
        tiled = is_slide(*size) and not has_windows(path)
        labels = read_labels(path) if tiled or not is_slide(*size) else None
        if tiled and labels is not None:
            write_tiled(copy, labels)
        file = LabelFile(path, size if labels is None else (labels.shape[0], labels.shape[1]), labels)
        areas = _areas(file.bands(_BAND_ROWS))[1]
        n_pieces = _count_pieces(file.bands(_BAND_ROWS)) if len(areas) == 1 else len(areas)
    return InspectedLabels(copy if tiled else path, file.shape, 2 * np.sqrt(areas / np.pi), n_pieces, tiled)


def rewrite_labels(source: Path, out: Path, size: tuple[int, int], *, as_mask: bool) -> tuple[list[float], int, str]:
    """Check a label file and write it again, tiled if it is a slide.

    Parameters
    ----------
    source : Path
        Label file.
    out : Path
        File to write: ids as in the source, or 1 for every cell pixel.
    size : (height, width)
        Size of the image.
    as_mask : bool
        Whether the file tells cells from background only.

    Returns
    -------
    diameters : list of float
        Diameter in pixels, of the disk of equal area, of every cell.
    n_wrapped : int
        Number of ids that were stored as negative numbers.
    dtype : str
        As stored in the source.

    Raises
    ------
    CellsegError
        If the file is damaged, of another size than the image, or does not hold labels.
    """
    if source.suffix.lower() in (".jpg", ".jpeg"):
        raise CellsegError(f"{source}: a JPEG does not keep cell ids; save the labels as TIFF or PNG")
    with _alone(size):
        raw = _read_raw(source)
        if raw.ndim == 3 and raw.shape[2] == 1:
            raw = raw[..., 0]
        if raw.ndim != 2:
            raise CellsegError(f"{source}: wanted labels of shape (height, width), got {raw.shape}")
        if raw.shape != size:
            raise CellsegError(f"{source}: labels are {raw.shape} but the image is {size}")
        labels, n_wrapped = (raw > 0, 0) if as_mask else unwrap_ids(raw, str(source))
        ids, areas = _areas(labels[start : start + _BAND_ROWS] for start in range(0, size[0], _BAND_ROWS))
        if is_slide(*size):
            small = int(ids.max(initial=0)) <= np.iinfo(np.uint16).max
            write_tiled(out, labels.astype(np.uint16 if small else np.uint32))
        else:
            write_labels(out, labels)
    return [float(diameter) for diameter in 2 * np.sqrt(areas / np.pi)], n_wrapped, str(raw.dtype)


def _read_raw(path: Path) -> NDArray[Any]:
    if path.suffix.lower() != ".npy":
        return read_image(path)
    with reading_file(path):
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def unwrap_ids(labels: NDArray[Any], where: str) -> tuple[NDArray[Any], int]:
    """Undo the wrap of ids above 32,767 that a 16-bit signed file stores as negative numbers.

    Parameters
    ----------
    labels : ndarray (H, W)
        As stored.
    where : str
        File, for messages.

    Returns
    -------
    labels : ndarray (H, W)
        Never negative.
    n_wrapped : int
        Number of ids that were negative. Other dtypes than int16 have none: there a negative id is a mistake.

    Raises
    ------
    CellsegError
        As :func:`cellseg.images.check_ids`.
    """
    if labels.dtype != np.int16:
        return check_ids(labels, where), 0
    n_wrapped = len(np.unique(labels[labels < 0])) if labels.min() < 0 else 0
    return labels.view(np.uint16), n_wrapped


def _inspected(
    path: Path,
    size: tuple[int, ...],
    thumbnail: NDArray[Any],
    detail: NDArray[Any],
    is_constant: bool,
    tiled: bool = False,
) -> Inspected:
    thumbnail, detail = (np.array(part.reshape(*part.shape[:2], -1)) for part in (thumbnail, detail))
    dtype, shape = thumbnail.dtype, (size[0], size[1])
    return Inspected(path, shape, thumbnail.shape[2], dtype, thumbnail, detail, is_constant, tiled)


def _alone(size: tuple[int, int]) -> contextlib.AbstractContextManager[object]:
    """Let one slide at a time be read, whoever reads; smaller images pass."""
    return _ONE_SLIDE if is_slide(*size) else contextlib.nullcontext()


def _label_size(path: Path) -> tuple[int, int]:
    if path.suffix.lower() != ".npy":
        return read_size(path)
    shape = _read_raw(path).shape
    return (shape[0], shape[1]) if len(shape) > 1 else (0, 0)  # which ``read_labels`` refuses


def _step(size: tuple[int, ...]) -> int:
    return max(1, -(-max(size[:2]) // THUMBNAIL))


def _middle(image: NDArray[Any]) -> NDArray[Any]:
    top, left = (max(0, (length - THUMBNAIL) // 2) for length in image.shape[:2])
    return image[top : top + THUMBNAIL, left : left + THUMBNAIL]


def _areas(bands: Iterable[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and their areas, counted band by band: the count's working memory is several times its input."""
    parts = [instance_areas(band) for band in bands]
    ids, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    areas = np.zeros(len(ids), np.int64)
    np.add.at(areas, place, np.concatenate([part[1] for part in parts]))
    return ids, areas


def _count_pieces(bands: Iterable[Labels]) -> int:
    """Count the connected pieces of a single cell that comes in bands of rows; touching at a corner connects."""
    from scipy import sparse

    total, above, links = 0, None, [np.zeros((2, 0), np.int64)]
    for band in bands:
        pieces = split_disconnected(band).astype(np.int64)
        pieces[pieces > 0] += total
        if above is not None:
            for one, other in ((above, pieces[0]), (above[1:], pieces[0, :-1]), (above[:-1], pieces[0, 1:])):
                touch = (one > 0) & (other > 0)
                links.append(np.stack([one[touch], other[touch]]) - 1)
        total, above = max(total, int(pieces.max())), pieces[-1].copy()
    ends = np.concatenate(links, axis=1)
    graph = sparse.coo_array((np.ones(ends.shape[1], np.int8), (ends[0], ends[1])), shape=(total, total))
    return int(sparse.csgraph.connected_components(graph, directed=False)[0])
