"""Time and memory of `overlap` and `match` on synthetic pairs: ``python tests/bench/bench_metrics.py``."""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np

from cellseg.metrics import match, overlap

CASES = (
    ("300 cells 704x520", (520, 704), 300),
    ("3,000 cells 704x520", (520, 704), 3000),
    ("2,000 cells 2048x2048", (2048, 2048), 2000),
    ("40,000 cells 10,000x10,000", (10_000, 10_000), 40_000),
)


def disks(shape: tuple[int, int], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two int32 label images: `count` disks on a jittered grid, and the same ones shifted and resized a little."""
    rng = np.random.default_rng(seed)
    pitch = (shape[0] * shape[1] / count) ** 0.5
    rows, columns = int(np.ceil(shape[0] / pitch)), int(np.ceil(shape[1] / pitch))
    centres = np.stack(np.divmod(np.arange(rows * columns)[:count], columns), 1) * pitch + pitch / 2
    return tuple(
        draw(shape, centres + rng.normal(0, pitch * 0.05, centres.shape), pitch * rng.uniform(0.36, 0.44, count))
        for _ in range(2)
    )


def draw(shape: tuple[int, int], centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    for index, ((y, x), radius) in enumerate(zip(centres, radii, strict=True), 1):
        top, left = max(0, int(y - radius)), max(0, int(x - radius))
        block = labels[top : int(y + radius) + 2, left : int(x + radius) + 2]
        rows, columns = np.ogrid[top : top + block.shape[0], left : left + block.shape[1]]
        block[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = index
    return labels


def best_ms(call, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print("| pair | overlap ms | match .5 ms | match .5:.95 ms | neurips ms | peak MB beyond the arrays |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, shape, count in CASES:
        true, pred = disks(shape, count, seed=0)
        times = [
            best_ms(lambda: overlap(true, pred), repeats),  # noqa: B023
            best_ms(lambda: match(true, pred, (0.5,)), repeats),  # noqa: B023
            best_ms(lambda: match(true, pred), repeats),  # noqa: B023
            best_ms(lambda: match(true, pred, rule="neurips"), repeats),  # noqa: B023
        ]
        tracemalloc.start()
        match(true, pred)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        print(f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in times) + f" | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
