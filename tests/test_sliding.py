"""Windows on one grid: a region's maps are the crop of the whole's, and the whole's are those MONAI blends."""

from functools import partial

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference

from cellseg import sliding
from cellseg.halving import Most
from cellseg.slides.blocks import Region, window_grid
from cellseg.sliding import Kept
from cellseg.sources import InMemory


@pytest.fixture(scope="module")
def network():
    """A network whose answer depends on all that its window shows."""
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.InstanceNorm2d(4), torch.nn.Conv2d(4, 2, 3, padding=1))
    return torch.nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(150, 211, 3)).astype(np.float32)


class Watched(InMemory):
    """Notes which regions are read."""

    def read(self, region):
        self.__dict__.setdefault("regions", []).append(region)
        return super().read(region)


def blend(look, source, region, grid, kept, view="", **more):
    return sliding.blend(look, source, region, grid, kept.of(source.key, view), **more)


def look(network, images, seen=None):
    if seen is not None:
        seen.append(images.shape)
    with torch.inference_mode():
        return network(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_the_whole_is_what_monai_blends(network, image, overlap):
    grid = window_grid(image.shape[:2], 64, overlap)
    ours = blend(partial(look, network), InMemory(image), Region.whole(image.shape), grid, Kept())
    with torch.inference_mode():
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        theirs = sliding_window_inference(x, (64, 64), 1, network, overlap=overlap, mode="gaussian")[0].numpy()
    assert ours.shape == (2, 150, 211)
    assert np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("key", ["", "a"])
def test_a_region_is_the_crop_of_the_whole_bit_for_bit(network, image, key):
    grid, kept = window_grid(image.shape[:2], 64, 0.25), Kept()
    whole = blend(partial(look, network), InMemory(image), Region.whole(image.shape), grid, kept)
    for region in (Region(0, 0, 1, 1), Region(31, 40, 120, 75), Region(149, 100, 150, 211), Region(40, 0, 90, 211)):
        part = blend(partial(look, network), InMemory(image, key), region, grid, kept)
        assert np.array_equal(part, whole[:, region.rows, region.columns])


def test_a_small_image_is_shown_once_and_whole(network, image):
    seen = []
    grid = window_grid(image.shape[:2], 160, 0.25)
    part = blend(partial(look, network, seen=seen), InMemory(image), Region(10, 20, 30, 50), grid, Kept())
    assert seen == [(1, 150, 211, 3)]
    assert np.array_equal(part, look(network, image[None])[0, :, 10:30, 20:50].numpy())


def test_only_windows_that_touch_are_looked_at_and_kept_ones_not_again(network, image):
    seen, kept = [], Kept()
    grid = window_grid(image.shape[:2], 64, 0.25)  # rows at 0, 48, 86; columns at 0, 48, 96, 144, 147
    source = Watched(image, "a")
    blend(partial(look, network, seen=seen), source, Region(0, 0, 40, 60), grid, kept)
    assert len(seen) == 2
    blend(partial(look, network, seen=seen), source, Region(0, 30, 40, 110), grid, kept)
    assert len(seen) == 3  # the windows at 0, 48 and 96, of which two were kept
    assert source.regions == [Region(0, 0, 64, 112), Region(0, 96, 64, 160)]  # a row of windows is read at once
    blend(partial(look, network, seen=seen), source, Region(0, 30, 40, 110), grid, kept, view="flipped")
    assert len(seen) == 6
    blend(partial(look, network, seen=seen), InMemory(image), Region(0, 30, 40, 110), grid, kept)
    assert len(seen) == 9  # without a key nothing is kept


def test_windows_of_one_colour_are_not_shown_and_hold_nothing(network, image):
    empty = image.copy()
    empty[:, 90:] = (0.2, 0.7, 1.3)
    empty[100, 120] += 1e-6  # rounding
    seen, kept = [], Kept()
    grid = window_grid(image.shape[:2], 64, 0.25)  # rows at 0, 48, 86; columns at 0, 48, 96, 144, 147
    nothing = torch.tensor([-8.0, 0.5])[:, None, None]
    see = partial(look, network, seen=seen)
    maps = blend(see, InMemory(empty, "a"), Region.whole(image.shape), grid, kept, nothing=nothing)
    assert len(seen) == 6
    assert np.all(maps[0, :, 112:] == -8)
    assert np.all(maps[1, :, 112:] == 0.5)
    again = blend(see, InMemory(empty, "a"), Region(20, 80, 120, 200), grid, kept, nothing=nothing)
    assert len(seen) == 6  # what holds nothing is kept too
    assert np.array_equal(again, maps[:, 20:120, 80:200])
    assert len(blend(see, InMemory(empty), Region.whole(image.shape), grid, kept)) == 2
    assert len(seen) == 6 + 15


def test_what_was_not_asked_for_longest_goes_first():
    kept = Kept(limit=2 * 4 * 10)
    for name in "ab":
        kept.put(name, torch.zeros(10))
    assert kept.get("a") is not None
    kept.put("c", torch.zeros(10))
    assert [kept.get(name) is not None for name in "abc"] == [True, False, True]


@pytest.mark.parametrize("count", [2, 3, 64])
def test_several_windows_at_once_give_the_same_maps(network, image, count):
    grid, seen = window_grid(image.shape[:2], 64, 0.25), []
    whole = Region.whole(image.shape)
    alone = blend(partial(look, network), InMemory(image), whole, grid, Kept())
    several = blend(partial(look, network, seen=seen), InMemory(image), whole, grid, Kept(), most=Most(count))
    assert [shape[0] for shape in seen] == {2: [2, 2, 1], 3: [3, 2], 64: [5]}[count] * 3  # windows of a row
    assert np.allclose(several, alone, atol=1e-5)
