"""Crops of slides: read, normalise and encode the window that a crop touches, and nothing else.

A window gives what the whole slide would: its values are normalised by the slide's own percentiles, and it comes
with a halo of :data:`HALO_DIAMETERS` cells, so that a cell at the edge of a crop is encoded whole. A cell that is
cut even so becomes one cell for each piece. Nothing of a slide stays in memory but a few numbers.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg.config import ModelConfig
from cellseg.core import CellsegError, Image, Labels, Record
from cellseg.datasets.targets import Prepared, combine
from cellseg.images import normalize, read_image, read_size
from cellseg.scale import SAME_SCALE, resize_labels, zoom_for
from cellseg.slides.windows import has_windows, is_slide, measure_ranges, read_label_window, read_window

HALO_DIAMETERS = 3
"""Width of the halo, in reference diameters."""


@dataclass(frozen=True)
class Slide:
    """What is known of a slide before any window of it is read.

    Attributes
    ----------
    size, shape : (height, width)
        In pixels of the file, and at the network's scale.
    ranges : tuple of (low, high)
        The raw values that become 0 and 1, for each channel.
    """

    size: tuple[int, int]
    shape: tuple[int, int]
    ranges: tuple[tuple[float, float], ...]


def open_slide(record: Record, config: ModelConfig, diameter: float | None, *, labelled: bool) -> Slide | None:
    """Measure a slide once; None for an image that is small enough to be held whole.

    A slide that cannot be read by window is held whole too, with a warning.

    Raises
    ------
    CellsegError
        If labels and image differ in size, or a file cannot be read.
    """
    if not is_slide(record.height, record.width):
        return None
    files = [record.image] + ([record.labels] if labelled and record.labels is not None else [])
    for path in files:
        if not has_windows(path):
            text = f"{path}: cannot be read by window and is held whole; 'cellseg prepare' writes a tiled copy"
            warnings.warn(text, stacklevel=2)
            return None
    size = read_size(record.image)
    for path in files[1:]:
        if path.suffix != ".npy" and (found := read_size(path)) != size:
            raise CellsegError(f"{path}: labels are {found} but the image is {size}")
    zoom = zoom_for(diameter, config.reference_diameter)
    shape = size if abs(zoom - 1) < SAME_SCALE else (max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom)))
    return Slide(size, shape, tuple(measure_ranges(record.image, size, config.normalize)))


def prepare_window(
    record: Record, config: ModelConfig, slide: Slide, window: tuple[slice, slice], *, labelled: bool
) -> tuple[Prepared, NDArray[np.float64]]:
    """Prepare the part of a slide that holds a window.

    Parameters
    ----------
    record, config, slide
        The slide, the model and what :func:`open_slide` gave.
    window : (rows, columns)
        Slices at the network's scale.
    labelled : bool
        Whether labels are read.

    Returns
    -------
    prepared : Prepared
        The window with its halo, at (nearly) the network's scale.
    place : float64 (2, 3)
        Maps ``(x, y, 1)`` of the slide at the network's scale to ``(x, y)`` of the part. A part starts and ends at
        whole pixels of the file, so the lattices differ by less than a pixel and this by a small shift.
    """
    halo = HALO_DIAMETERS * config.reference_diameter if labelled else 0.0
    spans, lengths, place = [], [], np.zeros((2, 3))
    for axis, part in enumerate(window):
        ratio = slide.size[axis] / slide.shape[axis]
        start = max(0, int(np.floor((part.start - halo) * ratio)))
        stop = min(slide.size[axis], int(np.ceil((part.stop + halo) * ratio)))
        length = max(1, round((stop - start) / ratio))
        scale = length / (stop - start)
        spans.append(slice(start, stop))
        lengths.append(length)
        place[1 - axis, 1 - axis] = ratio * scale
        place[1 - axis, 2] = (0.5 * ratio - start) * scale - 0.5
    rows, columns = spans
    image = normalize(read_window(record.image, rows, columns), config.normalize, ranges=slide.ranges)
    labels = None
    if labelled and record.labels is not None:
        labels = read_label_window(record.labels, rows, columns)
        labels = resize_labels(split_cut(labels, spans, slide.size), (lengths[0], lengths[1]))
    image = _resize(image, (lengths[0], lengths[1]))
    return combine(image, labels, record.label_kind, config, labelled=labelled), place


def split_cut(labels: Labels, spans: list[slice], size: tuple[int, int]) -> Labels:
    """Give each connected piece of the cells that a window cuts an id of its own.

    Parameters
    ----------
    labels : int32 (h, w)
        Labels of the window.
    spans : [rows, columns]
        Its place in the slide, as slices.
    size : (height, width)
        Size of the slide; its own edges cut nothing.

    Returns
    -------
    int32 (h, w)
        Cells that are not cut keep their ids, also those in several pieces.
    """
    from skimage.measure import label

    rows, columns = spans
    edges = [
        labels[0] if rows.start > 0 else None,
        labels[-1] if rows.stop < size[0] else None,
        labels[:, 0] if columns.start > 0 else None,
        labels[:, -1] if columns.stop < size[1] else None,
    ]
    cut = np.unique(np.concatenate([labels[:0, 0], *(edge for edge in edges if edge is not None)]))
    cut = cut[cut > 0]
    if not len(cut):
        return labels
    ids, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape)
    is_cut = np.isin(ids, cut)[compact]
    pieces = label(np.where(is_cut, compact, 0), background=0, connectivity=2)
    # Only a number that no cell has: the largest id may be the largest int32.
    free = np.setdiff1d(np.arange(1, len(ids) + int(pieces.max()) + 1), ids)
    numbers = np.concatenate([[0], free[: int(pieces.max())]]).astype(np.int32)
    return np.asarray(np.where(is_cut, numbers[pieces], labels), np.int32)


def load_view(record: Record, config: ModelConfig, side: int = 1024) -> Image:
    """Read and normalise an image, or of a slide its middle, at the file's own scale.

    Parameters
    ----------
    record : Record
        Which image.
    config : ModelConfig
        Its normalisation.
    side : int
        Height and width of the middle of a slide, in pixels.

    Returns
    -------
    float32 (H, W, 3)
        Enough to estimate the size of cells.
    """
    slide = open_slide(record, config, None, labelled=False)
    if slide is None:
        return normalize(read_image(record.image), config.normalize)
    starts = [max(0, (length - side) // 2) for length in slide.size]
    rows, columns = (slice(s, min(s + side, length)) for s, length in zip(starts, slide.size, strict=True))
    return normalize(read_window(record.image, rows, columns), config.normalize, ranges=slide.ranges)


def _resize(image: Image, shape: tuple[int, int]) -> Image:
    if image.shape[:2] == shape:
        return image
    method = cv2.INTER_AREA if shape[0] < image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, shape[::-1], interpolation=method), np.float32)
