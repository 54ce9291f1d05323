"""Outlines along pixel edges, filled again by another rule, give the same pixels; QuPath and ImageJ read the files."""

import json
import struct

import numpy as np
import pandas as pd
import pytest
import roifile
from scipy import ndimage

from cellseg.core import CellsegError
from cellseg.images import find_images, read_image, read_labels
from cellseg.labels import outlines
from cellseg.outputs import (
    OUTLINE_FORMATS,
    FilePixels,
    cell_polygons,
    write_geojson,
    write_outputs,
    write_overlay,
    write_rois,
)
from cellseg.outputs.cells import cell_blocks, find_boxes
from cellseg.outputs.polygons import trace
from cellseg.outputs.rois import to_roi
from cellseg.slides.windows import write_tiled


def mask_of(text):
    return np.array([[character == "#" for character in line.strip()] for line in text.strip().splitlines()])


def fill(rings, shape):
    """Even-odd rule: every upright side turns over all pixels to its right."""
    filled = np.zeros(shape, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if x0 == x1:
                filled[int(min(y0, y1)) : int(max(y0, y1)), int(x0) :] ^= True
    return filled


def twice_area(ring):
    x, y = np.asarray(ring).T
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def lists(polygons):
    return [[ring.tolist() for ring in polygon] for polygon in polygons]


def check_geometry(mask, polygons):
    """Check what makes polygons valid: one per piece, simple rings of corners, holes inside, the right area."""
    assert len(polygons) == ndimage.label(mask)[1]
    assert np.array_equal(fill([ring for polygon in polygons for ring in polygon], mask.shape), mask)
    for outline, *holes in polygons:
        assert twice_area(outline) > 0
        assert all(twice_area(hole) < 0 for hole in holes)
        piece = fill([outline, *holes], mask.shape)
        assert ndimage.label(piece)[1] == 1
        assert twice_area(outline) + sum(map(twice_area, holes)) == 2 * np.count_nonzero(piece)
        for ring in (outline, *holes):
            sides = np.roll(ring, -1, axis=0) - ring
            assert len(np.unique(ring, axis=0)) == len(ring)
            assert np.array_equal(np.count_nonzero(sides, axis=1), np.ones(len(ring)))  # along one axis each
            assert not np.any(sides * np.roll(sides, 1, axis=0))  # and the next along the other


def test_a_pixel_is_a_square_of_corners():
    mask = np.zeros((4, 5), bool)
    mask[1, 3] = True
    assert lists(trace(mask)) == [[[[3, 1], [4, 1], [4, 2], [3, 2]]]]


def test_an_empty_mask_has_no_polygon():
    assert trace(np.zeros((3, 4), bool)) == []


def test_a_full_mask_is_its_frame():
    assert lists(trace(np.ones((3, 4), bool))) == [[[[0, 0], [4, 0], [4, 3], [0, 3]]]]


def test_a_hole_runs_the_other_way():
    mask = mask_of("""
        ###
        #.#
        ###
    """)
    assert lists(trace(mask)) == [[[[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 2], [2, 2], [2, 1], [1, 1]]]]


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    falling = mask_of("""
        #.
        .#
    """)
    assert lists(trace(falling)) == [[[[0, 0], [1, 0], [1, 1], [0, 1]]], [[[1, 1], [2, 1], [2, 2], [1, 2]]]]
    assert lists(trace(falling[:, ::-1])) == [[[[1, 0], [2, 0], [2, 1], [1, 1]]], [[[0, 1], [1, 1], [1, 2], [0, 2]]]]


def test_a_hole_may_touch_its_outline_in_a_point():
    mask = mask_of("""
        ###
        #.#
        ##.
    """)
    outline = [[0, 0], [3, 0], [3, 2], [2, 2], [2, 3], [0, 3]]
    assert lists(trace(mask)) == [[outline, [[1, 2], [2, 2], [2, 1], [1, 1]]]]
    check_geometry(mask[::-1], trace(mask[::-1]))  # the other diagonal


def test_a_cell_inside_the_hole_of_its_own_is_a_polygon_of_its_own():
    mask = mask_of("""
        #####
        #...#
        #.#.#
        #...#
        #####
    """)
    polygons = trace(mask)
    assert [len(polygon) for polygon in polygons] == [2, 1]
    check_geometry(mask, polygons)


def test_any_mask_is_given_back_by_valid_polygons():
    rng = np.random.default_rng(0)
    for share in np.repeat([0.1, 0.3, 0.5, 0.6, 0.7, 0.9], 40):
        mask = rng.random((9, 11)) < share
        check_geometry(mask, trace(mask))


@pytest.fixture
def labels():
    """Touching cells of all kinds with sparse ids: a ring, one in its hole, one in two pieces, one pixel, a border."""
    labels = np.zeros((30, 40), np.int32)
    labels[2:12, 3:14] = 7
    labels[5:9, 6:10] = 0
    labels[6, 7] = 9
    labels[12:20, 3:30] = 12
    labels[25:29, 31:40] = 12
    labels[20:24, 0:5] = 70_000
    labels[24, 5] = 70_000
    return labels


def test_cells_come_in_order_of_their_ids_in_coordinates_of_the_image(labels):
    found = dict(cell_polygons(labels))
    assert list(found) == [7, 9, 12, 70_000]
    assert lists(found[9]) == [[[[7, 6], [8, 6], [8, 7], [7, 7]]]]
    assert lists(found[7]) == [[[[3, 2], [14, 2], [14, 12], [3, 12]], [[6, 9], [10, 9], [10, 5], [6, 5]]]]
    assert [len(polygons) for polygons in found.values()] == [1, 1, 2, 2]
    huge = np.where(labels == 70_000, 2**31 - 1, labels).astype(np.int32)
    assert list(dict(cell_polygons(huge))) == [7, 9, 12, 2**31 - 1]
    assert lists(dict(cell_polygons(huge))[2**31 - 1]) == lists(found[70_000])
    assert list(cell_polygons(np.zeros((4, 4), np.int32))) == []


class Slide:
    """Pixels that are read by rectangle and never all at once."""

    def __init__(self, pixels, largest):
        self.pixels, self.shape, self.largest = pixels, pixels.shape, largest

    def __getitem__(self, place):
        window = self.pixels[place]
        assert window.size <= self.largest
        return window


def test_a_slide_is_gone_through_in_blocks_that_hold_each_cell_whole_and_once(monkeypatch, labels):
    monkeypatch.setattr("cellseg.outputs.cells.BAND_ROWS", 8)
    monkeypatch.setattr("cellseg.outputs.cells.BLOCK", 10)
    slide = Slide(labels, largest=18 * 37)  # the cell in two pieces
    ids, boxes = find_boxes(slide)
    assert ids.tolist() == [7, 9, 12, 70_000]
    assert boxes.tolist() == [[2, 3, 12, 14], [6, 7, 7, 8], [12, 3, 29, 40], [20, 0, 25, 6]]
    blocks = list(cell_blocks(slide))
    assert [block.ids.tolist() for block in blocks] == [[7, 9], [12], [70_000]]
    assert [block.place for block in blocks] == [
        (slice(2, 12), slice(3, 14)), (slice(12, 29), slice(3, 40)), (slice(20, 25), slice(0, 6)),
    ]  # fmt: skip
    assert 70_000 in blocks[1].labels  # in part, and traced in its own block alone
    whole = {label: lists(polygons) for label, polygons in cell_polygons(labels)}
    assert {label: lists(polygons) for label, polygons in cell_polygons(slide)} == whole
    assert list(cell_polygons(Slide(np.zeros((20, 20), np.int32), 160))) == []


def rings_of(feature):
    geometry = feature["geometry"]
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [[ring[:-1] for ring in part] for part in parts if all(ring[0] == ring[-1] for ring in part)]


def from_geojson(path, shape):
    out = np.zeros(shape, np.int32)
    for feature in json.loads(path.read_text())["features"]:
        inside = fill([ring for part in rings_of(feature) for ring in part], shape)
        assert not out[inside].any()
        out[inside] = int(feature["properties"]["name"])
    return out


def from_rois(path, shape):
    out = np.zeros(shape, np.int32)
    for roi in roifile.roiread(path):
        inside = fill([ring for ring in roi.coordinates(multi=True)], shape)
        assert not out[inside].any()
        out[inside] = int(roi.name)
    return out


def test_geojson_gives_the_labels_back(tmp_path, labels):
    path = tmp_path / "a.geojson"
    assert write_geojson(path, labels) == 4
    assert np.array_equal(from_geojson(path, labels.shape), labels)


def test_geojson_has_the_form_of_qupath(tmp_path, labels):
    cells = pd.DataFrame({"label": [7, 9, 12, 70_000], "score": [0.5, np.nan, 1.0, 0.25], "image": "a", "top": 2})
    path = tmp_path / "a.geojson"
    write_geojson(path, labels, object_type="annotation", classification="Cell", measurements=cells)
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    ring, pixel = content["features"][:2]
    assert ring["type"] == "Feature"
    assert ring["properties"] == {
        "objectType": "annotation", "classification": {"name": "Cell"}, "name": "7", "measurements": {"score": 0.5},
    }  # fmt: skip
    assert ring["geometry"]["type"] == "Polygon"
    assert pixel["properties"]["measurements"] == {}  # JSON has no NaN
    assert pixel["geometry"]["coordinates"] == [[[7, 6], [8, 6], [8, 7], [7, 7], [7, 6]]]
    assert content["features"][2]["geometry"]["type"] == "MultiPolygon"


def test_geojson_without_cells_is_an_empty_collection(tmp_path):
    path = tmp_path / "a.geojson"
    assert write_geojson(path, np.zeros((5, 5), np.int32)) == 0
    assert json.loads(path.read_text()) == {"type": "FeatureCollection", "features": []}


def test_geojson_refuses_what_it_cannot_say(tmp_path, labels):
    path = tmp_path / "a.geojson"
    with pytest.raises(CellsegError, match="unknown object type 'nucleus'; known: detection, annotation, cell"):
        write_geojson(path, labels, object_type="nucleus")
    with pytest.raises(CellsegError, match="no row of cell 9"):
        write_geojson(path, labels, measurements=pd.DataFrame({"label": [7], "score": [0.5]}))
    assert list(tmp_path.iterdir()) == []


def test_rois_give_the_labels_back(tmp_path, labels):
    path = tmp_path / "a.rois.zip"
    assert write_rois(path, labels) == 4
    assert np.array_equal(from_rois(path, labels.shape), labels)
    assert [roi.name for roi in roifile.roiread(path)] == ["000007", "000009", "000012", "070000"]
    first = path.read_bytes()
    write_rois(path, labels)
    assert path.read_bytes() == first


def test_a_pixel_is_the_roi_that_imagejs_wand_makes(labels):
    (pixel,) = dict(cell_polygons(labels))[9]
    content = to_roi([pixel], "9").tobytes()
    version, kind, top, left, bottom, right, count = struct.unpack(">hBxhhhhH", content[4:18])
    assert content[:4] == b"Iout"
    assert (kind, top, left, bottom, right, count) == (8, 6, 7, 7, 8, 4)  # 8 is a traced polygon
    assert version >= 217
    assert struct.unpack(">8h", content[64:80]) == (0, 1, 1, 0, 0, 0, 1, 1)  # x, then y, from left and top
    assert struct.unpack(">h", content[50:52]) == (0,)  # no option: whole numbers


@pytest.mark.parametrize("offset", [40_000, 70_000])
def test_rois_reach_beyond_the_range_of_short_numbers(offset):
    ring = np.array([[0, 0], [3, 0], [3, 2], [0, 2]]) + offset
    back = roifile.ImagejRoi.frombytes(to_roi([[ring]], "1").tobytes())
    assert np.array_equal(back.coordinates(), ring)
    hole = ring[::-1]
    both = roifile.ImagejRoi.frombytes(to_roi([[ring, hole]], "1").tobytes())
    assert [found[:-1].tolist() for found in both.coordinates(multi=True)] == [ring.tolist(), hole.tolist()]


def test_write_outputs_puts_everything_beside_the_labels(tmp_path, labels):
    image = np.arange(labels.size, dtype=np.uint16).reshape(labels.shape)
    scores = np.array([0.5, 0.6, 0.7, 0.8])
    written = write_outputs(
        tmp_path / "a.b.tif", labels, formats=["roi", "geojson"], table_suffix=".csv", image=image, scores=scores
    )
    names = ["a.b.cells.csv", "a.b.geojson", "a.b.rois.zip"]
    assert [path.name for path in written] == names == sorted(path.name for path in tmp_path.iterdir())
    measured = json.loads((tmp_path / "a.b.geojson").read_text())["features"][1]["properties"]["measurements"]
    assert measured["area"] == 1
    assert measured["score"] == 0.6
    assert measured["intensity_mean_0"] == 6 * 40 + 7
    assert "centroid_x" not in measured


def test_write_outputs_gives_scores_to_qupath_without_a_table(tmp_path, labels):
    (path,) = write_outputs(tmp_path / "a.tif", labels, formats=["geojson"], scores=np.array([0.5, 0.6, 0.7, 0.8]))
    features = json.loads(path.read_text())["features"]
    assert [feature["properties"]["measurements"] for feature in features] == [
        {"score": 0.5}, {"score": 0.6}, {"score": 0.7}, {"score": 0.8},
    ]  # fmt: skip


def test_an_overlay_is_the_image_with_outlines_one_pixel_wide(tmp_path):
    labels = np.zeros((90, 100), np.int32)
    labels[20:40, 30:60], labels[40:70, 30:60] = 1, 2
    image = np.where(labels > 0, 3000, 100).astype(np.uint16)
    (path,) = write_outputs(tmp_path / "a.tif", labels, formats=["png"], image=image)
    drawn = read_image(path)
    assert path.name == "a.overlay.png"
    assert drawn.shape == (900, 1000, 3)  # small images are enlarged
    orange = (drawn == (230, 153, 0)).all(axis=-1)
    assert np.array_equal(orange, outlines(labels.repeat(10, 0).repeat(10, 1)))
    rest = drawn[~orange]
    assert set(map(tuple, np.unique(rest, axis=0))) == {(0, 0, 0), (255, 255, 255)}
    assert find_images(tmp_path) == []  # it is never taken for an image, or for labels


def test_an_overlay_of_colours_shows_them_as_they_are(tmp_path):
    image = np.zeros((1200, 1000, 3), np.uint8)
    image[:] = (180, 90, 150)
    write_overlay(tmp_path / "a.png", np.zeros((1200, 1000), np.int32), image)
    assert np.array_equal(read_image(tmp_path / "a.png"), image)


@pytest.mark.parametrize("shape", [(4, 9000), (1, 6000), (30, 40, 6), (30, 40, 2)])
def test_an_overlay_of_an_odd_image_is_drawn(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    write_overlay(tmp_path / "a.png", np.zeros(shape[:2], np.int32), image)
    sides = {(4, 9000): (1, 2250), (1, 6000): (1, 6000)}.get(shape, (750, 1000))
    assert read_image(tmp_path / "a.png").shape == (*sides, 3)


def test_an_overlay_of_a_slide_is_a_small_one_and_read_by_bands(tmp_path, monkeypatch):
    monkeypatch.setattr("cellseg.outputs.overlays.MAX_SIDE", 100)
    labels = np.zeros((950, 1003), np.int32)
    labels[300:600, 400:700] = 9
    image = (np.indices(labels.shape).sum(0) % 2 * 100 + np.where(labels > 0, 50, 0)).astype(np.uint8)
    for name in ("labels", "image"):
        write_tiled(tmp_path / f"{name}.tif", {"labels": labels, "image": image}[name])
    parts = [FilePixels(tmp_path / f"{name}.tif", labels.shape) for name in ("labels", "image")]
    write_overlay(tmp_path / "a.png", *parts)
    drawn = read_image(tmp_path / "a.png")
    assert drawn.shape == (86, 91, 3)  # eleven pixels as one
    inside, outside = drawn[35:50, 45:60, 0], drawn[:20, :20, 0]
    assert inside.min() > outside.max()
    assert np.ptp(outside) < 30  # averaged, not sampled
    assert (drawn == (230, 153, 0)).all(axis=-1).sum() == 4 * 26  # of a square of 27


def test_write_outputs_refuses_what_it_cannot_do(tmp_path, labels):
    with pytest.raises(CellsegError, match="unknown format 'svg'; known: geojson, roi, png"):
        write_outputs(tmp_path / "a.tif", labels, formats=["svg", *OUTLINE_FORMATS])
    for wish in ({"table_suffix": ".csv"}, {"formats": ["png"]}):
        with pytest.raises(CellsegError, match="wanted the raw image"):
            write_outputs(tmp_path / "a.tif", labels, **wish)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.realdata
def test_real_labels_come_back_from_qupath_and_imagej(tmp_path, shared_data):
    path = min((shared_data / "dsb2018" / "labels").iterdir())
    labels = read_labels(path)
    assert read_image(path).shape == labels.shape
    write_outputs(tmp_path / "a.tif", labels, formats=list(OUTLINE_FORMATS), image=read_image(path))
    assert np.array_equal(from_geojson(tmp_path / "a.geojson", labels.shape), labels)
    assert np.array_equal(from_rois(tmp_path / "a.rois.zip", labels.shape), labels)
