"""CutMix: a rectangle of one crop pasted into another, on image, target and weight alike (French et al., BMVC 2020).

A cell that the edge of the rectangle cuts is no longer whole, but its target still points at all of it. So along the
seam what only instances can tell weighs nothing, and only the foreground is learned there.
"""

from __future__ import annotations

import numpy as np
import torch

SHARE = (0.1, 0.5)
"""Least and largest share of a crop that is pasted over."""


def cut_mix(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor], rng: np.random.Generator, probability: float, seam: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Paste rectangles between the crops of a batch.

    Parameters
    ----------
    parts : (Tensor (B, 3, H, W), Tensor (B, K, H, W), Tensor (B, 2, H, W))
        Images, targets and weights; not changed. A single crop has no partner and stays as it is.
    rng : Generator
        Decides which crops, rectangles and partners.
    probability : float
        Of each crop to receive a rectangle.
    seam : int
        Pixels on either side of the rectangle's edge where channel 1 of the weight becomes 0.

    Returns
    -------
    tuple of Tensor
        Images, targets and weights of the same shapes.
    """
    count, _, height, width = parts[0].shape
    if probability == 0 or count < 2:
        return parts
    mixed = (parts[0].clone(), parts[1].clone(), parts[2].clone())
    for crop in range(count):
        chosen, partner = rng.random() < probability, (crop + int(rng.integers(1, count))) % count
        area, aspect = rng.uniform(*SHARE), np.exp(rng.uniform(-0.7, 0.7))
        sides = [min(1.0, float(np.sqrt(area * ratio))) for ratio in (aspect, 1 / aspect)]
        spans = [(int(rng.uniform(0, 1 - side) * length), max(1, round(side * length)), length)
                 for side, length in zip(sides, (height, width), strict=True)]  # fmt: skip
        if not chosen:
            continue
        inside = tuple(slice(start, start + extent) for start, extent, _ in spans)
        for new, old in zip(mixed, parts, strict=True):
            new[crop][(slice(None), *inside)] = old[partner][(slice(None), *inside)]
        _open_seam(mixed[2][crop, 1], spans, seam)
    return mixed


def _open_seam(weight: torch.Tensor, spans: list[tuple[int, int, int]], seam: int) -> None:
    """Blank ``(H, W)`` within ``seam`` pixels of the edges of a rectangle, but those on the edge of the crop."""
    outer = tuple(slice(max(0, start - seam), min(length, start + extent + seam)) for start, extent, length in spans)
    held = []
    for start, extent, length in spans:
        low = start + seam if start > 0 else 0
        high = start + extent - seam if start + extent < length else length
        held.append(slice(low, max(low, high)))
    kept = weight[tuple(held)].clone()
    weight[outer] = 0
    weight[tuple(held)] = kept
