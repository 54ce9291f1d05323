"""Throw damaged inputs at every door and see that each ends in a result or in one clear line: ``make fuzz``.

A pool of worker processes, each with a limit on memory and on the size of a file, takes case after case; one that
takes too long or dies is named and its worker replaced. A case is a function of the seed and its number. What is done
is written line by line and not done again, until the code changes.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE))

LIMIT_MB = 1536
"""Memory that a case may add to what its worker holds."""
LIMIT_FILE_MB = 512
LIMIT_CPU_S = 30.0
LIMIT_WALL_S = 240.0
LONGEST_LINE = 1500
"""Characters: more is not one clear line."""
GOOD = ("result", "error")


@cache
def named() -> list[tuple[str, str, Any]]:
    """List the cases with a name."""
    import named_images
    import named_texts

    warnings.filterwarnings("ignore", ".*writing zero-size array")
    return [*named_images.all_cases(), *named_texts.all_cases()]


@cache
def _real(shared: str) -> dict[str, list[Path]]:
    import random_cases

    return random_cases.real_files(Path(shared) if shared else None)


def write_case(root: Path, number: int, seed: int, shared: str) -> tuple[str, str]:
    """Write the input of a case below ``root/in``; return its door and what it is."""
    import numpy as np
    import random_cases

    if number < len(named()):
        name, door, write = named()[number]
        write(root)
        return door, name
    rng = np.random.default_rng([seed, number])
    door = random_cases.choose_door(rng)
    return door, random_cases.write_case(root, door, rng, _real(shared))


def door_of(number: int, seed: int) -> str:
    """Return the door of a case without writing it."""
    import numpy as np
    import random_cases

    if number < len(named()):
        return str(named()[number][1])
    return random_cases.choose_door(np.random.default_rng([seed, number]))


def run_case(root: Path, number: int, seed: int, shared: str) -> dict[str, Any]:
    """Run one case in this process and judge how it ends.

    Returns
    -------
    dict
        ``verdict``: ``result``, ``error`` (one clear line), or what must not be: ``traceback``, ``unclear``,
        ``memory``, ``slow``, ``outside`` (a file written where none belongs).
    """
    import doors

    from cellseg.core import CellsegError

    door, name = write_case(root, number, seed, shared)
    before, start = _listing(root), time.process_time()
    _limit_memory()
    detail = ""
    try:
        doors.DOORS[door](root)
        verdict = "result"
    except CellsegError as error:
        verdict, detail = "error", str(error)
        if _for_want_of_memory(error):
            verdict = "memory"
        elif len(detail) > LONGEST_LINE or "Traceback" in detail or "\n" in detail:
            verdict = "unclear"
    except MemoryError:
        verdict, detail = "memory", traceback.format_exc()
    except BaseException:
        verdict, detail = "traceback", traceback.format_exc()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    spent = time.process_time() - start
    if verdict in GOOD and spent > LIMIT_CPU_S:
        verdict, detail = "slow", f"{spent:.1f} s; {detail}"
    left = sorted(_listing(root) - before)
    if verdict in GOOD and left:
        verdict, detail = "outside", f"{left}; {detail}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"number": number, "door": door, "name": name, "verdict": verdict, "detail": detail[-3000:]} | {
        "cpu_s": round(spent, 3), "peak_mb": peak
    }  # fmt: skip


def _listing(root: Path) -> set[str]:
    """Everything in the folder of a case but what lies in ``out``, and what a name with too many dots may reach."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.relative_to(root).parts[0] != "out"}
    return found | {f"beside: {path.name}" for path in root.parent.iterdir()}


def _for_want_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _limit_memory() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = held + LIMIT_MB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def work(seed: int, shared: str) -> None:
    """Take numbers of cases from stdin and answer each with a line of JSON; the loop of a worker."""
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_FILE_MB * 2**20, LIMIT_FILE_MB * 2**20))
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="cellseg-fuzz-") as made:
            root = Path(made) / "case"
            root.mkdir()
            os.chdir(root)
            try:
                answer = run_case(root, int(line), seed, shared)
            except BaseException:
                answer = {"number": int(line), "door": "?", "name": "?", "verdict": "broken case"}
                answer |= {"detail": traceback.format_exc(), "cpu_s": 0.0, "peak_mb": 0}
            os.chdir(made)
            subprocess.run(["chmod", "-R", "u+rwX", made], check=False)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """A process that runs cases, one at a time."""

    def __init__(self, seed: int, shared: str) -> None:
        words = [sys.executable, __file__, "--worker", "--seed", str(seed), "--shared", shared]
        here = os.environ | {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here)
        self.number, self.since = -1, 0.0

    def give(self, number: int) -> None:
        """Start a case."""
        assert self.process.stdin is not None
        self.number, self.since = number, time.monotonic()
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Read how the case ended; a worker that died says how."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        return self.failed("crash", f"the process ended with status {self.process.wait()}")

    def failed(self, verdict: str, detail: str) -> dict[str, Any]:
        """Judge a case that gave no answer."""
        blank = {"door": "?", "name": "?", "cpu_s": 0.0, "peak_mb": 0}
        return blank | {"number": self.number, "verdict": verdict, "detail": detail}

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def run(numbers: Iterable[int], seed: int = 0, shared: str = "", workers: int = 1) -> Iterator[dict[str, Any]]:
    """Run cases in a pool of limited processes and yield how each ended, in the order in which they end."""
    waiting = iter(list(numbers))
    pool: list[Worker] = []
    for number in itertools.islice(waiting, workers):
        pool.append(Worker(seed, shared))
        pool[-1].give(number)
    while pool:
        ready, _, _ = select.select([worker.process.stdout for worker in pool], [], [], 1.0)
        for worker in list(pool):
            late = time.monotonic() - worker.since > LIMIT_WALL_S
            if worker.process.stdout not in ready and not late:
                continue
            answer = worker.failed("hang", f"no answer in {LIMIT_WALL_S:.0f} s") if late else worker.answer()
            yield answer
            number = next(waiting, None)
            if number is None or answer["verdict"] in ("crash", "hang"):
                worker.stop()
                pool.remove(worker)
                if number is not None:
                    worker = Worker(seed, shared)
                    pool.append(worker)
            if number is not None:
                worker.give(number)


def code_of_today() -> str:
    """Return a short hash of the code under test and of the cases: results of other code are not taken over."""
    found = hashlib.sha256()
    for path in sorted([*(REPOSITORY / "cellseg").rglob("*.py"), *HERE.glob("*.py")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def summarise(answers: Sequence[dict[str, Any]], asked: int) -> str:
    """Return the figures that the documentation quotes."""
    verdicts = Counter(one["verdict"] for one in answers)
    bad = [one for one in answers if one["verdict"] not in GOOD]
    lines = [
        f"{one['number']} {one['verdict']}: {one['door']}: {one['name']}: {one['detail'].strip()[-300:]}" for one in bad
    ]
    by_door = Counter(one["door"] for one in answers)
    with_name = sum(one["number"] < len(named()) for one in answers)
    longest, largest = (max((one[key] for one in answers), default=0) for key in ("cpu_s", "peak_mb"))
    lines += [
        f"bad inputs tried: {len(answers)} of {asked} ({with_name} with a name, "
        f"{sum(one['name'].startswith('real ') for one in answers)} from real files)",
        f"doors: {', '.join(f'{name} {count}' for name, count in sorted(by_door.items()))}",
        f"ended in a result: {verdicts['result']}, in one clear line: {verdicts['error']}, otherwise: {len(bad)}",
        f"longest: {longest:.1f} s of processor time (limit {LIMIT_CPU_S:.0f}); "
        f"largest worker: {largest} MB (limit: {LIMIT_MB} MB more than before a case)",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the cases that are asked for and were not run before; print the figures; 1 if one ended badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2400, help="how many cases in all")
    parser.add_argument("--spread", type=int, help="only so many of them, evenly")
    parser.add_argument("--doors", help="only cases of these doors, with commas between")
    parser.add_argument("--only", type=int, nargs="*", help="only these numbers, run anew and shown in full")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--shared", default="", help="folder of real samples; none by default")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "fuzz")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    shared = str(Path(asked.shared).resolve()) if asked.shared and Path(asked.shared).is_dir() else ""
    if asked.worker:
        work(asked.seed, shared)
        return 0
    numbers = list(range(asked.count))
    if asked.doors:
        numbers = [number for number in numbers if door_of(number, asked.seed) in asked.doors.split(",")]
    if asked.spread:
        numbers = numbers[:: max(1, len(numbers) // asked.spread)][: asked.spread]
    if asked.only:
        answers = list(run(asked.only, asked.seed, shared, asked.workers))
        for one in answers:
            print(json.dumps(one, indent=1).replace("\\n", "\n"))
        return int(any(one["verdict"] not in GOOD for one in answers))
    asked.out.mkdir(parents=True, exist_ok=True)
    log = asked.out / f"{code_of_today()}-{asked.seed}{'-real' if shared else ''}.jsonl"
    done = {one["number"]: one for one in map(json.loads, log.read_text().splitlines())} if log.is_file() else {}
    left = [number for number in numbers if number not in done]
    print(f"{len(numbers) - len(left)} of {len(numbers)} cases were run before; results: {log}")
    with log.open("a") as out:
        for one in run(left, asked.seed, shared, asked.workers):
            done[one["number"]] = one
            out.write(json.dumps(one) + "\n")
            out.flush()
            if one["verdict"] not in GOOD:
                print(f"{one['number']} {one['verdict']}: {one['door']}: {one['name']}", flush=True)
    answers = [done[number] for number in numbers]
    print(summarise(answers, len(numbers)))
    return int(any(one["verdict"] not in GOOD for one in answers))


if __name__ == "__main__":
    sys.exit(main())
