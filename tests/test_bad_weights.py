"""Weights and states that hold code, lie about their size or hold no numbers are refused, and nothing in them runs."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from cellseg.checkpoint import load_state, load_weights, resolve_weights, save_state, save_weights
from cellseg.config import check_config
from cellseg.core import CellsegError
from cellseg.models.build import build_model
from cellseg.models.cellpose_files import cellpose_state

MODELS = (
    {"size": "tiny"},
    {"network": "unet", "size": "tiny"},
    {"network": "cellpose", "widths": [4, 8]},
)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    config = check_config({"model": MODELS[0]}).model
    torch.manual_seed(0)
    save_weights(path, build_model(config), config, {"diameter": 12.0})
    return path


@pytest.mark.parametrize("words", MODELS, ids=lambda words: words.get("network", "half_unet"))
def test_every_network_is_checked_before_it_is_built_and_loads(tmp_path, words):
    config = check_config({"model": words}).model
    model = build_model(config)
    save_weights(tmp_path / "w.safetensors", model, config, {})
    loaded = load_weights(tmp_path / "w.safetensors")[0].state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def rewritten(sound, path, tensors=None, **header):
    from safetensors import safe_open

    with safe_open(sound, framework="pt") as file:
        old = dict(file.metadata())
    save_file(tensors or load_file(sound), path, old | header)
    return path


@pytest.mark.parametrize(
    "about",
    [
        *("[1]", '{"diameter": "x"}', '{"diameter": NaN}', '{"diameter": -1}', "[" * 100_000),
        *(f'{{"diameter": 9, "decoding": {rule}}}' for rule in ("3", '{"lr": 1}', '{"foreground": null}')),
        *(f'{{"diameter": 9, "decoding": {rule}}}' for rule in ('{"foreground": 1.0}', '{"min_score": "x"}')),
    ],
)
def test_facts_that_are_none(sound, tmp_path, about):
    with pytest.raises(CellsegError, match=r"w\.safetensors: damaged header"):
        load_weights(rewritten(sound, tmp_path / "w.safetensors", about=about))


def test_numbers_that_are_none(sound, tmp_path):
    tensors = load_file(sound)
    name = sorted(tensors)[0]
    tensors[name][0] = float("nan")
    with pytest.raises(CellsegError, match=rf"'{name}' holds NaN or infinity"):
        load_weights(rewritten(sound, tmp_path / "w.safetensors", tensors))


def test_a_network_of_terabytes_is_refused_before_it_is_built(sound, tmp_path):
    model = json.dumps({"network": "cellpose", "widths": [4096] * 8})
    with pytest.raises(CellsegError, match=r"tensor '.*' is missing; the checkpoint is of another network"):
        load_weights(rewritten(sound, tmp_path / "w.safetensors", model=model))


def test_weights_that_changed_a_little(sound, tmp_path):
    tensors = load_file(sound)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-4  # as a turned bit: still a number
    with pytest.raises(CellsegError, match=r"w\.safetensors: damaged, it does not hold what was saved .*SHA-256"):
        load_weights(rewritten(sound, tmp_path / "w.safetensors", tensors))
    with pytest.raises(CellsegError, match="does not hold what was saved"):
        load_weights(rewritten(sound, tmp_path / "w.safetensors", about='{"diameter": 13.0}'))


def test_a_state_that_changed_a_little(tmp_path):
    state = {"step": 3, "student": {"w": torch.ones(4)}, "first": {"f1": 0.5}, "list": [(1, 2.5), None]}
    save_state(tmp_path / "last.pt", state)
    assert load_state(tmp_path / "last.pt")["student"]["w"].equal(state["student"]["w"])
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    for changed in (saved | {"step": 4}, saved | {"student": {"w": torch.tensor([1, 1, 1, 1.0001])}}):
        torch.save(changed, tmp_path / "last.pt")
        with pytest.raises(CellsegError, match=r"last\.pt: damaged, it does not hold what was saved .*--resume"):
            load_state(tmp_path / "last.pt")


def test_files_of_before_there_were_checksums(sound, tmp_path):
    from safetensors import safe_open

    with safe_open(sound, framework="pt") as file:
        old = {key: value for key, value in file.metadata().items() if key != "sha256"}
    save_file(load_file(sound), tmp_path / "w.safetensors", old)
    load_weights(tmp_path / "w.safetensors")
    torch.save({"step": 3}, tmp_path / "last.pt")
    assert load_state(tmp_path / "last.pt") == {"step": 3}


def torch_zip(path, content, compression):
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_state_that_holds_code_runs_nothing(tmp_path, protocol):
    evil = pickle.dumps(Evil(tmp_path / "marker"), protocol)
    (tmp_path / "plain.pt").write_bytes(evil)
    torch_zip(
        tmp_path / "zip.pt", {"a/data.pkl": evil, "a/version": "3\n", "a/byteorder": "little"}, zipfile.ZIP_STORED
    )
    for name in ("plain.pt", "zip.pt"):
        with pytest.raises(CellsegError, match="damaged, cannot resume from it"):
            load_state(tmp_path / name)
        with pytest.raises(CellsegError, match="cannot be read as") as error:
            load_weights(tmp_path / name)
        assert "weights_only" not in str(error.value)  # PyTorch's own message advises to run it
    assert not (tmp_path / "marker").exists()


def test_a_state_that_is_none(tmp_path):
    torch.save([1, 2], tmp_path / "last.pt")
    with pytest.raises(CellsegError, match=r"last\.pt: not the state of a run"):
        load_state(tmp_path / "last.pt")
    with pytest.raises(CellsegError, match=r"nothing\.pt: no state to resume from"):
        load_state(tmp_path / "nothing.pt")


def test_a_compressed_state_might_be_a_bomb(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, buffer)
    with zipfile.ZipFile(buffer) as packed:
        content = {name: packed.read(name) for name in packed.namelist()}
    assert load_state(torch_zip(tmp_path / "stored.pt", content, zipfile.ZIP_STORED))["a"].shape == (1000,)
    with pytest.raises(CellsegError, match="damaged, cannot resume"):
        load_state(torch_zip(tmp_path / "packed.pt", content, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("kind", ["stretched", "sparse", "nan"])
def test_tensors_that_lie_about_their_size(tmp_path, kind):
    state = cellpose_state(build_model(check_config({"model": MODELS[2]}).model))
    name = "downsample.down.res_down_0.proj.1.weight"
    state[name] = {
        "stretched": torch.zeros(1).expand(4096, 2, 1, 1),
        "sparse": state[name].to_sparse(),
        "nan": state[name] * float("nan"),
    }[kind]
    torch.save(state, tmp_path / "cyto")
    with pytest.raises(CellsegError, match="holds NaN" if kind == "nan" else "larger than what the file holds"):
        load_weights(tmp_path / "cyto")


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "nothing"])
def test_a_model_that_is_no_file_name(name):
    with pytest.raises(CellsegError, match="no such model"):
        resolve_weights(name)
