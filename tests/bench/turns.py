"""Methods that take turns: each in a process and an environment of its own, on the same number of threads.

A script of workers says what the methods are (``turns_worker.py``); its parts are called in the order they are listed,
what only prepares them among them (a caller leaves it out of its tables). In each round every part of every method is
called for a short while, in an order that rotates, so that what else the machine does falls on no method alone; a part
that has had ``ENOUGH_S`` of processor time sits out. What takes more than ``SLOW_S`` in its warm-up is not called
again: that call is its time, and its rounds are 0. Sections of ``make bench-inference`` share this file.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TURN_S, ENOUGH_S, SLOW_S, TIMEOUT_S = 0.05, 2.0, 4.0, 7200.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "BENCH_THREADS")


FURTHER = {"OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}


@dataclass
class Part:
    """What was measured of one part of one method."""

    method: str
    name: str
    status: str = "ok"
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    rounds: int = 0
    slow: bool = False

    @property
    def cpu_ms(self) -> float:
        return 1000 * min(self.cpu_s)

    @property
    def wall_ms(self) -> float:
        return 1000 * min(self.wall_s)


class Worker:
    """A process that runs one method of a script, asked through its standard input."""

    def __init__(self, script: Path, method: str, python: Path, threads: int):
        self.method, self.command = method, [str(python), str(script), method]
        self.environment = os.environ | dict.fromkeys(THREADS, str(threads)) | FURTHER
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment
        )
        begun = self._reply()
        self.facts, self.parts = begun["facts"], begun["parts"]

    def ask(self, **request: object) -> dict:
        """Send a request; the answer is {"failed": "> … s"}, and the process ended, if it takes too long."""
        if self.process.poll() is not None:
            return {"failed": "ended before"}
        self.process.stdin.write((json.dumps(request) + "\n").encode())
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], TIMEOUT_S)[0]:
            self.close()
            return {"failed": f"> {TIMEOUT_S:.0f} s"}
        return self._reply()

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            return {"failed": f"process ended with status {self.process.wait()}", "facts": {}, "parts": []}
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def take_turns(workers: Sequence[Worker], state: dict[str, object], rounds: int) -> list[Part]:
    """Time every part of every method on ``state``; parts are called in the order in which a method lists them."""
    parts = []
    for worker in workers:
        worker.ask(do="load", state=state)
        for name in worker.parts:
            parts.append(part := Part(worker.method, name))
            turn(part, worker, warm_up=True)
    by_method = {worker.method: worker for worker in workers}
    for number in range(rounds):
        start = number % max(len(parts), 1)
        for part in parts[start:] + parts[:start]:
            if part.status == "ok" and sum(part.cpu_s) < ENOUGH_S and not part.slow:
                turn(part, by_method[part.method])
    return parts


def turn(part: Part, worker: Worker, warm_up: bool = False) -> None:
    reply = worker.ask(do="time", part=part.name, turn_s=0 if warm_up else TURN_S)
    if "failed" in reply:
        part.status = reply["failed"]
        return
    part.slow = warm_up and sum(reply["cpu_s"]) > SLOW_S
    if not warm_up or part.slow:
        part.cpu_s += reply["cpu_s"]
        part.wall_s += reply["wall_s"]
        part.rounds += not warm_up
