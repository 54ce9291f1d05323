"""One builder for every network: from a configuration to a module, with fresh weights or with those of a start."""

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


def build_from(start: Network, had: ModelConfig, wanted: ModelConfig) -> Network | None:
    """Return a network with the weights of a start: with other dropout, or with an adapter that does nothing yet.

    Parameters
    ----------
    start : Network
        Trained; returned itself where nothing differs.
    had, wanted : ModelConfig
        Of the start, and of what is built.

    Returns
    -------
    Network or None
        None where the two differ in more than that.
    """
    if had == wanted:
        return start
    same = {"dropout": had.dropout} | ({} if had.adapter else {"adapter": False})
    if had != wanted.model_copy(update=same):
        return None
    model = build_model(wanted)
    model.load_state_dict(model.state_dict() | start.state_dict())
    return model
