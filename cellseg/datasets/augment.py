"""Intensity changes of the weak and the strong view; the only file that imports albumentations.

Views never move a pixel: geometry is sampled once per crop, before the views are made, so targets need no
inverse warp. Every operation is valid for float32 images in [0, 1]. albumentations is pinned to its last MIT
release and its update check, a network request at import, is switched off.
"""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np

from cellseg.core import Image

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
cv2.setNumThreads(1)

import albumentations  # noqa: E402  (after the switch above)


class View:
    """A random intensity change of a given strength.

    Parameters
    ----------
    strength : float
        0 changes nothing; 1 is the strong view.
    invert : float
        Probability of inverting the image.
    colour : float
        Probability of another hue, another order of the channels or no colour at all.
    """

    def __init__(self, strength: float, invert: float = 0.0, colour: float = 0.0) -> None:
        self._invert = invert
        operations = [*_colour_changes(colour), *_operations(strength)]
        self._compose = albumentations.Compose(operations) if operations else None

    def __call__(self, image: Image, seed: int) -> Image:
        """Return the changed image, float32 ``(H, W, 3)``; the same seed gives the same change.

        What lies outside [0, 1] (hot pixels) is set aside and added back, since albumentations clips it.
        """
        if self._invert and np.random.default_rng(seed).random() < self._invert:
            image = 1 - image
        if self._compose is None:
            return image
        self._compose.set_random_seed(seed)
        usual = np.clip(image, 0, 1)
        changed = self._compose(image=usual)["image"] + (image - usual)
        return np.ascontiguousarray(changed, dtype=np.float32)


def _colour_changes(probability: float) -> list[Any]:
    """Stains and dyes differ between laboratories: neither a hue nor the order of channels says what a cell is."""
    if not probability:
        return []
    a = albumentations
    hue = a.HueSaturationValue(hue_shift_limit=90, sat_shift_limit=40, val_shift_limit=0, p=1)
    return [a.OneOf([hue, a.ChannelShuffle(p=1), a.ToGray(p=1)], p=probability)]


def _operations(strength: float) -> list[Any]:
    if not strength:
        return []
    a = albumentations
    linear = {"upscale": cv2.INTER_LINEAR, "downscale": cv2.INTER_AREA}
    return [
        a.RandomBrightnessContrast(0.3 * strength, 0.4 * strength, brightness_by_max=True, p=0.7),
        a.RandomGamma((100 - 45 * strength, 100 + 70 * strength), p=0.6),
        a.Illumination(intensity_range=(0.01, 0.01 + 0.19 * strength), p=0.3 * strength),
        a.OneOf(
            [
                a.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 0.4 + 1.6 * strength), p=1),
                a.Downscale(scale_range=(1 - 0.6 * strength, 0.95), interpolation_pair=linear, p=1),
            ],
            p=0.5 * strength,
        ),
        a.OneOf(
            [
                a.GaussNoise(std_range=(0.005, 0.01 + 0.09 * strength), per_channel=False, p=1),
                a.MultiplicativeNoise((1 - 0.2 * strength, 1 + 0.2 * strength), elementwise=True, p=1),
            ],
            p=0.6 * strength,
        ),
    ]
