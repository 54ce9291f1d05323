import pytest
import torch
from torch import nn

from cellseg.core import CellsegError
from cellseg.elastic_net import ElasticNetLoss

VALUES, TARGET = torch.tensor([[3.0, -1.0, 0.5]]), torch.tensor([[1.0, -1.0, 1.0]])  # away by 2, 0, -.5


def test_each_reduction_by_hand():
    each = [0.25 * 2 + 0.75 * 4, 0.0, 0.25 * 0.5 + 0.75 * 0.25]
    assert ElasticNetLoss(0.25, "none")(VALUES, TARGET).tolist() == [each]
    assert ElasticNetLoss(0.25, "sum")(VALUES, TARGET).item() == sum(each)
    assert ElasticNetLoss(0.25)(VALUES, TARGET).item() == pytest.approx(sum(each) / 3)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("alpha", "known"), [(1.0, nn.L1Loss), (0.0, nn.MSELoss)])
def test_the_ends_are_the_losses_of_torch(alpha, known, reduction):
    torch.manual_seed(0)
    target = torch.randn(4, 5)
    found, wanted = [], []
    for loss, results in ((ElasticNetLoss(alpha, reduction), found), (known(reduction=reduction), wanted)):
        values = torch.linspace(-2, 2, 20).reshape(4, 5).requires_grad_()
        value = loss(values, target)
        value.sum().backward()
        results += [value, values.grad]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_gradient_is_zero_where_nothing_is_wrong_and_known_elsewhere(alpha):
    values = VALUES.clone().requires_grad_()
    ElasticNetLoss(alpha, "sum")(values, TARGET).backward()
    expected = [[alpha + 2 * (1 - alpha) * 2, 0.0, -alpha + 2 * (1 - alpha) * -0.5]]
    torch.testing.assert_close(values.grad, torch.tensor(expected))
    assert values.grad[0, 1].item() == 0.0


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(1)
    values, target = torch.randn(3, 4, dtype=torch.double, requires_grad=True), torch.randn(3, 4, dtype=torch.double)
    assert torch.autograd.gradcheck(ElasticNetLoss(0.4), (values, target))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: ElasticNetLoss(1.5), r"alpha must lie in \[0, 1\], but is 1.5"),
        (lambda: ElasticNetLoss(float("nan")), "alpha must lie"),
        (lambda: ElasticNetLoss(0.5, "max"), "reduction must be 'none', 'mean' or 'sum', but is 'max'"),
        (lambda: ElasticNetLoss(0.5)(torch.zeros(3, 1), torch.zeros(3)), r"values are \(3, 1\) but the target \(3,\)"),
    ],
)
def test_every_mistake_is_named(act, message):
    with pytest.raises(CellsegError, match=message):
        act()
