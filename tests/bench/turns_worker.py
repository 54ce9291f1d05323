"""The inside of a process that a benchmark measures: it answers lines of JSON; see ``turns.py``.

Needs nothing of cellseg, so that it runs in the environment of the peers. A script of its own defines the methods::

    from turns_worker import serve
    serve({"name": make})       # make(state) -> {"part": call without arguments, ...}

``load`` gives ``state`` its items, ``time`` calls a part, ``save`` writes the array that a part gave last.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

Parts = dict[str, Callable[[], object]]


def timed(call: Callable[[], object], turn_s: float) -> tuple[dict, object]:
    """Call for ``turn_s`` seconds of processor time, at least once and at most 20 times."""
    wall_s, cpu_s = [], []
    result = None
    while not wall_s or (sum(cpu_s) < turn_s and len(cpu_s) < 20):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        cpu_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
    return {"wall_s": wall_s, "cpu_s": cpu_s}, result


def answer(parts: Parts, state: dict, request: dict) -> dict:
    if request["do"] == "load":
        state.clear()
        state.update(request["state"])
        return {}
    if request["do"] == "save":
        np.save(request["path"], np.asarray(state[request["part"]]))
        return {}
    try:
        reply, state[request["part"]] = timed(parts[request["part"]], request["turn_s"])
    except MemoryError:
        return {"failed": "MemoryError"}
    except Exception as error:  # a peer that cannot is a row that says so
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    return reply


def serve(methods: dict[str, tuple[str, Callable[[dict], Parts]]]) -> None:
    """Answer requests on standard input; ``methods`` maps a name to its package and a function that makes its parts."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a method prints
    package, make = methods[sys.argv[1]]
    state: dict = {}
    try:
        parts = make(state)
        facts = {"version": version(package), "python": platform.python_version(), "numpy": np.__version__}
    except ImportError as error:
        facts, parts = {"failed": f"not installed ({error.name})"}, {}
    print(json.dumps({"facts": facts, "parts": list(parts)}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(parts, state, json.loads(line))), file=replies, flush=True)
