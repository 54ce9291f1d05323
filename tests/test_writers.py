"""Labels of slides on disk: every pixel comes back, and OME-Zarr is as NGFF says."""

import json

import numpy as np
import pytest
import tifffile
import zarr

from cellseg.core import CellsegError
from cellseg.images import read_labels
from cellseg.slides.pyramids import read_slide
from cellseg.slides.windows import has_windows
from cellseg.slides.writers import LabelRows, read_note, rows_of, write_label_tiff, write_label_zarr


def labels_of(height, width, largest):
    labels = np.random.default_rng(0).integers(0, largest + 1, (height, width)).astype(np.int32)
    labels[0, 0] = largest
    return labels


@pytest.mark.parametrize(("shape", "largest", "dtype"), [
    ((1, 1), 1, np.uint16), ((700, 300), 65_535, np.uint16), ((513, 257), 65_536, np.uint32),
    ((512, 256), 0, np.uint16),
])  # fmt: skip
def test_a_tiff_gives_back_every_pixel_and_is_read_by_window(tmp_path, shape, largest, dtype):
    labels = labels_of(*shape, largest)
    write_label_tiff(tmp_path / "a.tif", rows_of(labels, "a note"))
    assert np.array_equal(read_labels(tmp_path / "a.tif"), labels)
    assert tifffile.imread(tmp_path / "a.tif").dtype == dtype
    assert has_windows(tmp_path / "a.tif")
    assert read_note(tmp_path / "a.tif") == "a note"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_zarr_is_a_labels_group_with_a_pyramid(tmp_path):
    labels = labels_of(1030, 600, 65_536)
    final = write_label_zarr(tmp_path / "a.zarr", rows_of(labels, "a note"), tmp_path / "a.tif", tmp_path / "work")
    assert final == tmp_path / "a.zarr" / "labels" / "cells"
    attributes = json.loads((final / "zarr.json").read_text())["attributes"]
    assert attributes["cellseg"] == read_note(final) == "a note"
    ome = attributes["ome"]
    assert ome["version"] == "0.5"
    assert ome["image-label"] == {}
    (scales,) = ome["multiscales"]
    assert scales["axes"] == [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    assert [one["path"] for one in scales["datasets"]] == ["0", "1", "2"]  # 1030 > 515 > 258 ≤ 512
    for level, one in enumerate(scales["datasets"]):
        assert one["coordinateTransformations"] == [{"type": "scale", "scale": [2.0**level, 2.0**level]}]
        array = zarr.open_array(final / one["path"], mode="r")
        assert np.array_equal(array[:], labels[:: 2**level, :: 2**level])
        assert (array.dtype, array.metadata.dimension_names) == (np.uint32, ("y", "x"))
    group = json.loads((final.parent / "zarr.json").read_text())["attributes"]
    assert group == {"ome": {"version": "0.5", "labels": ["cells"]}}
    assert np.array_equal(read_slide(final), labels)
    assert sorted(path.name for path in final.parent.iterdir()) == ["cells", "zarr.json"]


@pytest.mark.parametrize("version", [2, 3])
def test_labels_go_into_the_image_they_belong_to(tmp_path, version):
    path = tmp_path / "a.zarr"
    image = zarr.create_group(path, zarr_format=version)
    image.create_array("0", data=np.zeros((3, 20, 30), np.uint8))
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    steps = [{"type": "scale", "scale": [1, 0.5, 0.25]}]
    said = {"multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}]}
    image.attrs.update(said if version == 2 else {"ome": {"version": "0.5", **said}})
    nuclei = zarr.create_group(path / "labels", zarr_format=version)
    nuclei.attrs.update({"labels": ["nuclei"]} if version == 2 else {"ome": {"version": "0.5", "labels": ["nuclei"]}})
    for largest in (9, 5):  # the second takes the place of the first
        labels = labels_of(20, 30, largest)
        final = write_label_zarr(path, rows_of(labels), path, tmp_path / "work")
    assert np.array_equal(read_slide(final), labels)
    assert np.array_equal(read_slide(path), np.zeros((20, 30, 3)))
    attributes = dict(zarr.open_group(final, mode="r").attrs)
    ome = attributes if version == 2 else attributes["ome"]
    assert ome["image-label"]["source"] == {"image": "../.."}
    assert ome["multiscales"][0]["axes"][0] == {"name": "y", "type": "space", "unit": "micrometer"}
    assert ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.5, 0.25]
    said = [ome["multiscales"][0].get("version"), ome["image-label"].get("version")]
    assert said == (["0.4", "0.4"] if version == 2 else [None, None])
    group = dict(zarr.open_group(path / "labels", mode="r").attrs)
    assert (group if version == 2 else group["ome"])["labels"] == ["nuclei", "cells"]
    assert (final / ("0/.zarray" if version == 2 else "0/zarr.json")).is_file()


@pytest.mark.parametrize("version", [2, 3])
def test_labels_of_a_converted_series_go_into_its_group_and_to_its_place(tmp_path, version):
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=version)
    root.attrs.update({"bioformats2raw.layout": 3} if version == 2 else {"ome": {"bioformats2raw.layout": 3}})
    series = root.create_group("0")
    series.create_array("0", data=np.zeros((600, 20), np.uint8))
    steps = [{"type": "scale", "scale": [1, 1]}, {"type": "translation", "translation": [1000, 2000]}]
    scales = {
        "axes": [{"name": name, "type": "space"} for name in "yx"],
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
        "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.25]}],
    }
    said = {"multiscales": [scales]}
    series.attrs.update(said if version == 2 else {"ome": {"version": "0.5", **said}})
    for group, source in ((tmp_path / "a.zarr", "../.."), (tmp_path / "b.zarr", "../../../a.zarr/0")):
        final = write_label_zarr(group, rows_of(labels_of(600, 20, 9)), tmp_path / "a.zarr", tmp_path / "work")
        attributes = dict(zarr.open_group(final, mode="r").attrs)
        ome = attributes.get("ome", attributes)
        assert ome["image-label"]["source"] == {"image": source}
        for level, one in enumerate(ome["multiscales"][0]["datasets"]):
            assert one["coordinateTransformations"] == [
                {"type": "scale", "scale": [0.5 * 2**level, 0.25 * 2**level]},
                {"type": "translation", "translation": [500, 500]},  # where the first pixel of every level lies
            ]
    assert (tmp_path / "a.zarr" / "0" / "labels" / "cells").is_dir()
    assert not (tmp_path / "a.zarr" / "labels").exists()


def test_nothing_has_no_note(tmp_path):
    assert read_note(tmp_path / "none.tif") == ""
    assert read_note(tmp_path) == ""
    (tmp_path / "a.tif").write_bytes(b"II*\0 no image")
    assert read_note(tmp_path / "a.tif") == ""
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((5, 5), np.uint8), metadata=None)
    assert read_note(tmp_path / "b.tif") == ""


@pytest.mark.parametrize("kind", ["tif", "zarr"])
def test_a_failure_leaves_what_was_there(tmp_path, kind):
    def bands():
        yield np.zeros((512, 40), np.int32)
        raise OSError(28, "No space left on device")

    def write(rows):
        if kind == "tif":
            write_label_tiff(tmp_path / "a.tif", rows)
        else:
            write_label_zarr(tmp_path / "a.zarr", rows, tmp_path / "image.tif", tmp_path / "work")

    old = labels_of(600, 40, 7)
    write(rows_of(old))
    with pytest.raises(CellsegError, match=r"No space left on device\); is the disk full"):
        write(LabelRows(bands(), (600, 40), 7))
    path = tmp_path / "a.tif" if kind == "tif" else tmp_path / "a.zarr" / "labels" / "cells"
    assert np.array_equal(read_labels(path) if kind == "tif" else read_slide(path), old)


def test_who_is_killed_before_the_last_step_has_finished_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    group, final = tmp_path / "a.zarr", tmp_path / "a.zarr" / "labels" / "cells"
    rows = rows_of(labels_of(9, 8, 3), "a note")
    move = type(tmp_path).replace

    def die(path, target):
        if target == final:
            raise KeyboardInterrupt
        return move(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_label_zarr(group, rows, tmp_path / "a.tif", tmp_path / "work")
    assert read_note(final) == ""
    assert {path.name for path in group.iterdir()} == {"zarr.json", "labels"}
    (group / f"zarr.{'0' * 32}.partial").write_text("half")
    (group / "zarr.json").write_text('{"attributes": {}, "zarr_format": 3, "node_type": "group"}')  # said nothing yet
    write_label_zarr(group, rows_of(labels_of(9, 8, 3), "a note"), tmp_path / "a.tif", tmp_path / "work")
    assert sorted(path.name for path in group.iterdir()) == ["labels", "zarr.json"]
    assert json.loads((group / "zarr.json").read_text())["attributes"] == {"ome": {"version": "0.5"}}
    assert sorted(path.name for path in final.parent.iterdir()) == ["cells", "zarr.json"]
    assert np.array_equal(read_slide(final), labels_of(9, 8, 3))
