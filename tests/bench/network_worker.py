"""Networks with random weights, one a process: driven by ``bench_inference_networks.py``.

``state["shape"]`` is the size of the image. "in one piece" is the network alone on all of it, "as predicted" what the
tool does of itself with a normalised image: windows, batches, blending. Memory is what that needs at most beyond the
process with its model loaded, the first time it is asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from turns_worker import Parts, serve

THREADS = int(os.environ.get("BENCH_THREADS", "1"))
NETWORKS: dict[str, dict] = {
    "half_unet tiny": {"size": "tiny"},
    "half_unet small": {"size": "small"},
    "half_unet base": {"size": "base"},
    "unet small": {"network": "unet", "size": "small"},
    "flexible_unet efficientnet-b0": {"network": "flexible_unet"},
}


def pixels(state: dict, channels: int) -> np.ndarray:
    """Return the image, made once: outside the clock, as every part is called once before it is timed."""
    if "pixels" not in state:
        state["pixels"] = np.random.default_rng(0).random((*state["shape"], channels), np.float32)
    return state["pixels"]


def megabytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak(state: dict, call: Callable[[], object]) -> Callable[[], list[float]]:
    def measure() -> list[float]:
        if "peak" not in state:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            before = megabytes("VmRSS")
            call()
            state["peak"] = [megabytes("VmHWM") - before]
        return state["peak"]

    return measure


def ours(name: str) -> Callable[[dict], Parts]:
    def make(state: dict) -> Parts:
        import torch

        from cellseg.config import ModelConfig, PredictConfig
        from cellseg.models.build import build_model
        from cellseg.predict import Segmenter

        torch.set_num_threads(THREADS)
        torch.manual_seed(0)
        config = ModelConfig(**NETWORKS[name])
        segmenter = Segmenter(build_model(config).eval(), config, PredictConfig(), torch.device("cpu"), {})

        def whole() -> None:
            given = torch.from_numpy(pixels(state, 3)).permute(2, 0, 1)[None]
            x = torch.empty(given.shape, memory_format=torch.channels_last).copy_(given)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                segmenter.model(x)

        def predicted() -> None:
            segmenter.maps(pixels(state, 3))

        return parts_of(state, whole, predicted, segmenter.n_parameters)

    return make


def cellpose(state: dict) -> Parts:
    import logging

    import torch
    from cellpose import core, models

    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    net = models.CellposeModel(gpu=False).net.eval()

    def whole() -> None:
        core._forward(net, pixels(state, 2).transpose(2, 0, 1)[None])

    def predicted() -> None:
        core.run_net(net, pixels(state, 2)[None])

    return parts_of(state, whole, predicted, sum(parameter.numel() for parameter in net.parameters()))


def parts_of(state: dict, whole: Callable, predicted: Callable, parameters: int) -> Parts:
    """List the parts; memory is first, while the process has asked for no more than its model."""
    return {
        "memory": peak(state, predicted),
        "parameters": lambda: [parameters],
        "in one piece": whole,
        "as predicted": predicted,
    }


METHODS = {name: ("cellseg", ours(name)) for name in NETWORKS} | {"cellpose": ("cellpose", cellpose)}

if __name__ == "__main__":
    serve(METHODS)
