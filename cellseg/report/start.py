"""What an adaptation started from, as the ``before`` of its report.

The start was scored on the same images either in its own run folder or, by ``cellseg evaluate RUN``, in
``RUN/start``; scores older than its weights or of other images are passed over, never shown. Reads files only: no
network is loaded here.
"""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.config import RunConfig, read_run
from cellseg.core import CellsegError
from cellseg.metrics.scores import read_scores
from cellseg.report.runs import Method, Run, lacks_target, read_folder
from cellseg.weights import TEACHER, find_shipped

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "start"
"""Within a run: scores and predictions of its start on the sets of the run, laid out as in a run folder."""

UNSCORED = "unlabelled"
"""Name of the set of images that are shown where there is nothing to score."""

WEIGHTS = "best.safetensors"


def find_weights(run: Path, init: str) -> Path | None:
    """Find the weights file that a run started from.

    Parameters
    ----------
    run : Path
        Run folder.
    init : str
        Its ``train.init``: a weights file or a run folder, which may have moved together with the run.

    Returns
    -------
    Path or None
        None where it is gone, or is a name that no file has.
    """
    if init == TEACHER:
        return find_shipped(TEACHER)
    named = Path(init)
    beside = run.resolve().parents[min(1, len(run.resolve().parents) - 1)]
    for place in (named, beside / Path(*named.parts[-2:]), beside / Path(*named.parts[-3:])):
        for path in (place, place / WEIGHTS, place / "s0" / WEIGHTS):
            if path.is_file():
                return path
    return None


def is_newer(path: Path, weights: Path | None) -> bool:
    """Whether a file is there and was written after the weights it was made with; None stands for lost weights."""
    if not path.is_file():
        return False
    return weights is None or not weights.is_file() or path.stat().st_mtime >= weights.stat().st_mtime


def find_scores(run: Run, name: str) -> Path | None:
    """Find where the start of a run was scored on an evaluation set of the run.

    Parameters
    ----------
    run : Run
        With scores of the set.
    name : str
        Evaluation set.

    Returns
    -------
    Path or None
        A folder with ``scores/<name>.csv`` of the same images, truth, rule and thresholds: ``start`` within the run,
        or the run that made the starting weights if it predicts by the same settings. None where there is none.
    """
    if run.config is None or run.start is None:
        return None
    weights = find_weights(run.folder, run.start)
    homes = [run.folder / FOLDER]
    if (
        weights is not None
        and weights.name == WEIGHTS
        and _conditions(weights.parent, name) == _conditions_of(run.config, name)
    ):
        homes.append(weights.parent)
    for home in homes:
        table = home / "scores" / f"{name}.csv"
        same = is_newer(table, weights) and _images(home, name) == _images(run.folder, name)
        if same and _are_alike(run.scores[name], table):
            return home
    return None


def _conditions(folder: Path, name: str) -> object:
    try:
        return _conditions_of(read_run(folder / "config.json"), name)
    except CellsegError:
        return None


def _conditions_of(config: RunConfig, name: str) -> object:
    """Return what predictions of a set depend on but weights and images: of the index only where it gives the scale."""
    index = next((chosen.index for chosen in config.data.evaluate if chosen.name == name), None)
    return config.predict, index if config.predict.diameter == "index" else None


def _are_alike(scores: pd.DataFrame, table: Path) -> bool:
    """Whether a table is of the same images, truth, rule and thresholds."""
    columns = ["image", "threshold", "rule", "n_true"]
    try:
        other = read_scores(table)
    except CellsegError:
        return False
    facts = (set(each[columns].itertuples(index=False, name=None)) for each in (scores, other))
    return len(set(map(frozenset, facts))) == 1


def _images(home: Path, name: str) -> dict[str, str] | None:
    """Return the image files that a folder's predictions are of, by id; nobody asks whether they are still there."""
    index = home / "predictions" / name / "index.csv"
    try:
        with index.open(encoding="utf-8", newline="") as handle:
            return {
                row["id"]: os.path.normpath(index.parent.resolve() / row["image"]) for row in csv.DictReader(handle)
            }
    except (OSError, UnicodeDecodeError, KeyError):
        return None


def with_start(methods: list[Method]) -> list[Method]:
    """Put the start before a method that stands alone, if it started from weights that were scored on its images.

    Several methods are left as they are: the first is what the others are compared with. Where nothing is scored,
    the start is there if its predictions are.
    """
    if len(methods) != 1:
        return methods
    found = [start for run in methods[0].runs if (start := _start_of(run)) is not None]
    if len(found) < len(methods[0].runs):
        return methods
    weights = {str(find_weights(run.folder, run.start or "") or run.start) for run in methods[0].runs}
    name = found[0].name if found[0].name != methods[0].name else f"{found[0].name} (start)"
    return [Method(name, tuple(found[:1] if len(weights) == 1 else found)), *methods]


def _start_of(run: Run) -> Run | None:
    """Return the start of a run with its scores on the sets of the run; None without a single one."""
    if run.start is None:
        return None
    known = {name: home for name in run.scores if (home := find_scores(run, name)) is not None}
    if run.config is not None and lacks_target(run.config):
        predictions = run.folder / FOLDER / "predictions" / UNSCORED
        known |= {UNSCORED: run.folder / FOLDER} if predictions.is_dir() else {}
    if not known:
        return None
    weights = find_weights(run.folder, run.start)
    own = _read_own(weights.parent) if weights is not None and weights.name == WEIGHTS else None
    return Run(
        folder=own.folder if own else run.folder / FOLDER,
        name=name_of(run.start),
        seed=own.seed if own else None,
        config=own.config if own else None,
        summary=own.summary if own else {},
        log=(),  # its own training is another story
        scores={
            name: read_scores(home / "scores" / f"{name}.csv") for name, home in known.items() if name in run.scores
        },
        homes=known,
    )


def _read_own(folder: Path) -> Run | None:
    try:
        return read_folder(folder, scored=False)
    except CellsegError:
        return None


def name_of(start: str) -> str:
    """Name weights to start from: the run a seed folder belongs to, else the file or folder.

    Examples
    --------
    >>> name_of("runs/teacher/s0"), name_of("runs/teacher/s0/best.safetensors"), name_of("models/cyto3")
    ('teacher', 'teacher', 'cyto3')
    """
    path = Path(start)
    folder = path.parent if path.suffix else path
    if re.fullmatch(r"s\d+", folder.name) and folder.parent.name:
        return folder.parent.name
    return folder.name if path.name == WEIGHTS and folder.name else path.name
