"""What the loop does with a regularizer: once an update, at its true size, after clipping, never on skipped steps."""

import json

import numpy as np
import pytest
import tifffile
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import nn

from cellseg.checkpoint import load_state, load_weights, save_weights
from cellseg.config import check_config
from cellseg.core import CellsegError, Record
from cellseg.datasets.index import write_index
from cellseg.images import write_labels
from cellseg.models.build import build_model
from cellseg.regularizers import build_regularizer
from cellseg.state import State, restore, snapshot
from cellseg.train import make_fabric, start, train, update

GRADIENT = torch.tensor([[3.0, 4.0]])  # of the loss, at every weight; its norm is 5
START, HERE = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.5, -1.0]])


def make_run(accumulate=1, clip_norm=None, **regularizer):
    settings = {"accumulate": accumulate, "clip_norm": clip_norm, "steps": 4}
    return check_config({"train": settings | {"regularizer": regularizer}})


def half_precision(scale=65536.0):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def after_one_update(run, fabric=None, gradient=GRADIENT, decay=0.0, kind=torch.optim.SGD):
    """Weights after one step (lr 1) on a linear loss, from HERE; they started at START."""
    fabric = fabric or Fabric(accelerator="cpu")
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.copy_(START)
    penalty = build_regularizer(layer, run.train.regularizer)
    layer.weight.data.copy_(HERE)
    student, optimizer = fabric.setup(layer, kind(layer.parameters(), lr=1.0, weight_decay=decay))
    state = State(student, optimizer, None, penalty, getattr(fabric._precision, "scaler", None))

    def objective(state, micro):
        return state.student(gradient).sum(), {}, ["a"]

    update(state, run, fabric, objective, seed=0)
    return layer.weight.detach()


PULL = 2 * 0.125 * (HERE - START)  # gradient of L2-SP, alpha .125


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_penalty_counts_once_an_update_not_once_a_micro_batch(accumulate):
    found = after_one_update(make_run(accumulate, kind="l2sp", alpha=0.125))
    torch.testing.assert_close(found, HERE - GRADIENT - PULL)


def test_the_injected_gradient_is_not_clipped_and_does_not_count_in_the_norm():
    found = after_one_update(make_run(clip_norm=1.0, kind="l2sp", alpha=0.125))
    torch.testing.assert_close(found, HERE - GRADIENT / 5 - PULL)
    inside = GRADIENT + PULL  # a penalty in the loss would be clipped with it: another step
    assert not torch.allclose(found, HERE - inside / inside.norm(), atol=0.01)


@pytest.mark.parametrize("clip_norm", [None, 1.0, 100.0])
def test_under_fp16_the_penalty_meets_unscaled_gradients_clipped_or_not(clip_norm):
    run = make_run(clip_norm=clip_norm, kind="l2sp", alpha=0.125)
    found = after_one_update(run, half_precision(scale=1024.0))
    torch.testing.assert_close(found, HERE - GRADIENT * (0.2 if clip_norm == 1.0 else 1.0) - PULL)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("words", [{"kind": "l2sp", "form": "loss"}, {"kind": "l2sp", "form": "decoupled"}])
def test_a_step_that_fp16_skips_moves_nothing(words, clip_norm):
    run = make_run(clip_norm=clip_norm, **words, alpha=0.125)
    huge = torch.full((1, 2), 60000.0)  # overflows once scaled
    assert torch.equal(after_one_update(run, half_precision(), gradient=huge), HERE)


def test_bf16_keeps_float32_weights_so_that_small_pulls_count():
    run = make_run(kind="l2sp", alpha=2**-14, form="decoupled")
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
    found = after_one_update(run, fabric, gradient=torch.zeros(1, 2))
    assert found.dtype == torch.float32
    assert torch.equal(found, HERE - 2**-13 * (HERE - START))
    assert torch.equal(found.bfloat16().float(), HERE)  # lost, were the weights kept in bfloat16


def test_the_decoupled_pull_comes_after_the_step_and_goes_with_the_learning_rate():
    found = after_one_update(make_run(kind="l2sp", alpha=0.125, form="decoupled"))
    torch.testing.assert_close(found, START + 0.75 * (HERE - GRADIENT - START))


def test_under_adam_the_two_forms_are_two_algorithms():
    loss, decoupled = (make_run(kind="l2sp", alpha=0.125, form=form) for form in ("loss", "decoupled"))
    found = [after_one_update(run, gradient=torch.zeros(1, 2), kind=torch.optim.AdamW) for run in (loss, decoupled)]
    torch.testing.assert_close(found[0], HERE - torch.sign(HERE - START))  # the pull divided by its own size
    torch.testing.assert_close(found[1], HERE - PULL)


def test_spd_takes_back_what_an_update_moved_away():
    gradient = HERE - START  # asks back, and a step of length 4 goes far beyond
    found = after_one_update(make_run(kind="spd", alpha=1.0), gradient=4 * gradient)
    torch.testing.assert_close((found - START).norm(), (HERE - START).norm())
    assert torch.allclose(found, START - gradient)


@pytest.mark.parametrize("kind", ["l2sp", "l1sp", "elastic_net_sp", "spd", "l2", "l1", "none"])
def test_with_alpha_zero_nothing_differs_in_a_bit_from_plain_training(kind):
    plain = nn.Linear(2, 1, bias=False)
    plain.weight.data.copy_(HERE)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, weight_decay=0.3)
    plain(GRADIENT).sum().backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    words = {"kind": kind, **({"alpha": 0.0} if kind != "none" else {})}
    assert torch.equal(after_one_update(make_run(clip_norm=1.0, **words), decay=0.3), plain.weight)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    path = tmp_path_factory.mktemp("init") / "start.safetensors"
    config = check_config({"model": {"size": "tiny"}}).model
    torch.manual_seed(3)
    save_weights(path, build_model(config), config, {})
    return path


def begin(init, **words):
    values = {"init": str(init), "weight_decay": 0.25, "precision": "off", "ema": 0.5, "regularizer": words}
    run = check_config({"model": {"size": "tiny"}, "train": values})
    return start(run, make_fabric(run, "cpu"))[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("words", "free"),
    [
        ({"kind": "none"}, lambda name, p: True),
        ({"kind": "l2sp", "alpha": 0.0}, lambda name, p: True),
        ({"kind": "l2sp", "alpha": 0.1}, lambda name, p: False),
        ({"kind": "l2", "alpha": 0.1, "form": "decoupled"}, lambda name, p: False),
        ({"kind": "spd", "alpha": 1.0}, lambda name, p: False),
        ({"kind": "l2sp", "alpha": 0.1, "include": "weights"}, lambda name, p: p.ndim < 2),
        ({"kind": "l2sp", "alpha": 0.1, "new": ["head.*"]}, lambda name, p: name.startswith("head.")),
        ({"kind": "l2sp", "alpha": 0.1, "new": ["head.*"], "beta": 0.1}, lambda name, p: False),
    ],
)
def test_weight_decay_spares_what_is_pulled_and_nothing_else(init, words, free, optimizer):
    values = {"init": str(init), "weight_decay": 0.25, "optimizer": optimizer, "regularizer": words}
    run = check_config({"model": {"size": "tiny"}, "train": values})
    state, _ = start(run, make_fabric(run, "cpu"))
    decays = {id(p): group["weight_decay"] for group in state.optimizer.param_groups for p in group["params"]}
    named = dict(state.student.module.named_parameters())
    assert {name: decays[id(p)] for name, p in named.items()} == {n: 0.25 * free(n, p) for n, p in named.items()}


def test_resuming_loads_the_anchor_and_never_retakes_it(init):
    run_words = {"kind": "l1sp", "alpha": 0.1}
    state = begin(init, **run_words)
    first = [anchor.clone() for anchor in state.penalty.anchors]
    for parameter in state.student.parameters():
        parameter.data.add_(0.5)
    saved = snapshot(state)
    other = begin(init, **run_words)
    for parameter in other.student.parameters():
        parameter.data.mul_(3.0)
    other.penalty = build_regularizer(other.student.module, other.penalty.settings)  # as if taken at the resume
    restore(other, saved)
    assert all(torch.equal(a, b) for a, b in zip(other.penalty.anchors, first, strict=True))
    assert other.penalty.distance() == state.penalty.distance() > 0


@pytest.mark.parametrize("kind", ["l2sp", "l1sp", "elastic_net_sp", "l2sp_fisher", "spd"])
def test_what_pulls_toward_the_start_wants_one(kind):
    run = make_run(kind=kind, alpha=0.1)
    with pytest.raises(CellsegError, match=rf"train.regularizer '{kind}' pulls toward train.init, which is not set"):
        start(run, make_fabric(run, "cpu"))


def test_from_scratch_only_penalties_toward_zero_make_sense():
    run = make_run(kind="l1", alpha=0.1)
    state, _ = start(run, make_fabric(run, "cpu"))
    assert state.penalty().item() > 0
    assert start(make_run(), make_fabric(run, "cpu"))[0].penalty is None


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disks")
    rows, columns = np.indices((64, 64))
    labels = ((rows - 30) ** 2 + (columns - 34) ** 2 <= 12**2).astype(np.int32)
    tifffile.imwrite(folder / "a.tif", (labels * 120 + 40).astype(np.uint8))
    write_labels(folder / "a_label.tif", labels)
    facts = ("disks", "train", "g", 64, 64, 1, "instances", 24.0)
    write_index(folder / "index.csv", [Record("a", folder / "a.tif", folder / "a_label.tif", *facts)])
    return folder / "index.csv"


def train_run(index, init, fisher=True, **words):
    chosen = [{"index": str(index)}]
    settings = {"init": str(init), "steps": 4, "batch_size": 1, "crop_size": 64, "log_every": 1, "save_every": 2}
    data = {"train": chosen, "fisher": chosen if fisher else []}
    return check_config({"data": data, "model": {"size": "tiny"}, "train": settings | {"regularizer": words}})


@pytest.mark.parametrize(
    "words",
    [
        {"kind": "l2sp_fisher", "alpha": 0.1, "fisher_crops": 2},
        {"kind": "l1sp", "alpha": 0.01, "form": "decoupled"},
        {"kind": "spd", "alpha": 1.0},
    ],
)
def test_a_run_that_died_goes_on_bit_for_bit_and_says_what_held_it(index, init, tmp_path, monkeypatch, words):
    from cellseg import train as module

    run, original = train_run(index, init, **words), module.update
    whole = train(run, tmp_path / "whole", device="cpu")

    def dying(state, *rest):
        if state.step == 3:
            raise KeyboardInterrupt
        return original(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "update", dying)
        with pytest.raises(KeyboardInterrupt):
            train(run, tmp_path / "parts", device="cpu")
    parts = train(run, tmp_path / "parts", resume=True, device="cpu")
    one, two = (load_weights(path)[0].state_dict() for path in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["regularizer"] == words["kind"]
    assert 0 < summary["distance"] < max(summary["distances"].values())
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [("penalty" in line, line["distance"] > 0) for line in log] == [(words["kind"] != "spd", True)] * 4
    if words["kind"] == "l2sp_fisher":
        saved = load_state(tmp_path / "whole" / "last.pt")["anchor"]
        fisher = torch.cat([value.flatten() for name, value in saved.items() if name.startswith("fisher_")])
        assert fisher.mean().item() == pytest.approx(1, rel=1e-4) and fisher.std() > 0.1


def test_fisher_weights_want_images(index, init, tmp_path):
    run = train_run(index, init, fisher=False, kind="l2sp_fisher", alpha=0.1)
    with pytest.raises(CellsegError, match=r"'l2sp_fisher' wants labelled images under data\.fisher, but has none"):
        train(run, tmp_path / "x", device="cpu")
