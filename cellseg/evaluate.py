"""Score a folder of predicted label images against the truth: whoever made them, one door and one metric.

The list of truths drives the loop, so that a prediction that is missing, unreadable or of another shape
scores 0 and is named, and never leaves an average quietly. Slides are scored band by band (see
:mod:`cellseg.slides.bands`). Knows nothing of networks and imports no torch.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cellseg.core import CellsegError, Counts, Labels
from cellseg.metrics import THRESHOLDS, Overlap, aji, count_errors, count_matches, foreground_dice, neurips_f1, seg
from cellseg.metrics.matching import exact_threshold
from cellseg.metrics.overlap import overlap_bands
from cellseg.metrics.rules import band_rows, match_neurips_bands
from cellseg.metrics.scores import COLUMNS, GOOD_STATUS, read_scores, summarize, write_scores
from cellseg.pairing import Pair, find_pairs
from cellseg.progress import track
from cellseg.slides.bands import BAND_ROWS, LabelFile, open_labels

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DETAIL_COLUMNS",
    "FolderRule",
    "evaluate",
    "find_pairs",
    "list_problems",
    "read_scores",
    "score_pairs",
    "summarize",
    "write_scores",
]

FolderRule = Literal["strict", "neurips"]
"""How a folder is scored. ``strict``: pairs by rule ``plain``, whole images, two empty images score 1.
``neurips``: pairs by the challenge's rule, F1 rounded to 4 decimals, two empty images score 0."""

DETAIL_COLUMNS = (
    *("image", "group", "split", "dataset", "status", "n_true", "n_pred"),
    *("aji", "seg", "dice", "splits", "merges", "misses", "spurious"),
)
"""Columns of a table of details: one row per image; see :mod:`cellseg.metrics.summary`. Undefined ratios are empty."""

POOL_PAYS_S = 3.0
"""Seconds of work that must be left before automatic workers are started: they take about one to start."""


def evaluate(
    truth: str | Path,
    pred: str | Path,
    *,
    rule: FolderRule = "strict",
    thresholds: Iterable[float] = THRESHOLDS,
    split: str | None = None,
    groups: Sequence[str] = (),
    workers: int | None = 1,
) -> pd.DataFrame:
    """Score every true label image against the prediction of the same name.

    Parameters
    ----------
    truth : str or Path
        A folder of label images, or an ``index.csv`` (images without instance labels are left out with a warning).
    pred : str or Path
        Folder of predicted label images, named as the image is, with any image extension and perhaps one of
        :data:`cellseg.pairing.LABEL_SUFFIXES`; of ``a.tif`` and ``a_masks.tif`` the latter is taken, the former
        being the image.
    rule : {"strict", "neurips"}
        See :data:`FolderRule`. Under both, a prediction that cannot be used counts as an empty one.
    thresholds : iterable of float in (0, 1]
        IoU thresholds, 0.50:0.05:0.95 unless told otherwise.
    split, groups
        Part of the index; only where ``truth`` is one.
    workers : int or None
        Processes; 1 stays in this one, None takes as many as there are cores where that is quicker. More than one
        need the usual ``if __name__ == "__main__"`` in a script.

    Returns
    -------
    DataFrame
        A row per image and threshold, in the order of the truth, with the columns
        :data:`cellseg.metrics.scores.COLUMNS`. ``status`` is ``ok``, ``empty`` (neither has a cell), or why the
        prediction scores 0: ``missing``, ``unreadable: …``, ``misshaped: …`` (see :func:`list_problems`).

    Raises
    ------
    CellsegError
        If a folder or truth is missing or unreadable, two files may belong to one image, or an argument is wrong.
    """
    _check_rule(rule)
    return score_pairs(find_pairs(Path(truth), Path(pred), split, groups), rule, thresholds, workers)[0]


def score_pairs(
    pairs: Sequence[Pair],
    rule: FolderRule = "strict",
    thresholds: Iterable[float] = THRESHOLDS,
    workers: int | None = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score the images :func:`find_pairs` lists.

    Parameters
    ----------
    pairs : sequence of Pair
        The images.
    rule, thresholds, workers
        As in :func:`evaluate`.

    Returns
    -------
    scores : DataFrame
        As :func:`evaluate`.
    details : DataFrame
        A row per image with :data:`DETAIL_COLUMNS`; without rows under ``neurips``, which removes cells first.

    Raises
    ------
    CellsegError
        As :func:`evaluate`.
    """
    import pandas as pd

    _check_rule(rule)
    thresholds = tuple(dict.fromkeys(float(exact_threshold(value)) for value in thresholds))
    if not thresholds or (workers is not None and workers < 1):
        raise CellsegError("evaluate needs at least one threshold and at least one worker")
    score = partial(score_pair, rule=rule, thresholds=thresholds)
    results = list(track(_results(pairs, score, workers), "Scoring", len(pairs)))
    rows = [row for image_rows, _ in results for row in image_rows]
    details = [detail for _, detail in results if detail is not None]
    return pd.DataFrame(rows, columns=list(COLUMNS)), pd.DataFrame(details, columns=list(DETAIL_COLUMNS))


def list_problems(scores: pd.DataFrame) -> list[str]:
    """Return one line for every image whose prediction could not be used, in order; empty when all is well."""
    first = scores.drop_duplicates("image")
    bad = first[~first["status"].isin(GOOD_STATUS)]
    return [f"{image}: {status}; scored 0" for image, status in zip(bad["image"], bad["status"], strict=True)]


# ---- scoring


def _check_rule(rule: str) -> None:
    if rule not in get_args(FolderRule):
        raise CellsegError(f"rule of a folder must be one of {', '.join(get_args(FolderRule))}, not {rule!r}")


Result = tuple[list[dict[str, Any]], dict[str, Any] | None]
"""The rows of one image, and its details where the rule has them."""


class _UnusableError(Exception):
    """A prediction turned out to be damaged while its bands were read."""


def _results(pairs: Sequence[Pair], score: Callable[[Pair], Result], workers: int | None) -> Iterator[Result]:
    """Score the images in order; with ``workers`` None start processes once the work left is seen to be worth it."""
    done = 0
    if workers is None:
        workers = min(_cores(), len(pairs))
        quickest = math.inf
        while done < len(pairs) and (done < 2 or workers == 1 or quickest * (len(pairs) - done) < POOL_PAYS_S):
            start = time.perf_counter()
            yield score(pairs[done])
            done += 1
            quickest = min(quickest, time.perf_counter() - start)
    left = pairs[done:]
    if workers == 1 or len(left) <= 1:
        yield from map(score, left)
        return
    # Forked children of a process that runs threads may hang; a fresh interpreter never does.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(left)), context, _plain_warnings) as pool:
            yield from pool.map(score, left)
    except BrokenProcessPool:
        raise CellsegError("a scoring process died, perhaps for want of memory; use one worker (--workers 1)") from None


def _plain_warnings() -> None:
    """Let a worker process warn in one line."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def score_pair(pair: Pair, rule: FolderRule, thresholds: tuple[float, ...]) -> Result:
    """Score one image: one row per threshold with the columns of a score table, and its details.

    Raises
    ------
    CellsegError
        If the truth cannot be read; what is wrong with the prediction is told by ``status``.
    """
    truth = open_labels(pair.truth)
    pred, status = _open_prediction(pair.pred, truth.shape)
    try:
        counts, table = _count(truth, pred, rule, thresholds)
    except _UnusableError as error:
        status = str(error)
        counts, table = _count(truth, None, rule, thresholds)
    if status == "ok" and counts[0].n_true + counts[0].n_pred == 0:
        status = "empty"
    known = {name: getattr(pair, name) for name in ("image", "group", "split", "dataset")}
    rows = [{**known, "rule": rule, "status": status, **_numbers(count, rule, status)} for count in counts]
    return rows, None if table is None else {**known, "status": status, **_details(table)}


def _open_prediction(path: Path | None, shape: tuple[int, int]) -> tuple[LabelFile | None, str]:
    if path is None:
        return None, "missing"
    try:
        pred = open_labels(path)
    except CellsegError as error:
        return None, _unreadable(path, error)
    if pred.shape != shape:
        return None, f"misshaped: {path.name} is {pred.shape} but the truth is {shape}"
    return pred, "ok"


def _unreadable(path: Path, error: CellsegError) -> str:
    return "unreadable: " + " ".join(str(error).replace(str(path), path.name).split())


def _count(
    truth: LabelFile, pred: LabelFile | None, rule: FolderRule, thresholds: tuple[float, ...]
) -> tuple[tuple[Counts, ...], Overlap | None]:
    """Count matches, and give the overlap table where the rule has one of the whole image."""
    if rule == "neurips":
        return match_neurips_bands(_bands(truth, pred, band_rows(truth.shape)), truth.shape, thresholds), None
    table = overlap_bands(_bands(truth, pred, BAND_ROWS))
    return count_matches(table, thresholds), table


def _bands(truth: LabelFile, pred: LabelFile | None, rows: int) -> Iterator[tuple[Labels, Labels]]:
    """Yield the same rows of both; no prediction is one without cells."""
    others = None if pred is None else pred.bands(rows)
    for band in truth.bands(rows):
        if pred is None or others is None:
            yield band, np.zeros_like(band)
            continue
        try:
            other = next(others)
        except CellsegError as error:
            raise _UnusableError(_unreadable(pred.path, error)) from error
        yield band, other
        del band, other  # else they stay in memory while the next are read


def _details(table: Overlap) -> dict[str, Any]:
    figures = {"aji": aji(table), "seg": seg(table), "dice": foreground_dice(table)}
    return {"n_true": table.n_true, "n_pred": table.n_pred, **figures, **asdict(count_errors(table))}


def _numbers(count: Counts, rule: FolderRule, status: str) -> dict[str, float]:
    if rule == "neurips":
        f1 = neurips_f1(count)
    elif count.n_true + count.n_pred:
        f1 = count.f1
    else:
        f1 = float(status == "empty")
    numbers = {name: getattr(count, name) for name in ("threshold", "tp", "fp", "fn", "n_true", "n_pred", "iou_sum")}
    return {**numbers, "f1": f1}
