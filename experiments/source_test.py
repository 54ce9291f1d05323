"""How much of the source is lost on images by which nothing was chosen? The 35 DSB2018 test images.

``python experiments/source_test.py n5_rule n0_rule`` scores the finished runs of these names, all their seeds, and the
shipped teacher, as ``cellseg predict`` reads them; without a name the tables are only written again from what is kept.
The rows of the comparison tables measure the source on the validation images instead, by which the teacher, its mixture
its rule for cells and settings of ours were chosen. No run is chosen by these scores.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pandas as pd
from score_teacher import ROOT, index_of, segmented

from cellseg.config import Selection
from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.metrics.scores import image_values, write_scores
from cellseg.metrics.statistics import compare
from cellseg.predict import load
from cellseg.report.runs import seed_folders
from cellseg.weights import TEACHER

RUNS = ROOT / "experiments" / "runs"
OUT = ROOT / "experiments" / "results" / "source_test"


def main() -> None:
    """Score what is named and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="*", help="names of finished runs")
    names = parser.parse_args().run
    path = OUT.with_suffix(".csv")
    kept = pd.read_csv(path) if path.exists() else pd.DataFrame()
    todo = [(TEACHER, 0, TEACHER)] if names and kept.empty else []
    todo += [(name, int(folder.name[1:]), str(folder)) for name in names for folder in seed_folders(RUNS / name)]
    for name, seed, weights in todo:
        new = scored(weights).assign(run=name, seed=seed)
        old = kept if kept.empty else kept[(kept["run"] != name) | (kept["seed"] != seed)]
        kept = pd.concat([old, new[["run", "seed", "image", "group", "f1_50"]]], ignore_index=True)
        write_scores(kept, path)
    if kept.empty:
        raise CellsegError(f"{path.name}: nothing is scored yet; name finished runs")
    write_text(OUT.with_suffix(".md"), "\n".join(lines_of(kept)) + "\n")
    print(OUT.with_suffix(".md").read_text(encoding="utf-8"))


def scored(weights: str) -> pd.DataFrame:
    """Segment and score the test images; return group and F1@.5 of each."""
    scores = segmented(Selection(index=str(index_of("dsb2018")), split="test"), load(weights))
    groups = scores.drop_duplicates("image").set_index("image")["group"]
    return pd.DataFrame({"group": groups, "f1_50": image_values(scores, "f1", (0.5,))}).reset_index()


def lines_of(kept: pd.DataFrame) -> list[str]:
    """Return the table as lines of Markdown, the runs as they were scored, the teacher first."""
    runs = {str(run): part for run, part in kept.groupby("run", sort=False)}
    before = matrix(runs[TEACHER])
    groups = runs[TEACHER]["group"].value_counts()
    heads = ["run", "seeds", "F1@.5", *(f"{group}, {count} images" for group, count in groups.items())]
    lines = ["# What is lost of the source, on test images", ""]
    lines += [f"| {' | '.join([*heads, 'against the teacher (95 %)'])} |", f"|---|{'--:|' * len(heads)}"]
    lines += [row_of(run, part, before) for run, part in runs.items()]
    note = f"""
- {before.shape[1]} images, dsb2018 test, in default settings: one view, by the rule for cells that the weights carry.
- No run, and nothing of the teacher, was chosen by these images. Paired bootstrap over seeds, then images.
- Made by `python experiments/source_test.py`."""
    return [*lines, *note.split("\n")]


def matrix(part: pd.DataFrame) -> Any:
    """Return F1@.5 of a run, (seeds, images), images in order of their names."""
    return part.pivot_table(index="seed", columns="image", values="f1_50").to_numpy()


def row_of(run: str, part: pd.DataFrame, before: Any) -> str:
    """Return the line of a run."""
    scores = matrix(part)
    means = [scores.mean(), *part.groupby("group")["f1_50"].mean()[part["group"].value_counts().index]]
    found = compare(scores, before)
    change = "" if run == TEACHER else f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    return f"| {run} | {len(scores)} | {' | '.join(f'{mean:.3f}' for mean in means)} | {change} |"


if __name__ == "__main__":
    try:
        main()
    except CellsegError as error:
        sys.exit(f"error: {error}")
