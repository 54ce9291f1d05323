"""Cellpose's network here against Cellpose's own numbers, which ``tests/bench/cellpose_worker.py`` wrote down."""

import collections
import json
import math
import os
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from cellseg.adapt import adapt
from cellseg.checkpoint import load_weights, save_weights
from cellseg.cli import main
from cellseg.config import ModelConfig, check_config
from cellseg.core import CellsegError, Record
from cellseg.datasets.index import write_index
from cellseg.images import write_labels
from cellseg.instances import flow
from cellseg.models.build import build_model
from cellseg.models.cellpose_files import cellpose_name, cellpose_state, read_cellpose, write_cellpose
from cellseg.models.teacher import EmaTeacher
from cellseg.predict import load
from cellseg.regularizers import L2SP
from cellseg.train import train

FIXTURE = Path(__file__).parent / "fixtures" / "cellpose_tiny.npz"
TO_OURS = [2, 0, 1]
"""Cellpose's maps are dy, dx, foreground; ours foreground, dy, dx."""


@pytest.fixture(scope="module")
def theirs():
    with np.load(FIXTURE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def state(theirs):
    """The state dict as Cellpose has it: names, order, shapes, types."""
    values, tensors = torch.from_numpy(theirs["values"]), collections.OrderedDict()
    for name, shape, dtype in json.loads(str(theirs["state"])):
        count = math.prod(shape)
        tensors[name], values = values[:count].reshape(shape).to(getattr(torch, dtype)), values[count:]
    assert len(values) == 0
    return tensors


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("cellpose") / "mine"
    torch.save(state, path)
    return path


def three(two):
    """Add a third channel, which nobody may look at."""
    return torch.cat([torch.as_tensor(two), torch.full_like(torch.as_tensor(two)[:, :1], 7.0)], dim=1)


def same(ours, theirs):
    return np.abs(ours.detach().numpy() - theirs[..., TO_OURS, :, :]).max() <= 1e-5


def equal(a, b):
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_maps_are_cellposes(file, theirs):
    model, _, _ = read_cellpose(file, channels=(1, 2))
    assert not model.training
    assert same(model.full_maps(three(theirs["batch"])), theirs["in_eval"])


def test_maps_of_any_size_have_cellposes_border_of_zeros(file, theirs):
    model, _, _ = read_cellpose(file, channels=(1, 2))
    image = theirs["image"].transpose(2, 0, 1)[None]
    assert image.shape[-2:] == (21, 30)
    assert same(model(three(image)), theirs["whole"][None])


def test_training_is_cellposes_too(file, theirs):
    model, _, _ = read_cellpose(file, channels=(1, 2))
    model.train()
    assert same(model(three(theirs["batch"])), theirs["in_training"])
    assert np.abs(model.head.norm.running_mean.numpy() - theirs["running_mean"]).max() <= 1e-6


def test_flows_point_the_same_way_at_the_same_scale(theirs):
    inside = theirs["labels"] > 0
    ours = flow.encode(theirs["labels"])[1:]
    assert (ours * theirs["flows"]).sum(axis=0)[inside].mean() > 0.9
    assert np.hypot(*ours)[inside].max() == pytest.approx(np.hypot(*theirs["flows"])[inside].max(), abs=1e-6)
    assert np.abs(theirs["flows"][:, ~inside]).max() == 0


def test_export_gives_the_file_back_bit_for_bit(file, state, tmp_path):
    model, config, about = read_cellpose(file)
    assert equal(cellpose_state(model, about), state)
    save_weights(tmp_path / "a.safetensors", model, config, about)
    again, config_again, about_again = load_weights(tmp_path / "a.safetensors")
    assert (config_again, about_again) == (config, about)
    write_cellpose(tmp_path / "back", again, about_again)
    assert equal(torch.load(tmp_path / "back", weights_only=True), state)


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        ("down.0.convs.3.norm.running_var", "downsample.down.res_down_0.conv.conv_3.0.running_var"),
        ("down.2.convs.0.conv.weight", "downsample.down.res_down_2.conv.conv_0.2.weight"),
        ("down.1.shortcut.norm.bias", "downsample.down.res_down_1.proj.0.bias"),
        ("up.3.convs.0.conv.bias", "upsample.up.res_up_3.conv.conv_0.2.bias"),
        ("up.0.convs.2.norm.weight", "upsample.up.res_up_0.conv.conv_2.conv.0.weight"),
        ("up.0.convs.1.style.weight", "upsample.up.res_up_0.conv.conv_1.full.weight"),
        ("up.1.shortcut.conv.weight", "upsample.up.res_up_1.proj.1.weight"),
        ("head.norm.num_batches_tracked", "output.0.num_batches_tracked"),
        ("head.conv.weight", "output.2.weight"),
        ("diam_labels", "diam_labels"),
    ],
)
def test_names(ours, name):
    assert cellpose_name(ours) == name


def test_channels_are_cellposes_words(file):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grey = images[:, [1, 1, 1]]

    def maps(channels, images):
        return read_cellpose(file, channels=channels)[0](images)

    assert torch.allclose(maps((0, 0), grey), maps((2, 0), images), atol=1e-6)
    assert torch.equal(maps((2, 3), images), maps((1, 2), images[:, [1, 2, 0]]))
    assert not torch.allclose(maps((2, 3), images), maps((2, 0), images), atol=1e-3)


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("name", "changes", "asked", "diam_mean", "diam_labels"),
    [
        ("mine", {}, None, 17.0, 23.25),
        ("mine", {}, 21.5, 21.5, 23.25),
        ("cytotorch_0", {"diam_mean": None, "diam_labels": None}, None, 30.0, 30.0),
        ("nucleitorch_0", {"diam_mean": None, "diam_labels": None}, None, 17.0, 17.0),
        ("nucleitorch_0", {"diam_mean": 30.0}, None, 17.0, 23.25),
        ("nucleitorch_0", {"diam_mean": 30.0}, 25.0, 25.0, 23.25),
        ("nuclei_of_mine", {"diam_mean": 30.0}, None, 30.0, 23.25),
    ],
)
def test_diameters(state, tmp_path, name, changes, asked, diam_mean, diam_labels):
    changed = without(state, *(key for key, value in changes.items() if value is None))
    torch.save({**changed, **{key: torch.tensor([value]) for key, value in changes.items() if value}}, tmp_path / name)
    model, config, about = read_cellpose(tmp_path / name, diam_mean=asked)
    assert (config.reference_diameter, about["diameter"]) == (diam_mean, diam_labels)
    written = cellpose_state(model, about)
    assert (written["diam_mean"].tolist(), written["diam_labels"].tolist()) == ([diam_mean], [diam_labels])
    assert list(written) == list(state)


def test_export_notes_the_diameter_of_the_images_trained_on(file):
    model, _, about = read_cellpose(file)
    assert cellpose_state(model, {**about, "diameter": 41.5})["diam_labels"].tolist() == [41.5]
    assert model.diam_labels.tolist() == [23.25]


def foreign(kind, state):
    """Return what a file holds that is no network of ours, and what must be said of it."""
    proj = "downsample.down.res_down_0.proj.1.weight"
    changes = {
        "sam": ({"W2": torch.zeros(1), "encoder.pos_embed": torch.zeros(1)}, "Cellpose 4 (SAM)"),
        "transformer": ({"net.encoder.patch_embed1.proj.weight": torch.zeros(1)}, "Cellpose 3's transformer"),
        "restoration": (state | {"output.2.weight": torch.zeros(1, 3, 1, 1)}, "image restoration"),
        "volumes": (state | {"output.2.weight": torch.zeros(3, 3, 1, 1, 1)}, "2-D convolutions"),
        "one channel": (state | {proj: torch.zeros(3, 1, 1, 1)}, "sees 1 channels"),
        "missing": (without(state, "upsample.up.res_up_0.conv.conv_1.full.bias"), "conv_1.full.bias' is missing"),
        "concatenation": (
            state | {"upsample.up.res_up_0.conv.conv_1.conv.0.weight": torch.zeros(6)},
            "has shape (6,), wanted (3,)",
        ),
        "no residual units": (without(state, proj), "not a residual network of Cellpose"),
        "empty": ({}, "its first tensor is 'none'"),
        "run of cellseg": ({"step": 3, "student": dict(state)}, "not the weights of a network"),
        "diameter 0": (state | {"diam_mean": torch.zeros(1)}, "'diam_mean' must be one number above 0"),
        "diameter nan": (state | {"diam_labels": torch.tensor([math.nan])}, "'diam_labels' must be one number"),
    }
    return changes[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "sam", "transformer", "restoration", "volumes", "one channel", "missing", "concatenation",
        "no residual units", "empty", "run of cellseg", "diameter 0", "diameter nan",
    ],
)  # fmt: skip
def test_other_networks_are_refused_by_name(kind, state, tmp_path):
    content, said = foreign(kind, state)
    torch.save(content, tmp_path / "cpsam")
    with pytest.raises(CellsegError) as error:
        load_weights(tmp_path / "cpsam")
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "cpsam"))
    assert "\n" not in str(error.value)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_files_that_are_damaged_or_hold_code_are_refused_and_run_nothing(file, tmp_path):
    torch.save(Evil(tmp_path / "marker"), tmp_path / "zip")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Evil(tmp_path / "marker"), protocol=2))
    whole = file.read_bytes()
    for cut in (5, 300, len(whole) // 2, len(whole) - 100):
        (tmp_path / f"cut{cut}").write_bytes(whole[:cut])
    (tmp_path / "legacy").write_bytes(b"\x80\x02" + bytes(range(200)))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(CellsegError, match="cannot be read as Cellpose weights"):
            load_weights(path)
    assert not (tmp_path / "marker").exists()


def test_the_old_form_of_torch_files_is_read(state, tmp_path):
    torch.save(state, tmp_path / "cytotorch_0", _use_new_zipfile_serialization=False)
    assert equal(cellpose_state(load_weights(tmp_path / "cytotorch_0")[0]), state)


def test_what_cellpose_ignores_is_left_out_aloud(state, tmp_path):
    torch.save(state | {"extra.weight": torch.zeros(2)}, tmp_path / "mine")
    with pytest.warns(UserWarning, match=r"'extra\.weight' is left out"):
        model, _, about = read_cellpose(tmp_path / "mine")
    assert equal(cellpose_state(model, about), state)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"representation": "distance"}, "representation ('distance') cannot be chosen for cellpose"),
        ({"norm": "group"}, "norm ('group') cannot be chosen for cellpose"),
        ({"size": "tiny"}, "size ('tiny') cannot be chosen for cellpose"),
        ({"dropout": 0.1}, "dropout (0.1) cannot be chosen for cellpose"),
        ({"backbone": "resnet18"}, "backbone ('resnet18') belongs to flexible_unet"),
        ({"channels": [0, 2]}, "nuclei need the cells' own channel"),
        ({"channels": [4, 0]}, "'model.channels.0' = 4"),
        ({"widths": []}, "cellpose has at least one level"),
        ({"widths": ["3"]}, "'model.widths.0' = '3'"),
        ({"network": "unet", "widths": [3, 5]}, "widths ([3, 5]) belongs to cellpose, not to unet"),
        ({"network": "unet", "channels": [0, 0]}, "channels ([0, 0]) belongs to cellpose, not to unet"),
    ],
)
def test_mistakes_in_the_configuration(words, said):
    with pytest.raises(CellsegError) as error:
        check_config({"model": {"network": "cellpose", **words}})
    assert said in str(error.value)


def test_what_the_configuration_takes_for_granted():
    config = check_config({"model": {"network": "cellpose"}}).model
    assert (config.widths, config.channels, config.norm) == ((32, 64, 128, 256), (0, 0), "batch")
    assert (config.reference_diameter, config.size, config.representation) == (30.0, None, "flow")
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_a_fresh_network_uses_every_parameter_and_keeps_any_size():
    model = build_model(ModelConfig(network="cellpose", widths=(4, 6, 8), reference_diameter=17.5))
    assert (model.diam_mean.tolist(), model.diam_labels.tolist()) == ([17.5], [17.5])
    for shape in [(8, 8), (33, 47), (64, 16)]:
        assert model(torch.rand(2, 3, *shape)).shape == (2, 3, *shape)
        assert model.eval()(torch.rand(1, 3, *shape)).shape == (1, 3, *shape)
        model.train()
    model(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_style_of_nothing_is_nothing():
    model = build_model(ModelConfig(network="cellpose", widths=(2,))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.conv.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        assert model(torch.zeros(1, 3, 16, 16)).mean(dim=(0, 2, 3)).tolist() == [3.0, 1.0, 2.0]


def test_penalty_and_average_know_weights_from_notes(file):
    model, _, _ = read_cellpose(file)
    penalty, teacher = L2SP(model, 1.0), EmaTeacher(model, 0.5)
    assert len(penalty.anchors) == len(list(model.parameters()))
    count = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
        model.head.norm.running_var.add_(2.0)
    assert penalty().item() == pytest.approx(0.25 * count, rel=1e-5)
    teacher.update(model, step=0)  # momentum .5
    assert torch.allclose(teacher.model.head.norm.running_var, model.head.norm.running_var - 1.0)
    assert torch.allclose(teacher.model.head.conv.bias, model.head.conv.bias - 0.25)
    assert (teacher.model.diam_mean.tolist(), teacher.model.diam_labels.tolist()) == ([17.0], [23.25])


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """One image of disks 24 pixels wide."""
    folder = tmp_path_factory.mktemp("disks")
    rows, columns = np.indices((96, 96))
    labels = np.zeros((96, 96), np.int32)
    for cell, (y, x) in enumerate([(20, 20), (22, 64), (60, 30), (70, 74)], start=1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= 12**2] = cell
    tifffile.imwrite(folder / "0.tif", ((labels > 0) * 120 + 40).astype(np.uint8))
    write_labels(folder / "0_label.tif", labels)
    facts = ("disks", "train", "g", 96, 96, 4, "instances", 24.0)
    write_index(folder / "index.csv", [Record("0", folder / "0.tif", folder / "0_label.tif", *facts)])
    return folder / "index.csv"


@pytest.mark.parametrize("kind", ["train", "adapt"])
def test_a_few_steps_and_back_to_cellpose(kind, file, state, index, tmp_path):
    settings = {
        "init": str(file), "steps": 3, "batch_size": 1, "crop_size": 64, "lr": 0.01, "warmup_steps": 0, "ema": 0.5,
        "l2sp_alpha": 0.01, "freeze_norm_statistics": True, "log_every": 1, "precision": "off",
    }  # fmt: skip
    run = check_config(
        {
            "model": {"network": "cellpose", "widths": [3, 5], "reference_diameter": 17.0},
            "train": settings,
            "adapt": {
                "method": "consistency",
                "batch_size": 1,
                "ramp_steps": 0,
                "confidence": 0.0,
                "diameter": 24.0,
                "watch": 0,
            },
            "data": {"train": [{"index": str(index)}], "unlabelled": [{"index": str(index)}]},
        }
    )
    out = (train if kind == "train" else adapt)(run, tmp_path / "run", device="cpu")
    model, config, about = load_weights(out)
    write_cellpose(tmp_path / "adapted", model, about)
    after = torch.load(tmp_path / "adapted", weights_only=True)
    assert config == run.model
    assert list(after) == list(state)
    moved = {name for name in state if not torch.equal(after[name], state[name])}
    assert not {name for name in moved if "running_" in name or "num_batches" in name or name == "diam_mean"}
    assert after["diam_labels"].tolist() == [24.0]
    assert {"output.2.weight", "output.0.weight", "downsample.down.res_down_0.conv.conv_0.2.weight"} <= moved
    assert json.loads((out.parent / "summary.json").read_text())["distance"] > 0
    again, _, _ = read_cellpose(tmp_path / "adapted")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(images), model(images))


def test_predict_takes_cellposes_file_itself(file, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8)
    model, config, about = read_cellpose(file)
    save_weights(tmp_path / "a.safetensors", model, config, about)
    raw, imported = load(file, device="cpu"), load(tmp_path / "a.safetensors", device="cpu")
    assert raw.config == imported.config
    assert np.array_equal(raw.segment(image, diameter=17.0), imported.segment(image, diameter=17.0))


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cellseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        captured = capsys.readouterr()
        return done.value.code or 0, captured.out, captured.err

    return run


def test_in_and_out_by_command(command, file, state, tmp_path):
    weights, back = tmp_path / "teacher.safetensors", tmp_path / "back"
    status, out, err = command("import-cellpose", file, "--out", weights, "--channels", 2, 3)
    assert (status, out.strip()) == (0, str(weights))
    assert "17 px" in err
    assert "23.25 px" in err
    assert load_weights(weights)[1].channels == (2, 3)
    assert command("export-cellpose", weights, "--out", back)[:2] == (0, f"{back}\n")
    assert equal(torch.load(back, weights_only=True), state)


def test_mistakes_of_the_commands(command, file, tmp_path):
    other = tmp_path / "other.safetensors"
    save_weights(other, build_model(ModelConfig(size="tiny")), ModelConfig(size="tiny"), {})
    for arguments, said in [
        (("export-cellpose", other, "--out", tmp_path / "x"), "its network is half_unet"),
        (("export-cellpose", tmp_path / "none", "--out", tmp_path / "x"), "no such model"),
        (("import-cellpose", tmp_path / "none", "--out", tmp_path / "x"), "no such file"),
        (("import-cellpose", other, "--out", tmp_path / "x"), "not a file that PyTorch saved"),
        (("import-cellpose", file, "--out", tmp_path / "x", "--diam-mean", "0"), "above 0"),
        (("import-cellpose", file, "--out", tmp_path / "x", "--channels", "0", "1"), "nuclei need the cells'"),
    ]:
        status, _, err = command(*arguments)
        assert (status, len(err.strip().splitlines())) == (1, 1)
        assert err.startswith("error: ")
        assert said in err
    assert not (tmp_path / "x").exists()
