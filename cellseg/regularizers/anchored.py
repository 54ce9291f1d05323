"""Trained parameters and frozen copies of what they started from: the base of every regularizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Self

import torch
from torch import nn

from cellseg.core import CellsegError
from cellseg.regularizer_config import RegularizerConfig

Tensors = Mapping[str, torch.Tensor]
"""A tensor for each parameter by its name."""


class Anchored(nn.Module):
    """Trained parameters of a model, and frozen float32 copies of what they started from.

    Parameters
    ----------
    model : torch.nn.Module
        Network at its starting point; the parameters that require a gradient are cloned now.
    settings : RegularizerConfig
        ``include``, ``new`` and ``factors`` say how strongly each is pulled, relative to alpha.
    references : mapping of str to Tensor, optional
        Other values than the start for some parameters, by name: an identity (:func:`identity_like`), a block matrix.

    Raises
    ------
    CellsegError
        If a pattern fits no parameter, or a reference has no parameter or another shape.

    Notes
    -----
    Copies move with ``.to(device)``, stay float32 whatever is asked, and are saved in the state dict; the
    parameters are not, they belong to the model. The copies of ``new`` parameters are zeros.
    """

    def __init__(self, model: nn.Module, settings: RegularizerConfig, references: Tensors | None = None) -> None:
        super().__init__()
        self.settings = settings
        # A tuple, not a submodule list: the student's parameters must not become ours in a state dict.
        self._named = tuple((name, value) for name, value in model.named_parameters() if value.requires_grad)
        self._new = self._fitting(settings.new)
        self._factors = self._read_factors()
        check_tensors("reference", references or {}, dict(self._named))
        if clash := sorted(self._new & set(references or {})):
            raise CellsegError(f"regularizer: '{clash[0]}' is called new but has a reference; say one of the two")
        for index, (name, parameter) in enumerate(self._named):
            start = torch.zeros_like(parameter) if name in self._new else parameter
            start = (references or {}).get(name, start)
            self.register_buffer(f"anchor_{index}", start.detach().clone().to(parameter.device, torch.float32))

    @property
    def anchors(self) -> list[torch.Tensor]:
        """Starting values, float32, in the order of the parameters; zeros for new ones."""
        return [self.get_buffer(f"anchor_{index}") for index in range(len(self._named))]

    @property
    def pulled(self) -> set[str]:
        """Names of the parameters that are pulled anywhere; weight decay must leave these alone."""
        alpha, beta = self.settings.alpha, self.settings.beta
        return {
            name
            for (name, _), factor in zip(self._named, self._factors, strict=True)
            if factor * (beta if name in self._new else alpha) > 0
        }

    def distance(self) -> float:
        """Return ‖w − w⁰‖ / ‖w⁰‖ over all anchored parameters but the new; ‖w − w⁰‖ where the start is 0."""
        return _relative(self._squares().values())

    def distances(self) -> dict[str, float]:
        """Return the distance of every layer by its name, weight and bias together."""
        layers: dict[str, list[tuple[float, float]]] = {}
        for name, squares in self._squares().items():
            layers.setdefault(name.rpartition(".")[0] or name, []).append(squares)
        return {layer: _relative(squares) for layer, squares in layers.items()}

    @torch.no_grad()
    def _squares(self) -> dict[str, tuple[float, float]]:
        """Return ‖w − w⁰‖² and ‖w⁰‖² of each parameter that has a start."""
        named = [
            (name, parameter, anchor)
            for (name, parameter), anchor in zip(self._named, self.anchors, strict=True)
            if name not in self._new
        ]
        if not named:
            return {}
        moved = torch.stack([(parameter - anchor).square().sum() for _, parameter, anchor in named]).tolist()
        start = torch.stack([anchor.square().sum() for _, _, anchor in named]).tolist()
        return {name: (far, size) for (name, _, _), far, size in zip(named, moved, start, strict=True)}

    def _fitting(self, patterns: Iterable[str]) -> set[str]:
        """Return the names that any pattern fits; each must fit one at least."""
        fitting: set[str] = set()
        for pattern in patterns:
            found = {name for name, _ in self._named if fnmatchcase(name, pattern)}
            if not found:
                known = ", ".join(name for name, _ in self._named[:3])
                raise CellsegError(f"regularizer: no trained parameter is called '{pattern}'; there are {known}, …")
            fitting |= found
        return fitting

    def _read_factors(self) -> list[float]:
        """Return the factor on alpha or beta of each parameter; 0 where it is not included."""
        include = self.settings.include
        if include == "all":
            chosen = {name for name, _ in self._named}
        elif include == "weights":
            chosen = {name for name, parameter in self._named if parameter.ndim >= 2}
        else:
            chosen = self._fitting([include])
        factors = dict.fromkeys(chosen, 1.0) | {name: 0.0 for name, _ in self._named if name not in chosen}
        for pattern, factor in reversed(self.settings.factors.items()):  # the first that fits has the last word
            factors |= dict.fromkeys(self._fitting([pattern]) & chosen - self._new, factor)
        return [factors[name] for name, _ in self._named]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Follow ``.to(device)``, but never a change of precision."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._buffers.items():
            if value is not None and value.dtype != torch.float32:
                self._buffers[name] = kept[name].to(value.device)  # type: ignore[union-attr]
        return self


def check_tensors(what: str, tensors: Tensors, named: Tensors, all_of: Collection[str] = ()) -> None:
    """Raise CellsegError where a tensor has no parameter or another shape, or one of ``all_of`` is missing."""
    for name in (*tensors, *all_of):
        if name not in named:
            raise CellsegError(f"{what} of '{name}': no trained parameter has this name")
        if name not in tensors:
            raise CellsegError(f"{what} of '{name}' is missing")
        if tensors[name].shape != named[name].shape:
            came, want = tuple(tensors[name].shape), tuple(named[name].shape)
            raise CellsegError(f"{what} of '{name}' has shape {came} but the parameter {want}")


def refuse_short_floats(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise CellsegError unless all weights are float32."""
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise CellsegError(
                f"'{name}' is {parameter.dtype}: small pulls on it would round to nothing; keep float32 weights "
                '(mixed precision does) or use form = "loss"'
            )


def _relative(squares: Iterable[tuple[float, float]]) -> float:
    pairs = list(squares)
    moved, start = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    return float((moved / (start or 1.0)) ** 0.5)
