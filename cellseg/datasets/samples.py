"""One image as the network sees it: normalised, at the network's scale, with its labels."""

from __future__ import annotations

from cellseg.config import ModelConfig
from cellseg.core import CellsegError, Record, Sample
from cellseg.images import normalize, read_image, read_labels
from cellseg.scale import resize_image, resize_labels, zoom_for


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
