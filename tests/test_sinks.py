"""Which places where paths end are one cell: a question of how far apart they lie and how large they are."""

import numpy as np
import pytest

from cellseg.instances.sinks import group_ends

SHAPE = (100, 200)


def numbers(sinks, diameter=None, min_size=1):
    """Numbers of sinks given as (row, column, paths)."""
    place = np.array([row * SHAPE[1] + column for row, column, _ in sinks])
    order = np.argsort(place)
    found = np.zeros(len(sinks), int)
    found[order] = group_ends(place[order], np.array([paths for *_, paths in sinks])[order], SHAPE, diameter, min_size)
    return found.tolist()


# A sink of 314 paths is that of a disk of radius 10 (sqrt(314 / pi) = 9.997).
@pytest.mark.parametrize(
    ("apart", "paths", "joined"),
    [(3, 314, True), (4, 314, False), (4, 100, False), (7, 78, True), (7, 60, True), (8, 60, False)],
    ids=["alike, near", "alike, apart", "a third", "just a fragment", "fragment", "fragment, apart"],
)
def test_sinks_join_within_a_share_of_the_larger_radius(apart, paths, joined):
    # Alike in size: within 0.35 of 10 px; a fragment, of less than half the radius, within 0.8.
    assert numbers([(50, 50, 314), (50, 50 + apart, paths)]) == ([1, 1] if joined else [1, 2])
    assert numbers([(50, 50, paths), (50 + apart, 50, 314)]) == ([1, 1] if joined else [1, 2])


def test_touching_places_are_one_sink_whatever_their_size():
    assert numbers([(10, 10, 1), (11, 11, 1), (12, 12, 1)]) == [1, 1, 1]


def test_a_large_cell_reaches_further_than_small_ones_beside_it():
    # Radius 50: a fragment 39 px away joins, while small cells 6 px apart (radius 5) stay two.
    sinks = [(50, 60, 7854), (50, 99, 3), (90, 150, 79), (90, 156, 79)]
    assert numbers(sinks) == [1, 1, 2, 3]


def test_a_chain_of_fragments_is_one_cell():
    assert numbers([(50, 50, 314), (50, 57, 60), (57, 50, 60)]) == [1, 1, 1]


def test_the_diameter_bounds_the_reach():
    assert numbers([(50, 50, 314), (50, 53, 314)], diameter=8) == [1, 2]


def test_small_cells_get_no_number_and_numbers_no_gap():
    assert numbers([(10, 10, 314), (50, 50, 9), (90, 90, 314)], min_size=10) == [1, 0, 2]
    assert numbers([(10, 10, 5), (10, 11, 5)], min_size=10) == [1, 1]  # together ten


def test_no_place():
    empty = np.zeros(0, int)
    assert group_ends(empty, empty, SHAPE, None, 1).tolist() == []
