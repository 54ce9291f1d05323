"""The command line as a user runs it: in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from cellseg.checkpoint import save_weights
from cellseg.config import ModelConfig
from cellseg.images import write_labels
from cellseg.models.build import build_model

ROOT = Path(__file__).parent.parent


def cellseg(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "cellseg.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    config = ModelConfig(size="tiny")
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(path, build_model(config), config, {"diameter": 24.0})
    return path


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in" / "a.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8))
    return path


def test_predict_writes_labels_of_the_image_size(weights, image, tmp_path):
    done = cellseg("predict", image, "--model", weights, "--out", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert tifffile.imread(tmp_path / "out" / "a.tif").shape == (70, 90)


def test_predict_finds_fewer_cells_as_it_is_told(tmp_path):
    rows, columns = np.mgrid[:96, :96]
    disks = (rows % 48 - 24) ** 2 + (columns % 48 - 24) ** 2 <= 81
    tifffile.imwrite(tmp_path / "a.tif", (40 + 150 * disks).astype(np.uint8))
    found = []
    for number, words in enumerate(
        ([], ["--min-score", 1], ["--min-size", 2000], ["--foreground", 0.05, "--min-score", 0])
    ):
        out = tmp_path / f"out{number}"
        done = cellseg("predict", tmp_path / "a.tif", "--diameter", 19, *words, "--out", out, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        found.append(tifffile.imread(out / "a.tif"))
    assert [labels.max() for labels in found[:3]] == [4, 0, 0]
    assert (found[3] > 0).sum() > (found[0] > 0).sum()


def broken(kind, weights, image, tmp_path):
    """Return the arguments of a command that must fail, and what its message must say."""
    if kind == "missing image":
        return ["predict", tmp_path / "none.tif", "--model", weights, "--out", tmp_path / "out"], "none.tif"
    if kind == "unreadable image":
        image.write_bytes(b"II*\0 not an image")
        return ["predict", image, "--model", weights, "--out", tmp_path / "out", "--on-error", "stop"], "a.tif"
    if kind == "missing model":
        return ["predict", image, "--model", tmp_path / "m.safetensors", "--out", tmp_path / "out"], "m.safetensors"
    if kind == "unknown model":
        return ["predict", image, "--model", "teecher", "--out", tmp_path / "out"], "wanted 'teacher'"
    if kind == "not a checkpoint":
        (tmp_path / "m.safetensors").write_bytes(b"\0" * 40)
        return ["predict", image, "--model", tmp_path / "m.safetensors", "--out", tmp_path / "out"], "m.safetensors"
    if kind == "checkpoint of another shape":
        other = tmp_path / "other.safetensors"
        save_weights(other, build_model(ModelConfig(size="small")), ModelConfig(size="tiny"), {})
        return ["predict", image, "--model", other, "--out", tmp_path / "out"], "has shape"
    if kind == "no probability":
        return ["predict", image, "--model", weights, "--foreground", 0], "--foreground 0: wanted a probability between"
    if kind == "missing config":
        return ["train", tmp_path / "x.toml", "--out", tmp_path / "out"], "no such configuration"
    if kind == "unknown key":
        (tmp_path / "x.toml").write_text("[train]\nlrr = 1\n")
        return ["train", tmp_path / "x.toml", "--out", tmp_path / "out"], "did you mean 'train.lr'"
    if kind == "missing root":
        return ["prepare", "livecell", "--root", tmp_path / "none", "--out", tmp_path / "out"], "none"
    if kind == "unknown set":
        return ["prepare", "imagenet", "--root", tmp_path, "--out", tmp_path / "out"], "known: livecell"
    return ["evaluate", tmp_path / "none", tmp_path / "in", "--out", tmp_path / "out" / "s.csv"], "none"


@pytest.mark.parametrize(
    "kind",
    [
        "missing image", "unreadable image", "missing model", "unknown model", "not a checkpoint",
        "checkpoint of another shape", "no probability", "missing config", "unknown key", "missing root", "unknown set",
        "missing truth",
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line_and_leaves_nothing(kind, weights, image, tmp_path):
    arguments, said = broken(kind, weights, image, tmp_path)
    done = cellseg(*arguments)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*"))


def test_misuse_is_status_two():
    assert cellseg("predict").returncode == 2


def test_evaluate_two_folders(tmp_path):
    labels = np.zeros((20, 20), np.int32)
    labels[2:8, 2:8], labels[12:18, 12:18] = 1, 2
    write_labels(tmp_path / "true" / "a.tif", labels)
    write_labels(tmp_path / "pred" / "a_masks.tif", np.where(labels == 1, 1, 0).astype(np.int32))
    done = cellseg("evaluate", tmp_path / "true", tmp_path / "pred", "--out", tmp_path / "scores.csv")
    assert done.returncode == 0, done.stderr
    assert "0.667" in done.stdout  # one of two cells: 2 / (2 + 1)
    write_labels(tmp_path / "true" / "b.tif", labels)
    done = cellseg("evaluate", tmp_path / "true", tmp_path / "pred")
    assert done.returncode == 1
    assert "b" in done.stderr
    assert "missing" in done.stderr


def test_train_adapt_and_score_a_users_folder(weights, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        labels = np.zeros((64, 64), np.int32)
        labels[10:30, 10:30], labels[35:55, 35:55] = 1, 2
        image = (labels > 0) * 100 + rng.integers(0, 30, labels.shape)
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", image.astype(np.uint8))
    write_labels(tmp_path / "labels" / "a_masks.tif", labels)
    done = cellseg(
        "adapt", "--images", tmp_path / "images", "--labels", tmp_path / "labels", "--model", weights, "--out",
        tmp_path / "run", "--device", "cpu", "--set", "train.steps=2", "--set", "train.crop_size=64",
        "--set", "train.batch_size=1", "--set", "adapt.batch_size=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "No improvement found: the start was kept" in done.stderr  # its weights are random
    out = tmp_path / "masks"
    done = cellseg("predict", tmp_path / "images", "--model", tmp_path / "run", "--out", out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["a.scores.csv", "a.tif", "b.scores.csv", "b.tif"]


def test_help_and_info_and_import_are_light():
    code = "import sys, cellseg.cli; print(sorted({'torch', 'pandas', 'cv2', 'skimage'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "cv2", "skimage"} & set(re.findall(r"\w+", done.stdout))
    assert "torch" in cellseg("info").stdout


def test_every_command_of_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    help_text = cellseg("--help").stdout
    for command in set(
        re.findall(r"cellseg (prepare|train|adapt|predict|evaluate|table|report|download|info)\b", text)
    ):
        assert command in help_text
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z][a-z-]+)\b", "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)))):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_run_file_is_valid():
    from cellseg.config import load_config
    from cellseg.tables import read_table

    for path in (ROOT / "experiments").glob("*.toml"):
        load_config(path)
    for path in (ROOT / "experiments" / "tables").glob("*.toml"):
        read_table(path)
