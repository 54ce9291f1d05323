"""Score tables: text of thresholds, kinds of file, and summaries that agree with the single figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cellseg.core import CellsegError
from cellseg.metrics.scores import (
    COLUMNS,
    METRICS,
    STATISTICS,
    aggregate,
    parse_thresholds,
    summarize,
    summarize_thresholds,
    write_scores,
)

THRESHOLDS = tuple(i / 20 for i in range(10, 20))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5", (0.5,)),
        ("0.5,0.75", (0.5, 0.75)),
        ("0.5:0.95", THRESHOLDS),
        ("0.5:0.6,0.55,1", (0.5, 0.55, 0.6, 1.0)),
        (" 0.3 , 0.7", (0.3, 0.7)),
    ],
)
def test_thresholds_as_text(text, values):
    assert parse_thresholds(text) == values


@pytest.mark.parametrize("text", ["", "half", "0", "1.5", "-0.5", "0.5,", "nan", "0.9:0.5", "0.51:0.6", "0.5:0.6:0.7"])
def test_text_that_is_no_thresholds_is_refused(text):
    with pytest.raises(CellsegError, match="threshold"):
        parse_thresholds(text)


@pytest.mark.parametrize("name", ["scores.xlsx", "scores", "scores.json"])
def test_other_kinds_of_table_are_refused(name, tmp_path):
    with pytest.raises(CellsegError, match=rf"{name}: a table is written as \.csv or \.parquet"):
        write_scores(pd.DataFrame(columns=list(COLUMNS)), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def scores():
    """Thirty images of two groups and one without, with random counts; one prediction in ten is missing."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(30):
        status = "missing" if index % 10 == 3 else "empty" if index % 10 == 5 else "ok"
        for threshold in THRESHOLDS:
            tp, fp, fn = rng.integers(0, 6, 3) if status == "ok" else (0, 0, 2 * (status == "missing"))
            f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float(status != "missing")
            counts = (tp, fp, fn, tp + fn, tp + fp, tp * rng.uniform(0.5, 1))
            rows.append(
                (f"i{index}", ("x", "y", "")[index % 3], "test", "toy", "strict", threshold, *counts, f1, status)
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_a_summary_holds_what_aggregate_gives(scores):
    summary = summarize(scores).set_index("group")
    assert summary.index.tolist() == ["x", "y", "all"]
    spans = {"": (0.5,), "_50_95": THRESHOLDS, "_50_90": THRESHOLDS[:-1]}
    for group, row in summary.iterrows():
        part = scores if group == "all" else scores[scores["group"] == group]
        for metric in METRICS[:5]:
            for statistic in STATISTICS:
                for suffix, span in spans.items():
                    expected = aggregate(part, metric, span, statistic)
                    assert row[f"{metric}_{statistic}{suffix}"] == pytest.approx(expected, abs=1e-12)


def test_a_summary_by_threshold_holds_what_aggregate_gives(scores):
    table = summarize_thresholds(scores)
    assert table[["group", "threshold"]].to_numpy().tolist() == [
        [group, threshold] for group in ("x", "y", "all") for threshold in THRESHOLDS
    ]
    last = table.iloc[-1]
    at = scores[scores["threshold"] == 0.95]
    assert last[["tp", "fp", "fn"]].tolist() == at[["tp", "fp", "fn"]].sum().tolist()
    for metric in ("f1", "ap", "pq"):
        for statistic in STATISTICS:
            assert last[f"{metric}_{statistic}"] == pytest.approx(aggregate(at, metric, (0.95,), statistic))


def test_summaries_by_a_column_without_values_are_of_all(scores):
    scores = scores.assign(split="")
    assert summarize(scores, "split")["split"].tolist() == ["all"]
    assert set(summarize_thresholds(scores, "split")["split"]) == {"all"}
