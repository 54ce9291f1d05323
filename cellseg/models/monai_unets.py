"""Two networks of MONAI behind the same door: the residual U-Net and U-Nets on a known backbone.

Nothing is ever downloaded: backbones start from random weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.networks.nets.flexible_unet import FlexibleUNet
from monai.networks.nets.unet import UNet
from torch import nn

from cellseg.config import ModelConfig
from cellseg.models.network import ACTIVATION, IN_CHANNELS, NORMS, SIZES, Network
from cellseg.models.norms import keep_channels_last

_CLASSIFIER = ("_conv_head", "_conv_head_padding", "_bn1", "_avg_pooling", "_dropout", "_fc")


class ResidualUNet(Network):
    """MONAI's ``UNet`` with two residual units a level, strided convolutions and a head of its own.

    MONAI's last block normalises and drops out the output maps themselves. Here it keeps the channels of the
    finest level, and normalisation, activation and a 1×1 convolution follow, so a blank image is not amplified.

    Parameters
    ----------
    n_maps : int
        Number of output maps.
    config : ModelConfig
        Size, normalisation and dropout.
    """

    def __init__(self, n_maps: int, config: ModelConfig) -> None:
        assert config.size is not None
        features = SIZES[config.size]
        super().__init__(multiple=2 ** (len(features) - 1))
        self.body = UNet(
            spatial_dims=2,
            in_channels=IN_CHANNELS,
            out_channels=features[0],
            channels=features,
            strides=(2,) * (len(features) - 1),
            num_res_units=2,
            act=ACTIVATION,
            norm=NORMS[config.norm],
            dropout=config.dropout,
        )
        self.head = nn.Sequential(
            get_norm_layer(NORMS[config.norm], spatial_dims=2, channels=features[0]),
            get_act_layer(ACTIVATION),
            nn.Conv2d(features[0], n_maps, kernel_size=1),
        )
        keep_channels_last(self)

    def encoder(self) -> Iterable[nn.Module]:
        """Yield the descending half of every nested level, and the bottleneck."""
        level = self.body.model
        while isinstance(level, nn.Sequential):
            yield level[0]
            level = level[1].submodule
        yield level

    def full_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, 3, H, W)``, sides multiples of ``multiple``, to raw maps ``(B, n_maps, H, W)``."""
        maps: torch.Tensor = self.head(self.body(images))
        return maps


class BackboneUNet(Network):
    """MONAI's ``FlexibleUNet`` on ``efficientnet-b0`` or ``resnet18``, which fix batch norm and the widths.

    The classifier that MONAI leaves inside efficientnet is removed: it is never run. In training efficientnet
    skips whole residual branches with its own probability of up to 0.2, whatever ``dropout`` says, which
    concerns the decoder only.

    Parameters
    ----------
    n_maps : int
        Number of output maps.
    config : ModelConfig
        Backbone and dropout.
    """

    def __init__(self, n_maps: int, config: ModelConfig) -> None:
        super().__init__(multiple=32)
        self.body = FlexibleUNet(
            in_channels=IN_CHANNELS,
            out_channels=n_maps,
            backbone=config.backbone,
            pretrained=False,
            dropout=config.dropout,
            is_pad=False,
        )
        if config.backbone == "efficientnet-b0":
            for name in _CLASSIFIER:
                delattr(self.body.encoder, name)

    def encoder(self) -> Iterable[nn.Module]:
        """Yield the backbone."""
        return (self.body.encoder,)

    def full_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, 3, H, W)``, sides multiples of ``multiple``, to raw maps ``(B, n_maps, H, W)``."""
        maps: torch.Tensor = self.body(images)
        return maps
