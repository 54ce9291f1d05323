"""One builder for every network: from a model configuration to a module."""

from __future__ import annotations

from torch import nn

from cellseg.config import ModelConfig
from cellseg.instances import representation


def build_model(config: ModelConfig) -> nn.Module:
    """Build the network of a configuration with fresh weights.

    Parameters
    ----------
    config : ModelConfig
        Network, size, normalisation, dropout and representation.

    Returns
    -------
    torch.nn.Module
        Maps images ``(B, 3, H, W)`` to raw maps ``(B, K, H, W)``.
    """
    from cellseg.models.half_unet import HalfUNet

    return HalfUNet(representation(config.representation).N_MAPS, config)
