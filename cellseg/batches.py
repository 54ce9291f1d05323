"""From the selections of a run to batches of crops."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from cellseg.config import RunConfig
from cellseg.core import CellsegError, Record
from cellseg.datasets.crops import CropDataset, Crops
from cellseg.datasets.index import select, told_diameter
from cellseg.datasets.sampling import known_diameters


def layout(images: torch.Tensor, run: RunConfig) -> torch.Tensor:
    """Lay images out as the run asks; the network's activations follow their input."""
    return images.contiguous(memory_format=torch.channels_last) if run.train.channels_last else images.contiguous()


def gather(selections: Sequence[Any], *, labelled: bool = True, weak: bool = False) -> list[Record]:
    """Collect records: with ``labelled`` those with instance labels, with ``weak`` also masks and partial labels."""
    records = [record for selection in selections for record in select(selection)]
    if labelled:
        records = [r for r in records if r.label_kind == "instances" or (weak and r.has_labels)]
    if not records:
        what = "labelled training" if labelled else "unlabelled"
        raise CellsegError(f"no {what} images: name at least one selection under data in the configuration")
    return records


def told_diameters(records: Sequence[Record], selections: Sequence[Any], policy: float | str) -> list[float | None]:
    """Return :func:`cellseg.datasets.index.told_diameter` of the index that each of the records gathered is from."""
    told: dict[Record, float | None] = {}
    for chosen in selections:
        told |= dict.fromkeys(select(chosen), told_diameter(chosen.index, policy))
    return [told[record] for record in records]


def crops(run: RunConfig, records: Sequence[Record], seed: int, place: tuple[int, int] = (0, 1)) -> CropDataset:
    """Make the labelled crop source of a run for process ``place[0]`` of ``place[1]``."""
    if run.data.diameter == "index":
        diameters = known_diameters(records)
    else:
        number = run.data.diameter if isinstance(run.data.diameter, float) else None
        diameters = [number] * len(records)
    return CropDataset(
        records,
        run.model,
        run.augment,
        diameters=diameters,
        shape=(run.train.batch_size, run.train.crop_size),
        seed=seed,
        rank=place[0],
        world=place[1],
        cache_mb=cache_share(run),
        balance=run.data.balance,
    )


def cache_share(run: RunConfig) -> int:
    """Return the megabytes of ``data.cache_mb`` that each copy of a crop source may hold: every worker has its own."""
    sources = (run.data.train, run.data.unlabelled, run.data.replay)
    return run.data.cache_mb // (max(1, sum(map(bool, sources))) * max(1, run.train.workers))


def loader(dataset: CropDataset, run: RunConfig) -> Callable[[int], Crops]:
    """Return ``batch(step)``; with workers, consecutive steps are prepared ahead in other processes."""
    if run.train.workers == 0:
        return dataset.__getitem__
    ahead: dict[str, Any] = {}

    def batch(step: int) -> Crops:
        if ahead.get("next") != step:
            order = range(step, run.train.steps * run.train.accumulate)
            ahead["iterator"] = _read_ahead(dataset, order, run.train.workers)
        ahead["next"] = step + 1
        crops: Crops = next(ahead["iterator"])
        return crops

    return batch


def _read_ahead(dataset: CropDataset, order: Sequence[int], workers: int) -> Iterator[Crops]:
    """Yield batches that other processes prepare.

    They begin as copies that share the memory of this one. Python's garbage collector writes to every object it looks
    at, and what is written to is shared no more: so while they work, no collector looks at what was there before.
    """
    gc.collect()
    gc.freeze()
    try:
        yield from DataLoader(dataset, batch_size=None, sampler=order, num_workers=workers, pin_memory=False)
    finally:
        gc.unfreeze()
