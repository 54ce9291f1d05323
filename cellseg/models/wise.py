"""WiSE-FT: weights between two networks of one shape (Wortsman et al., CVPR 2022, arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cellseg.core import CellsegError


def interpolate(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], weight: float
) -> dict[str, torch.Tensor]:
    """Mix two networks as ``weight · end + (1 − weight) · start``.

    Parameters
    ----------
    start, end : mapping of str to Tensor
        State dictionaries of one network before and after training; neither is changed.
    weight : float
        Share of the end, in [0, 1]: 0 gives the start and 1 the end, bit for bit.

    Returns
    -------
    dict of str to Tensor
        Float tensors mixed, batch-norm statistics included; integer ones are those of the end.

    Raises
    ------
    CellsegError
        If the weight is out of range, or the networks differ in a name or a shape.
    """
    if not 0 <= weight <= 1:
        raise CellsegError(f"the share of the trained weights must lie in [0, 1], but {weight} was given")
    odd = sorted(set(start) ^ set(end)) or [name for name in end if start[name].shape != end[name].shape]
    if odd:
        raise CellsegError(f"only networks of one shape can be mixed, but these differ in '{odd[0]}'")
    if weight in (0, 1):
        chosen = end if weight else start
        return {name: value.detach().clone() for name, value in chosen.items()}
    return {
        name: torch.lerp(start[name].to(value), value, weight) if value.is_floating_point() else value.detach().clone()
        for name, value in end.items()
    }


def mixed_distances(summary: Mapping[str, Any], weight: float) -> dict[str, Any]:
    """Return ``distance`` and ``distances`` of a run's summary as they are once its weights are mixed with the start.

    The mixture lies on the line between the two, so every layer is at ``weight`` times its distance.
    """
    whole, layers = summary.get("distance"), summary.get("distances")
    return {
        "distance": whole and weight * whole,
        "distances": layers and {name: weight * value for name, value in layers.items()},
    }
