import numpy as np
import pytest
import tifffile
from fakes import Constant, Fickle, Reader, four_disks, image_of, segmenter
from scipy import ndimage

from cellseg.config import AdaptConfig
from cellseg.core import CellsegError, Record
from cellseg.images import read_labels
from cellseg.label_free import pseudo
from cellseg.label_free.pseudo import make_labels, prepare_labelled, read_round, write_round
from cellseg.label_free.views import see
from cellseg.metrics import match


def test_every_cell_of_a_steady_network_is_kept_and_every_pixel_known():
    labels = four_disks()
    made = make_labels(segmenter(Reader()), image_of(labels), AdaptConfig(rim=0), 24.0)
    assert (made.kept, made.seen, made.diameter) == (4, 4, 24.0)
    assert np.array_equal(made.labels > 0, labels > 0)
    assert made.known.all()


def test_a_cell_that_most_views_miss_is_left_open():
    labels = four_disks()
    made = make_labels(segmenter(Fickle()), image_of(labels), AdaptConfig(rim=0), 24.0)
    # The first disk is missed by one flip and by both scales (3 of 6 views find it), the others by one flip (5 of 6).
    assert (made.kept, made.seen) == (3, 4)
    assert sorted(np.unique(made.labels)) == [0, 1, 2, 3]
    assert np.array_equal(made.labels > 0, labels > 1)
    assert np.array_equal(made.known, labels != 1)


@pytest.mark.parametrize(
    ("views", "agreement", "kept"),
    [("flips", 0.75, 4), ("flips", 0.76, 0), ("scales", 1.0, 3), ("both", 0.5, 4), ("both", 5 / 6, 3), ("both", 1, 0)],
)
def test_agreement_is_the_share_of_the_views(views, agreement, kept):
    settings = AdaptConfig(views=views, agreement=agreement)
    assert make_labels(segmenter(Fickle()), image_of(four_disks()), settings, 24.0).kept == kept


def test_unsure_background_is_left_open():
    image = np.zeros((64, 64, 3), np.float32)
    image[..., 0] = np.where(np.arange(64) < 32, -8, -1)  # foreground probability 0.0003 and 0.27
    made = make_labels(segmenter(Reader()), image, AdaptConfig(background=0.2), 24.0)
    assert (made.kept, made.seen) == (0, 0)
    assert made.known[:, :32].all()
    assert not made.known[:, 32:].any()
    assert make_labels(segmenter(Reader()), image, AdaptConfig(background=0.3), 24.0).known.all()


def test_just_outside_a_kept_cell_is_background_however_unsure_the_network():
    labels = four_disks()
    image = image_of(labels)
    image[..., 0] = np.where(labels > 0, 8, -0.1)  # background with a foreground probability of 0.475
    made = make_labels(segmenter(Reader()), image, AdaptConfig(method="pseudo"), 24.0)
    assert made.kept == 4
    outside = ndimage.distance_transform_edt(labels == 0)
    assert np.array_equal(made.known, outside <= 3)
    mixed = make_labels(segmenter(Reader()), image, AdaptConfig(method="mixed"), 24.0)
    rim = ndimage.binary_dilation(ndimage.distance_transform_edt(labels > 0) == 1, np.ones((3, 3)))
    assert np.array_equal(mixed.known, (labels > 0) & ~rim)  # the teacher's maps say where a cell ends
    whole = make_labels(segmenter(Reader()), image, AdaptConfig(method="mixed", rim=0), 24.0)
    assert np.array_equal(whole.known, labels > 0)
    assert np.array_equal(made.labels > 0, labels > 0)


def test_labels_have_the_size_of_the_image_whatever_the_scale(monkeypatch):
    labels = four_disks(side=192, radius=24)
    teacher = segmenter(Reader())
    monkeypatch.setattr(teacher, "estimate_diameter", lambda image: 48.0)  # shown at half its size
    made = make_labels(teacher, image_of(labels), AdaptConfig())
    assert made.labels.shape == made.known.shape == (192, 192)
    assert made.diameter == 48.0
    assert match(labels, made.labels, (0.85,))[0].f1 == 1


def test_without_an_estimate_the_size_is_that_of_the_training_images(monkeypatch):
    teacher = segmenter(Constant(-8.0, 0.0))
    monkeypatch.setattr(teacher, "estimate_diameter", lambda image: None)
    made = make_labels(teacher, image_of(four_disks()), AdaptConfig())
    assert (made.diameter, made.kept, made.seen) == (24.0, 0, 0)
    assert made.known.all()


@pytest.fixture
def records(tmp_path):
    """Two images of one id, as two indices may hold; a percentile rule would change what a Reader reads."""
    made = []
    for number in range(2):
        path = tmp_path / str(number) / "a.tif"
        path.parent.mkdir()
        tifffile.imwrite(path, (four_disks() > 0).astype(np.uint8) * 200)
        made.append(Record("a", path, None, "disks", "train", "g", 96, 96, None, "", 24.0))
    return made


def test_a_round_is_written_and_read_back(records, tmp_path):
    teacher = segmenter(Saturated())
    write_round(tmp_path / "round-0", teacher, records, AdaptConfig(diameter="index", rim=0))
    rows = read_round(tmp_path / "round-0", records)
    assert [row.name for row in rows] == ["a-0", "a-1"]
    assert {(row.diameter, row.kept, row.seen, row.known) for row in rows} == {(24.0, 4, 4, 1.0)}
    assert rows[0].foreground == pytest.approx((four_disks() > 0).mean())
    prepared = prepare_labelled(tmp_path / "round-0", records[0], rows[0], teacher.config)
    assert np.array_equal(prepared.target[0] > 0, four_disks() > 0)
    assert prepared.known.all()
    assert prepared.weight == (1.0, 1.0)
    halved = prepare_labelled(tmp_path / "round-0", records[0], _resized(rows[0], 48.0), teacher.config)
    assert halved.image.shape[:2] == halved.known.shape == halved.target.shape[1:] == (48, 48)


def test_of_an_image_shown_too_large_the_middle_is_labelled_and_learned(records, tmp_path, monkeypatch):
    teacher, shown = segmenter(Saturated()), []
    monkeypatch.setattr(pseudo, "SLIDE_SIDE", 96)
    monkeypatch.setattr(pseudo, "see", lambda s, image, zoom: shown.append(image.shape[:2]) or see(s, image, zoom))
    whole = make_labels(teacher, image_of(four_disks()), AdaptConfig(rim=0), 24.0)
    assert np.array_equal(whole.labels > 0, four_disks() > 0)
    write_round(tmp_path / "r", teacher, records, AdaptConfig(diameter=12.0, rim=0))
    assert shown == [(96, 96), (48, 48), (48, 48)]  # at twice the size
    labels, known = (read_labels(tmp_path / "r" / part / "a-0.tif") for part in ("labels", "known"))
    inside = np.zeros((96, 96), bool)
    inside[24:72, 24:72] = True
    assert labels.shape == (96, 96) and labels[inside].any()
    assert not labels[~inside].any() and not known[~inside].any()
    prepared = prepare_labelled(tmp_path / "r", records[0], read_round(tmp_path / "r", records)[0], teacher.config)
    assert prepared.image.shape[:2] == prepared.known.shape == (96, 96)
    assert np.array_equal(prepared.known[::2, ::2], known[24:72, 24:72] > 0)


def test_what_is_unknown_weighs_nothing(records, tmp_path):
    from cellseg.config import AugmentConfig
    from cellseg.datasets.crops import CropDataset

    write_round(tmp_path / "r", segmenter(Saturated()), records, AdaptConfig(diameter=24.0))
    known = np.ones((96, 96), np.uint16)
    known[:48] = 0
    tifffile.imwrite(tmp_path / "r" / "known" / "a-0.tif", known)
    row, config = read_round(tmp_path / "r", records)[0], segmenter(Reader()).config
    augment = AugmentConfig(scale_min=1, scale_max=1, rotate=False, flip=False)
    dataset = CropDataset(
        records, config, augment, diameters=[24.0], shape=(1, 96), seed=0, labelled=False,
        prepare=lambda number: prepare_labelled(tmp_path / "r", records[0], row, config),
    )  # fmt: skip
    crop = dataset[0]
    assert np.array_equal(crop.weight[0, 0].numpy(), known)
    assert np.array_equal(crop.weight[0, 1].numpy(), known)
    assert crop.target[0, 0].sum() == (four_disks() > 0).sum()
    assert not np.array_equal(crop.weak.numpy(), crop.strong.numpy())


def test_a_round_of_other_images_or_none_is_refused(records, tmp_path):
    write_round(tmp_path / "r", segmenter(Saturated()), records, AdaptConfig(diameter=24.0))
    with pytest.raises(CellsegError, match="other images"):
        read_round(tmp_path / "r", records[:1])
    with pytest.raises(CellsegError, match="cannot be read; start without --resume"):
        read_round(tmp_path / "none", records)


class Saturated(Reader):
    """Calls bright pixels cells: for images that went through a file and its normalisation."""

    def forward(self, images):
        inside = images[:, :1] > 0.5
        return (inside * 16.0 - 8).repeat(1, 2, 1, 1)


def _resized(row, diameter):
    from dataclasses import replace

    return replace(row, diameter=diameter)
