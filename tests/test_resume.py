"""Which changes of settings a run may go on with, and how the others are named."""

import os

import pytest

from cellseg.config import check_config, merge
from cellseg.core import CellsegError
from cellseg.resume import refuse_another

PLAIN = {"data": {"train": [{"index": "a/index.csv"}, {"index": "b/index.csv", "split": "train"}]}}
JUDGED = merge(PLAIN, {"data": {"val": [{"index": "a/index.csv", "split": "val"}]}})
ADAPTED = {"data": {"unlabelled": [{"index": "a/index.csv"}]}, "train": {"init": "start"}}


def go_on(folder, held, change):
    (folder / "last.pt").touch()
    (folder / "config.json").write_text(check_config(held).model_dump_json())
    refuse_another(check_config(merge(held, change)), folder, resume=True)


@pytest.mark.parametrize(
    ("held", "change"),
    [
        (JUDGED, {}),
        (JUDGED, {"train": {"steps": 3000, "log_every": 1, "save_every": 7, "workers": 2}}),
        (JUDGED, {"data": {"cache_mb": 1, "evaluate": [{"name": "x", "index": "x/index.csv"}]}}),
        (JUDGED, {"predict": {"batch_size": 2}}),
        (PLAIN, {"predict": {"tta": True}, "adapt": {"rim": 1}}),
        (PLAIN, {"train": {"batch_size": 2, "accumulate": 4}}),
        (ADAPTED, {"train": {"accumulate": 2}, "adapt": {"batch_size": 4}}),
    ],
)
def test_what_is_neither_learned_nor_chosen_may_change(held, change, tmp_path):
    go_on(tmp_path, held, change)


@pytest.mark.parametrize(
    ("held", "change", "names"),
    [
        (PLAIN, {"train": {"steps": 1000}}, "train.steps"),
        (PLAIN, {"train": {"batch_size": 4}}, "train.batch_size"),
        (PLAIN, {"data": {"train": [{"index": "c"}]}, "augment": {"flip": False}}, "data.train, augment.flip"),
        (PLAIN, {"train": {"regularizer": {"kind": "l2", "alpha": 0.1}}},
         "train.regularizer.kind, train.regularizer.alpha, train.regularizer.form"),
        (JUDGED, {"predict": {"tta": True}}, "predict.tta"),
        (JUDGED, {"train": {"validate_every": 10}, "data": {"val": []}}, "data.val, train.validate_every"),
        (ADAPTED, {"adapt": {"batch_size": 4}}, "adapt.batch_size"),
        (ADAPTED, {"train": {"init": "elsewhere"}}, "train.init"),
    ],
)  # fmt: skip
def test_what_counts_is_named(held, change, names, tmp_path):
    with pytest.raises(CellsegError) as refused:
        go_on(tmp_path, held, change)
    assert f"begun with other settings ({names}); wanted" in str(refused.value)


def test_a_path_may_be_written_in_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = [{"index": os.path.abspath("a/../a/index.csv")}, {"index": str(tmp_path / "b/index.csv"), "split": "train"}]  # noqa: PTH100
    go_on(tmp_path, PLAIN, {"data": {"train": there}})


def test_many_names_are_cut(tmp_path):
    change = {"augment": {name: 0.9 for name in ("scale_min", "weak", "strong", "colour", "invert")}}
    change |= {"train": {name: 0.5 for name in ("lr", "weight_decay", "ema", "clip_norm")}}
    with pytest.raises(CellsegError, match=r"train\.clip_norm and 1 more\)"):
        go_on(tmp_path, PLAIN, change)
