"""The regularizer that a run asks for, made at its start."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from cellseg.batches import crops, gather, layout
from cellseg.config import RunConfig
from cellseg.core import CellsegError
from cellseg.losses import representation_loss
from cellseg.models.network import Network
from cellseg.progress import track
from cellseg.regularizers import SPD, Penalty, build_regularizer, diagonal_fisher


def regularizer_of(run: RunConfig, model: Network, device: torch.device) -> Penalty | SPD | None:
    """Make what holds the weights of a run.

    Parameters
    ----------
    run : RunConfig
        ``train.regularizer``, and ``data.fisher`` for ``l2sp_fisher``.
    model : Network
        At its starting point, not yet trained.
    device : torch.device
        Where Fisher weights are measured.

    Returns
    -------
    Penalty or SPD or None
        Without a kind, a run that starts from ``train.init`` gets a penalty that pulls nothing and only measures how
        far its weights go; a run from scratch gets None.

    Raises
    ------
    CellsegError
        If the words do not fit the network, or ``l2sp_fisher`` has no images.
    """
    settings = run.train.regularizer
    if run.train.init is None and not settings.is_active:
        return None
    fisher = measure_fisher(run, model, device) if settings.kind == "l2sp_fisher" else None
    return build_regularizer(model, settings, fisher=fisher)


def measure_fisher(run: RunConfig, model: Network, device: torch.device) -> dict[str, torch.Tensor]:
    """Weigh the parameters by their gradients on single crops of ``data.fisher``: the same crops for every seed."""
    if not run.data.fisher:
        raise CellsegError("train.regularizer 'l2sp_fisher' wants labelled images under data.fisher, but has none")
    single = run.model_copy(update={"train": run.train.model_copy(update={"batch_size": 1})})
    source = crops(single, gather(run.data.fisher), seed=0)
    model = copy.deepcopy(model).to(device).eval()

    def losses() -> Iterator[torch.Tensor]:
        for number in track(range(run.train.regularizer.fisher_crops), "weighing parameters"):
            crop = source[number].to(device)
            maps = model(layout(crop.weak, run))
            yield representation_loss(maps, crop.target, crop.weight, run.model.representation)[0]

    return diagonal_fisher(model, losses())
