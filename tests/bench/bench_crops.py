"""Memory and time of training crops from slides: ``python tests/bench/bench_crops.py``.

Writes a synthetic training set with a labelled slide of 8,000 x 10,000 pixels (and an unlabelled one), prepares it, and
draws batches from the slides in a fresh process. Exits with status 1 if that takes more than 1 GB beyond what the
process needs before the first batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from cellseg.config import AugmentConfig, ModelConfig
from cellseg.datasets.index import read_index

LIMIT_MB = 1000.0
SLIDE = (8000, 10_000)
BATCHES, SHAPE = 200, (4, 256)


def memory_mb() -> float:
    """Memory that this process holds now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


def write(folder: Path) -> None:
    """Write the set and prepare it."""
    from cellseg.datasets.neurips import prepare_neurips
    from cellseg.datasets.synthetic_neurips import write_synthetic_neurips

    write_synthetic_neurips(folder / "in", n_train=2, n_weak=0, n_tuning=0, n_test=0, n_unlabelled=0, slide=SLIDE)
    shutil.rmtree(folder / "in" / "Testing")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    prepare_neurips(folder / "in", folder / "out", dataset="synthetic_neurips")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"prepare: {time.perf_counter() - started:.1f} s, peak {max(before, after) / 1e3:.0f} MB with the writing")


def draw(folder: Path, labelled: bool) -> None:
    """Draw the batches, watching the memory; exit with status 1 if it grows too much."""
    import cv2

    from cellseg.datasets.crops import CropDataset

    cv2.setNumThreads(1)
    slides = [r for r in read_index(folder / "out") if r.height == SLIDE[0] and (r.has_labels or not labelled)]
    diameters = [record.diameter for record in slides]
    crops = CropDataset(
        slides, ModelConfig(), AugmentConfig(), diameters=diameters, shape=SHAPE, seed=0, labelled=labelled
    )
    before, seen, done = memory_mb(), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    crops[0]
    first, started = time.perf_counter() - started, time.perf_counter()
    for step in range(1, BATCHES):
        crops[step]
    each = 1e3 * (time.perf_counter() - started) / (BATCHES - 1)
    done.set()
    watcher.join()
    growth = max(seen) - before
    print(
        f"{'labelled' if labelled else 'unlabelled'}: {len(slides)} slide(s), {BATCHES} batches of {SHAPE[0]} crops of "
        f"{SHAPE[1]} px: memory grows by {growth:.0f} MB from {before:.0f} MB; "
        f"first batch {first:.1f} s, then {each:.0f} ms"
    )
    sys.exit(growth > LIMIT_MB)


def main() -> int:
    """Write, prepare and draw, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the set goes for a moment (0.6 GB); a temporary folder")
    context = multiprocessing.get_context("spawn")
    failed = 0
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        for work, rest in ((write, ()), (draw, (True,)), (draw, (False,))):
            process = context.Process(target=work, args=(Path(folder), *rest))
            process.start()
            process.join()
            failed += process.exitcode != 0
    print("OVER" if failed else "within", f"the limit of {LIMIT_MB:.0f} MB")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
