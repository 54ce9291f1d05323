"""Distances are those of squares and strips known by counting, and decode back to the cells they came from."""

import numpy as np
import pytest

from cellseg.core import CellsegError
from cellseg.instances import distance
from cellseg.metrics import match


def grid_of_disks(radius, pitch, n=6):
    """Disks on a square grid, cut at the middle line between neighbours: they touch where pitch < 2 radius."""
    y, x = np.mgrid[: n * pitch, : n * pitch]
    inside = (y % pitch - pitch // 2) ** 2 + (x % pitch - pitch // 2) ** 2 <= radius**2
    return np.where(inside, (y // pitch) * n + x // pitch + 1, 0).astype(np.int32)


def round_trip(labels, **options):
    return distance.decode(distance.ideal_maps(distance.encode(labels)), **options)


def hills_of(profile):
    """Raw maps of a ridge 9 px wide and as high along its length as the profile says."""
    height = np.zeros((21, len(profile)))
    height[6:15] = profile
    maps = np.stack([np.where(height > 0, 8.0, -8.0), distance.DISTANCE_SCALE * height])
    return maps.astype(np.float32)


def test_a_square_is_a_pyramid_of_height_one():
    labels = np.zeros((9, 9), np.int32)
    labels[2:7, 2:7] = 3
    foreground, height = distance.encode(labels)
    assert np.array_equal(foreground, labels > 0)
    # Pixel centres lie 0.5, 1.5 and 2.5 inside the outline.
    assert height[4, 2:7] == pytest.approx([0.2, 0.6, 1, 0.6, 0.2])
    assert height[2, 2:7] == pytest.approx([0.2] * 5)
    assert (height[labels == 0] == 0).all()


def test_touching_cells_have_hills_of_their_own():
    labels = np.zeros((9, 14), np.int32)
    labels[2:7, 2:7], labels[2:7, 7:12] = 1, 2
    height = distance.encode(labels)[1]
    assert height[4, 2:12] == pytest.approx([0.2, 0.6, 1, 0.6, 0.2] * 2)
    assert np.array_equal(height, distance.encode(labels * 1000)[1])


def test_a_cell_that_leaves_the_image_goes_on():
    labels = np.zeros((8, 6), np.int32)
    labels[:5] = 1  # the outline is below row 4 only
    assert distance.encode(labels)[1, :, 3] == pytest.approx([1, 3.5 / 4.5, 2.5 / 4.5, 1.5 / 4.5, 0.5 / 4.5, 0, 0, 0])


@pytest.mark.parametrize(
    ("radius", "pitch"),
    [(3, 8), (3, 6), (10, 24), (13, 22), (40, 76), (90, 176)],
    ids=["tiny", "tiny-touching", "round", "touching", "large", "very large"],
)
def test_round_trip_finds_every_round_cell(radius, pitch):
    labels = grid_of_disks(radius, pitch, n={3: 20, 90: 3}.get(radius, 6))
    assert match(labels, round_trip(labels), (0.9,))[0].f1 == 1  # a pixel between two cells may change sides


def test_round_trip_of_long_cells_side_by_side():
    labels = np.zeros((80, 130), np.int32)
    for number in range(9):
        labels[5 + 7 * number : 12 + 7 * number, 10 + 3 * number : 90 + 3 * number] = number + 1
    found = round_trip(labels)
    assert match(labels, found, (0.9,))[0].f1 == 1


def test_touching_lines_one_pixel_wide_are_one_cell():
    labels = np.zeros((20, 40), np.int32)
    labels[9, 5:35], labels[10, 5:35] = 1, 2
    assert round_trip(labels).max() == 1  # no valley between hills that have no slope


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (np.zeros((0, 0)), 0),
        (np.zeros((30, 40)), 0),
        (np.ones((1, 1)), 1),
        (np.ones((1, 25)), 1),
        (np.ones((30, 40)), 1),
        (np.pad([[7]], 5), 1),
        (np.kron(np.arange(1, 7).reshape(2, 3), np.ones((20, 20))), 6),
    ],
    ids=[
        "no pixel",
        "no cell",
        "one pixel image",
        "one row",
        "all foreground",
        "one pixel cell",
        "tiles to the border",
    ],
)
def test_edge_cases(labels, count):
    labels = labels.astype(np.int32)
    target = distance.encode(labels)
    assert target.shape == (2, *labels.shape)
    assert target.dtype == np.float32
    found = round_trip(labels, min_size=1)
    assert found.dtype == np.int32
    assert len(np.unique(found[found > 0])) == count
    assert labels.size == 0 or match(labels, found, (0.9,))[0].tp == count


def test_pieces_of_one_cell_come_back_as_cells():
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:25] = labels[5:15, 35:45] = 4
    assert distance.encode(labels)[1, :, 30:].max() == 1
    assert round_trip(labels).max() == 2


def test_ids_are_consecutive_and_small_cells_dropped():
    labels = grid_of_disks(10, 24, n=2)
    labels[0:3, 22:25] = 9  # nine pixels
    assert np.array_equal(np.unique(round_trip(labels)), np.arange(5))
    assert np.array_equal(np.unique(round_trip(labels, min_size=9)), np.arange(6))


@pytest.mark.parametrize(("valley", "count"), [(0.5, 2), (0.9, 1)])
def test_a_shallow_valley_does_not_part_a_cell(valley, count):
    maps = hills_of(np.interp(np.arange(80), [0, 15, 40, 65, 79], [0.1, 1, valley, 1, 0.1]))
    assert distance.decode(maps).max() == count


def test_a_bump_on_the_slope_joins_its_own_hill_and_no_second():
    # A bump of height .30 between valleys of .20 and .15: less than .15 deep, it joins the left hill only.
    profile = np.interp(np.arange(100), [0, 20, 40, 48, 56, 78, 99], [0.1, 1, 0.2, 0.3, 0.15, 1, 0.1])
    found = distance.decode(hills_of(profile))
    assert found.max() == 2
    assert found[10, 48] == found[10, 20] != found[10, 78]


def test_noise_costs_little():
    labels = grid_of_disks(12, 22, n=8)
    maps = distance.ideal_maps(distance.encode(labels))
    maps += np.random.default_rng(0).normal(0, 0.5, maps.shape).astype(np.float32)
    assert match(labels, distance.decode(maps), (0.75,))[0].f1 >= 0.98


def test_foreground_threshold_and_confidence():
    maps = np.zeros((2, 1, 3), np.float32)
    maps[0, 0] = [-np.log(3), 0, np.log(9)]  # probabilities 1/4, 1/2, 9/10
    assert distance.foreground(maps)[0] == pytest.approx([0.25, 0.5, 0.9])
    assert distance.confidence(maps)[0] == pytest.approx([0.5, 0, 0.8])
    maps[1] = distance.DISTANCE_SCALE
    assert distance.decode(maps, min_size=1).tolist() == [[0, 0, 1]]
    assert distance.decode(maps, min_size=1, foreground_threshold=-1).tolist() == [[0, 1, 1]]


def test_wrong_shapes_are_named():
    with pytest.raises(CellsegError, match=r"\(H, W\), got \(3, 4, 5\)"):
        distance.encode(np.zeros((3, 4, 5), np.int32))
    with pytest.raises(CellsegError, match=r"\(2, H, W\), got \(3, 4, 5\)"):
        distance.decode(np.zeros((3, 4, 5), np.float32))
