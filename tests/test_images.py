import warnings

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from cellseg.config import NormalizeConfig
from cellseg.core import CellsegError
from cellseg.images import (
    CLIP_RANGE,
    IMAGE_SUFFIXES,
    find_images,
    normalize,
    read_image,
    read_labels,
    read_size,
    to_three_channels,
    write_labels,
)
from cellseg.slides.windows import read_window

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (37, 53), dtype=np.uint16)


def check(path, expected):
    """The file holds exactly these values, and its header exactly this size."""
    image = read_image(path)
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)
    assert read_size(path) == expected.shape[:2]


# --- TIFF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd", "lzma", "deflate"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 11}, {"tile": (16, 32)}])
@pytest.mark.parametrize("image", [GREY, DEEP, COLOUR], ids=["uint8", "uint16", "rgb"])
def test_tiff_compressions_and_layouts(tmp_path, compression, layout, image):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, image, compression=compression, **layout)
    check(path, image)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tiff_dtypes_byte_orders_and_bigtiff(tmp_path, dtype, byteorder, bigtiff):
    image = (GREY.astype(np.float64) / 2).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tiff", image, byteorder=byteorder, bigtiff=bigtiff)
    got = read_image(tmp_path / "x.tiff")
    assert got.dtype.newbyteorder("=") == image.dtype
    np.testing.assert_array_equal(got, image)


def test_tiff_lzw_with_predictor_in_strips_of_eleven_rows_as_livecell_has_it(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY, compression="lzw", predictor=2, rowsperstrip=11)
    check(tmp_path / "x.tif", GREY)


def test_tiff_one_bit(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY > 127)
    check(tmp_path / "x.tif", GREY > 127)


def test_tiff_planar_rgb_and_extra_sample(tmp_path):
    planar = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "planar.tif", planar, photometric="rgb", planarconfig="separate")
    check(tmp_path / "planar.tif", COLOUR)
    rgba = np.dstack([COLOUR, GREY])
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    check(tmp_path / "rgba.tif", rgba)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_tiff_unnamed_leading_axis_of_two_to_four_planes_is_channels(tmp_path, channels):
    stack = RNG.integers(0, 999, (channels, 37, 53), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "named.tif", stack, photometric="minisblack")
    check(tmp_path / "named.tif", stack.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "bare.tif", stack, photometric="minisblack", metadata=None)
    check(tmp_path / "bare.tif", stack.transpose(1, 2, 0))


def test_tiff_two_channels_last_saved_without_saying_so(tmp_path):
    image = RNG.integers(0, 999, (37, 53, 2), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", image, photometric="minisblack")
    check(tmp_path / "x.tif", image)


@pytest.mark.parametrize(("kind", "suffix"), [({"imagej": True}, ".tif"), ({"ome": True}, ".ome.tif")])
def test_tiff_named_axes_channels_last_and_other_planes_warned_about(tmp_path, kind, suffix):
    movie = RNG.integers(0, 999, (5, 2, 37, 53), dtype=np.uint16)
    path = tmp_path / f"movie{suffix}"
    tifffile.imwrite(path, movie, metadata={"axes": "TCYX"}, photometric="minisblack", **kind)
    with pytest.warns(UserWarning, match=r"movie.*plane 0 of 5 is read \(T=5\)"):
        first = read_image(path)
    np.testing.assert_array_equal(first, movie[0].transpose(1, 2, 0))
    with pytest.warns(UserWarning, match="plane 3 of 5"):
        np.testing.assert_array_equal(read_image(path, page=3), movie[3].transpose(1, 2, 0))
    assert read_size(path) == (37, 53)
    with pytest.raises(CellsegError, match=r"movie.*wanted plane 5, but the file has 5"):
        read_image(path, page=5)


def test_tiff_seven_channels_named_are_channels_and_seven_unnamed_pages_are_planes(tmp_path):
    stack = RNG.integers(0, 999, (7, 37, 53), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "c.ome.tif", stack, metadata={"axes": "CYX"}, photometric="minisblack")
    check(tmp_path / "c.ome.tif", stack.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "q.tif", stack, photometric="minisblack", compression="zlib")
    with pytest.warns(UserWarning, match="plane 6 of 7"):
        np.testing.assert_array_equal(read_image(tmp_path / "q.tif", page=6), stack[6])


def test_tiff_pyramid_gives_full_resolution(tmp_path):
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(COLOUR, subifds=1, photometric="rgb", metadata=None)
        writer.write(COLOUR[::2, ::2], subfiletype=1, photometric="rgb", metadata=None)
    check(tmp_path / "p.tif", COLOUR)


# --- PNG, JPEG, BMP -------------------------------------------------------------------------------------------------


def test_png_grey_colour_alpha_and_sixteen_bits(tmp_path):
    rgba16 = RNG.integers(0, 65536, (37, 53, 4), dtype=np.uint16)
    for name, image in {"g": GREY, "c": COLOUR, "d": DEEP, "a": np.dstack([COLOUR, GREY]), "e": rgba16}.items():
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(image))
        check(tmp_path / f"{name}.png", image)


def test_png_grey_with_alpha_loses_the_alpha(tmp_path):
    Pillow.fromarray(np.dstack([GREY, GREY // 2]), "LA").save(tmp_path / "x.png")
    check(tmp_path / "x.png", GREY)


def test_png_one_bit(tmp_path):
    Pillow.fromarray(GREY > 127).save(tmp_path / "x.png")
    check(tmp_path / "x.png", GREY > 127)


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_palette_is_applied_to_images_and_gives_ids_for_labels(tmp_path, suffix):
    indices = np.array([[0, 1], [2, 1], [0, 0]], dtype=np.uint8)
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8)
    picture = Pillow.fromarray(indices, "P")
    picture.putpalette(colours.tobytes())
    path = tmp_path / f"x{suffix}"
    picture.save(path)
    check(path, colours[indices])
    np.testing.assert_array_equal(read_labels(path), indices)


def test_bmp_keeps_the_order_of_colours(tmp_path):
    Pillow.fromarray(COLOUR).save(tmp_path / "x.bmp")
    check(tmp_path / "x.bmp", COLOUR)


def test_jpeg_keeps_the_order_of_colours_and_ignores_the_orientation_tag(tmp_path):
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[..., 0], image[..., 2] = 200, 50
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Pillow.fromarray(image).save(tmp_path / "x.jpg", quality=100, subsampling=0, exif=exif)
    got = read_image(tmp_path / "x.jpg")
    assert got.shape == (40, 60, 3) == (*read_size(tmp_path / "x.jpg"), 3)
    assert np.abs(got.astype(int) - image).max() <= 3


def test_kind_is_told_from_content_not_name(tmp_path):
    (tmp_path / "really_a_png.tif").write_bytes(imagecodecs.png_encode(COLOUR))
    check(tmp_path / "really_a_png.tif", COLOUR)


# --- files that cannot be read --------------------------------------------------------------------------------------


def test_missing_empty_foreign_and_folder_name_the_file(tmp_path):
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is not a picture")
    (tmp_path / "folder.tif").mkdir()
    for name, message in {
        "missing.tif": "no such file",
        "empty.tif": "empty",
        "text.png": "not a TIFF, PNG, JPEG or BMP",
        "folder.tif": "cannot be read",
    }.items():
        for function in (read_image, read_size, read_labels):
            with pytest.raises(CellsegError, match=f"{name}.*{message}"):
                function(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_cut_short_raster(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    Pillow.fromarray(COLOUR).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CellsegError, match=r"cut.*cannot be read"):
        read_image(path)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "lzw", "rowsperstrip": 11}])
def test_cut_short_tiff(tmp_path, options):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, GREY, **options)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CellsegError, match=r"cut.tif: cannot be read"):
        read_image(path)


def test_complex_values_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.ones((5, 5), np.complex64))
    with pytest.raises(CellsegError, match="complex64"):
        read_image(tmp_path / "x.tif")


def test_find_images_sorts_and_skips_what_is_none(tmp_path):
    for name in ("b.TIF", "a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "sub.tif").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "b.TIF"]
    with pytest.raises(CellsegError, match="no such folder"):
        find_images(tmp_path / "none")


# --- three channels -------------------------------------------------------------------------------------------------


def test_to_three_channels():
    np.testing.assert_array_equal(to_three_channels(GREY), np.dstack([GREY] * 3))
    np.testing.assert_array_equal(to_three_channels(GREY[..., None]), np.dstack([GREY] * 3))
    np.testing.assert_array_equal(to_three_channels(COLOUR[..., :2]), np.dstack([COLOUR[..., :2], GREY * 0]))
    np.testing.assert_array_equal(to_three_channels(np.dstack([COLOUR, GREY])), COLOUR)
    np.testing.assert_array_equal(to_three_channels(COLOUR, channel=1), np.dstack([COLOUR[..., 1]] * 3))
    five = np.dstack([COLOUR, GREY, GREY])
    assert to_three_channels(five, channel=4).dtype == np.uint8
    with pytest.raises(CellsegError, match=r"5 channels.*--channel"):
        to_three_channels(five)
    for wrong in (-1, 3):
        with pytest.raises(CellsegError, match=f"wanted channel {wrong}, but the image has 3"):
            to_three_channels(COLOUR, channel=wrong)
    with pytest.raises(CellsegError, match="channels\\), got \\(2, 3, 4, 5\\)"):
        normalize(np.zeros((2, 3, 4, 5)))


# --- normalisation --------------------------------------------------------------------------------------------------


def ramp(dtype, first=0):
    """101 values a row, so that percentile p is exactly first + p."""
    return np.tile(first + np.arange(101), (4, 1)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "float32", "float64"])
def test_percentiles_become_zero_and_one(dtype):
    got = normalize(ramp(dtype), NormalizeConfig(low=10, high=90))
    expected = (np.arange(101) - 10) / 80
    assert got.dtype == np.float32 and got.shape == (4, 101, 3)
    for channel in range(3):
        np.testing.assert_allclose(got[2, :, channel], expected, atol=1e-6)


def test_result_does_not_depend_on_offset_or_gain():
    reference = normalize(ramp("uint8"))
    np.testing.assert_allclose(normalize(ramp("uint16", first=32768)), reference, atol=1e-6)
    np.testing.assert_allclose(normalize(ramp("float64") * 1e-9 + 5), reference, atol=1e-5)
    high = np.tile(np.linspace(27199, 65535, 101), (4, 1)).round().astype(np.uint16)
    np.testing.assert_allclose(normalize(high), reference, atol=1e-4)


def test_outliers_are_clipped():
    image = ramp("float32")
    image[0, 0], image[0, 1] = -1e6, 1e6
    got = normalize(image)
    assert (got[0, 0, 0], got[0, 1, 0]) == CLIP_RANGE


def test_nonzero_percentiles_ignore_zeros_and_clip_to_one():
    image = np.concatenate([np.zeros((4, 500)), ramp("float64", first=100)], axis=1).astype(np.uint16)
    got = normalize(image, NormalizeConfig(rule="percentile_nonzero", low=10, high=90))[..., 0]
    assert got[0, 0] == 0 and got[0, -1] == 1
    np.testing.assert_allclose(got[0, 500:], np.clip((np.arange(101) - 10) / 80, 0, 1), atol=1e-6)


def test_no_rule_divides_integers_by_their_largest_value():
    rule = NormalizeConfig(rule="none")
    assert normalize(np.full((2, 2), 51, np.uint8), rule)[0, 0, 0] == np.float32(0.2)
    assert normalize(np.full((2, 2), 13107, np.uint16), rule)[0, 0, 0] == np.float32(0.2)
    assert normalize(np.full((2, 2), 7.5), rule)[0, 0, 0] == np.float32(7.5)
    assert normalize(np.ones((2, 2), bool), rule)[0, 0, 0] == 1


@pytest.mark.parametrize("rule", ["percentile", "percentile_nonzero"])
@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
def test_constant_image_is_zero(rule, value, dtype):
    assert not normalize(np.full((5, 6), value, dtype), NormalizeConfig(rule=rule)).any()


@pytest.mark.parametrize("rule", ["percentile", "percentile_nonzero"])
def test_few_cells_on_an_even_background_are_not_lost(rule):
    image = np.zeros((100, 100), np.uint8)
    image[:5, :5] = 90  # 0.25 % of the pixels: both percentiles of all pixels are zero
    got = normalize(image, NormalizeConfig(rule=rule))[..., 0]
    assert (got[:5, :5] == 1).all() and got.sum() == 25


def test_few_cells_in_an_image_large_enough_to_be_sampled_are_not_lost():
    image = np.zeros((2100, 1100), np.uint8)
    image[1, 1] = 90  # not on the grid of every second pixel
    assert normalize(image)[1, 1, 0] == 1


def test_large_image_is_sampled_close_to_the_whole():
    image = np.random.default_rng(0).normal(1000, 50, (1500, 1500)).astype(np.float32)
    low, high = np.percentile(image, (1, 99))
    np.testing.assert_allclose(normalize(image)[..., 1], np.clip((image - low) / (high - low), *CLIP_RANGE), atol=5e-3)


def test_channels_are_normalised_by_themselves_and_an_empty_one_stays_zero():
    image = np.dstack([ramp("uint16"), 500 * ramp("uint16"), np.zeros((4, 101), np.uint16)])
    got = normalize(image)
    np.testing.assert_allclose(got[..., 0], got[..., 1], atol=1e-6)
    assert not got[..., 2].any() and not normalize(image[..., :2])[..., 2].any()


def test_grey_copied_colour_equals_grey_and_channel_picks():
    grey = normalize(GREY)
    np.testing.assert_array_equal(normalize(np.dstack([GREY] * 3)), grey)
    np.testing.assert_array_equal(normalize(np.dstack([GREY, GREY, GREY, GREY * 0])), grey)
    np.testing.assert_array_equal(normalize(np.dstack([DEEP, GREY]), channel=1), normalize(GREY.astype(np.uint16)))


@pytest.mark.parametrize("rule", ["percentile", "percentile_nonzero", "none"])
def test_pixels_that_are_not_finite_become_zero_and_disturb_no_other(rule):
    image = ramp("float32")
    image[3, :3] = np.nan, np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = normalize(image, NormalizeConfig(rule=rule))
        assert not normalize(np.full((3, 3), np.nan), NormalizeConfig(rule=rule)).any()
    assert not got[3, :3].any() and np.isfinite(got).all()
    np.testing.assert_allclose(
        got[0, 3:, 0], normalize(ramp("float32"), NormalizeConfig(rule=rule))[0, 3:, 0], atol=0.02
    )


def test_normalize_leaves_its_input_alone():
    image = ramp("float32")
    normalize(image)
    np.testing.assert_array_equal(image, ramp("float32"))


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "dtype"), [(1, "uint16"), (65535, "uint16"), (65536, "uint32"), (2**31 - 1, "uint32")]
)
def test_labels_round_trip_in_the_smallest_type_that_holds_the_ids(tmp_path, largest, dtype):
    labels = np.array([[0, largest], [1, 0], [1, 1]], dtype=np.int32)
    write_labels(tmp_path / "new" / "x.tif", labels)
    with tifffile.TiffFile(tmp_path / "new" / "x.tif") as tiff:
        assert tiff.pages[0].dtype == dtype and tiff.pages[0].compression == 8
    got = read_labels(tmp_path / "new" / "x.tif")
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, labels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.tif"]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "uint64", "float32"])
def test_labels_of_any_whole_type(tmp_path, dtype):
    labels = (np.arange(12).reshape(3, 4) % 2 + (0 if dtype == "bool" else 1)).astype(dtype)
    np.save(tmp_path / "x.npy", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "x.npy"), labels.astype(np.int32))
    if dtype not in ("int64", "uint64"):
        tifffile.imwrite(tmp_path / "x.tif", labels)
        np.testing.assert_array_equal(read_labels(tmp_path / "x.tif"), labels.astype(np.int32))


def test_labels_of_png_with_sixteen_bits(tmp_path):
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(DEEP))
    np.testing.assert_array_equal(read_labels(tmp_path / "x.png"), DEEP)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[0, -3]], np.int16), "must not be negative, the lowest is -3"),
        (np.array([[0, 1.5]], np.float32), "fractions"),
        (np.array([[0, np.nan]], np.float32), "NaN"),
        (np.array([[0, 2**31]], np.int64), "2147483648, above"),
        (np.zeros((2, 3, 3), np.uint8), r"shape \(2, 3, 3\)"),
        (np.zeros((0, 3), np.uint8), r"shape \(0, 3\)"),
        (np.zeros((2, 3), np.complex64), "complex64"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    np.save(tmp_path / "bad.npy", labels)
    with pytest.raises(CellsegError, match=f"bad.npy.*{message}"):
        read_labels(tmp_path / "bad.npy")
    with pytest.raises(CellsegError, match=f"out.tif.*{message}"):
        write_labels(tmp_path / "out.tif", labels)


def test_labels_in_colour_or_jpeg_or_pickled_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", COLOUR)
    with pytest.raises(CellsegError, match="colour picture"):
        read_labels(tmp_path / "x.tif")
    Pillow.fromarray(GREY).save(tmp_path / "x.jpg")
    with pytest.raises(CellsegError, match="JPEG does not keep cell ids"):
        read_labels(tmp_path / "x.jpg")
    np.save(tmp_path / "x_seg.npy", np.array({"masks": GREY}, dtype=object))
    with pytest.raises(CellsegError, match=r"x_seg\.npy"):
        read_labels(tmp_path / "x_seg.npy")


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_strip_that_claims_more_bytes_than_the_file_has(tmp_path, tile):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.tile(GREY, (40, 40))[:64, :64], compression="zlib", tile=tile)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags[325 if tile else 279]
        tag.overwrite([2**31 - 1, *tag.value[1:]], dtype="I")  # tifffile would make room for 2 GB
    for read in (read_image, read_labels, lambda one: read_window(one, slice(0, 8), slice(0, 8))):
        with pytest.raises(CellsegError, match=r"x\.tif: says that a part of it is larger than the whole"):
            read(path)


# --- real files -----------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_every_real_image_reads_and_normalises(shared_data):
    files = [path for path in sorted(shared_data.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    files = [path for place, path in enumerate(files) if "dsb2018" not in path.parts or place % 5 == 0]
    assert len(files) > 500
    for path in files:
        if path.parent.name in ("labels", "foreground_masks"):
            assert read_labels(path).shape == read_size(path)
            continue
        image = read_image(path)
        assert image.shape[:2] == read_size(path), path
        got = normalize(image)
        assert got.shape == (*image.shape[:2], 3) and got.dtype == np.float32
        assert np.isfinite(got).all() and got.max() > 0.5, path


@pytest.mark.realdata
def test_real_sixteen_bit_image_with_an_offset(shared_data):
    image = read_image(shared_data / "neurips2022" / "Training-labeled" / "images" / "cell_00528.tif")
    assert (image.dtype, image.min(), image.max()) == (np.uint16, 27199, 65535)
    low, high = np.percentile(normalize(image)[..., 0], (1, 99))
    assert (low, high) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
