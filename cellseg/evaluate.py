"""Score a folder of predicted label images against the truth: whoever made them, one door and one metric.

The list of truths drives the loop, so that a prediction that is missing, unreadable or of another shape
scores 0 and is named, and never leaves an average quietly. Knows nothing of networks and imports no torch.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cellseg.config import Selection
from cellseg.core import CellsegError, Counts, Labels
from cellseg.datasets.index import select
from cellseg.images import IMAGE_SUFFIXES, find_images, read_labels
from cellseg.metrics import THRESHOLDS, match, neurips_f1
from cellseg.metrics.matching import exact_threshold
from cellseg.metrics.scores import COLUMNS, GOOD_STATUS, read_scores, summarize, write_scores
from cellseg.progress import track

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FolderRule", "evaluate", "list_problems", "read_scores", "summarize", "write_scores"]

FolderRule = Literal["strict", "neurips"]
"""How a folder is scored. ``strict``: pairs by rule ``plain``, whole images, two empty images score 1.
``neurips``: pairs by the challenge's rule, F1 rounded to 4 decimals, two empty images score 0."""

LABEL_SUFFIXES = ("_cp_masks", "_masks", "_mask", "_labels", "_label", "_seg", "_pred")
"""Endings of a file's stem that say "labels of", and are ignored when files are paired by name."""


@dataclass(frozen=True)
class Pair:
    """One image to score: what is known about it, its truth, and its prediction if there is one."""

    image: str
    truth: Path
    pred: Path | None
    dataset: str = ""
    split: str = ""
    group: str = ""


def evaluate(
    truth: str | Path,
    pred: str | Path,
    *,
    rule: FolderRule = "strict",
    thresholds: Iterable[float] = THRESHOLDS,
    split: str | None = None,
    groups: Sequence[str] = (),
    workers: int = 1,
) -> pd.DataFrame:
    """Score every true label image against the prediction of the same name.

    Parameters
    ----------
    truth : str or Path
        A folder of label images, or an ``index.csv`` (images without instance labels are left out with a warning).
    pred : str or Path
        Folder of predicted label images, named as the image is, with any image extension and perhaps one of
        :data:`LABEL_SUFFIXES`; of ``a.tif`` and ``a_masks.tif`` the latter is taken, the former being the image.
    rule : {"strict", "neurips"}
        See :data:`FolderRule`. Under both, a prediction that cannot be used counts as an empty one.
    thresholds : iterable of float in (0, 1]
        IoU thresholds, 0.50:0.05:0.95 unless told otherwise.
    split, groups
        Part of the index; only where ``truth`` is one.
    workers : int
        Processes; 1 stays in this one.

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
    import pandas as pd

    if rule not in get_args(FolderRule):
        raise CellsegError(f"rule of a folder must be one of {', '.join(get_args(FolderRule))}, not {rule!r}")
    thresholds = tuple(dict.fromkeys(float(exact_threshold(value)) for value in thresholds))
    if not thresholds or workers < 1:
        raise CellsegError("evaluate needs at least one threshold and at least one worker")
    pairs = find_pairs(Path(truth), Path(pred), split, groups)
    rows = _score_all(pairs, partial(score_pair, rule=rule, thresholds=thresholds), workers)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def list_problems(scores: pd.DataFrame) -> list[str]:
    """Return one line for every image whose prediction could not be used, in order; empty when all is well."""
    first = scores.drop_duplicates("image")
    bad = first[~first["status"].isin(GOOD_STATUS)]
    return [f"{image}: {status}; scored 0" for image, status in zip(bad["image"], bad["status"], strict=True)]


# ---- pairing


def find_pairs(truth: Path, pred: Path, split: str | None = None, groups: Sequence[str] = ()) -> list[Pair]:
    """List the images to score and the files they are scored from; see :func:`evaluate` for the naming rules."""
    index = truth / "index.csv" if truth.is_dir() else truth
    if index.is_file() and index.suffix.lower() == ".csv":
        pairs = _truth_of_index(index, split, groups)
    elif split is not None or groups:
        raise CellsegError(f"{truth}: split and groups need an index.csv as the truth, not a folder of label images")
    else:
        pairs = _truth_of_folder(truth)
    if not pred.is_dir():
        raise CellsegError(f"{pred}: wanted a folder of predicted label images, but there is none")
    found = _by_name(find_images(pred))
    uses = Counter(_name(pair.image) for pair in pairs)
    return [replace(pair, pred=_choose(pair.image, found, exact=uses[_name(pair.image)] > 1)) for pair in pairs]


def _truth_of_index(index: Path, split: str | None, groups: Sequence[str]) -> list[Pair]:
    records = select(Selection(index=str(index), split=split, groups=tuple(groups)))
    pairs = [
        Pair(record.id, record.labels, None, record.dataset, record.split, record.group)
        for record in records
        if record.labels is not None and record.label_kind == "instances"
    ]
    if not pairs:
        raise CellsegError(f"{index}: none of the {len(records)} images chosen has instance labels to score against")
    if len(pairs) < len(records):
        warnings.warn(f"{index}: {len(records) - len(pairs)} images have no instance labels: not scored", stacklevel=4)
    return pairs


def _truth_of_folder(folder: Path) -> list[Pair]:
    files = _by_name(find_images(folder))
    if not files:
        raise CellsegError(f"{folder}: wanted true label images, but the folder has no image file")
    pairs = [(name, _choose(name, files)) for name in sorted(files)]
    return [Pair(name, path, None) for name, path in pairs if path is not None]


def _stem(path: Path) -> str:
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def _name(stem: str) -> str:
    """Return what is left of a stem without its ending that says it is labels."""
    ending = next((ending for ending in LABEL_SUFFIXES if stem.lower().endswith(ending)), "")
    return stem[: len(stem) - len(ending)] or stem


def _by_name(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in paths:
        found[_name(_stem(path))].append(path)
    return dict(found)


def _choose(image: str, found: dict[str, list[Path]], exact: bool = False) -> Path | None:
    """Pick the one label file of an image; with ``exact`` only a file of exactly its name will do."""
    files = found.get(_name(image), [])
    same = [path for path in files if _stem(path) == image]
    if exact:
        files = same
    said = [path for path in files if _name(_stem(path)) != _stem(path)]
    for candidates in (said, files, same):
        if len(candidates) == 1:
            return candidates[0]
    if not files:
        return None
    names = ", ".join(sorted(path.name for path in files))
    raise CellsegError(f"{files[0].parent}: more than one file may hold the labels of '{image}': {names}; keep one")


# ---- scoring


def _score_all(
    pairs: Sequence[Pair], score: Callable[[Pair], list[dict[str, Any]]], workers: int
) -> list[dict[str, Any]]:
    if workers == 1 or len(pairs) == 1:
        return [row for rows in track(map(score, pairs), "Scoring", len(pairs)) for row in rows]
    # Forked children of a process that runs threads may hang; a fresh interpreter never does.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(pairs)), mp_context=context) as pool:
        return [row for rows in track(pool.map(score, pairs), "Scoring", len(pairs)) for row in rows]


def score_pair(pair: Pair, rule: FolderRule, thresholds: tuple[float, ...]) -> list[dict[str, Any]]:
    """Score one image: one row per threshold, with the columns of a score table.

    Raises
    ------
    CellsegError
        If the truth cannot be read; what is wrong with the prediction is told by ``status``.
    """
    labels_true = read_labels(pair.truth)
    labels_pred, status = _read_prediction(pair.pred, labels_true.shape)
    counts = match(labels_true, labels_pred, thresholds, rule="neurips" if rule == "neurips" else "plain")
    if status == "ok" and counts[0].n_true + counts[0].n_pred == 0:
        status = "empty"
    known = {name: getattr(pair, name) for name in ("image", "group", "split", "dataset")}
    return [{**known, "rule": rule, "status": status, **_numbers(count, rule, status)} for count in counts]


def _read_prediction(path: Path | None, shape: tuple[int, ...]) -> tuple[Labels, str]:
    empty = np.zeros(shape, np.int32)
    if path is None:
        return empty, "missing"
    try:
        labels = read_labels(path)
    except CellsegError as error:
        return empty, "unreadable: " + " ".join(str(error).replace(str(path), path.name).split())
    if labels.shape != shape:
        return empty, f"misshaped: {path.name} is {labels.shape} but the truth is {shape}"
    return labels, "ok"


def _numbers(count: Counts, rule: FolderRule, status: str) -> dict[str, float]:
    if rule == "neurips":
        f1 = neurips_f1(count)
    elif count.n_true + count.n_pred:
        f1 = count.f1
    else:
        f1 = float(status == "empty")
    numbers = {name: getattr(count, name) for name in ("threshold", "tp", "fp", "fn", "n_true", "n_pred", "iou_sum")}
    return {**numbers, "f1": f1}
