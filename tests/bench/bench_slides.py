"""Time and peak memory of ``cellseg evaluate`` on a pair of slides: ``python tests/bench/bench_slides.py``.

Two tiled deflate TIFFs of uint32 labels are written (disks of 40 px radius on a grid of 100 px, the predicted ones
moved by up to 10 px), then scored by a process of its own, whose peak resident memory is read from the system.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

PITCH, RADIUS = 100, 40


def write_slide(path: Path, side: int, tile: int, shift: float) -> None:
    across = side // PITCH
    offsets = np.random.default_rng(0).uniform(-shift, shift, (2, across, across))

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, side, tile):
            for left in range(0, side, tile):
                yield draw_tile(top, left)

    def draw_tile(top: int, left: int) -> np.ndarray:
        labels = np.zeros((tile, tile), np.uint32)
        y, x = np.arange(top, top + tile)[:, None], np.arange(left, left + tile)[None]
        for row in range(max(0, top // PITCH - 1), min(across, (top + tile) // PITCH + 2)):
            for column in range(max(0, left // PITCH - 1), min(across, (left + tile) // PITCH + 2)):
                centre_y = (row + 0.5) * PITCH + offsets[0, row, column]
                centre_x = (column + 0.5) * PITCH + offsets[1, row, column]
                labels[(y - centre_y) ** 2 + (x - centre_x) ** 2 <= RADIUS**2] = row * across + column + 1
        return labels

    tifffile.imwrite(
        path, tiles(), shape=(side, side), dtype=np.uint32, tile=(tile, tile), compression="zlib",
        photometric="minisblack", metadata=None,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="Keep the slides here, and use those that are there.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name, tile, shift in (("truth", 512, 0.0), ("pred", 256, 10.0)):
            path = folder / name / "slide.tif"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_slide(path, arguments.side, tile, shift)
        print(f"{arguments.side} x {arguments.side} px, {(arguments.side // PITCH) ** 2} cells")
        print("| rule | seconds | peak resident MB (so far) |\n|---|--:|--:|")
        for rule in ("strict", "neurips"):
            command = [sys.executable, "-m", "cellseg.cli", "evaluate", folder / "truth", folder / "pred"]
            start = time.perf_counter()
            subprocess.run([*map(str, command), "--rule", rule], check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
            print(f"| {rule} | {seconds:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
