"""Read microscopy images as raw values, normalise them by a named rule, and read and write label images.

TIFF goes through tifffile and imagecodecs, PNG through imagecodecs, JPEG and BMP through Pillow. The kind of
file is told from its first bytes, not from its name. One plane of one image comes out of every file:

* TIFF: series 0 and, in a pyramid, level 0 (full resolution). Axes are read from the file; the channel axes
  ``S`` and ``C`` come last; of all others (``T``, ``Z``, …) plane ``page`` is taken, with a warning. An unnamed
  axis (``Q``, ``I``) of 2 to 4 planes is channels, also where a ``(H, W, 2 to 4)`` array was saved without a word.
* Palettes: a colour palette in a PNG or BMP is applied to images and not to labels; that of a TIFF is not
  applied (microscopes use it as a display colour of a grey image).
* JPEG: CMYK becomes RGB; the orientation tag is ignored, so that labels agree with the stored pixels.

What this gives up: volumes and movies as such (one plane is read); slides larger than memory are read by window in
:mod:`cellseg.slides.windows`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from cellseg.config import NormalizeConfig
from cellseg.core import CellsegError, Image, Labels
from cellseg.files import atomic_path
from cellseg.memory import require_file, require_plausible, require_room
from cellseg.ranges import value_range
from cellseg.tiff import open_tiff, require_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp"})
"""File name endings, in lower case, that are taken for images."""

OVERLAY_SUFFIX = ".overlay.png"
"""Ending of the pictures that are drawn for people beside label images, and never taken for either."""

CLIP_RANGE = (-1.0, 2.0)
"""Where rule ``percentile`` clips, so that a few hot pixels cannot dominate the network's statistics."""

DEFAULT_RULE = NormalizeConfig()
"""Percentiles 1 and 99."""

_MAX_ID = 2**31 - 1
_HUGE = 1e37


def find_images(folder: str | Path) -> list[Path]:
    """List the files of a folder that end in one of :data:`IMAGE_SUFFIXES` in any case, sorted by name.

    Sub-folders, hidden files and pictures of results are left out. Raises CellsegError if the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CellsegError(f"{folder}: no such folder of images")
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and path.is_file())


def is_image_name(name: str) -> bool:
    """Whether a file of this name is to be read as an image."""
    is_picture = name.startswith(".") or name.endswith(OVERLAY_SUFFIX)
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not is_picture


def read_image(path: str | Path, page: int = 0) -> NDArray[Any]:
    """Read one plane of an image file as raw values.

    Parameters
    ----------
    path : str or Path
        TIFF, PNG, JPEG or BMP file.
    page : int
        Plane along the axes that are neither spatial nor channels (time, depth, …), counted over all of them
        in the file's order.

    Returns
    -------
    ndarray (H, W) or (H, W, C)
        The file's own dtype: bool, an integer or a float. C is the file's number of channels; the alpha of a
        grey PNG is dropped here, since later it could not be told from a second channel.

    Raises
    ------
    CellsegError
        If the file is missing, cut short, not an image, complex-valued, or has no such plane.
    """
    path = Path(path)
    with reading_file(path):
        image = _read_tiff(path, page) if _kind(path) == "tiff" else _read_raster(path)
    if image.dtype.kind not in "buif" or image.ndim not in (2, 3) or 0 in image.shape:
        raise CellsegError(f"{path}: wanted a 2-D image of numbers, got {image.dtype} of shape {image.shape}")
    return image


def read_size(path: str | Path) -> tuple[int, int]:
    """Read ``(height, width)`` in pixels from the header of an image file, without decoding it.

    Raises CellsegError if the file is missing or not an image.
    """
    path = Path(path)
    with reading_file(path):
        if _kind(path) != "tiff":
            with _open_raster(path) as raster:
                require_plausible(path, raster.height, raster.width)
                return raster.height, raster.width
        with open_tiff(path) as tiff:
            level = tiff.series[0].levels[0]
            axes = name_axes(level.axes, level.shape)
            if not {"Y", "X"} <= set(axes) or 0 in level.shape:
                raise CellsegError(f"{path}: wanted an image with height and width, got {axes} of {level.shape}")
            height, width = int(level.shape[axes.index("Y")]), int(level.shape[axes.index("X")])
            require_plausible(path, height, width)
            return height, width


def to_three_channels(image: NDArray[Any], channel: int | None = None) -> NDArray[Any]:
    """Give an image exactly three channels, keeping its dtype.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        Raw image.
    channel : int, optional
        Use only this channel, counted from 0.

    Returns
    -------
    ndarray (H, W, 3)
        Grey is copied three times, two channels get an empty third, the alpha of RGBA is dropped.

    Raises
    ------
    CellsegError
        If there are more than four channels and none is chosen, or there is no such channel.
    """
    planes = _planes(image, channel)
    return np.stack([*planes, np.zeros_like(planes[0])] if len(planes) == 2 else planes, axis=-1)


def normalize(
    image: NDArray[Any],
    rule: NormalizeConfig = DEFAULT_RULE,
    channel: int | None = None,
    ranges: Sequence[tuple[float, float]] | None = None,
) -> Image:
    """Turn raw values into network input, each channel by itself.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        Raw image of any integer, float or bool dtype.
    rule : NormalizeConfig
        ``percentile``: the ``low`` and ``high`` percentiles of all finite pixels become 0 and 1, clipped to
        :data:`CLIP_RANGE`. ``percentile_nonzero``: the same over the non-zero pixels, clipped to [0, 1], as the
        organisers of the NeurIPS 2022 challenge do in their ``pre_process_3class.py`` (without their rounding
        to uint8). ``none``: integers are divided by the largest value of their dtype, floats are only cast.
    channel : int, optional
        Use only this channel, counted from 0.
    ranges : sequence of (low, high), optional
        The values that become 0 and 1 in each channel, where the image is a window of a larger one; see
        :func:`cellseg.slides.windows.measure_ranges`.

    Returns
    -------
    float32 (H, W, 3)
        Always finite. An empty or constant channel is zero; where the two percentiles coincide (a few bright
        cells on an even background) the smallest and largest value take their place. NaN and infinite pixels
        become zero.

    Raises
    ------
    CellsegError
        As :func:`to_three_channels`.
    """
    planes = _planes(image, channel)
    out = np.zeros((*image.shape[:2], 3), dtype=np.float32)
    first = _normalize_plane(planes[0], rule, ranges[0] if ranges else None)
    for index, plane in enumerate(planes):
        known = ranges[min(index, len(ranges) - 1)] if ranges else None
        is_copy = plane is planes[0] or (index > 0 and ranges is None and np.array_equal(plane, planes[0]))
        out[..., index] = first if is_copy else _normalize_plane(plane, rule, known)
    return out


def read_labels(path: str | Path) -> Labels:
    """Read an instance image.

    Parameters
    ----------
    path : str or Path
        TIFF, PNG, BMP or ``.npy`` file with one channel of integers, booleans or whole-numbered floats.
        A palette image holds its indices.

    Returns
    -------
    int32 (H, W)
        0 is background; the ids are those of the file, in general not consecutive.

    Raises
    ------
    CellsegError
        If the file cannot be read, is a JPEG (which does not keep ids), has colours, negative ids, fractions
        or an id above 2³¹ − 1.
    """
    path = Path(path)
    with reading_file(path):
        if path.suffix.lower() == ".npy":
            labels = np.load(path, mmap_mode="r", allow_pickle=False)  # never more than the file holds
        elif (kind := _kind(path)) == "jpeg":
            raise CellsegError(f"{path}: a JPEG does not keep cell ids; save the labels as TIFF or PNG")
        else:
            labels = _read_tiff(path, 0) if kind == "tiff" else _read_raster(path, keep_palette=True)
    if labels.ndim == 3 and labels.shape[2] == 1:
        labels = labels[..., 0]
    if labels.ndim != 2 or labels.size == 0:
        raise CellsegError(
            f"{path}: wanted labels of shape (height, width), one id a cell, got shape {labels.shape}; "
            "a colour picture of the labels does not hold ids"
        )
    return check_ids(labels, str(path))


def write_labels(path: str | Path, labels: NDArray[Any]) -> None:
    """Write an instance image as a lossless zlib TIFF, atomically.

    Parameters
    ----------
    path : str or Path
        Final file, ending in ``.tif`` or ``.tiff``.
    labels : int or bool (H, W)
        0 is background. Stored as uint16, or as uint32 if an id exceeds 65,535.

    Raises
    ------
    CellsegError
        If the labels are not 2-D, not whole, or negative, or the file cannot be written.
    """
    import tifffile

    path = Path(path)
    if labels.ndim != 2 or labels.size == 0:
        raise CellsegError(f"{path}: wanted labels of shape (height, width) to write, got shape {labels.shape}")
    ids = check_ids(labels, str(path))
    stored = ids.astype(np.uint16 if int(ids.max()) <= np.iinfo(np.uint16).max else np.uint32)
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, stored, compression="zlib", photometric="minisblack", metadata=None)


def _kind(path: Path) -> str:
    with path.open("rb") as handle:
        head = handle.read(8)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    for kind, magic in (("png", b"\x89PNG\r\n\x1a\n"), ("jpeg", b"\xff\xd8\xff"), ("bmp", b"BM")):
        if head.startswith(magic):
            return kind
    raise CellsegError(f"{path}: not a TIFF, PNG, JPEG or BMP image" + ("" if head else " (the file is empty)"))


@contextlib.contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into a CellsegError, one line that names the file."""
    try:
        require_file(path)
        yield
    except CellsegError:
        raise
    except FileNotFoundError:
        raise CellsegError(f"{path}: no such file") from None
    except Exception as error:  # decoders raise dozens of types, from struct.error to zlib.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CellsegError(f"{path}: cannot be read, it may be damaged or cut short ({reason[:200]})") from error


def _open_raster(path: Path) -> PillowImage:
    # The format's own class, because Image.open refuses pictures above 179 Mpx.
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    kind = _kind(path)
    if kind == "png":
        return PngImagePlugin.PngImageFile(path)
    return JpegImagePlugin.JpegImageFile(path) if kind == "jpeg" else BmpImagePlugin.BmpImageFile(path)


def _read_raster(path: Path, keep_palette: bool = False) -> NDArray[Any]:
    with _open_raster(path) as raster:
        require_room(path, (raster.height, raster.width, len(raster.getbands())), 2)
        mode = raster.mode
        if mode not in ("P", "1") and raster.format == "PNG":
            import imagecodecs

            image: NDArray[Any] = imagecodecs.png_decode(path.read_bytes())  # Pillow reduces 16-bit colour to 8
            return image[..., 0] if image.ndim == 3 and image.shape[2] == 2 else image
        if mode in ("CMYK", "YCCK") or (mode == "P" and not keep_palette):
            return np.array(raster.convert("RGB"))
        return np.array(raster)


def name_axes(axes: str, shape: tuple[int, ...]) -> str:
    """Give unnamed channel axes of a TIFF series the name ``S`` (samples)."""
    if len(axes) == 3 and axes[1:] == "YX" and axes[0] in "QI" and shape[2] <= 4 < min(shape[:2]):
        return "YXS"
    if len(axes) == 3 and axes[0] in "QI" and 2 <= shape[0] <= 4 and "S" not in axes:
        return "S" + axes[1:]
    return axes


def _read_tiff(path: Path, page: int) -> NDArray[Any]:
    with open_tiff(path) as tiff:
        series = tiff.series[0].levels[0]
        axes, shape = name_axes(series.axes, series.shape), tuple(series.shape)
        if not {"Y", "X"} <= set(axes):
            raise CellsegError(f"{path}: wanted an image with height and width, got axes {axes} of shape {shape}")
        stacked = [place for place, axis in enumerate(axes) if axis not in "YXSC"]
        count = int(np.prod([shape[place] for place in stacked], dtype=np.int64))
        if not 0 <= page < count:
            raise CellsegError(f"{path}: wanted plane {page}, but the file has {count}, counted from 0")
        if count > 1:
            kinds = ", ".join(f"{axes[place]}={shape[place]}" for place in stacked if shape[place] > 1)
            warnings.warn(f"{path}: plane {page} of {count} is read ({kinds}); the others are left out", stacklevel=4)
        chosen = dict(zip(stacked, np.unravel_index(page, [shape[place] for place in stacked]), strict=True))
        image = _load_planes(series, chosen, path)
    kept = "".join(axis for axis in axes if axis in "YXSC")
    order = sorted(range(len(kept)), key=lambda place: "YXCS".index(kept[place]))
    image = image.transpose(order)
    return np.ascontiguousarray(image.reshape(*image.shape[:2], -1) if image.ndim > 2 else image)


def _load_planes(series: Any, chosen: dict[int, Any], path: Path) -> NDArray[Any]:
    """Decode only the pages of a series that hold the chosen plane, where each page is one plane."""
    shape, pages = tuple(series.shape), series.pages
    inner = len(series.keyframe.shape)
    outer = shape[: len(shape) - inner]
    index = tuple(int(chosen[place]) if place in chosen else slice(None) for place in range(len(shape)))
    by_page = (
        shape[len(outer) :] == tuple(series.keyframe.shape)
        and len(pages) == int(np.prod(outer, dtype=np.int64)) > 1
        and all(place < len(outer) for place in chosen)
        and all(item is not None for item in pages)
    )
    planes_read = [length for place, length in enumerate(shape) if not (by_page and place in chosen)]
    require_room(path, planes_read, series.dtype.itemsize)
    keys = np.arange(len(pages)).reshape(outer)[index[: len(outer)]] if by_page else np.arange(len(pages))
    for key in keys.ravel():
        if (page := pages[int(key)]) is not None:
            require_bytes(page, max(page.databytecounts, default=0))
    if not by_page:
        return cast("NDArray[Any]", series.asarray()[index])
    planes = [pages[int(key)].asarray() for key in keys.ravel()]
    return np.stack(planes).reshape(*keys.shape, *planes[0].shape)


def _planes(image: NDArray[Any], channel: int | None) -> list[NDArray[Any]]:
    """List the one to three planes that become the three channels; grey gives three times the same object."""
    if image.ndim not in (2, 3):
        raise CellsegError(f"wanted an image of shape (height, width) or (height, width, channels), got {image.shape}")
    count = 1 if image.ndim == 2 else image.shape[2]
    if channel is not None and not 0 <= channel < count:
        raise CellsegError(f"wanted channel {channel}, but the image has {count}, counted from 0")
    if channel is None and count > 4:
        raise CellsegError(f"the image has {count} channels; choose one with channel=0 … {count - 1} (--channel)")
    if image.ndim == 2:
        return [image] * 3
    if channel is not None or count == 1:
        return [image[..., channel or 0]] * 3
    return [image[..., index] for index in range(min(count, 3))]


def _normalize_plane(
    plane: NDArray[Any], rule: NormalizeConfig, known: tuple[float, float] | None
) -> NDArray[np.float32]:
    wide = np.float32 if plane.dtype.itemsize <= 2 or plane.dtype == np.float32 else np.float64
    values = plane.astype(wide)
    finite = np.isfinite(values) if plane.dtype.kind == "f" else None
    low, high = known or value_range(plane, rule)
    if not -np.inf < low < high < np.inf:
        return np.zeros(plane.shape, dtype=np.float32)
    if max(abs(low), abs(high)) > _HUGE:  # or their difference would be infinite
        values, low, high = values.astype(np.float64) * 2.0**-10, low * 2.0**-10, high * 2.0**-10
    with np.errstate(over="ignore", invalid="ignore"):
        np.divide(np.subtract(values, low, out=values), high - low, out=values)
    if rule.rule != "none":
        np.clip(values, *(CLIP_RANGE if rule.rule == "percentile" else (0.0, 1.0)), out=values)
    if finite is not None:
        values[~finite] = 0
    return values.astype(np.float32, copy=False)


def check_ids(labels: NDArray[Any], where: str) -> Labels:
    """Return labels as int32; raises CellsegError naming ``where`` if ids are fractions, negative or too large."""
    if labels.dtype.kind not in "buif":
        raise CellsegError(f"{where}: wanted integer labels, got {labels.dtype}")
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.trunc(labels)).all()):
        raise CellsegError(f"{where}: wanted integer labels, got {labels.dtype} with fractions or NaN")
    if labels.dtype.kind != "b":
        low, high = labels.min(), labels.max()
        if low < 0:
            raise CellsegError(f"{where}: labels must not be negative, the lowest is {low:.0f}; 0 is background")
        if high > _MAX_ID:
            raise CellsegError(f"{where}: the largest cell id is {high:.0f}, above 2**31 - 1; relabel the cells")
    return labels.astype(np.int32)
