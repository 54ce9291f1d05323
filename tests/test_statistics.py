"""Bootstrap and Holm: closed forms, symmetries, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cellseg.core import CellsegError
from cellseg.metrics.scores import COLUMNS
from cellseg.metrics.statistics import compare, holm, score_matrix


def test_a_constant_difference_is_certain():
    scores = np.random.default_rng(0).random((3, 20))
    result = compare(scores + 0.125, scores, draws=999)
    assert (result.mean, result.low, result.high) == (pytest.approx(0.125),) * 3
    assert result.p_value == 2 / 1000


def test_no_difference_is_no_difference():
    scores = np.random.default_rng(0).random((3, 20))
    result = compare(scores, scores)
    assert (result.mean, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_one_seed_gives_the_normal_interval_of_the_image_mean():
    """With 400 images the interval is ± 1.96 standard errors, to the noise of 10,000 draws."""
    difference = np.random.default_rng(1).normal(0.1, 1, (1, 400))
    result = compare(difference, np.zeros((1, 400)))
    error = difference.std() / 20
    assert result.mean == pytest.approx(difference.mean())
    assert result.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.1 * error)
    assert result.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.1 * error)


def test_seeds_widen_the_interval():
    """Two seeds at 0 and 1 on identical images: a draw is 0, 1/2 or 1 with odds 1 : 2 : 1."""
    scores = np.repeat([[0.0], [1.0]], 50, axis=1)
    result = compare(scores, np.zeros((2, 50)))
    assert (result.mean, result.low, result.high) == (0.5, 0, pytest.approx(1))
    assert result.p_value == pytest.approx(0.5, abs=0.03)  # twice the quarter of draws that are 0


def test_images_are_the_same_for_all_seeds_of_a_draw():
    """Ten equal seeds tell no more about images than one."""
    difference = np.random.default_rng(2).normal(0, 1, (1, 100))
    one, ten = compare(difference, 0 * difference), compare(np.repeat(difference, 10, 0), np.zeros((10, 100)))
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.05)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 5, (3, 60))
    result = compare(shared + 0.5 + rng.normal(0, 0.1, shared.shape), shared)
    assert 0.4 < result.low < 0.5 < result.high < 0.6


def test_swapping_the_methods_mirrors_the_result():
    rng = np.random.default_rng(4)
    a, b = rng.random((3, 30)), rng.random((3, 30))
    one, other = compare(a, b), compare(b, a)
    assert (one.mean, one.low, one.high) == (
        pytest.approx(-other.mean),
        pytest.approx(-other.high),
        pytest.approx(-other.low),
    )
    assert one.p_value == other.p_value


def test_a_teacher_of_one_seed_against_students_of_three():
    students = np.repeat([[0.5], [0.6], [0.7]], 10, axis=1)
    result = compare(students, np.full((1, 10), 0.4))
    assert result.mean == pytest.approx(0.2)
    assert result.low == pytest.approx(0.1)
    assert result.high == pytest.approx(0.3)


def test_the_same_seed_gives_the_same_bits():
    rng = np.random.default_rng(5)
    a, b = rng.random((3, 30)), rng.random((3, 30))
    assert compare(a, b, seed=7) == compare(a, b, seed=7)
    assert compare(a, b, seed=7) != compare(a, b, seed=8)


def test_draws_in_many_chunks_agree_with_one(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.random((3, 30)), rng.random((3, 30))
    whole = compare(a, b)
    monkeypatch.setattr("cellseg.metrics.statistics.CHUNK", 1000)
    chunked = compare(a, b)
    assert (chunked.low, chunked.high) == (pytest.approx(whole.low, abs=0.005), pytest.approx(whole.high, abs=0.005))
    assert compare(a + 1, a, draws=1001).p_value == 2 / 1002


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(200):
        images, seeds = rng.normal(0, 1, (1, 40)), rng.normal(0, 0.2, (8, 1))
        result = compare(0.3 + images + seeds, np.zeros((8, 40)), draws=300)
        covered += result.low <= 0.3 <= result.high
    assert 0.87 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (np.zeros((3, 4)), np.zeros((3, 5)), r"\(3, 4\) and \(3, 5\)"),
        (np.zeros(4), np.zeros(4), r"\(4,\)"),
        (np.zeros((0, 4)), np.zeros((0, 4)), r"\(0, 4\)"),
        (np.full((1, 4), np.nan), np.zeros((1, 4)), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, said):
    with pytest.raises(CellsegError, match=said):
        compare(first, second)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    with pytest.raises(CellsegError, match=r"1\.5"):
        holm([1.5])


def table(f1):
    rows = [(name, "", "", "", "strict", 0.5, 0, 0, 0, 0, 0, 0.0, value, "ok") for name, value in f1.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_score_matrix_lines_up_images_by_name():
    tables = [table({"a": 0.1, "b": 0.2}), table({"b": 0.4, "a": 0.3})]
    assert score_matrix(tables, "f1", (0.5,)).tolist() == [[0.1, 0.2], [0.3, 0.4]]
    with pytest.raises(CellsegError, match="same images"):
        score_matrix([*tables, table({"a": 0.1, "c": 0.2})], "f1", (0.5,))
    with pytest.raises(CellsegError, match="one score table per seed"):
        score_matrix([], "f1", (0.5,))
