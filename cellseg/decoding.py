"""From maps to cells: what makes a pixel foreground, and a group of pixels a cell.

Weights may say by which rule their maps are read best; a student inherits that of its start.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cellseg.confidences import mean_inside
from cellseg.config import PredictConfig
from cellseg.core import Labels
from cellseg.halving import ran_out
from cellseg.instances import representation
from cellseg.instances.interface import Maps, renumber
from cellseg.models import flow_torch


@dataclass(frozen=True)
class Rule:
    """What makes pixels a cell.

    Attributes
    ----------
    foreground : float
        A pixel may belong to a cell where its foreground probability exceeds this.
    min_score : float
        Cells whose mean foreground probability is lower are dropped.
    """

    foreground: float = 0.5
    min_score: float = 0.0


def rule_of(settings: PredictConfig, about: Mapping[str, Any]) -> Rule:
    """Return the rule that settings give, and where they are silent the weights, by their ``decoding``."""
    told = {"foreground": settings.foreground, "min_score": settings.min_score}
    return Rule(**about.get("decoding", {}) | {key: value for key, value in told.items() if value is not None})


def decode(name: str, maps: Maps, rule: Rule, min_size: int, device: torch.device) -> Labels:
    """Turn maps into cells.

    Parameters
    ----------
    name : str
        Of the representation, as in ``model.representation``.
    maps : ndarray of float32, shape (K, H, W)
        Raw network output.
    rule : Rule
        What makes pixels a cell.
    min_size : int
        Cells of fewer pixels are dropped.
    device : torch.device
        Flows are followed there if it is a GPU with enough memory.

    Returns
    -------
    ndarray of int32, shape (H, W)
        Consecutive ids, 0 is background.
    """
    threshold = math.log(rule.foreground / (1 - rule.foreground))
    labels = _group(name, maps, threshold, min_size, device)
    if rule.min_score == 0 or not labels.any():
        return labels
    scores = mean_inside(labels, representation(name).foreground(maps))
    return renumber(labels, np.append(False, scores >= rule.min_score))


def _group(name: str, maps: Maps, threshold: float, min_size: int, device: torch.device) -> Labels:
    """Decode where that is fastest."""
    if device.type == "cuda" and name == "flow":
        try:
            here = torch.from_numpy(maps).to(device)
            found = flow_torch.decode(here, foreground_threshold=threshold, min_size=min_size)
            return np.asarray(found.cpu().numpy(), np.int32)
        except RuntimeError as error:
            if not ran_out(error):
                raise
        warnings.warn("out of memory on the GPU while decoding, going on with the CPU", stacklevel=2)
    return representation(name).decode(maps, foreground_threshold=threshold, min_size=min_size)
