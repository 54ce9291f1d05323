"""Penalties that hold a network near its starting point.

L2-SP (Li, Grandvalet, Davoine, ICML 2018, arXiv 1802.01483): ``alpha/2 ‖w_S − w⁰_S‖² + beta/2 ‖w_S̄‖²`` over
the parameters S shared with the pretrained network and the new ones S̄. The anchor w⁰ is a clone held in
float32 buffers, so it moves with the module, is saved with it, and is never re-taken from the student.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import nn

Convention = Literal["sum", "paper"]


class L2SP(nn.Module):
    """L2 toward a starting point, as a differentiable value or as the same gradient injected.

    Parameters
    ----------
    model : torch.nn.Module
        Network at its starting point; its parameters are cloned now.
    alpha : float
        Strength on shared parameters.
    beta : float
        Strength toward zero on the parameters named in ``new``.
    convention : {"sum", "paper"}
        ``sum``: ``alpha Σ(w − w⁰)²``; ``paper``: half of it (Li et al. 2018, eq. 2).
    new : collection of str
        Names of parameters the pretrained network did not have.
    include : callable, optional
        ``include(name) -> bool`` chooses the parameters; all trainable ones by default.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> penalty = L2SP(layer, alpha=0.5)
    >>> float(penalty())
    0.0
    """

    def __init__(
        self,
        model: nn.Module,
        alpha: float,
        beta: float = 0.0,
        *,
        convention: Convention = "sum",
        new: Collection[str] = (),
        include: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.convention = alpha, beta, convention
        chosen = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (include is None or include(name))
        ]
        # A tuple, not a submodule list: the student's parameters must not become ours in a state dict.
        self._named: tuple[tuple[str, nn.Parameter], ...] = tuple(chosen)
        self._new = tuple(name in new for name, _ in chosen)
        for index, (_, parameter) in enumerate(chosen):
            start = torch.zeros_like(parameter) if self._new[index] else parameter
            self.register_buffer(f"anchor_{index}", start.detach().clone().float())

    @property
    def anchors(self) -> list[torch.Tensor]:
        """Starting values, float32, in the order of the parameters; zeros for new ones."""
        return [self.get_buffer(f"anchor_{index}") for index in range(len(self._named))]

    def _weights(self) -> list[float]:
        half = 0.5 if self.convention == "paper" else 1.0
        return [half * (self.beta if new else self.alpha) for new in self._new]

    def forward(self) -> torch.Tensor:
        """Return the penalty as a differentiable float32 scalar; its gradient at the anchor is exactly zero."""
        terms = [
            weight * (parameter.float() - anchor).square().sum()
            for weight, (_, parameter), anchor in zip(self._weights(), self._named, self.anchors, strict=True)
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    @torch.no_grad()
    def add_grad_(self) -> None:
        """Add the gradient of :meth:`forward` to ``.grad`` without a graph (after unscaling and clipping).

        ``g += 2c w`` and ``g -= 2c w⁰`` in place, with c the weight of the squared distance. Parameters without a
        gradient are left alone when the weight is zero and get one otherwise.
        """
        for weight, (_, parameter), anchor in zip(self._weights(), self._named, self.anchors, strict=True):
            if weight == 0:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(parameter, alpha=2 * weight).sub_(anchor.to(parameter.dtype), alpha=2 * weight)

    @torch.no_grad()
    def distance(self) -> float:
        """Return ‖w − w⁰‖ / ‖w⁰‖ over all anchored parameters."""
        moved = sum(
            float((parameter - anchor).square().sum())
            for (_, parameter), anchor in zip(self._named, self.anchors, strict=True)
        )
        start = sum(float(anchor.square().sum()) for anchor in self.anchors)
        return (moved / start) ** 0.5 if start else 0.0
