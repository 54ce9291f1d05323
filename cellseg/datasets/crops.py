"""Training crops: a batch is a pure function of (seed, step), so resuming is exact and workers are free.

Each image is read, normalised, brought to the network's reference diameter and encoded once, then kept in a
bounded cache; of a slide only the window that a crop touches is read, each time. A crop is one affine warp of that
image and of its targets (scale, rotation, flip, position); vectors are turned with their pixels. Pixels outside the
image have weight 0, and so has whatever the kind of its labels leaves open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cellseg.config import AugmentConfig, ModelConfig
from cellseg.core import Image, Record, Sample
from cellseg.datasets.samples import load_sample
from cellseg.datasets.sampling import draw_by_root, draw_from_groups, draw_image, group_members
from cellseg.datasets.targets import Prepared, prepare_whole
from cellseg.datasets.windowed import Slide, open_slide, prepare_window
from cellseg.instances import representation


@dataclass(frozen=True)
class Crops:
    """A batch of crops.

    Attributes
    ----------
    weak, strong : float32 Tensor (B, 3, H, W)
        Two views of the same pixels.
    target : float32 Tensor (B, K, H, W)
        Encoded labels; zeros where there are none.
    weight : float32 Tensor (B, 2, H, W)
        Channel 0 weighs the foreground term, channel 1 the terms that only instances can tell: 0 outside the image
        and where the labels say nothing, 1 elsewhere. Without labels asked for, both are 1 inside the image.
    ids : tuple of str
        Image of each crop.
    """

    weak: torch.Tensor
    strong: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> Crops:
        """Copy every tensor to a device; these, in memory that is not pinned, may go as soon as this returns."""
        tensors = [t.to(device) for t in (self.weak, self.strong, self.target, self.weight)]
        return Crops(tensors[0], tensors[1], tensors[2], tensors[3], self.ids)


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
        Memory for prepared images; slides are never held.
    balance : {"image", "root", "group"}
        What crops are drawn evenly over.
    prepare : callable, optional
        ``prepare(number)`` makes the image of record ``number`` with its targets; by default it is read from the
        files of the record. Slides are then held as it makes them.
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
        balance: Literal["image", "root", "group"] = "image",
        prepare: Callable[[int], Prepared] | None = None,
    ) -> None:
        from cellseg.datasets.augment import View

        self.records, self.model, self.augment = list(records), model, augment
        self.diameters, self.labelled, self.seed = list(diameters), labelled, seed
        self.batch_size, self.crop_size = shape
        self.rank, self.world = rank, world
        self._cache_bytes, self._held, self._prepare = cache_mb * 2**20, 0, prepare
        self._cache: OrderedDict[int, Prepared] = OrderedDict()
        self._slides: dict[int, Slide | None] = {}
        self._groups = group_members(self.records) if balance != "image" else None
        self._draw = draw_from_groups if balance == "group" else draw_by_root
        self._weak = View(augment.weak, augment.invert if labelled else 0.0, augment.colour)
        self._strong = View(augment.strong, 0.0, augment.colour)

    def __getitem__(self, step: int) -> Crops:
        """Make micro-batch ``step``."""
        first = (step * self.world + self.rank) * self.batch_size
        return self._stack([self._crop(number) for number in range(first, first + self.batch_size)])

    def _stack(self, crops: list[tuple[Any, ...]]) -> Crops:
        weak, strong, target, weight, ids = zip(*crops, strict=True)
        first, second = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) for part in (weak, strong))
        return Crops(first, second, torch.from_numpy(np.stack(target)), torch.from_numpy(np.stack(weight)), ids)

    def _crop(self, number: int) -> tuple[Image, Image, NDArray[np.float32], NDArray[np.float32], str]:
        if self._groups is None:
            index = draw_image(number, len(self.records), self.seed)
        else:
            index = self._draw(number, self._groups, self.seed)
        rng = np.random.default_rng([self.seed, 2, number])
        slide = self._slide(index)
        if slide is None:
            prepared = self._prepared(index)
            matrix = sample_matrix(rng, prepared.image.shape[:2], self.crop_size, self.augment)
            image, target, weight = self._warp(prepared, matrix)
        else:
            matrix = sample_matrix(rng, slide.shape, self.crop_size, self.augment)
            image, target, weight = self._warp(*self._window_of(index, slide, matrix))
        seeds = rng.integers(2**31, size=2)
        weak = self._weak(image, int(seeds[0]))
        strong = weak if self.labelled else self._strong(image, int(seeds[1]))
        return weak, strong, target, weight, self.records[index].id

    def _slide(self, index: int) -> Slide | None:
        if self._prepare is not None:
            return None
        if index not in self._slides:
            record, diameter = self.records[index], self.diameters[index]
            self._slides[index] = open_slide(record, self.model, diameter, labelled=self.labelled)
        return self._slides[index]

    def _window_of(self, index: int, slide: Slide, matrix: NDArray[np.float64]) -> tuple[Prepared, NDArray[np.float64]]:
        """Prepare what a crop touches of a slide, and the crop's matrix in that part."""
        window = _window(matrix, self.crop_size, slide.shape)
        part, place = prepare_window(self.records[index], self.model, slide, window, labelled=self.labelled)
        return part, place @ np.vstack([matrix, [0, 0, 1]])

    def _prepared(self, index: int) -> Prepared:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        if self._prepare is not None:
            prepared = self._prepare(index)
        else:
            prepared = prepare_whole(self.records[index], self.model, self.diameters[index], labelled=self.labelled)
        self._cache[index] = prepared
        self._held += prepared.n_bytes
        while self._held > self._cache_bytes and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].n_bytes
        return prepared

    def _warp(
        self, prepared: Prepared, matrix: NDArray[np.float64]
    ) -> tuple[Image, NDArray[np.float32], NDArray[np.float32]]:
        size = self.crop_size
        rows, columns = _window(matrix, size, prepared.image.shape[:2])
        shifted = matrix.copy()
        shifted[:, 2] -= (columns.start, rows.start)
        image = _affine(prepared.image[rows, columns].astype(np.float32), shifted, size, cv2.BORDER_REFLECT_101)
        image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
        inside = np.ones((rows.stop - rows.start, columns.stop - columns.start, 1), np.float32)
        if prepared.known is not None:
            inside[..., 0] = prepared.known[rows, columns]
        inside = _affine(inside, shifted, size, cv2.BORDER_CONSTANT, cv2.INTER_NEAREST)[..., 0]
        weight = np.stack([np.float32(factor) * inside for factor in prepared.weight])
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
