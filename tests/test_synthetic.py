"""Made-up microscopy has LIVECell's form to the last quirk, and is a function of its seed."""

import json
import re

import numpy as np
import pytest
import tifffile

from cellseg.core import CellsegError
from cellseg.datasets.dsb2018 import group_of
from cellseg.datasets.rendering import STYLES, Cell, draw_cells, paint_labels, render
from cellseg.datasets.synthetic import USUAL, polygon_of, write_synthetic
from cellseg.images import read_image

SIZE = (96, 128)
NAME = re.compile(r"^Syn[A-Za-z]+_Phase_(?P<well>[A-H]\d+)_1_\d\dd\d\dh\d\dm_[12]\.tif$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_synthetic(
        tmp_path_factory.mktemp("synthetic"), seed=3, n_train=5, n_val=2, n_test=2, n_unlabelled=1, size=SIZE
    )


def annotations(folder, split):
    content = json.loads((folder / f"annotations/LIVECell/livecell_coco_{split}.json").read_text())
    cells = content["annotations"]
    return content["images"], list(cells.values()) if isinstance(cells, dict) else cells, type(cells)


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rasterise(polygon, size):
    from pycocotools import mask

    return mask.decode(mask.merge(mask.frPyObjects([polygon], *size))).astype(bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_tree_and_names(folder):
    images = folder / "images"
    assert {p.name for p in images.iterdir()} == {"livecell_train_val_images", "livecell_test_images"}
    for line in USUAL:
        assert len(list((images / "livecell_train_val_images" / line).iterdir())) == 5 + 2 + 1
        assert len(list((images / "livecell_test_images" / line).iterdir())) == 2
    assert all(NAME.match(path.name) for path in images.rglob("*.tif"))
    assert "synthetic" in (folder / "README.txt").read_text().lower()
    assert "CC0" in (folder / "README.txt").read_text()


def test_a_well_is_photographed_again_and_splits_share_none(folder):
    wells = {}
    for split in ("train", "val", "test"):
        entries, _, _ = annotations(folder, split)
        wells[split] = {NAME.match(entry["file_name"])["well"] for entry in entries}
    assert wells == {"train": {"A1", "A2"}, "val": {"D1"}, "test": {"E1"}}  # five train images a line in two wells


def test_tiffs_are_lzw_with_predictor_and_eleven_row_strips(folder):
    for path in folder.rglob("*.tif"):
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            assert (page.compression, page.predictor, page.rowsperstrip) == (5, 2, 11)
            assert page.shape == SIZE
            assert page.dtype == (np.uint16 if path.name.startswith("SynFluo") else np.uint8)


def test_unlabelled_images_appear_in_no_annotation_file(folder):
    listed = {entry["file_name"] for split in ("train", "val", "test") for entry in annotations(folder, split)[0]}
    present = {path.name for path in folder.rglob("*.tif")}
    assert listed < present
    assert {NAME.match(name)["well"] for name in present - listed} == {"G1"}
    assert len(present - listed) == 4


def test_json_has_the_quirks_of_livecell(folder):
    assert [annotations(folder, split)[2] for split in ("train", "val", "test")] == [list, dict, list]
    entries, cells, _ = annotations(folder, "train")
    assert all(entry["original_filename"] == entry["file_name"].replace(".tif", ".png") for entry in entries)
    ids = [entry["id"] for entry in entries] + [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    assert min(ids) > len(ids)
    assert max(ids) - min(ids) >= len(ids)
    reach = 0.0
    for cell in cells:
        (polygon,) = cell["segmentation"]
        points = np.array(polygon).reshape(-1, 2)
        assert len(points) >= 5
        assert not np.array_equal(points[0], points[-1])
        assert (points[1:] == points[:-1]).all(axis=1).any()
        assert np.allclose(points, points.round(2))
        assert points.min() >= 0
        assert (points.max(axis=0) <= (SIZE[1], SIZE[0])).all()
        reach = max(reach, points[:, 0].max())
        low, span = points.min(axis=0), np.ptp(points, axis=0)
        assert np.allclose(cell["bbox"], [*low, *span])
    assert reach == SIZE[1]


def test_area_and_outline_of_a_square():
    polygon = polygon_of(Cell(10, 20, np.ones((6, 8), bool), False))
    points = np.array(polygon).reshape(-1, 2)
    assert points.min(axis=0).tolist() == [20, 10]
    assert points.max(axis=0).tolist() == [28, 16]
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert area == 48 - 4 * 0.125  # marching squares cuts half a pixel off each corner


@pytest.mark.parametrize("style", STYLES)
def test_polygons_rasterise_to_the_drawn_masks(style):
    cells = draw_cells(np.random.default_rng(1), SIZE, style)
    overlaps = []
    for cell in cells:
        drawn = np.zeros(SIZE, bool)
        drawn[cell.top : cell.top + cell.mask.shape[0], cell.left : cell.left + cell.mask.shape[1]] = cell.mask
        overlaps.append(iou(drawn, rasterise(polygon_of(cell), SIZE)))
    assert min(overlaps) > 0.8
    assert np.mean(overlaps) > 0.93


def test_every_image_mixes_sizes_and_holds_touching_cells():
    size = (256, 320)
    for seed in range(4):
        labels = paint_labels(draw_cells(np.random.default_rng(seed), size, "phase"), size)
        diameters = 2 * np.sqrt(np.bincount(labels.ravel())[1:] / np.pi)
        assert diameters.min() < 12
        assert diameters.max() > 22
        right, left = labels[:, 1:], labels[:, :-1]
        assert ((right != left) & (right > 0) & (left > 0)).any()


def test_a_few_cells_overlap():
    size = (256, 320)
    hidden = 0
    for seed in range(8):
        cells = draw_cells(np.random.default_rng(seed), size, "phase")
        visible = np.bincount(paint_labels(cells, size).ravel(), minlength=len(cells) + 1)[1:]
        hidden += sum(int(cell.mask.sum()) > seen for cell, seen in zip(cells, visible, strict=True))
    assert 0 < hidden < 40


def test_cells_stand_out_in_the_way_of_their_modality():
    size = (256, 320)
    cells = draw_cells(np.random.default_rng(0), size, "fluorescence")
    inside = paint_labels(cells, size) > 0
    bright = render(np.random.default_rng(1), cells, size, "fluorescence")
    assert bright.dtype == np.uint16
    assert bright.min() >= 300
    assert np.median(bright[inside]) > 3 * np.median(bright[~inside])
    for style in ("phase", "brightfield", "dic"):
        image = render(np.random.default_rng(1), cells, size, style)
        assert image.dtype == np.uint8
        contrast = abs(np.median(image[inside]) - np.median(image[~inside])) / np.median(image[~inside])
        assert contrast < 0.2  # a threshold does not find these cells


def test_same_seed_same_bytes_and_another_seed_others(folder, tmp_path):
    counts = {"n_train": 5, "n_val": 2, "n_test": 2, "n_unlabelled": 1, "size": SIZE}
    again = write_synthetic(tmp_path / "again", seed=3, **counts)
    assert everything(again) == everything(folder)
    other = everything(write_synthetic(tmp_path / "other", seed=4, **counts))
    assert all(other[name] != content for name, content in everything(folder).items() if name.suffix == ".tif")


def test_an_image_depends_on_neither_counts_nor_lines(folder, tmp_path):
    fewer = write_synthetic(
        tmp_path, seed=3, n_train=2, n_val=0, n_test=1, n_unlabelled=1, lines=["SynPhase"], size=SIZE
    )
    whole = everything(folder)
    images = {name: content for name, content in everything(fewer).items() if name.suffix == ".tif"}
    assert len(images) == 4
    assert all(whole[name] == content for name, content in images.items())


def test_flat_cells_fill_islands_and_are_as_grey_as_the_ground():
    size = (256, 320)
    for seed in range(3):
        cells = draw_cells(np.random.default_rng(seed), size, "sheet")
        labels = paint_labels(cells, size)
        whole = sum(int(cell.mask.sum()) for cell in cells)
        assert whole - (labels > 0).sum() < 0.03 * whole  # only one in thirty of those beside the islands overlaps
        right, left = labels[:, 1:], labels[:, :-1]
        borders = right != left
        assert (borders & (right > 0) & (left > 0)).sum() > 0.3 * borders.sum()  # mostly cell to cell
        image = render(np.random.default_rng(seed), cells, size, "sheet").astype(float)
        assert abs(np.median(image[labels > 0]) - np.median(image[labels == 0])) < 6


def test_nuclei_of_stained_tissue_are_darker_than_what_lies_around_them():
    size = (128, 160)
    colourful = []
    for seed in range(8):
        cells = draw_cells(np.random.default_rng(seed), size, "stained")
        image = render(np.random.default_rng(seed), cells, size, "stained")
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
        inside = paint_labels(cells, size) > 0
        assert np.median(image[inside].mean(axis=1)) < 0.9 * np.median(image[~inside].mean(axis=1))
        colourful.append(group_of(image) == "stained")
    assert sum(colourful) == 7  # one in six is grey


def test_stained_tissue_is_written_in_colour(tmp_path):
    folder = write_synthetic(tmp_path, n_train=1, n_val=0, n_test=0, n_unlabelled=0, lines=["SynStain"], size=SIZE)
    (path,) = folder.rglob("*.tif")
    with tifffile.TiffFile(path) as file:
        assert (file.pages[0].photometric.name, file.pages[0].shape) == ("RGB", (*SIZE, 3))
    assert read_image(path).shape == (*SIZE, 3)


def test_the_command_names_a_line_it_does_not_know(tmp_path):
    from cellseg.cli.data import prepare as command

    with pytest.raises(CellsegError, match=r"synthetic lines must be some of .*SynStain, got SynOdd"):
        command("synthetic", tmp_path / "in", tmp_path / "out", lines="SynSheet,SynOdd")
    with pytest.raises(CellsegError, match="prepare folder: --lines has no meaning there"):
        command("folder", tmp_path / "in", tmp_path / "out", lines="SynSheet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lines": ["SynFoo"]}, "got SynFoo"),
        ({"lines": []}, "got none"),
        ({"n_val": -1}, "n_val must be from 0 to 48"),
        ({"n_train": 1000}, "n_train must be from 0 to 144"),
        ({"size": (32, 320)}, "at least 64"),
    ],
)
def test_mistakes_are_named(tmp_path, options, message):
    with pytest.raises(CellsegError, match=message):
        write_synthetic(tmp_path, **options)
    assert not any(tmp_path.iterdir())
