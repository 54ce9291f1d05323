"""Regions, the grid of windows and the cutting into blocks: known by counting."""

from itertools import pairwise

import numpy as np
import pytest
from monai.data.utils import dense_patch_slices

from cellseg.slides.blocks import Grid, Region, make_plan, window_grid


def test_regions_are_cut_off_at_the_edges_and_moved_into_each_other():
    region = Region(10, 20, 30, 50)
    assert region.shape == (20, 30)
    assert region.size == 600
    assert region.grown(15, (40, 100)) == Region(0, 5, 40, 65)
    assert region.common(Region(25, 0, 90, 22)) == Region(25, 20, 30, 22)
    assert region.common(Region(30, 20, 40, 50)).size == 0
    assert Region(12, 25, 13, 26).within(region) == Region(2, 5, 3, 6)
    assert np.zeros((40, 100))[region.rows, region.columns].shape == region.shape


def test_at_another_size_neighbours_stay_neighbours_and_covers_cover():
    old, new = (100, 90), (33, 250)
    borders = [0, 17, 50, 51, 100]
    parts = [Region(top, 0, bottom, 90).scaled(old, new) for top, bottom in pairwise(borders)]
    assert [part.top for part in parts[1:]] == [part.bottom for part in parts[:-1]]
    assert (parts[0].top, parts[-1].bottom, parts[0].right) == (0, 33, 250)
    for top in range(90):
        part, cover = Region(top, top, top + 10, top + 7), Region(top, top, top + 10, top + 7).covered(old, new)
        rows = (np.arange(part.top, part.bottom) + 0.5) * new[0] / old[0]
        assert cover.top <= rows[0] < rows[-1] < cover.bottom <= new[0]
        assert part.scaled(old, new).common(cover) == part.scaled(old, new)


@pytest.mark.parametrize("shape", [(97, 200), (193, 128), (400, 300), (193, 1000), (64, 1000)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_the_grid_is_that_of_monai(shape, overlap):
    grid = window_grid(shape, 128, overlap)
    window = (min(128, shape[0]), min(128, shape[1]))
    step = tuple(
        side if side == whole else int(side * (1 - overlap)) for side, whole in zip(window, shape, strict=True)
    )
    expected = dense_patch_slices(shape, window, step)
    ours = [
        (slice(top, top + grid.window[0]), slice(left, left + grid.window[1]))
        for top in grid.tops
        for left in grid.lefts
    ]
    assert ours == expected


def test_small_images_are_one_window_and_flipped_ones_are_seen_through_the_mirrored_grid():
    assert window_grid((192, 100), 128, 0.25) == Grid((0,), (0,), (192, 100))
    assert not window_grid((193, 100), 128, 0.25).is_single
    assert window_grid((300, 210), 128, 0.25).tops == (0, 96, 172)
    assert window_grid((300, 210), 128, 0.25, (0,)) == Grid((0, 76, 172), (0, 82), (128, 128))


@pytest.mark.parametrize(("shape", "block", "zoom", "count"), [
    ((100, 200), 64, 1.0, 2 * 4), ((64, 64), 64, 1.0, 1), ((65, 64), 64, 1.0, 2), ((65, 64), 64, 0.5, 2),
    ((100, 200), 64, 1.5, 3 * 5), ((1, 1), 64, 4.0, 1),
])  # fmt: skip
def test_every_pixel_is_in_one_core_and_no_core_is_larger_than_a_block(shape, block, zoom, count):
    plan = make_plan(shape, zoom, 24.0, block)
    hits = np.zeros(shape, int)
    for one in plan.blocks():
        hits[one.core.rows, one.core.columns] += 1
        assert max(one.core.shape) * max(zoom, 1) <= block + max(zoom, 1)  # cores differ by a pixel at most
    assert (hits == 1).all()
    assert len(plan.blocks()) == count
    assert [one.place for one in plan.blocks()] == sorted(one.place for one in plan.blocks())


def test_the_halo_is_three_cells_wide_and_grows_to_a_quarter_of_a_block():
    plan = make_plan((9000, 9000), 1.0, 24.0, 2048)
    assert (plan.halo, plan.largest_halo) == (72, 512)
    plan = make_plan((9000, 9000), 0.5, 24.0, 2048)  # cells of 48 pixels
    assert (plan.halo, plan.largest_halo) == (144, 512)
    plan = make_plan((9000, 9000), 4.0, 24.0, 2048)  # cells of 6 pixels, decoded at 24
    assert (plan.halo, plan.largest_halo) == (32, 128)
    assert make_plan((300, 300), 1.0, 24.0, 64).largest_halo == 144
