"""From an image to labels: normalise, scale, tile, decode, and scale back.

The segmenter carries the normalisation rule and the reference diameter of its checkpoint, so no caller can
feed the network differently from how it was trained.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from cellseg.checkpoint import load_weights
from cellseg.confidences import mean_inside, write_confidences
from cellseg.config import ModelConfig, PredictConfig
from cellseg.core import CellsegError, Image, Labels
from cellseg.images import normalize, read_image, write_labels
from cellseg.instances import representation
from cellseg.labels import instance_areas
from cellseg.scale import resize_image, resize_labels, stable_zoom, zoom_for

NEIGHBOURS = (2.0**-0.5, 2.0**0.5)
"""Scales, relative to the one chosen, that test-time augmentation looks at too."""


@dataclass
class Segmenter:
    """A network with everything needed to use it.

    Attributes
    ----------
    model : torch.nn.Module
        In eval mode on ``device``.
    config : ModelConfig
        Normalisation, reference diameter and representation.
    settings : PredictConfig
        Tiling, diameter policy and test-time augmentation.
    device : torch.device
        Where the network runs.
    about : mapping
        Facts about its training; ``diameter`` is the median cell diameter of the training images.
    """

    model: nn.Module
    config: ModelConfig
    settings: PredictConfig
    device: torch.device
    about: Mapping[str, Any]
    spent: dict[str, float] = field(default_factory=lambda: {"scale": 0.0, "network": 0.0, "decode": 0.0})
    """Seconds spent on finding the scale, running the network and decoding, over all images so far."""

    @property
    def n_parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def segment(self, image: NDArray[Any], *, diameter: float | None = None, channel: int | None = None) -> Labels:
        """Segment one raw image.

        Parameters
        ----------
        image : ndarray, shape (H, W) or (H, W, C)
            Raw values of any dtype.
        diameter : float, optional
            Typical cell diameter in pixels; by default what ``settings.diameter`` says.
        channel : int, optional
            Use this channel alone.

        Returns
        -------
        ndarray of int32, shape (H, W)
            Consecutive ids, 0 is background.
        """
        return self.segment_normalized(*self._prepare(image, diameter, channel))

    def segment_with_scores(
        self, image: NDArray[Any], *, diameter: float | None = None, channel: int | None = None
    ) -> tuple[Labels, NDArray[np.float64]]:
        """Segment one raw image and say how sure the network is of each cell.

        Takes what :meth:`segment` takes.

        Returns
        -------
        labels : ndarray of int32, shape (H, W)
            What :meth:`segment` returns.
        scores : ndarray of float64, shape (n,)
            Mean foreground probability inside each cell, in order of ascending id, at the scale of decoding.
        """
        normal, diameter = self._prepare(image, diameter, channel)
        decoded, maps = self._decode(normal, diameter)
        labels = resize_labels(decoded, (normal.shape[0], normal.shape[1]))
        foreground = representation(self.config.representation).foreground(maps)
        kept = np.isin(instance_areas(decoded)[0], instance_areas(labels)[0])
        return _consecutive(labels), mean_inside(decoded, foreground)[kept]

    def segment_normalized(self, image: Image, diameter: float | None) -> Labels:
        """Segment a normalised image ``(H, W, 3)`` whose cells have the given diameter in pixels."""
        decoded = self._decode(image, diameter)[0]
        return _consecutive(resize_labels(decoded, (image.shape[0], image.shape[1])))

    def _prepare(self, image: NDArray[Any], diameter: float | None, channel: int | None) -> tuple[Image, float | None]:
        normal = normalize(image, self.config.normalize, channel)
        return normal, self._default_diameter(normal) if diameter is None else diameter

    def _decode(self, image: Image, diameter: float | None) -> tuple[Labels, NDArray[np.float32]]:
        """Return labels and the maps they were decoded from: at the image's scale, or at the network's if larger."""
        zoom = zoom_for(diameter, self.config.reference_diameter)
        with self._timed("network"):
            maps = self.maps(resize_image(image, zoom))
        if zoom < 1:
            maps = _resize_maps(maps, (image.shape[0], image.shape[1]))
        min_size = round(self.settings.min_size / min(zoom, 1) ** 2)  # the maps of shrunken images were enlarged
        with self._timed("decode"):
            decoded = representation(self.config.representation).decode(maps, min_size=min_size)
        return decoded, maps

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[part] += time.perf_counter() - began

    def estimate_diameter(self, image: Image) -> float | None:
        """Estimate the cell diameter of a normalised image ``(H, W, 3)`` in its pixels; None where no cell is found.

        See :func:`cellseg.scale.stable_zoom`: the scale at which the cells found depend least on scale.
        """
        with self._timed("scale"):
            zoom = stable_zoom(image, self.segment_at, self.about.get("scale_prior"))
        return None if zoom is None else self.config.reference_diameter / zoom

    def segment_at(self, image: Image, zoom: float) -> Labels:
        """Segment a normalised image shown at a zoom, in one pass; the labels are of the size it was shown at."""
        maps = self.flipped_maps(resize_image(image, zoom), ())
        return representation(self.config.representation).decode(maps, min_size=self.settings.min_size)

    def _default_diameter(self, image: Image) -> float | None:
        policy = self.settings.diameter
        known = self.about.get("diameter") or self.config.reference_diameter
        if policy == "model":
            return float(known)
        if isinstance(policy, float | int):
            return float(policy)
        return self.estimate_diameter(image) or float(known)

    def maps(self, image: Image) -> NDArray[np.float32]:
        """Return raw maps ``(K, H, W)`` of a normalised image at the network's scale, tile by tile.

        With ``settings.tta`` the mean of six views: the four flips, vectors turned back, and a scale √2 finer and one
        √2 coarser; directions and shares do not depend on scale.
        """
        plain = self.flipped_maps(image, ())
        if not self.settings.tta:
            return plain
        shape = (image.shape[0], image.shape[1])
        scaled = (_resize_maps(self.flipped_maps(resize_image(image, step), ()), shape) for step in NEIGHBOURS)
        views = (*(self.flipped_maps(image, axes) for axes in ((0,), (1,), (0, 1))), *scaled)
        return np.asarray((plain + sum(views)) / 6, np.float32)

    def flipped_maps(self, image: Image, axes: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the raw maps of an image shown flipped along axes (0 rows, 1 columns), turned back with vectors."""
        with torch.inference_mode():
            maps = self._flipped(self._tensor(image), tuple(axis + 2 for axis in axes))
        result: NDArray[np.float32] = maps[0].float().cpu().numpy()
        return result

    def _tensor(self, image: Image) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(self.device)

    def _flipped(self, x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        maps = torch.flip(self._tiled(torch.flip(x, axes)), axes)
        sign = torch.ones(maps.shape[1], device=maps.device)
        for axis, vector in zip((2, 3), representation(self.config.representation).VECTORS, strict=False):
            if axis in axes:  # dy changes sign with the rows, dx with the columns
                sign[vector] = -1
        return maps * sign[:, None, None]

    def _tiled(self, x: torch.Tensor) -> torch.Tensor:
        from monai.inferers.utils import sliding_window_inference

        tile = self.settings.tile
        if max(x.shape[-2:]) <= tile * 3 // 2:
            return self._forward(x)
        roi = (min(tile, x.shape[-2]), min(tile, x.shape[-1]))
        maps = sliding_window_inference(
            x, roi, 1, self._forward, overlap=self.settings.overlap, mode="gaussian", padding_mode="replicate"
        )
        assert isinstance(maps, torch.Tensor)
        return maps

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = self.device.type
        amp = kind in {"cpu", "cuda"} and not (kind == "cuda" and not torch.cuda.is_bf16_supported())
        with torch.autocast(kind, torch.bfloat16, enabled=amp):
            maps: torch.Tensor = self.model(x.contiguous(memory_format=torch.channels_last))
        return maps.float()


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name: ``auto`` takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, False):
        raise CellsegError(
            f"--device {name}: not available here; wanted one of auto, cpu, cuda, mps that this machine has"
        )
    return torch.device(name)


def load(model: str | Path, *, device: str = "auto", settings: PredictConfig | None = None) -> Segmenter:
    """Load a model by name, weights file or run folder.

    Returns
    -------
    Segmenter
        Ready to use: ``load(model).segment(image)``.
    """
    network, config, about = load_weights(model)
    target = pick_device(device)
    network = network.to(target)
    return Segmenter(network, config, settings or PredictConfig(), target, about)


def segment(image: NDArray[Any], model: str | Path, *, diameter: float | None = None) -> Labels:
    """Segment one raw image with a model; for many images call :func:`load` once."""
    return load(model).segment(image, diameter=diameter)


def predict_files(
    segmenter: Segmenter,
    files: Iterable[tuple[str, Path, float | None]],
    out: str | Path,
    channel: int | None = None,
) -> Iterator[tuple[str, Labels]]:
    """Segment files one by one and write ``out/<id>.tif`` and the scores of its cells, ``out/<id>.scores.csv``.

    The scores are written first, so that a label image that is there has them; each file is whole or absent.

    Parameters
    ----------
    segmenter : Segmenter
        The model.
    files : iterable of (id, path, diameter or None)
        What to segment.
    out : str or Path
        Folder of the label images.
    channel : int, optional
        Use this channel alone.

    Yields
    ------
    id : str
    labels : ndarray of int32, shape (H, W)
    """
    for name, path, diameter in files:
        labels, scores = segmenter.segment_with_scores(read_image(path), diameter=diameter, channel=channel)
        target = Path(out) / f"{name}.tif"
        write_confidences(target, labels, scores)
        write_labels(target, labels)
        yield name, labels


def _consecutive(labels: Labels) -> Labels:
    """Close the gaps that cells leave which shrank to nothing."""
    from skimage.segmentation import relabel_sequential

    return np.asarray(relabel_sequential(labels)[0], np.int32)


def _resize_maps(maps: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Interpolate maps to a size; directions do not depend on scale, so vectors stay as they are."""
    resized = functional.interpolate(torch.from_numpy(maps)[None], size=shape, mode="bilinear", align_corners=False)
    return resized[0].numpy()
