"""Time and memory of reading and rasterising COCO annotations: ``python tests/bench/bench_data.py``.

Writes an annotation file of LIVECell's train size (333,600 polygons, about 250 MB), reads it in a fresh process, and
exits with status 1 if that takes more than 1 s or 500 MB. Rasterising is timed on random cells of one image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LIMIT_S, LIMIT_MB = 1.0, 500.0
IMAGES, CELLS_PER_IMAGE, POINTS = 3336, 100, 46

READ = """
import sys, time
from cellseg.datasets.coco import read_coco
before = time.perf_counter()
file = read_coco(sys.argv[1])
time_s = time.perf_counter() - before
status = open("/proc/self/status").read()
peak_kb = int(status.split("VmHWM:")[1].split()[0])
print(time_s, peak_kb / 1e3, len(file.images), sum(map(len, file.annotations.values())))
"""


def cells(rng: np.random.Generator, count: int) -> list[list[float]]:
    """Star-shaped polygons of about 16 px radius within 704 x 520, two decimals as in LIVECell."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, (count, POINTS)))
    radius = 16 * rng.uniform(0.8, 1.1, (count, POINTS))
    centre = rng.uniform([20, 20], [684, 500], (count, 1, 2))
    points = centre + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.round(points, 2).reshape(count, -1).tolist()


def write_annotations(path: Path, as_dict: bool) -> None:
    """Write the file image by image, so that this process stays small."""
    rng = np.random.default_rng(0)
    first = 100_000
    images = [
        {"id": first + 1000 * i, "width": 704, "height": 520, "file_name": f"A172_Phase_A1_1_00d00h00m_{i}.tif"}
        for i in range(IMAGES)
    ]
    with path.open("w") as out:
        out.write(f'{{"info": {{}}, "images": {json.dumps(images)}, "annotations": {"{" if as_dict else "["}')
        for number, image in enumerate(images):
            rows = []
            for offset, polygon in enumerate(cells(rng, CELLS_PER_IMAGE), 1):
                name = image["id"] + offset
                row = {"id": name, "image_id": image["id"], "category_id": 1, "segmentation": [polygon]}
                text = json.dumps(row | {"area": 804.25, "bbox": [1.0, 2.0, 32.0, 32.0], "iscrowd": 0})
                rows.append(f'"{name}": {text}' if as_dict else text)
            out.write((", " if number else "") + ", ".join(rows))
        out.write("}}" if as_dict else "]}")


def measure_reading(folder: Path, as_dict: bool) -> bool:
    """Print the figures of one form of the file; tell whether they are within the limits."""
    path = folder / "livecell_coco_train.json"
    write_annotations(path, as_dict)
    command = [sys.executable, "-c", READ, str(path)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(3)]
    time_s, peak_mb = min(float(r[0]) for r in runs), max(float(r[1]) for r in runs)
    form, size_mb = "dict" if as_dict else "list", path.stat().st_size / 1e6
    print(f"read {form}: {size_mb:.0f} MB, {runs[0][3]} annotations: {time_s:.2f} s, peak {peak_mb:.0f} MB")
    return time_s <= LIMIT_S and peak_mb <= LIMIT_MB


def measure_rasterising() -> None:
    """Print milliseconds an image for 300 and 3,000 cells, own path against full frames."""
    from pycocotools import mask

    from cellseg.datasets.coco import paint, rasterise, run_pixels

    for count in (300, 3000):
        instances = [[polygon] for polygon in cells(np.random.default_rng(1), count)]
        timed = {
            "runs": lambda cells=instances: run_pixels(rasterise(cells, 520, 704)),
            "paint (all of it)": lambda cells=instances: paint(cells, 520, 704),
            "full frames": lambda cells=instances: [mask.decode(mask.frPyObjects(c, 520, 704)) for c in cells],
        }
        for name, run in timed.items():
            before = time.perf_counter()
            run()
            print(f"rasterise {count} cells, {name}: {1e3 * (time.perf_counter() - before):.1f} ms")


def main() -> int:
    """Run both measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the 250 MB file goes for a moment; a temporary folder")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        passed = [measure_reading(Path(folder), as_dict) for as_dict in (False, True)]
    measure_rasterising()
    print("within" if all(passed) else "OVER", f"the limits of {LIMIT_S} s and {LIMIT_MB:.0f} MB")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
