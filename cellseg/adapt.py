"""What adaptation adds to training: a teacher that makes targets on unlabelled images of a new microscope.

``L = L_sup(labelled, if any) + λ(t) · L_cons(student(strong(x)), teacher(weak(x)))`` with L2-SP toward the
pretrained weights, the recipe of SelfAdapt (arXiv 2508.11411). Three things never mix: the *anchor* (the pretrained
weights, only in the penalty), the *teacher* (frozen, or the student's moving average) and the *student*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from cellseg.batches import crops, gather, layout, loader
from cellseg.checkpoint import load_weights
from cellseg.config import RunConfig
from cellseg.core import CellsegError, Record
from cellseg.datasets.crops import CropDataset
from cellseg.datasets.windowed import load_view
from cellseg.losses import Parts, consistency_target, foreground_target, representation_loss
from cellseg.models.teacher import EmaTeacher
from cellseg.predict import load
from cellseg.progress import track
from cellseg.train import State, fit, make_fabric, place, supervised_loss


def adapt(run: RunConfig, out: str | Path, *, seed: int = 0, resume: bool = False, device: str = "auto") -> Path:
    """Adapt the model ``train.init`` to unlabelled images, and to a few labelled ones where there are any.

    Parameters
    ----------
    run : RunConfig
        ``data.unlabelled`` names the images, ``data.train`` the labelled ones (may be empty).
    out, seed, resume, device
        As for :func:`cellseg.train.train`.

    Returns
    -------
    Path
        The weights handed out.
    """
    if run.train.init is None:
        raise CellsegError("train.init is not set: adaptation needs a pretrained model to start from")
    if run.adapt.teacher == "ema" and run.train.ema == 0:
        raise CellsegError("adapt.teacher = 'ema' needs train.ema > 0, for example 0.99")
    fabric = make_fabric(run, device)
    unlabelled = gather(run.data.unlabelled, labelled=False)
    views = loader(_unlabelled_crops(run, unlabelled, seed, device, place(fabric)), run)
    labelled = gather(run.data.train, weak=True) if run.data.train else []
    batches = loader(crops(run, labelled, seed, place(fabric)), run) if labelled else None
    start = load_weights(run.train.init)[0]
    frozen = EmaTeacher(start, 0.0).to(fabric.device) if run.adapt.teacher == "frozen" else None

    def objective(state: State, micro_step: int) -> tuple[torch.Tensor, Parts, Sequence[str]]:
        teacher = frozen or state.averaged
        assert teacher is not None
        crop = views(micro_step).to(fabric.device)
        with torch.no_grad(), fabric.autocast():
            target, trusted = consistency_target(teacher(crop.weak), run.adapt.confidence, run.model.representation)
        maps = state.student(layout(crop.strong, run))
        weight = trusted * crop.weight
        consistency, _ = representation_loss(maps, target, weight, run.model.representation)
        loss = ramp(run, state.step) * consistency
        teacher_foreground = foreground_target(target, run.model.representation) > 0.5
        parts = {
            "consistency": consistency.detach(),
            "kept": weight.sum() / crop.weight.sum().clamp(min=1),
            "teacher_foreground": (teacher_foreground * crop.weight).sum() / crop.weight.sum().clamp(min=1),
        }
        ids = list(crop.ids)
        if batches is not None:
            supervised, named, seen = supervised_loss(state, batches(micro_step).to(fabric.device), run)
            loss, parts, ids = loss + supervised, {**parts, **named}, [*ids, *seen]
        return loss, parts, ids

    return fit(run, Path(out), fabric, objective, seed=seed, resume=resume)


def ramp(run: RunConfig, step: int) -> float:
    """Weight of the consistency loss, ``λ exp(−5 (1 − min(t/T, 1))²)`` (Laine & Aila, ICLR 2017)."""
    if run.adapt.ramp_steps == 0:
        return run.adapt.consistency_weight
    left = 1 - min(step / run.adapt.ramp_steps, 1)
    return run.adapt.consistency_weight * math.exp(-5 * left**2)


def _unlabelled_crops(
    run: RunConfig, records: Sequence[Record], seed: int, device: str, place: tuple[int, int]
) -> CropDataset:
    return CropDataset(
        records,
        run.model,
        run.augment,
        diameters=_diameters(run, records, device),
        shape=(run.adapt.batch_size, run.train.crop_size),
        seed=seed + 7919,
        labelled=False,
        rank=place[0],
        world=place[1],
        cache_mb=run.data.cache_mb,
        balance=run.data.balance,
    )


def _diameters(run: RunConfig, records: Sequence[Record], device: str) -> list[float | None]:
    """Cell diameter of each unlabelled image: one number, the index, or the starting model's own estimate."""
    policy = run.adapt.diameter
    if isinstance(policy, float):
        return [policy] * len(records)
    if policy == "index":
        return [record.diameter for record in records]
    assert run.train.init is not None
    segmenter = load(run.train.init, device=device)
    known = segmenter.about.get("diameter")
    return [
        segmenter.estimate_diameter(load_view(record, run.model)) or known
        for record in track(records, "estimating cell size", total=len(records))
    ]
