"""Images that look alike are put together, the same way every time, and what the user knows is read."""

import numpy as np
import pytest

from cellseg.core import CellsegError
from cellseg.datasets.modality import FEATURES, MOST_CLUSTERS, cluster, count_clusters, describe, read_modalities


def features_of(image):
    values = describe(image, image)
    assert values.shape == (len(FEATURES),)
    assert np.isfinite(values).all()
    return dict(zip(FEATURES, values, strict=True))


def noise(shape=(64, 64), channels=1, low=0, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(low, high, (*shape, channels), dtype=dtype)


def test_dark_and_bright_grounds():
    image = np.zeros((100, 100, 1), np.uint8)
    image[:20] = 200
    assert features_of(image)["background"] == 0
    assert features_of(200 - image)["background"] == 1


def test_colour_is_what_channels_do_not_share():
    grey = np.repeat(noise(), 3, axis=2)
    assert (features_of(grey)["saturation"], features_of(grey)["colour"]) == (0, 0)
    red = grey * np.array([1, 0, 0], np.uint8)
    assert features_of(red)["colour"] == 1
    assert features_of(red)["mean of green"] == 0 < features_of(red)["mean of red"]
    assert features_of(grey[..., :1]) == features_of(grey)  # stored as one channel or three
    with_alpha = np.concatenate([grey, np.full_like(grey[..., :1], 255)], axis=2)
    assert features_of(with_alpha) == features_of(grey)


def test_exposure_and_offset_do_not_matter_but_bit_depth_does():
    image = noise(high=100)
    shifted = features_of(image.astype(np.uint16) * 300 + 30_000)
    plain = features_of(image)
    assert shifted.pop("bit depth") == 1
    assert plain.pop("bit depth") == 0
    del shifted["contrast"], plain["contrast"]  # the range used of the range there is
    assert shifted == pytest.approx(plain)


@pytest.mark.parametrize(
    ("period", "band"), [(64, "coarse detail"), (20, "medium detail"), (8, "fine detail"), (3, "finest detail")]
)
def test_detail_lies_in_the_band_of_its_period(period, band):
    wave = np.sin(2 * np.pi * np.arange(256) / period)
    image = np.repeat((100 + 50 * wave)[None, :, None], 256, axis=0).astype(np.uint8)
    found = features_of(image)
    bands = {name: value for name, value in found.items() if name.endswith("detail")}
    assert max(bands, key=bands.get) == band
    assert 10 ** bands[band] > 0.9


@pytest.mark.parametrize("image", [np.full((9, 9, 3), 7, np.uint8), np.full((1, 1, 2), np.nan, np.float32)])
def test_images_with_nothing_on_them_are_described(image):
    features_of(image)


def blobs(sizes, seed=0, spread=0.05):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 10, (len(sizes), 5))
    return np.concatenate([c + rng.normal(0, spread, (n, 5)) for c, n in zip(centres, sizes, strict=True)])


def test_separate_blobs_are_found_largest_first():
    names = cluster(blobs([5, 20, 9]), seed=3, n_clusters=3)
    assert names == ["inferred-03"] * 5 + ["inferred-01"] * 20 + ["inferred-02"] * 9


def test_the_same_seed_gives_the_same_groups():
    rng = np.random.default_rng(1)
    features = rng.normal(0, 1, (60, 6))
    assert cluster(features, seed=5) == cluster(features, seed=5)
    assert len(set(cluster(features, seed=5))) == count_clusters(60) == 5


def test_held_out_images_join_groups_that_they_do_not_move():
    features = blobs([10, 10])
    fit = np.ones(20, bool)
    fit[10:] = False
    features[fit] += np.random.default_rng(0).normal(0, 1, (10, 5))
    held_out_far_away = features.copy()
    held_out_far_away[10:] += 1e3
    first = cluster(features, seed=0, n_clusters=2, fit=fit)
    second = cluster(held_out_far_away, seed=0, n_clusters=2, fit=fit)
    together = lambda names: [a == b for a in names[:10] for b in names[:10]]  # noqa: E731
    assert together(first) == together(second)
    assert len(set(second[10:])) == 1


def test_never_more_groups_than_different_images():
    assert cluster(np.ones((4, 3)), seed=0, n_clusters=9) == ["inferred-01"] * 4
    assert len(set(cluster(blobs([1, 1, 1]), seed=0, n_clusters=9))) == 3
    assert cluster(np.zeros((0, 3)), seed=0) == []
    assert (count_clusters(1), count_clusters(8), count_clusters(2900), count_clusters(10**6)) == (1, 2, 38, 40)
    assert MOST_CLUSTERS == 40


def test_known_modalities_are_read(tmp_path):
    (tmp_path / "m.csv").write_text("stem,who,modality\ncell_1,me,phase\ncell_2,,\n", encoding="utf-8-sig")
    assert read_modalities(tmp_path / "m.csv") == {"cell_1": "phase"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,modality\na,b\n", r"m\.csv: wanted the columns 'stem' and 'modality'"),
        (b"stem,modality\na,b\na,c\n", r"m\.csv:3: 'a' is listed twice"),
        (b"\xff\xfe\x00\x00", r"m\.csv: cannot be read as CSV"),
        (None, r"m\.csv: no such file of modalities"),
    ],
)
def test_mistakes_in_the_list_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(CellsegError, match=message):
        read_modalities(tmp_path / "m.csv")
