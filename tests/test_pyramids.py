"""Slides by region: OME-Zarr in all its forms, and what goes wrong in one clear line."""

import warnings

import numpy as np
import pytest
import zarr

from cellseg.config import NormalizeConfig
from cellseg.core import CellsegError
from cellseg.images import normalize
from cellseg.slides.blocks import Region
from cellseg.slides.pyramids import (
    Placement,
    has_regions,
    is_zarr,
    open_slide,
    placement,
    read_region,
    read_slide,
    slide_size,
)
from cellseg.slides.windows import write_tiled

IMAGE = np.random.default_rng(0).integers(0, 60_000, (70, 90, 3)).astype(np.uint16)


def write_zarr(path, axes, version=3, values=IMAGE, chunk=32, **scale):
    """Write an image as an OME-Zarr with the axes given, a coarser level beside it that must not be read."""
    order = [{"y": 0, "x": 1, "c": 2}[axis] for axis in axes if axis in "yxc"]
    array = values.transpose(order) if values.ndim == 3 else values
    array = array[tuple(slice(None) if axis in "yxc" else None for axis in axes)]
    group = zarr.create_group(path, zarr_format=version, overwrite=True)
    for name, data in (("full", array), ("coarse", array[..., ::2, ::2])):
        chunks = tuple(min(chunk, side) for side in data.shape)
        group.create_array(name, data=np.ascontiguousarray(data), chunks=chunks)
    named = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in axes]
    steps = [scale.get(axis, 1.0) for axis in axes]
    datasets = [
        {"path": name, "coordinateTransformations": [{"type": "scale", "scale": steps}]} for name in ("full", "coarse")
    ]
    said = {"multiscales": [{"axes": named, "datasets": datasets}]}
    group.attrs.update({"ome": said | {"version": "0.5"}} if version == 3 else said)
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["cyx", "tczyx", "yxc"])
def test_level_zero_is_read_by_region_channels_last(tmp_path, axes, version):
    path = write_zarr(tmp_path / "a.zarr", axes, version)
    assert is_zarr(path)
    assert has_regions(path)
    assert slide_size(path) == (70, 90)
    assert np.array_equal(read_slide(path), IMAGE)
    assert np.array_equal(read_region(path, Region(30, 31, 65, 34)), IMAGE[30:65, 31:34])


def test_grey_images_have_no_channels(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", "yx", values=IMAGE[..., 0])
    assert np.array_equal(read_slide(path), IMAGE[..., 0])


@pytest.mark.parametrize(("shape", "expected"), [((9, 7), (9, 7)), ((9, 7, 3), (9, 7, 3)), ((3, 9, 7), (9, 7, 3))])
def test_bare_arrays_are_images_too(tmp_path, shape, expected):
    zarr.create_array(tmp_path / "a.zarr", data=np.arange(np.prod(shape)).reshape(shape))
    assert read_slide(tmp_path / "a.zarr").shape == expected
    assert slide_size(tmp_path / "a.zarr") == (9, 7)


def test_of_a_volume_the_first_plane_is_read_with_a_warning(tmp_path):
    values = np.arange(2 * 3 * 8 * 9).reshape(2, 3, 8, 9).astype(np.uint16)
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.create_array("0", data=values)
    group.attrs["multiscales"] = [{"axes": ["c", "z", "y", "x"], "datasets": [{"path": "0"}]}]  # as NGFF 0.3 had it
    with pytest.warns(UserWarning, match=r"a\.zarr: the first plane is read \(z=3\)"):
        assert np.array_equal(read_slide(tmp_path / "a.zarr"), values[:, 0].transpose(1, 2, 0))


def test_a_converted_series_is_found(tmp_path):
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    write_zarr(tmp_path / "a.zarr" / "0", "tczyx", 2)
    assert np.array_equal(read_slide(tmp_path / "a.zarr"), IMAGE)


def test_pixels_lie_where_level_zero_says(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", "cyx", y=0.5, x=0.25)
    assert placement(path) == Placement((0.5, 0.25), (0.0, 0.0), "micrometer")
    zarr.create_array(tmp_path / "b.zarr", data=IMAGE)
    assert placement(tmp_path / "b.zarr") == Placement((1.0, 1.0), (0.0, 0.0), None)


def test_what_is_said_of_all_levels_comes_after_what_is_said_of_one(tmp_path):
    group = zarr.open_group(write_zarr(tmp_path / "a.zarr", "cyx", y=2, x=3))
    (scales,) = group.attrs["ome"]["multiscales"]
    scales["datasets"][0]["coordinateTransformations"].append({"type": "translation", "translation": [7, 1000, 2000]})
    scales["coordinateTransformations"] = [
        {"type": "scale", "scale": [7, 0.5, 0.25]},
        {"type": "translation", "translation": [7, 10, 20]},
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [scales]}
    assert placement(tmp_path / "a.zarr") == Placement((1.0, 0.75), (510.0, 520.0), "micrometer")


@pytest.mark.parametrize("kind", ["zarr", "tif"])
@pytest.mark.parametrize("rule", ["percentile", "percentile_nonzero", "none"])
@pytest.mark.parametrize("channel", [None, 1])
def test_a_slide_is_normalised_as_the_whole_image(tmp_path, kind, rule, channel):
    path = tmp_path / f"a.{kind}"
    write_zarr(path, "cyx") if kind == "zarr" else write_tiled(path, IMAGE)
    slide = open_slide(path, NormalizeConfig(rule=rule), channel)
    whole = normalize(IMAGE, NormalizeConfig(rule=rule), channel)
    assert slide.shape == (70, 90)
    assert np.array_equal(slide.read(Region(5, 6, 50, 80)), whole[5:50, 6:80])
    assert slide.key != open_slide(path, NormalizeConfig(rule=rule), 0).key


def test_a_truncated_chunk_is_named(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", "cyx")
    chunk = next(file for file in sorted((path / "full").rglob("c/0/1/*")) if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(CellsegError, match=r"a\.zarr: cannot be read, it may be damaged"):
        read_slide(path)
    assert np.array_equal(read_region(path, Region(0, 0, 30, 90)), IMAGE[:30])  # the other chunks are as they were


def test_what_is_no_image_is_said(tmp_path):
    plate = zarr.create_group(tmp_path / "plate.zarr", attributes={"ome": {"plate": {}}})
    assert plate is not None
    with pytest.raises(CellsegError, match=r"plate\.zarr: is a plate of many images"):
        slide_size(tmp_path / "plate.zarr")
    zarr.create_group(tmp_path / "group.zarr")
    with pytest.raises(CellsegError, match=r"group\.zarr: a Zarr group without an image"):
        slide_size(tmp_path / "group.zarr")
    zarr.create_array(tmp_path / "line.zarr", data=np.arange(5))
    with pytest.raises(CellsegError, match=r"line\.zarr: wanted an image with axes y and x"):
        slide_size(tmp_path / "line.zarr")
    five = np.zeros((8, 9, 5), np.uint8)
    write_zarr(tmp_path / "five.zarr", "yxc", values=five)
    with pytest.raises(CellsegError, match="the image has 5 channels"):
        open_slide(tmp_path / "five.zarr", NormalizeConfig())
    assert open_slide(tmp_path / "five.zarr", NormalizeConfig(), 4).shape == (8, 9)
    assert not is_zarr(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert slide_size(tmp_path / "five.zarr") == (8, 9)
