"""Joining across seams, on labels small enough to draw."""

import numpy as np
import pytest

from cellseg.slides.blocks import Block, Region
from cellseg.slides.seams import Pieces, count_pieces, cut_cells, join, same_cells, seams

NOWHERE = np.iinfo(np.int64).max


def drawn(*rows):
    return np.array([[int(pixel) for pixel in row.replace(".", "0")] for row in rows], np.int32)


def pieces(ids, pixels=None, first=None, cut=False, confidence=1.0):
    ids = np.array(ids, np.int64)
    pixels = np.full(len(ids), 5) if pixels is None else np.array(pixels)
    first = np.arange(len(ids)) if first is None else np.array(first)
    return Pieces(ids, pixels.astype(np.int64), pixels * confidence, first.astype(np.int64), np.full(len(ids), cut))


def test_what_a_core_holds_is_counted_there():
    labels = drawn("..33", "1133", "11..")  # the core of a block whose halo holds the cell 2
    foreground = np.where(labels == 1, 0.5, 0.75).astype(np.float32)
    found = count_pieces(labels, foreground, labels, Region(10, 20, 13, 24), 100, np.array([False, True, True, False]))
    assert found.ids.tolist() == [1, 3]
    assert found.pixels.tolist() == [4, 4]
    assert found.confidence.tolist() == [2, 3]
    assert found.first.tolist() == [11 * 100 + 20, 10 * 100 + 22]
    assert found.is_cut.tolist() == [True, False]


def test_a_cell_that_is_lost_at_the_scale_of_the_image_is_nowhere():
    decoded, labels = drawn("1.22", "..22"), drawn(".2")
    found = count_pieces(decoded, np.ones((2, 4), np.float32), labels, Region(0, 0, 1, 2), 2, np.zeros(3, bool))
    assert found.ids.tolist() == [1, 2]
    assert found.first.tolist() == [NOWHERE, 1]


def test_cells_are_cut_at_the_edges_of_a_region_but_not_of_the_image():
    labels = drawn("11.2", "...2", "3..2", "3.44")
    assert np.flatnonzero(cut_cells(labels, Region(0, 0, 4, 4), (4, 4))).tolist() == []
    assert np.flatnonzero(cut_cells(labels, Region(5, 0, 9, 4), (9, 9))).tolist() == [1, 2, 4]
    assert np.flatnonzero(cut_cells(labels, Region(0, 3, 4, 7), (9, 7))).tolist() == [1, 3, 4]
    assert not cut_cells(np.zeros((3, 3), np.int32), Region(1, 1, 4, 4), (9, 9)).any()


def test_whole_cells_are_one_above_an_iou_of_a_half():
    first, second = drawn("11122..", "11122.."), drawn("3333.44", "3333.44")
    # 1 and 3 share 6 of 8 pixels, 2 and 3 share 2 of 10, 4 shares none
    assert same_cells(first, second, (pieces([1, 2]), pieces([3, 4]))).tolist() == [[1, 3]]
    half = drawn("11....."), drawn("2......")
    assert same_cells(*half, (pieces([1]), pieces([2]))).tolist() == []  # exactly a half


def test_cells_without_a_pixel_in_their_core_do_not_join():
    labels = drawn("1122", "1122")
    assert same_cells(labels, labels, (pieces([1, 2]), pieces([2]))).tolist() == [[2, 2]]
    assert same_cells(labels, labels, (pieces([]), pieces([1, 2]))).tolist() == []


def test_cut_cells_are_one_where_one_covers_half_of_the_other():
    whole, torn = drawn("11111111"), drawn("2223334.")
    assert same_cells(whole, torn, (pieces([1], cut=True), pieces([2, 3, 4]))).tolist() == [[1, 2], [1, 3], [1, 4]]
    assert same_cells(whole, torn, (pieces([1]), pieces([2, 3, 4]))).tolist() == []


def test_numbers_follow_the_first_pixels_over_all_blocks():
    blocks = {(0, 0): pieces([1, 2], [5, 6], [700, 3]), (0, 1): pieces([4, 9], [7, 8], [2, 800], confidence=0.5)}
    cells = join(blocks, [((0, 0), (0, 1), np.array([[1, 4]]))], min_size=0)
    assert cells.numbers[0, 0].tolist() == [0, 1, 2]  # joined with 4, whose first pixel is the second of the image
    assert cells.numbers[0, 1].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 3]
    assert cells.scores.tolist() == [(5 + 3.5) / 12, 1, 0.5]
    assert cells.count == 3


def test_a_cell_around_a_corner_is_one_cell_and_small_or_lost_ones_are_none():
    four = {(row, column): pieces([1, 2], [3, 1], [row * 50 + column, 60]) for row in (0, 1) for column in (0, 1)}
    four[1, 1] = pieces([1, 2], [3, 9], [51, NOWHERE])
    pairs = [((0, 0), (0, 1), [[1, 1]]), ((0, 0), (1, 0), [[1, 1]]), ((0, 1), (1, 1), [[1, 1]])]
    cells = join(four, [(a, b, np.array(ids)) for a, b, ids in pairs], min_size=2)
    assert all(numbers.tolist() == [0, 1, 0] for numbers in cells.numbers.values())
    assert cells.scores.tolist() == [1]


def test_blocks_without_cells_join_to_none():
    cells = join({(0, 0): pieces([]), (0, 1): pieces([])}, [((0, 0), (0, 1), np.zeros((0, 2), np.int64))], 1)
    assert cells.count == 0
    assert cells.numbers[0, 1].tolist() == [0]


@pytest.mark.parametrize(("rows", "columns", "count"), [(1, 1, 0), (1, 3, 2), (2, 2, 6), (3, 3, 20)])
def test_every_two_neighbours_meet_once(rows, columns, count):
    blocks = [Block(row, column, Region(0, 0, 1, 1)) for row in range(rows) for column in range(columns)]
    met = [frozenset((one.place, other.place)) for one, other in seams(blocks)]
    assert len(met) == len(set(met)) == count
    assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1 for a, b in met)
