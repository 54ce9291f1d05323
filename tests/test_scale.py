"""The scale that is chosen: answers known by construction, no network."""

import numpy as np
import pytest

from cellseg.scale import WINDOW, ZOOMS, scale_prior, stable_zoom, stable_zooms, zoom_for

CHOSEN = ZOOMS[1:-1]


def squares(shape, side):
    """Label image of squares of a side with gaps of half a side."""
    pitch = side + side // 2
    rows, columns = (np.arange(length) for length in shape)
    inside = (rows % pitch < side)[:, None] & (columns % pitch < side)[None]
    ids = (rows // pitch)[:, None] * 1000 + (columns // pitch)[None] + 1
    return np.where(inside, ids, 0).astype(np.int32)


def finds_from(low, high):
    """Segment squares of 8 image pixels rightly at zooms low to high; elsewhere one blob whose place varies."""

    def segment_at(image, zoom):
        shape = tuple(max(1, round(side * zoom)) for side in image.shape[:2])
        if low <= zoom <= high:
            rows, columns = (((np.arange(n) + 0.5) / zoom).astype(int) for n in shape)
            return squares(image.shape[:2], 8)[np.minimum(rows, image.shape[0] - 1)[:, None],
                                               np.minimum(columns, image.shape[1] - 1)[None]]  # fmt: skip
        labels = np.zeros(shape, np.int32)
        third = max(1, shape[0] // 3)
        start = third * (round(2 * np.log2(zoom)) % 3)
        labels[start : start + third] = 1
        return labels

    return segment_at


@pytest.mark.parametrize("middle", range(3, len(ZOOMS) - 1))
def test_the_middle_of_three_scales_that_agree_is_chosen(middle):
    image = np.zeros((240, 240, 3), np.float32)
    segment_at = finds_from(ZOOMS[middle - 1], ZOOMS[middle + 1])
    assert stable_zoom(image, segment_at) == ZOOMS[middle]


def test_where_nothing_is_found_there_is_no_answer():
    empty = np.zeros((64, 64, 3), np.float32)
    assert stable_zoom(empty, lambda image, zoom: np.zeros((8, 8), np.int32)) is None


def test_only_the_centre_of_a_large_image_is_shown_and_no_window_is_larger_than_said():
    seen = []

    def segment_at(image, zoom):
        seen.append((image.shape[0] * zoom, image.shape[1] * zoom, float(image[..., 0].max())))
        return np.zeros((8, 8), np.int32)

    image = np.zeros((9000, 200, 3), np.float32)
    image[:1000] = 1
    stable_zoom(image, segment_at)
    assert max(height for height, _, _ in seen) <= WINDOW
    assert max(bright for _, _, bright in seen) == 0


def test_a_thumbnail_is_not_shrunk_to_nothing():
    zooms = set()
    stable_zoom(np.zeros((40, 40, 3), np.float32), lambda image, zoom: zooms.add(zoom) or np.zeros((8, 8), np.int32))
    assert min(zooms) == ZOOMS[5] == 1.0


def test_a_known_diameter_gives_the_zoom_and_limits_hold():
    assert zoom_for(48.0, 24.0) == 0.5
    assert zoom_for(None, 24.0) == 1.0
    assert zoom_for(1000.0, 24.0) == 0.1
    assert zoom_for(1.0, 24.0) == 4.0


def test_what_many_images_say_steadies_what_one_says():
    """Of three images the second alone would be shown far too coarse; an image without cells goes with the rest."""
    right, wrong = ZOOMS[6], ZOOMS[3]
    ranges = {0: (5, 7), 1: (2, 4), 2: (5, 7)}
    segmenters = {number: finds_from(ZOOMS[low], ZOOMS[high]) for number, (low, high) in ranges.items()}

    def segment_at(image, zoom):
        number = int(image[0, 0, 0])
        shape = tuple(max(1, round(side * zoom)) for side in image.shape[:2])
        return segmenters[number](image, zoom) if number in segmenters else np.zeros(shape, np.int32)

    images = [np.full((240, 240, 3), number, np.float32) for number in (*ranges, 9)]
    assert [stable_zoom(image, segment_at) for image in images] == [right, wrong, right, None]
    assert stable_zooms(iter(images), segment_at)[0::2] == [right, right]
    assert stable_zooms(iter(images), segment_at)[3] == right
    assert stable_zooms(images[3:], segment_at) == [None]
    assert stable_zooms([], segment_at) == []


def test_what_cells_elsewhere_say_peaks_at_their_zoom_and_doubts_few():
    image = np.zeros((240, 240, 3), np.float32)
    prior = scale_prior([image, image], finds_from(ZOOMS[5], ZOOMS[7]))
    assert len(prior) == len(CHOSEN) and CHOSEN[int(np.argmax(prior))] == ZOOMS[6]
    assert 0 < max(prior) < 1


@pytest.mark.parametrize(("own", "other", "chosen"), [(0.5, 0.05, 2), (0.5, 0.2, 5), (1.0, 0.9, 2), (0.0, 0.9, None)])
def test_the_surer_an_image_is_alone_the_less_others_count(monkeypatch, own, other, chosen):
    """Alone it prefers zoom 2 of the list to zoom 5 by a tenth; others say zoom 5."""
    alone, prior = np.zeros(len(CHOSEN)), np.zeros(len(CHOSEN))
    alone[2], alone[5], prior[5] = own, max(own - 0.1, 0), other
    monkeypatch.setattr("cellseg.scale._stability", lambda *arguments, **words: alone)
    found = stable_zoom(np.zeros((8, 8, 3), np.float32), None, list(prior))
    assert found == (None if chosen is None else CHOSEN[chosen])


def counting(segment_at, asked):
    def segment(image, zoom):
        asked.append((image.shape[0], zoom))
        return segment_at(image, zoom)

    return segment


def test_nothing_is_segmented_twice_and_each_part_at_two_zooms():
    """240 px are shown whole up to zoom 2; at the last two pairs of zooms only their middle is."""
    asked = []
    found = stable_zoom(np.zeros((240, 240, 3), np.float32), counting(finds_from(ZOOMS[7], ZOOMS[9]), asked))
    assert found == ZOOMS[8]
    assert len(asked) == len(set(asked))
    whole = [zoom for side, zoom in asked if side == 240]
    assert sorted(whole) == sorted(ZOOMS[:8])
    assert sorted(item for item in asked if item[0] < 240) == [
        (128, ZOOMS[8]),
        (128, ZOOMS[9]),
        (181, ZOOMS[7]),
        (181, ZOOMS[8]),
    ]


def test_an_image_that_is_sure_at_its_own_size_is_not_looked_at_further():
    asked = []
    image = np.zeros((240, 240, 3), np.float32)
    segment_at = counting(finds_from(ZOOMS[4], ZOOMS[6]), asked)
    assert stable_zoom(image, segment_at) == ZOOMS[5] == 1.0
    assert {zoom for _, zoom in asked} == set(ZOOMS[3:8])
    asked.clear()
    assert stable_zoom(image, segment_at, prior=[0.0] * len(CHOSEN)) == 1.0  # others have a say: all are tried
    assert {zoom for _, zoom in asked} == set(ZOOMS)
