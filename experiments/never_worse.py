"""List what every adapted run gained or lost in target AP@.5 against its own start, in ``results/never_worse.*``.

All seeds of all run files of this folder that adapt with images without labels and are scored; the worst comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.metrics.scores import read_scores, write_scores
from cellseg.metrics.statistics import score_matrix

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "results" / "never_worse"


def main() -> None:
    """Write the table as CSV and Markdown."""
    frame = pd.DataFrame(list(rows()), columns=["run", "seed", "images", "before", "after", "change", "chosen_step"])
    frame = frame.sort_values("change", kind="stable")
    write_scores(frame, OUT.with_suffix(".csv"))
    write_text(OUT.with_suffix(".md"), "\n".join(lines_of(frame)) + "\n")
    print(OUT.with_suffix(".md").read_text(encoding="utf-8"))


def rows() -> Iterator[dict[str, Any]]:
    """Yield a row for each scored run that learned from images without labels."""
    for folder in sorted(path.parent for path in ROOT.glob("runs/*/s*/summary.json")):
        run = folder.parent.name
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        init = config["train"]["init"]
        if not (ROOT / f"{run}.toml").exists() or not config["data"]["unlabelled"] or init is None:
            continue
        try:
            after, before = mean_ap(folder), mean_ap(ROOT.parent / init)
        except CellsegError:
            continue  # not scored
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        row = {"run": run, "seed": int(folder.name[1:]), "images": after[1], "before": before[0], "after": after[0]}
        yield row | {"change": after[0] - before[0], "chosen_step": summary["chosen_step"]}


def mean_ap(folder: Path) -> tuple[float, int]:
    """Return the mean AP@.5 of a run on its target and the number of images."""
    scores = score_matrix([read_scores(folder / "scores" / "target.csv")], "ap", (0.5,))
    return float(scores.mean()), scores.shape[1]


def lines_of(frame: pd.DataFrame) -> list[str]:
    """Return the table as lines of Markdown."""
    lines = ["# What each run gained or lost against its start: target AP@.5", ""]
    lines += [
        "| run | seed | images | before | after | change | chosen step |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in frame.itertuples():
        lines.append(
            f"| {row.run} | {row.seed} | {row.images} | {row.before:.3f} | {row.after:.3f} | {row.change:+.3f} "
            f"| {row.chosen_step} |"
        )
    return lines


if __name__ == "__main__":
    main()
