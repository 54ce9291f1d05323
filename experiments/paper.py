"""Run the configurations that need the full data sets, and score them by the rules of those sets: ``make paper``.

Of every run file in ``paper/`` whose data set is prepared: train (resumes), score its evaluation sets, and for LIVECell
add the COCO AP of the official annotation files, of all cell lines and of each, to ``summary.json``. Without the data
a run is passed over, and its cells in the tables say so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from run_all import RUNS, cellseg, is_scored

from cellseg.config import RunConfig, load_config
from cellseg.core import CellsegError
from cellseg.datasets.livecell import CELL_LINES
from cellseg.evaluate_coco import evaluate_coco
from cellseg.journal import note, read_summary

PAPER = Path(__file__).resolve().parent / "paper"
ANNOTATIONS = Path("data/livecell/annotations")
LABELLED = Path("data/neurips/Training-labeled")
SHOWN = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "afnr")


def main() -> None:
    """Run what can be run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="files in paper/ without their ending; by default all")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    for name in arguments.names or [path.stem for path in sorted(PAPER.glob("*.toml"))]:
        run_one(name, arguments.overrides)


def run_one(name: str, overrides: list[str]) -> Path | None:
    """Train and score one configuration; None where its data set is not prepared."""
    path = PAPER / f"{name}.toml"
    config = load_config(path, overrides)
    if absent := [*missing_files(config), *missing_sets(name)]:
        print(f"{name}: not run, {absent[0]} is not there; make data and make preprocess bring it")
        return None
    folder = RUNS / name / "s0"
    words = [word for override in overrides for word in ("--set", override)]
    cellseg("train", str(path), "--out", str(folder), "--resume", *words)
    if not is_scored(folder):
        rule = ["--rule", "neurips"] if name.startswith("neurips") else []
        cellseg("evaluate", str(folder), *rule)
    if name.startswith("livecell") and "coco" not in read_summary(folder):
        note(folder, {"coco": coco_scores(folder / "predictions" / "test")})
    return folder


def missing_files(config: RunConfig) -> list[str]:
    """Return the files of images that a configuration names and that are not there."""
    data = config.data
    selections = [*data.train, *data.val, *data.evaluate]
    named = [word for one in selections for word in (one.index, one.listed) if word is not None]
    return [name for name in dict.fromkeys(named) if not Path(name).is_file()]


def missing_sets(name: str) -> list[str]:
    """Return what a small sample of the set lacks: a run on it must not pass for one on the set."""
    sign = ANNOTATIONS / "LIVECell" / "livecell_coco_train.json" if name.startswith("livecell") else LABELLED
    return [] if sign.exists() else [str(sign)]


def coco_scores(predictions: Path) -> dict[str, dict[str, float]]:
    """Return COCO scores against the official test file, and against that of every cell line that is there."""
    files = {"all": ANNOTATIONS / "LIVECell" / "livecell_coco_test.json"}
    files |= {line: ANNOTATIONS / "LIVECell_single_cells" / line.lower() / "test.json" for line in CELL_LINES}
    reports = {name: asdict(evaluate_coco(file, predictions).scores) for name, file in files.items() if file.is_file()}
    return {name: {key: float(scores[key]) for key in SHOWN} for name, scores in reports.items()}


if __name__ == "__main__":
    try:
        main()
    except (CellsegError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
