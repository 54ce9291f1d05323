"""Test the comparisons that ``declared.toml`` names, on the runs that are there, and write ``results/declared.*``.

A comparison whose runs are not scored yet is "not run". Holm's adjustment counts all that were declared.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pandas as pd

from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.metrics.scores import read_scores, write_scores
from cellseg.metrics.statistics import compare, holm, score_matrix

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "results" / "declared"


def main() -> None:
    """Write the table as CSV and Markdown."""
    declared = tomllib.loads((ROOT / "declared.toml").read_text(encoding="utf-8"))["comparison"]
    rows = [row_of(one) for one in declared]
    tested = [row for row in rows if row["p"] is not None]
    waiting = [1.0] * (len(rows) - len(tested))
    for row, adjusted in zip(tested, holm([*(row["p"] for row in tested), *waiting]), strict=False):
        row["p_holm"] = adjusted
    write_scores(pd.DataFrame(rows), OUT.with_suffix(".csv"))
    write_text(OUT.with_suffix(".md"), "\n".join(lines_of(rows)) + "\n")
    print(OUT.with_suffix(".md").read_text(encoding="utf-8"))


def row_of(one: dict[str, Any]) -> dict[str, Any]:
    """Compare two runs over all their seeds by the paired bootstrap."""
    row: dict[str, Any] = {**one, "n_images": None, "seeds": "", "difference": None, "low": None, "high": None}
    row |= {"relative": None, "p": None, "p_holm": None}
    try:
        first, second = (matrix(one[side], one["scores"], one["metric"]) for side in ("first", "second"))
    except CellsegError:
        return row
    found = compare(first, second)
    row |= {"n_images": first.shape[1], "seeds": f"{len(first)} and {len(second)}"}
    row |= {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p_value}
    return row | {"relative": first.mean() / second.mean() if second.mean() else None}


def matrix(run: str, evaluation: str, metric: str) -> Any:
    """Return the scores at IoU 0.5 of all seeds of a run; raises CellsegError where there are none."""
    paths = sorted((ROOT / "runs" / run).glob(f"s*/scores/{evaluation}.csv"))
    return score_matrix([read_scores(path) for path in paths], metric, (0.5,))


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table as lines of Markdown."""
    lines = ["# Declared comparisons", "", "| question | images | seeds | difference (95 %) | ratio | p | p, Holm |"]
    lines += ["| --- | --: | --: | --: | --: | --: | --: |"]
    for row in rows:
        if row["p"] is None:
            lines.append(f"| {row['question']} | not run | | | | | |")
            continue
        metric = {"ap": "AP@.5", "f1": "F1@.5"}[row["metric"]]
        difference = f"{row['difference']:+.3f} {metric} ({row['low']:+.3f} to {row['high']:+.3f})"
        lines.append(
            f"| {row['question']} | {row['n_images']} | {row['seeds']} | {difference} | {row['relative']:.2f} "
            f"| {row['p']:.4f} | {row['p_holm']:.4f} |"
        )
    return [
        *lines,
        "",
        "- Paired bootstrap over seeds, then images, 10,000 draws; with one seed on a side the interval knows nothing "
        "of training's randomness, and with so few images it tends to be too short.",
    ]


if __name__ == "__main__":
    main()
