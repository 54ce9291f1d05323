"""Find groups of images that look alike, where nobody says which microscope made them.

Each image becomes a few numbers (colour, background, contrast, sharpness, bit depth), and k-means puts like with
like. The groups serve to draw crops evenly and to report by; they are not modalities, and their names say so.
The idea is that of the winners of the NeurIPS 2022 challenge (MEDIAR, arXiv 2212.03465), who clustered a network's
features; these are measured in the image, so no network is needed.
"""

from __future__ import annotations

import csv
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError

MOST_CLUSTERS = 40
"""As many as the winners of the challenge used on its training set."""

FEATURES = (
    "mean of red", "mean of green", "mean of blue", "spread of red", "spread of green", "spread of blue",
    "saturation", "spread of saturation", "background", "skewness", "contrast",
    "coarse detail", "medium detail", "fine detail", "finest detail", "colour", "bit depth",
)  # fmt: skip
"""What :func:`describe` measures, in order."""

_BANDS = (0.0, 0.03, 0.08, 0.2, 0.5)
"""Limits of the bands of spatial frequency, in cycles a pixel."""

_RESTARTS = 8


def describe(thumbnail: NDArray[Any], detail: NDArray[Any]) -> NDArray[np.float64]:
    """Measure what an image looks like.

    Parameters
    ----------
    thumbnail : ndarray (h, w, C)
        Raw values of the whole image on a coarse grid.
    detail : ndarray (h, w, C)
        Raw values of a part at full resolution.

    Returns
    -------
    float64 (17,)
        :data:`FEATURES`. Brightness is relative to percentiles 0.5 and 99.5 over all channels together, so colour
        survives and exposure does not; ``background`` is the median on that scale, near 0 on a dark ground and near
        1 on a bright one. Detail is the logarithm of each band's share of the power of the grey detail.
    """
    colours = _three(thumbnail)
    low, high = np.percentile(colours, (0.5, 99.5))
    scale = high - low if high > low else 1.0
    colours = np.clip((colours - low) / scale, 0, 1)
    grey = colours.mean(axis=2)
    top = colours.max(axis=2)
    saturation = np.divide(top - colours.min(axis=2), top, out=np.zeros_like(top), where=top > 0)
    spread = grey.std()
    skewness = float(np.mean((grey - grey.mean()) ** 3) / spread**3) if spread > 0 else 0.0
    finite_max = float(np.iinfo(thumbnail.dtype).max) if thumbnail.dtype.kind in "ui" else 1.0
    values = [
        *colours.mean(axis=(0, 1)),
        *colours.std(axis=(0, 1)),
        saturation.mean(),
        saturation.std(),
        np.median(grey),
        np.clip(skewness, -5, 5),
        np.log10(max(float(scale) / finite_max, 1e-4)),
        *_detail(_three(detail).mean(axis=2)),
        float(saturation.mean() > 0.02),
        float(thumbnail.dtype.itemsize > 1),
    ]
    return np.nan_to_num(np.asarray(values, np.float64))


def count_clusters(n_images: int) -> int:
    """Return how many groups to look for: the square root of half the images, from 1 to :data:`MOST_CLUSTERS`."""
    return int(np.clip(round(np.sqrt(n_images / 2)), 1, MOST_CLUSTERS))


def cluster(
    features: NDArray[np.float64], seed: int, *, n_clusters: int | None = None, fit: NDArray[np.bool_] | None = None
) -> list[str]:
    """Group images by their features.

    Parameters
    ----------
    features : float64 (N, F)
        Rows of :func:`describe`.
    seed : int
        Seed of k-means; the same features in the same order and the same seed give the same groups.
    n_clusters : int, optional
        How many groups, at least 1; :func:`count_clusters` of the images by default. Never more than there are
        different images.
    fit : bool (N,), optional
        The images that decide where the groups are (training images); the others join the nearest. All by default.

    Returns
    -------
    list of str
        ``inferred-01`` and so on for each image, the largest group first.
    """
    from scipy.cluster.vq import kmeans2, vq

    if not len(features):
        return []
    fit = np.ones(len(features), np.bool_) if fit is None or not fit.any() else fit
    spread = features[fit].std(axis=0)
    data = (features - features[fit].mean(axis=0)) / np.where(spread > 1e-9, spread, 1)
    distinct = len(np.unique(data[fit].round(9), axis=0))
    count = min(n_clusters or count_clusters(int(fit.sum())), distinct)
    best, least = data[fit][:1], np.inf
    for restart in range(_RESTARTS):
        rng = np.random.default_rng([seed, restart])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty")  # then there is one group less
            centres, member = kmeans2(data[fit], count, iter=30, minit="++", seed=rng)
        error = float(((data[fit] - centres[member]) ** 2).sum())
        if error < least - 1e-9:
            best, least = centres, error
    member = vq(data, best)[0]
    sizes = np.bincount(member, minlength=len(best))
    order = sorted(range(len(best)), key=lambda one: (-sizes[one], tuple(best[one])))
    number = {old: new for new, old in enumerate(order, start=1)}
    return [f"inferred-{number[int(one)]:02d}" for one in member]


def read_modalities(path: str | Path) -> dict[str, str]:
    """Read what the user knows: a CSV with the columns ``stem`` and ``modality``.

    Returns
    -------
    dict of str to str
        Modality of each stem; rows with an empty modality are left out.

    Raises
    ------
    CellsegError
        If the file is missing, lacks a column, or names a stem twice.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            if not {"stem", "modality"} <= set(reader.fieldnames or ()):
                raise CellsegError(f"{path}: wanted the columns 'stem' and 'modality' in its first line")
            rows = [(reader.line_num, row["stem"] or "", row["modality"] or "") for row in reader]
    except FileNotFoundError:
        raise CellsegError(f"{path}: no such file of modalities") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CellsegError(f"{path}: cannot be read as CSV ({error})") from error
    known: dict[str, str] = {}
    for line, stem, modality in rows:
        if stem in known:
            raise CellsegError(f"{path}:{line}: '{stem}' is listed twice")
        if modality:
            known[stem] = modality
    return known


def _three(image: NDArray[Any]) -> NDArray[np.float64]:
    """Three channels as the network gets them: grey copied, an empty third, no alpha; NaN and infinities are 0."""
    image = np.nan_to_num(image.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 2:
        return np.concatenate([image, np.zeros_like(image[..., :1])], axis=2)
    return image[..., :3]


def _detail(grey: NDArray[np.float64]) -> list[float]:
    window = np.outer(np.hanning(grey.shape[0] + 2)[1:-1], np.hanning(grey.shape[1] + 2)[1:-1])
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.rfftfreq(grey.shape[1])[None])
    bands = [power[(radius > low) & (radius <= high)].sum() for low, high in itertools.pairwise(_BANDS)]
    total = sum(bands)
    return [float(np.log10(max(band / total, 1e-4))) if total > 0 else 0.0 for band in bands]
