"""What rose and what fell from one method to another: means with intervals, and the images that lost most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellseg.metrics.scores import SPANS, aggregate, image_values
from cellseg.metrics.statistics import Difference, compare, score_matrix
from cellseg.report.runs import Method

if TYPE_CHECKING:
    import pandas as pd

MEASURES: dict[str, tuple[float, ...]] = {"F1@0.5": (0.5,), "F1@[.5:.9]": SPANS["_50_90"]}
"""What both sides of a report show, and the IoU thresholds it is the mean over."""

MEAN_DRAWS = 2000
"""Bootstrap samples for the interval of a mean; a difference gets more."""


@dataclass(frozen=True)
class Change:
    """One evaluation set before and after.

    Attributes
    ----------
    evaluation, method : str
        Name of the set, and of the method that came after.
    n_images : int
        Number of images.
    before, after : float
        Mean over images and seeds.
    difference : Difference
        After minus before, with its 95 % interval (paired bootstrap); NaN for a single image, which has none.
    measure : str
        Which of :data:`MEASURES`.
    spreads : pair of (float, float)
        The 95 % intervals of ``before`` and of ``after``; NaN where there is none.
    """

    evaluation: str
    method: str
    n_images: int
    before: float
    after: float
    difference: Difference
    measure: str = "F1@0.5"
    spreads: tuple[tuple[float, float], tuple[float, float]] = ((math.nan, math.nan), (math.nan, math.nan))

    @property
    def is_settled(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True)
class Loss:
    """An image on which the F1 at IoU 0.5 fell."""

    evaluation: str
    image: str
    before: float
    after: float


def measure_change(before: Method, after: Method, evaluation: str, measure: str = "F1@0.5") -> Change | None:
    """Compare two methods on one set.

    Returns
    -------
    Change or None
        None where they were not scored on the same images by the same rule, or without the thresholds wanted.
    """
    first, second = before.scores(evaluation), after.scores(evaluation)
    wanted = MEASURES[measure]
    if not first or not second or len({_facts(table) for table in [*first, *second]}) > 1:
        return None
    if not all(set(table["threshold"]).issuperset(wanted) for table in [*first, *second]):
        return None
    old, new = (score_matrix(tables, "f1", wanted) for tables in (first, second))
    means = float(old.mean()), float(new.mean())
    if new.shape[1] == 1:
        unknown = Difference(means[1] - means[0], math.nan, math.nan, math.nan)
        return Change(evaluation, after.name, 1, *means, unknown, measure)
    spreads = _interval(old), _interval(new)
    return Change(evaluation, after.name, new.shape[1], *means, compare(new, old), measure, spreads)


def _interval(scores: NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval of a mean: that of its difference to nothing."""
    found = compare(scores, np.zeros_like(scores), draws=MEAN_DRAWS)
    return found.low, found.high


def _facts(scores: pd.DataFrame) -> tuple[tuple[object, ...], ...]:
    images = scores.drop_duplicates("image").sort_values("image")
    return tuple(images[["image", "rule", "n_true"]].itertuples(index=False, name=None))


def mean_f1(method: Method, evaluation: str) -> float:
    """Return the mean over seeds of the mean F1 at IoU 0.5 over images; NaN without scores."""
    values = [aggregate(table, "f1", (0.5,), "mean") for table in method.scores(evaluation)]
    return sum(values) / len(values) if values else math.nan


def list_losses(methods: Sequence[Method], evaluation: str, most: int = 5) -> list[Loss]:
    """List the images whose F1 at IoU 0.5 fell most from the first method to the last, their first seeds compared.

    Parameters
    ----------
    methods : sequence of Method
        Two at least for there to be a loss.
    evaluation : str
        Evaluation set.
    most : int
        How many at most.

    Returns
    -------
    list of Loss
        The largest loss first; images that did not lose are not among them.
    """
    tables = [methods[0].first.scores.get(evaluation), methods[-1].first.scores.get(evaluation)]
    if len(methods) < 2 or tables[0] is None or tables[1] is None:
        return []
    before, after = (image_values(table, "f1", (0.5,)) for table in tables if table is not None)
    known = [str(image) for image in after.index if image in before.index]
    losses = [Loss(evaluation, image, float(before[image]), float(after[image])) for image in known]
    losses.sort(key=lambda loss: (loss.after - loss.before, loss.image))
    return [loss for loss in losses if loss.after < loss.before][:most]
