"""Which weights a run hands out: a judge looks at them now and then, and the best it saw are kept.

:class:`Validation` has labels to score against. :class:`Watch` has none: it computes the label-free criteria on a
few images, lets the start compete, and notices when a network collapses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from cellseg.batches import gather, told_diameters
from cellseg.config import RunConfig
from cellseg.core import CellsegError, Image, Record
from cellseg.images import read_image, read_labels
from cellseg.label_free.criteria import CRITERIA, Findings, Shown, count_cells, measure
from cellseg.metrics import match
from cellseg.predict import Segmenter

VAL_F1 = "val_f1"

MOST_GIANTS = 0.5
"""A network has collapsed when one giant cell fills more than this share of the images watched."""

LEAST_AGREEMENT = 0.5
"""A network has collapsed when the cells it finds in flipped images agree less than this share of what they did at the
start: weights that have blown up draw shapes that are consistent in themselves, but no two alike."""


class Stopped(CellsegError):
    """A run cannot go on or has no reason to; the message says why and at which step."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of weights.

    Attributes
    ----------
    numbers : dict of str to float
        For the log.
    score : float or None
        Larger is better; None where later is better.
    collapse : str
        Why these weights are of no use; empty where they are.
    """

    numbers: dict[str, float]
    score: float | None
    collapse: str = ""


class Judge(Protocol):
    """What decides which weights are handed out."""

    by: str
    """What decides, in words."""
    key: str
    """Which of a verdict's numbers is the score; empty where later is better."""
    patience: int
    """Looks without better weights until a run stops; 0 never stops it."""
    with_start: bool
    """Whether the start competes and is what remains when the run collapses."""
    least_gain: float
    """Share of what the start's score lacks of 1 that must be gained before the start is given up."""

    def look(self, segmenter: Segmenter, student: Segmenter | None, first: Mapping[str, float]) -> Verdict:
        """Judge weights.

        Parameters
        ----------
        segmenter : Segmenter
            With the weights that would be handed out.
        student : Segmenter or None
            With the weights that learn, where those are others.
        first : mapping of str to float
            The numbers of the first look of the run; empty at the first look.
        """


@dataclass
class Validation:
    """Mean F1 at IoU 0.5 on labelled images, at the diameters given; where one is None, as ``predict`` finds it."""

    records: Sequence[Record]
    diameters: Sequence[float | None]
    by: str = "validation F1"
    key: str = VAL_F1
    patience: int = 0
    with_start: bool = False
    least_gain: float = 0.0

    def look(self, segmenter: Segmenter, student: Segmenter | None, first: Mapping[str, float]) -> Verdict:
        """Score the labelled images; an empty image in which nothing is found scores 1."""
        scores = []
        for record, diameter in zip(self.records, self.diameters, strict=True):
            if record.labels is None:
                continue
            labels = segmenter.segment(read_image(record.image), diameter=diameter)
            f1 = match(read_labels(record.labels), labels, thresholds=(0.5,))[0].f1
            scores.append(1.0 if math.isnan(f1) else f1)
        score = float(np.mean(scores))
        return Verdict({VAL_F1: score}, score)


def validation_of(run: RunConfig) -> Validation | None:
    """Return the judge of a run's validation images, shown at the diameter at which ``evaluate`` shows their index."""
    if not run.data.val:
        return None
    records = gather(run.data.val)
    return Validation(records, told_diameters(records, run.data.val, run.predict.diameter))


@dataclass
class Watch:
    """The label-free criteria on a few images, beside the validation F1 where there is one.

    Attributes
    ----------
    images : list of float32 (H, W, 3)
        Normalised.
    diameters : list of float or None
        Of their cells in pixels; a round of pseudo-labels brings its own.
    key : str
        The criterion that decides, ``val_f1``, or empty for the last step.
    patience : int
        As for :class:`Judge`.
    validation : Validation or None
        Labelled images.
    least_gain : float
        As for :class:`Judge`, where a label-free criterion decides: whatever learns from itself grows a little surer of
        itself, also where there is nothing to gain.
    """

    images: Sequence[Image]
    diameters: Sequence[float | None]
    key: str
    patience: int
    validation: Validation | None = None
    least_gain: float = 0.0
    with_start: bool = True
    by: str = field(init=False)

    def __post_init__(self) -> None:
        plural = "image" if len(self.images) == 1 else "images"
        label_free = f"criterion {self.key} on {len(self.images)} unlabelled {plural}"
        self.by = {VAL_F1: "validation F1", "": "last step"}.get(self.key, label_free)
        self.least_gain = self.least_gain if self.key in CRITERIA else 0.0

    def look(self, segmenter: Segmenter, student: Segmenter | None, first: Mapping[str, float]) -> Verdict:
        """Compute the criteria; collapse is no cells, giant ones only, or other ones in every view."""
        if not all(bool(torch.isfinite(value).all()) for value in segmenter.model.state_dict().values()):
            return Verdict({}, None, "collapse: the weights are not finite")
        shown: list[Shown] = list(zip(self.images, self.diameters, strict=True))
        found = measure(segmenter, shown)
        numbers = found.values | {"cells": float(found.cells), "giants": found.giants}
        if student is not None:
            numbers["student_cells"] = float(count_cells(student, shown))
        if self.validation is not None:
            numbers |= self.validation.look(segmenter, None, {}).numbers
        return Verdict(numbers, numbers[self.key] if self.key else None, _collapse(found, first))


def _collapse(found: Findings, first: Mapping[str, float]) -> str:
    if found.cells == 0 and first.get("cells", 0) > 0:
        return f"collapse: no cells in the images watched, where the start found {first['cells']:.0f}"
    if found.giants > MOST_GIANTS >= first.get("giants", 1):
        return f"collapse: one giant cell in {100 * found.giants:.0f} % of the images watched"
    flips = found.values["flips"]
    if flips < LEAST_AGREEMENT * first.get("flips", 0):
        return f"collapse: flipped images show other cells (agreement {flips:.2f}, {first['flips']:.2f} at the start)"
    return ""


def bar(judge: Judge, best: float, best_step: int) -> float:
    """Return what a score must exceed: the best so far, for the start (step 0) raised by :attr:`Judge.least_gain`."""
    is_start = best_step == 0 and math.isfinite(best)
    return best + judge.least_gain * (1 - best) if is_start else best


def decision(judge: Judge, first: Mapping[str, float], best: float, best_step: int, stopped: str) -> str:
    """Say in a sentence which weights are handed out and why."""
    if best_step == 0:
        value = f"{judge.key} {first[judge.key]:.3f}" if judge.key else "nothing later was usable"
        value += f", and above {bar(judge, first[judge.key], 0):.3f} was asked" if judge.least_gain else ""
        text = f"no improvement found: the start was kept ({value})"
    elif not judge.key:
        text = f"the weights of step {best_step}, the last that were usable, are handed out"
    else:
        text = f"the weights of step {best_step} are handed out: {judge.key} {best:.3f}, {first[judge.key]:.3f} before"
    return f"{text}; stopped early: {stopped}" if stopped else text
