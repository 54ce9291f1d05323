"""Selective projection decay: no penalty, but a rule after the optimizer step."""

from __future__ import annotations

import torch
from torch import nn

from cellseg.core import CellsegError
from cellseg.regularizer_config import RegularizerConfig
from cellseg.regularizers.anchored import Anchored, Tensors, refuse_short_floats


class SPD(Anchored):
    """Selective projection decay (Tian, Huang, Kira, NeurIPS 2024, arXiv 2411.01713), after any optimizer.

    Where ⟨g, w − r⟩ > 0, so that the loss asks a tensor back toward its start (eq. 3), and the step still led it
    further away, from radius γ₋ to γ: ``w ← w − alpha (1 − γ₋/γ) (w − r)`` (eqs. 4, 9). With alpha = 1 this projects
    it back on its former radius (eq. 10). A "layer" of the paper is one tensor here, as in the authors' code.
    Gradients of the loss alone are wanted, so call :meth:`before_step` when they are complete.
    """

    def __init__(self, model: nn.Module, settings: RegularizerConfig, references: Tensors | None = None) -> None:
        super().__init__(model, settings, references)
        if settings.kind != "spd":
            raise CellsegError(f"SPD wants kind 'spd', but got '{settings.kind}'")
        self._watched: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def before_step(self) -> None:
        """Remember which tensors the gradient asks back, and their radius."""
        self._watched = []
        pulled = self.pulled
        for index, (name, parameter) in enumerate(self._named):
            if name in pulled and parameter.grad is not None:
                away = (parameter.float() - self.get_buffer(f"anchor_{index}")).reshape(-1)
                asked_back = torch.dot(parameter.grad.float().reshape(-1), away) > 0
                self._watched.append((index, asked_back, torch.linalg.vector_norm(away)))

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Take back what the step moved those tensors away; ``lr`` does not matter."""
        for index, asked_back, before in self._watched:
            parameter = self._named[index][1]
            refuse_short_floats([self._named[index]])
            anchor = self.get_buffer(f"anchor_{index}")
            now = torch.linalg.vector_norm(parameter - anchor)
            part = (self.settings.alpha * self._factors[index] * (1 - before / now)).clamp(max=1)
            parameter.lerp_(anchor, torch.where(asked_back & (now > before), part, 0.0))
        self._watched = []
