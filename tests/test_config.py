import pytest

from cellseg.config import RunConfig, check_config, load_config, parse_override, read_run
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
        ({"data": 3}, "'data' = 3"),
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
