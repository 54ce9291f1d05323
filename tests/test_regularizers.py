import copy

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cellseg.core import CellsegError
from cellseg.regularizer_config import RegularizerConfig
from cellseg.regularizers import L2SP, Penalty, diagonal_fisher, identity_like

TOWARD_START = ("l2sp", "l1sp", "elastic_net_sp", "l2sp_fisher")
KINDS = (*TOWARD_START, "l2", "l1", "elastic_net")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 2, 1))


def shift(model, by):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def make(model, kind, alpha=0.2, **words):
    """A penalty of any kind; Fisher weights are 1, 2, 3, … in every tensor."""
    fisher = None
    if kind == "l2sp_fisher":
        fisher = {name: torch.arange(1.0, p.numel() + 1).reshape(p.shape) for name, p in model.named_parameters()}
    return Penalty(model, RegularizerConfig(kind=kind, alpha=alpha, **words), fisher=fisher)


@pytest.mark.parametrize("kind", TOWARD_START)
def test_zero_at_the_start_with_a_finite_zero_gradient_and_positive_after_a_move(model, kind):
    penalty = make(model, kind)
    value = penalty()
    value.backward()
    assert value.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    with torch.no_grad():
        model[2].bias[0] += 1e-3
    assert penalty().item() > 0


@pytest.mark.parametrize("convention", ["sum", "paper"])
@pytest.mark.parametrize("by", [0.5, -0.25])
def test_the_exact_value_of_a_known_shift(model, convention, by):
    half, n = {"sum": 1.0, "paper": 0.5}[convention], size(model)
    fisher = sum(p.numel() * (p.numel() + 1) / 2 for p in model.parameters())
    names = {name: {"l1_share": 0.25} if name == "elastic_net_sp" else {} for name in TOWARD_START}
    penalties = {name: make(model, name, convention=convention, **words) for name, words in names.items()}
    shift(model, by)
    found = {name: penalty().item() for name, penalty in penalties.items()}
    assert found == pytest.approx(
        {
            "l2sp": 0.2 * half * n * by**2,
            "l1sp": 0.2 * n * abs(by),
            "elastic_net_sp": 0.2 * n * (0.25 * abs(by) + 0.75 * half * by**2),
            "l2sp_fisher": 0.2 * half * fisher * by**2,
        },
        rel=1e-5,
    )


def test_toward_zero_the_start_does_not_matter(model):
    absolute = sum(p.abs().sum() for p in model.parameters()).item()
    squared = sum(p.square().sum() for p in model.parameters()).item()
    found = [make(model, kind)().item() for kind in ("l1", "l2", "elastic_net")]
    assert found == pytest.approx([0.2 * absolute, 0.2 * squared, 0.1 * (absolute + squared)])


def test_the_anchor_is_a_copy_and_moves_never(model):
    penalty = L2SP(model, 1.0)
    shift(model, 0.5)
    assert penalty().item() == pytest.approx(0.25 * size(model), rel=1e-5)
    assert all(not anchor.requires_grad and anchor.dtype == torch.float32 for anchor in penalty.anchors)
    assert list(penalty.parameters()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_zero_is_zero_and_leaves_everything_alone(model, kind):
    penalty = make(model, kind, alpha=0.0)
    shift(model, 0.1)
    before = weights(model)
    penalty.add_grad_()
    penalty.pull_(1.0)
    assert penalty().item() == 0 and penalty.pulled == set()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("convention", ["sum", "paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_injected_gradient_is_the_autograd_one_on_top_of_what_is_there(model, kind, convention):
    twin = copy.deepcopy(model)
    words = {"beta": 0.05, "new": ("2.weight",), "factors": {"0.*": 3.0}, "convention": convention}
    one, two = (make(m, kind, **words) for m in (model, twin))
    torch.manual_seed(1)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        noise, there = torch.randn_like(a), torch.randn_like(a)
        with torch.no_grad():
            a.add_(noise), b.add_(noise)
        a.grad, b.grad = there.clone(), there.clone()
    one().backward()
    two.add_grad_()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_computing_changes_no_parameter(model, kind):
    penalty = make(model, kind)
    shift(model, 0.3)
    before = weights(model)
    penalty()
    penalty.add_grad_()
    penalty.distance(), penalty.distances()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_new_parameters_are_pulled_to_zero_by_beta_and_spared_by_alpha(model):
    penalty = L2SP(model, 7.0, beta=2.0, new=["2.*"])
    expected = 2.0 * sum(p.square().sum() for p in model[2].parameters()).item()
    assert penalty().item() == pytest.approx(expected)
    assert L2SP(model, 7.0, beta=2.0, new=["2.*"], convention="paper")().item() == pytest.approx(expected / 2)
    assert L2SP(model, 7.0, new=["2.*"]).pulled == {f"{i}.{word}" for i in (0, 1) for word in ("weight", "bias")}


@pytest.mark.parametrize(
    ("include", "names"),
    [
        ("all", {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}),
        ("weights", {"0.weight", "2.weight"}),
        ("2.*", {"2.weight", "2.bias"}),
    ],
)
def test_what_is_included(model, include, names):
    penalty = L2SP(model, 1.0, include=include)
    shift(model, 0.5)
    assert penalty.pulled == names
    n = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    assert penalty().item() == pytest.approx(0.25 * n, rel=1e-5)


def test_factors_weigh_layers_and_the_first_that_fits_counts(model):
    penalty = make(model, "l2sp", factors={"0.weight": 0.0, "0.*": 3.0})
    shift(model, 0.5)
    n = {name: parameter.numel() for name, parameter in model.named_parameters()}
    expected = 3 * n["0.bias"] + sum(n[name] for name in n if not name.startswith("0"))
    assert penalty().item() == pytest.approx(0.2 * 0.25 * expected, rel=1e-5)
    assert penalty.pulled == set(n) - {"0.weight"}


def test_distance_is_relative_to_the_start_in_all_and_by_layer(model):
    penalty = make(model, "l1", alpha=0.1)  # a penalty toward zero measures from the start too
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(1.5)
    assert penalty.distances() == pytest.approx({"0": 0.5, "1": 0.0, "2": 0.0}, rel=1e-5)
    moved, start = (sum(p.square().sum() for p in part.parameters()).item() for part in (model[0], model))
    assert penalty.distance() == pytest.approx((moved / 9 / (start - moved * 5 / 9)) ** 0.5, rel=1e-5)
    alone = L2SP(model, 0.1, new=["0.*", "1.*", "2.*"])
    assert (alone.distance(), alone.distances()) == (0.0, {})


def test_no_penalty_reaches_the_statistics_of_batch_norm():
    layer = nn.BatchNorm2d(4)
    penalty = L2SP(layer, 1.0)
    layer(torch.randn(2, 4, 3, 3) + 5)
    assert layer.running_mean.abs().min() > 0.1
    assert penalty().item() == penalty.distance() == 0 and penalty.pulled == {"weight", "bias"}


def test_the_anchor_is_saved_and_loaded_not_retaken(model):
    penalty = L2SP(model, 1.0)
    saved = penalty.state_dict()
    shift(model, 0.5)
    again = L2SP(model, 1.0)
    assert again().item() == 0
    again.load_state_dict(saved)
    assert again().item() == pytest.approx(0.25 * size(model), rel=1e-5)
    assert set(saved) == {f"anchor_{index}" for index in range(6)}


def test_fisher_weights_are_saved_with_the_anchor(model):
    saved = make(model, "l2sp_fisher").state_dict()
    ones = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    again = Penalty(model, RegularizerConfig(kind="l2sp_fisher", alpha=1.0), fisher=ones)
    again.load_state_dict(saved)
    assert torch.equal(again.get_buffer("fisher_1"), torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_sgd_weight_decay_is_the_l2_penalty(model):
    twin = copy.deepcopy(model)
    decayed = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=2 * 0.3)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make(twin, "l2", alpha=0.3)().backward()
    decayed.step()
    plain.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_weight_decay_on_anchored_weights_would_move_the_anchor(model):
    start, alpha, decay = weights(model), 0.3, 0.1
    penalty = L2SP(model, alpha)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=2 * decay)
    for _ in range(60):
        optimizer.zero_grad()
        penalty.add_grad_()
        optimizer.step()
    for parameter, first in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(parameter.detach(), first * alpha / (alpha + decay))


@pytest.mark.parametrize("convention", ["sum", "paper"])
def test_the_decoupled_pull_of_squares_is_a_plain_gradient_step(model, convention):
    penalty = make(model, "l2sp", alpha=0.3, convention=convention)
    shift(model, 0.5)
    shifted = weights(model)
    penalty.pull_(0.1)
    left = 1 - 0.1 * 0.3 * {"sum": 2, "paper": 1}[convention]
    for parameter, anchor, there in zip(model.parameters(), penalty.anchors, shifted, strict=True):
        torch.testing.assert_close(parameter.detach(), anchor + left * (there - anchor))


def test_the_decoupled_pull_toward_zero_is_the_decay_of_adamw(model):
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=2 * 0.3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    make(twin, "l2", alpha=0.3).pull_(0.1)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_decoupled_pull_of_absolute_values_goes_steadily_and_stays_on_the_anchor(model):
    penalty, start = make(model, "l1sp", alpha=0.5), weights(model)
    shift(model, -0.25)
    penalty.pull_(0.4)  # by .2
    for parameter, first in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(parameter.detach(), first - 0.05)
    penalty.pull_(0.4)
    penalty.pull_(0.4)
    assert penalty.distance() < 1e-7


def test_the_decoupled_pull_of_an_elastic_net_shrinks_then_thresholds():
    layer = nn.Linear(1, 1, bias=False)
    penalty = make(layer, "elastic_net_sp", alpha=1.0, l1_share=0.25)
    start = layer.weight.item()
    shift(layer, 1.0)
    penalty.pull_(0.1)
    assert layer.weight.item() - start == pytest.approx(1 - 2 * 0.1 * 0.75 - 0.1 * 0.25, rel=1e-5)


def test_the_decoupled_pull_by_fisher_weights_is_stronger_where_they_are():
    layer = nn.Linear(3, 1, bias=False)
    penalty = make(layer, "l2sp_fisher", alpha=1.0)
    start = layer.weight.detach().clone()
    shift(layer, 1.0)
    penalty.pull_(0.2)  # 1 − 2 · .2 · F, but never past the anchor
    torch.testing.assert_close(layer.weight.detach() - start, torch.tensor([[0.6, 0.2, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_pull_goes_past_its_goal(model, kind):
    penalty = make(model, kind, alpha=50.0)
    shift(model, 0.5)
    penalty.pull_(10.0)
    goals = penalty.anchors if kind in TOWARD_START else [torch.zeros_like(p) for p in model.parameters()]
    for parameter, goal in zip(model.parameters(), goals, strict=True):
        torch.testing.assert_close(parameter.detach(), goal, atol=1e-6, rtol=0)


def test_anchors_stay_float32_and_exact_whatever_is_asked(model):
    penalty = make(model, "l2sp_fisher")
    before = {name: value.clone() for name, value in penalty.state_dict().items()}
    for act in (penalty.to, penalty.type):
        act(torch.bfloat16)
    penalty.half().double()
    assert all(torch.equal(value, before[name]) for name, value in penalty.state_dict().items())
    assert {value.dtype for value in penalty.state_dict().values()} == {torch.float32}


def test_bfloat16_weights_have_a_float32_penalty_and_refuse_pulls_that_would_vanish(model):
    model.bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    one = L2SP(model, 0.5)
    shift(model, 2**-7)  # the next number after 1
    assert one().dtype == torch.float32
    assert one().item() == pytest.approx(0.5 * size(model) * 2**-14)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2**-10)  # lost in g + 2c w, were that rounded to bfloat16
    one.add_grad_()
    assert all(p.grad.dtype == torch.bfloat16 and torch.all(p.grad == 2**-7 + 2**-10) for p in model.parameters())
    with pytest.raises(CellsegError, match=r"'0.weight' is torch.bfloat16: small pulls on it would round to nothing"):
        one.pull_(0.1)


def test_a_square_layer_is_kept_near_the_identity():
    layer = nn.Linear(3, 3, bias=False)
    penalty = Penalty(
        layer, RegularizerConfig(kind="l2sp", alpha=1.0), references={"weight": identity_like(layer.weight)}
    )
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 0, 4]]))
    assert penalty().item() == 4 + 9
    penalty.pull_(0.5)
    assert torch.equal(layer.weight, torch.eye(3))


def test_a_new_layer_on_a_frozen_body_is_kept_near_a_rectangular_identity(model):
    body = model.requires_grad_(False)
    net = nn.Sequential(body, nn.Conv2d(2, 3, 3, bias=False))
    reference = identity_like(net[1].weight)
    assert reference.shape == (3, 2, 3, 3) and reference.sum() == 2 and reference[0, 0, 1, 1] == reference[1, 1, 1, 1]
    penalty = Penalty(net, RegularizerConfig(kind="l2sp", alpha=1.0), references={"1.weight": reference})
    assert [name for name in penalty.pulled] == ["1.weight"]
    assert penalty().item() == pytest.approx((net[1].weight - reference).square().sum().item())
    reference.zero_()  # the given tensor is cloned too
    assert penalty.anchors[0].sum() == 2
    assert identity_like(torch.zeros(2, 4)).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("words", "tensors", "message"),
    [
        ({"include": "head.*"}, {}, r"no trained parameter is called 'head\.\*'; there are 0.weight, 0.bias"),
        ({"new": ("3.*",)}, {}, r"no trained parameter is called '3\.\*'"),
        ({"factors": {"x": 2.0}}, {}, "no trained parameter is called 'x'"),
        ({}, {"references": {"0.weigth": torch.zeros(1)}}, "reference of '0.weigth': no trained parameter"),
        ({}, {"references": {"2.bias": torch.zeros(3)}}, r"has shape \(3,\) but the parameter \(2,\)"),
        ({"new": ("2.bias",)}, {"references": {"2.bias": torch.zeros(2)}}, "'2.bias' is called new but has a ref"),
        ({"kind": "l2"}, {"references": {"2.bias": torch.zeros(2)}}, "'l2' pulls toward zero"),
        ({"kind": "l2sp_fisher"}, {}, "kind 'l2sp_fisher' wants Fisher weights"),
        ({"kind": "l2sp_fisher"}, {"fisher": {"2.bias": torch.ones(2)}}, "Fisher weight of '.*' is missing"),
        ({"kind": "l1sp"}, {"fisher": {}}, "kind 'l1sp' has no Fisher weights"),
        ({"kind": "spd"}, {}, "'spd' is a rule after the optimizer step"),
    ],
)
def test_every_mistake_is_named(model, words, tensors, message):
    with pytest.raises(CellsegError, match=message):
        Penalty(model, RegularizerConfig(**{"kind": "l2sp", "alpha": 1.0} | words), **tensors)


def test_fisher_is_the_mean_squared_gradient_of_single_losses_scaled_to_mean_one():
    layer = nn.Linear(2, 1, bias=False)
    inputs = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    fisher = diagonal_fisher(layer, (layer(row).sum() for row in inputs))  # squares 1, 0 and 1, 4: 2 and 4 in sum
    torch.testing.assert_close(fisher["weight"], torch.tensor([[2 / 3, 4 / 3]]))
    assert layer.weight.grad is None


class NoDoubles(TorchFunctionMode):
    """An Apple GPU: what is not brought to the CPU first has no float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return _Here(args[0].detach().clone())
        if (kwargs or {}).get("dtype") is torch.float64 and not isinstance(args[0], _Here):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return func(*args, **(kwargs or {}))


class _Here(torch.Tensor):
    """A tensor that was brought to the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def test_fisher_weights_of_a_device_without_float64_are_the_same():
    layer, one = nn.Linear(2, 1, bias=False), torch.tensor([1.0, 2.0])
    with NoDoubles():
        fisher = diagonal_fisher(layer, [layer(one).sum()])
    assert torch.equal(fisher["weight"], diagonal_fisher(layer, [layer(one).sum()])["weight"])


def test_fisher_refuses_what_says_nothing(model):
    for losses in ([], [sum(p.sum() for p in model.parameters()) * 0], [model[0].weight.sum() * float("inf")]):
        with pytest.raises(CellsegError, match="wanted finite losses that depend on w"):
            diagonal_fisher(model, losses)
