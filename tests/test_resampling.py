"""Resampling a part gives what resampling all of it gives there; all of it is what OpenCV gives."""

import cv2
import numpy as np
import pytest

from cellseg import sources
from cellseg.resampling import apply_weights, axis_weights
from cellseg.scale import resize_image, resize_labels, resize_part, zoomed_shape
from cellseg.slides.blocks import Region
from cellseg.sources import InMemory, Zoomed


def resampled(values, new, average):
    for axis, (old, side) in enumerate(zip(values.shape, new, strict=False)):
        values = apply_weights(values, axis_weights(old, side, slice(0, side), average=average)[0], axis)
    return values


def test_halving_averages_pairs_and_doubling_mixes_by_quarters():
    values = np.array([0, 4, 8, 4], np.float32)
    half, needed = axis_weights(4, 2, slice(1, 2), average=True)
    assert needed == slice(2, 4)
    assert (half @ values[needed]).tolist() == [6]
    double, needed = axis_weights(4, 8, slice(0, 8), average=False)
    assert needed == slice(0, 4)
    assert (double @ values).tolist() == [0, 1, 3, 5, 7, 7, 5, 4]
    third, needed = axis_weights(3, 2, slice(0, 2), average=True)  # each takes one pixel and half of the middle one
    assert (third @ np.array([3, 6, 12], np.float32)).tolist() == [4, 10]


@pytest.mark.parametrize(("new", "average"), [((37, 61), True), ((50, 40), True), ((177, 205), False)])
def test_all_of_an_image_is_what_opencv_gives(new, average):
    image = np.random.default_rng(0).normal(size=(100, 123, 3)).astype(np.float32)
    method = cv2.INTER_AREA if average else cv2.INTER_LINEAR
    expected = cv2.resize(image, new[::-1], interpolation=method)
    assert np.allclose(resampled(image, new, average), expected, atol=2e-6)


@pytest.mark.parametrize("zoom", [0.13, 0.5, 0.77, 1.0, 1.31, 3.0])
def test_a_part_is_the_crop_of_the_whole_bit_for_bit(zoom, monkeypatch):
    monkeypatch.setattr(sources, "_PIXELS_AT_ONCE", 2000)  # so that shrinking goes in steps
    image = np.random.default_rng(0).normal(size=(150, 180, 3)).astype(np.float32)
    zoomed = Zoomed(InMemory(image), zoom, limit=0)
    height, width = zoomed.shape
    assert zoomed.shape == zoomed_shape((150, 180), zoom) == resize_image(image, zoom).shape[:2]
    whole = zoomed.read(Region.whole(zoomed.shape))
    assert np.allclose(whole, resize_image(image, zoom), atol=2e-6)
    for region in (Region(0, 0, 1, 1), Region(3, 2, height - 4, width - 7), Region(height - 1, 0, height, width)):
        assert np.array_equal(zoomed.read(region), whole[region.rows, region.columns])


def test_small_images_are_resized_whole_by_opencv():
    image = np.random.default_rng(0).normal(size=(60, 70, 3)).astype(np.float32)
    for zoom in (0.4, 1.7):
        part = Zoomed(InMemory(image), zoom, limit=70).read(Region(3, 4, 20, 25))
        assert np.array_equal(part, resize_image(image, zoom)[3:20, 4:25])


def test_a_zoomed_source_has_a_key_only_where_its_source_has_one():
    image = np.zeros((10, 20, 3), np.float32)
    assert Zoomed(InMemory(image), 2.0, 0).key == ""
    assert Zoomed(InMemory(image, "a"), 2.0, 0).key != Zoomed(InMemory(image, "a"), 0.5, 0).key


@pytest.mark.parametrize("new", [(35, 90), (100, 41), (64, 64)])
def test_a_part_of_labels_is_the_crop_of_the_whole(new):
    labels = np.random.default_rng(0).integers(0, 50, (64, 64)).astype(np.int32)
    whole = resize_labels(labels, new)
    wanted = Region(new[0] // 3, new[1] // 4, new[0] - 3, new[1] - 1)
    given = wanted.covered(new, (64, 64))
    part = resize_part(labels[given.rows, given.columns], given, (64, 64), wanted, new)
    assert np.array_equal(part, whole[wanted.rows, wanted.columns])
