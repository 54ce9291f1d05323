import dataclasses
from collections import Counter

import numpy as np
import pytest
import tifffile
import torch

from cellseg.config import AugmentConfig, ModelConfig
from cellseg.core import CellsegError, Record
from cellseg.datasets import samples, windowed
from cellseg.datasets.crops import CropDataset, Crops, sample_matrix
from cellseg.datasets.sampling import draw_by_root, draw_from_groups, group_members, known_diameters
from cellseg.datasets.targets import near_cells
from cellseg.datasets.windowed import load_view, split_cut
from cellseg.images import normalize, read_image, write_labels
from cellseg.instances import flow
from cellseg.scale import resize_labels, zoom_for
from cellseg.slides import windows


def disk_labels(shape=(160, 200)):
    rows, columns = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for number, (y, x, r) in enumerate([(40, 50, 18), (100, 60, 12), (70, 130, 25), (130, 170, 14)], start=1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= r**2] = number
    return labels


@pytest.fixture
def records(tmp_path):
    made = []
    for number in range(3):
        labels = np.roll(disk_labels(), 11 * number, axis=1)
        noise = np.random.default_rng(number).normal(0, 5, labels.shape)
        image = np.clip(100 * (labels > 0) + 50 + noise, 0, 255).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"i{number}.tif", image)
        write_labels(tmp_path / f"l{number}.tif", labels)
        made.append(
            Record(
                f"i{number}", tmp_path / f"i{number}.tif", tmp_path / f"l{number}.tif",
                "disks", "train", "", *labels.shape, 4, "instances", 24.0,
            )
        )  # fmt: skip
    return made


def dataset(records, **changes):
    settings = {
        "diameters": [record.diameter for record in records],
        "shape": (2, 64),
        "seed": 3,
        **changes,
    }
    return CropDataset(records, ModelConfig(), AugmentConfig(), **settings)


class Waiting(torch.Tensor):
    """Refuses to be copied while its memory may be used again: what is read here is not pinned."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func is not torch.Tensor.to or not (kwargs or {}).get("non_blocking")
        return super().__torch_function__(func, types, args, kwargs)


def test_a_batch_is_on_its_device_before_its_memory_is_used_again():
    one = torch.rand(1, 2, 3, 3).as_subclass(Waiting)
    moved = Crops(one, one, one, one, ("a",)).to(torch.device("cpu"))
    assert torch.equal(moved.weak, one) and moved.ids == ("a",)


def test_zoom_is_limited_and_unknown_diameters_leave_the_scale_alone():
    assert zoom_for(None, 24) == 1
    assert zoom_for(12, 24) == 2
    assert zoom_for(1, 24) == 4
    assert zoom_for(2400, 24) == 0.1


def test_a_crop_turns_flow_vectors_as_encoding_the_turned_labels_does(records):
    checked = 0
    for number in range(8):
        augment = AugmentConfig(scale_min=1.0, scale_max=1.0)
        crops = CropDataset(records, ModelConfig(), augment, diameters=[24.0] * 3, shape=(1, 160), seed=number)
        batch = crops[0]
        target, weight = batch.target[0].numpy(), batch.weight[0, 0].numpy() > 0
        from skimage.measure import label

        expected = flow.encode(label(target[0] > 0.5).astype(np.int32))
        inside = (target[0] > 0) & weight
        inside[:3] = inside[-3:] = inside[:, :3] = inside[:, -3:] = False
        whole = np.zeros_like(inside)
        pieces = label(target[0] > 0.5)
        edge = set(np.unique(np.r_[pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1], pieces[~weight]]))
        for piece in set(np.unique(pieces)) - edge - {0}:
            whole |= pieces == piece
        if not whole.any():
            continue
        cosine = (target[1:] * expected[1:]).sum(axis=0)[whole]
        assert np.median(cosine) > 0.97
        checked += 1
    assert checked >= 4


def test_the_same_step_is_the_same_batch_and_ranks_share_it(records):
    whole = CropDataset(records, ModelConfig(), AugmentConfig(), diameters=[24.0] * 3, shape=(4, 64), seed=3)
    parts = [dataset(records, rank=rank, world=2) for rank in (0, 1)]
    joined = torch.cat([part[5].weak for part in parts])
    assert torch.equal(joined, whole[5].weak)
    assert torch.equal(whole[5].weak, whole[5].weak)
    assert not torch.equal(whole[5].weak, whole[6].weak)


def test_every_image_is_drawn_once_an_epoch(records):
    crops = dataset(records, shape=(3, 64))
    assert sorted(crops[0].ids) == sorted(crops[1].ids) == ["i0", "i1", "i2"]


def test_views_of_an_unlabelled_crop_share_geometry(records):
    crops = dataset(records, labelled=False, shape=(4, 96))[0]
    assert not torch.equal(crops.weak, crops.strong)
    for weak, strong in zip(crops.weak, crops.strong, strict=True):
        if weak[0].std() < 0.1:
            continue
        assert np.corrcoef(weak[0].numpy().ravel(), strong[0].numpy().ravel())[0, 1] > 0.5
    assert crops.target.abs().sum() == 0


def test_a_crop_larger_than_the_image_has_weight_zero_outside(records):
    augment = AugmentConfig(scale_min=1.0, scale_max=1.0, rotate=False, flip=False)
    crops = CropDataset(records, ModelConfig(), augment, diameters=[24.0] * 3, shape=(1, 256), seed=0)
    assert crops[0].weight.sum(dim=(2, 3)).tolist() == [[160 * 200, 160 * 200]]


def test_matrix_keeps_a_fitting_crop_inside():
    rng = np.random.default_rng(0)
    augment = AugmentConfig(rotate=False)
    for _ in range(50):
        matrix = sample_matrix(rng, (400, 500), 128, augment)
        corners = matrix @ np.array([[0, 127, 0, 127], [0, 0, 127, 127], [1, 1, 1, 1]])
        assert corners.min() >= -0.5
        assert corners[0].max() <= 499.5
        assert corners[1].max() <= 399.5


def test_labels_are_resized_without_mixing():
    labels = np.array([[1, 70000], [0, 3]], np.int32)
    doubled = resize_labels(labels, (4, 4))
    assert np.array_equal(doubled, np.repeat(np.repeat(labels, 2, 0), 2, 1))
    assert np.array_equal(resize_labels(doubled, (2, 2)), labels)


# --- weak labels ----------------------------------------------------------------------------------------------------

PLAIN = AugmentConfig(scale_min=1.0, scale_max=1.0, rotate=False, flip=False, weak=0.0)


def whole_crop(record, **changes):
    """The one crop that shows all of a 160 x 200 image in the middle of 256 x 256."""
    settings = {"diameters": [24.0], "shape": (1, 256), "seed": 0, **changes}
    batch = CropDataset([record], ModelConfig(), PLAIN, **settings)[0]
    rows = np.flatnonzero(batch.weight[0, 0].numpy().any(axis=1))
    inside = (slice(48, 208), slice(28, 228))
    assert rows.size == 0 or (rows.min() >= 48 and rows.max() < 208)
    return batch.target[0].numpy()[:, *inside], batch.weight[0].numpy()[:, *inside]


def test_a_foreground_mask_weighs_on_the_foreground_alone(records):
    target, weight = whole_crop(dataclasses.replace(records[0], label_kind="foreground", n_instances=None))
    assert weight[0].all()
    assert not weight[1].any()
    np.testing.assert_array_equal(target[0] > 0, disk_labels() > 0)
    assert not target[1:].any()


def test_partial_labels_weigh_on_cells_and_a_thin_ring(records):
    target, weight = whole_crop(dataclasses.replace(records[0], label_kind="partial"))
    rows, columns = np.indices((160, 200))
    labels = disk_labels()
    distance = np.full(labels.shape, np.inf)
    for y, x in zip(*np.nonzero(labels), strict=True):
        distance = np.minimum(distance, (rows - y) ** 2 + (columns - x) ** 2)
    np.testing.assert_array_equal(weight[0] > 0, distance <= 9)
    np.testing.assert_array_equal(weight[0], weight[1])
    np.testing.assert_array_equal(target[0] > 0, labels > 0)


def test_images_without_labels_weigh_nothing_among_labelled_ones_and_fully_among_unlabelled(records):
    bare = dataclasses.replace(records[0], labels=None, label_kind="", n_instances=None)
    assert not whole_crop(bare)[1].any()
    assert whole_crop(bare, labelled=False)[1].all()
    assert whole_crop(records[0], labelled=False)[1].all()


@pytest.mark.parametrize("representation", ["flow", "distance", "boundary"])
def test_every_representation_takes_every_kind_of_label(records, representation):
    mixed = [
        dataclasses.replace(record, label_kind=kind)
        for record, kind in zip(records, ("instances", "foreground", "partial"), strict=True)
    ]
    batch = CropDataset(
        mixed, ModelConfig(representation=representation), PLAIN, diameters=[24.0] * 3, shape=(3, 64), seed=1
    )[0]
    assert torch.isfinite(batch.target).all()
    weighed = {name: (bool(w[0].any()), bool(w[1].any())) for name, w in zip(batch.ids, batch.weight, strict=True)}
    assert weighed == {"i0": (True, True), "i1": (True, False), "i2": (True, True)}


def test_the_ring_around_one_pixel_is_a_disk():
    labels = np.zeros((11, 11), np.int32)
    assert not near_cells(labels).any()
    labels[5, 5] = 7
    assert near_cells(labels, 3).sum() == 29  # lattice points within 3 of the origin
    assert near_cells(labels, 0).sum() == 1


# --- balance --------------------------------------------------------------------------------------------------------


def test_groups_are_drawn_evenly_and_their_images_in_turn(records):
    many = [dataclasses.replace(records[0], id=f"a{i}", group="a") for i in range(7)]
    few = [dataclasses.replace(records[1], id=f"b{i}", group="b") for i in range(2)]
    other = [dataclasses.replace(records[2], id="c", group="a", dataset="another")]
    all_records = [*many, *few, *other]
    groups = group_members(all_records)
    drawn = [all_records[draw_from_groups(n, groups, seed=5)].id for n in range(3 * 14)]
    counts = Counter(drawn)
    assert counts == Counter({**{f"a{i}": 2 for i in range(7)}, "b0": 7, "b1": 7, "c": 14})
    assert {name[0] for name in drawn[:3]} == {"a", "b", "c"}
    crops = CropDataset(
        all_records, ModelConfig(), AugmentConfig(), diameters=[24.0] * 10, shape=(6, 64), seed=5, balance="group"
    )
    assert list(crops[0].ids + crops[1].ids) == drawn[:12]


def test_by_root_a_group_four_times_as_large_is_drawn_twice_as_often():
    counts = Counter(draw_by_root(n, [[0, 1, 2, 3], [4]], seed=1) for n in range(3000))
    assert abs(counts[4] - 1000) < 4 * 26  # four standard deviations of a binomial
    assert min(counts[i] for i in range(4)) > 400


# --- slides ---------------------------------------------------------------------------------------------------------

SLIDE = (900, 1100)


@pytest.fixture
def slide(tmp_path, monkeypatch):
    """A coloured image of round cells with its labels, both tiled, that counts as a slide."""
    rng = np.random.default_rng(2)
    labels = np.zeros(SLIDE, np.int32)
    rows, columns = np.indices((31, 31)) - 15
    number = 0
    for y in range(0, SLIDE[0] - 31, 33):
        for x in range(0, SLIDE[1] - 31, 33):
            number += 1
            disk = rows**2 + columns**2 <= rng.integers(7, 15) ** 2
            labels[y : y + 31, x : x + 31][disk] = number
    smooth = np.add.outer(np.sin(np.arange(SLIDE[0]) / 40), np.cos(np.arange(SLIDE[1]) / 55))
    shades = np.stack([90 + 30 * smooth + 60 * (labels > 0), 120 + 20 * smooth, 200 - 50 * (labels > 0)], axis=-1)
    windows.write_tiled(tmp_path / "s.tif", shades.clip(0, 255).astype(np.uint8))
    windows.write_tiled(tmp_path / "l.tif", labels.astype(np.uint16))
    monkeypatch.setattr(windows, "SLIDE_PIXELS", 400_000)
    facts = ("slides", "train", "", *SLIDE, number, "instances", 24.0)
    return Record("s", tmp_path / "s.tif", tmp_path / "l.tif", *facts)


def slide_and_whole(record, monkeypatch, diameter, **changes):
    """Six crops read by window, and the same six cut from the whole image."""
    settings = {"diameters": [diameter], "shape": (6, 96), "seed": 4, **changes}
    by_window = CropDataset([record], ModelConfig(), AugmentConfig(weak=0.0), **settings)
    parts = by_window[1]
    assert not by_window._cache
    monkeypatch.setattr(windows, "SLIDE_PIXELS", 10**9)
    whole = CropDataset([record], ModelConfig(), AugmentConfig(weak=0.0), **settings)
    return parts, whole[1]


@pytest.mark.parametrize("kind", ["instances", "foreground", "partial"])
def test_crops_of_a_slide_are_crops_of_the_whole_image(slide, monkeypatch, kind):
    parts, whole = slide_and_whole(dataclasses.replace(slide, label_kind=kind), monkeypatch, 24.0)
    torch.testing.assert_close(parts.weak, whole.weak, atol=1e-5, rtol=0)
    assert torch.equal(parts.weight, whole.weight)
    assert torch.equal(parts.target[:, 0], whole.target[:, 0])
    inside = whole.target[:, 0] > 0
    assert inside.any()
    if kind != "foreground":
        cosine = (parts.target[:, 1:] * whole.target[:, 1:]).sum(dim=1)[inside]
        assert (cosine > 0.99).float().mean() > 0.98  # all but the centres, where directions are chance


@pytest.mark.parametrize("diameter", [15.0, 17.3, 37.0, 50.0])
def test_crops_of_a_rescaled_slide_are_nearly_those_of_the_whole_image(slide, monkeypatch, diameter):
    y, x = np.indices(SLIDE)
    windows.write_tiled(
        slide.image, np.stack([x, y, x + y], axis=-1).astype(np.uint16)
    )  # pixels that say where they are
    parts, whole = slide_and_whole(slide, monkeypatch, diameter)
    assert torch.equal(parts.weight, whole.weight)
    assert (parts.target[:, 0] != whole.target[:, 0]).float().mean() < 0.05  # outlines on another lattice
    off = (parts.weak - whole.weak).mean(dim=(2, 3))
    for channel, reach in enumerate((SLIDE[1], SLIDE[0])):
        assert (off[:, channel].abs() * 0.98 * reach).max() < 0.1  # in pixels: percentiles 1 and 99 became 0 and 1


def test_a_slide_is_never_decoded_whole(slide, monkeypatch):
    areas = []
    read = windowed.read_window

    def watched(path, rows, columns):
        areas.append((rows.stop - rows.start) * (columns.stop - columns.start))
        return read(path, rows, columns)

    def forbidden(*_):
        raise AssertionError("the whole slide was read")

    monkeypatch.setattr(windowed, "read_window", watched)
    monkeypatch.setattr(windowed, "read_image", forbidden)
    monkeypatch.setattr(samples, "read_image", forbidden)
    monkeypatch.setattr(samples, "read_labels", forbidden)
    crops = CropDataset([slide], ModelConfig(), AugmentConfig(), diameters=[24.0], shape=(4, 64), seed=0)
    assert crops[0].target.any()
    halo = 3 * 24
    reach = 64 / 0.7 * 2**0.5 + 8 + 2 * halo  # the crop's diagonal at the smallest scale, margins and halo
    assert len(areas) == 4
    assert max(areas) <= reach**2 < SLIDE[0] * SLIDE[1] / 8
    assert not crops._cache
    load_view(slide, ModelConfig(), side=200)
    assert areas[-1] == 200 * 200


def test_the_middle_of_a_slide_is_that_of_the_normalised_whole(slide):
    view = load_view(slide, ModelConfig(), side=301)
    np.testing.assert_array_equal(view, normalize(read_image(slide.image))[299:600, 399:700])


def test_a_slide_without_windows_is_held_whole_with_a_warning(slide, tmp_path):
    from PIL import Image as Pillow

    Pillow.fromarray(read_image(slide.image)).save(tmp_path / "s.png")
    crops = CropDataset(
        [dataclasses.replace(slide, image=tmp_path / "s.png")], ModelConfig(), AugmentConfig(), diameters=[24.0],
        shape=(1, 64), seed=0,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"s\.png: cannot be read by window and is held whole"):
        crops[0]
    assert len(crops._cache) == 1


def test_labels_of_another_size_than_their_slide_are_named(slide, tmp_path):
    write_labels(tmp_path / "small.tif", np.ones((90, 110), np.int32))
    crops = dataset([dataclasses.replace(slide, labels=tmp_path / "small.tif")], diameters=[24.0])
    with pytest.raises(CellsegError, match=r"small\.tif: labels are \(90, 110\) but the image is \(900, 1100\)"):
        crops[0]


def test_pieces_of_a_cut_cell_become_cells_and_whole_cells_stay():
    labels = np.zeros((12, 12), np.int32)
    labels[0:3, 1:3] = labels[0:3, 5:7] = 2**31 - 1  # a horseshoe, cut above
    labels[6, 2] = labels[8, 2] = 4  # a whole cell in two pieces
    labels[5:8, 9:12] = 9  # cut at the right, unless that is the slide's own edge
    size = (100, 100)
    got = split_cut(labels, [slice(10, 22), slice(20, 32)], size)
    assert sorted(np.unique(got[0:3])) == [0, *sorted({got[0, 1], got[0, 5]})]
    assert got[0, 1] != got[0, 5]
    np.testing.assert_array_equal(got == 4, labels == 4)
    np.testing.assert_array_equal(got > 0, labels > 0)
    assert len(np.unique(got)) == 5
    at_corner = split_cut(labels, [slice(0, 12), slice(88, 100)], size)
    np.testing.assert_array_equal(at_corner, labels)


def test_a_foreground_mask_borrows_the_diameter_of_its_group(records):
    one, two, three = (dataclasses.replace(records[0], id=i, diameter=d) for i, d in (("a", 20), ("b", 30), ("c", 26)))
    mask = dataclasses.replace(one, id="m", label_kind="foreground", diameter=None)
    empty = dataclasses.replace(one, id="e", diameter=None)
    stranger = dataclasses.replace(mask, id="s", group="other")
    assert known_diameters([one, mask, two, three, empty, stranger]) == [20, 26, 30, 26, None, None]
