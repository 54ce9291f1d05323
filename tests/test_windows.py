"""A window is the crop of the whole image, whatever the file, and reading it does not decode the rest."""

import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from cellseg import ranges
from cellseg.config import NormalizeConfig
from cellseg.core import CellsegError
from cellseg.images import normalize, read_image, write_labels
from cellseg.slides import windows
from cellseg.slides.windows import (
    has_windows,
    is_slide,
    measure_ranges,
    read_grid,
    read_label_window,
    read_window,
    write_tiled,
)

SIZE = (333, 470)
WINDOWS = [
    (slice(0, 333), slice(0, 470)),
    (slice(0, 1), slice(0, 1)),
    (slice(332, 333), slice(469, 470)),
    (slice(100, 260), slice(255, 257)),
    (slice(17, 131), slice(33, 401)),
]


def values(dtype, channels=0, size=SIZE):
    rng = np.random.default_rng(5)
    shape = (*size, channels) if channels else size
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


TIFFS = {
    "uncompressed": (values(np.uint16), {}),
    "uncompressed colour": (values(np.uint8, 3), {"photometric": "rgb"}),
    "big-endian": (values(np.uint16), {"byteorder": ">"}),
    "LZW strips with predictor": (values(np.uint8), {"compression": "lzw", "predictor": True, "rowsperstrip": 11}),
    "deflate strips": (values(np.int16), {"compression": "zlib", "rowsperstrip": 64}),
    "one deflate strip": (values(np.uint8), {"compression": "zlib", "rowsperstrip": 333}),
    "tiles": (values(np.uint8, 3), {"tile": (64, 96), "photometric": "rgb", "compression": "zstd", "predictor": True}),
    "big-endian tiles": (values(np.uint16), {"tile": (64, 64), "compression": "zlib", "byteorder": ">"}),
    "float tiles": (values(np.float32), {"tile": (128, 128), "compression": "zlib", "predictor": True}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_window_is_the_crop_of_the_whole(tmp_path, kind):
    image, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "a.tif", image, **options)
    assert has_windows(tmp_path / "a.tif")
    for rows, columns in WINDOWS:
        got = read_window(tmp_path / "a.tif", rows, columns)
        assert got.dtype == image.dtype
        np.testing.assert_array_equal(got, image[rows, columns])


@pytest.mark.parametrize("kind", ["uncompressed", "tiles", "strips", "pyramid", "one channel"])
def test_channels_in_pages_of_their_own_are_the_last_axis(tmp_path, kind):
    image, path = values(np.uint16, 1 if kind == "one channel" else 5), tmp_path / "a.ome.tif"
    options = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}
    if kind != "uncompressed":
        options |= {"compression": "zlib"} | ({"rowsperstrip": 40} if kind == "strips" else {"tile": (64, 64)})
    with tifffile.TiffWriter(path) as writer:
        writer.write(image.transpose(2, 0, 1), subifds=1 if kind == "pyramid" else 0, **options)
        if kind == "pyramid":
            writer.write(image[::2, ::2].transpose(2, 0, 1), subfiletype=1, **(options | {"metadata": None}))
    assert has_windows(path)
    np.testing.assert_array_equal(read_image(path).reshape(image.shape), image)
    for rows, columns in WINDOWS:
        got = read_window(path, rows, columns)
        np.testing.assert_array_equal(got, read_image(path)[rows, columns])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.bool_])
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
def test_a_tiled_copy_gives_back_every_value(tmp_path, dtype, channels):
    image = values(np.uint8, channels) > 90 if dtype == np.bool_ else values(dtype, channels)
    write_tiled(tmp_path / "a.tif", image)
    whole = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(whole.reshape(image.shape), image)
    assert has_windows(tmp_path / "a.tif")
    for rows, columns in WINDOWS:
        np.testing.assert_array_equal(read_window(tmp_path / "a.tif", rows, columns), whole[rows, columns])


def test_only_the_tiles_that_are_touched_are_read(tmp_path):
    image = values(np.uint8, size=(1024, 1024))
    write_tiled(tmp_path / "a.tif", image)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offset, count = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[offset : offset + count] = b"\0" * count  # the last of 16 tiles is destroyed
    (tmp_path / "a.tif").write_bytes(content)
    got = read_window(tmp_path / "a.tif", slice(0, 1024), slice(0, 768))
    np.testing.assert_array_equal(got, image[:, :768])
    with pytest.raises(CellsegError, match=r"a\.tif: cannot be read, it may be damaged"):
        read_window(tmp_path / "a.tif", slice(700, 800), slice(700, 800))


def test_files_without_windows_are_told_apart(tmp_path, monkeypatch):
    image = values(np.uint8, 3)
    Pillow.fromarray(image).save(tmp_path / "a.png")
    Pillow.fromarray(image).save(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "stack.tif", values(np.uint8, 5).transpose(2, 0, 1), photometric="minisblack")
    tifffile.imwrite(tmp_path / "planar.tif", image.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "strip.tif", image[..., 0], compression="zlib", rowsperstrip=333)
    for name in ("a.png", "a.jpg", "stack.tif", "planar.tif"):
        assert not has_windows(tmp_path / name), name
    assert has_windows(tmp_path / "strip.tif")
    monkeypatch.setattr(windows, "MAX_SEGMENT_BYTES", SIZE[0] * SIZE[1] - 1)
    assert not has_windows(tmp_path / "strip.tif")
    with pytest.raises(CellsegError, match=r"a\.png: cannot be read"):
        read_window(tmp_path / "a.png", slice(0, 2), slice(0, 2))


@pytest.mark.parametrize(
    "window", [(slice(-1, 4), slice(0, 4)), (slice(0, 334), slice(0, 4)), (slice(3, 3), slice(0, 4))]
)
def test_a_window_that_leaves_the_image_is_refused(tmp_path, window):
    write_tiled(tmp_path / "a.tif", values(np.uint8))
    with pytest.raises(CellsegError, match=r"a\.tif: wanted rows .*but the image is \(333, 470\)"):
        read_window(tmp_path / "a.tif", *window)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_the_grid_is_that_of_the_whole_image(tmp_path, monkeypatch, step):
    monkeypatch.setattr(windows, "_BAND_ROWS", 50)  # seven bands, none a multiple of the step
    image = values(np.uint16, 2)
    write_tiled(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(read_grid(tmp_path / "a.tif", SIZE, step), image[::step, ::step])


@pytest.mark.parametrize("rule", ["percentile", "percentile_nonzero", "none"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_normalised_window_is_the_crop_of_the_normalised_whole(tmp_path, monkeypatch, rule, dtype):
    monkeypatch.setattr(ranges, "PERCENTILE_PIXELS", 4000)  # percentiles on every seventh pixel
    monkeypatch.setattr(windows, "_BAND_ROWS", 50)
    image = values(dtype, 3)
    image[..., 1] = image[..., 0]
    image[..., 2] = 0
    image[5, 5, 2] = 1  # off the grid: the percentiles coincide and the extremes take their place
    if dtype == np.float32:
        image[10:20, 10:20] = np.nan
        image[30, 30] = np.inf
    write_tiled(tmp_path / "a.tif", image)
    config = NormalizeConfig(rule=rule)
    known = measure_ranges(tmp_path / "a.tif", SIZE, config)
    whole = normalize(image, config)
    for rows, columns in WINDOWS:
        part = normalize(read_window(tmp_path / "a.tif", rows, columns), config, ranges=known)
        np.testing.assert_array_equal(part, whole[rows, columns])


@pytest.mark.parametrize("rule", ["percentile", "none"])
def test_a_slide_is_measured_without_being_held_whole(tmp_path, rule):
    image = values(np.uint8, size=(16384, 512))
    write_tiled(tmp_path / "a.tif", image)
    read_window(tmp_path / "a.tif", slice(0, 1), slice(0, 1))  # what is imported on the way is not counted
    tracemalloc.start()
    try:
        read_grid(tmp_path / "a.tif", image.shape, 16)
        measure_ranges(tmp_path / "a.tif", image.shape, NormalizeConfig(rule=rule))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < image.nbytes


def test_label_windows_keep_ids_and_refuse_negative_ones(tmp_path):
    labels = np.zeros((300, 300), np.int32)
    labels[10:290, 140:160] = 70_000
    write_labels(tmp_path / "a.tif", labels)
    np.save(tmp_path / "a.npy", labels)
    for name in ("a.tif", "a.npy"):
        got = read_label_window(tmp_path / name, slice(5, 30), slice(130, 150))
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, labels[5:30, 130:150])
    tifffile.imwrite(tmp_path / "b.tif", np.full((40, 40), -3, np.int16))
    with pytest.raises(CellsegError, match=r"b\.tif: labels must not be negative, the lowest is -3"):
        read_label_window(tmp_path / "b.tif", slice(0, 9), slice(0, 9))


def test_what_counts_as_a_slide():
    assert is_slide(8415, 10496)
    assert not is_slide(2048, 2048)
    assert not is_slide(2048, 4096)  # exactly the limit
    assert is_slide(2049, 4096)
