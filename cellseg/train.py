"""The training loop, in one readable place.

``fit`` runs any objective: supervised training is defined here, adaptation in :mod:`cellseg.adapt`. The only
clock is ``step``, one optimizer update, and everything random is a function of (seed, step). One update is:
backward of every micro-batch, unscale, clip, penalty gradient, optimizer, pull, averaged weights. The penalty's
gradient is injected once and after clipping, so unlike a penalty inside the loss it is never clipped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from cellseg import journal
from cellseg.batches import crops, gather, layout, loader
from cellseg.checkpoint import STATE_NAME, WEIGHTS_NAME, load_state, load_weights, save_state, save_weights
from cellseg.config import RunConfig
from cellseg.core import CellsegError
from cellseg.datasets.crops import Crops
from cellseg.devices import autocast_type, pick_device
from cellseg.files import write_text
from cellseg.halving import ran_out
from cellseg.label_free.judging import VAL_F1, Judge, Stopped, bar, decision, validation_of
from cellseg.losses import Parts, representation_loss
from cellseg.memory import peak_mb
from cellseg.models.build import build_from, build_model
from cellseg.models.teacher import EmaTeacher
from cellseg.optimizer import build_optimizer, learning_rate, set_lr
from cellseg.predict import Segmenter
from cellseg.progress import track
from cellseg.provenance import describe
from cellseg.regularizer_config import TOWARD_ZERO
from cellseg.regularizers import Penalty
from cellseg.regularizers.of_run import regularizer_of
from cellseg.resume import CONFIG_NAME, refuse_another, refuse_another_seed
from cellseg.state import LEAST_SCALE, State, flaw, restore, snapshot

_PRECISION = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", None: "32-true"}

_WORKER_DIED = "DataLoader worker (pid"
"""How PyTorch's error begins where a process of ``train.workers`` is gone."""

Objective = Callable[[State, int], tuple[torch.Tensor, Parts, Sequence[str]]]
"""``objective(state, micro_step)`` returns the loss, its parts by name, and the ids of the images it saw."""


def train(run: RunConfig, out: str | Path, *, seed: int = 0, resume: bool = False, device: str = "auto") -> Path:
    """Train a network on labelled images and write a run folder.

    Parameters
    ----------
    run : RunConfig
        What to do.
    out : str or Path
        Run folder: ``config.json log.jsonl last.pt best.safetensors summary.json``.
    seed : int
        Seed of initial weights, data order and augmentation.
    resume : bool
        Go on from ``last.pt``; the result equals that of an uninterrupted run. Another seed or other settings are
        refused (:func:`cellseg.resume.refuse_another`).
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns
    -------
    Path
        The weights handed out: best on the validation images, or the last ones where there are none.
    """
    fabric = make_fabric(run, device)
    records = gather(run.data.train, weak=True)
    batches = loader(crops(run, records, seed, place(fabric)), run)

    def supervised(state: State, micro_step: int) -> tuple[torch.Tensor, Parts, Sequence[str]]:
        return supervised_loss(state, batches(micro_step).to(fabric.device), run)

    return fit(run, Path(out), fabric, supervised, seed=seed, resume=resume, judge=validation_of(run))


def supervised_loss(state: State, batch: Crops, run: RunConfig) -> tuple[torch.Tensor, Parts, Sequence[str]]:
    """Return the loss of the student on labelled crops, its parts and the ids of the images."""
    maps = state.student(layout(batch.weak, run))
    loss, parts = representation_loss(maps, batch.target, batch.weight, run.model.representation)
    return loss, parts, batch.ids


def place(fabric: Fabric) -> tuple[int, int]:
    """Return the number of this process and the number of processes."""
    return fabric.global_rank, fabric.world_size


def make_fabric(run: RunConfig, device: str) -> Fabric:
    """Set up one process, or this process's place among those that torchrun started."""
    chosen = pick_device(device)
    local, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    fabric = Fabric(
        accelerator=chosen.type,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision=_PRECISION[autocast_type(run.train.precision, chosen)],
    )
    fabric.launch()
    return fabric


def fit(
    run: RunConfig,
    out: Path,
    fabric: Fabric,
    objective: Objective,
    *,
    seed: int,
    resume: bool,
    judge: Judge | None = None,
) -> Path:
    """Run the loop of one objective and hand out what the judge likes best; see :func:`train` for what it writes."""
    refuse_another(run, out, resume=resume)
    torch.manual_seed(seed)
    state, about = start(run, fabric)
    if resume and (out / STATE_NAME).exists():
        saved = load_state(out / STATE_NAME)
        refuse_another_seed(seed, saved, out)
        restore(state, saved)
    if resume and _is_over(state, run, out):
        return out / WEIGHTS_NAME  # finished: nothing to do, and nothing measured is written over
    if fabric.is_global_zero:
        journal.forget_summary(out)
        write_text(out / CONFIG_NAME, run.model_dump_json(indent=2))
        journal.truncate(out, state.step)
    try:
        _go_on(state, run, out, fabric, objective, judge, about | {"seed": seed})
    except Stopped as stopped:
        if judge is None or not judge.with_start:
            raise
        state.stopped = str(stopped)
    if fabric.is_global_zero:
        _finish(state, run, out, about | {"seed": seed}, judge)
    fabric.barrier()
    return out / WEIGHTS_NAME


def _is_over(state: State, run: RunConfig, out: Path) -> bool:
    summary = journal.read_summary(out)
    return bool(summary) and (state.step >= run.train.steps or bool(summary.get("stopped")))


def _go_on(
    state: State,
    run: RunConfig,
    out: Path,
    fabric: Fabric,
    objective: Objective,
    judge: Judge | None,
    about: dict[str, Any],
) -> None:
    """Make the updates that are left, log, look and save; raises Stopped where the run must end before."""
    last = run.train.steps
    if judge is not None and judge.with_start and state.step == 0:
        _look(state, run, out, fabric, judge, about)
    for step in track(range(state.step, last), "training", total=last, done=state.step):
        began, worked = time.perf_counter(), time.process_time()
        set_lr(state.optimizer, learning_rate(run, step))
        with _saying_what_needs_less_memory(run, step):
            parts = update(state, run, fabric, objective, about["seed"])
        state.step = step + 1
        state.ms.append(1e3 * (time.perf_counter() - began))
        state.spent["minutes"] += state.ms[-1] / 6e4
        state.spent["processor_minutes"] += (time.process_time() - worked) / 60
        if fabric.is_global_zero and (state.step % run.train.log_every == 0 or state.step == last):
            journal.append(out, state.step, {"lr": learning_rate(run, step), **_numbers(state, parts)})
        looks = judge is not None and (state.step % run.train.validate_every == 0 or state.step == last)
        saves = state.step % run.train.save_every == 0 or state.step == last
        if (looks or saves) and (why := flaw(state)):  # nothing but good weights is ever written
            raise _blown_up(why, step, state.seen)
        if judge is not None and looks:
            _look(state, run, out, fabric, judge, about)
        if fabric.is_global_zero and saves:
            save_state(out / STATE_NAME, snapshot(state) | {"seed": about["seed"]})


@contextmanager
def _saying_what_needs_less_memory(run: RunConfig, step: int) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if str(error).startswith(_WORKER_DIED):
            raise CellsegError(
                f"a process that prepares crops died at step {step}, perhaps of too little memory; lower train.workers "
                "or data.cache_mb and go on with --resume"
            ) from error
        if not ran_out(error):
            raise
        parts = {"train": run.data.train, "adapt": run.data.unlabelled}
        sizes = " and ".join(f"{part}.batch_size" for part, images in parts.items() if images)
        raise CellsegError(
            f"out of memory at step {step}; lower {sizes} and raise train.accumulate as much, which keeps the crops of "
            "an update and what --resume goes on from, or begin anew with a lower train.crop_size"
        ) from error


def start(run: RunConfig, fabric: Fabric) -> tuple[State, dict[str, Any]]:
    """Build the student, from scratch or from ``train.init``, its optimizer, average and regularizer."""
    about: dict[str, Any] = {}
    if run.train.init is None:
        _refuse_to_keep_fresh_weights(run)
        model = build_model(run.model)
    else:
        first, config, about = load_weights(run.train.init)
        found = build_from(first, config, run.model)
        if found is None:
            raise CellsegError(f"{run.train.init}: its model is {config}, but the configuration wants {run.model}")
        model = found
    model.freeze(encoder=run.train.freeze_encoder, statistics=run.train.freeze_norm_statistics)
    penalty = regularizer_of(run, model, fabric.device)
    averaged = EmaTeacher(model, run.train.ema) if run.train.ema > 0 else None
    optimizer = build_optimizer(run, model, run.train.weight_decay, penalty.pulled if penalty is not None else set())
    student, optimizer = fabric.setup(model, optimizer)
    if penalty is not None:
        penalty.to(fabric.device)
    if averaged is not None:
        averaged.to(fabric.device)
    student.train()
    return State(student, optimizer, averaged, penalty, getattr(fabric._precision, "scaler", None)), about


def _refuse_to_keep_fresh_weights(run: RunConfig) -> None:
    for word in ("freeze_encoder", "freeze_norm_statistics"):
        if getattr(run.train, word):
            raise CellsegError(f"train.{word} keeps what train.init brings, but train.init is not set")
    settings = run.train.regularizer
    if settings.is_active and settings.kind not in TOWARD_ZERO:
        raise CellsegError(f"train.regularizer '{settings.kind}' pulls toward train.init, which is not set")


def update(state: State, run: RunConfig, fabric: Fabric, objective: Objective, seed: int) -> Parts:
    """Make one optimizer update and return the parts of its last micro-batch's loss."""
    settings = run.train
    torch.manual_seed(seed * 1_000_003 + state.step)  # dropout: a function of (seed, step), so resume is exact
    parts: Parts = {}
    seen: set[str] = set()
    for micro in range(settings.accumulate):
        last = micro == settings.accumulate - 1
        with fabric.no_backward_sync(state.student, enabled=not last):
            loss, parts, ids = objective(state, state.step * settings.accumulate + micro)
            seen.update(ids)
            _check_finite(loss, "loss", state.step, ids)
            fabric.backward(loss / settings.accumulate)
        parts = {"loss": loss.detach(), **parts}
    norm = _unscale_and_clip(state, settings.clip_norm, fabric)
    if state.scaler is None:
        _check_finite(norm, "the norm of the gradients", state.step, seen)
    _step(state)
    state.seen = sorted(seen)
    if state.scaler is not None and state.scaler.get_scale() < LEAST_SCALE:
        raise _blown_up("no gradient is finite whatever the loss is scaled with", state.step, seen)
    state.optimizer.zero_grad(set_to_none=True)
    if state.averaged is not None:
        state.averaged.update(state.student.module, state.step)
    return parts


def _unscale_and_clip(state: State, clip_norm: float | None, fabric: Fabric) -> torch.Tensor:
    """Bring gradients to their true size, clipped or not, so that what is injected next has the right weight.

    Returns their norm before clipping. Under fp16 an infinite one is the scaler's business: it skips the step and
    lowers the scale.
    """
    if clip_norm is None:
        fabric._precision.unscale_gradients(state.optimizer.optimizer)
        gradients = [parameter.grad for parameter in state.student.parameters() if parameter.grad is not None]
        total: torch.Tensor = nn.utils.get_total_norm(gradients)
        return total
    norm: torch.Tensor = fabric.clip_gradients(
        state.student, state.optimizer, max_norm=clip_norm, error_if_nonfinite=False
    )
    return norm


def _step(state: State) -> None:
    """Step the optimizer between the two halves of the regularizer; a step that fp16 skips pulls nothing."""
    if state.penalty is None:
        state.optimizer.step()
        return
    scale = state.scaler.get_scale() if state.scaler is not None else 1.0
    state.penalty.before_step()
    state.optimizer.step()
    if state.scaler is None or state.scaler.get_scale() >= scale:
        state.penalty.after_step(state.optimizer.param_groups[0]["lr"])


def _check_finite(value: torch.Tensor, name: str, step: int, ids: Iterable[str]) -> None:
    if not bool(torch.isfinite(value)):
        raise _blown_up(f"{name} is {float(value.detach())}", step, ids)


def _blown_up(what: str, step: int, ids: Iterable[str]) -> Stopped:
    return Stopped(
        f"{what} at step {step}, images {', '.join(sorted(set(ids)))}; "
        "the last good state is kept; lower train.lr or look at these images"
    )


def _handed_out(state: State) -> nn.Module:
    model: nn.Module = state.averaged.model if state.averaged is not None else state.student.module
    return model


def _look(state: State, run: RunConfig, out: Path, fabric: Fabric, judge: Judge, about: dict[str, Any]) -> None:
    """Judge the weights that would be handed out and keep the best; raises Stopped on every process alike."""
    why = ""
    if fabric.is_global_zero:
        facts = _about(state, run, about)
        handed, student = _handed_out(state), state.student.module
        seen = [Segmenter(model, run.model, run.predict, fabric.device, facts) for model in (handed, student)]
        modes = [(model, model.training) for model in (handed, student)]
        handed.eval(), student.eval()
        verdict = judge.look(seen[0], seen[1] if handed is not student else None, state.first)
        for model, was_training in modes:
            model.train(was_training)
        journal.append(out, state.step, verdict.numbers)
        state.first = state.first or verdict.numbers
        score = float(state.step) if verdict.score is None else verdict.score
        why = verdict.collapse
        if not why and score > bar(judge, state.best, state.best_step):
            state.best, state.best_step = score, state.step
            save_weights(out / WEIGHTS_NAME, handed, run.model, facts)
        elif not why and 0 < judge.patience * run.train.validate_every <= state.step - state.best_step:
            why = f"no better {judge.key} for {judge.patience} looks"
    why = fabric.broadcast(why)
    if why:
        raise Stopped(f"{why}, at step {state.step}")


def _about(state: State, run: RunConfig, about: dict[str, Any]) -> dict[str, Any]:
    """Facts that travel with the weights."""
    train = gather(run.data.train, weak=True) if run.data.train else []
    known = [record.diameter for record in train if record.diameter]
    diameter = float(np.median(known)) if known else about.get("diameter")
    facts = {"diameter": diameter, "step": state.step, "init": run.train.init}
    inherited = ("decoding", "scale_prior") if state.step == 0 else ("decoding",)
    return facts | {key: about[key] for key in inherited if key in about}


def _finish(state: State, run: RunConfig, out: Path, about: dict[str, Any], judge: Judge | None) -> None:
    if judge is None:
        save_weights(out / WEIGHTS_NAME, _handed_out(state), run.model, _about(state, run, about))
        state.best_step = state.step
    summary = {
        "steps": state.step,
        "chosen_step": state.best_step,
        "chosen_by": judge.by if judge is not None else "last step, no validation images",
        "val_f1": state.best if judge is not None and judge.key == VAL_F1 else None,
        "ms_per_step": float(np.median(state.ms)) if state.ms else None,
        **state.spent,
        "peak_mb": peak_mb(),
        "regularizer": run.train.regularizer.kind,
        "distance": state.penalty.distance() if state.penalty is not None else None,
        "distances": state.penalty.distances() if state.penalty is not None else None,
        "device": str(next(state.student.parameters()).device),
        "threads": torch.get_num_threads(),
        "seed": about["seed"],
        "made_with": describe(),
    }
    if judge is not None and judge.with_start:
        summary |= {"score": state.best if judge.key else None, "start_score": state.first.get(judge.key)}
        summary["stopped"] = state.stopped or None
        summary["decision"] = decision(judge, state.first, state.best, state.best_step, state.stopped)
    if torch.cuda.is_available():
        summary["gpu"] = torch.cuda.get_device_name()
    write_text(out / "summary.json", json.dumps(summary, indent=2))


def _numbers(state: State, parts: Parts) -> dict[str, float]:
    """Return what is logged: the parts of the loss, the distance from the start, the value of an active penalty."""
    numbers = {name: float(part) for name, part in parts.items()}
    if state.penalty is None:
        return numbers
    if isinstance(state.penalty, Penalty) and state.penalty.settings.is_active:
        with torch.no_grad():
            numbers["penalty"] = float(state.penalty())
    return numbers | {"distance": state.penalty.distance()}
