"""The oracle table draws what it says, scores what it decodes, and keeps rows of samples that are not there."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FILE = Path(__file__).parent.parent / "experiments" / "oracle.py"


@pytest.fixture(scope="module")
def oracle():
    spec = importlib.util.spec_from_file_location("oracle", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_disks_that_do_not_touch_are_drawn_whole(oracle):
    labels = oracle.draw(0, 6, 0, 0.0, 20, 5, (200, 200))
    y, x = np.indices((41, 41)) - 20
    whole = int((y**2 + x**2 <= 36).sum())  # 113 pixels where the centre is one, a few more or less elsewhere
    areas = np.bincount(labels.ravel())[1:]
    assert len(areas) == 5
    assert areas.max() == pytest.approx(whole, abs=8)


def test_a_round_trip_counts_at_the_labels_own_scale(oracle):
    labels = np.zeros((96, 96), np.int32)
    labels[8:40, 8:40], labels[50:90, 50:90] = 1, 2
    for name in oracle.REPRESENTATIONS:
        for scale in oracle.SCALES:
            counts, _, _ = oracle.round_trip(labels, name, scale)
            assert [(count.tp, count.fp, count.fn) for count in counts] == [(2, 0, 0)] * 3


def test_rows_of_absent_samples_are_kept_or_said_to_be_missing(oracle, monkeypatch, tmp_path):
    monkeypatch.setattr(oracle, "SYNTHETIC", {"tiny": (3, 0, 0.0, 8, 20, (60, 60))})
    monkeypatch.setattr(oracle, "REAL", {"A": ("a", None), "B": ("b", None)})
    first, missing = oracle.measure(tmp_path, pd.DataFrame())
    assert missing == ["A", "B"]
    assert list(first["representation"]) == [*oracle.REPRESENTATIONS] * 2
    assert first.loc[first["representation"] != "boundary", "F1@0.5"].min() > 0.98  # cells cut to < 10 px may go
    assert list(first.loc[first["representation"] == "boundary", "F1@0.5"]) == [0.0, 1.0]  # gone, unless enlarged
    old = first.assign(set="A", revision="abc1234")
    table, missing = oracle.measure(tmp_path, old)
    assert list(table["set"].unique()) == ["tiny", "A"]
    text = oracle.render(table, missing)
    assert "Kept from an earlier run, samples absent: A." in text
    assert "Not run, samples absent: B." in text
    assert "abc1234" in text
