"""Read images too large for memory by region: tiled and pyramidal TIFF, and OME-Zarr.

Of a pyramid the finest level is read. OME-Zarr is read by the NGFF rules 0.1 to 0.5 (https://ngff.openmicroscopy.org):
level 0 of the first ``multiscales``, channels last, of all axes but y, x and c the first plane, with a warning. A Zarr
array without such rules is an image too. What this gives up: plates, volumes and movies as such, and Zarr on servers.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.config import NormalizeConfig
from cellseg.core import CellsegError, Image
from cellseg.images import normalize, read_size, to_three_channels
from cellseg.slides.blocks import Region
from cellseg.slides.windows import has_windows, ranges_of_bands, read_window

_BAND_ROWS = 512


@dataclass(frozen=True)
class Slide:
    """An image in a file, read by region and normalised as all of it would be: a :class:`cellseg.sources.Source`.

    Attributes
    ----------
    path : Path
        File for which :func:`has_regions` is true.
    shape : (height, width)
        In pixels.
    rule : NormalizeConfig
        How raw values become network input.
    channel : int or None
        Use this channel alone.
    ranges : tuple of (low, high)
        The raw values that become 0 and 1 in each channel used.
    """

    path: Path
    shape: tuple[int, int]
    rule: NormalizeConfig
    channel: int | None
    ranges: tuple[tuple[float, float], ...]

    @property
    def key(self) -> str:
        """Tells this image from all others."""
        return f"{self.path} {self.channel} {self.ranges}"

    def read(self, region: Region) -> Image:
        """Return the normalised pixels of a region, float32 ``(h, w, 3)``."""
        raw = _only(read_region(self.path, region), self.channel)
        return normalize(raw, self.rule, ranges=self.ranges)


@dataclass(frozen=True)
class Placement:
    """Where the pixels of an image lie in space: pixel ``i`` along an axis at ``scale * i + translation``.

    Attributes
    ----------
    scale : (y, x)
        Size of a pixel.
    translation : (y, x)
        Place of the centre of the first pixel.
    unit : str or None
        Of both, where it is said.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    translation: tuple[float, float] = (0.0, 0.0)
    unit: str | None = None


def open_slide(path: str | Path, rule: NormalizeConfig, channel: int | None = None) -> Slide:
    """Open an image to be read by region; its range of values is measured in one pass over all of it.

    Parameters
    ----------
    path : str or Path
        File for which :func:`has_regions` is true.
    rule : NormalizeConfig
        How raw values become network input.
    channel : int, optional
        Use this channel alone.

    Raises
    ------
    CellsegError
        If the file is damaged, there is no such channel, or there are more than four and none is chosen.
    """
    path, shape = Path(path), slide_size(path)
    pixel = read_region(path, Region(0, 0, 1, 1))
    to_three_channels(pixel, channel)
    if rule.rule == "none":
        ranges = ranges_of_bands([(0, _only(pixel, channel))], (1, 1), rule)
    else:
        ranges = ranges_of_bands(_bands(path, shape, channel), shape, rule)
    return Slide(path, shape, rule, channel, tuple(ranges))


def is_zarr(path: str | Path) -> bool:
    """Whether a path is a folder that holds a Zarr group or array."""
    return any((Path(path) / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def has_regions(path: str | Path) -> bool:
    """Whether a region can be read without decoding the whole; see :func:`cellseg.slides.windows.has_windows`."""
    return is_zarr(path) or has_windows(path)


def slide_size(path: str | Path) -> tuple[int, int]:
    """Read ``(height, width)`` in pixels of an image file or OME-Zarr, without its pixels."""
    path = Path(path)
    if not is_zarr(path):
        return read_size(path)
    with _reading(path):
        array, axes = _finest(path)
        return array.shape[axes.index("y")], array.shape[axes.index("x")]


def read_region(path: str | Path, region: Region) -> NDArray[Any]:
    """Read a region as raw values ``(h, w)`` or ``(h, w, C)``; raises CellsegError if the file is damaged."""
    path = Path(path)
    if not is_zarr(path):
        return read_window(path, region.rows, region.columns)
    with _reading(path):
        array, axes = _finest(path)
        parts = {"y": region.rows, "x": region.columns, "c": slice(None)}
        pixels = np.asarray(array[tuple(parts.get(axis, 0) for axis in axes)])
        kept = [axis for axis in axes if axis in parts]
        return np.ascontiguousarray(pixels.transpose([kept.index(axis) for axis in "yxc" if axis in kept]))


def read_slide(path: str | Path) -> NDArray[Any]:
    """Read all of an image for which :func:`has_regions` is true as raw values."""
    return read_region(path, Region.whole(slide_size(path)))


def zarr_digest(path: str | Path) -> str:
    """Digest names, sizes and times of change of all files of an OME-Zarr's finest level, and what is said of it."""
    with _reading(Path(path)):
        folder, scales = _multiscales(Path(path))
        array = folder if scales is None else folder / scales["datasets"][0]["path"]
        return hashlib.sha256(json.dumps([scales, list(_files(array))]).encode()).hexdigest()


def image_group(path: str | Path) -> Path:
    """Return where an OME-Zarr image itself lies: of the layout of bioformats2raw, in the group of its first series."""
    with _reading(Path(path)):
        return _multiscales(Path(path))[0]


def placement(path: str | Path) -> Placement:
    """Read where the pixels of an OME-Zarr's finest level lie; those of a bare array at their own indices."""
    with _reading(Path(path)):
        scales = _multiscales(Path(path))[1] or {}
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in scales.get("axes", [])]
        names = [axis["name"] for axis in axes]
        levels = [scales["datasets"][0], scales] if {"y", "x"} <= set(names) else []  # first of the level, then of all
        steps = [step for level in levels for step in level.get("coordinateTransformations", [])]
        if not steps:
            return Placement()
        at = [names.index("y"), names.index("x")]
        scale, translation = np.ones(2), np.zeros(2)
        for step in steps:
            if step["type"] == "scale":
                factors = np.array(step["scale"], np.float64)[at]
                scale, translation = scale * factors, translation * factors
            elif step["type"] == "translation":
                translation = translation + np.array(step["translation"], np.float64)[at]
        (height, width), (down, right) = scale.tolist(), translation.tolist()
        return Placement((height, width), (down, right), axes[at[0]].get("unit"))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever Zarr raises on a damaged folder into a CellsegError, one line that names the folder."""
    try:
        yield
    except CellsegError:
        raise
    except Exception as error:  # codecs raise many types, from RuntimeError to zlib.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CellsegError(f"{path}: cannot be read, it may be damaged or cut short ({reason[:200]})") from error


def _files(array: Path, below: str = "") -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of change of the files of a Zarr array; labels inside a bare array are not of it."""
    with os.scandir(array / below) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = f"{below}{entry.name}"
        if name == "labels" or (name.startswith(".") and name != ".zarray"):
            continue
        if entry.is_dir():
            yield from _files(array, f"{name}/")
        else:
            status = entry.stat()
            yield name, status.st_size, status.st_mtime_ns


def _only(raw: NDArray[Any], channel: int | None) -> NDArray[Any]:
    return raw if channel is None or raw.ndim == 2 else raw[..., channel]


def _bands(path: Path, shape: tuple[int, int], channel: int | None) -> Iterator[tuple[int, NDArray[Any]]]:
    from cellseg.progress import track

    rows = _band_rows(path)
    starts = range(0, shape[0], rows)
    for start in track(starts, f"{path.name}: measuring", total=len(starts)):
        region = Region(start, 0, min(start + rows, shape[0]), shape[1])
        yield start, _only(read_region(path, region), channel)


def _band_rows(path: Path) -> int:
    """Rows read in one go: whole chunks where these are not too high."""
    if not is_zarr(path):
        return _BAND_ROWS
    with _reading(path):
        array, axes = _finest(path)
        high = int(array.chunks[axes.index("y")])
    return max(1, _BAND_ROWS // high) * high if high <= 2 * _BAND_ROWS else _BAND_ROWS


def _finest(path: Path) -> tuple[Any, str]:
    """Return the array of an image at full resolution and its axes in lower case, one letter each."""
    import zarr

    folder, scales = _multiscales(path)
    if scales is None:
        array = zarr.open_array(folder, mode="r")
        axes = _guess_axes(array.shape)
    else:
        array = zarr.open_array(folder / scales["datasets"][0]["path"], mode="r")
        named = scales.get("axes") or list("tczyx")[-array.ndim :]
        axes = "".join((axis["name"] if isinstance(axis, dict) else axis)[:1] for axis in named).lower()
    if len(axes) != array.ndim or not {"y", "x"} <= set(axes) or array.dtype.kind not in "buif":
        raise CellsegError(f"{path}: wanted an image with axes y and x, got {array.dtype} of shape {array.shape}")
    others = [(axis, size) for axis, size in zip(axes, array.shape, strict=True) if axis not in "yxc" and size > 1]
    if others:
        left_out = [f"{axis}={size}" for axis, size in others]
        warnings.warn(f"{path}: the first plane is read ({', '.join(left_out)}); the others are left out", stacklevel=3)
    return array, axes


def _guess_axes(shape: tuple[int, ...]) -> str:
    """Name the axes of an array without names as :mod:`cellseg.images` does those of a TIFF."""
    if len(shape) == 3:
        return "yxc" if shape[2] <= 4 < min(shape[:2]) else "cyx"
    return "tczyx"[-len(shape) :]


def _multiscales(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """Return the group of an image and its first ``multiscales``; None for a bare array."""
    import zarr

    found = zarr.open(path, mode="r")
    if not isinstance(found, zarr.Group):
        return path, None
    attributes: dict[str, Any] = dict(found.attrs)
    attributes |= attributes.get("ome") or {}
    if "multiscales" in attributes:
        return path, attributes["multiscales"][0]
    if "bioformats2raw.layout" in attributes and "0" in found:
        return _multiscales(path / "0")
    if "plate" in attributes:
        raise CellsegError(f"{path}: is a plate of many images; give those of its wells, such as {path.name}/A/1/0")
    raise CellsegError(f"{path}: a Zarr group without an image (no 'multiscales'); give the image inside it")
