"""The penalty: c1 times absolute distances plus c2 times squared ones, in three forms."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from cellseg.core import CellsegError
from cellseg.regularizer_config import L1_SHARES, TOWARD_ZERO, Convention, RegularizerConfig
from cellseg.regularizers.anchored import Anchored, Tensors, check_tensors, refuse_short_floats


class Penalty(Anchored):
    """A penalty as a differentiable value, as the same gradient injected, or as a pull after the step.

    Parameters
    ----------
    model, references
        As for :class:`Anchored`.
    settings : RegularizerConfig
        Any kind but ``spd``.
    fisher : mapping of str to Tensor, optional
        Weights F of the squares, as :func:`diagonal_fisher` returns them; for ``l2sp_fisher`` and needed there.

    Raises
    ------
    CellsegError
        If tensors do not go with the kind or with the parameters.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> penalty = Penalty(layer, RegularizerConfig(kind="l1sp", alpha=0.5))
    >>> penalty().item()
    0.0
    """

    def __init__(
        self,
        model: nn.Module,
        settings: RegularizerConfig,
        references: Tensors | None = None,
        fisher: Tensors | None = None,
    ) -> None:
        super().__init__(model, settings, references)
        kind = settings.kind
        if kind == "spd":
            raise CellsegError("'spd' is a rule after the optimizer step, not a penalty; make it with SPD")
        if references and kind in TOWARD_ZERO:
            raise CellsegError(f"references were given, but '{kind}' pulls toward zero; use a kind such as 'l2sp'")
        if (fisher is not None) != (kind == "l2sp_fisher"):
            raise CellsegError(f"kind '{kind}' {'has no' if fisher is not None else 'wants'} Fisher weights")
        if fisher is not None:
            check_tensors("Fisher weight", fisher, dict(self._named), all_of=self.pulled - self._new)
            for index, (name, parameter) in enumerate(self._named):
                weight = (
                    torch.ones_like(parameter) if name in self._new else fisher.get(name, torch.ones_like(parameter))
                )
                self.register_buffer(f"fisher_{index}", weight.detach().clone().to(parameter.device, torch.float32))

    def _coefficients(self) -> list[tuple[float, float]]:
        """Return c1 and c2 of ``c1 Σ|w − r| + c2 Σ F (w − r)²`` for each parameter."""
        settings = self.settings
        half = 0.5 if settings.convention == "paper" else 1.0
        share = L1_SHARES.get(settings.kind, 0.0)
        share = settings.l1_share or 0.0 if share is None else share
        return [
            (0.0, half * settings.beta * factor)
            if name in self._new
            else (settings.alpha * factor * share, half * settings.alpha * factor * (1 - share))
            for (name, _), factor in zip(self._named, self._factors, strict=True)
        ]

    def _groups(self) -> dict[tuple[float, float], list[int]]:
        """Return the places of the pulled parameters by their coefficients."""
        groups: dict[tuple[float, float], list[int]] = {}
        for index, coefficients in enumerate(self._coefficients()):
            if any(coefficients):
                groups.setdefault(coefficients, []).append(index)
        return groups

    def _away(self, parameter: torch.Tensor, index: int) -> torch.Tensor:
        """Return w − r in float32."""
        if self.settings.kind in TOWARD_ZERO:
            return parameter.float()
        return parameter.float() - self.get_buffer(f"anchor_{index}")

    def forward(self) -> torch.Tensor:
        """Return the penalty as a differentiable float32 scalar.

        Its gradient at r is exactly 0, that of the absolute value by choice of the subgradient.
        """
        terms = []
        for (c1, c2), indices in self._groups().items():
            for index in indices:
                away = self._away(self._named[index][1], index)
                square = away.square() * self._fisher(index) if self._has_fisher else away.square()
                terms.append(c2 * square.sum() if c1 == 0 else c2 * square.sum() + c1 * away.abs().sum())
        return torch.stack(terms).sum() if terms else torch.zeros(())

    @property
    def _has_fisher(self) -> bool:
        return self.settings.kind == "l2sp_fisher"

    def _fisher(self, index: int) -> torch.Tensor:
        return self.get_buffer(f"fisher_{index}")

    @torch.no_grad()
    def add_grad_(self) -> None:
        """Add the gradient of :meth:`forward` to ``.grad`` without a graph.

        Call it once an update, on gradients that are unscaled. Parameters that are not pulled are left alone;
        others get a gradient where they have none. Plain squares need no memory (``g += 2c w``, ``g −= 2c r``);
        absolute values and Fisher weights a passing copy of one tensor.
        """
        for (c1, c2), indices in self._groups().items():
            weights: list[torch.Tensor] = [self._named[index][1] for index in indices]
            for weight in weights:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            grads = [weight.grad for weight in weights if weight.grad is not None]
            if c1 == 0 and not self._has_fisher and all(weight.dtype == torch.float32 for weight in weights):
                torch._foreach_add_(grads, weights, alpha=2 * c2)
                if self.settings.kind not in TOWARD_ZERO:
                    torch._foreach_sub_(grads, [self.get_buffer(f"anchor_{index}") for index in indices], alpha=2 * c2)
                continue
            # One tensor at a time: on a CPU three times as fast as torch._foreach_*, which claims memory for all.
            for grad, weight, index in zip(grads, weights, indices, strict=True):
                away = self._away(weight, index)
                if c1:
                    grad.add_(away.sign(), alpha=c1)
                if c2:
                    grad.add_(away.mul_(self._fisher(index)) if self._has_fisher else away, alpha=2 * c2)

    @torch.no_grad()
    def pull_(self, lr: float) -> None:
        """Pull the weights toward r by ``lr`` times the gradient of :meth:`forward`, never past r.

        The decoupled form, after the optimizer step (for L2 toward zero this is AdamW's weight decay of 2c).
        Absolute values are soft-thresholded: weights come to lie exactly on r.

        Raises
        ------
        CellsegError
            If weights are not float32, where small pulls would round to nothing.
        """
        for (c1, c2), indices in self._groups().items():
            weights: list[torch.Tensor] = [self._named[index][1] for index in indices]
            refuse_short_floats(self._named[index] for index in indices)
            if c2 and self._has_fisher:
                for weight, index in zip(weights, indices, strict=True):
                    weight.sub_((2 * lr * c2 * self._fisher(index)).clamp_(max=1).mul_(self._away(weight, index)))
            elif c2 and self.settings.kind in TOWARD_ZERO:
                torch._foreach_mul_(weights, 1 - min(1.0, 2 * lr * c2))
            elif c2:
                anchors = [self.get_buffer(f"anchor_{index}") for index in indices]
                torch._foreach_lerp_(weights, anchors, min(1.0, 2 * lr * c2))
            if c1:
                for weight, index in zip(weights, indices, strict=True):
                    weight.sub_(self._away(weight, index).clamp(-lr * c1, lr * c1))

    def before_step(self) -> None:
        """Do what comes between clipping and the optimizer step."""
        if self.settings.form == "loss":
            self.add_grad_()

    def after_step(self, lr: float) -> None:
        """Do what comes after an optimizer step that was not skipped."""
        if self.settings.form == "decoupled":
            self.pull_(lr)


class L2SP(Penalty):
    """L2 toward a starting point: the kind ``l2sp`` with its words as arguments.

    Parameters
    ----------
    model : torch.nn.Module
        Network at its starting point; its parameters are cloned now.
    alpha : float
        Strength on shared parameters.
    beta : float
        Strength toward zero on the parameters that ``new`` names.
    convention : {"sum", "paper"}
        ``sum``: ``alpha Σ(w − w⁰)²``; ``paper``: half of it (Li et al. 2018, eq. 2).
    new : collection of str
        Names, or patterns of names, of parameters the pretrained network did not have.
    include : str
        ``all`` trained parameters, ``weights`` (as in the paper), or a pattern of names.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> penalty = L2SP(layer, alpha=0.5)
    >>> penalty().item()
    0.0
    """

    def __init__(
        self,
        model: nn.Module,
        alpha: float = 1e-2,
        beta: float = 0.0,
        *,
        convention: Convention = "sum",
        new: Collection[str] = (),
        include: str = "all",
    ) -> None:
        words: dict[str, Any] = {"convention": convention, "new": tuple(new), "include": include}
        super().__init__(model, RegularizerConfig(kind="l2sp", alpha=alpha, beta=beta, **words))
