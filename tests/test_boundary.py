"""The three classes of squares are known by counting; cells too small for an interior vanish."""

import numpy as np
import pytest

from cellseg.core import CellsegError
from cellseg.instances import boundary


def squares(side, gap, n=3):
    labels = np.zeros((n * (side + gap) + gap, n * (side + gap) + gap), np.int32)
    for number in range(n * n):
        y, x = (gap + (side + gap) * place for place in divmod(number, n))
        labels[y : y + side, x : x + side] = number + 1
    return labels


def round_trip(labels, **options):
    return boundary.decode(boundary.ideal_maps(boundary.encode(labels)), **options)


def same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


def test_a_square_has_a_boundary_two_pixels_wide():
    labels = squares(10, 4, n=1)
    background, interior, rim = boundary.encode(labels)
    assert np.array_equal(background, labels == 0)
    expected = np.zeros_like(labels)
    expected[6:12, 6:12] = 1
    assert np.array_equal(interior, expected)
    assert rim.sum() == 100 - 36
    assert np.array_equal(interior + rim, labels > 0)


def test_the_edge_of_the_image_is_no_boundary():
    assert boundary.encode(np.ones((8, 9), np.int32))[1].all()


@pytest.mark.parametrize(("side", "count"), [(7, 0), (8, 9)], ids=["interior 3 x 3", "interior 4 x 4"])
def test_cells_whose_interior_is_below_16_pixels_vanish(side, count):
    labels = squares(side, 3)
    assert round_trip(labels).max() == count
    assert np.array_equal(boundary.encode(labels)[0], labels == 0)  # their foreground stays


@pytest.mark.parametrize("gap", [0, 1, 5])
def test_round_trip_of_squares_is_exact(gap):
    labels = squares(12, gap)
    assert same_partition(labels, round_trip(labels))


def test_an_interior_does_not_cross_the_background():
    labels = squares(12, 4)
    labels[labels == 5] = 0
    labels[18:24, 18:24] = 5  # six pixels wide: no interior of its own
    assert round_trip(labels).max() == 8
    assert (round_trip(labels)[18:24, 18:24] == 0).all()


def logits(mask, markers):
    """Raw maps with interior at the markers, boundary on the rest of the mask."""
    return boundary.ideal_maps(np.stack([~mask, markers, mask & ~markers]).astype(np.float32))


def test_interiors_grow_at_one_pace_and_meet_in_the_middle():
    mask, markers = np.zeros((12, 30), bool), np.zeros((12, 30), bool)
    mask[4:8, 2:27] = True
    markers[4:8, 2:6] = markers[4:8, 19:23] = True  # columns 6 to 18 between them; 4 more on the right
    expected = np.zeros(mask.shape, int)
    expected[4:8, 2:13], expected[4:8, 13:27] = 1, 2  # column 12 is 7 from both: the first has it
    assert np.array_equal(boundary.decode(logits(mask, markers)), expected)


def test_an_interior_grows_round_and_through_corners():
    markers = np.zeros((41, 41), bool)
    markers[19:23, 19:23] = True
    found = boundary._grow(markers.astype(np.int32), np.ones_like(markers))
    assert (found == 1).all()
    steps = np.eye(8, dtype=bool)  # pixels that touch at corners only
    corner = np.zeros((8, 8), np.int32)
    corner[0, 0] = 5
    assert np.array_equal(boundary._grow(corner, steps), 5 * steps)


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (np.zeros((0, 0)), 0),
        (np.zeros((30, 40)), 0),
        (np.ones((1, 1)), 0),
        (np.ones((30, 40)), 1),
        (np.pad([[7]], 5), 0),
        (np.kron(np.arange(1, 7).reshape(2, 3), np.ones((20, 20))), 6),
    ],
    ids=["no pixel", "no cell", "one pixel image", "all foreground", "one pixel cell", "tiles to the border"],
)
def test_edge_cases(labels, count):
    labels = labels.astype(np.int32)
    target = boundary.encode(labels)
    assert target.shape == (3, *labels.shape)
    assert target.dtype == np.float32
    assert (target.sum(axis=0) == 1).all()
    found = round_trip(labels, min_size=1)
    assert found.dtype == np.int32
    assert len(np.unique(found[found > 0])) == count


def test_small_cells_are_dropped():
    assert round_trip(squares(8, 3), min_size=64).max() == 9
    assert round_trip(squares(8, 3), min_size=65).max() == 0


def test_probabilities():
    maps = np.log(np.array([0.2, 0.5, 0.3], np.float32)).reshape(3, 1, 1)
    assert boundary.foreground(maps) == pytest.approx(0.8)
    assert boundary.confidence(maps) == pytest.approx(0.5)


def test_wrong_shapes_are_named():
    with pytest.raises(CellsegError, match=r"\(H, W\), got \(3, 4, 5\)"):
        boundary.encode(np.zeros((3, 4, 5), np.int32))
    with pytest.raises(CellsegError, match=r"\(3, H, W\), got \(2, 4, 5\)"):
        boundary.decode(np.zeros((2, 4, 5), np.float32))
