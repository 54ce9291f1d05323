"""Tensors that a regularizer can be given: Fisher weights and references."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from cellseg.core import CellsegError


def diagonal_fisher(model: nn.Module, losses: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Estimate how much the loss minds each weight: the mean squared gradient, scaled to mean 1.

    Parameters
    ----------
    model : torch.nn.Module
        Network at its starting point; neither its weights nor its ``.grad`` are touched.
    losses : iterable of scalar Tensor
        Losses of single images, each with its graph, made one after the other (a generator): the square of a mean
        gradient is less than the mean square. With true labels this is the empirical Fisher information.

    Returns
    -------
    dict of str to Tensor
        For every trained parameter, float32, not negative; their mean over all weights is 1, so that alpha means
        what it means for L2-SP.

    Raises
    ------
    CellsegError
        If there is no loss, or the gradients are not finite or all 0.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    squares = [torch.zeros_like(parameter, dtype=torch.float32) for _, parameter in named]
    for loss in losses:
        grads = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
        for square, grad in zip(squares, grads, strict=True):
            if grad is not None:
                square += grad.float().square()
    total = sum(float(square.cpu().sum(dtype=torch.float64)) for square in squares)  # Apple's GPUs have no float64
    if not 0 < total < float("inf"):
        raise CellsegError(
            f"Fisher weights: the squared gradients sum to {total}; wanted finite losses that depend on w"
        )
    mean = total / sum(square.numel() for square in squares)
    return {name: square.div_(mean) for (name, _), square in zip(named, squares, strict=True)}


def identity_like(weight: torch.Tensor) -> torch.Tensor:
    """Return the reference of a layer that should do nothing: ones where input i meets output i, zeros elsewhere.

    Parameters
    ----------
    weight : Tensor (out, in) or (out, in, *kernel)
        Of a linear layer or a convolution; not square is allowed (``[I | 0]``), kernels have it at their centre.
    """
    reference = torch.empty_like(weight, requires_grad=False)
    return nn.init.eye_(reference) if weight.ndim == 2 else nn.init.dirac_(reference)
