"""What scores and comparisons look like: tables for a terminal of 80 columns or more, and JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellseg.cli.app import say

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

SPANS = {"_50_90": ".5:.9", "_50_95": ".5:.95"}
"""Summary columns of means over thresholds that are shown, the first that is there."""

MOST_PROBLEMS = 20
"""Lines of unusable predictions that are printed."""

MORE_THRESHOLDS = 2
"""Columns of further thresholds that fit beside those of the first."""


def show_scores(scores: pd.DataFrame, title: str, by: str = "group") -> None:
    """Print a row per group and one of all images, with mean, median and pooled F1 side by side."""
    from rich.console import Console

    from cellseg.metrics.scores import summarize, summarize_thresholds

    summary = summarize(scores, by)
    steps = sorted(scores["threshold"].unique())
    first = 0.5 if 0.5 in steps else steps[0]
    span = next((suffix for suffix in SPANS if f"f1_mean{suffix}" in summary.columns), None)
    more = [] if span else [step for step in steps if step != first][:MORE_THRESHOLDS]
    at = summarize_thresholds(scores[scores["threshold"].isin([first, *more])], by)
    by_step = {step: rows.to_dict("records") for step, rows in at.groupby("threshold")}
    shown = plain_table()
    shown.add_column(by, overflow="fold", min_width=5)
    headers = ["images", "true\ncells", *(f"F1@{first:g}\n{name}" for name in ("mean", "median", "pooled"))]
    headers += [f"F1@{SPANS[span]}\nmean"] if span else [f"F1@{step:g}\nmean" for step in more]
    for header in [*headers, f"AP@{first:g}\nmean", f"PQ@{first:g}\nmean"]:
        shown.add_column(header, justify="right", no_wrap=True)
    for index, row in enumerate(summary.to_dict("records")):
        here = by_step[first][index]
        values = [here[f"f1_{statistic}"] for statistic in ("mean", "median", "pooled")]
        values += [row[f"f1_mean{span}"]] if span else [by_step[step][index]["f1_mean"] for step in more]
        values += [here["ap_mean"], here["pq_mean"]]
        if 0 < index == len(summary) - 1:
            shown.add_section()
        shown.add_row(row[by], f"{row['n_images']:,}", f"{row['n_true']:,}", *(f"{value:.3f}" for value in values))
    console = Console(highlight=False)
    console.print(f"\n{title}", soft_wrap=True, markup=False)
    console.print(shown)
    console.print(_legend(str(scores["rule"].iloc[0]), first, span), markup=False)


def _legend(rule: str, threshold: float, span: str | None) -> str:
    text = (
        f"1 is perfect. @{threshold:g}: a cell counts as found if a prediction overlaps it with IoU >= {threshold:g}"
        + ("; @.5:.9: mean over IoU 0.5, 0.55 … 0.9. " if span == "_50_90" else ". ")
        + "mean, median: over images; pooled: all cells counted together. "
        + "AP: TP / (TP + FP + FN), not COCO's. PQ: F1 times the mean IoU of the cells found. "
    )
    rules = {
        "strict": "Rule strict: missing or unreadable predictions score 0, two empty images 1.",
        "neurips": "Rule neurips: cells within 2 px of the border are left out, as in the NeurIPS 2022 challenge.",
    }
    return text + rules.get(rule, "")


def say_problems(scores: pd.DataFrame) -> None:
    """Name the images whose prediction could not be used, the first few, on stderr."""
    from cellseg.evaluate import list_problems

    problems = list_problems(scores)
    for line in problems[:MOST_PROBLEMS]:
        say(line)
    if len(problems) > MOST_PROBLEMS:
        say(f"… and {len(problems) - MOST_PROBLEMS} more; --out (column status) and --json name them all")


def scores_json(scores: pd.DataFrame, facts: Mapping[str, Any], by: str = "group") -> str:
    """Return the summary of scores as JSON: facts, rule, thresholds, rows per group and per threshold, problems."""
    from cellseg.metrics.scores import GOOD_STATUS, summarize, summarize_thresholds

    first = scores.drop_duplicates("image")
    bad = first[~first["status"].isin(GOOD_STATUS)]
    content = {
        **facts,
        "rule": str(scores["rule"].iloc[0]),
        "by": by,
        "thresholds": sorted(scores["threshold"].unique()),
        "groups": summarize(scores, by).drop(columns="rule").to_dict("records"),
        "by_threshold": summarize_thresholds(scores, by).to_dict("records"),
        "problems": bad[["image", "status"]].to_dict("records"),
    }
    return as_json(content)


def as_json(content: Any) -> str:
    """Return JSON with null for what is not a number."""
    return json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_comparison(comparison: pd.DataFrame, title: str, notes: Sequence[str]) -> None:
    """Print a block per method: means, difference to the baseline with its 95 % interval, and p-values."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"\n{title}", soft_wrap=True, markup=False)
    count = comparison["method"].nunique()
    for method, rows in comparison.groupby("method", sort=False):
        console.print(f"\n{method} minus {rows['baseline'].iloc[0]} (the baseline)", markup=False)
        shown = plain_table()
        shown.add_column("group", overflow="fold", min_width=5)
        headers = ["images", "baseline\nmean", "method\nmean", "differ-\nence", "95 % interval"]
        for header in [*headers, "p", f"p Holm\n(of {count})"]:
            shown.add_column(header, justify="right", no_wrap=True)
        for row in rows.to_dict("records"):
            if row["group"] == "all" and len(rows) > 1:
                shown.add_section()
            interval = "–" if math.isnan(row["low"]) else f"{row['low']:+z.3f} to {row['high']:+z.3f}"
            figures = (f"{row['mean_baseline']:.3f}", f"{row['mean']:.3f}", f"{row['difference']:+z.3f}", interval)
            shown.add_row(row["group"], f"{row['n_images']:,}", *figures, *_p_values((row["p_value"], row["p_holm"])))
        console.print(shown)
    for note in notes:
        console.print(f"* {note}", markup=False)


def _p_values(values: Iterable[float]) -> list[str]:
    return ["–" if math.isnan(value) else f"{value:.4f}" for value in values]


def plain_table() -> Table:
    """Return an empty table with a line under its head and no borders."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
