"""A full disk and a folder that may not be written: every command says so in one line and harms nothing.

Each command runs over what an earlier run of it left in its folder, half done where it can go on and whole where it
starts anew: with the folder read-only (the child gives up its rights where it is root), with the disk full from some
event on (the system's answer is made up), and with a limit on the size of a file (the system's own answer, also to
libraries that do not go through Python). Then it runs undisturbed, and the result must be the same as ever.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import children

os.environ.update(children.ALONE)

import numpy as np
from children import Ended, Fault, command, only_line, run, words_of
from kills import ask, undisturbed
from works import WORKS, Work, differences, make_inputs

NOBODY = 65534
LIMITS = (0, 600, 6000)
"""Bytes a file may have."""

SCORING = (
    Work(
        "evaluate",
        "evaluate {into}/evaluate/in/truth {into}/evaluate/in/pred --out out/scores.csv --details out/details.csv "
        "--workers 1",
    ),
    Work("report", "report {into}/run --out out/page.html --device cpu"),
    Work("table", "table {into}/table/in/experiments/tables/table.toml --out out"),
)
COMMANDS = tuple(work for work in WORKS if work.name not in ("adapt mixed", "predict blocks zarr")) + SCORING


@dataclass
class Tried:
    """What came of one command."""

    work: str
    tried: int = 0
    one_line: int = 0
    untouched: int = 0
    """Times in which it had nothing to write that did not fit, and ended well."""
    wrong: list[str] = field(default_factory=list)


def make_all(into: Path, works: Sequence[Work]) -> None:
    """Write the inputs of commands; to report on, a finished run."""
    from random_cases import FORMS
    from sound import write

    from cellseg.config import load_config
    from cellseg.train import train

    make_inputs(into, teacher=False)
    write(into / "evaluate", FORMS["evaluate"][1]())
    files = FORMS["table"][1]()
    files = {f"experiments/{'tables/' if name.endswith('.toml') else ''}{name}": text for name, text in files.items()}
    write(into / "table", files)
    if any(work.name == "report" for work in works):
        train(load_config(into / "train.toml"), into / "run", device="cpu")
        with suppress(SystemExit):
            command("evaluate", str(into / "run"), "--device", "cpu")()


def try_command(work: Work, root: Path, seed: int) -> Tried:
    """Put one command through all faults."""
    found, into = Tried(work.name), root / "inputs"
    whole = undisturbed(work, into, root / work.name)
    again = command(*words_of(f"{work.words} {work.resumed}", into=into))
    before = root / f"{work.name} before"
    if work.goes_on:
        before.mkdir()
        run(command(*words_of(work.words, into=into)), before, Fault("kill", len(whole.events) * 2 // 3))
    else:
        shutil.copytree(root / work.name, before)
    rng = np.random.default_rng([seed, len(work.name)])
    events = [1, *sorted(int(n) for n in rng.choice(np.arange(2, len(whole.events) + 1), 3, replace=False))]
    faults: dict[str, Callable[[Path], Ended]] = {"read-only": lambda folder: _read_only(again, folder)}
    for event in events:
        faults[f"full from event {event}"] = lambda folder, event=event: run(again, folder, Fault("full", event))
    for limit in LIMITS:
        faults[f"files up to {limit} bytes"] = lambda folder, limit=limit: run(
            again, folder, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        )
    folder = root / "trial"
    for name, fault in faults.items():
        shutil.copytree(before, folder)
        _judge(work, root / work.name, name, fault(folder), found)
        if not found.wrong:
            ended = run(again, folder)
            if ended.status != 0:
                found.wrong.append(f"{name}: then status {ended.status}: {ended.said[-800:]}")
            found.wrong += [
                f"{name}: then {text}" for text in ask(lambda: differences(root / work.name, folder), folder)
            ]
        shutil.rmtree(folder)
    return found


def _judge(work: Work, whole: Path, name: str, ended: Ended, found: Tried) -> None:
    """Look at how it ended and at what it left."""
    folder = whole.parent / "trial"
    found.tried += 1
    if ended.status == 0 and name != "read-only":
        found.untouched += 1
    elif ended.status == 1 and only_line(ended.said):
        found.one_line += 1
    else:
        found.wrong.append(f"{name}: status {ended.status}, said: {ended.said[-1500:]}")
    changed = ask(lambda: differences(whole.parent / f"{work.name} before", folder), folder)
    if name == "read-only":
        found.wrong += [f"read-only, but {text}" for text in changed]
    left = [text for text in changed if text.startswith("left behind: ") and ".tmp" in text]
    found.wrong += [f"{name}: {text}" for text in left]
    if not work.goes_on:  # what is there is old or new, which are the same, and whole
        harm = [text for text in ask(lambda: differences(whole, folder), folder) if not text.startswith("missing: ")]
        found.wrong += [f"{name}: {text}" for text in harm]


def _read_only(work: Callable[[], None], folder: Path) -> Ended:
    """Run without the right to write anything in the folder."""
    places = [folder, *folder.rglob("*")]
    modes = {place: place.stat().st_mode for place in places}
    for place in places:
        place.chmod(modes[place] & ~0o222 | 0o444)

    def give_up() -> None:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    ended = run(work, folder, before=give_up)
    for place in places:
        place.chmod(modes[place])
    return ended


def main() -> int:
    """Try every command, print the figures; 1 if one did harm or said it badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", help="only these, with commas between")
    parser.add_argument("--out", type=Path, help="also write the figures here (CSV)")
    asked = parser.parse_args()
    works = [work for work in COMMANDS if asked.commands is None or work.name in asked.commands.split(",")]
    if not works:
        parser.error(f"--commands: known are {', '.join(work.name for work in COMMANDS)}")
    children.preload()
    root = Path(tempfile.mkdtemp(prefix="cellseg-disks-"))
    root.chmod(0o755)
    made = run(lambda: make_all(root / "inputs", works), root)
    if made.status != 0:
        raise SystemExit(f"the inputs could not be made: {made.said[-3000:]}")
    children.learn([command(*words_of(work.words, into=root / "inputs")) for work in works], root)
    rows: list[list[str | int]] = [["command", "faults tried", "said in one line", "nothing to write", "harm"]]
    for work in works:
        found = try_command(work, root, asked.seed)
        for wrong in found.wrong:
            print(f"{work.name}: {wrong}", flush=True)
        rows.append([work.name, found.tried, found.one_line, found.untouched, len(found.wrong)])
        print("  ".join(f"{cell!s:>17}" for cell in rows[-1]), flush=True)
    tried, harm = (sum(int(row[place]) for row in rows[1:]) for place in (1, 4))
    print(f"full disks and read-only folders: {tried} tried on {len(works)} commands, {harm} things wrong")
    if asked.out is not None:
        from cellseg.files import write_text

        write_text(asked.out, "".join(",".join(map(str, row)) + "\n" for row in rows))
    shutil.rmtree(root)
    return int(harm > 0)


if __name__ == "__main__":
    sys.exit(main())
