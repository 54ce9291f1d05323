"""The optimizer of a run and its learning rate, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from cellseg.config import RunConfig


def build_optimizer(
    run: RunConfig, model: nn.Module, decay: float, pulled: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Make the optimizer; weight decay, a pull toward zero, spares what a regularizer pulls."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    free = [parameter for name, parameter in trained if name not in pulled]
    held = [parameter for name, parameter in trained if name in pulled]
    groups = [{"params": free, "weight_decay": decay}, {"params": held, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if run.train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=run.train.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=run.train.lr)


def learning_rate(run: RunConfig, step: int) -> float:
    """Linear warm-up, then constant or a cosine to 1 % of the peak; a pure function of the step."""
    settings = run.train
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.schedule == "constant":
        return settings.lr * warm
    progress = step / max(1, settings.steps)
    return settings.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def set_lr(optimizer: Any, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
