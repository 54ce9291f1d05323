"""Whole images to cells, one tool a process: driven by ``bench_inference_end_to_end.py``.

``state["image"]`` is a raw image, ``(H, W)`` or ``(H, W, 3)``, as ``.npy``; ``state["model"]`` says which weights each
tool uses. Reading the image and loading the model are outside the clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from turns_worker import Parts, serve

THREADS = int(os.environ.get("BENCH_THREADS", "1"))


def read(state: dict) -> np.ndarray:
    if "pixels" not in state:
        state["pixels"] = np.load(state["image"])
    return state["pixels"]


def ready(state: dict, model: Callable[[], object]) -> Callable[[], bool]:
    return lambda: read(state) is not None and model() is not None


def cellseg(state: dict) -> Parts:
    """``cellseg.load(model).segment(image)``: at the image's own scale, and with its search for the scale."""
    import cv2
    import torch

    from cellseg import load

    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)

    @lru_cache(maxsize=1)
    def model() -> object:
        return load(state["model"]["cellseg"], device="cpu")

    return {
        "prepare": ready(state, model),
        "own scale": lambda: model().segment(read(state), diameter=model().config.reference_diameter),
        "scale found": lambda: model().segment(read(state)),
    }


def cellpose(state: dict) -> Parts:
    """``CellposeModel.eval`` at the image's own scale, everything else as it is by default."""
    import logging

    import torch
    from cellpose import models

    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)

    @lru_cache(maxsize=1)
    def model() -> object:
        return models.CellposeModel(gpu=False, pretrained_model=state["model"]["cellpose"])

    return {
        "prepare": ready(state, model),
        "own scale": lambda: model().eval(read(state), channels=[0, 0], rescale=1.0)[0],
    }


if __name__ == "__main__":
    serve({"cellseg": ("cellseg", cellseg), "cellpose": ("cellpose", cellpose)})
