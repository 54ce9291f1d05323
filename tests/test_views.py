import numpy as np
import pytest
from fakes import Fickle, Reader, four_disks, image_of, segmenter

from cellseg.label_free.views import agreement, found_again, see
from cellseg.metrics import match


def test_a_network_that_only_reads_finds_the_same_in_every_view():
    labels = four_disks()
    views = see(segmenter(Reader()), image_of(labels), 1.0)
    assert match(labels, views.labels, (0.95,))[0].f1 == 1
    assert len(views.flips) == 4
    assert len(views.scales) == 2
    assert all(match(views.labels, other, (0.8,))[0].f1 == 1 for other in views.flips + views.scales)


def test_flipped_views_come_back_to_their_place():
    labels = four_disks()
    labels[labels > 1] = 0  # one disk, upper left
    views = see(segmenter(Reader()), image_of(labels), 1.0)
    assert all(np.array_equal(other > 0, labels > 0) for other in views.flips)


def test_each_flip_of_a_fickle_network_misses_another_cell():
    views = see(segmenter(Fickle()), image_of(four_disks()), 1.0)
    assert views.labels.max() == 4
    missed = [set(range(1, 5)) - set(np.unique(views.labels[other > 0])) for other in views.flips]
    assert missed == [{1}, {3}, {2}, {4}]  # nothing, rows, columns, both flipped
    assert found_again(views.labels, views.flips).tolist() == [0.75] * 4
    assert found_again(views.labels, views.scales).tolist() == [0, 1, 1, 1]
    assert agreement(views.labels, views.flips) == pytest.approx(6 / 7)  # 2 · 3 / (4 + 3)


def test_a_cell_is_found_again_at_the_threshold_and_not_below():
    first, second = np.zeros((1, 20), np.int32), np.zeros((1, 20), np.int32)
    first[0, :8], second[0, 2:10] = 1, 7  # 6 of 10 pixels
    assert found_again(first, [second], iou=0.6).tolist() == [1.0]
    assert found_again(first, [second], iou=0.61).tolist() == [0.0]
    assert found_again(np.zeros((3, 3), np.int32), [np.ones((3, 3), np.int32)]).size == 0


def test_nothing_agrees_with_nothing():
    blank = np.zeros((5, 5), np.int32)
    assert agreement(blank, [blank, blank]) == 0


def test_an_image_too_small_to_shrink_has_only_a_finer_view():
    views = see(segmenter(Reader()), image_of(four_disks(side=34, radius=6)), 1.0)
    assert len(views.scales) == 1
