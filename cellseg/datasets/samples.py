"""One image as the network sees it: normalised, at the network's scale, with its labels."""

from __future__ import annotations

import cv2
import numpy as np

from cellseg.config import ModelConfig
from cellseg.core import CellsegError, Image, Labels, Record, Sample
from cellseg.images import normalize, read_image, read_labels

ZOOM_LIMITS = (0.1, 4.0)
"""Images are never shrunk below a tenth or magnified beyond four times."""

SAME_SCALE = 0.02
"""Zooms nearer to 1 than this leave the pixels alone."""


def zoom_for(diameter: float | None, reference_diameter: float) -> float:
    """Return the factor that brings cells of a diameter to the reference, within :data:`ZOOM_LIMITS`."""
    if not diameter:
        return 1.0
    return float(np.clip(reference_diameter / diameter, *ZOOM_LIMITS))


def resize_image(image: Image, zoom: float) -> Image:
    """Scale an image ``(H, W, C)``, averaging areas when shrinking."""
    if abs(zoom - 1) < SAME_SCALE:
        return image
    height, width = (max(1, round(side * zoom)) for side in image.shape[:2])
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return np.asarray(resized, np.float32).reshape(height, width, image.shape[2])


def resize_labels(labels: Labels, shape: tuple[int, int]) -> Labels:
    """Scale labels to ``(height, width)`` by the nearest pixel; ids are never mixed."""
    if labels.shape == shape:
        return labels
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(shape, labels.shape, strict=True)
    )
    return np.ascontiguousarray(labels[rows[:, None], columns])


def load_sample(record: Record, config: ModelConfig, diameter: float | None, *, with_labels: bool = True) -> Sample:
    """Read one image and its labels and bring them to the network's scale.

    Raises
    ------
    CellsegError
        If labels and image differ in size, or a file cannot be read.
    """
    image = normalize(read_image(record.image), config.normalize)
    labels = None
    if with_labels and record.labels is not None:
        labels = read_labels(record.labels)
        if labels.shape != image.shape[:2]:
            raise CellsegError(f"{record.labels}: labels are {labels.shape} but the image is {image.shape[:2]}")
    zoom = zoom_for(diameter, config.reference_diameter)
    image = resize_image(image, zoom)
    if labels is not None:
        labels = resize_labels(labels, (image.shape[0], image.shape[1]))
    return Sample(record, image, labels, zoom)
