"""The configurations that need the full data sets: they run unchanged on made-up images in the official layouts."""

import json
import sys
from pathlib import Path

import pytest

from cellseg.config import load_config
from cellseg.datasets import synthetic
from cellseg.datasets.livecell import CELL_LINES, prepare_livecell
from cellseg.datasets.neurips import prepare_neurips
from cellseg.datasets.synthetic_neurips import write_synthetic_neurips
from cellseg.tables import build_table, read_table

ROOT = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(ROOT))

import paper  # noqa: E402 (a script of the repository, no module of the package)
import run_all  # noqa: E402

TINY = [
    *("model.size=tiny", "train.steps=1", "train.batch_size=1", "train.crop_size=64", "train.workers=0"),
    *("train.warmup_steps=1", "train.validate_every=1", "train.ema=0.5", "predict.diameter=model", "predict.tile=128"),
]
NAMES = sorted(path.stem for path in (ROOT / "paper").glob("*.toml"))
TABLES = sorted((ROOT / "tables").glob("paper_*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_run_files_are_valid_and_stand_in_a_table(name):
    path = ROOT / "paper" / f"{name}.toml"
    assert path.read_text(encoding="utf-8").startswith("# Question: ")
    load_config(path)
    assert name in {row.run for table in TABLES for row in read_table(table).row}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_without_the_data_every_measured_cell_says_so(path, tmp_path):
    measured = [column.text is None for column in read_table(path).column]
    for row in build_table(path, tmp_path).cells:
        shown = [cell.text for cell, is_measured in zip(row, measured, strict=True) if is_measured]
        assert set(shown) == {"not run: needs the full data set"}


def test_a_run_without_its_data_is_passed_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert paper.run_one("livecell_on_all", []) is None
    assert "livecell_on_all: not run, data/prepared/livecell/index.csv is not there" in capsys.readouterr().out
    (tmp_path / "data/prepared/livecell").mkdir(parents=True)
    (tmp_path / "data/prepared/livecell/index.csv").touch()  # of a sample
    assert paper.run_one("livecell_on_all", []) is None
    assert "livecell_coco_train.json is not there" in capsys.readouterr().out


def cut(source, target, keep):
    """Write the part of a COCO file whose images are kept."""
    content = json.loads(source.read_text(encoding="utf-8"))
    images = [image for image in content["images"] if keep(image["file_name"])]
    known = {image["id"] for image in images}
    annotations = [one for one in content["annotations"] if one["image_id"] in known]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content | {"images": images, "annotations": annotations}), encoding="utf-8")


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Both sets in their official layouts: eight lines and the size splits, and the challenge with four kinds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_all, "RUNS", tmp_path / "experiments/runs")
    monkeypatch.setattr(paper, "RUNS", tmp_path / "experiments/runs")
    monkeypatch.setattr(synthetic, "LINES", dict.fromkeys(CELL_LINES, "fluorescence"))
    root = tmp_path / "data/livecell"
    counts = {"n_train": 2, "n_val": 1, "n_test": 1, "n_unlabelled": 0}
    synthetic.write_synthetic(root, lines=CELL_LINES, size=(64, 80), **counts)
    main = root / "annotations/LIVECell"
    for line in CELL_LINES:
        single = root / f"annotations/LIVECell_single_cells/{line.lower()}/test.json"
        cut(main / "livecell_coco_test.json", single, lambda name, line=line: name.startswith(f"{line}_"))
    part = root / "annotations/LIVECell_dataset_size_split/1_train4percent.json"
    cut(main / "livecell_coco_train.json", part, lambda name: name.startswith(("BV2_", "SKOV3_")))
    prepare_livecell(root, tmp_path / "data/prepared/livecell")
    few = {"n_train": 5, "n_weak": 1, "n_tuning": 7, "n_test": 2, "n_unlabelled": 0}
    write_synthetic_neurips(tmp_path / "data/neurips", size=(96, 128), slide=None, **few)
    prepare_neurips(tmp_path / "data/neurips", tmp_path / "data/prepared/neurips", clusters=4)
    return tmp_path


@pytest.mark.slow
def test_the_configurations_run_on_made_up_images_in_the_official_layouts(sets):
    for name in ("livecell_on_bv2", "livecell_on_4percent", "neurips_all"):
        folder = paper.run_one(name, TINY)
        assert (folder / "best.safetensors").is_file()
    runs = sets / "experiments/runs"
    coco = json.loads((runs / "livecell_on_bv2/s0/summary.json").read_text())["coco"]
    assert set(coco) == {"all", *CELL_LINES}
    assert all(0 <= scores["ap"] <= 1 for scores in coco.values())
    lines = build_table(ROOT / "tables/paper_livecell_lines.toml", runs)
    row = lines.cells[lines.names.index("BV2")]
    assert [cell.text for cell in row[:8]] == [f"{coco[line]['ap']:.3f}" for line in CELL_LINES]
    assert row[8].text == "45.69 / 52.60"
    size = build_table(ROOT / "tables/paper_livecell_size.toml", runs)
    assert size.cells[size.names.index("4 %")][1].n == 1
    challenge = build_table(ROOT / "tables/paper_neurips.toml", runs)
    assert challenge.cells[0][0].n == challenge.cells[0][2].n == 1
    assert any("rule neurips" in note for note in challenge.notes)
