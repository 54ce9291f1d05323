"""Overlap, matching and the summary figures: answers known by geometry, and an independent dense oracle."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import cellseg.metrics.matching as matching
from cellseg.core import CellsegError, Counts
from cellseg.metrics import THRESHOLDS, aji, count_errors, foreground_dice, match, overlap, seg
from cellseg.metrics.summary import Errors


def counts(labels_true, labels_pred, threshold=0.5, rule="plain"):
    (result,) = match(np.asarray(labels_true), np.asarray(labels_pred), (threshold,), rule)
    return result.tp, result.fp, result.fn


def boxes(shape, *corners):
    """Label image with one box per (top, left, bottom, right), ids 1, 2, …"""
    labels = np.zeros(shape, np.int32)
    for index, (top, left, bottom, right) in enumerate(corners, 1):
        labels[top:bottom, left:right] = index
    return labels


TWO = boxes((20, 40), (4, 4, 14, 14), (4, 24, 14, 34))
NONE = np.zeros((20, 40), np.int32)


# ---- overlap


def test_overlap_counts_every_pixel_of_every_pair():
    table = overlap(boxes((10, 10), (0, 0, 4, 4), (6, 0, 10, 10)), boxes((10, 10), (2, 0, 8, 3), (0, 8, 1, 9)))
    assert table.ids_true.tolist() == [1, 2]
    assert table.ids_pred.tolist() == [1, 2]
    assert table.area_true.tolist() == [16, 40]
    assert table.area_pred.tolist() == [18, 1]
    assert list(zip(table.pair_true, table.pair_pred, table.intersection, strict=True)) == [(0, 0, 6), (1, 0, 6)]
    assert table.union.tolist() == [28, 52]
    assert table.iou.tolist() == [6 / 28, 6 / 52]


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.uint8, np.int8, np.int16, np.uint16, ">u2", np.int32, np.uint32, np.int64, np.uint64, float]
)
def test_overlap_takes_every_whole_number_dtype(dtype):
    table = overlap(boxes((9, 9), (1, 1, 5, 5)).astype(dtype), boxes((9, 9), (1, 1, 5, 3)).astype(dtype))
    assert (table.area_true.tolist(), table.area_pred.tolist(), table.intersection.tolist()) == ([16], [8], [8])


def test_overlap_of_sparse_huge_ids():
    true = np.array([[2**31 - 1, 2**31 - 1, 0, 5]], np.uint32)
    pred = np.array([[0, 70000, 70000, 2**40]], np.int64)
    table = overlap(true, pred)
    assert table.ids_true.tolist() == [5, 2**31 - 1]
    assert table.ids_pred.tolist() == [70000, 2**40]
    assert list(zip(table.pair_true, table.pair_pred, table.intersection, strict=True)) == [(0, 1, 1), (1, 0, 1)]


def test_overlap_is_the_same_in_bands_of_any_height(monkeypatch):
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 9, (37, 23)), rng.integers(0, 7, (37, 23)) * 10**8
    module = sys.modules["cellseg.metrics.overlap"]
    whole = overlap(true, pred)
    for pixels in (1, 23, 100, 10**6):
        monkeypatch.setattr(module, "BAND_PIXELS", pixels)
        table = overlap(true, pred)
        for name in vars(whole):
            assert np.array_equal(getattr(table, name), getattr(whole, name)), name
    assert whole.area_true.sum() == np.count_nonzero(true)
    assert whole.intersection.sum() == np.count_nonzero((true > 0) & (pred > 0))


def test_overlap_of_strided_and_mapped_arrays(tmp_path):
    rng = np.random.default_rng(1)
    base = rng.integers(0, 5, (40, 60), dtype=np.int32)
    np.save(tmp_path / "labels.npy", base)
    mapped = np.load(tmp_path / "labels.npy", mmap_mode="r")
    strided, copied = mapped[::-2, ::3], base[::-2, ::3].copy()
    assert match(strided, copied) == match(copied, copied)
    assert overlap(base.T, base.T).intersection.tolist() == overlap(base, base).intersection.tolist()


@pytest.mark.parametrize("factor", [1, 10**8])
@pytest.mark.parametrize("name", ["HELD_RUNS", "HELD_PAIRS", "DIRECT_IDS", "DENSE_PAIRS"])
def test_overlap_is_the_same_however_the_runs_are_added_up(monkeypatch, name, factor):
    """Dense or sparse, direct or compacted, at once or in parts: each constant at its extremes."""
    module = sys.modules["cellseg.metrics.overlap"]
    rng = np.random.default_rng(3)
    true, pred = rng.integers(0, 30, (41, 19)), rng.integers(0, 20, (41, 19))
    table = np.zeros((30, 20), int)
    np.add.at(table, (true.ravel(), pred.ravel()), 1)
    for value, pixels in itertools.product((0, 5, 25, 10**9), (60, 10**6)):
        monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(module, "BAND_PIXELS", pixels)
        result = overlap(true * factor, pred)
        assert result.ids_true.tolist() == [i * factor for i in range(1, 30)]
        assert result.ids_pred.tolist() == list(range(1, 20))
        assert result.area_true.tolist() == table.sum(1)[1:].tolist()
        assert result.area_pred.tolist() == table.sum(0)[1:].tolist()
        assert np.array_equal(np.stack([result.pair_true, result.pair_pred]), np.nonzero(table[1:, 1:]))
        assert result.intersection.tolist() == table[1:, 1:][table[1:, 1:] > 0].tolist()


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0)])
def test_overlap_of_no_pixels(shape):
    table = overlap(np.zeros(shape, int), np.zeros(shape, int))
    assert (table.n_true, table.n_pred, table.intersection.size) == (0, 0, 0)


@pytest.mark.parametrize(
    ("labels_true", "labels_pred", "said"),
    [
        (np.zeros((4, 5), int), np.zeros((5, 4), int), ["(4, 5)", "(5, 4)"]),
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3), np.uint8), ["(4, 5)", "(4, 5, 3)", "uint8"]),
        (np.zeros((4, 5), int), np.full((4, 5), -1, np.int16), ["-1", "int16"]),
        (np.full((4, 5), 0.5), np.zeros((4, 5), int), ["whole numbers", "float64"]),
        (np.full((4, 5), np.nan, np.float32), np.zeros((4, 5), int), ["NaN", "float32"]),
        (np.full((4, 5), np.inf), np.zeros((4, 5), int), ["infinity"]),
        (np.zeros((4, 5), complex), np.zeros((4, 5), int), ["complex128"]),
        (np.full((4, 5), "a"), np.zeros((4, 5), int), ["<U1"]),
        (np.full((1, 1), 2**64 - 1, np.uint64), np.zeros((1, 1), int), ["uint64"]),
    ],
)
@pytest.mark.parametrize("rule", ["plain", "neurips"])
def test_what_is_not_a_pair_of_label_images_is_refused_by_name(labels_true, labels_pred, said, rule):
    with pytest.raises(CellsegError) as caught:
        match(labels_true, labels_pred, rule=rule)
    for text in said:
        assert text in str(caught.value)


# ---- the table of edge cases


@pytest.mark.parametrize(
    ("labels_true", "labels_pred", "expected"),
    [
        pytest.param(TWO, TWO, (2, 0, 0), id="identical"),
        pytest.param(NONE, TWO, (0, 2, 0), id="empty truth"),
        pytest.param(TWO, NONE, (0, 0, 2), id="empty prediction"),
        pytest.param(NONE, NONE, (0, 0, 0), id="both empty"),
        pytest.param(np.where(TWO == 2, 70000, TWO), TWO, (2, 0, 0), id="ids 1 and 70000"),
        pytest.param([[1, 1, 1]], [[1, 1, 1]], (1, 0, 0), id="cell fills the image"),
        pytest.param([[1, 1, 0]], [[0, 9, 0]], (1, 0, 0), id="IoU exactly .5"),
        pytest.param([[1, 1, 1, 1]], [[1, 1, 2, 2]], (1, 1, 0), id="two exact halves"),
        pytest.param([[1, 1, 2, 2]], [[1, 1, 1, 1]], (1, 0, 1), id="two true halves of one prediction"),
        pytest.param([[1, 0, 1, 0]], [[3, 0, 3, 0]], (1, 0, 0), id="one id in two pieces"),
    ],
)
def test_edge_cases(labels_true, labels_pred, expected):
    assert counts(labels_true, labels_pred) == expected


def test_both_empty_has_no_f1():
    assert math.isnan(match(NONE, NONE, (0.5,))[0].f1)


@pytest.mark.parametrize("step", range(1, 21))
def test_iou_exactly_at_a_threshold_counts(step):
    """A cell of 20 px and one of `step` px inside it have IoU step / 20 exactly."""
    true, pred = np.ones((1, 20), int), (np.arange(20) < step).astype(int)[None]
    assert counts(true, pred, step / 20) == (1, 0, 0)
    if step < 20:
        assert counts(true, pred, (step + 1) / 20) == (0, 1, 1)
        assert counts(true, pred, step / 20 + 1e-5) == (0, 1, 1)


def test_thresholds_from_arange_mean_the_fractions_they_stand_for():
    true, pred = np.ones((1, 20), int), (np.arange(20) < 12).astype(int)[None]
    (off,) = (t for t in np.arange(0.5, 1, 0.05) if 0.59 < t < 0.61)
    assert off > 0.6
    (result,) = match(true, pred, (off,))
    assert (result.tp, result.threshold) == (1, 0.6)


def test_default_thresholds_are_the_decimal_ones():
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert [c.threshold for c in match(TWO, TWO)] == list(THRESHOLDS)


def test_shifted_disks_match_just_below_their_iou_and_not_just_above():
    """Five squares of side 20 shifted by 4: IoU = 16 / 24 = 2 / 3."""
    corners = [(5, 5 + 30 * i, 25, 25 + 30 * i) for i in range(5)]
    true, pred = boxes((40, 170), *corners), boxes((40, 170), *[(t, left + 4, b, r + 4) for t, left, b, r in corners])
    below, above = match(true, pred, (0.66, 0.67))
    assert (below.tp, below.fp, below.fn) == (5, 0, 0)
    assert below.iou_sum == pytest.approx(5 * 2 / 3)
    assert below.sq == pytest.approx(2 / 3)
    assert (above.tp, above.fp, above.fn, above.iou_sum) == (0, 5, 5, 0.0)


def test_below_half_the_largest_number_of_pairs_is_found():
    """Greedy by IoU would pair (1, 1) and leave true 2 and prediction 2 alone."""
    true = np.array([[1] * 6 + [2] * 4])
    pred = np.array([[2] * 2 + [1] * 8])  # IoU: (1, 2) 2/6, (1, 1) 4/10, (2, 1) 4/8
    assert counts(true, pred, 0.3) == (2, 0, 0)
    assert match(true, pred, (0.3,))[0].iou_sum == pytest.approx(2 / 6 + 1 / 2)


def test_among_largest_matchings_the_summed_iou_decides():
    true, pred = np.array([[1] * 10]), np.array([[1] * 3 + [2] * 4 + [3] * 3])
    (result,) = match(true, pred, (0.3,))
    assert (result.tp, result.fp, result.fn, result.iou_sum) == (1, 2, 0, 0.4)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, math.nan])
def test_a_threshold_outside_0_to_1_is_refused(threshold):
    with pytest.raises(CellsegError, match="threshold"):
        match(TWO, TWO, (threshold,))


def test_an_unknown_rule_is_refused():
    with pytest.raises(CellsegError, match="'strict'"):
        match(TWO, TWO, rule="strict")


# ---- the dense oracle


def oracle(true, pred, threshold: Fraction):
    """Largest matching by exhaustive search over a dense IoU matrix, exact; returns TP, FP, FN and the IoU sum."""
    ids_true = [i for i in np.unique(true) if i]
    ids_pred = [i for i in np.unique(pred) if i]
    iou = [
        [Fraction(int(((true == i) & (pred == j)).sum()), int(((true == i) | (pred == j)).sum())) for j in ids_pred]
        for i in ids_true
    ]

    @cache
    def best(row: int, free: int) -> tuple[int, Fraction]:
        if row == len(ids_true):
            return 0, Fraction(0)
        options = [best(row + 1, free)]
        for column, value in enumerate(iou[row]):
            if free >> column & 1 and value >= threshold:
                size, total = best(row + 1, free & ~(1 << column))
                options.append((size + 1, total + value))
        return max(options)

    tp, total = best(0, (1 << len(ids_pred)) - 1)
    return tp, len(ids_pred) - tp, len(ids_true) - tp, float(total)


def test_matching_agrees_with_exhaustive_search_on_2400_random_pairs():
    rng = np.random.default_rng(2022)
    ties, ties_at_half = 0, 0
    for case in range(2400):
        shape = rng.integers(1, 6), rng.integers(1, 7)
        cells = int(rng.integers(1, 6))
        true = rng.integers(0, cells + 1, shape)
        pred = np.where(rng.random(shape) < rng.random(), true, rng.integers(0, cells + 1, shape))
        step = case % 19 + 1 if case % 3 else (4, 5, 8, 10, 10, 12, 15)[case % 7]
        (result,) = match(true, pred, (step / 20,))
        tp, fp, fn, total = oracle(true, pred, Fraction(step, 20))
        assert (result.tp, result.fp, result.fn) == (tp, fp, fn), (true, pred, step)
        assert result.iou_sum == pytest.approx(total, abs=1e-9), (true, pred, step)
        table = overlap(true, pred)
        tie = bool((20 * table.intersection == step * table.union).any())
        ties, ties_at_half = ties + tie, ties_at_half + (tie and step == 10)
    assert ties > 150  # the exact ties are really exercised
    assert ties_at_half > 50


def test_contested_grid_is_matched_completely():
    """Cells of 4 x 4 against the same grid shifted by (2, 2): 4 partners each, IoU 4 / 28, one apiece."""
    grid = np.kron(np.arange(1, 226).reshape(15, 15), np.ones((4, 4), int))
    pred = np.zeros_like(grid)
    pred[2:, 2:] = grid[:-2, :-2]
    assert counts(grid, pred, 0.14) == (225, 0, 0)
    assert counts(grid, pred, 0.35) == (0, 225, 225)


LABELS = arrays(np.int32, (6, 7), elements=st.integers(0, 4))
STEPS = st.integers(1, 19)


@settings(max_examples=60, deadline=None)
@given(LABELS, LABELS, STEPS, st.sampled_from(["plain", "neurips"]))
def test_swapping_the_roles_swaps_false_positives_and_negatives(true, pred, step, rule):
    one, other = match(true, pred, (step / 20,), rule)[0], match(pred, true, (step / 20,), rule)[0]
    assert (one.tp, one.fp, one.fn) == (other.tp, other.fn, other.fp)
    assert one.iou_sum == pytest.approx(other.iou_sum)


@settings(max_examples=60, deadline=None)
@given(LABELS, LABELS, STEPS, st.permutations(range(1, 5)), st.sampled_from(["plain", "neurips"]))
def test_ids_and_orientation_do_not_matter(true, pred, step, order, rule):
    names = np.array([0, *(10_000_019 * i for i in order)])
    expected = counts(true, pred, step / 20, rule)
    assert counts(names[true], pred, step / 20, rule) == expected
    assert counts(true, names[pred], step / 20, rule) == expected
    assert counts(true[::-1], pred[::-1], step / 20, rule) == expected
    assert counts(true[:, ::-1], pred[:, ::-1], step / 20, rule) == expected
    assert counts(true.T, pred.T, step / 20, rule) == expected


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_counts_fall_with_the_threshold_and_add_up(true, pred):
    results = match(true, pred, [i / 20 for i in range(1, 21)])
    assert [r.tp for r in results] == sorted((r.tp for r in results), reverse=True)
    assert {(r.n_true, r.n_pred) for r in results} == {(np.unique(true[true > 0]).size, np.unique(pred[pred > 0]).size)}


# ---- summary figures


def test_aji_adds_the_unmatched_to_the_denominator():
    true = np.array([[1] * 4 + [2] * 4 + [0] * 4 + [0] * 2])
    pred = np.array([[1] * 2 + [0] * 6 + [0] * 4 + [2] * 2])
    assert aji(overlap(true, pred)) == 2 / (4 + 4 + 2)
    assert aji(overlap(true, true)) == 1
    assert math.isnan(aji(overlap(NONE, NONE)))


def test_aji_lets_two_true_cells_share_a_prediction():
    assert aji(overlap([[1, 1, 2, 2]], [[1, 1, 1, 1]])) == (2 + 2) / (4 + 4)


def test_seg_wants_more_than_half_of_the_true_cell():
    true = np.array([[1] * 4 + [2] * 4 + [3] * 2])
    pred = np.array([[1] * 3 + [0] + [2] * 2 + [0] * 4])
    assert seg(overlap(true, pred)) == pytest.approx((3 / 4 + 0 + 0) / 3)
    assert math.isnan(seg(overlap(NONE, TWO)))


def test_foreground_dice_ignores_instances():
    assert foreground_dice(overlap([[1, 1, 2, 2, 0]], [[0, 1, 1, 1, 1]])) == 2 * 3 / 8
    assert math.isnan(foreground_dice(overlap(NONE, NONE)))


def test_errors_are_told_apart():
    true = np.array([[1] * 4 + [0] + [2] * 2 + [3] * 2 + [0] + [4] * 3 + [0] + [0] * 2])
    pred = np.array([[1] * 2 + [2] * 2 + [0] + [3] * 4 + [0] + [0] * 3 + [0] + [4] * 2])
    assert count_errors(overlap(true, pred)) == Errors(misses=1, spurious=1, splits=1, merges=1)
    assert count_errors(overlap(TWO, TWO)) == Errors(0, 0, 0, 0)


def test_an_iou_of_exactly_a_tenth_is_no_partner():
    assert count_errors(overlap([[1] * 10], [[1] + [0] * 9])) == Errors(misses=1, spurious=1, splits=0, merges=0)


# ---- the rest


def test_counts_of_images_pool():
    total = match(TWO, TWO, (0.5,))[0] + match(TWO, NONE, (0.5,))[0]
    assert total == Counts(0.5, 2, 0, 2, 2.0)
    assert (total.f1, total.ap, total.pq) == (2 / 3, 1 / 2, 2 / 3)


def test_metrics_import_without_torch_and_heavy_libraries():
    code = (
        "import sys, cellseg.metrics; print(sorted({'torch', 'pandas', 'skimage', 'scipy.stats'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_thresholds_are_read_as_fractions():
    assert matching.exact_threshold(0.1 + 0.2) == Fraction(3, 10)
    assert matching.exact_threshold(1 / 3) == Fraction(1, 3)
