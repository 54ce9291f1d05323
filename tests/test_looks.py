"""Which parts of a large image tell its scale: those that hold something."""

import numpy as np

from cellseg.scale import LOOK_SIDE, LOOKS, looks
from cellseg.slides.blocks import Region


def test_of_an_image_that_is_not_large_all_is_looked_at_without_reading_it():
    assert looks((LOOK_SIDE, 300), read=None) == [Region(0, 0, LOOK_SIDE, 300)]


def test_of_a_slide_the_parts_around_the_liveliest_probes_are_looked_at():
    shape, read = (9000, 16000), []

    def pixels(region):
        """Texture in two places, stronger in the second; even elsewhere."""
        read.append(region)
        strength = 1.0 if region.common(Region(900, 1700, 1100, 1900)).size else 0.0
        strength = 2.0 if region.common(Region(7900, 14100, 8100, 14300)).size else strength
        return np.random.default_rng(0).normal(0, strength, (*region.shape, 3)).astype(np.float32)

    found = looks(shape, pixels)
    assert len(read) == 8 * 8
    assert {region.shape for region in read} == {(256, 256)}
    # probes lie at ninths of the sides: 1000 and 1777 are in the first place, 8000 and 14222 in the second
    assert found[:2] == [Region(9000 - 2048, 13198, 9000, 15246), Region(0, 753, 2048, 2801)]
    assert len(found) == LOOKS
    assert all(Region.whole(shape).common(region) == region for region in found)


def test_an_image_large_in_one_direction_is_looked_at_along_it():
    found = looks((100, 5000), lambda region: np.zeros((*region.shape, 3), np.float32))
    assert [region.shape for region in found] == [(100, 2048)] * len(found)
    assert [region.left for region in found] == sorted(region.left for region in found)  # all alike: in reading order
