import math

import numpy as np
import pytest

from cellseg.labels import (
    count_instances,
    instance_areas,
    median_diameter,
    outlines,
    remove_small,
    split_disconnected,
)

HUGE = 2**31 - 1


def squares(*sides, ids=None, gap=1):
    """Squares of these sides in a row, on a background."""
    labels = np.zeros((max(sides) + 2, sum(sides) + gap * (len(sides) + 1)), np.int32)
    x = gap
    for number, side in enumerate(sides):
        labels[1 : 1 + side, x : x + side] = ids[number] if ids else number + 1
        x += side + gap
    return labels


@pytest.mark.parametrize("ids", [None, (7, 900, 12), (HUGE, 5, HUGE - 1)])
def test_areas_count_and_diameter_do_not_depend_on_the_ids(ids):
    labels = squares(2, 6, 3, ids=ids)
    found, areas = instance_areas(labels)
    expected = dict(zip(ids or (1, 2, 3), (4, 36, 9), strict=True))
    assert dict(zip(found.tolist(), areas.tolist(), strict=True)) == expected
    assert found.tolist() == sorted(expected)
    assert count_instances(labels) == 3
    assert median_diameter(labels) == pytest.approx(2 * math.sqrt(9 / math.pi))


def test_median_diameter_of_an_even_number_is_the_mean_of_the_middle_two():
    assert median_diameter(squares(2, 6)) == pytest.approx((2 + 6) / math.sqrt(math.pi))


def test_diameter_of_a_disk():
    y, x = np.mgrid[-60:61, -60:61]
    assert median_diameter((y**2 + x**2 <= 50**2).astype(np.uint16)) == pytest.approx(100, rel=0.002)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int64])
def test_no_cells_and_other_types(dtype):
    empty = np.zeros((5, 6), dtype)
    assert count_instances(empty) == 0 and median_diameter(empty) is None
    assert count_instances(np.ones((5, 6), dtype)) == 1
    assert count_instances(np.zeros((0, 4), dtype)) == 0


def test_one_id_in_two_pieces_is_one_cell():
    assert count_instances(squares(2, 3, ids=(4, 4))) == 1


@pytest.mark.parametrize(("min_size", "kept"), [(0, {5, 7, HUGE}), (9, {5, 7, HUGE}), (10, {5, 7}), (99, set())])
def test_remove_small_counts_all_pieces_of_an_id_and_keeps_ids(min_size, kept):
    labels = squares(3, 3, 4, 3, ids=(5, 5, 7, HUGE))
    before = labels.copy()
    got = remove_small(labels, min_size)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, np.where(np.isin(before, list(kept)), before, 0))
    np.testing.assert_array_equal(labels, before)


def test_split_disconnected():
    labels = np.array([[5, 0, 5, 9], [5, 0, 9, 9], [0, 5, 0, HUGE]], dtype=np.int32)
    got = split_disconnected(labels)
    # The corner joins the left pieces of 5; the 9 touches 5 and HUGE but stays apart from both.
    np.testing.assert_array_equal(got, [[1, 0, 2, 3], [1, 0, 3, 3], [0, 1, 0, 4]])
    assert got.dtype == np.int32
    assert not split_disconnected(np.zeros((3, 3), np.int32)).any()


def test_outlines_are_inside_the_cells_and_also_where_two_touch():
    labels = np.zeros((7, 10), np.int32)
    labels[1:6, 1:5], labels[1:6, 5:9] = 3, HUGE
    expected = np.zeros((7, 10), bool)
    expected[1:6, 1:9] = True
    expected[2:5, 2:4] = expected[2:5, 6:8] = False
    got = outlines(labels)
    assert got.dtype == bool
    np.testing.assert_array_equal(got, expected)


def test_outlines_equal_scikit_image_and_leave_the_image_edge_open():
    from skimage.segmentation import find_boundaries

    labels = np.random.default_rng(0).integers(0, 3, (40, 50))
    np.testing.assert_array_equal(outlines(labels), find_boundaries(labels, mode="inner", connectivity=1))
    assert not outlines(np.ones((4, 4), np.int32)).any()
