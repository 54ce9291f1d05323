"""Read every file of a data set once: what it holds, whether it is whole, what it looks like.

Slides are read band by band; one that cannot be read by window is decoded once and written as a tiled copy.
Ids that a 16-bit label file wrapped to negative numbers are put right.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError
from cellseg.images import check_ids, read_image, read_size, reading_file, write_labels
from cellseg.labels import instance_areas
from cellseg.windows import has_windows, is_slide, read_grid, read_window, write_tiled

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
    tiled : bool
        Whether ``path`` is a tiled copy.
    """

    path: Path
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    thumbnail: NDArray[Any]
    detail: NDArray[Any]
    tiled: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether the thumbnail shows a single value."""
        return bool(self.thumbnail.min() == self.thumbnail.max())


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
        return _inspected(path, image.shape[:2], image[:: _step(image.shape), :: _step(image.shape)], _middle(image))
    with _ONE_SLIDE:
        tiled = not has_windows(path)
        if tiled:
            image = read_image(path)
            size = (image.shape[0], image.shape[1])
            write_tiled(copy, image)
            del image
            path = copy
        rows, columns = (slice(max(0, (n - THUMBNAIL) // 2), min(n, (n + THUMBNAIL) // 2)) for n in size)
        detail = read_window(path, rows, columns)
        return _inspected(path, size, read_grid(path, size, _step(size)), detail, tiled)


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
    if source.suffix.lower() == ".npy":
        with reading_file(source):
            raw = np.load(source, mmap_mode="r", allow_pickle=False)
    else:
        raw = read_image(source)
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[..., 0]
    if raw.ndim != 2:
        raise CellsegError(f"{source}: wanted labels of shape (height, width), got {raw.shape}")
    if raw.shape != size:
        raise CellsegError(f"{source}: labels are {raw.shape} but the image is {size}")
    dtype = str(raw.dtype)
    labels, n_wrapped = (raw > 0, 0) if as_mask else unwrap_ids(raw, str(source))
    ids, areas = _areas(labels)
    if is_slide(*size):
        small = int(ids.max(initial=0)) <= np.iinfo(np.uint16).max
        write_tiled(out, labels.astype(np.uint16 if small else np.uint32))
    else:
        write_labels(out, labels)
    return [float(diameter) for diameter in 2 * np.sqrt(areas / np.pi)], n_wrapped, dtype


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
    path: Path, size: tuple[int, ...], thumbnail: NDArray[Any], detail: NDArray[Any], tiled: bool = False
) -> Inspected:
    thumbnail, detail = (np.array(part.reshape(*part.shape[:2], -1)) for part in (thumbnail, detail))
    return Inspected(path, (size[0], size[1]), thumbnail.shape[2], thumbnail.dtype, thumbnail, detail, tiled)


def _step(size: tuple[int, ...]) -> int:
    return max(1, -(-max(size[:2]) // THUMBNAIL))


def _middle(image: NDArray[Any]) -> NDArray[Any]:
    top, left = (max(0, (length - THUMBNAIL) // 2) for length in image.shape[:2])
    return image[top : top + THUMBNAIL, left : left + THUMBNAIL]


def _areas(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and their areas, counted band by band: the count's working memory is several times its input."""
    parts = [instance_areas(labels[start : start + _BAND_ROWS]) for start in range(0, labels.shape[0], _BAND_ROWS)]
    ids, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    areas = np.zeros(len(ids), np.int64)
    np.add.at(areas, place, np.concatenate([part[1] for part in parts]))
    return ids, areas
