"""How sure a method is of each cell: mean foreground probability, kept in a CSV file beside the label image.

``a.tif`` has its scores in ``a.scores.csv``, one file an image, so that a folder predicted image by image is never
half written and no reader of images takes the scores for one. Any method may write such files.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError, Labels
from cellseg.files import write_text
from cellseg.labels import instance_areas

COLUMNS = ("label", "score")
SUFFIX = ".scores.csv"


def mean_inside(labels: Labels, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Average a map over each cell.

    Parameters
    ----------
    labels : ndarray of int32, shape (H, W)
        Label image.
    values : ndarray of float32, shape (H, W)
        For example the foreground probability.

    Returns
    -------
    ndarray of float64, shape (n,)
        Mean of each cell, in order of ascending id.

    Raises
    ------
    CellsegError
        If the shapes differ.
    """
    if labels.shape != values.shape:
        raise CellsegError(f"wanted a map of the labels' shape {labels.shape}, got {values.shape}")
    ids, areas = instance_areas(labels)
    inside = labels > 0
    position = np.searchsorted(ids, labels[inside])
    sums = np.bincount(position, values[inside].astype(np.float64), minlength=len(ids))
    return np.asarray(sums / areas, np.float64)


def scores_path(labels_path: str | Path) -> Path:
    """Return the score file of a label image: ``folder/a.tif`` has ``folder/a.scores.csv``."""
    return Path(labels_path).with_suffix(SUFFIX)


def write_confidences(labels_path: str | Path, labels: Labels, scores: NDArray[np.float64]) -> Path:
    """Write the scores of a label image beside it, atomically.

    Parameters
    ----------
    labels_path : str or Path
        The label image, which need not exist yet.
    labels : ndarray of int32, shape (H, W)
        Its content.
    scores : ndarray of float64, shape (n,)
        One a cell, in order of ascending id.

    Returns
    -------
    Path
        The file written: columns ``label,score``, nine digits; only the header where there is no cell.

    Raises
    ------
    CellsegError
        If there is not one score a cell, or the file cannot be written.
    """
    return write_scores(labels_path, instance_areas(labels)[0], scores)


def write_scores(labels_path: str | Path, ids: NDArray[np.int64], scores: NDArray[np.float64]) -> Path:
    """Write the scores of the cells with these ids, ascending; see :func:`write_confidences`."""
    path = scores_path(labels_path)
    if scores.shape != ids.shape:
        raise CellsegError(f"{path}: wanted one score for each of {len(ids)} cells, got shape {scores.shape}")
    rows = [f"{label},{score:.9g}" for label, score in zip(ids.tolist(), scores.tolist(), strict=True)]
    write_text(path, "\n".join([",".join(COLUMNS), *rows, ""]))
    return path


def read_confidences(labels_path: str | Path, labels: Labels) -> NDArray[np.float64] | None:
    """Read the scores of a label image.

    Parameters
    ----------
    labels_path : str or Path
        The label image.
    labels : ndarray of int32, shape (H, W)
        Its content.

    Returns
    -------
    ndarray of float64, shape (n,), or None
        One a cell, in order of ascending id; None where there is no score file.

    Raises
    ------
    CellsegError
        If the file cannot be read, is not of the form ``label,score``, or names other cells than the image has,
        which means that it belongs to other labels.
    """
    path = scores_path(labels_path)
    if not path.exists():
        return None
    known, scores = read_scores(labels_path)
    ids = instance_areas(labels)[0]
    if not np.array_equal(known, ids):
        raise CellsegError(
            f"{path}: wanted one finite score for each of the {len(ids)} cells of {Path(labels_path).name}, "
            f"found {len(known)} rows that do not fit; predict the image again"
        )
    return scores


def read_scores(labels_path: str | Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Read the ids, ascending, and the scores of the cells of a label image, without the image.

    Raises CellsegError if the file cannot be read, is not of the form ``label,score``, or a score is not finite.
    """
    path = scores_path(labels_path)
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.reader(handle))
        if not rows or tuple(rows[0]) != COLUMNS:
            raise CellsegError(
                f"{path}: wanted the columns {','.join(COLUMNS)}, found {','.join(rows[0] if rows else [])}"
            )
        found = sorted((int(label), float(score)) for label, score in rows[1:])
    except CellsegError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise CellsegError(f"{path}: is not a table of label,score ({error}); predict the image again") from error
    ids, scores = np.array([label for label, _ in found], np.int64), np.array([score for _, score in found])
    if not np.isfinite(scores).all():
        raise CellsegError(f"{path}: wanted one finite score for each cell; predict the image again")
    return ids, scores.astype(np.float64)
