"""Tables of scores, one row per image and threshold: written, read, and averaged over images.

The one place that says what a mean, a median and a pooled value over images are. At 0/0 a score is 1 when
neither image has a cell, the prediction could be used and the rule is not ``neurips``; else it is 0. The mean
IoU of matched pairs (``sq``) is left undefined there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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


TABLE_SUFFIXES = (".csv", ".parquet")
"""Kinds of file a table is written to."""


def check_suffix(path: str | Path) -> None:
    """Raise CellsegError unless a table can be written to a file of this name."""
    if Path(path).suffix.lower() not in TABLE_SUFFIXES:
        raise CellsegError(f"{path}: a table is written as .csv or .parquet; give a file name that ends in one of them")


def write_scores(scores: pd.DataFrame, path: str | Path) -> Path:
    """Write a table atomically, as CSV or Parquet by its suffix.

    Floats keep every digit, so that a table read back equals the one written.

    Raises
    ------
    CellsegError
        If the suffix is another or the file cannot be written.
    """
    check_suffix(path)
    with atomic_path(path) as temporary:
        if temporary.suffix.lower() == ".parquet":
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
        if path.suffix.lower() == ".parquet":
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
    return _row_values(rows, (metric,))[metric].groupby(rows["image"], sort=False).mean()


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
    figures = _statistics(scores.assign(all="all"), "all", (metric,), thresholds)
    return float(figures[f"{metric}_{statistic}"].iloc[0])


def _statistics(scores: pd.DataFrame, by: str, metrics: Sequence[str], thresholds: Sequence[float]) -> pd.DataFrame:
    """Return ``<metric>_<statistic>`` of the images of each value of the column ``by``, in ascending order."""
    import pandas as pd

    rows = _rows_at(scores, thresholds)
    images = _row_values(rows, metrics).groupby([rows[by], rows["image"]], sort=False).mean().groupby(level=0)
    keys = [rows[by], rows["threshold"]]
    sums = rows.groupby(keys)[["tp", "fp", "fn", "iou_sum"]].sum()
    lenient = _is_lenient(rows).groupby(keys).all()
    pooled = pd.DataFrame({metric: _metric_of(metric, sums, lenient) for metric in metrics}).groupby(level=0).mean()
    parts = zip(STATISTICS, (images.mean(), images.median(), pooled), strict=True)
    figures = pd.concat([part.add_suffix(f"_{statistic}") for statistic, part in parts], axis=1)
    return figures[[f"{metric}_{statistic}" for metric in metrics for statistic in STATISTICS]].sort_index()


def _is_lenient(rows: pd.DataFrame) -> pd.Series[bool]:
    """Whether 0/0 is 1 in a row."""
    return (rows["rule"] != "neurips") & rows["status"].isin(GOOD_STATUS)


def _row_values(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    lenient = _is_lenient(rows)
    return pd.DataFrame({name: rows["f1"] if name == "f1" else _metric_of(name, rows, lenient) for name in metrics})


def parse_thresholds(text: str) -> tuple[float, ...]:
    """Read IoU thresholds from text: ``0.5``, ``0.5,0.75``, or ``0.5:0.9`` for 0.5, 0.55, …, 0.9.

    Raises
    ------
    CellsegError
        If the text is none of these or a threshold lies outside (0, 1].

    Examples
    --------
    >>> parse_thresholds("0.5:0.6,0.75")
    (0.5, 0.55, 0.6, 0.75)
    """
    found: list[float] = []
    for part in text.split(","):
        try:
            bounds = [float(exact_threshold(float(bound))) for bound in part.split(":")]
        except ValueError:
            raise CellsegError(
                f"thresholds must be IoU in (0, 1] such as 0.5, 0.5,0.75 or 0.5:0.9, not '{text}'"
            ) from None
        if len(bounds) == 1:
            found += bounds
            continue
        steps = [round(20 * bound) for bound in bounds]
        if len(bounds) != 2 or bounds != [step / 20 for step in steps] or bounds[0] >= bounds[1]:
            raise CellsegError(f"a span of thresholds goes up in steps of 0.05, such as 0.5:0.9, not '{part}'")
        found += [step / 20 for step in range(steps[0], steps[1] + 1)]
    return tuple(dict.fromkeys(found))


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

    present = set(scores["threshold"])
    spans = {suffix: span for suffix, span in {"": (0.5,), **SPANS}.items() if present.issuperset(span) or scores.empty}
    return pd.concat([_summary(part, by, spans) for part in _groups(scores, by)], ignore_index=True)


def summarize_thresholds(scores: pd.DataFrame, by: str = "group") -> pd.DataFrame:
    """Return one row per group and threshold, and those of ``all`` last.

    Parameters
    ----------
    scores, by
        As in :func:`summarize`.

    Returns
    -------
    DataFrame
        ``by``, ``threshold``, ``tp``, ``fp``, ``fn``, then ``f1``, ``ap`` and ``pq`` each with ``_mean``,
        ``_median`` and ``_pooled``.

    Raises
    ------
    CellsegError
        If there is no such column.
    """
    import pandas as pd

    counts = ["tp", "fp", "fn"]
    parts = []
    for part in _groups(scores, by):
        sums = part.groupby([by, "threshold"])[counts].sum()
        figures = [
            _statistics(part[part["threshold"] == threshold], by, METRICS[:3], (threshold,)).assign(threshold=threshold)
            for threshold in sorted(part["threshold"].unique())
        ]
        if figures:
            at = pd.concat(figures).reset_index().set_index([by, "threshold"]).sort_index()
            parts.append(pd.concat([sums, at], axis=1).reset_index())
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[by, "threshold", *counts])


def _groups(scores: pd.DataFrame, by: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows that belong to a group, and all rows with ``all`` as their group."""
    if by not in scores.columns:
        raise CellsegError(f"scores cannot be grouped by {by!r}; columns are {', '.join(scores.columns)}")
    return scores[scores[by] != ""], scores.assign(**{by: "all"})


def _summary(scores: pd.DataFrame, by: str, spans: dict[str, tuple[float, ...]]) -> pd.DataFrame:
    import pandas as pd

    first = scores.drop_duplicates("image")
    images = first.assign(
        n_images=1, n_empty=first["status"] == "empty", n_failed=~first["status"].isin(GOOD_STATUS)
    ).groupby(by)
    rules = images["rule"].agg(lambda names: "+".join(sorted(set(names)))).rename("rule")
    counts = images[["n_images", "n_empty", "n_failed", "n_true", "n_pred"]].sum().astype(int)
    figures = [_statistics(scores, by, METRICS[:5], span).add_suffix(suffix) for suffix, span in spans.items()]
    return pd.concat([rules, counts, *figures], axis=1).reset_index()
