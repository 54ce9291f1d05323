"""Predict thousands of images and train for long; watch memory, open files, processes and segments: ``make soak``.

Two commands run side by side, as a user types them: one predicts a folder of tens of thousands of small images, every
eighth of them by block, with outlines and measurements; one trains with workers that read ahead, looks at validation
images and saves. Both are interrupted as by ctrl-C when the time is over. Memory is what a command and its workers
hold, pages that several hold divided among them (PSS), without pages of files: the share of a library changes
whenever another program that uses it begins or ends. Growth is the median of the last tenth of the time over that of
the tenth after the warm-up, which is the first fifth.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import children
from works import disks, shades

IMAGES = 40_000
WARM_UP, WINDOW = 0.2, 0.1
"""Shares of the time: before the first look, and of each look."""
MOST_GROWTH = 0.02


@dataclass(frozen=True)
class Sample:
    """What a command and its workers hold at one moment."""

    work: str
    seconds: float
    memory_mb: float
    handles: int
    processes: int
    segments: int
    done: int


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found, place = [pid], 0
    while place < len(found):
        for task in Path(f"/proc/{found[place]}/task").glob("*/children"):
            found += [int(child) for child in _text(task).split()]
        place += 1
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended meanwhile
        return ""


def look(work: str, pid: int, began: float, done: int) -> Sample:
    """Measure a command and its workers."""
    pids = family(pid)
    memory = 0
    for one in pids:
        lines = _text(Path(f"/proc/{one}/smaps_rollup")).splitlines()
        memory += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    handles = sum(len(list(folder.iterdir())) for one in pids if (folder := Path(f"/proc/{one}/fd")).is_dir())
    shared = {line.split()[-1] for one in pids for line in _text(Path(f"/proc/{one}/maps")).splitlines()
              if "/dev/shm/" in line}  # fmt: skip
    return Sample(
        work, round(time.monotonic() - began, 1), round(memory / 1024, 1), handles, len(pids), len(shared), done
    )


def make_inputs(into: Path) -> None:
    """Write eight images under many names, an index and a run file, and train a network for a moment."""
    import tifffile

    from cellseg.cli import main
    from cellseg.core import Record
    from cellseg.datasets.index import write_index
    from cellseg.images import write_labels

    records = []
    for folder in ("images", "many"):
        (into / folder).mkdir(parents=True)
    for number in range(8):
        labels = disks(number)
        if number == 7:
            labels = labels.repeat(3, 0).repeat(3, 1)
        image, truth = into / "images" / f"{number}.tif", into / "images" / f"{number}_label.tif"
        tifffile.imwrite(image, shades(labels, number))
        write_labels(truth, labels)
        records.append(Record(str(number), image, truth, "disks", "", "g", *labels.shape, 4, "instances", 24.0))
    write_index(into / "index.csv", records[:7])
    for number in range(IMAGES):
        os.link(into / "images" / f"{number % 8}.tif", into / "many" / f"{number:05}.tif")
    data = f'index = "{into}/index.csv"'
    (into / "run.toml").write_text(
        f'model.size = "tiny"\npredict.diameter = "model"\ndata.train = [{{ {data}, ids = ["0", "1", "2", "3"] }}]\n'
        f'data.val = [{{ {data}, ids = ["4", "5"] }}]\n[train]\nsteps = 1000000\nbatch_size = 2\ncrop_size = 64\n'
        "ema = 0.9\nlr = 3e-3\nwarmup_steps = 5\nworkers = 2\nlog_every = 5\nvalidate_every = 50\nsave_every = 25\n"
    )
    words = [
        "train",
        str(into / "run.toml"),
        "--out",
        str(into / "start"),
        "--device",
        "cpu",
        "--set",
        "train.steps=40",
    ]
    sys.argv = ["cellseg", *words, "--set", "train.validate_every=40", "--set", "train.workers=0"]
    main()


def commands(root: Path) -> dict[str, tuple[list[str], Path]]:
    """Return the two commands, each with the file or folder by which one sees how far it is."""
    into = root / "in"
    return {
        "predict": (
            ["predict", f"{into}/many", "--model", f"{into}/start", "--out", f"{root}/out", "--diameter", "24",
             "--block", "256", "--format", "geojson", "--measure", f"{root}/cells.csv", "--device", "cpu"],
            root / "out",
        ),
        "train": (
            ["train", f"{into}/run.toml", "--out", f"{root}/run", "--device", "cpu"], root / "run" / "log.jsonl",
        ),
    }  # fmt: skip


def how_far(place: Path) -> int:
    """Return the number of images predicted, or the step of the last line of a log."""
    if place.is_dir():
        return sum(name.endswith(".scores.csv") for name in os.listdir(place))  # noqa: PTH208 (many thousands)
    lines = _text(place).splitlines()
    return 5 * len(lines)


def soak(root: Path, seconds: float, looks: int) -> tuple[list[Sample], int]:
    """Run both commands, look at them so many times, interrupt them; also return how many processes stayed behind."""
    began = time.monotonic()
    running = {}
    for name, (words, _) in commands(root).items():
        program = [sys.executable, "-m", "cellseg.cli", *words]
        with (root / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen(
                program, stdout=log, stderr=log, cwd=children.REPOSITORY, preexec_fn=_hear_interrupts
            )
    try:
        samples, pids = _watch(running, root, (began, seconds, looks))
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for name, process in running.items():
            process.wait(300)
            print(f"{name}: {_text(root / f'{name}.log').strip().splitlines()[-1:]}")
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    time.sleep(1)
    return samples, sum(Path(f"/proc/{pid}").exists() for pid in pids)


def _hear_interrupts() -> None:
    """Undo what a shell does to programs in its background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _watch(
    running: dict[str, subprocess.Popen[bytes]], root: Path, when: tuple[float, float, int]
) -> tuple[list[Sample], set[int]]:
    """Look at the commands as often as asked; also return all processes that were ever seen."""
    began, seconds, looks = when
    samples: list[Sample] = []
    pids: set[int] = set()
    for number in range(looks):
        time.sleep(max(0.0, began + (number + 1) * seconds / looks - time.monotonic()))
        for name, process in running.items():
            said = _text(root / f"{name}.log")
            if process.poll() is not None:
                raise SystemExit(f"{name} ended too early, status {process.returncode}: {said[-2000:]}")
            samples.append(look(name, process.pid, began, how_far(commands(root)[name][1])))
            pids.update(family(process.pid))
    return samples, pids


def summarise(samples: Sequence[Sample], left: int) -> tuple[str, bool]:
    """Return a table of the figures, and whether all is as it should be."""
    lines = ["| | images or steps | memory after warm-up | at the end | growth | open files then and at the end | "
             "most processes | most segments |", "|---|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    good = left == 0
    for work in dict.fromkeys(sample.work for sample in samples):
        mine = [sample for sample in samples if sample.work == work]
        size, start = max(1, round(WINDOW * len(mine))), round(WARM_UP * len(mine))
        early, late = mine[start : start + size], mine[-size:]
        first, last = (statistics.median(sample.memory_mb for sample in part) for part in (early, late))
        growth = last / first - 1
        handles = [max(sample.handles for sample in part) for part in (early, late)]
        good = good and growth < MOST_GROWTH and handles[1] <= handles[0] + 8
        processes, segments = (max(getattr(sample, name) for sample in mine) for name in ("processes", "segments"))
        lines.append(
            f"| {work} | {mine[-1].done:,} | {first:.0f} MB | {last:.0f} MB | {100 * growth:+.2f} % | "
            f"{handles[0]}, {handles[1]} | {processes} | {segments} |"
        )
    minutes = max(sample.seconds for sample in samples) / 60
    lines += ["", f"{minutes:.1f} minutes; {left} processes left after the end."]
    return "\n".join(lines), good


def write_csv(path: Path, samples: Sequence[Sample]) -> None:
    """Write a row a look."""
    from cellseg.files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Sample))
    writer.writerows(map(astuple, samples))
    write_text(path, text.getvalue())


def draw(path: Path, samples: Sequence[Sample]) -> None:
    """Draw memory and open files over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from cellseg.files import atomic_path

    figure, axes = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    for work in dict.fromkeys(sample.work for sample in samples):
        mine = [sample for sample in samples if sample.work == work]
        minutes = [sample.seconds / 60 for sample in mine]
        axes[0].plot(minutes, [sample.memory_mb for sample in mine], label=work)
        axes[1].plot(minutes, [sample.handles for sample in mine], label=work)
    axes[0].set_ylabel("memory (MB)")
    axes[1].set_ylabel("open files")
    axes[1].set_xlabel("minutes")
    for axis in axes:
        axis.axvspan(0, WARM_UP * max(sample.seconds for sample in samples) / 60, color="0.9")
        axis.set_ylim(bottom=0)
    axes[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main() -> int:
    """Soak, write the figures; 1 if memory grew, files stayed open or processes stayed behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--looks", type=int, default=300, help="how often memory is measured")
    parser.add_argument("--out", type=Path, default=children.REPOSITORY / "experiments" / "results" / "soak",
                        help="name of the .csv, .md and .png")  # fmt: skip
    asked = parser.parse_args()
    os.environ.update(children.ALONE)
    sys.path.insert(0, str(children.REPOSITORY))
    root = Path(tempfile.mkdtemp(prefix="cellseg-soak-"))
    try:
        subprocess.run([sys.executable, __file__, "--make", str(root / "in")], check=True)
        samples, left = soak(root, 60 * asked.minutes, asked.looks)
    finally:
        shutil.rmtree(root)
    text, good = summarise(samples, left)
    from cellseg.files import write_text

    write_csv(asked.out.with_suffix(".csv"), samples)
    draw(asked.out.with_suffix(".png"), samples)
    write_text(asked.out.with_suffix(".md"), f"# Soak\n\nMade by `make soak` (`tests/faults/soak.py`).\n\n{text}\n")
    print(text)
    return int(not good)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        sys.path.insert(0, str(children.REPOSITORY))
        make_inputs(Path(sys.argv[2]))
    else:
        sys.exit(main())
