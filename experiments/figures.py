"""Draw the figures of the experiments from the committed CSVs: ``make figures``.

``results/frontier.png``: target F1 against source F1, along the strength of L2-SP, the share of WiSE-FT, the share of
replay, what labels first adds, and the length of training. ``results/steps.png``: distance from the start and F1 over
steps, of the runs without labels. What was not run is left out of a picture; one without a point is not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from cellseg.files import atomic_path

mpl.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"
TARGET, SOURCE = "target F1@.5", "source F1@.5"
START, PLAIN = "Zero-shot: the teacher", "Plain fine-tuning"
FRONTIER = {
    "L2-SP, α": [(PLAIN, ""), *((f"L2-SP, α = {alpha}", alpha) for alpha in (".001", ".01", ".1"))],
    "WiSE-FT, λ": [
        (START, "teacher"),
        *((f"WiSE-FT, λ = {share}", share) for share in (".25", ".5", ".75")),
        (PLAIN, ""),
    ],
    "replay, share": [(PLAIN, "plain fine-tuning"), ("Replay, 10 %", ".1"), ("Replay, 50 %", ".5")],
    "replay of made-up images, share": [(PLAIN, ""), ("Replay of made-up images, 30 %", ".3")],
    "labels first": [
        ("Replay, 20 %, 700 steps", "none unlabelled"),
        ("Ours, labels first, 700 steps", "ours"),
        ("… six views", "six views"),
    ],
    "labels first, the teacher's rule for cells": [
        ("Labels first, the same rule, six views", "six views"),
        ("Labels first, the same rule, 700 steps", "20 % replayed"),
        ("WiSE-FT, λ = .75, of labels first", "λ = .75"),
        ("Zero-shot, the teacher's rule for cells", "its rule"),
    ],
    "steps": [(START, ""), *((f"Ended after {n} steps", str(n)) for n in (50, 100, 200)), (PLAIN, "")],
}
"""Of every line of the frontier the rows of ``rows_five`` in order, and what is written beside each, once a point."""

STEPS = {
    "n0_mixed": "ours",
    "n0_pseudo_replay": "pseudo-labels + replay",
    "n0_l2sp": "ours, L2-SP for replay",
    "n0_mixed_alone": "nothing that holds",
    "livecell_mixed": "case (a): ours",
    "livecell_selfadapt": "case (a): published recipe",
    "livecell_held": "case (a): ours with L2-SP",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, told apart by colour-blind readers."""


def main() -> None:
    """Draw what there is to draw."""
    for name, draw in (("frontier", draw_frontier), ("steps", draw_steps)):
        drawn = draw(RESULTS)
        print(f"results/{name}.png" if drawn else f"results/{name}.png: nothing to draw, none of its runs was made")


def frontier_points(results: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Return (source F1, target F1, word) of the rows of every line that were run; lines of one point are left out."""
    path = results / "rows_five.csv"
    table = pd.read_csv(path).set_index("Method") if path.exists() else pd.DataFrame(columns=[TARGET, SOURCE])
    values = table[[TARGET, SOURCE]].apply(pd.to_numeric, errors="coerce").dropna()
    lines = {
        name: [(values.loc[row, SOURCE], values.loc[row, TARGET], word) for row, word in rows if row in values.index]
        for name, rows in FRONTIER.items()
    }
    return {name: points for name, points in lines.items() if len(points) > 1}


def draw_frontier(results: Path) -> bool:
    """Draw the frontier; False where there is nothing."""
    lines = frontier_points(results)
    if not lines:
        return False
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for colour, (name, points) in zip(COLOURS, lines.items(), strict=False):
        source, target, words = zip(*points, strict=True)
        axes.plot(source, target, "o-", color=colour, label=name, markersize=4)
        for x, y, word in zip(source, target, words, strict=True):
            axes.annotate(word, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7, color=colour)
    axes.set(xlabel="source F1@.5 (DSB2018, 64 images)", ylabel="target F1@.5 (LIVECell sample, 8 images)")
    axes.set_title("Five labelled images: what is gained against what is kept (mean of seeds)", fontsize=10)
    axes.margins(x=0.1)
    axes.legend(frameon=False)
    _save(figure, results / "frontier.png")
    return True


def draw_steps(results: Path) -> bool:
    """Draw distance and F1 over steps, a line a seed; False where there is nothing."""
    path = results / "steps.csv"
    log = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["run", "seed", "step", "distance", "val_f1"])
    log = log[log["run"].isin(STEPS)]
    if log.empty:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for colour, run in zip(COLOURS, STEPS, strict=True):
        for seed, part in log[log["run"] == run].groupby("seed"):
            label = STEPS[run] if seed == log.loc[log["run"] == run, "seed"].min() else None
            _line(axes, part, {"color": colour, "label": label, "linewidth": 1})
    axes[0].set(xlabel="step", ylabel="‖w − w⁰‖ / ‖w⁰‖")
    axes[1].set(xlabel="step", ylabel="F1@.5 on labelled target images")
    axes[1].set_title("of images that decide nothing", fontsize=10)
    axes[0].legend(frameon=False, fontsize=7)
    _save(figure, results / "steps.png")
    return True


def _line(axes: Sequence[Any], part: pd.DataFrame, style: dict[str, Any]) -> None:
    for place, column in enumerate(("distance", "val_f1")):
        known = part.dropna(subset=[column])
        axes[place].plot(known["step"], known[column], **style)


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
