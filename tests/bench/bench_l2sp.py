"""What a penalty costs a training step: ``python tests/bench/bench_l2sp.py [--rounds N] [--threads N]``.

A step is forward, loss, backward and AdamW in float32 on 2 crops of 64² with MONAI's U-Net of 26 million weights in 97
tensors. All variants share one network, one anchor and one optimizer and take turns in every round, in an order that
turns too, so that what else the machine does falls on all of them. ``extra`` is the median of the differences to the
plain step of the same round; ``call`` is the penalty's own work timed alone, the backward pass of a value included.
``peak`` is how far a step's highest resident memory lies above that of the plain one (Linux; the anchor, which all
variants hold, is stated apart). Writes ``bench_l2sp.csv`` and ``.md``; ends with status 1 when the injected gradient
takes more than 6 % of a step or more than 5 MB.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from monai.networks.nets import UNet
from torch import nn
from torch.nn import functional

from cellseg.files import write_text
from cellseg.provenance import describe
from cellseg.regularizer_config import RegularizerConfig
from cellseg.regularizers import L2SP, SPD, Penalty

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
ALPHA, LR = 0.01, 1e-4
SHARE_LIMIT, MB_LIMIT = 0.06, 5.0


@dataclass
class Variant:
    """Where a penalty enters a step, and what its turns took."""

    name: str
    value: Callable[[], torch.Tensor] | None = None
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    step_s: list[float] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


@dataclass
class Bench:
    """The network that all variants train in turns."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: torch.Tensor

    def turn(self, variant: Variant) -> None:
        """Take one step, then time the penalty's part of it once more, alone."""
        reset_peak()
        began = time.perf_counter()
        maps = self.model(self.images)
        loss = functional.mse_loss(maps, torch.zeros_like(maps))
        (loss if variant.value is None else loss + variant.value()).backward()
        variant.before()
        self.optimizer.step()
        variant.after()
        variant.step_s.append(time.perf_counter() - began)
        variant.peak_mb.append(peak_mb())
        began = time.perf_counter()
        if variant.value is not None:
            variant.value().backward()
        variant.before()
        variant.after()
        variant.call_s.append(time.perf_counter() - began)
        self.optimizer.zero_grad(set_to_none=True)


def reset_peak() -> None:
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="ascii")


def peak_mb() -> float:
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def make() -> tuple[Bench, list[Variant], float]:
    """Build the network, every variant, and say what the anchor takes in MB."""
    torch.manual_seed(0)
    words = {"norm": ("instance", {"affine": True}), "num_res_units": 2, "strides": (2, 2, 2, 2)}
    model = UNet(2, in_channels=3, out_channels=3, channels=(64, 128, 256, 512, 1024), **words)
    l2sp = L2SP(model, ALPHA)
    anchors = dict(zip((name for name, _ in model.named_parameters()), l2sp.anchors, strict=True))
    anchor_mb = sum(anchor.numel() * anchor.element_size() for anchor in anchors.values()) / 2**20
    l1sp, spd = (
        cls(model, RegularizerConfig(kind=kind, alpha=ALPHA)) for cls, kind in ((Penalty, "l1sp"), (SPD, "spd"))
    )
    for other in (l1sp, spd):  # one anchor in memory for all
        for index, anchor in enumerate(anchors.values()):
            other.register_buffer(f"anchor_{index}", anchor)

    def naive() -> torch.Tensor:
        total = torch.zeros(())
        for name, parameter in model.named_parameters():
            total = total + ALPHA * ((parameter - anchors[name]) ** 2).sum()
        return total

    variants = [
        Variant("plain step"),
        Variant("L2-SP, Python loop in the loss", value=naive),
        Variant("L2-SP, value in the loss", value=l2sp),
        Variant("**L2-SP, gradient injected**", before=l2sp.add_grad_),
        Variant("L2-SP, decoupled pull", after=lambda: l2sp.pull_(LR)),
        Variant("L1-SP, gradient injected", before=l1sp.add_grad_),
        Variant("SPD", before=spd.before_step, after=lambda: spd.after_step(LR)),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    return Bench(model, optimizer, torch.rand(2, 3, 64, 64)), variants, anchor_mb


def summarise(variants: list[Variant]) -> list[dict[str, str]]:
    """Medians of every variant; the first round, in which memory is claimed, is left out."""
    plain = variants[0]
    step = statistics.median(plain.step_s[1:])
    rows = []
    for variant in variants:
        extra = statistics.median(a - b for a, b in zip(variant.step_s[1:], plain.step_s[1:], strict=True))
        peak = statistics.median(a - b for a, b in zip(variant.peak_mb[1:], plain.peak_mb[1:], strict=True))
        call = statistics.median(variant.call_s[1:])
        rows.append(
            {
                "variant": variant.name,
                "step_ms": f"{1e3 * statistics.median(variant.step_s[1:]):.1f}",
                "extra_percent": f"{100 * extra / step:.1f}",
                "call_ms": f"{1e3 * call:.1f}",
                "call_percent": f"{100 * call / step:.1f}",
                "peak_mb": f"{round(peak)}",
            }
        )
    return rows


def write(rows: list[dict[str, str]], facts: dict[str, str], out: Path) -> None:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, [*rows[0], *facts], lineterminator="\n")
    table.writeheader()
    table.writerows({**row, **facts} for row in rows)
    write_text(out / "bench_l2sp.csv", buffer.getvalue().replace("**", ""))
    lines = [
        f"What a penalty costs a training step: MONAI's U-Net of {facts['parameters']} weights in {facts['tensors']} "
        "tensors, 2 crops of 64²,",
        f"float32, AdamW. The anchor takes {facts['anchor_mb']} MB; `peak` is memory beyond it. `extra` is the median "
        "difference to the plain",
        "step of the same round, `call` the penalty's own work timed alone; percentages are of the plain step.",
        "",
        "| variant | step (ms) | extra (%) | call (ms) | call (%) | peak (MB) |",
        "|---|--:|--:|--:|--:|--:|",
        *(f"| {' | '.join(row.values())} |" for row in rows),
        "",
        f"Medians of {facts['rounds']} alternating rounds, {facts['threads']} threads, load average {facts['load']}, "
        f"PyTorch {facts['torch']}, MONAI {facts['monai']}, {facts['cpu']}, revision {facts['revision']}, "
        f"{facts['date']}; made by `make bench-l2sp`.",
    ]
    text = "\n".join(lines) + "\n"
    write_text(out / "bench_l2sp.md", text)
    print(text, end="")


def main() -> int:
    """Measure, write, and compare with the limits."""
    parser = argparse.ArgumentParser(description="Measure what a penalty costs a training step.")
    parser.add_argument("--rounds", type=int, default=15, help="turns each variant takes after the warm-up")
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of bench_l2sp.csv and .md")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    before = os.getloadavg()[0]
    bench, variants, anchor_mb = make()
    for number in range(arguments.rounds + 1):
        shift = number % len(variants)
        for variant in variants[shift:] + variants[:shift]:
            bench.turn(variant)
    rows = summarise(variants)
    facts = describe() | {
        "rounds": str(arguments.rounds),
        "threads": str(torch.get_num_threads()),
        "load": f"{before:.1f} to {os.getloadavg()[0]:.1f}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "parameters": f"{sum(parameter.numel() for parameter in bench.model.parameters()):,}",
        "tensors": str(len(list(bench.model.parameters()))),
        "anchor_mb": f"{anchor_mb:.0f}",
    }
    write(rows, facts, arguments.out)
    injected = next(row for row in rows if "L2-SP, gradient injected" in row["variant"])
    over = float(injected["call_percent"]) > 100 * SHARE_LIMIT or float(injected["peak_mb"]) > MB_LIMIT
    print("OVER" if over else "within", f"the limits of {SHARE_LIMIT:.0%} of a step and {MB_LIMIT:.0f} MB")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
