import math
from pathlib import Path

import pytest

from cellseg.config import ModelConfig, RunConfig, check_config, load_config, parse_override, read_run
from cellseg.core import CellsegError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"lrr": 1}}, "unknown key 'train.lrr'; did you mean 'train.lr'"),
        ({"trian": {}}, "unknown key 'trian'; did you mean 'train'"),
        ({"data": {"train": [{"index": "a", "group": []}]}}, "'data.train.0.groups'"),
        ({"train": {"lr": "fast"}}, "'train.lr' = 'fast'"),
        ({"train": {"steps": True}}, "'train.steps' = True"),
        ({"train": {"steps": 0}}, "'train.steps' = 0"),
        ({"train": {"crop_size": 100}}, "multiple of 16"),
        ({"model": {"size": "huge"}}, "'model.size' = 'huge'"),
        ({"augment": {"scale_min": 2.0, "scale_max": 1.0}}, "scale_min (2.0) must not exceed"),
        ({"model": {"normalize": {"low": 99.0, "high": 1.0}}}, "must be below high"),
        ({"model": {"network": "u_net"}}, "'model.network' = 'u_net'"),
        ({"model": {"network": "flexible_unet", "size": "small"}}, "size ('small') means nothing for flexible_unet"),
        ({"model": {"network": "flexible_unet", "norm": "group"}}, "norm ('group') cannot be chosen for flexible_unet"),
        ({"model": {"network": "flexible_unet", "backbone": "vgg16"}}, "'model.backbone' = 'vgg16'"),
        ({"model": {"network": "unet", "backbone": "resnet18"}}, "backbone ('resnet18') belongs to flexible_unet"),
        ({"train": {"freeze_norm_statistics": True}}, "configuration: train.freeze_norm_statistics wants batch norm"),
        ({"data": 3}, "'data' = 3"),
        ({"data": {"diameter": -5}}, "'data.diameter' = -5: input should be greater than 0"),
        ({"adapt": {"diameter": 0.0}}, "'adapt.diameter' = 0.0: input should be greater than 0"),
        ({"predict": {"diameter": 0}}, "'predict.diameter' = 0: input should be 'auto', 'model' or 'index'"),
        ({"predict": {"diameter": math.nan}}, "'predict.diameter' = nan: input should be a finite number"),
        ({"data": {"evaluate": [{"index": "a", "name": "a/b"}]}}, "'data.evaluate.0.name' = 'a/b'"),
    ],
)
def test_every_mistake_names_its_key(values, message):
    with pytest.raises(CellsegError) as error:
        check_config(values)
    assert message in str(error.value)


def test_a_run_states_only_its_differences(tmp_path):
    (tmp_path / "base.toml").write_text("[train]\nlr = 0.1\nsteps = 5\n")
    (tmp_path / "run.toml").write_text('base = "base.toml"\n[train]\nsteps = 7\n')
    run = load_config(tmp_path / "run.toml", ["train.lr=3e-4", "model.size=tiny"])
    assert (run.train.steps, run.train.lr, run.model.size) == (7, 3e-4, "tiny")


def test_the_resolved_configuration_loads_back_equal(tmp_path):
    run = check_config({"data": {"train": [{"index": "a", "groups": ["x"]}], "diameter": 12}})
    (tmp_path / "config.json").write_text(run.model_dump_json())
    assert read_run(tmp_path / "config.json") == run != RunConfig()


def test_later_bases_lie_over_earlier_ones_and_the_file_over_all(tmp_path):
    (tmp_path / "case.toml").write_text("[train]\nlr = 0.1\nsteps = 5\nbatch_size = 3\n")
    (tmp_path / "arm.toml").write_text("[train]\nlr = 0.2\nsteps = 6\n")
    (tmp_path / "run.toml").write_text('base = ["case.toml", "arm.toml"]\n[train]\nsteps = 7\n')
    train = load_config(tmp_path / "run.toml").train
    assert (train.batch_size, train.lr, train.steps) == (3, 0.2, 7)


def test_bases_do_not_nest(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"')
    (tmp_path / "b.toml").write_text('base = "c.toml"')
    with pytest.raises(CellsegError, match="may not name another base"):
        load_config(tmp_path / "a.toml")


@pytest.mark.parametrize("text", ["train.lr", "=3"])
def test_override_wants_key_and_value(text):
    with pytest.raises(CellsegError, match=r"wanted dotted\.key=value"):
        parse_override(text)


def test_missing_and_broken_files_are_named(tmp_path):
    (tmp_path / "x.toml").write_text("[train")
    for name, message in (("none.toml", "no such"), ("x.toml", "cannot be read as TOML")):
        with pytest.raises(CellsegError, match=message):
            load_config(tmp_path / name)


@pytest.mark.parametrize(
    ("model", "resolved"),
    [
        ({}, ("small", None, "instance")),
        ({"network": "unet", "norm": "group"}, ("small", None, "group")),
        ({"network": "flexible_unet"}, (None, "efficientnet-b0", "batch")),
        ({"network": "flexible_unet", "backbone": "resnet18"}, (None, "resnet18", "batch")),
    ],
)
def test_a_network_brings_its_own_defaults_and_loads_back_equal(model, resolved):
    config = check_config({"model": model}).model
    assert (config.size, config.backbone, config.norm) == resolved
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert check_config({"model": config.model_dump()}).model == config


def test_the_header_of_an_older_checkpoint_still_says_the_same_network():
    header = '{"network":"half_unet","size":"tiny","representation":"flow","norm":"batch","dropout":0.0}'
    assert ModelConfig.model_validate_json(header) == ModelConfig(size="tiny", norm="batch")


def test_the_shared_base_fits_a_network_with_a_backbone(tmp_path):
    base = Path(__file__).parent.parent / "experiments" / "base.toml"
    (tmp_path / "run.toml").write_text(f'base = "{base}"\n[model]\nnetwork = "flexible_unet"\n')
    assert load_config(tmp_path / "run.toml").model.backbone == "efficientnet-b0"
    assert load_config(base).model.size == "small"
