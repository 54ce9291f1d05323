"""Where a network runs, and in which numbers it computes there."""

from __future__ import annotations

import platform

import torch

from cellseg.core import CellsegError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name: ``auto`` takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, False):
        raise CellsegError(
            f"--device {name}: not available here; wanted one of auto, cpu, cuda, mps that this machine has"
        )
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise CellsegError where a device cannot compute in a precision of ``predict.precision``."""
    able = {"auto": True, "off": True, "bf16": device.type != "mps", "fp16": device.type != "cpu"}
    if not able[precision]:
        other = "fp16" if precision == "bf16" else "bf16"
        raise CellsegError(f"precision {precision}: not on device {device.type}; wanted one of auto, {other}, off")


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the numbers that convolutions compute with; None for float32, as ``auto`` wants where bf16 is slow."""
    if precision == "auto":
        return torch.bfloat16 if _has_bf16(device) else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def _has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 itself; others emulate that, which takes up to six times as long as float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        able = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if platform.machine().lower() in ("x86_64", "amd64"):  # there oneDNN says so of every AVX-512
            able = able and torch.cpu._is_avx512_bf16_supported()
    except AttributeError:  # a torch without oneDNN
        return False
    return bool(able)
