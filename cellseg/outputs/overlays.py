"""Pictures for people: an image as the eye likes it, with the outlines of its cells drawn over it.

A small image is enlarged so that outlines do not hide its cells; a slide is made small by averaging, as it is read, and
its picture is an overview.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.config import NormalizeConfig
from cellseg.core import Image
from cellseg.files import atomic_path
from cellseg.images import OVERLAY_SUFFIX, normalize, to_three_channels
from cellseg.labels import outlines
from cellseg.outputs.cells import BAND_ROWS, Pixels

SUFFIX = OVERLAY_SUFFIX

MIN_SIDE, MAX_SIDE = 1000, 2500
"""The longest side of a picture in pixels: smaller images are enlarged to at most the first, larger ones reduced."""

DISPLAY = NormalizeConfig(low=0.5, high=99.8)
"""Grey values shown as black and white: milder than what a network is fed."""

TRUE_COLOUR = (0.0, 0.62, 0.45)
PRED_COLOUR = (0.9, 0.6, 0.0)
"""Green and orange of the Okabe-Ito palette, told apart by colour-blind readers."""


def write_overlay(path: str | Path, labels: Pixels, image: Pixels) -> None:
    """Draw the outlines of all cells over the image and write a PNG, atomically.

    Parameters
    ----------
    path : str or Path
        PNG file.
    labels : Pixels (H, W)
        Label image of integers, 0 background.
    image : Pixels (H, W) or (H, W, C)
        Raw image; of more than four channels the first three are shown.
    """
    from PIL import Image as Pillow

    longest = max(labels.shape)
    step, grow = min(-(-longest // MAX_SIDE), *labels.shape), max(1, MIN_SIDE // longest)
    pixels, cells = _reduced(image, step, average=True), _reduced(labels, step, average=False)
    if pixels.ndim == 3 and pixels.shape[2] > 4:
        pixels = pixels[..., :3]
    shown, cells = (part.repeat(grow, 0).repeat(grow, 1) for part in (for_display(pixels), cells))
    drawn = draw_outlines(shown, cells, PRED_COLOUR)
    with atomic_path(path) as temporary:
        Pillow.fromarray(np.round(drawn * 255).astype(np.uint8)).save(temporary, "PNG")


def draw_outlines(image: Image, labels: NDArray[Any], colour: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return the image with the cells' outlines in one colour.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W, 3)
        Normalised image.
    labels : ndarray of int, shape (H, W)
        Cells to outline.
    colour : tuple of float
        Red, green and blue in [0, 1].
    """
    drawn = np.clip(image, 0, 1).astype(np.float32)
    drawn[outlines(labels)] = colour
    return drawn


def for_display(image: NDArray[Any]) -> Image:
    """Return an image as it is shown to people.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C)
        Raw values. Colour of 8 bits is shown as it is; all else from the 0.5th to the 99.8th percentile.

    Returns
    -------
    ndarray of float32, shape (H, W, 3)
        In [0, 1].
    """
    is_colour = image.ndim == 3 and image.shape[2] in (3, 4) and image.dtype == np.uint8
    if is_colour and not is_grey(image):
        return np.asarray(to_three_channels(image) / np.float32(255), np.float32)
    return np.asarray(np.clip(normalize(image, DISPLAY), 0, 1), np.float32)


def is_grey(image: NDArray[Any]) -> bool:
    """Whether the first three channels of an image ``(H, W, C)`` are the same."""
    return bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())


def _reduced(pixels: Pixels, step: int, *, average: bool) -> NDArray[Any]:
    """Read all of an image by bands, each square of ``step`` pixels as one: their mean, or the first of them."""
    height, width = (side // step * step for side in pixels.shape[:2])
    rows = max(1, BAND_ROWS // step) * step
    bands = (np.asarray(pixels[top : min(top + rows, height), 0:width]) for top in range(0, height, rows))
    return np.concatenate([_mean(band, step) if average else band[::step, ::step] for band in bands])


def _mean(image: NDArray[Any], step: int) -> NDArray[Any]:
    """Average the squares of an image whose sides are multiples of ``step``; the type of its values stays."""
    if step == 1:
        return image
    height, width, *channels = image.shape
    squares = image.reshape(height // step, step, width // step, step, *channels)
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float32), image.dtype)
