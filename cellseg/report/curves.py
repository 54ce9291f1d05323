"""Curves and dots of the page as fractions of their axes: the page stretches them to whatever width there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cellseg.report.looks import CRITERIA, SHOWN
from cellseg.report.runs import Method, log_series
from cellseg.report.words import number

QUANTITIES = (
    ("Loss", ("loss",), "What training lowers; each run on its own images.", None),
    ("Validation F1@0.5", ("val_f1",), "Of the weights that would be handed out.", 1.0),
    ("Distance from the start", ("distance", "l2sp_distance"), "‖w − w⁰‖ / ‖w⁰‖ of the weights that learn.", None),
    ("Consistency loss", ("consistency",), "Student against teacher on unlabelled images.", None),
    *((f"Criterion {name}", (name,), f"{SHOWN[name]}.", 1.0) for name in CRITERIA),
    ("Cells", ("cells",), f"{SHOWN['cells']}.", None),
)
"""Heading, keys of the log of which the first present is drawn, explanation, and the top of the axis where it is
fixed."""

MAX_POINTS = 300
"""Longer curves are averaged in as many bins."""


def make_charts(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Return the charts for which at least one run logged two values or more.

    Returns
    -------
    list of dict
        ``title``, ``about``, ``top`` and ``middle`` (labels of the axis, which starts at 0), ``steps`` (its length),
        ``lines`` of ``method`` and ``path`` (SVG path data in a square of 100, y down), ``marks`` of ``method`` and
        ``x`` (the step handed out), ``ends`` of ``method``, ``name`` and ``last`` (the last value, a mean over
        seeds), and ``spoken`` for those who cannot see it.
    """
    charts = []
    for title, keys, about, top in QUANTITIES:
        curves = []
        for place, method in enumerate(methods):
            for run in method.runs:
                series = next((found for key in keys if len(found := log_series(run, key)) > 1), None)
                if series:
                    curves.append((place, run.seed, method.name, series))
        if curves:
            chart = _chart(curves, title, top)
            steps = max(series[-1][0] for _, _, _, series in curves)
            charts.append({"title": title, "about": about, "marks": _marks(methods, steps), **chart})
    return charts


def _marks(methods: Sequence[Method], steps: float) -> list[dict[str, Any]]:
    """Mark the step that each adaptation handed out, where it is known."""
    chosen = [
        (place, run.summary.get("chosen_step"))
        for place, method in enumerate(methods)
        for run in method.runs
        if "decision" in run.summary
    ]
    found = dict.fromkeys((place, step) for place, step in chosen if isinstance(step, int) and 0 <= step <= steps)
    return [{"method": place, "x": f"{100 * step / steps:.4g}", "step": step} for place, step in found]


def _chart(
    curves: Sequence[tuple[int, int | None, str, list[tuple[float, float]]]], title: str, top: float | None
) -> dict[str, Any]:
    steps = max(series[-1][0] for _, _, _, series in curves)
    highest = max(value for _, _, _, series in curves for _, value in series)
    top = top or round_up(highest)
    lines, spoken = [], []
    last: dict[tuple[int, str], list[float]] = {}
    for place, seed, name, series in curves:
        lines.append({"method": place, "path": draw_path([(x / steps, y / top) for x, y in thin_out(series)])})
        last.setdefault((place, name), []).append(series[-1][1])
        spoken.append(
            f"{name}{'' if seed is None else f' seed {seed}'} from {plain(series[0][1])} at step {series[0][0]:g} "
            f"to {plain(series[-1][1])} at step {series[-1][0]:g}"
        )
    return {
        "top": _tick(top),
        "middle": _tick(top / 2),
        "steps": f"{steps:,g}",
        "lines": lines,
        "ends": [
            {"method": place, "name": name, "last": plain(sum(values) / len(values)), "seeds": len(values)}
            for (place, name), values in last.items()
        ],
        "spoken": f"{title}: {'; '.join(spoken)}.",
    }


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plain(value: float) -> str:
    """Write a number with three digits or so: scores with three decimals, others with two, large ones with none."""
    return number(value) if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def round_up(value: float) -> float:
    """Return the next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten that is not below; 1 for nothing positive.

    Examples
    --------
    >>> round_up(2.6), round_up(0.17), round_up(0)
    (3.0, 0.2, 1.0)
    """
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(
        next(f"{step * power:.3g}" for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))
    )


def thin_out(series: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Average a long series in ``most`` bins of equally many points; a short one is returned as it is."""
    if len(series) <= most:
        return list(series)
    bins = np.array_split(np.asarray(series, np.float64), most)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in bins]


def draw_path(points: Sequence[tuple[float, float]]) -> str:
    """Return SVG path data in a square of 100 for points in the unit square, y up; what lies outside is clipped."""
    shown = [(100 * x, 100 * (1 - min(max(y, 0.0), 1.0))) for x, y in points]
    return "M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in shown)


def place_dots(values: Sequence[float]) -> list[tuple[str, str]]:
    """Place one dot for each value on an axis from 0 to 1, close ones above and below each other.

    Parameters
    ----------
    values : sequence of float in [0, 1]
        Scores.

    Returns
    -------
    list of (str, str)
        Percent from the left, and pixels below the middle of the row.

    Examples
    --------
    >>> place_dots([0.5, 0.5, 0.9])
    [('50.0%', '0'), ('50.0%', '-5'), ('90.0%', '0')]
    """
    taken: dict[int, int] = {}
    dots = []
    for value in sorted(values):
        column = round(50 * value)
        count = taken[column] = taken.get(column, 0) + 1
        level = min(count // 2, 4) * (-1 if count % 2 == 0 else 1)
        dots.append((f"{100 * value:.1f}%", str(5 * level)))
    return dots


def draw_bars(values: Sequence[Sequence[float | None]]) -> list[dict[str, Any]]:
    """Place bars side by side: for every layer one of each method, in a square of 100, y down.

    Parameters
    ----------
    values : sequence of sequences
        For each layer the value of each method, None where it has none.

    Returns
    -------
    list of dict
        ``layer`` and ``method`` (places), ``x``, ``y``, ``width`` and ``height``; the highest bar is 100.

    Examples
    --------
    >>> [(bar["x"], bar["y"], bar["width"]) for bar in draw_bars([[0.5], [1.0]])]
    [('5', '50', '40'), ('55', '0', '40')]
    """
    top = max((value for layer in values for value in layer if value is not None), default=0.0) or 1.0
    slot = 100 / max(1, len(values))
    bars = []
    for place, layer in enumerate(values):
        width = 0.8 * slot / max(1, len(layer))
        for method, value in enumerate(layer):
            if value is not None:
                height = 100 * value / top
                x = (place + 0.1) * slot + method * width
                sizes = {"x": x, "y": 100 - height, "width": width, "height": height}
                bars.append({"layer": place, "method": method} | {key: f"{size:.4g}" for key, size in sizes.items()})
    return bars


LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw a curve in one line of text, from its lowest value to its highest; empty without values.

    Examples
    --------
    >>> sparkline([0, 1, 2, 7])
    '▁▂▃█'
    """
    shown = [value for _, value in thin_out([(0.0, float(value)) for value in values], width)]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    size = (high - low) or 1.0
    return "".join(LEVELS[round((value - low) / size * (len(LEVELS) - 1))] for value in shown)
