"""Flows point to centres, transform as vectors do, and decode back to the cells they came from."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cellseg.core import CellsegError
from cellseg.instances import flow


def disk(shape, centre, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def grid_of_disks(radius, pitch, n=6):
    """Disks on a square grid, cut at the middle line between neighbours: they touch where pitch < 2 radius."""
    size = n * pitch
    labels = np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    cell = (y // pitch) * n + x // pitch + 1
    inside = (y % pitch - pitch // 2) ** 2 + (x % pitch - pitch // 2) ** 2 <= radius**2
    labels[inside] = cell[inside]
    return labels


def arc(shape, centre, radius, half_width, sweep):
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(y - centre[0], x - centre[1])
    angle = np.arctan2(y - centre[0], x - centre[1])
    return (abs(distance - radius) <= half_width) & (abs(angle) <= sweep / 2)


def f1_at(labels_true, labels_pred, threshold):
    pairs = np.stack([labels_true.ravel(), labels_pred.ravel()])
    both, overlap = np.unique(pairs, axis=1, return_counts=True)
    area_true, area_pred = np.bincount(pairs[0]), np.bincount(pairs[1])
    n_true, n_pred = (area_true[1:] > 0).sum(), (area_pred[1:] > 0).sum()
    union = area_true[both[0]] + area_pred[both[1]] - overlap
    hits = ((both > 0).all(axis=0) & (overlap / union > threshold)).sum()
    return 2 * hits / (n_true + n_pred)


def round_trip(labels, **options):
    return flow.decode(flow.ideal_maps(flow.encode(labels)), **options)


def same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


def noisy(maps, seed=0):
    """Blurred by one pixel and with noise of standard deviation 0.1 of the unit flow and of a logit."""
    rng = np.random.default_rng(seed)
    blurred = np.stack([ndimage.gaussian_filter(map_, 1) for map_ in maps])
    noise = rng.normal(size=maps.shape) * np.array([0.1, 0.5, 0.5])[:, None, None]
    return (blurred + noise).astype(np.float32)


def test_flow_of_a_disk_points_at_its_centre():
    labels = disk((41, 41), (20, 20), 15).astype(np.int32)
    foreground, dy, dx = flow.encode(labels)
    assert np.array_equal(foreground, labels)
    y, x = np.nonzero(labels)
    to_centre = np.stack([20 - y, 20 - x]) / np.maximum(np.hypot(20 - y, 20 - x), 1)
    cosine = dy[y, x] * to_centre[0] + dx[y, x] * to_centre[1]
    assert cosine[(y != 20) | (x != 20)].min() > np.cos(np.deg2rad(15))
    assert dy[20, 20] == dx[20, 20] == 0
    assert (dy[20, 20 - 5], dx[20, 20 - 5]) == pytest.approx((0, 1), abs=1e-6)
    assert (dy[20 + 5, 20], dx[20 + 5, 20]) == pytest.approx((-1, 0), abs=1e-6)


def plain_diffusion(mask, centre, steps):
    """Heat as Cellpose's paper tells it, one pixel after another."""
    heat = np.zeros(np.add(mask.shape, 2))
    for _ in range(steps):
        heat[centre[0] + 1, centre[1] + 1] += 1
        mean = sum(heat[1 + dy : heat.shape[0] - 1 + dy, 1 + dx : heat.shape[1] - 1 + dx] for dy, dx in NEAR) / 9
        heat[1:-1, 1:-1] = np.where(mask, mean, 0)
    slope = np.stack([heat[2:, 1:-1] - heat[:-2, 1:-1], heat[1:-1, 2:] - heat[1:-1, :-2]])
    norm = np.hypot(*slope)
    return np.where(mask, slope / np.where(norm > 0, norm, 1), 0)


NEAR = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def test_flow_is_the_slope_of_diffused_heat():
    mask = np.zeros((12, 15), bool)
    mask[2:10, 3:6] = mask[7:10, 3:13] = True  # an L, 8 high and 10 wide
    labels = np.where(mask, 1, 2).astype(np.int32)  # and all around it another cell
    # Medians of its 45 pixels: the 23rd row is 7, the 23rd column 5. Steps for 8 + 10: 2 ** (26 / 6) = 20.2.
    expected = plain_diffusion(mask, (7, 5), 21)
    assert np.abs(flow.encode(labels)[1:] - expected)[:, mask].max() < 1e-5


def test_heat_that_fades_along_a_line_still_has_a_direction():
    labels = np.zeros((9, 700), np.int32)
    labels[2, 10:690] = 1  # one pixel wide: heat falls by an eighth a pixel, 10 ** -300 at the ends
    labels[5:8, 10:40] = 2
    dx = flow.encode(labels)[2]
    assert np.array_equal(dx[2, 10:690], np.sign(350 - np.arange(10, 690)))
    assert (flow.encode(labels)[:, 5:8] == flow.encode(np.where(labels == 2, 2, 0))[:, 5:8]).mean() > 0.9


def test_flow_is_unit_on_cells_and_zero_outside():
    labels = grid_of_disks(10, 18)
    norm = np.hypot(*flow.encode(labels)[1:])
    assert (norm[labels == 0] == 0).all()
    assert (np.isclose(norm, 1) | (norm == 0)).all()
    assert (norm[labels > 0] == 0).sum() <= labels.max()  # the centres only


def test_flow_does_not_depend_on_neighbours_or_ids():
    labels = grid_of_disks(10, 18)
    alone = np.where(labels == 8, 3, 0).astype(np.int32)
    inside = labels == 8
    assert np.array_equal(flow.encode(labels)[:, inside], flow.encode(alone)[:, inside])
    assert np.array_equal(flow.encode(labels * 1000), flow.encode(labels))


@pytest.mark.parametrize(
    ("radius", "pitch"),
    [(3, 8), (3, 6), (10, 24), (13, 22), (40, 76)],
    ids=["tiny", "tiny-touching", "round", "touching", "large"],
)
def test_round_trip_is_exact_on_round_cells(radius, pitch):
    labels = grid_of_disks(radius, pitch, n=6 if radius > 3 else 20)
    assert same_partition(labels, round_trip(labels))


def test_round_trip_of_small_cells_beside_large_ones():
    labels = grid_of_disks(45, 100, n=3)
    small = grid_of_disks(3, 10, n=30)
    free = ndimage.distance_transform_edt(labels == 0) > 3
    keep = np.isin(small, [i for i in range(1, small.max() + 1) if free[small == i].all()]) & (small > 0)
    labels[keep] = small[keep] + 9
    assert len(np.unique(labels)) > 60
    assert same_partition(labels, round_trip(labels))


def test_round_trip_of_long_curved_cells():
    labels = np.zeros((160, 160), np.int32)
    for number, radius in enumerate((20, 32, 44, 56), start=1):
        labels[arc((160, 160), (80, 70), radius, 4, 4.0)] = number
    assert f1_at(labels, round_trip(labels), 0.9) == 1


def test_round_trip_of_long_cells_side_by_side():
    labels = np.zeros((80, 130), np.int32)
    for number in range(9):
        labels[5 + 7 * number : 12 + 7 * number, 10 + 3 * number : 90 + 3 * number] = number + 1
    assert same_partition(labels, round_trip(labels))


def test_a_cell_longer_than_the_usual_path_is_one():
    labels = np.zeros((15, 1400), np.int32)
    labels[4:11, 20:1380] = 1  # 680 px from its ends to its centre
    assert same_partition(labels, round_trip(labels))


@pytest.mark.parametrize(
    ("gained", "steps", "ends"),
    [(0.2, 4, True), (0.3, 4, False), (100, 128, False), (60, 256, True), (100, 256, False), (500, 1024, True)],
    ids=["still", "oscillates", "usual length", "long enough", "on its way", "longer than the image"],
)
def test_paths_are_as_long_as_cells_ask(gained, steps, ends):
    assert flow.path_ends(gained, steps, longest=1000) == ends


def test_paths_do_not_leave_the_image():
    maps = np.zeros((3, 40, 60), np.float32)
    maps[:2], maps[2, :, 30:] = 8, 5  # up and out everywhere, to the right in the right half
    labels = flow.decode(maps)
    assert labels.max() == 2
    assert (labels > 0).all()


def test_a_stray_fragment_of_a_sink_joins_its_cell():
    maps = flow.ideal_maps(flow.encode(grid_of_disks(13, 30, n=1)))
    maps[1:, 8:11, 13:18] = 0  # a patch of pixels that say nothing stays where it is, 6 px from the sink
    assert flow.decode(maps, min_size=1).max() == 1


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
    target = flow.encode(labels)
    assert target.shape == (3, *labels.shape)
    assert target.dtype == np.float32
    found = round_trip(labels, min_size=1)
    assert found.dtype == np.int32
    assert len(np.unique(found[found > 0])) == count
    assert same_partition(labels, found) or labels.size == 0


def test_pieces_of_one_cell_come_back_as_cells():
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:25] = labels[5:25, 35:55] = 4
    assert round_trip(labels).max() == 2


def test_ids_are_consecutive_and_small_cells_dropped():
    labels = grid_of_disks(10, 24, n=2)
    labels[0:3, 22:25] = 9  # nine pixels
    assert np.array_equal(np.unique(round_trip(labels)), np.arange(5))
    assert np.array_equal(np.unique(round_trip(labels, min_size=9)), np.arange(6))


@pytest.mark.parametrize(("radius", "pitch"), [(10, 24), (12, 22), (15, 28)])
def test_blur_and_noise_cost_little(radius, pitch):
    labels = grid_of_disks(radius, pitch, n=8)
    maps = noisy(flow.ideal_maps(flow.encode(labels)))
    assert f1_at(labels, flow.decode(maps), 0.5) >= 0.97


def test_foreground_threshold_moves_the_border():
    labels = grid_of_disks(10, 24, n=2)
    maps = flow.ideal_maps(flow.encode(labels))
    assert flow.decode(maps, foreground_threshold=9.0).max() == 0
    maps[0, labels == 1] = 0.5
    assert flow.decode(maps, foreground_threshold=1.0).max() == 3


def test_flow_threshold_drops_cells_without_a_consistent_flow():
    labels = grid_of_disks(10, 24, n=3)
    maps = flow.ideal_maps(flow.encode(labels))
    assert flow.decode(maps, flow_threshold=0.4).max() == 9
    maps[1:, labels == 5] = 0  # arrows erased: error 1 a pixel
    assert flow.decode(maps, flow_threshold=0.4, min_size=1).max() == 8


def test_confidence_is_the_clipped_norm_on_cells():
    maps = np.zeros((3, 1, 4), np.float32)
    maps[0, 0] = [8, 8, 8, -np.log(4)]
    maps[1, 0] = [0, 3, 30, 30]
    maps[2, 0] = [0, 4, 40, 40]
    maps[1:, 0, 1] /= 2
    assert np.allclose(flow.confidence(maps), [[0, 0.5, 1, 0.8]])


@pytest.mark.parametrize(
    ("move", "matrix"),
    [
        (lambda a: a[::-1], [[-1, 0], [0, 1]]),
        (lambda a: a[:, ::-1], [[1, 0], [0, -1]]),
        (np.rot90, [[0, -1], [1, 0]]),
        (lambda a: np.rot90(a, 2), [[-1, 0], [0, -1]]),
        (np.transpose, [[0, 1], [1, 0]]),
    ],
    ids=["flip y", "flip x", "rot90", "rot180", "transpose"],
)
def test_transformed_flow_is_the_flow_of_transformed_labels(move, matrix):
    labels = disk((41, 47), (20, 22), 15).astype(np.int32)  # symmetric: the median is the same pixel after any move
    target = flow.encode(labels)
    moved = flow.transform_flow(np.stack([move(target[1]), move(target[2])]), np.array(matrix))
    assert np.allclose(moved, flow.encode(np.ascontiguousarray(move(labels)))[1:], atol=1e-4)


def test_a_scale_leaves_directions():
    vectors = flow.encode(disk((31, 31), (15, 15), 9).astype(np.int32))[1:]
    assert np.allclose(flow.transform_flow(vectors, 1.7 * np.eye(2)), vectors, atol=1e-6)


def test_wrong_shapes_are_named():
    with pytest.raises(CellsegError, match=r"\(H, W\), got \(3, 4, 5\)"):
        flow.encode(np.zeros((3, 4, 5), np.int32))
    with pytest.raises(CellsegError, match=r"\(3, H, W\), got \(2, 4, 5\)"):
        flow.decode(np.zeros((2, 4, 5), np.float32))
    with pytest.raises(CellsegError, match=r"at most 32,766 pixels a side, got \(1, 40000\)"):
        flow.decode(np.zeros((3, 1, 40000), np.float32))


@pytest.mark.realdata
def test_round_trip_on_the_livecell_sample(shared_data: Path):
    from pycocotools import mask

    data = json.loads((shared_data / "livecell/annotations/LIVECell/livecell_coco_val.json").read_text())
    image = data["images"][0]
    labels = np.zeros((image["height"], image["width"]), np.int32)
    cells = [cell for cell in data["annotations"] if cell["image_id"] == image["id"]]
    for number, cell in enumerate(sorted(cells, key=lambda cell: -cell["area"]), start=1):
        runs = mask.frPyObjects(cell["segmentation"], image["height"], image["width"])
        labels[mask.decode(mask.merge(runs)) > 0] = number
    assert f1_at(labels, round_trip(labels), 0.9) >= 0.97


def test_cells_are_the_same_wherever_in_an_image_they_lie():
    rng, maps = np.random.default_rng(0), np.zeros((3, 210, 300), np.float32)
    maps[0] = -8
    maps[0, 5:205, 30:270] = 8
    turns = np.stack([ndimage.gaussian_filter(rng.normal(size=(210, 300)), 3) for _ in range(2)])
    maps[1:] = flow.FLOW_SCALE * turns / np.hypot(*turns).mean()  # paths that wander: no cell's own flow
    wide = np.zeros((3, 210, 6000), np.float32)
    wide[0] = -8
    wide[:, :, 5500:5800] = maps
    alone = flow.decode(maps)
    assert alone.max() > 100
    assert np.array_equal(flow.decode(wide)[:, 5500:5800], alone)
