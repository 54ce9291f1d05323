import json

import pytest

from cellseg.config import RunConfig, TrainConfig, check_config, load_config, read_run
from cellseg.core import CellsegError


def settings(**words):
    return check_config({"train": {"regularizer": words}}).train.regularizer


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kind": "l2-sp", "alpha": 1.0}, "'train.regularizer.kind' = 'l2-sp': input should be 'none', 'l2', 'l1'"),
        ({"kind": "l2sp"}, "kind 'l2sp' wants alpha, its strength, for example alpha = 0.01"),
        ({"alpha": 0.1}, "kind is 'none' but alpha or beta is not 0"),
        ({"kind": "l2sp", "alpha": -0.1}, "'train.regularizer.alpha' = -0.1: input should be greater than or equal"),
        ({"kind": "l2sp", "alpha": float("inf")}, "'train.regularizer.alpha' = inf: input should be a finite number"),
        ({"kind": "l2sp", "alpha": "0.1"}, "'train.regularizer.alpha' = '0.1'"),
        ({"kind": "l2sp", "alpha": 0.1, "beta": 0.1}, "beta (0.1) pulls what new names, and it names nothing"),
        ({"kind": "l2sp", "alpha": 0.1, "l1_share": 0.5}, "l1_share (0.5) belongs to the elastic nets, not to 'l2sp'"),
        ({"kind": "l1", "alpha": 0.1, "l1_share": 1.0}, "belongs to the elastic nets, not to 'l1'"),
        ({"kind": "elastic_net", "alpha": 0.1, "l1_share": 1.1}, "less than or equal to 1"),
        ({"kind": "spd", "alpha": 1.0, "form": "loss"}, "form ('loss') means nothing for 'spd'"),
        ({"kind": "spd", "alpha": 1.0, "new": ["head.*"]}, "new (('head.*',)) means nothing for 'spd'"),
        ({"kind": "l2sp", "alpha": 0.1, "form": "ema"}, "input should be 'loss' or 'decoupled'"),
        ({"kind": "l2sp", "alpha": 0.1, "factors": {"head.*": -1.0}}, "'train.regularizer.factors.head.*' = -1.0"),
        ({"kind": "l2sp", "alfa": 0.1}, "wants alpha"),
        ({"kind": "l2sp", "alpha": 0.1, "bet": 0.1}, "did you mean 'train.regularizer.beta'?"),
    ],
)
def test_every_mistake_names_its_key(words, message):
    with pytest.raises(CellsegError) as error:
        settings(**words)
    assert message in str(error.value)


def test_defaults_go_with_the_kind():
    assert (settings().kind, settings().form, settings().is_active) == ("none", None, False)
    assert settings(kind="l2sp", alpha=0).form == "loss" and not settings(kind="l2sp", alpha=0).is_active
    assert settings(kind="elastic_net_sp", alpha=0.1).l1_share == 0.5
    assert settings(kind="spd", alpha=1.0).form is None
    assert settings(kind="l2sp", alpha=0.0, beta=0.1, new=["head.*"]).is_active


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"kind": "spd", "alpha": 1.0},
        {"kind": "l2sp", "alpha": 0.1, "beta": 0.01, "new": ["head.*"], "factors": {"stem.*": 2.0}},
        {"kind": "elastic_net_sp", "alpha": 0.1, "form": "decoupled", "convention": "paper", "include": "weights"},
    ],
)
def test_the_resolved_configuration_loads_back_equal(words, tmp_path):
    run = check_config({"train": {"regularizer": words}})
    (tmp_path / "config.json").write_text(run.model_dump_json())
    assert read_run(tmp_path / "config.json") == run


def test_the_words_of_earlier_runs_are_an_l2sp():
    old = {"l2sp_alpha": 0.1, "l2sp_convention": "paper"}
    new = {"regularizer": {"kind": "l2sp", "alpha": 0.1, "convention": "paper"}}
    assert check_config({"train": old}) == check_config({"train": new})
    assert check_config({"train": {"l2sp_alpha": 0.0, "l2sp_convention": "paper"}}) == RunConfig()
    for mistake in (-1.0, "much", True, False):
        with pytest.raises(CellsegError, match=r"'train.regularizer.alpha' = "):
            check_config({"train": {"l2sp_alpha": mistake}})
    with pytest.raises(CellsegError, match="l2sp_alpha is short for a word of regularizer, given too"):
        check_config({"train": {"l2sp_alpha": 0.0, **new}})


def test_the_configuration_that_an_earlier_run_saved_can_be_read(tmp_path):
    saved = json.loads(RunConfig().model_dump_json())
    del saved["train"]["regularizer"]
    saved["train"] |= {"l2sp_alpha": 0.1, "l2sp_convention": "sum"}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    expected = TrainConfig.model_validate({"regularizer": {"kind": "l2sp", "alpha": 0.1}})
    assert read_run(tmp_path / "config.json").train == expected


def test_a_run_file_and_overrides_reach_single_words(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[train]\nregularizer = { kind = "l2sp", alpha = 0.1, factors = { "head.*" = 0.0 } }\n')
    found = load_config(path, ["train.regularizer.alpha=0.3", "train.regularizer.form=decoupled"]).train.regularizer
    assert (found.kind, found.alpha, found.form, found.factors) == ("l2sp", 0.3, "decoupled", {"head.*": 0.0})
