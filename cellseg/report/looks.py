"""What the label-free criteria said while a run adapted, and how far they can be believed.

A look is a line of the log that holds the criteria: of the weights that would be handed out at that step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cellseg.report.runs import Method, Run

CRITERIA = ("flips", "scales", "cycle", "confidence", "consensus")
"""Those of :data:`cellseg.label_free.criteria.CRITERIA`, named here so that reading a log loads no network."""

SHOWN = {
    "flips": "Cells found again in flipped images",
    "scales": "Cells found again a little finer and coarser",
    "cycle": "Maps like those of the cells decoded from them",
    "confidence": "Mean confidence inside cells; unsafe alone",
    "consensus": "Geometric mean of flips, scales and cycle",
    "cells": "Cells found in the parts of images that are watched",
    "val_f1": "F1@0.5 on validation images",
}
"""What a look can hold, in words."""


@dataclass(frozen=True)
class Comparison:
    """One number of the looks at the start and at what was handed out, as means over the seeds that have both.

    Attributes
    ----------
    key, about : str
        Name in the log, and what it is.
    start, end : float
        Of the starting weights and of those handed out.
    decided : bool
        Whether this is what chose the weights.
    """

    key: str
    about: str
    start: float
    end: float
    decided: bool


def list_looks(run: Run) -> list[Mapping[str, Any]]:
    """Return the lines of a run's log that hold label-free criteria, in order."""
    return [line for line in run.log if any(_is_number(line.get(name)) for name in CRITERIA)]


def compare_looks(method: Method) -> list[Comparison]:
    """Compare what the looks found at the start and at the weights handed out; empty without looks of both."""
    pairs = [pair for run in method.runs if (pair := _first_and_chosen(run)) is not None]
    decided = {_decided_by(run) for run in method.runs}
    found = []
    for key, about in SHOWN.items():
        known = [(first[key], last[key]) for first, last in pairs if _is_number(first.get(key), last.get(key))]
        if known:
            start, end = (sum(values) / len(known) for values in zip(*known, strict=True))
            found.append(Comparison(key, about, start, end, decided == {key}))
    return found


def _first_and_chosen(run: Run) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return the looks at step 0 and at the step handed out; of mixed weights the judge's last look."""
    looks = {line.get("step"): line for line in list_looks(run)}
    mixed = run.summary.get("wise")
    last = mixed if isinstance(mixed, Mapping) else looks.get(run.summary.get("chosen_step"))
    return (looks[0], last) if 0 in looks and last is not None else None


def _decided_by(run: Run) -> str:
    by = str(run.summary.get("chosen_by", ""))
    found = re.match(r"criterion (\w+)", by)
    return found[1] if found else "val_f1" if by == "validation F1" else ""


@dataclass(frozen=True)
class Trust:
    """How far a label-free criterion can be believed, where there was a validation F1 beside it.

    Attributes
    ----------
    rho : float
        Spearman's rank correlation over the looks of all seeds.
    cost : float
        Validation F1 lost where the criterion chooses the look of each seed, against the best in hindsight; the mean
        over seeds.
    count : int
        Number of looks.
    """

    rho: float
    cost: float
    count: int


def judge_criteria(method: Method) -> dict[str, Trust]:
    """Judge the criteria of an adaptation by its validation F1.

    Criteria that were not logged beside a validation F1, were looked at fewer than three times or never changed are
    left out, so that an adaptation without ``data.val`` has none.
    """
    per_run = [_known_looks(run) for run in method.runs]
    lines = [line for looks in per_run for line in looks]
    if len(lines) < 3:
        return {}
    from cellseg.label_free.criteria import cost_of_choice, rank_correlations

    costs = [cost_of_choice(looks) for looks in per_run]
    found = {}
    for name, rho in rank_correlations(lines).items():
        known = [cost for run in costs if (cost := run[name]) is not None]
        if rho is not None and known:
            found[name] = Trust(rho, sum(known) / len(known), sum(name in line for line in lines))
    return found


def _known_looks(run: Run) -> list[Mapping[str, Any]]:
    return [line for line in list_looks(run) if _is_number(line.get("val_f1"))]


def make_scatters(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Return a scatter chart for each criterion that has a rank correlation with the validation F1.

    Returns
    -------
    list of dict
        ``title``, ``about``, ``left`` and ``right``, ``low`` and ``high`` (ends of the axes: criterion and F1),
        ``dots`` of ``method``, ``x`` and ``y`` (percent from the left and from the top) and ``handed_out``, ``ranks``
        of ``method``, ``name`` and ``trust`` (:class:`Trust`), and ``spoken``.
    """
    known = [(place, method, judge_criteria(method)) for place, method in enumerate(methods)]
    charts = []
    for name in CRITERIA:
        shown = [(place, method, trust[name]) for place, method, trust in known if name in trust]
        points = [point for place, method, _ in shown for point in _points(place, method, name)]
        if not points:
            continue
        across, up = (_span([point[axis] for point in points]) for axis in (1, 2))
        ranks = [{"method": place, "name": method.name, "trust": trust} for place, method, trust in shown]
        spoken = "; ".join(
            f"{method.name} {trust.rho:.2f} over {trust.count} checkpoints" for _, method, trust in shown
        )
        charts.append(
            {
                "title": name,
                "about": SHOWN[name],
                "left": f"{across[0]:.2f}", "right": f"{across[1]:.2f}", "low": f"{up[0]:.2f}", "high": f"{up[1]:.2f}",
                "dots": [
                    {"method": place, "x": _percent(x, across), "y": _percent(y, up[::-1]), "handed_out": chosen}
                    for place, x, y, chosen in points
                ],
                "ranks": ranks,
                "spoken": f"{name} against validation F1; Spearman's rank correlation: {spoken}.",
            }
        )  # fmt: skip
    return charts


def _points(place: int, method: Method, name: str) -> list[tuple[int, float, float, bool]]:
    """Return method, criterion, F1 and whether the checkpoint was handed out, for every look that holds both."""
    return [
        (place, float(line[name]), float(line["val_f1"]), line.get("step") == run.summary.get("chosen_step"))
        for run in method.runs
        for line in list_looks(run)
        if _is_number(line.get(name), line.get("val_f1"))
    ]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return the multiples of 0.05 around values, at least 0.1 apart."""
    low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
    return (low, high) if high - low > 0.075 else (low, low + 0.1)


def _percent(value: float, ends: tuple[float, float]) -> str:
    return f"{abs(100 * (value - ends[0]) / (ends[1] - ends[0])):.1f}%"


def _is_number(*values: object) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
