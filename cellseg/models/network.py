"""What every network shares: any input size, a named encoder, and parts that training leaves alone.

A network implements ``full_maps`` on images whose sides are multiples of ``multiple``; padding, cropping and
freezing are here once. Freezing is kept by the module itself, so whoever calls ``train()`` cannot undo it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

SIZES: dict[str, tuple[int, ...]] = {
    "tiny": (16, 32, 64, 128),
    "small": (24, 48, 96, 192),
    "base": (32, 64, 128, 256),
}
"""Channels of each level of a U-Net, finest first."""

NORMS: dict[str, Any] = {
    "instance": ("instance", {"affine": True}),
    "batch": "batch",
    "group": ("group", {"num_groups": 8, "affine": True}),
}
"""Normalisations in MONAI's words."""

ACTIVATION = ("leakyrelu", {"inplace": True, "negative_slope": 0.1})
"""In MONAI's words; MONAI's default PReLU is slow to differentiate on a CPU."""

IN_CHANNELS = 3


class Network(nn.Module):
    """Base of the networks: images of any size in, raw maps of the same size out.

    Parameters
    ----------
    multiple : int
        Input sides are padded to multiples of this many pixels, and to at least two of them, so that the
        coarsest level has more than one position to normalise over.
    """

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple
        self._encoder_frozen = False
        self._statistics_frozen = False

    def full_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, 3, H, W)`` with sides that are multiples of ``multiple`` to maps ``(B, K, H, W)``."""
        raise NotImplementedError

    def encoder(self) -> Iterable[nn.Module]:
        """Yield the modules from the image to the coarsest features, the bottleneck included."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, 3, H, W)`` of any size to raw maps ``(B, K, H, W)``; borders are replicated."""
        height, width = images.shape[-2:]
        right, below = (max(-side % self.multiple, 2 * self.multiple - side) for side in (width, height))
        maps = self.full_maps(functional.pad(images, (0, right, 0, below), mode="replicate"))
        return maps[..., :height, :width]

    def freeze(self, *, encoder: bool = False, statistics: bool = False) -> Self:
        """Leave parts as they are from now on, whatever ``train()`` says.

        Parameters
        ----------
        encoder : bool
            Encoder parameters get no gradient and its layers stay in eval mode (no dropout, fixed statistics).
        statistics : bool
            Batch-norm layers stay in eval mode: running statistics are used and fixed, weight and bias still learn.

        Returns
        -------
        Network
            The module itself, in the mode it was in.
        """
        self._encoder_frozen, self._statistics_frozen = encoder, statistics
        for module in self.encoder():
            module.requires_grad_(not encoder)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode for everything that is not frozen."""
        super().train(mode)
        if self._encoder_frozen:
            for module in self.encoder():
                module.eval()
        if self._statistics_frozen:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
