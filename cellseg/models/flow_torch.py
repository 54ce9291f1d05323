"""The flow decoder on tensors: what :func:`cellseg.instances.flow.decode` does, on the device that holds the maps.

Paths are followed on the device; what leaves it are the few pixels where paths end, which are grouped into cells by the
same code for both. Labels agree but for the rounding of single pixels (tested on the CPU).
"""

from __future__ import annotations

import numpy as np
import torch

from cellseg.core import CellsegError
from cellseg.instances.flow import FLOW_SCALE, N_MAPS, ROUNDING, path_ends
from cellseg.instances.sinks import group_ends


def decode(
    maps: torch.Tensor, *, foreground_threshold: float = 0.0, min_size: int = 10, diameter: float | None = None
) -> torch.Tensor:
    """Group the foreground pixels whose flow leads to the same place.

    Parameters
    ----------
    maps : Tensor of floating dtype, shape (3, H, W)
        Raw network output: foreground logit, ``FLOW_SCALE`` · dy, ``FLOW_SCALE`` · dx; computed with as float32.
    foreground_threshold, min_size, diameter
        As for :func:`cellseg.instances.flow.decode`.

    Returns
    -------
    Tensor of int32, shape (H, W)
        Instance image with consecutive ids, on the device of the maps. There is no largest side.

    Raises
    ------
    CellsegError
        If the shape is wrong.
    """
    if maps.ndim != 3 or maps.shape[0] != N_MAPS:
        raise CellsegError(f"flow_torch.decode wants maps of shape (3, H, W), got {tuple(maps.shape)}")
    mask = maps[0] > foreground_threshold
    labels = torch.zeros(mask.shape, dtype=torch.int32, device=maps.device)
    inside = mask.ravel().nonzero().squeeze(1)
    if inside.numel() == 0:
        return labels
    ends = _ends(maps[1:].float(), mask)[inside]
    count = torch.bincount(ends, minlength=mask.numel())
    place = count.nonzero().squeeze(1)
    shape = (int(mask.shape[0]), int(mask.shape[1]))
    numbers = group_ends(place.cpu().numpy(), count[place].cpu().numpy(), shape, diameter, min_size)
    cells = torch.zeros(mask.numel(), dtype=torch.int32, device=maps.device)
    cells[place] = torch.from_numpy(np.ascontiguousarray(numbers)).to(maps.device)
    labels.view(-1)[inside] = cells[ends]
    return labels


def _ends(maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Flat index of the pixel where each pixel's path ends; see :func:`cellseg.instances.flow.decode`."""
    height, width = mask.shape
    rows = torch.arange(height, dtype=torch.float32, device=maps.device)[:, None]
    columns = torch.arange(width, dtype=torch.float32, device=maps.device)
    move = maps * (mask.to(torch.float32) / FLOW_SCALE)
    for rim in (move[0, 0], move[1, :, 0]):  # the rims do not lead out
        rim.clamp_(min=0)
    for rim in (move[0, -1], move[1, :, -1]):
        rim.clamp_(max=0)
    rounding = float(ROUNDING)
    steps, gained = 1, float("inf")
    while not path_ends(gained, steps, height + width):
        rounded = move + rounding
        further = _sample(move, torch.stack([rounded[0] + (rows - rounding), rounded[1] + (columns - rounding)]))
        gained = float(further.abs().max())
        move, steps = move + further, 2 * steps
    y = (move[0].round() + rows).to(torch.int64).clamp(0, height - 1)
    return (y * width + (move[1].round() + columns).to(torch.int64).clamp(0, width - 1)).ravel()


def _sample(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Interpolate ``values`` (2, H, W) bilinearly at the positions ``at`` (y and x, (2, H, W)), the border repeated.

    Not by ``grid_sample``, whose coordinates from -1 to 1 lose digits on large images.
    """
    height, width = values.shape[1:]
    y, x = at[0].clamp(0, height - 1), at[1].clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    row, column = top.to(torch.int64), left.to(torch.int64)
    below, beside = (row + 1).clamp(max=height - 1), (column + 1).clamp(max=width - 1)
    flat = values.reshape(2, -1)
    upper = torch.lerp(flat[:, row * width + column], flat[:, row * width + beside], right)
    lower = torch.lerp(flat[:, below * width + column], flat[:, below * width + beside], right)
    return torch.lerp(upper, lower, down)
