"""From an image to labels: normalise, scale, tile, decode, and scale back.

The segmenter carries the normalisation rule and the reference diameter of its checkpoint, so no caller can
feed the network differently from how it was trained.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cellseg.checkpoint import load_weights
from cellseg.confidences import mean_inside
from cellseg.config import ModelConfig, PredictConfig
from cellseg.core import CellsegError, Image, Labels
from cellseg.decoding import Rule, decode, rule_of
from cellseg.devices import autocast_type, check_precision, pick_device
from cellseg.halving import Most
from cellseg.images import normalize
from cellseg.instances import representation
from cellseg.instances.interface import Maps
from cellseg.labels import instance_areas
from cellseg.resampling import apply_weights, axis_weights
from cellseg.scale import looks, resize_image, resize_labels, stable_zoom, zoom_for, zoomed_shape
from cellseg.slides.blocks import Region, window_grid
from cellseg.sliding import Kept, blend
from cellseg.sources import InMemory, Source, Zoomed

NEIGHBOURS = (2.0**-0.5, 2.0**0.5)
"""Scales, relative to the one chosen, that test-time augmentation looks at too."""

WINDOWS_ON_GPU = 8
"""Windows that a GPU is shown at once by default; a CPU, which one window keeps busy, is shown one."""


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
    kept: Kept = field(default_factory=Kept, repr=False)
    """Maps of windows seen lately, of sources that have a key."""
    most: Most = field(init=False, repr=False)
    """How many windows the network is shown at once: ``settings.batch_size``, halved where memory ends."""

    def __post_init__(self) -> None:
        """Refuse a precision that the device has not; by default a GPU is shown several windows at once."""
        check_precision(self.settings.precision, self.device)
        self.most = Most(self.settings.batch_size or (1 if self.device.type == "cpu" else WINDOWS_ON_GPU))

    @property
    def n_parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def fingerprint(self) -> str:
        """Tells the network, its configuration and the rule by which it is read from all others."""
        digest = hashlib.sha256(f"{self.config.model_dump_json()}{self.rule}".encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

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

        Raises
        ------
        CellsegError
            As :meth:`diameter_of`, or if the image has no such channel.
        """
        return self.segment_normalized(*self.prepare(image, diameter, channel))

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
        return self.segment_normalized_with_scores(*self.prepare(image, diameter, channel))

    def segment_normalized_with_scores(
        self, image: Image, diameter: float | None
    ) -> tuple[Labels, NDArray[np.float64]]:
        """Do what :meth:`segment_with_scores` does with a normalised image ``(H, W, 3)`` of known cell diameter."""
        decoded, maps = self._decode(image, diameter)
        labels = resize_labels(decoded, (image.shape[0], image.shape[1]))
        foreground = representation(self.config.representation).foreground(maps)
        kept = np.isin(instance_areas(decoded)[0], instance_areas(labels)[0])
        return _consecutive(labels), mean_inside(decoded, foreground)[kept]

    def segment_normalized(self, image: Image, diameter: float | None) -> Labels:
        """Segment a normalised image ``(H, W, 3)`` whose cells have the given diameter in pixels."""
        decoded = self._decode(image, diameter)[0]
        labels = resize_labels(decoded, (image.shape[0], image.shape[1]))
        return labels if labels is decoded else _consecutive(labels)

    def prepare(self, image: NDArray[Any], diameter: float | None, channel: int | None) -> tuple[Image, float]:
        """Normalise a raw image, and find its typical cell diameter where that is not given."""
        normal = normalize(image, self.config.normalize, channel)
        return normal, self.diameter_of(InMemory(normal), diameter)

    def _decode(self, image: Image, diameter: float | None) -> tuple[Labels, Maps]:
        """Return labels and the maps they were decoded from: at the image's scale, or at the network's if larger."""
        zoom = zoom_for(diameter, self.config.reference_diameter)
        source = InMemory(image)
        maps = self.maps_of(source, zoom, Region.whole(decoding_shape(source.shape, zoom)))
        return self.decode(maps, zoom), maps

    def maps_of(self, source: Source, zoom: float, region: Region) -> Maps:
        """Return the maps from which the cells of a region are decoded.

        Parameters
        ----------
        source : Source
            Normalised image of any size.
        zoom : float
            Factor from the image to the network's scale.
        region : Region
            In pixels at the scale of decoding: that of the image, or the network's where it is finer.

        Returns
        -------
        ndarray of float32, shape (K, h, w)
            The same values whatever the region.
        """
        with self._timed("network"):
            shown = Zoomed(source, zoom, self._small)
            if zoom < 1:  # decoded at the image's scale, so that outlines are as fine as its pixels
                return self._resampled(self._seen, shown, source.shape, region)
            return self._seen(shown, region)

    def decode(self, maps: Maps, zoom: float) -> Labels:
        """Decode maps, which :meth:`maps_of` made, of an image shown at a zoom."""
        with self._timed("decode"):
            return self.labels_of(maps, self.min_size(zoom))

    def labels_of(self, maps: Maps, min_size: int) -> Labels:
        """Decode maps by the rule of this model; cells of fewer pixels are dropped."""
        return decode(self.config.representation, maps, self.rule, min_size, self.device)

    @cached_property
    def rule(self) -> Rule:
        """What makes pixels a cell: as the settings say, else as the weights do."""
        return rule_of(self.settings, self.about)

    def min_size(self, zoom: float) -> int:
        """Return how many pixels a cell has at least, at the scale of decoding an image shown at a zoom."""
        return round(self.settings.min_size / min(zoom, 1) ** 2)  # the maps of shrunken images were enlarged

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[part] += time.perf_counter() - began

    def estimate_diameter(self, image: Image) -> float | None:
        """Estimate the cell diameter of a normalised image ``(H, W, 3)`` in its pixels; None where no cell is found.

        See :func:`cellseg.scale.stable_zoom`: the scale at which the cells found depend least on scale.
        """
        return self.estimate_diameter_of(InMemory(image))

    def estimate_diameter_of(self, source: Source) -> float | None:
        """Estimate the cell diameter of an image of any size in its pixels; None where no cell is found.

        Of a large image a few parts that hold something are looked at (:func:`cellseg.scale.looks`), and the median of
        what is found there is taken.
        """
        with self._timed("scale"):
            parts = (source.read(region) for region in looks(source.shape, source.read))
            prior = self.about.get("scale_prior")
            found = (stable_zoom(part, self.segment_at, prior) for part in parts)
            zooms = sorted(zoom for zoom in found if zoom is not None)
        return self.config.reference_diameter / zooms[len(zooms) // 2] if zooms else None

    def segment_at(self, image: Image, zoom: float) -> Labels:
        """Segment a normalised image shown at a zoom, in one pass; the labels are of the size it was shown at."""
        maps = self.flipped_maps(resize_image(image, zoom), ())
        return self.labels_of(maps, self.settings.min_size)

    def diameter_of(self, source: Source, told: float | None = None) -> float:
        """Return the typical cell diameter of an image in its pixels: as told, else as ``settings.diameter`` wants it.

        Raises
        ------
        CellsegError
            If what is told is no number above 0, or nothing is told and the settings want an index to tell it.
        """
        if told is not None:
            if not 0 < told < math.inf:
                raise CellsegError(
                    f"diameter {told:g}: wanted a number of pixels above 0; left away or None, it is estimated"
                )
            return told
        policy = self.settings.diameter
        known = self.about.get("diameter") or self.config.reference_diameter
        if policy == "index":
            raise CellsegError(
                "predict.diameter = 'index': an image alone has no index; give its diameter, or set a number, 'auto' "
                "or 'model'"
            )
        if policy == "model":
            return float(known)
        if isinstance(policy, float | int):
            return float(policy)
        return self.estimate_diameter_of(source) or float(known)

    def maps(self, image: Image) -> Maps:
        """Return raw maps ``(K, H, W)`` of a normalised image at the network's scale, window by window.

        With ``settings.tta`` the mean of six views: the four flips, vectors turned back, and a scale √2 finer and one
        √2 coarser; directions and shares do not depend on scale.
        """
        return self._seen(InMemory(image), Region.whole(image.shape))

    def flipped_maps(self, image: Image, axes: tuple[int, ...]) -> Maps:
        """Return the raw maps of an image shown flipped along axes (0 rows, 1 columns), turned back with vectors."""
        return self._flipped(InMemory(image), Region.whole(image.shape), axes)

    def _seen(self, source: Source, region: Region) -> Maps:
        plain = self._flipped(source, region, ())
        if not self.settings.tta:
            return plain
        flips = (self._flipped(source, region, axes) for axes in ((0,), (1,), (0, 1)))
        steps = (Zoomed(source, step, self._small) for step in NEIGHBOURS)
        views = (*flips, *(self._resampled(self._flipped, step, source.shape, region) for step in steps))
        return np.asarray((plain + sum(views)) / 6, np.float32)

    def _resampled(
        self, see: Callable[[Source, Region], Maps], source: Source, shape: tuple[int, int], region: Region
    ) -> Maps:
        """Interpolate maps of a source to another size; directions do not depend on scale, so vectors stay."""
        if source.shape == shape:
            return see(source, region)
        rows, down = axis_weights(source.shape[0], shape[0], region.rows, average=False)
        columns, across = axis_weights(source.shape[1], shape[1], region.columns, average=False)
        maps = see(source, Region(down.start, across.start, down.stop, across.stop))
        return np.ascontiguousarray(apply_weights(apply_weights(maps, rows, 1), columns, 2))

    def _flipped(self, source: Source, region: Region, axes: tuple[int, ...] = ()) -> Maps:
        grid = window_grid(source.shape, self.settings.tile, self.settings.overlap, axes)
        look = partial(self._look, axes=axes)
        memory = self.kept.of(source.key, str(axes))
        return blend(look, source, region, grid, memory, self.most, self._nothing)

    @cached_property
    def _nothing(self) -> torch.Tensor:
        """Raw maps ``(K, 1, 1)`` of a pixel of background."""
        module = representation(self.config.representation)
        return torch.from_numpy(module.ideal_maps(module.encode(np.zeros((1, 1), np.int32))))

    @property
    def _small(self) -> int:
        return self.settings.tile * 3 // 2

    def _look(self, images: NDArray[np.float32], axes: tuple[int, ...]) -> torch.Tensor:
        pixels, on_gpu = torch.from_numpy(images).permute(0, 3, 1, 2), self.device.type == "cuda"
        x = torch.empty(pixels.shape, memory_format=torch.channels_last, pin_memory=on_gpu).copy_(pixels)
        x = x.to(self.device, non_blocking=on_gpu)  # its strides matter to the network
        dimensions = [axis + 2 for axis in axes]
        with torch.inference_mode():
            maps = torch.flip(self._forward(torch.flip(x, dimensions)), dimensions)
            for axis, vector in zip((0, 1), representation(self.config.representation).VECTORS, strict=False):
                if axis in axes:  # dy changes sign with the rows, dx with the columns
                    maps[:, vector] *= -1
        return maps

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = autocast_type(self.settings.precision, self.device)
        with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            maps: torch.Tensor = self.model(x.contiguous(memory_format=torch.channels_last))
        return maps


def decoding_shape(shape: tuple[int, int], zoom: float) -> tuple[int, int]:
    """Return the size at which the cells of an image are decoded: its own, or that it is shown at where larger."""
    return zoomed_shape(shape, max(zoom, 1.0))


def load(model: str | Path, *, device: str | torch.device = "auto", settings: PredictConfig | None = None) -> Segmenter:
    """Load a model by name, weights file or run folder.

    Returns
    -------
    Segmenter
        Ready to use: ``load(model).segment(image)``.
    """
    network, config, about = load_weights(model)
    target = pick_device(device) if isinstance(device, str) else device
    if target.type == "cuda":  # the layout of what it is shown; on a CPU that was measured to gain nothing
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network.to(target)
    return Segmenter(network, config, settings or PredictConfig(), target, about)


def segment(image: NDArray[Any], model: str | Path, *, diameter: float | None = None) -> Labels:
    """Segment one raw image with a model; for many images call :func:`load` once."""
    return load(model).segment(image, diameter=diameter)


def _consecutive(labels: Labels) -> Labels:
    """Close the gaps that cells leave which shrank to nothing."""
    from skimage.segmentation import relabel_sequential

    return np.asarray(relabel_sequential(labels)[0], np.int32)
