"""Training crops: a batch is a pure function of (seed, step), so resuming is exact and workers are free.

Each image is read, normalised, brought to the network's reference diameter and encoded once, then kept in a
bounded cache. A crop is one affine warp of that image and of its targets (scale, rotation, flip, position);
vectors are turned with their pixels. Pixels outside the image have weight 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cellseg.config import AugmentConfig, ModelConfig
from cellseg.core import CellsegError, Image, Labels, Record, Sample
from cellseg.images import normalize, read_image, read_labels
from cellseg.instances import representation

Half = NDArray[np.float16]
View = Callable[[Image, int], Image]

ZOOM_LIMITS = (0.1, 4.0)
"""Images are never shrunk below a tenth or magnified beyond four times."""


@dataclass(frozen=True)
class Crops:
    """A batch of crops.

    Attributes
    ----------
    weak, strong : float32 Tensor (B, 3, H, W)
        Two views of the same pixels.
    target : float32 Tensor (B, K, H, W)
        Encoded labels; zeros where there are none.
    weight : float32 Tensor (B, 1, H, W)
        1 inside the image, 0 outside.
    ids : tuple of str
        Image of each crop.
    """

    weak: torch.Tensor
    strong: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> Crops:
        """Move every tensor to a device."""
        tensors = [t.to(device, non_blocking=True) for t in (self.weak, self.strong, self.target, self.weight)]
        return Crops(tensors[0], tensors[1], tensors[2], tensors[3], self.ids)


@dataclass(frozen=True)
class _Prepared:
    image: Half
    target: Half | None

    @property
    def n_bytes(self) -> int:
        return self.image.nbytes + (0 if self.target is None else self.target.nbytes)


def zoom_for(diameter: float | None, reference_diameter: float) -> float:
    """Return the factor that brings cells of a diameter to the reference, within :data:`ZOOM_LIMITS`."""
    if not diameter:
        return 1.0
    return float(np.clip(reference_diameter / diameter, *ZOOM_LIMITS))


def resize_image(image: Image, zoom: float) -> Image:
    """Scale an image ``(H, W, C)``, averaging areas when shrinking."""
    if abs(zoom - 1) < 0.02:
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


class SampleDataset(Dataset[Sample]):
    """Whole images of an index with their labels, at the files' own scale unless a diameter is asked for."""

    def __init__(self, records: Sequence[Record], config: ModelConfig, *, rescale: bool = False) -> None:
        self.records, self.config, self.rescale = list(records), config, rescale

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Read image number ``index``."""
        record = self.records[index]
        return load_sample(record, self.config, record.diameter if self.rescale else None)


class CropDataset(Dataset[Crops]):
    """Item ``n`` is micro-batch number ``n`` of this process.

    Parameters
    ----------
    records : sequence of Record
        Images to draw from.
    model : ModelConfig
        Normalisation, reference diameter and representation.
    augment : AugmentConfig
        Geometry and strengths.
    diameters : sequence of float or None
        Cell diameter of each record in pixels of its file; None leaves the scale alone.
    shape : tuple of int
        ``(batch_size, crop_size)``.
    seed, rank, world : int
        Randomness and this process's share: process ``rank`` makes its ``1/world`` of every global batch.
    labelled : bool
        Whether labels are read and encoded.
    cache_mb : int
        Memory for prepared images.
    """

    def __init__(  # noqa: PLR0913 (each is one plain fact of the batch; they have no natural grouping)
        self,
        records: Sequence[Record],
        model: ModelConfig,
        augment: AugmentConfig,
        *,
        diameters: Sequence[float | None],
        shape: tuple[int, int],
        seed: int,
        labelled: bool = True,
        rank: int = 0,
        world: int = 1,
        cache_mb: int = 4096,
    ) -> None:
        from cellseg.datasets.augment import View

        self.records, self.model, self.augment = list(records), model, augment
        self.diameters, self.labelled, self.seed = list(diameters), labelled, seed
        self.batch_size, self.crop_size = shape
        self.rank, self.world = rank, world
        self._cache_bytes, self._held = cache_mb * 2**20, 0
        self._cache: OrderedDict[int, _Prepared] = OrderedDict()
        self._weak = View(augment.weak, augment.invert if labelled else 0.0)
        self._strong = View(augment.strong, 0.0)

    def __getitem__(self, step: int) -> Crops:
        """Make micro-batch ``step``."""
        first = (step * self.world + self.rank) * self.batch_size
        return self._stack([self._crop(number) for number in range(first, first + self.batch_size)])

    def _stack(self, crops: list[tuple[Any, ...]]) -> Crops:
        weak, strong, target, weight, ids = zip(*crops, strict=True)
        first, second = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) for part in (weak, strong))
        return Crops(first, second, torch.from_numpy(np.stack(target)), torch.from_numpy(np.stack(weight)), ids)

    def _crop(self, number: int) -> tuple[Image, Image, NDArray[np.float32], NDArray[np.float32], str]:
        epoch, place = divmod(number, len(self.records))
        index = int(np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.records))[place])
        rng = np.random.default_rng([self.seed, 2, number])
        prepared = self._prepared(index)
        matrix = sample_matrix(rng, prepared.image.shape[:2], self.crop_size, self.augment)
        image, target, weight = self._warp(prepared, matrix)
        seeds = rng.integers(2**31, size=2)
        weak = self._weak(image, int(seeds[0]))
        strong = weak if self.labelled else self._strong(image, int(seeds[1]))
        return weak, strong, target, weight, self.records[index].id

    def _prepared(self, index: int) -> _Prepared:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        sample = load_sample(self.records[index], self.model, self.diameters[index], with_labels=self.labelled)
        image = sample.image
        if np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2]):
            image = image[..., :1]
        target = None
        if sample.labels is not None:
            target = representation(self.model.representation).encode(sample.labels).astype(np.float16)
        prepared = _Prepared(image.astype(np.float16), target)
        self._cache[index] = prepared
        self._held += prepared.n_bytes
        while self._held > self._cache_bytes and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].n_bytes
        return prepared

    def _warp(
        self, prepared: _Prepared, matrix: NDArray[np.float64]
    ) -> tuple[Image, NDArray[np.float32], NDArray[np.float32]]:
        size = self.crop_size
        rows, columns = _window(matrix, size, prepared.image.shape[:2])
        shifted = matrix.copy()
        shifted[:, 2] -= (columns.start, rows.start)
        image = _affine(prepared.image[rows, columns].astype(np.float32), shifted, size, cv2.BORDER_REFLECT_101)
        image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
        inside = np.ones((rows.stop - rows.start, columns.stop - columns.start, 1), np.float32)
        weight = _affine(inside, shifted, size, cv2.BORDER_CONSTANT, cv2.INTER_NEAREST)[..., 0][None]
        module = representation(self.model.representation)
        if prepared.target is None:
            return image, np.zeros((module.N_MAPS, size, size), np.float32), weight
        target = prepared.target[:, rows, columns].astype(np.float32).transpose(1, 2, 0)
        target = _affine(target, shifted, size, cv2.BORDER_CONSTANT, cv2.INTER_NEAREST).transpose(2, 0, 1)
        # The matrix maps output (x, y) to input (x, y); directions turn the other way round.
        forward = np.linalg.inv(matrix[:, :2])[::-1, ::-1]
        return image, np.ascontiguousarray(module.warp(target, forward), np.float32), weight


def sample_matrix(
    rng: np.random.Generator, shape: tuple[int, ...], size: int, augment: AugmentConfig
) -> NDArray[np.float64]:
    """Draw the 2×3 matrix that maps output pixels ``(x, y, 1)`` of a crop to input pixels ``(x, y)``."""
    scale = np.exp(rng.uniform(np.log(augment.scale_min), np.log(augment.scale_max)))
    angle = rng.uniform(0, 2 * np.pi) if augment.rotate else 0.0
    flip = -1.0 if augment.flip and rng.random() < 0.5 else 1.0
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    linear = np.array([[cos * flip, -sin], [sin * flip, cos]])
    reach = size / scale / 2
    centre = np.array([_position(rng, shape[1], reach), _position(rng, shape[0], reach)])
    offset = centre - linear @ np.full(2, (size - 1) / 2)
    return np.column_stack([linear, offset])


def _position(rng: np.random.Generator, length: int, reach: float) -> float:
    """Draw a crop centre that keeps the crop inside the image where it fits, and covers the image where not."""
    low, high = min(reach, length / 2), max(length - reach, length / 2)
    return float(rng.uniform(low, high)) - 0.5


def _window(matrix: NDArray[np.float64], size: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of the input that a crop can touch."""
    columns, rows = matrix @ np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])
    slices = []
    for corners, length in ((rows, shape[0]), (columns, shape[1])):
        start = int(np.clip(np.floor(corners.min()) - 2, 0, max(length - 2, 0)))
        slices.append(slice(start, int(np.clip(np.ceil(corners.max()) + 3, start + 1, length))))
    return slices[0], slices[1]


def _affine(
    array: NDArray[np.float32], matrix: NDArray[np.float64], size: int, border: int, method: int = cv2.INTER_LINEAR
) -> NDArray[np.float32]:
    warped = cv2.warpAffine(array, matrix, (size, size), flags=method | cv2.WARP_INVERSE_MAP, borderMode=border)
    return np.asarray(warped, np.float32).reshape(size, size, array.shape[2])


def load_index(index: str | Path, split: str | None = None) -> SampleDataset:
    """Open the images of an index as a torch Dataset of :class:`cellseg.core.Sample`."""
    from cellseg.config import Selection
    from cellseg.datasets.index import select

    return SampleDataset(select(Selection(index=str(index), split=split)), ModelConfig())
