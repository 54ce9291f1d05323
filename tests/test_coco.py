import json

import numpy as np
import pytest

from cellseg.core import CellsegError
from cellseg.datasets.coco import (
    CocoAnnotation,
    CocoImage,
    decode_polygons,
    leaves_frame,
    paint,
    rasterise,
    read_coco,
    run_pixels,
)


def box(y0, x0, y1, x1):
    """The pixels [y0, y1) x [x0, x1) as one instance."""
    return [[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]]


def annotation(name, image_id, polygons):
    return {"id": name, "image_id": image_id, "category_id": 1, "segmentation": polygons, "iscrowd": 0}


def write(path, annotations, images=None):
    images = images or [{"id": 7, "width": 20, "height": 10, "file_name": "a.tif"}]
    path.write_text(json.dumps({"info": {"year": "2021"}, "images": images, "annotations": annotations}))
    return path


def full_frame(instance, height, width):
    """pycocotools' own answer, as ascending column-major indices."""
    from pycocotools import mask

    upper = np.array([width, height])
    rings = [np.clip(np.reshape(ring, (-1, 2)), 0, upper).ravel().tolist() for ring in instance]
    decoded = mask.decode(mask.merge(mask.frPyObjects(rings, height, width)))
    return np.flatnonzero(decoded.ravel("F"))


def test_list_and_dict_of_annotations_read_alike(tmp_path):
    one, two = annotation(900, 7, box(1, 1, 3, 3)), annotation(31, 7, box(4, 4, 6, 6))
    as_list = read_coco(write(tmp_path / "list.json", [one, two]))
    as_dict = read_coco(write(tmp_path / "dict.json", {"900": one, "31": two}))
    assert as_list.images == as_dict.images == [CocoImage(7, "a.tif", 20, 10)]
    assert [a.id for a in as_list.annotations[7]] == [a.id for a in as_dict.annotations[7]] == [900, 31]
    assert decode_polygons(as_dict.annotations[7][0]) == box(1, 1, 3, 3)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.0])
def test_truncated_file_is_named(tmp_path, share):
    path = write(tmp_path / "livecell_coco_val.json", [annotation(1, 7, box(1, 1, 3, 3))] * 50)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CellsegError, match=r"livecell_coco_val\.json: is truncated after [\d,]+ bytes"):
        read_coco(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{]", "not valid JSON"),
        ("[]", "wanted a COCO file"),
        ('{"images": []}', "annotations"),
        ('{"images": [{"id": 1}], "annotations": []}', "file_name"),
        ('{"images": [], "annotations": [{"image_id": "x"}]}', "image_id"),
    ],
)
def test_other_content_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CellsegError, match=message):
        read_coco(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CellsegError, match=r"gone\.json"):
        read_coco(tmp_path / "gone.json")


def test_nan_in_one_polygon_spoils_only_that_one(tmp_path):
    bad = annotation(1, 7, [[float("nan"), 1.0, 3.0, 1.0, 3.0, -float("inf")]])
    name = [{"id": 7, "file_name": "x NaN, y.tif"}]
    file = read_coco(write(tmp_path / "a.json", [bad, annotation(2, 7, box(1, 1, 3, 3))], name))
    assert [decode_polygons(a) for a in file.annotations[7]] == [None, box(1, 1, 3, 3)]
    assert file.images[0].file_name == "x NaN, y.tif"


@pytest.mark.parametrize(
    "segmentation",
    ["[]", "[[]]", "[[1,2,3,4]]", "[[1,2,3,4,5,6,7]]", '{"counts":[1],"size":[1,1]}', '[["a",1,2,3,4,5]]', "null"],
)
def test_unusable_polygons_are_none(segmentation):
    import msgspec

    assert decode_polygons(CocoAnnotation(1, 1, msgspec.Raw(segmentation.encode()))) is None
    assert decode_polygons(CocoAnnotation(1, 1)) is None


@pytest.mark.parametrize("name", ["../../etc/a.png", "/tmp/a.tif", "..\\b\\a.tif", "C:\\a.tif", "a.png", "a"])
def test_only_the_stem_of_a_file_name_counts(name):
    assert CocoImage(1, name).stem == "a"


def test_boxes_fill_exactly_their_pixels():
    labels = paint([box(0, 0, 2, 3), box(5, 10, 10, 20)], 10, 20).labels
    expected = np.zeros((10, 20), np.int32)
    expected[0:2, 0:3] = 1
    expected[5:10, 10:20] = 2
    assert labels.dtype == np.int32
    assert labels.flags.c_contiguous
    np.testing.assert_array_equal(labels, expected)


def test_smaller_cell_lies_on_top_whatever_the_order():
    large, small = box(0, 0, 8, 8), box(2, 2, 4, 4)
    for cells in ([large, small], [small, large]):
        painting = paint(cells, 10, 20)
        sizes = {1 + cells.index(large): 64 - 4, 1 + cells.index(small): 4}
        assert {i: int((painting.labels == i).sum()) for i in (1, 2)} == sizes
        assert (painting.contested, painting.foreground, painting.n_instances) == (4, 64, 2)
        assert painting.empty == painting.covered == painting.double == []


def test_double_contours_and_covered_cells_are_named():
    # 10 x 10 and 10 x 9 inside it: IoU 0.9; the third equals the second, so the later one hides the earlier.
    cells = [box(0, 0, 10, 10), box(0, 0, 10, 9), box(0, 0, 10, 9), box(0, 12, 10, 20), box(0, 12, 10, 18)]
    painting = paint(cells, 10, 20)
    assert painting.double == [(0, 1), (0, 2), (1, 2)]  # the last two share 60 of 80 pixels: 0.75
    assert painting.covered == [1]
    assert painting.n_instances == 4
    assert np.unique(painting.labels).tolist() == [0, 1, 2, 3, 4]


def test_cell_without_a_pixel_is_named_and_ids_stay_consecutive():
    sliver = [[3.0, 3.0, 3.05, 3.0, 3.05, 3.05]]
    painting = paint([box(0, 0, 2, 2), sliver, box(5, 5, 7, 7)], 10, 20)
    assert painting.empty == [1]
    assert (painting.n_instances, painting.labels.max(), painting.labels[5, 5]) == (2, 2, 2)


def test_one_cell_in_two_pieces_keeps_one_id():
    painting = paint([[*box(0, 0, 2, 2), *box(6, 6, 8, 8)]], 10, 20)
    assert painting.n_instances == 1
    assert painting.labels[0, 0] == painting.labels[7, 7] == 1
    assert int((painting.labels > 0).sum()) == 8


def test_no_instances_give_background():
    painting = paint([], 4, 5)
    assert painting.labels.shape == (4, 5)
    assert painting.n_instances == painting.foreground == int(painting.labels.sum()) == 0


def test_more_cells_than_uint8_holds():
    cells = [box(y, x, y + 1, x + 1) for y in range(0, 40, 2) for x in range(0, 60, 2)]
    labels = paint(cells, 40, 60).labels
    assert labels.max() == len(cells) == 600
    assert labels[38, 58] == 600


def test_points_outside_the_frame_are_clipped_and_told():
    inside = box(0, 0, 10, 20)
    assert not leaves_frame(inside, 10, 20)
    wild = box(-5, -1e9, 3, 1e9)
    assert leaves_frame(wild, 10, 20)
    np.testing.assert_array_equal(np.unique(np.nonzero(paint([wild], 10, 20).labels)[0]), [0, 1, 2])


def test_pixels_equal_full_frame_pycocotools_on_random_polygons():
    rng = np.random.default_rng(5)
    height, width = 52, 70
    instances = []
    for number in range(400):
        points = rng.uniform([-8, -8], [width + 8, height + 8], (rng.integers(3, 14), 2))
        points = points[:1] + (points - points[:1]) * rng.uniform(0.02, 1)
        if number % 2:
            points = np.clip(points, 0, [width, height])
        rings = [np.round(points, 2).ravel().tolist()]
        instances.append(rings if number % 5 else [*rings, *box(number % 40, 3, number % 40 + 9, 12)])
    encodings = rasterise(instances, height, width)
    for instance, pixels in zip(instances, run_pixels(encodings), strict=True):
        np.testing.assert_array_equal(pixels, full_frame(instance, height, width))


@pytest.mark.realdata
def test_pixels_equal_full_frame_pycocotools_on_every_real_annotation(shared_data):
    compared = 0
    for split in ("val", "test"):
        file = read_coco(shared_data / f"livecell/annotations/LIVECell/livecell_coco_{split}.json")
        for image in file.images:
            instances = [decode_polygons(a) for a in file.annotations[image.id]]
            for instance, pixels in zip(instances, run_pixels(rasterise(instances, 520, 704)), strict=True):
                np.testing.assert_array_equal(pixels, full_frame(instance, 520, 704))
                compared += 1
    assert compared == 3261
