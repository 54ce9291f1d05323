"""One builder for every network: from a model configuration to a module."""

from __future__ import annotations

from cellseg.config import ModelConfig
from cellseg.instances import representation
from cellseg.models.network import Network


def build_model(config: ModelConfig) -> Network:
    """Build the network of a configuration with fresh weights; nothing is downloaded.

    Parameters
    ----------
    config : ModelConfig
        Network, size or backbone, normalisation, dropout and representation.

    Returns
    -------
    Network
        Maps images ``(B, 3, H, W)`` to raw maps ``(B, K, H, W)``.
    """
    n_maps = representation(config.representation).N_MAPS
    if config.network == "half_unet":
        from cellseg.models.half_unet import HalfUNet

        return HalfUNet(n_maps, config)
    if config.network == "cellpose":
        from cellseg.models.cellpose import CellposeNet

        return CellposeNet(n_maps, config)
    from cellseg.models.monai_unets import BackboneUNet, ResidualUNet

    return ResidualUNet(n_maps, config) if config.network == "unet" else BackboneUNet(n_maps, config)
