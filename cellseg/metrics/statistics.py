"""Is a difference between two methods more than chance? Paired bootstrap over seeds and images, and Holm.

What it gives up: with one seed the randomness of training is unknown and the interval is about images alone;
with three it is known poorly, and intervals tend to be too short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellseg.core import CellsegError
from cellseg.metrics.scores import image_values

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 1 << 20
"""Resampled weights held at once."""


@dataclass(frozen=True)
class Difference:
    """A mean difference between two methods and how sure it is.

    Attributes
    ----------
    mean : float
        Mean of the first method minus mean of the second, over seeds and images.
    low, high : float
        Percentile interval of the bootstrap.
    p_value : float
        Two-sided bootstrap p-value of "no difference", at least 2 / (draws + 1).
    """

    mean: float
    low: float
    high: float
    p_value: float


def score_matrix(tables: Sequence[pd.DataFrame], metric: str, thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Arrange the scores of the seeds of one method, float64 (seeds, images), images in order of their names.

    Parameters
    ----------
    tables : sequence of DataFrame
        A score table per seed.
    metric, thresholds
        As in :func:`cellseg.metrics.scores.image_values`.

    Raises
    ------
    CellsegError
        If there is no table, or the tables are not over the same images.
    """
    rows = [image_values(table, metric, thresholds).sort_index() for table in tables]
    if not rows or any(not row.index.equals(rows[0].index) for row in rows):
        raise CellsegError("wanted one score table per seed, all over the same images; re-run 'cellseg evaluate'")
    return np.stack([row.to_numpy(dtype=np.float64) for row in rows])


def compare(
    first: ArrayLike, second: ArrayLike, *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Estimate the mean difference between two methods by a paired bootstrap over seeds, then images.

    Parameters
    ----------
    first, second : float (seeds, images)
        Per-image scores. Columns are the same images in both; rows are the same seeds where both have as many,
        and are resampled apart where they have not (a teacher has one, its students three).
    draws : int
        Bootstrap samples.
    level : float
        Coverage of the interval.
    seed : int
        Seed of the resampling; the same seed gives the same result to the last bit.

    Returns
    -------
    Difference
        Estimate, interval and p-value.

    Raises
    ------
    CellsegError
        If the arrays are not over the same images, are empty or hold NaN.

    Notes
    -----
    Seeds and images are crossed: every seed is scored on the same images. Each draw therefore takes a sample of
    seeds and one sample of images for all of them; resampling images anew for each seed would average away the
    choice of images. Percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13;
    p-value with one added to both counts: Davison and Hinkley, Bootstrap Methods, 1997, eq. 4.11.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise CellsegError(f"wanted scores (seeds, images) over the same images, but got {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise CellsegError("wanted a score for every seed and image, but found NaN")
    if draws < 1 or not 0 < level < 1:
        raise CellsegError(f"wanted at least one draw and a level between 0 and 1, but got {draws} and {level}")
    rng = np.random.default_rng(seed)
    size = max(1, CHUNK // a.shape[1])
    differences = np.concatenate([_draw(rng, a, b, min(size, draws - done)) for done in range(0, draws, size)])
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (draws + 1))
    return Difference(float(a.mean() - b.mean()), float(low), float(high), p_value)


def _draw(rng: np.random.Generator, a: NDArray[np.float64], b: NDArray[np.float64], draws: int) -> NDArray[np.float64]:
    """Return resampled mean differences, float64 (draws,), as sums weighted by how often each item was drawn."""
    images = _weights(rng, a.shape[1], draws)
    seeds = _weights(rng, a.shape[0], draws)
    if a.shape == b.shape:
        resampled: NDArray[np.float64] = (images @ (a - b).T * seeds).sum(1)
        return resampled
    other = _weights(rng, b.shape[0], draws)
    resampled = (images @ a.T * seeds).sum(1) - (images @ b.T * other).sum(1)
    return resampled


def _weights(rng: np.random.Generator, items: int, draws: int) -> NDArray[np.float64]:
    return rng.multinomial(items, np.full(items, 1 / items), size=draws) / items


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of comparisons, keeping the family-wise error (Holm 1979).

    Parameters
    ----------
    p_values : sequence of float in [0, 1]
        One for each comparison declared beforehand.

    Returns
    -------
    list of float
        Adjusted values in the order given: the k-th smallest times (m − k + 1), made monotone, at most 1.

    Raises
    ------
    CellsegError
        If a value is outside [0, 1].

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if not all(0 <= value <= 1 for value in p_values):
        raise CellsegError(f"wanted p-values in [0, 1], but got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
