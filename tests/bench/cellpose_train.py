"""Train Cellpose's own network with its own trainer for a given processor time: for ``bench_inference_end_to_end.py``.

Runs in the environment of the peers (``make bench-env``) and needs nothing of cellseg::

    .venv-bench/bin/python tests/bench/cellpose_train.py IMAGES.json MINUTES WEIGHTS

``IMAGES.json`` lists pairs of an image and a label file. Everything but the number of steps is Cellpose's default,
except that nothing is rescaled. The trainer has no limit of time, so a few steps are timed first and the number of
steps follows. Reading images, normalising them and making targets is outside the clock. ``WEIGHTS.json`` says what
was spent.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from cellpose import dynamics, io
from cellpose import train as trainer
from cellpose.resnet_torch import CPnet

BATCH = 8
"""Images of a step, Cellpose's default; here also those of an "epoch", between which it changes the learning rate."""
TIMED = 4
CPU = torch.device("cpu")


def read(pairs: list[list[str]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read images, without an alpha channel, and targets ``(4, H, W)`` as Cellpose makes them."""
    images, labels = [], []
    for image, truth in pairs:
        pixels = io.imread(image)
        images.append(pixels[..., :3] if pixels.ndim == 3 else pixels)
        labels.append(io.imread(truth).astype(np.int32))
    return images, dynamics.labels_to_flows(labels, device=CPU)


class Clock:
    """Notes the processor time at which each batch is asked for."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.inner = trainer._get_batch

    def __call__(self, *arguments: object, **named: object) -> object:
        self.at.append(time.process_time())
        return self.inner(*arguments, **named)


def train(images: list, targets: list, steps: int, out: Path) -> list[float]:
    """Train from scratch; returns the processor time at the begin of each step and at the end."""
    clock = Clock()
    trainer._get_batch = clock
    torch.manual_seed(0)
    net = CPnet([2, 32, 64, 128, 256], 3, sz=3, diam_mean=30.0)
    with tempfile.TemporaryDirectory() as folder:
        found = trainer.train_seg(
            net, images, targets, channels=[0, 0], rescale=False, n_epochs=steps, nimg_per_epoch=BATCH,
            batch_size=BATCH, save_path=folder, model_name="w",
        )  # fmt: skip
        clock.at.append(time.process_time())
        out.write_bytes(Path(found[0]).read_bytes())
    trainer._get_batch = clock.inner
    return clock.at


def main() -> None:
    source, minutes, out = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    logging.disable(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pairs = json.loads(source.read_text())
    images, targets = read(pairs)
    few = [index for index, target in enumerate(targets) if target[0].max() >= trainer_least()][: 2 * BATCH]
    at = train([images[i] for i in few], [targets[i] for i in few], TIMED, out.with_suffix(".timed"))
    step_s = float(np.median(np.diff(at[1:])))
    steps = max(1, round(60 * minutes / step_s))
    print(f"cellpose: {len(images)} images, {step_s:.1f} s a step, {steps} steps", file=sys.stderr, flush=True)
    at = train(images, targets, steps, out.with_suffix(".part"))
    facts = {"steps": steps, "processor_minutes": (at[-1] - at[0]) / 60, "images": len(images)}
    out.with_suffix(".json").write_text(json.dumps(facts))
    out.with_suffix(".timed").unlink()
    out.with_suffix(".part").replace(out)


def trainer_least() -> int:
    """Return how many cells an image has at least that Cellpose trains on."""
    import inspect

    return int(inspect.signature(trainer.train_seg).parameters["min_train_masks"].default)


if __name__ == "__main__":
    main()
