"""The averaged copy of a student: a teacher that makes targets, and the weights that are handed out."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EmaTeacher(nn.Module):
    """Exponential moving average of a student, always in eval mode and without gradients.

    The momentum is ``min(1 - 1 / (t + 10), maximum)``. Float buffers are averaged too and integer ones
    copied, so that batch-norm statistics never lag behind in silence (Tarvainen & Valpola, NeurIPS 2017).

    Parameters
    ----------
    student : torch.nn.Module
        Module to copy.
    maximum : float
        Largest momentum, in [0, 1).
    """

    def __init__(self, student: nn.Module, maximum: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self.maximum = maximum

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, 3, H, W)`` to raw maps ``(B, K, H, W)``."""
        maps: torch.Tensor = self.model(images)
        return maps

    def train(self, mode: bool = True) -> EmaTeacher:
        """Stay in eval mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Move toward the student after its update number ``step`` (from 0)."""
        momentum = min(1 - 1 / (step + 10), self.maximum)
        mine, theirs = self.model.state_dict(), student.state_dict()
        for name, value in mine.items():
            if value.is_floating_point():
                value.lerp_(theirs[name].to(value.dtype), 1 - momentum)
            else:
                value.copy_(theirs[name])
