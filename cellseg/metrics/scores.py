"""Tables of scores, one row per image and threshold: written, read, and averaged over images.

The one place that says what a mean, a median and a pooled value over images are. At 0/0 a score is 1 when
neither image has a cell, the prediction could be used and the rule is not ``neurips``; else it is 0. The mean
IoU of matched pairs (``sq``) is left undefined there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.core import CellsegError
from cellseg.files import atomic_path
from cellseg.metrics.matching import exact_threshold

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = ("image", "group", "split", "dataset", "rule", "status")
NUMBER_COLUMNS = ("threshold", "tp", "fp", "fn", "n_true", "n_pred", "iou_sum", "f1")
COLUMNS = (
    *("image", "group", "split", "dataset", "rule", "threshold"),
    *("tp", "fp", "fn", "n_true", "n_pred", "iou_sum", "f1", "status"),
)
"""Columns of a score table, in order."""

METRICS = ("f1", "ap", "pq", "precision", "recall", "sq")
STATISTICS = ("mean", "median", "pooled")
GOOD_STATUS = ("ok", "empty")
"""Every other status says why an image has no usable prediction."""


def write_scores(scores: pd.DataFrame, path: str | Path) -> Path:
    """Write a score table atomically, as Parquet when the suffix is ``.parquet``, else as CSV.

    Floats keep every digit, so that a table read back equals the one written.
    """
    with atomic_path(path) as temporary:
        if temporary.suffix == ".parquet":
            scores.to_parquet(temporary, index=False)
        else:
            scores.to_csv(temporary, index=False, lineterminator="\n")
    return Path(path)


def read_scores(path: str | Path) -> pd.DataFrame:
    """Read a score table written by :func:`write_scores`.

    Raises
    ------
    CellsegError
        If the file is missing, is not a score table, repeats an image at a threshold, or mixes rules.
    """
    import pandas as pd

    path = Path(path)
    try:
        if path.suffix == ".parquet":
            scores = pd.read_parquet(path)
        else:
            text = dict.fromkeys(TEXT_COLUMNS, str)
            scores = pd.read_csv(path, dtype=text, keep_default_na=False, float_precision="round_trip")
    except FileNotFoundError:
        raise CellsegError(f"{path}: no such score table; make it with 'cellseg evaluate'") from None
    except (OSError, ValueError) as error:
        raise CellsegError(f"{path}: cannot be read as a score table ({error})") from error
    missing = [name for name in COLUMNS if name not in scores.columns]
    if missing:
        raise CellsegError(f"{path}: not a score table: no column {', '.join(missing)}; re-run 'cellseg evaluate'")
    _check_rows(scores, path)
    return scores


def _check_rows(scores: pd.DataFrame, path: Path) -> None:
    for name in NUMBER_COLUMNS:
        if len(scores) and scores[name].dtype.kind not in "iuf":
            raise CellsegError(f"{path}: column {name} must hold numbers")
    if scores.duplicated(["image", "threshold"]).any():
        repeated = scores.loc[scores.duplicated(["image", "threshold"]), "image"].iloc[0]
        raise CellsegError(f"{path}: image {repeated} appears twice at one threshold")
    if scores["rule"].nunique() > 1:
        raise CellsegError(f"{path}: holds scores of several rules: {', '.join(sorted(scores['rule'].unique()))}")


def image_values(scores: pd.DataFrame, metric: str, thresholds: Sequence[float]) -> pd.Series[float]:
    """Return one metric of every image, averaged over thresholds, indexed by image in order of first appearance.

    Parameters
    ----------
    scores : DataFrame
        Score table.
    metric : {"f1", "ap", "pq", "precision", "recall", "sq"}
        ``f1`` is the column itself (rounded under ``neurips``); the others follow from the counts.
    thresholds : sequence of float
        IoU thresholds, all of which must be in the table.

    Raises
    ------
    CellsegError
        If the metric is unknown or an image lacks one of the thresholds.
    """
    rows = _rows_at(scores, thresholds)
    lenient = (rows["rule"] != "neurips") & rows["status"].isin(GOOD_STATUS)
    values = rows["f1"] if metric == "f1" else _metric_of(metric, rows, lenient)
    return values.groupby(rows["image"], sort=False).mean()


def aggregate(scores: pd.DataFrame, metric: str, thresholds: Sequence[float], statistic: str) -> float:
    """Return one figure for a set of images, NaN without any.

    Parameters
    ----------
    scores : DataFrame
        Score table, restricted to the images in question.
    metric, thresholds
        As in :func:`image_values`.
    statistic : {"mean", "median", "pooled"}
        ``mean`` and ``median`` are over images, after the mean over thresholds; ``pooled`` adds up the counts of
        all images at each threshold, divides once, and takes the mean over thresholds.

    Raises
    ------
    CellsegError
        If the metric or statistic is unknown or an image lacks one of the thresholds.
    """
    if statistic not in STATISTICS:
        raise CellsegError(f"statistic must be one of {', '.join(STATISTICS)}, not {statistic!r}")
    if scores.empty:
        return float("nan")
    if statistic == "pooled":
        rows = _rows_at(scores, thresholds)
        sums = rows.groupby("threshold")[["tp", "fp", "fn", "iou_sum"]].sum()
        lenient = (rows["rule"] != "neurips") & rows["status"].isin(GOOD_STATUS)
        return float(_metric_of(metric, sums, lenient.groupby(rows["threshold"]).all()).mean())
    values = image_values(scores, metric, thresholds)
    return float(values.mean() if statistic == "mean" else values.median())


def _rows_at(scores: pd.DataFrame, thresholds: Sequence[float]) -> pd.DataFrame:
    wanted = {float(exact_threshold(threshold)) for threshold in thresholds}
    rows = scores[scores["threshold"].isin(list(wanted))]
    if len(rows) != len(wanted) * scores["image"].nunique():
        present = ", ".join(f"{value:g}" for value in sorted(scores["threshold"].unique()))
        raise CellsegError(
            f"wanted scores at IoU {', '.join(f'{value:g}' for value in sorted(wanted))} of every image, "
            f"but the table has {present}; re-run 'cellseg evaluate' with these thresholds"
        )
    return rows


def _metric_of(metric: str, rows: pd.DataFrame, lenient: pd.Series[bool]) -> pd.Series[float]:
    tp, fp, fn, iou_sum = (rows[name] for name in ("tp", "fp", "fn", "iou_sum"))
    ratios: dict[str, tuple[pd.Series[float], pd.Series[float]]] = {
        "f1": (2 * tp, 2 * tp + fp + fn),
        "ap": (tp, tp + fp + fn),
        "pq": (iou_sum, tp + fp / 2 + fn / 2),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "sq": (iou_sum, tp),
    }
    if metric not in ratios:
        raise CellsegError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    numerator, denominator = ratios[metric]
    values = numerator / denominator.where(denominator > 0)
    if metric == "sq":
        return values
    return values.where(denominator > 0, ((tp + fp + fn == 0) & lenient).astype(float))


SPANS = {"_50_95": tuple(i / 20 for i in range(10, 20)), "_50_90": tuple(i / 20 for i in range(10, 19))}
"""Suffix of a summary column and the thresholds it is the mean over; no suffix means IoU 0.5."""


def summarize(scores: pd.DataFrame, by: str = "group") -> pd.DataFrame:
    """Return one row per group and a last one, ``all``, over all images.

    Parameters
    ----------
    scores : DataFrame
        Score table.
    by : str
        Column to group by, such as ``group``, ``split`` or ``dataset``; rows where it is empty are only in ``all``.

    Returns
    -------
    DataFrame
        ``by``, ``rule``, ``n_images``, ``n_empty`` (neither truth nor prediction has a cell), ``n_failed`` (no
        usable prediction, scored 0), ``n_true``, ``n_pred``, then ``<metric>_<statistic>`` at IoU 0.5 and
        ``<metric>_<statistic>_50_95`` and ``_50_90`` (means over thresholds) for the metrics f1, ap, pq,
        precision and recall and the statistics mean and median (over images) and pooled. Spans whose thresholds
        the table lacks are left out.

    Raises
    ------
    CellsegError
        If there is no such column.
    """
    import pandas as pd

    if by not in scores.columns:
        raise CellsegError(f"scores cannot be grouped by {by!r}; columns are {', '.join(scores.columns)}")
    present = set(scores["threshold"])
    spans = {suffix: span for suffix, span in {"": (0.5,), **SPANS}.items() if present.issuperset(span) or scores.empty}
    groups = [(name, part) for name, part in scores.groupby(by) if name != ""]
    return pd.DataFrame([_summary(str(name), part, by, spans) for name, part in [*groups, ("all", scores)]])


def _summary(name: str, scores: pd.DataFrame, by: str, spans: dict[str, tuple[float, ...]]) -> dict[str, Any]:
    first = scores.drop_duplicates("image")
    row: dict[str, Any] = {
        by: name,
        "rule": "+".join(sorted(scores["rule"].unique())),
        "n_images": len(first),
        "n_empty": int((first["status"] == "empty").sum()),
        "n_failed": int((~first["status"].isin(GOOD_STATUS)).sum()),
        "n_true": int(first["n_true"].sum()),
        "n_pred": int(first["n_pred"].sum()),
    }
    for suffix, span in spans.items():
        for metric in METRICS[:5]:
            for statistic in STATISTICS:
                row[f"{metric}_{statistic}{suffix}"] = aggregate(scores, metric, span, statistic)
    return row
