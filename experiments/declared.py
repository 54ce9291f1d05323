"""Test the comparisons declared here, on the runs that are archived, and write ``results/declared.*``.

A comparison whose runs are not scored yet is "not run". Holm's adjustment counts all that were declared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from archive import RESULTS, unpack

from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.metrics.scores import read_scores, write_scores
from cellseg.metrics.statistics import compare, holm, score_matrix

OUT = RESULTS / "declared"


class Comparison(NamedTuple):
    """Runs compared on an evaluation set, and the question this answers."""

    question: str
    first: str
    second: str
    scores: str
    metric: str


COMPARISONS = (
    Comparison(
        "Does the default raise LIVECell AP@.5 without a LIVECell label?",
        "livecell_mixed",
        "adapt_teacher",
        "target",
        "ap",
    ),
    Comparison(
        "Does it reach more there than the published recipe?",
        "livecell_mixed",
        "livecell_selfadapt",
        "target",
        "ap",
    ),
    Comparison(
        "Does it raise it where the teacher has learned from five annotated images?",
        "seen_mixed",
        "five_replay",
        "target",
        "ap",
    ),
    Comparison(
        "Does it raise AP@.5 on stained images, from a fluorescence teacher?",
        "stained_mixed",
        "adapt_teacher_fluorescence",
        "target",
        "ap",
    ),
    Comparison(
        "With five labelled images, does replay keep more source F1@.5 than plain fine-tuning?",
        "five_replay",
        "five_plain",
        "source",
        "f1",
    ),
)
"""At most five; all else in the tables is descriptive."""


def main() -> None:
    """Write the table as CSV and Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(RESULTS, Path(folder))
        rows = [row_of(one, Path(folder)) for one in COMPARISONS]
    tested = [row for row in rows if row["p"] is not None]
    waiting = [1.0] * (len(rows) - len(tested))
    for row, adjusted in zip(tested, holm([*(row["p"] for row in tested), *waiting]), strict=False):
        row["p_holm"] = adjusted
    write_scores(pd.DataFrame(rows), OUT.with_suffix(".csv"))
    write_text(OUT.with_suffix(".md"), "\n".join(lines_of(rows)) + "\n")
    print(OUT.with_suffix(".md").read_text(encoding="utf-8"))


def row_of(one: Comparison, runs: Path) -> dict[str, Any]:
    """Compare two runs over all their seeds by the paired bootstrap."""
    row: dict[str, Any] = {
        **one._asdict(),
        "n_images": None,
        "seeds": "",
        "difference": None,
        "low": None,
        "high": None,
    }
    row |= {"relative": None, "p": None, "p_holm": None}
    try:
        first, second = (matrix(runs / run, one.scores, one.metric) for run in (one.first, one.second))
    except CellsegError:
        return row
    found = compare(first, second)
    row |= {"n_images": first.shape[1], "seeds": f"{len(first)} and {len(second)}"}
    row |= {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p_value}
    return row | {"relative": first.mean() / second.mean() if second.mean() else None}


def matrix(run: Path, evaluation: str, metric: str) -> Any:
    """Return the scores at IoU 0.5 of all seeds of a run; raises CellsegError where there are none."""
    paths = sorted(run.glob(f"s*/scores/{evaluation}.csv"))
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
