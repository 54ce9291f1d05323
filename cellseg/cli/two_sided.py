"""Both sides of an adaptation in a terminal of 80 columns: what it did on the way, what it gained and what it lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli.screen import plain_table

if TYPE_CHECKING:
    from rich.console import Console

    from cellseg.report.runs import Method

CURVES = ("loss", "consistency", "flips", "scales", "cycle", "confidence", "consensus", "cells", "val_f1", "distance")
"""Numbers of the log that are drawn, where they are there."""

MOST_LOST = 3
"""Images named of each set."""


def show_adaptation(folder: Path, *, to_stderr: bool = False) -> None:
    """Print what an adaptation did and, where start and result were scored, what it gained and lost.

    The decision comes last, where it is seen. What the run did not write down is left out.
    """
    from rich.console import Console

    from cellseg.report.runs import Method, list_evaluations, read_folder
    from cellseg.report.start import name_of, with_start
    from cellseg.report.words import say_decisions

    run = read_folder(folder, scored=False)
    methods = with_start([Method(run.name, (run,))])
    console = Console(stderr=to_stderr, highlight=False)
    console.print(f"\n{folder}, adapted from {name_of(run.start or '')}", soft_wrap=True, markup=False)
    _show_curves(console, methods[-1])
    _show_looks(console, methods[-1])
    _show_distance(console, methods[-1])
    if len(methods) > 1 and (names := list_evaluations(methods)):
        _show_gains(console, methods, names)
        _show_losses(console, methods, names)
    for decision in say_decisions(methods[-1]):
        console.print(f"\n{decision}.", markup=False, soft_wrap=True)


def _show_curves(console: Console, method: Method) -> None:
    from cellseg.report.curves import plain, sparkline
    from cellseg.report.runs import log_series

    drawn = [(name, series) for name in CURVES if len(series := log_series(method.first, name)) > 1]
    if not drawn:
        return
    steps = max(series[-1][0] for _, series in drawn)
    console.print(f"\nover {steps:,.0f} steps", markup=False)
    for name, series in drawn:
        values = [value for _, value in series]
        curve = sparkline(values) if console.encoding.startswith("utf") else "to"
        ends = f"{plain(values[0]):>8} {curve:<24} {plain(values[-1])}"
        console.print(f"  {name:<12}{ends}", markup=False)


def _show_looks(console: Console, method: Method) -> None:
    from cellseg.report.looks import compare_looks, judge_criteria

    found = compare_looks(method)
    if not found:
        return
    trust = judge_criteria(method)
    shown = plain_table()
    shown.add_column("without labels", no_wrap=True)
    for header in ("start", "handed out", *(["Spearman with\nvalidation F1", "cost of\nits choice"] if trust else [])):
        shown.add_column(header, justify="right", no_wrap=True)
    for row in found:
        figures = [f"{value:,.0f}" if row.key == "cells" else f"{value:.3f}" for value in (row.start, row.end)]
        known = trust.get(row.key)
        figures += [f"{known.rho:.2f}", f"{known.cost:.3f}"] if known else []
        shown.add_row(f"{row.key}{' (decided)' if row.decided else ''}", *figures)
    console.print(shown)


def _show_distance(console: Console, method: Method) -> None:
    from cellseg.report.distances import furthest, measure_distance

    distance = measure_distance(method.first)
    if distance is None:
        return
    layers = ", ".join(f"{name} {value:.3f}" for name, value in furthest(distance) if value > 0)
    console.print(
        f"distance from the start: {distance.whole:.3f} in all" + (f"; furthest: {layers}" if layers else ""),
        markup=False,
    )


def _show_gains(console: Console, methods: Sequence[Method], names: Sequence[str]) -> None:
    from cellseg.report.changes import MEASURES, measure_change

    shown = plain_table()
    shown.add_column("set", overflow="fold", min_width=5)
    shown.add_column("mean", no_wrap=True)
    for header in ("before\n95 % interval", "after\n95 % interval", "change\n95 % interval"):
        shown.add_column(header, justify="right", no_wrap=True)
    sizes, uncompared = [], []
    for name in names:
        found = [change for m in MEASURES if (change := measure_change(methods[0], methods[-1], name, m)) is not None]
        if not found:
            uncompared.append(name)
            continue
        sizes.append(f"{found[0].n_images:,} of {name}")
        for place, one in enumerate(found):
            moved = one.difference
            figures = [
                _with_spread(mean, *spread) for mean, spread in zip((one.before, one.after), one.spreads, strict=True)
            ]
            figures.append(_with_spread(moved.mean, moved.low, moved.high, "+z"))
            shown.add_row("" if place else name, one.measure, *figures, end_section=one is found[-1])
    console.print(f"\ngained and lost against {methods[0].name}; images: {', '.join(sizes) or 'none'}", markup=False)
    console.print(shown)
    if uncompared:
        console.print(f"* not comparable (other images, truth or rule): {', '.join(uncompared)}", markup=False)


def _with_spread(value: float, low: float, high: float, sign: str = "") -> str:
    spread = "one image: none" if math.isnan(low) else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return f"{value:{sign}.3f}\n{spread}"


def _show_losses(console: Console, methods: Sequence[Method], names: Sequence[str]) -> None:
    from cellseg.report.changes import list_losses

    losses = [loss for name in names for loss in list_losses(methods, name, MOST_LOST)]
    if not losses:
        console.print("no image lost F1@0.5", markup=False)
        return
    console.print("images that lost most F1@0.5", markup=False)
    for loss in losses:
        change = f"{loss.before:.3f} to {loss.after:.3f}"
        console.print(f"  {change}  {loss.evaluation}: {loss.image}", markup=False, soft_wrap=True)
