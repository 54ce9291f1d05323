"""List what every run of the adaptation tables gained or lost in target AP@.5 against its start.

Written to ``results/never_worse.*`` from what is archived, the worst first. A table takes part if a column of it is the
ratio of the target's AP to that of a row: the start. Then, over all targets, the ratio of the mean AP@.5 after our
default without labels to that before.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from archive import RESULTS, TABLES, unpack

from cellseg.files import write_text
from cellseg.metrics.scores import read_scores, write_scores
from cellseg.metrics.statistics import score_matrix
from cellseg.tables import Row, read_table

OUT = RESULTS / "never_worse"
DEFAULTS = ("livecell_mixed", "seen_mixed", "stained_mixed")
SHIPPED = ("n0_mixed", "n0_rule")
"""Our default without labels: in the three cases; from the shipped teacher, as first run, and by its rule for cells."""
COLUMNS = ["table", "run", "seed", "images", "before", "after", "change", "chosen_step"]


def main() -> None:
    """Write the list as CSV and Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(RESULTS, Path(folder))
        found = [row for table in sorted(TABLES.glob("*.toml")) for row in changes(table, Path(folder))]
    frame = pd.DataFrame(found, columns=COLUMNS).sort_values("change", kind="stable")
    write_scores(frame, OUT.with_suffix(".csv"))
    write_text(OUT.with_suffix(".md"), "\n".join([*lines_of(frame), "", *gain_lines(frame)]) + "\n")
    print(OUT.with_suffix(".md").read_text(encoding="utf-8"))


def changes(table: Path, runs: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each seed of each scored run of a table."""
    config = read_table(table)
    rows = {row.name: row for row in config.row}
    starts = {column.ratio_to for column in config.column if column.scores == "target" and column.metric == "ap"}
    for named in starts - {None}:
        for row in config.row:
            start = rows[row.before or str(named)]
            before = [mean_ap(folder)[0] for folder in folders_of(start, runs)]
            for folder in folders_of(row, runs) if before and row.name != start.name and not row.start else ():
                after, images = mean_ap(folder)
                change = after - sum(before) / len(before)
                step = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("chosen_step")
                names = {"table": table.stem, "run": row.run, "seed": int(folder.name[1:]), "images": images}
                yield names | {"before": after - change, "after": after, "change": change, "chosen_step": step}


def folders_of(row: Row, runs: Path) -> list[Path]:
    """Return the scored folders of a row, those of its start where it shows that."""
    folders = sorted((runs / row.run).glob("s*/start" if row.start else "s*"))
    return [folder for folder in folders if (folder / "scores" / "target.csv").exists()]


def mean_ap(folder: Path) -> tuple[float, int]:
    """Return the mean AP@.5 on the target and the number of images."""
    scores = score_matrix([read_scores(folder / "scores" / "target.csv")], "ap", (0.5,))
    return float(scores.mean()), scores.shape[1]


def gain_lines(frame: pd.DataFrame) -> list[str]:
    """Return the gains over all targets as lines of Markdown: of a run it is the mean of its seeds."""
    lines = ["## Over all targets, without labels", "", "Mean AP@.5 over the targets before, after, and the ratio.", ""]
    lines += ["| runs | before | after | ratio |", "| --- | --: | --: | --: |"]
    means = frame.groupby("run")[["before", "after"]].mean()
    for shipped in SHIPPED:
        names = [*DEFAULTS, shipped]
        before, after = means.loc[names].mean() if set(names) <= set(means.index) else (math.nan, math.nan)
        lines.append(f"| {', '.join(names)} | {before:.3f} | {after:.3f} | {after / before:.3f} |")
    return lines


def lines_of(frame: pd.DataFrame) -> list[str]:
    """Return the list as lines of Markdown."""
    lines = ["# What each run gained or lost against its start: target AP@.5", ""]
    lines += ["| table | run | seed | images | before | after | change | chosen step |"]
    lines += ["| --- | --- | --: | --: | --: | --: | --: | --: |"]
    for row in frame.itertuples():
        lines.append(
            f"| {row.table} | {row.run} | {row.seed} | {row.images} | {row.before:.3f} | {row.after:.3f} "
            f"| {row.change:+.3f} | {row.chosen_step} |"
        )
    return lines


if __name__ == "__main__":
    main()
