import numpy as np
import pytest
import torch

from cellseg.config import AugmentConfig, ModelConfig
from cellseg.core import Record
from cellseg.datasets.crops import CropDataset, resize_labels, sample_matrix, zoom_for
from cellseg.images import write_labels
from cellseg.instances import flow


def disk_labels(shape=(160, 200)):
    rows, columns = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for number, (y, x, r) in enumerate([(40, 50, 18), (100, 60, 12), (70, 130, 25), (130, 170, 14)], start=1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= r**2] = number
    return labels


@pytest.fixture
def records(tmp_path):
    import tifffile

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
    assert crops[0].weight.sum() == 160 * 200


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
