"""Rounds of pseudo-labels: every so many steps the teacher labels all unlabelled images anew, and these are learned.

What a round made lies in ``pseudo/round-<n>/`` of the run folder and is always learned from there, so that a run
that was interrupted goes on with the very same labels. At the first step of a round they are made, whatever lies
there; in the middle of one they must be there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric

from cellseg.batches import cache_share, loader
from cellseg.config import RunConfig
from cellseg.core import Record
from cellseg.datasets.crops import CropDataset, Crops
from cellseg.datasets.targets import Prepared
from cellseg.label_free.judging import Stopped, Watch
from cellseg.label_free.pseudo import Row, prepare_labelled, read_round, write_round
from cellseg.predict import Segmenter
from cellseg.state import State
from cellseg.train import place


class Rounds:
    """Batches of pseudo-labelled crops, strong views with the labels of the round that a step belongs to.

    Parameters
    ----------
    run : RunConfig
        ``adapt`` says how labels are made and how often.
    out : Path
        Run folder.
    records : sequence of Record
        The unlabelled images.
    start : Segmenter
        The starting model; what is known of its training goes with every teacher.
    fabric : Fabric
        The process that this is; the first one makes the labels.
    seed : int
        Of the crops.
    watch : (Watch, places), optional
        What watches some of the images, which are at these places of ``records``: it is told the cell sizes that a
        round found.
    """

    def __init__(
        self,
        run: RunConfig,
        out: Path,
        records: Sequence[Record],
        *,
        start: Segmenter,
        fabric: Fabric,
        seed: int,
        watch: tuple[Watch, Sequence[int]] | None = None,
    ) -> None:
        self.run, self.out, self.records, self.start = run, out, list(records), start
        self.fabric, self.seed, self.watch = fabric, seed, watch
        self.numbers: dict[str, float] = {}
        """What the round made, for the log: cells kept, and their share of the cells found."""
        self._number: int | None = None
        self._batch: Callable[[int], Crops] | None = None

    def batch(self, state: State, micro_step: int) -> Crops:
        """Return the crops of a micro-batch; at the first step of a round its labels are made before.

        Raises
        ------
        Stopped
            If not one cell of any image is kept.
        """
        since = state.step - first_taught(self.run)
        number = 0 if self.run.adapt.teacher == "frozen" else since // self.run.adapt.round_steps
        if number != self._number or self._batch is None:
            self._number, self._batch = number, self._open(number, state)
        return self._batch(micro_step)

    def _open(self, number: int, state: State) -> Callable[[int], Crops]:
        folder = self.out / "pseudo" / f"round-{number}"
        if state.step == first_taught(self.run) + number * self.run.adapt.round_steps:
            if self.fabric.is_global_zero:
                self._make(folder, number, state)
            self.fabric.barrier()
        rows = read_round(folder, self.records)
        cells = sum(row.kept for row in rows)
        self.numbers = {"pseudo_cells": float(cells), "pseudo_kept": cells / max(sum(row.seen for row in rows), 1)}
        if self.watch is not None:
            self.watch[0].diameters = [rows[place].diameter for place in self.watch[1]]
        kept = [(record, row) for record, row in zip(self.records, rows, strict=True) if row.kept]
        if not kept:
            raise Stopped(
                f"no cell in any of {len(rows)} unlabelled images is found in enough views to be learned from "
                f"(adapt.agreement = {self.run.adapt.agreement:g}), at step {state.step}"
            )
        return loader(self._crops(folder, *zip(*kept, strict=True)), self.run)

    def _make(self, folder: Path, number: int, state: State) -> None:
        teacher = state.averaged.model if state.averaged is not None else state.student.module
        if self.run.adapt.teacher == "frozen":
            teacher = self.start.model
        was_training = teacher.training
        segmenter = Segmenter(teacher.eval(), self.run.model, self.run.predict, self.fabric.device, self.start.about)
        write_round(folder, segmenter, self.records, self.run.adapt, f"round {number}: labelling images")
        teacher.train(was_training)

    def _crops(self, folder: Path, records: Sequence[Record], rows: Sequence[Row]) -> CropDataset:
        rank, world = place(self.fabric)
        return CropDataset(
            records,
            self.run.model,
            self.run.augment,
            diameters=[row.diameter for row in rows],
            shape=(self.run.adapt.batch_size, self.run.train.crop_size),
            seed=self.seed,
            labelled=False,
            rank=rank,
            world=world,
            cache_mb=cache_share(self.run),
            balance=self.run.data.balance,
            prepare=partial(_prepare, self.run, folder, records, rows),
        )


def first_taught(run: RunConfig) -> int:
    """Return the step from which unlabelled images are learned: 0 where there are no labelled ones to go first."""
    return round(run.adapt.labels_first * run.train.steps) if run.data.train else 0


def _prepare(run: RunConfig, folder: Path, records: Sequence[Record], rows: Sequence[Row], number: int) -> Prepared:
    return prepare_labelled(folder, records[number], rows[number], run.model)


def spot(records: Sequence[Record], chosen: Sequence[Record]) -> list[int]:
    """Return the places of the chosen records, themselves and not their equals, among all."""
    places = {id(record): number for number, record in enumerate(records)}
    return [places[id(record)] for record in chosen]
