"""One way of matching in a process of its own: ``python tests/bench/match_worker.py METHOD``.

Driven by ``bench_metrics.py`` through lines of JSON: ``load`` opens a pair of label images, ``settle`` readies the
allocator, ``time`` matches the pair, ``memory`` tells the growth of the peak of resident memory. Needs nothing of
cellseg but for the method ``cellseg``, so that it runs in the environment of the peers.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version

import numpy as np

LIMIT_BYTES = 9 * 2**30
"""Address space of a worker, so that a table too large for an ordinary machine is a MemoryError."""


def read():
    """Read both arrays once; nothing is matched."""
    return lambda true, pred, thresholds: [int(true.max()), int(pred.max())][:0]


def cellseg():
    import scipy.sparse  # noqa: F401 - the library that large tables load, which is no memory of the call

    from cellseg.metrics import match

    return lambda true, pred, thresholds: [counts.tp for counts in match(true, pred, thresholds)]


def cellpose():
    from cellpose.metrics import average_precision

    np.seterr(invalid="ignore")  # 0 / 0 of background with itself, which it replaces
    return lambda true, pred, thresholds: average_precision(true, pred, list(thresholds))[1].astype(int).tolist()


def stardist():
    from stardist.matching import matching

    return lambda true, pred, thresholds: [found.tp for found in matching(true, pred, tuple(thresholds))]


def organisers():
    """The NeurIPS 2022 challenge's way, told again: relabel, dense overlap, Hungarian; one threshold a call.

    Its removal of cells at the border is left out, so that all methods answer the same question.
    """
    from numba import njit
    from scipy.optimize import linear_sum_assignment
    from skimage.segmentation import relabel_sequential

    @njit
    def add(table, rows, columns):
        for index in range(rows.size):
            table[rows[index], columns[index]] += 1

    def true_positives(true, pred, threshold):
        true, pred = relabel_sequential(true)[0], relabel_sequential(pred)[0]
        table = np.zeros((true.max() + 1, pred.max() + 1), np.uint64)
        add(table, true.ravel(), pred.ravel())
        union = table.sum(0, keepdims=True) + table.sum(1, keepdims=True) - table
        iou = (table / np.maximum(union, 1))[1:, 1:]
        chosen = linear_sum_assignment(-(iou >= threshold).astype(float) - iou / (2 * min(iou.shape)))
        return int((iou[chosen] >= threshold).sum())

    return lambda true, pred, thresholds: [true_positives(true, pred, t) for t in thresholds]


def pycocotools():
    """COCO's evaluation with every confidence 1, from label images: each cell is first encoded as run lengths."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def described(labels):
        coco = COCO()
        rows = []
        for name in range(1, int(labels.max()) + 1):
            runs = mask.encode(np.asfortranarray(labels == name))
            area = int(mask.area(runs))
            row = {"id": name, "image_id": 1, "category_id": 1, "iscrowd": 0, "score": 1.0}
            rows.append(row | {"segmentation": runs, "area": area})
        image = {"id": 1, "height": labels.shape[0], "width": labels.shape[1]}
        coco.dataset = {"images": [image], "categories": [{"id": 1}], "annotations": rows}
        coco.createIndex()
        return coco

    def call(true, pred, thresholds):
        evaluation = COCOeval(described(true), described(pred), "segm")
        evaluation.params.iouThrs = np.array(thresholds)
        evaluation.params.maxDets = [int(pred.max())]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        (image,) = evaluation.evalImgs
        return (image["dtMatches"] > 0).sum(1).tolist()

    return call


METHODS = {method.__name__: method for method in (cellseg, cellpose, stardist, organisers, pycocotools, read)}


def facts(method: str) -> dict[str, str]:
    package = {"organisers": "numba", "read": "numpy"}.get(method, method)
    return {"version": version(package), "python": platform.python_version(), "numpy": np.__version__}


def resident_bytes(field: str) -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) for line in status if line.startswith(f"{field}:")) * 1024


def timed(call, pair, thresholds, turn_s) -> dict:
    """Call for ``turn_s`` seconds, at least once and at most 20 times."""
    wall_s, cpu_s = [], []
    while not wall_s or (sum(wall_s) < turn_s and len(wall_s) < 20):
        wall, cpu = time.perf_counter(), time.process_time()
        tp = call(*pair, thresholds)
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "tp": tp}


def grown(call, pair, thresholds) -> dict:
    with open("/proc/self/clear_refs", "w") as clear:  # noqa: PTH123
        clear.write("5")  # the peak starts again from what is resident now
    before = resident_bytes("VmRSS")
    call(*pair, thresholds)
    return {"extra_mb": max(0, resident_bytes("VmHWM") - before) / 1e6}


def settle() -> None:
    """Bring the allocator to the state of a process that has read images before.

    glibc gives freed memory back at once until a large block was freed; then each call pays for mapping its pages
    anew, which would cost the peers, whose tables are larger, more than us.
    """
    np.empty(31 << 20, np.uint8)


def answer(call, state: dict, request: dict) -> dict:
    if request["do"] == "load":
        state["pair"] = [np.asarray(np.load(path, mmap_mode="c")) for path in request["paths"]]
        return {"largest": [int(labels.max()) for labels in state["pair"]]}
    if request["do"] == "settle":
        settle()
        return {}
    try:
        if request["do"] == "memory":
            return grown(call, state["pair"], request["thresholds"])
        return timed(call, state["pair"], request["thresholds"], request["turn_s"])
    except MemoryError:
        return {"failed": "MemoryError"}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a method prints
    method = sys.argv[1]
    call = METHODS[method]()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    print(json.dumps(facts(method)), file=replies, flush=True)
    state: dict = {}
    for line in sys.stdin:
        print(json.dumps(answer(call, state, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
