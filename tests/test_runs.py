"""Pieces, boxes and centres of label images, found by runs, are those that pixels tell one by one."""

import numpy as np
import pytest
from skimage.measure import label

from cellseg.instances.runs import boxes, centres, find_runs, pixels, sort_runs


def piece_image(labels):
    """Number of the piece of every pixel, from 1."""
    runs = find_runs(labels)
    image = np.zeros(labels.shape, int)
    for piece, row, left, right in zip(*runs, strict=True):
        assert (image[row, left:right] == 0).all()
        image[row, left:right] = piece + 1
    return image


def same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


def drawn(*rows):
    return np.array([[int(pixel) for pixel in row] for row in rows], np.int32)


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (np.zeros((0, 0), np.int32), 0),
        (np.zeros((3, 4), np.int32), 0),
        (drawn("7"), 1),
        (drawn("11", "11"), 1),
        (drawn("12", "12"), 2),
        (drawn("10", "01"), 1),
        (drawn("01", "10"), 1),
        (drawn("100", "000", "001"), 2),
        (drawn("1001", "1001", "1111"), 1),
        (drawn("1111", "1001", "1111"), 1),
        (drawn("1111", "1221", "1111"), 2),
        (drawn("101", "020", "101"), 5),
        (drawn("1000", "0001"), 2),
        (drawn("10101", "10101", "11011", "01110"), 1),
    ],
    ids=[
        "no pixel", "no cell", "one pixel", "square", "touching", "corner down", "corner up", "apart", "arms that meet",
        "ring", "ring around a cell", "ids that cross", "ends of neighbouring rows", "three arms",
    ],
)  # fmt: skip
def test_pieces_are_8_connected_pixels_of_one_id(labels, count):
    found = piece_image(labels)
    assert found.max(initial=0) == count
    assert np.array_equal(found > 0, labels > 0)


@pytest.mark.parametrize("seed", range(8))
def test_pieces_of_noise_are_those_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.integers(0, 4, (23, 31)) * (rng.random((23, 31)) < 0.7)).astype(np.int32)
    labels[4:9, 5:20] = 3
    assert same_partition(piece_image(labels), label(labels, connectivity=2))
    assert same_partition(piece_image(labels.T), label(labels.T, connectivity=2))  # not contiguous


def test_boxes_and_numbers():
    labels = drawn("0110", "0010", "2000")
    runs = find_runs(labels)
    box = boxes(runs)
    first = runs.piece[0]
    assert (box.top[first], box.bottom[first], box.left[first], box.right[first]) == (0, 2, 1, 3)
    other = 1 - first
    assert (box.top[other], box.bottom[other], box.left[other], box.right[other]) == (2, 3, 0, 1)
    runs = sort_runs(runs, np.array([1, 0]) if first == 0 else np.array([0, 1]))
    assert list(zip(*runs, strict=True)) == [(0, 2, 0, 1), (1, 0, 1, 3), (1, 1, 2, 3)]


def test_the_centre_is_the_pixel_nearest_the_median():
    # Rows 0 0 0 1 2 2 2, columns 0 0 0 1 2 2 2 of the 7 pixels: both medians are 1, a pixel of the cell.
    assert centre_of(drawn("111", "010", "111")) == (1, 1)
    # Rows 0 1 2 2 2 and columns 0 0 0 1 2: medians 2 and 0, the corner of the L.
    assert centre_of(drawn("100", "100", "111")) == (2, 0)
    # Of a 2 x 2 square the upper middle ones of an even number: the lower right pixel.
    assert centre_of(drawn("11", "11")) == (1, 1)
    # A ring: the median (2, 2) is no pixel of it; of the four at distance 2 the topmost is taken.
    assert centre_of(drawn("01110", "10001", "10001", "10001", "01110")) == (0, 2)


def centre_of(labels):
    runs = find_runs(labels)
    rows, columns = centres(runs, boxes(runs))
    assert rows.size == 1
    return rows[0], columns[0]


def test_centres_of_noise_are_those_of_pixels():
    labels = (np.random.default_rng(3).random((40, 50)) < 0.45).astype(np.int32)
    runs = find_runs(labels)
    runs = sort_runs(runs, np.arange(runs.piece.max() + 1))
    rows, columns = centres(runs, boxes(runs))
    image = piece_image(labels)
    for piece in range(image.max()):
        y, x = np.nonzero(image == piece + 1)
        squared = (y - np.sort(y)[y.size // 2]) ** 2 + (x - np.sort(x)[x.size // 2]) ** 2
        nearest = squared.argmin()
        assert (rows[piece], columns[piece]) == (y[nearest], x[nearest])


def test_pixels_of_runs():
    assert pixels(np.array([7, 2, 20]), np.array([2, 0, 3])).tolist() == [7, 8, 20, 21, 22]
    assert pixels(np.zeros(0, int), np.zeros(0, int)).tolist() == []
