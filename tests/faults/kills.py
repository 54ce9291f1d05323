"""Kill works with SIGKILL, start them again, and compare with what was never killed: ``make faults``.

Half of the instants are moments in time, the others events: just before a file is opened for writing, flushed, renamed
or removed, a third of these with the file left half written. Some restarts are killed too. After the last start the
result must equal that of the undisturbed run, tensors bit for bit and files byte for byte but for what says how long
something took, and nothing may be left behind. Every instant is a function of the seed. What is done is
kept and not done again until the code changes, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import children

os.environ.update(children.ALONE)

import numpy as np
from children import Ended, Fault, command, run, words_of
from fuzz import code_of_today
from works import WORKS, Work, differences, make_inputs, saved_step

LOGS = children.REPOSITORY / "build" / "faults"

AGAIN = 0.25
"""Share of the restarts that are killed as well."""


@dataclass
class Trial:
    """One work, killed once or twice and finished."""

    work: str
    number: int
    kills: Counter[str] = field(default_factory=Counter)
    """Kinds of the kills."""
    went_on: int = 0
    """Restarts that went on from a saved state."""
    wrong: list[str] = field(default_factory=list)
    """What was not as it must be."""


def undisturbed(work: Work, into: Path, folder: Path) -> Ended:
    """Run a work to its end where nothing disturbs it; the result stays in the folder."""
    folder.mkdir()
    ended = run(command(*words_of(work.words, into=into)), folder)
    if ended.status != 0:
        raise SystemExit(f"{work.name}: fails undisturbed, status {ended.status}: {ended.said[-3000:]}")
    return ended


def try_kills(work: Work, root: Path, whole: Ended, number: int, seed: int) -> Trial:
    """Kill a work, perhaps twice, start it again and compare the outcome with what was not disturbed."""
    trial, rng = Trial(work.name, number), np.random.default_rng([seed, number])
    into, folder = root / "inputs", root / f"trial {number}"
    folder.mkdir()
    again = words_of(f"{work.words} {work.resumed}", into=into)
    while True:
        is_first = not trial.kills
        kind = "time" if rng.random() < 0.5 else ("torn" if rng.random() < 1 / 3 else "kill")
        instant = int(rng.integers(1, len(whole.events) + 1))
        late = float(rng.uniform(0, whole.seconds))
        work_words = words_of(work.words, into=into) if is_first else again
        fault = None if kind == "time" else Fault(kind, instant)
        ended = run(command(*work_words), folder, fault, late if kind == "time" else None)
        if ended.status != -signal.SIGKILL:
            if ended.status != 0:
                trial.wrong.append(f"status {ended.status} before any kill: {ended.said[-1500:]}")
                return trial
            if is_first:  # it was done before its time came
                shutil.rmtree(folder)
                folder.mkdir()
                continue
            break
        trial.kills[kind] += 1
        trial.went_on += _went_on(folder)
        if sum(trial.kills.values()) == 2 or rng.random() > AGAIN:
            break
    ended = run(command(*again), folder)
    if ended.status != 0:
        trial.wrong.append(f"status {ended.status} after the restart: {ended.said[-1500:]}")
        return trial
    trial.wrong += ask(lambda: differences(root / work.name, folder), folder)
    if not trial.wrong:
        shutil.rmtree(folder)
    return trial


def _went_on(folder: Path) -> bool:
    """Whether there is a saved state, or there are finished blocks; a state that is there must be whole."""
    if any(folder.glob("out/*.blocks/[0-9]*.tif")):
        return True
    return ask(lambda: [str(saved_step(folder))], folder) not in (["0"], [])


def ask(question: object, folder: Path) -> list[str]:
    """Let a child answer, since the parent must not compute."""

    def answer() -> None:
        for line in question():  # type: ignore[operator]
            print(line)

    ended = run(answer, folder)
    return ended.said.splitlines() if ended.status == 0 else [f"comparison failed: {ended.said[-1500:]}"]


def all_trials(works: Sequence[Work], kills: int, seed: int, root: Path, log: Path) -> Iterator[Trial]:
    """Run the works in turn until so many kills were made, but for those in the log."""
    known = [Trial(**json.loads(line)) for line in log.read_text().splitlines()] if log.is_file() else []
    trials = {trial.number: trial for trial in known}
    into = root / "inputs"
    made = run(lambda: make_inputs(into, teacher=any(work.needs_teacher for work in works)), root)
    if made.status != 0:
        raise SystemExit(f"the inputs could not be made: {made.said[-3000:]}")
    children.learn([command(*words_of(work.words, into=into)) for work in works], root)
    whole = {}
    for work in works:
        whole[work.name] = undisturbed(work, into, root / work.name)
        events = len(whole[work.name].events)
        print(f"{work.name}: {events} events on files, {whole[work.name].seconds:.1f} s", flush=True)
    done, number = 0, 0
    while done < kills:
        work = works[number % len(works)]
        trial = trials.get(number) or try_kills(work, root, whole[work.name], number, seed)
        if number not in trials:
            with log.open("a") as out:
                out.write(json.dumps(vars(trial)) + "\n")
        done, number = done + sum(trial.kills.values()), number + 1
        yield trial


def summarise(trials: Sequence[Trial]) -> list[list[str | int]]:
    """Return the figures: a row a work, and their sum."""
    names = list(dict.fromkeys(trial.work for trial in trials))
    rows = [_row(name, [trial for trial in trials if trial.work == name]) for name in names]
    return [
        ["work", "kills", "at a moment", "at an event", "half written", "saved work found", "finished the same"],
        *rows,
        _row("all", trials),
    ]


def _row(name: str, trials: Sequence[Trial]) -> list[str | int]:
    kinds = sum((Counter(trial.kills) for trial in trials), Counter[str]())
    good = sum(not trial.wrong for trial in trials)
    numbers = [kinds.total(), kinds["time"], kinds["kill"], kinds["torn"], sum(trial.went_on for trial in trials)]
    return [name, *numbers, f"{good} of {len(trials)}"]


def main() -> int:
    """Make the kills, print the figures; 1 if a work did not come back as it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many in all, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--works", help="only these, with commas between")
    parser.add_argument("--log", type=Path, default=LOGS, help="folder of what is done")
    parser.add_argument("--out", type=Path, help="also write the figures here (CSV)")
    asked = parser.parse_args()
    works = [work for work in WORKS if asked.works is None or work.name in asked.works.split(",")]
    if not works:
        parser.error(f"--works: known are {', '.join(work.name for work in WORKS)}")
    began = time.monotonic()
    children.preload()
    root = Path(tempfile.mkdtemp(prefix="cellseg-faults-"))
    log = asked.log / f"{code_of_today()}-{asked.seed}-{'-'.join(work.name for work in works).replace(' ', '_')}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    trials = []
    for trial in all_trials(works, asked.kills, asked.seed, root, log):
        trials.append(trial)
        for wrong in trial.wrong:
            print(f"trial {trial.number}: {trial.work}: killed {dict(trial.kills)}: {wrong}", flush=True)
    rows = summarise(trials)
    for row in rows:
        print("  ".join(f"{cell!s:>19}" for cell in row))
    bad = sum(bool(trial.wrong) for trial in trials)
    kills, spent = sum(sum(trial.kills.values()) for trial in trials), time.monotonic() - began
    print(f"kills: {kills}; works not the same after them: {bad}; seed {asked.seed}, {spent:.0f} s")
    if asked.out is not None:
        from cellseg.files import write_text

        write_text(asked.out, "".join(",".join(map(str, row)) + "\n" for row in rows))
    if bad:
        print(f"what was left is in {root}")
    else:
        shutil.rmtree(root)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
