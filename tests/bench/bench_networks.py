"""Speed of every network on this machine: ``python tests/bench/bench_networks.py [--rounds N]``.

A training step is forward, loss, backward and AdamW on 8 crops of 256², inference is one 512² tile; both under
bfloat16 autocast in channels-last, as in ``cellseg train`` and ``predict``. Networks take turns in every round, so
that what else the machine does falls on all of them; the first round warms up and is not counted. Writes
``bench_networks.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import statistics
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from cellseg.config import ModelConfig
from cellseg.files import write_text
from cellseg.models.build import build_model
from cellseg.provenance import processor

BATCH, CROP, TILE = 8, 256, 512
RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
CONFIGS = {
    **{f"half_unet {size}": ModelConfig(size=size) for size in ("tiny", "small", "base")},
    "half_unet small, batch norm": ModelConfig(size="small", norm="batch"),
    **{f"unet {size}": ModelConfig(network="unet", size=size) for size in ("tiny", "small", "base")},
    "flexible_unet efficientnet-b0": ModelConfig(network="flexible_unet"),
    "flexible_unet resnet18": ModelConfig(network="flexible_unet", backbone="resnet18"),
}


@dataclass
class Runner:
    """One network, and the seconds of each of its turns."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    train_s: list[float] = field(default_factory=list)
    predict_s: list[float] = field(default_factory=list)

    def turn(self, images: torch.Tensor, tile: torch.Tensor) -> None:
        began = time.perf_counter()
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16):
            maps = self.model(images)
        functional.mse_loss(maps.float(), torch.zeros_like(maps, dtype=torch.float32)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        trained = time.perf_counter()
        self.model.eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            self.model(tile)
        self.train_s.append(trained - began)
        self.predict_s.append(time.perf_counter() - trained)

    def row(self) -> dict[str, str]:
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        return {
            "network": self.name,
            "parameters_m": f"{millions:.2f}",
            "train_img_per_s": f"{BATCH / statistics.median(self.train_s[1:]):.1f}",
            "train_img_per_s_best": f"{BATCH / min(self.train_s[1:]):.1f}",
            "inference_mpx_per_s": f"{TILE * TILE / 1e6 / statistics.median(self.predict_s[1:]):.2f}",
            "inference_mpx_per_s_best": f"{TILE * TILE / 1e6 / min(self.predict_s[1:]):.2f}",
        }


def runner(name: str) -> Runner:
    torch.manual_seed(0)
    model = build_model(CONFIGS[name])
    return Runner(name, model, torch.optim.AdamW(model.parameters(), lr=1e-3))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training and inference speed of every network.")
    parser.add_argument("--rounds", type=int, default=7, help="turns each network takes after the warm-up")
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of bench_networks.csv and .md")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    before = os.getloadavg()[0]
    runners = [runner(name) for name in CONFIGS]
    images = torch.rand(BATCH, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    tile = torch.rand(1, 3, TILE, TILE).contiguous(memory_format=torch.channels_last)
    for _ in range(arguments.rounds + 1):
        for each in runners:
            each.turn(images, tile)
    load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
    facts = {
        "rounds": str(arguments.rounds),
        "torch": torch.__version__,
        "cpu": processor(),
        "threads": str(torch.get_num_threads()),
        "load": load,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    write([each.row() for each in runners], facts, arguments.out)


def write(rows: list[dict[str, str]], facts: dict[str, str], out: Path) -> None:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, [*rows[0], *facts], lineterminator="\n")
    table.writeheader()
    table.writerows({**row, **facts} for row in rows)
    write_text(out / "bench_networks.csv", buffer.getvalue())
    lines = [
        f"Medians of {facts['rounds']} alternating rounds (best round in brackets): training on {BATCH} crops of "
        f"{CROP}², inference on a {TILE}² tile, bfloat16, channels-last.",
        f"PyTorch {facts['torch']}, {facts['cpu']}, {facts['threads']} threads, load average {facts['load']}, "
        f"{facts['date']}; made by `make bench-networks`.",
        "",
        "| network | parameters (M) | training (images/s) | inference (Mpx/s) |",
        "|---|--:|--:|--:|",
        *(
            f"| {row['network']} | {row['parameters_m']} | {row['train_img_per_s']} ({row['train_img_per_s_best']}) "
            f"| {row['inference_mpx_per_s']} ({row['inference_mpx_per_s_best']}) |"
            for row in rows
        ),
    ]
    text = "\n".join(lines) + "\n"
    write_text(out / "bench_networks.md", text)
    print(text, end="")


if __name__ == "__main__":
    main()
