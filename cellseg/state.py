"""What changes while a run trains, and how it is kept so that a run which died goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cellseg.core import CellsegError
from cellseg.models.teacher import EmaTeacher
from cellseg.regularizers import SPD, Penalty

LEAST_SCALE = 1e-4
"""Under fp16 a smaller loss scale means that no gradient is finite at any scale (fairseq's ``min-loss-scale``)."""


@dataclass
class State:
    """Everything that changes while training; the one mutable thing."""

    student: Any
    optimizer: Any
    averaged: EmaTeacher | None
    penalty: Penalty | SPD | None
    scaler: Any = None
    """Under fp16: what scales the loss."""
    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    first: dict[str, float] = field(default_factory=dict)
    """What the judge found at its first look."""
    stopped: str = ""
    """Why the run ended before its last step."""
    seen: Sequence[str] = ()
    """Ids of the images of the last update."""
    ms: list[float] = field(default_factory=list)
    """Milliseconds of every update since the start or the last resume."""
    spent: dict[str, float] = field(default_factory=lambda: {"minutes": 0.0, "processor_minutes": 0.0})
    """Time of all updates of the run, whatever was interrupted between them."""


def snapshot(state: State) -> dict[str, Any]:
    """Return everything a resumed run needs, as tensors and plain values."""
    return {
        "step": state.step,
        "best": state.best,
        "best_step": state.best_step,
        "first": state.first,
        "spent": state.spent,
        "student": state.student.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "averaged": state.averaged.state_dict() if state.averaged is not None else {},
        "anchor": state.penalty.state_dict() if state.penalty is not None else {},
        "scaler": state.scaler.state_dict() if state.scaler is not None else {},
    }


def restore(state: State, saved: dict[str, Any]) -> None:
    """Fill a state from :func:`snapshot`; the anchor is loaded, never taken from the student."""
    try:
        state.student.module.load_state_dict(saved["student"])
        state.optimizer.load_state_dict(saved["optimizer"])
        if state.averaged is not None:
            state.averaged.load_state_dict(saved["averaged"])
        if state.penalty is not None:
            state.penalty.load_state_dict(saved["anchor"])
        if state.scaler is not None and saved.get("scaler"):
            state.scaler.load_state_dict(saved["scaler"])
        state.step, state.best, state.best_step = saved["step"], saved["best"], saved["best_step"]
    except (KeyError, RuntimeError, ValueError) as error:
        raise CellsegError("the saved state is of another configuration; start without --resume") from error
    state.spent, state.first = saved.get("spent", state.spent), saved.get("first", {})


def flaw(state: State) -> str:
    """Say what of the weights, or of their average, is not finite; empty where all is well."""
    models = {"weights": state.student.module}
    if state.averaged is not None:
        models["averaged weights"] = state.averaged.model
    for what, model in models.items():
        name = next((name for name, value in _floats(model.state_dict()) if not torch.isfinite(value).all()), "")
        if name:
            return f"'{name}' of the {what} is not finite"
    return ""


def _floats(tensors: dict[str, torch.Tensor]) -> Iterable[tuple[str, torch.Tensor]]:
    return ((name, value) for name, value in tensors.items() if value.is_floating_point())
