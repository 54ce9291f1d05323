"""What adaptation adds to training: images of a new microscope without labels, or with a few.

The teacher makes targets of unlabelled images: cells it is sure of (``pseudo``, :mod:`cellseg.rounds`), its maps
(``consistency``, the recipe of SelfAdapt, arXiv 2508.11411), or such cells and its maps elsewhere (``mixed``, the
default: cells alone keep the outlines of the teacher, maps alone its doubts). They are learned together with labelled
images, where there are any, and with images of what the network already knows (``data.replay``), in one forward pass.
Three things never mix: the *anchor* (the pretrained weights, only in the penalty), the *teacher* (frozen, or the
student's moving average) and the *student*. Which weights are handed out, the start among them, a judge decides
(:mod:`cellseg.label_free.judging`). Without unlabelled images and replay this is plain fine-tuning, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from cellseg import journal
from cellseg.batches import cache_share, crops, gather, layout, loader
from cellseg.checkpoint import WEIGHTS_NAME, load_weights, save_weights
from cellseg.config import RunConfig
from cellseg.core import CellsegError, Record
from cellseg.cutmix import cut_mix
from cellseg.datasets.crops import CropDataset, Crops
from cellseg.datasets.index import take_evenly
from cellseg.datasets.windowed import load_view
from cellseg.label_free.criteria import rank_correlations
from cellseg.label_free.judging import VAL_F1, Judge, Verdict, Watch, validation_of
from cellseg.label_free.pseudo import find_diameters
from cellseg.losses import Parts, consistency_target, foreground_target, representation_loss
from cellseg.models.teacher import EmaTeacher
from cellseg.models.wise import interpolate, mixed_distances
from cellseg.predict import Segmenter, load
from cellseg.progress import track
from cellseg.resume import refuse_another
from cellseg.rounds import Rounds, first_taught, spot
from cellseg.scale import scale_prior
from cellseg.state import State
from cellseg.train import Objective, fit, make_fabric, place

UNMIXED_NAME = "unmixed.safetensors"
"""With ``adapt.wise``: the weights before they were mixed with the start."""


LABELLING = frozenset({"pseudo", "mixed"})
"""Methods that make labels, round by round."""

SCALE_IMAGES = 24
"""Of so many unlabelled images the scales go with the adapted weights."""


@dataclass(frozen=True)
class Lesson:
    """What the unlabelled images teach in one micro-batch.

    Attributes
    ----------
    images : Tensor (B, 3, H, W)
        Strong views.
    target : Tensor (B, K, H, W)
        Of the student.
    weight : Tensor (B, 2, H, W)
        As :func:`cellseg.losses.representation_loss` wants it.
    numbers : dict of str to scalar Tensor
        For the log.
    ids : tuple of str
        The images.
    """

    images: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    numbers: Parts
    ids: tuple[str, ...]


Batches = Callable[[int], Crops]
Teach = Callable[[State, int], Lesson]


def adapt(run: RunConfig, out: str | Path, *, seed: int = 0, resume: bool = False, device: str = "auto") -> Path:
    """Adapt the model ``train.init`` to unlabelled images, to a few labelled ones, or to both.

    Parameters
    ----------
    run : RunConfig
        ``data.unlabelled`` names the images, ``data.train`` the labelled ones and ``data.replay`` those of what is
        known already; each may be empty, but not the first two together.
    out, seed, resume, device
        As for :func:`cellseg.train.train`; a round of pseudo-labels is ``out/pseudo/round-<n>``.

    Returns
    -------
    Path
        The weights handed out; ``summary.json`` beside them says under ``decision`` which these are and why.
    """
    if run.train.init is None:
        raise CellsegError("train.init is not set: adaptation needs a pretrained model to start from")
    out = Path(out)
    refuse_another(run, out, resume=resume)
    fabric = make_fabric(run, device)
    start = load(run.train.init, device=device, settings=run.predict)
    records = gather(run.data.unlabelled, labelled=False) if run.data.unlabelled or not run.data.train else []
    method = run.adapt.method if records else "none"
    if method == "none" and not run.data.train:
        raise CellsegError("adapt.method = 'none' learns from labelled images only, but data.train names none")
    if method in LABELLING and run.data.train:
        rest = _without_truth(records, gather(run.data.train, weak=True))
        records, method = (rest, method) if rest else (records, "none")  # else nothing is left to be guessed
    watched = take_evenly(records, run.adapt.watch) if records and run.adapt.watch else []
    judge = _judge(run, watched, start)
    teach: Teach | None = None
    if method in LABELLING:
        watch = (judge, spot(records, watched)) if isinstance(judge, Watch) else None
        rounds = Rounds(run, out, records, start=start, fabric=fabric, seed=seed + 7919, watch=watch)
        teach = _pseudo(run, rounds, _teacher(run, start, fabric) if method == "mixed" else None, seed)
    elif method == "consistency":
        teach = _consistency(run, records, start, fabric, seed)
    supervised = _supervised(run, seed, fabric, n_taught=run.adapt.batch_size if teach is not None else 0)
    fit(run, out, fabric, _objective(run, teach, supervised, fabric), seed=seed, resume=resume, judge=judge)
    if fabric.is_global_zero:
        _conclude(run, out, judge, start)
        _note_scale(out, take_evenly(records, SCALE_IMAGES) if records else [], start)
    fabric.barrier()
    return out / WEIGHTS_NAME


def _without_truth(records: list[Record], labelled: Sequence[Record]) -> list[Record]:
    """Leave out the images all cells of which are labelled."""
    true = {record.image for record in labelled if record.label_kind == "instances"}
    return [record for record in records if record.image not in true]


def _objective(run: RunConfig, teach: Teach | None, supervised: Sequence[Batches], fabric: Fabric) -> Objective:
    """Return the loss of a micro-batch: one forward pass over what is taught, labelled and replayed."""
    name = run.model.representation

    def objective(state: State, micro_step: int) -> tuple[torch.Tensor, Parts, Sequence[str]]:
        lesson = teach(state, micro_step) if teach is not None and state.step >= first_taught(run) else None
        labelled = [batch(micro_step).to(fabric.device) for batch in supervised]
        ids = [id for part in (lesson, *labelled) if part is not None for id in part.ids]
        images, target, weight = ([getattr(crops, part) for crops in labelled] for part in ("weak", "target", "weight"))
        if lesson is None:
            return *representation_loss(
                state.student(layout(_join(images), run)), _join(target), _join(weight), name
            ), ids
        maps = state.student(layout(_join([lesson.images, *images]), run))
        mine, rest = maps[: len(lesson.images)], maps[len(lesson.images) :]
        numbers = lesson.numbers | _foregrounds(mine.detach(), lesson, name)
        if run.adapt.method in LABELLING:  # labels among labels: every known pixel weighs the same
            loss, parts = representation_loss(
                maps, _join([lesson.target, *target]), _join([lesson.weight, *weight]), name
            )
            return loss, parts | numbers, ids
        consistency, _ = representation_loss(mine, lesson.target, lesson.weight, name)
        loss = ramp(run, state.step - first_taught(run)) * consistency
        parts = {"consistency": consistency.detach(), **numbers}
        if labelled:
            known, named = representation_loss(rest, _join(target), _join(weight), name)
            loss, parts = loss + known, parts | named
        return loss, parts, ids

    return objective


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _foregrounds(maps: torch.Tensor, lesson: Lesson, name: str) -> Parts:
    """Share of foreground, among the pixels that are learned from, in the targets and in the student's own maps."""
    student = consistency_target(maps, 0.0, name)[0]
    weight = lesson.weight[:, :1]
    return {
        f"{who}_foreground": ((foreground_target(target, name) > 0.5) * weight).sum() / weight.sum().clamp(min=1)
        for who, target in (("teacher", lesson.target), ("student", student))
    }


def ramp(run: RunConfig, step: int) -> float:
    """Weight of the consistency loss, ``λ exp(−5 (1 − min(t/T, 1))²)`` (Laine & Aila, ICLR 2017), by its own step t."""
    if run.adapt.ramp_steps == 0:
        return run.adapt.consistency_weight
    left = 1 - min(step / run.adapt.ramp_steps, 1)
    return run.adapt.consistency_weight * math.exp(-5 * left**2)


def _teacher(run: RunConfig, start: Segmenter, fabric: Fabric) -> Callable[[State], EmaTeacher]:
    """Return what makes soft targets: the student's average, or the start, never touched again."""
    if run.adapt.teacher == "ema" and run.train.ema == 0:
        raise CellsegError("adapt.teacher = 'ema' needs train.ema > 0, for example 0.99")
    frozen = EmaTeacher(start.model, 0.0).to(fabric.device) if run.adapt.teacher == "frozen" else None

    def teacher(state: State) -> EmaTeacher:
        chosen = frozen or state.averaged
        assert chosen is not None
        return chosen

    return teacher


def _see(run: RunConfig, teacher: EmaTeacher, crop: Crops, fabric: Fabric) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the teacher's maps of the weak view as a soft target, and where it is trusted."""
    with torch.no_grad(), fabric.autocast():
        return consistency_target(teacher(crop.weak), run.adapt.confidence, run.model.representation)


def _pseudo(run: RunConfig, rounds: Rounds, teacher: Callable[[State], EmaTeacher] | None, seed: int) -> Teach:
    """Teach the labels of a round under strong views and, with a teacher, its maps where these say nothing."""

    def teach(state: State, micro_step: int) -> Lesson:
        crop = rounds.batch(state, micro_step).to(rounds.fabric.device)
        numbers = {name: torch.tensor(value) for name, value in rounds.numbers.items()}
        numbers["known"] = crop.weight[:, 0].mean()
        target, weight = crop.target, crop.weight
        if teacher is not None:
            soft, trusted = _see(run, teacher(state), crop, rounds.fabric)
            is_open = weight[:, :1] == 0
            target = torch.where(is_open, soft, target)
            weight = torch.where(is_open, trusted * run.adapt.consistency_weight, weight)
        parts = _mix(run, (crop.strong, target, weight), [seed, 6, micro_step, place(rounds.fabric)[0]])
        return Lesson(*parts, numbers, crop.ids)

    return teach


def _consistency(run: RunConfig, records: Sequence[Record], start: Segmenter, fabric: Fabric, seed: int) -> Teach:
    """Teach the maps of the teacher's weak view under strong views of the same pixels."""
    teacher = _teacher(run, start, fabric)
    rank, world = place(fabric)
    views = loader(
        CropDataset(
            records,
            run.model,
            run.augment,
            diameters=find_diameters(start, records, run.adapt.diameter),
            shape=(run.adapt.batch_size, run.train.crop_size),
            seed=seed + 7919,
            labelled=False,
            rank=rank,
            world=world,
            cache_mb=cache_share(run),
            balance=run.data.balance,
        ),
        run,
    )

    def teach(state: State, micro_step: int) -> Lesson:
        crop = views(micro_step).to(fabric.device)
        target, trusted = _see(run, teacher(state), crop, fabric)
        numbers = {"kept": (trusted * crop.weight).sum() / crop.weight.sum().clamp(min=1)}
        return Lesson(
            *_mix(run, (crop.strong, target, trusted * crop.weight), [seed, 6, micro_step, rank]), numbers, crop.ids
        )

    return teach


def _mix(
    run: RunConfig, parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor], seed: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CutMix with a seam of half a cell."""
    seam = round(run.model.reference_diameter / 2)
    return cut_mix(parts, np.random.default_rng(seed), run.adapt.cutmix, seam)


def _supervised(run: RunConfig, seed: int, fabric: Fabric, *, n_taught: int) -> list[Batches]:
    """Return the labelled batches: of the target, and of the source where there is something to replay."""
    batches = []
    count = n_taught
    if run.data.train:
        batches.append(loader(crops(run, gather(run.data.train, weak=True), seed, place(fabric)), run))
        count += run.train.batch_size
    share = run.adapt.replay
    if run.data.replay and share:
        size = max(1, round(count * share / (1 - share)))
        source = run.model_copy(
            update={
                "train": run.train.model_copy(update={"batch_size": size}),
                "data": run.data.model_copy(update={"diameter": "index"}),  # another number is of the target's cells
                "augment": run.augment_replay or run.augment,
            }
        )
        batches.append(loader(crops(source, gather(run.data.replay, weak=True), seed + 104_729, place(fabric)), run))
    return batches


def _judge(run: RunConfig, watched: Sequence[Record], start: Segmenter) -> Judge | None:
    validation = validation_of(run)
    if not watched:
        return validation
    key = {"auto": _usual_key(run), "last": ""}.get(run.adapt.criterion, run.adapt.criterion)
    images = [load_view(record, run.model) for record in watched]
    diameters = find_diameters(start, watched, run.adapt.diameter)
    return Watch(images, diameters, key, run.adapt.patience, validation, run.adapt.least_gain)


def _usual_key(run: RunConfig) -> str:
    """Let labels decide where there are any: a network may find twice as many true cells and be less sure of them."""
    if run.data.val:
        return VAL_F1
    return "" if run.data.train else "consensus"


def _conclude(run: RunConfig, out: Path, judge: Judge | None, start: Segmenter) -> None:
    """Mix the weights with the start where that is asked for; note how well the criteria ranked the checkpoints."""
    if isinstance(judge, Watch) and judge.validation is not None:
        journal.note(out, {"criteria_vs_val_f1": rank_correlations(journal.read_log(out))})
    model, config, about = load_weights(out / WEIGHTS_NAME)
    if run.adapt.wise is None or about["step"] == 0 or "wise" in about:
        return
    save_weights(out / UNMIXED_NAME, model, config, about)
    assert run.train.init is not None
    first = load_weights(run.train.init)[0].state_dict()
    model.load_state_dict(interpolate(first, model.state_dict(), run.adapt.wise))
    mixed = Segmenter(model.to(start.device), config, run.predict, start.device, about)
    verdict = judge.look(mixed, None, {}) if judge is not None else Verdict({}, None)
    summary = journal.read_summary(out)
    noted = summary.get("wise", {})
    unmixed = noted.get("unmixed_distance", summary.get("distance"))
    found = {"weight": run.adapt.wise, "unmixed_distance": unmixed, **verdict.numbers}
    if judge is not None and judge.with_start and judge.key and (verdict.score or 0) <= summary["start_score"]:
        refused = f"mixed with the start they are no better than it by {judge.by}, so they are handed out unmixed"
        journal.note(out, {"wise": found | {"refused": refused}})
        return
    is_noted = bool(noted) and "refused" not in noted  # by a run that was killed before it wrote the weights
    journal.note(out, {"wise": found} | ({} if is_noted else mixed_distances(summary, run.adapt.wise)))
    save_weights(out / WEIGHTS_NAME, model, config, about | {"wise": run.adapt.wise})


def _note_scale(out: Path, records: Sequence[Record], start: Segmenter) -> None:
    """Let adapted weights remember at which scales they see the unlabelled images best."""
    model, config, about = load_weights(out / WEIGHTS_NAME)
    if not records or about["step"] == 0 or "scale_prior" in about:
        return
    adapted = Segmenter(model.to(start.device), config, start.settings, start.device, about)
    views = (load_view(record, config) for record in records)
    prior = scale_prior(track(views, "looking at scales", total=len(records)), adapted.segment_at)
    save_weights(out / WEIGHTS_NAME, model, config, about | {"scale_prior": prior})
