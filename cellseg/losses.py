"""What training minimises: supervised and consistency losses on raw maps."""

from __future__ import annotations

import torch
from torch.nn import functional

from cellseg.instances.flow import FLOW_SCALE

Parts = dict[str, torch.Tensor]


def flow_loss(maps: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, Parts]:
    """Binary cross-entropy on the foreground plus half the squared error of the scaled flow.

    Parameters
    ----------
    maps : Tensor (B, 3, H, W)
        Raw network output.
    target : Tensor (B, 3, H, W)
        Foreground probability in [0, 1], dy, dx.
    weight : Tensor (B, 1, H, W)
        0 where a pixel is ignored; the loss is the mean over the weight.

    Returns
    -------
    loss : scalar Tensor
        The sum of the parts.
    parts : dict of scalar Tensors
        ``foreground`` and ``flow``, detached, for the log.

    Notes
    -----
    The form of Cellpose (Stringer et al., Nature Methods 2021).
    """
    maps = maps.float()
    total = weight.sum().clamp(min=1.0)
    foreground = functional.binary_cross_entropy_with_logits(maps[:, :1], target[:, :1], reduction="none")
    foreground = (foreground * weight).sum() / total
    flow = functional.mse_loss(maps[:, 1:], FLOW_SCALE * target[:, 1:], reduction="none").mean(dim=1, keepdim=True)
    flow = 0.5 * (flow * weight).sum() / total
    return foreground + flow, {"foreground": foreground.detach(), "flow": flow.detach()}


def consistency_target(maps: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a teacher's raw maps into a soft target and a weight.

    Parameters
    ----------
    maps : Tensor (B, 3, H, W)
        Raw output of the teacher.
    threshold : float
        Foreground pixels whose flow norm, and background pixels whose probability, is below are ignored.

    Returns
    -------
    target : Tensor (B, 3, H, W)
        Foreground probability and flow, as :func:`flow_loss` wants them.
    weight : Tensor (B, 1, H, W)
        1 where the teacher is trusted.

    Notes
    -----
    The norm of the predicted flow is low exactly where its direction is unsure, which makes it a free confidence.
    """
    maps = maps.float()
    probability = torch.sigmoid(maps[:, :1])
    flow = maps[:, 1:] / FLOW_SCALE
    norm = torch.linalg.vector_norm(flow, dim=1, keepdim=True)
    inside = probability > 0.5
    trusted = torch.where(inside, norm, 1 - probability) >= threshold
    unit = flow / norm.clamp(min=1e-6)
    target = torch.cat([probability, unit * inside], dim=1)
    return target, trusted.float()
