"""The elastic net between two tensors, a loss in PyTorch's manner; penalties on weights are in ``regularizers``."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from cellseg.core import CellsegError

Reduction = Literal["none", "mean", "sum"]


class ElasticNetLoss(nn.Module):
    """Mix absolute and squared error: ``e = alpha |x − t| + (1 − alpha) (x − t)²``.

    Parameters
    ----------
    alpha : float
        In [0, 1]: 1 is ``torch.nn.L1Loss``, 0 is ``torch.nn.MSELoss``.
    reduction : {"mean", "none", "sum"}
        Over all elements.

    Raises
    ------
    CellsegError
        If alpha or reduction is none of these, or (when called) the shapes differ, which are never broadcast.

    Notes
    -----
    At x = t the gradient is exactly 0: of the subgradients [−alpha, alpha] of the absolute value, PyTorch takes 0.

    Examples
    --------
    >>> loss = ElasticNetLoss(alpha=0.25, reduction="none")
    >>> loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]))
    tensor([3.5000, 0.0000])
    """

    def __init__(self, alpha: float, reduction: Reduction = "mean") -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise CellsegError(f"ElasticNetLoss: alpha must lie in [0, 1], but is {alpha}")
        if reduction not in ("none", "mean", "sum"):
            raise CellsegError(f"ElasticNetLoss: reduction must be 'none', 'mean' or 'sum', but is '{reduction}'")
        self.alpha, self.reduction = alpha, reduction

    def forward(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compare two tensors of one shape; a scalar, or with ``none`` one value an element."""
        if values.shape != target.shape:
            raise CellsegError(f"ElasticNetLoss: values are {tuple(values.shape)} but the target {tuple(target.shape)}")
        away = values - target
        error = self.alpha * away.abs() + (1 - self.alpha) * away.square()
        if self.reduction == "none":
            return error
        return error.mean() if self.reduction == "mean" else error.sum()

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"alpha={self.alpha}, reduction={self.reduction!r}"
