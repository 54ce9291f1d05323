"""Instance norm that keeps the channels-last layout on the CPU.

PyTorch's own copies channels-last features to channels-first, so every following convolution runs in the slower
layout. The function and the parameters are the same; a network changes only in speed and in bfloat16 rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class ChannelsLastInstanceNorm(nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` as one batch norm an image, which has a channels-last kernel.

    Any other device or layout is left to PyTorch.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise features ``(B, C, H, W)`` over each image's positions."""
        if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        images = [
            functional.batch_norm(image, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for image in torch.split(x, 1)
        ]
        return torch.cat(images) if len(images) > 1 else images[0]


def keep_channels_last(model: nn.Module) -> None:
    """Replace every fresh ``nn.InstanceNorm2d`` inside a module by :class:`ChannelsLastInstanceNorm`, in place."""
    for name, child in model.named_children():
        if type(child) is nn.InstanceNorm2d:
            setattr(model, name, ChannelsLastInstanceNorm(child.num_features, eps=child.eps, affine=child.affine))
        else:
            keep_channels_last(child)
