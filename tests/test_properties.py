"""What holds for any input, tried on inputs that hypothesis makes up: few by default, many in ``make fuzz``."""

import json
import os

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cellseg.config import check_config, parse_override
from cellseg.core import CellsegError
from cellseg.datasets.coco import decode_polygons, paint, read_coco
from cellseg.images import normalize, read_image, read_labels, read_size
from cellseg.metrics import match

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
many = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
words = st.sampled_from(
    ["data", "model", "train", "adapt", "predict", "lr", "steps", "network", "regularizer", "index", "x"]
)
settings_like = st.recursive(
    plain, lambda inner: st.dictionaries(words, inner, max_size=4) | st.lists(inner, max_size=3)
)
label_images = arrays.arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 5))


def refused(function, *arguments):
    """Call a function; the answer, or None where it says in one line why there is none."""
    try:
        return function(*arguments)
    except CellsegError as error:
        assert str(error) and len(str(error)) < 2000
        return None


@many
@given(st.dictionaries(words, settings_like, max_size=5))
def test_settings_of_any_shape_are_checked_or_refused(content):
    run = refused(check_config, content)
    assert run is None or check_config(json.loads(run.model_dump_json())) == run


@many
@given(st.text(max_size=40))
@example("a=[[[[")
@example("=\n")
def test_an_override_is_a_table_or_refused(text):
    assert isinstance(refused(parse_override, text) or {}, dict)


coco_images = st.fixed_dictionaries(
    {"id": st.integers(0, 3), "file_name": st.text(max_size=6), "height": st.integers()}
)
polygons = st.lists(st.lists(st.floats(), max_size=10)) | values
coco_cells = st.fixed_dictionaries({"image_id": st.integers(0, 3), "segmentation": polygons})
coco_files = st.fixed_dictionaries(
    {"images": st.lists(coco_images, max_size=3) | values, "annotations": st.lists(coco_cells, max_size=4) | values}
)


@many
@given(coco_files | values)
def test_a_coco_file_of_any_shape_is_painted_or_refused(tmp_path, content):
    (tmp_path / "c.json").write_text(json.dumps(content))
    file = refused(read_coco, tmp_path / "c.json")
    for found in file.annotations.values() if file is not None else ():
        usable = [rings for one in found if (rings := decode_polygons(one)) is not None]
        painting = refused(paint, usable, 9, 7)
        assert painting is None or (painting.labels.shape == (9, 7) and painting.labels.max() == painting.n_instances)


@many
@given(
    st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b""]),
    st.binary(max_size=300),
)
def test_any_bytes_are_an_image_or_refused(tmp_path, head, body):
    (tmp_path / "a.tif").write_bytes(head + body)
    refused(read_size, tmp_path / "a.tif")
    refused(read_labels, tmp_path / "a.tif")
    image = refused(read_image, tmp_path / "a.tif")
    assert image is None or image.ndim in (2, 3)


@many
@given(arrays.arrays(st.sampled_from([np.float32, np.float64]), (5, 4)))
@example(np.linspace(-3e38, 3e38, 20, dtype=np.float32).reshape(5, 4))
@example(np.linspace(-1, 1, 20).reshape(5, 4) * 1.7e308)
def test_network_input_is_finite_whatever_the_pixels(image):
    assert np.isfinite(normalize(image)).all()


@many
@given(label_images, st.data())
def test_matching_counts_every_cell_once_and_both_ways_alike(labels_true, data):
    labels_pred = data.draw(arrays.arrays(np.int32, labels_true.shape, elements=st.integers(0, 5)))
    there, back = match(labels_true, labels_pred), match(labels_pred, labels_true)
    n_true, n_pred = (len(np.unique(labels[labels > 0])) for labels in (labels_true, labels_pred))
    for one, other in zip(there, back, strict=True):
        assert (one.n_true, one.n_pred) == (n_true, n_pred)
        assert (one.tp, one.fp, one.fn) == (other.tp, other.fn, other.fp)
        assert one.tp * one.threshold <= one.iou_sum + 1e-9 <= one.tp + 2e-9
    assert [one.tp for one in there] == sorted((one.tp for one in there), reverse=True)
    assert all(one.tp == n_true and one.fp == one.fn == 0 for one in match(labels_true, labels_true))
