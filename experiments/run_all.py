"""Run the rows of the comparison tables: ``make experiments``, ``HOURS=3``, ``EXP=n5_plain``, ``SEEDS=0``.

The rows are those of ``tables/rows_*.toml``, in that order, three seeds each; a row's run file is ``rows/<run>.toml``.
What a row starts from is run before it. Everything resumes: finished runs are passed over, and within HOURS a row is
only begun if all its seeds can be expected to fit. ``EXP=n5_plain RERUN=1`` makes a row again beside the committed one
and compares the two.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from archive import RESULTS, RUNS, TABLES, unpack
from scipy.stats import t as student

from cellseg.checkpoint import STATE_NAME, WEIGHTS_NAME, load_weights, save_weights
from cellseg.config import RunConfig, load_config, read_run
from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.journal import LOG_NAME, SUMMARY_NAME, note
from cellseg.metrics.scores import aggregate, read_scores
from cellseg.report.start import is_newer
from cellseg.tables import read_table

ROOT = Path(__file__).resolve().parent
ORDER = ("rows_five", "rows_zero", "rows_one", "rows_stained", "rows_phase", "rows_dic", "rows_hela")
SEEDS = (0, 1, 2)


def main() -> None:
    """Run what is missing; exit status 1 if a run failed or a row came out otherwise than before."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=math.inf, help="begin no row that would not fit")
    parser.add_argument("--only", metavar="ROW", help="this row alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, choices=SEEDS, help="these seeds alone")
    parser.add_argument("--rerun", action="store_true", help="make ROW again and compare it with the committed one")
    arguments = parser.parse_args()
    if arguments.rerun:
        if arguments.only is None:
            raise CellsegError("RERUN=1 wants the row to make again: EXP=n5_plain RERUN=1")
        sys.exit(0 if rerun(arguments.only) else 1)
    rows = [arguments.only] if arguments.only else rows_in_order()
    sys.exit(1 if run_rows(rows, arguments.hours, arguments.seeds) else 0)


def rows_in_order() -> list[str]:
    """Return the runs of the tables of rows, without repetition."""
    return list(dict.fromkeys(row.run for name in ORDER for row in read_table(TABLES / f"{name}.toml").row))


def run_rows(rows: list[str], hours: float, seeds: Sequence[int] = SEEDS) -> list[str]:
    """Finish rows one after the other; return what failed."""
    began, spent, failed = time.monotonic(), list[float](), list[str]()
    for place, row in enumerate(rows):
        missing = [seed for seed in seeds if not is_scored(RUNS / row / f"s{seed}")]
        left = 3600 * hours - (time.monotonic() - began)
        if missing and left <= (statistics.fmean(spent) if spent else 0) * len(missing):
            print(f"{hours:g} hours: {len(rows) - place} rows are left, from {row} on; the same command goes on there")
            break
        for seed in missing:
            start = time.monotonic()
            try:
                finish(row, seed)
                spent.append(time.monotonic() - start)
                print(f"{row} seed {seed}: {spent[-1] / 60:.1f} minutes ({place + 1} of {len(rows)} rows)", flush=True)
            except (CellsegError, subprocess.CalledProcessError) as error:
                failed.append(f"{row} seed {seed}")
                print(f"error: {row} seed {seed}: {error}", file=sys.stderr, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return failed


def is_scored(folder: Path) -> bool:
    """Whether all evaluation sets of a run were scored since its weights were written."""
    if not (folder / SUMMARY_NAME).is_file():
        return False
    sets = read_run(folder / "config.json").data.evaluate
    return all(is_newer(folder / "scores" / f"{one.name}.csv", folder / WEIGHTS_NAME) for one in sets)


def finish(row: str, seed: int, prefix: str = "") -> Path:
    """Train and score one seed of a row, what it starts from first; return its run folder."""
    path = run_file(row)
    config = load_config(path)
    folder = RUNS / f"{prefix}{row}" / f"s{seed}"
    needed = Path(config.train.init or "")
    if needed.parent.parent == Path("experiments/runs") and not is_scored(needed):
        finish(needed.parent.name, int(needed.name[1:]))
    if (folder / "config.json").is_file() and read_run(folder / "config.json") != config:
        raise CellsegError(f"{folder}: was made with other settings than {path} now has; move it away")
    if not prefix:
        borrow_training(config, folder, seed)
    kind = "train" if config.train.init is None else "adapt"
    extra = ["--no-evaluate"] if kind == "adapt" else []
    cellseg(kind, str(path), "--seed", str(seed), "--out", str(folder), "--resume", *extra)
    note(folder, {"config_hash": digest(config.model_dump_json().encode()), "index_hash": index_hash(config)})
    borrow_start(config, folder)
    cellseg("evaluate", str(folder))
    return folder


def run_file(row: str) -> Path:
    """Find the run file of a row, or of what a row starts from."""
    for path in (ROOT / "rows" / f"{row}.toml", ROOT / f"{row}.toml"):
        if path.is_file():
            return path
    raise CellsegError(f"{row}: no such row; see experiments/rows")


def cellseg(*arguments: str) -> None:
    """Run a command as a user would; raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", "cellseg.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


# ---- what need not be done twice


def borrow_training(config: RunConfig, folder: Path, seed: int) -> None:
    """Take the training of a finished run that differs in what is done afterwards alone; see :func:`learned`."""
    if config == learned(config) or folder.exists():
        return
    for home in (path.parent for path in sorted(RUNS.glob(f"*/s{seed}/config.json"))):
        if (home / SUMMARY_NAME).is_file() and read_run(home / "config.json") == learned(config):
            folder.mkdir(parents=True)
            for name in (STATE_NAME, SUMMARY_NAME, LOG_NAME):
                shutil.copy(home / name, folder)
            model, network, about = load_weights(home)
            if config.adapt.wise is not None:
                about.pop("scale_prior", None)  # looked for again with the mixed weights
            save_weights(folder / WEIGHTS_NAME, model, network, about)
            write_text(folder / "config.json", config.model_dump_json(indent=2))
            return


def learned(config: RunConfig) -> RunConfig:
    """Return a configuration without what comes after training: WiSE-FT's mixing, and the views of scored images.

    Labels are guessed and criteria computed from views of their own; only validation sees those of ``predict.tta``.
    """
    plain = {"adapt": config.adapt.model_copy(update={"wise": None})}
    if not config.data.val:
        plain["predict"] = config.predict.model_copy(update={"tta": False})
    return config.model_copy(update=plain)


def borrow_start(config: RunConfig, folder: Path) -> None:
    """Take the scores of the start from a run with the same start, scored on the same sets in the same way."""
    if config.train.init is None or (folder / "start").exists():
        return
    for home in sorted(RUNS.glob("*/s*/start/scores")):
        other = read_run(home.parent.parent / "config.json")
        alike = (other.train.init, other.data.evaluate, other.predict)
        if alike == (config.train.init, config.data.evaluate, config.predict) and is_scored(home.parent.parent):
            ignore = shutil.ignore_patterns("*.tif", "*.scores.csv")
            shutil.copytree(home.parent, folder / "start", ignore=ignore)
            return


def index_hash(config: RunConfig) -> str:
    """Return what tells the indices that a run reads from others."""
    data = config.data
    parts = (data.train, data.val, data.unlabelled, data.replay, data.fisher, data.evaluate)
    files = sorted({selection.index for part in parts for selection in part})
    return digest(b"".join(Path(file).read_bytes() for file in files))


def digest(content: bytes) -> str:
    """Return the first digits of a SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]


# ---- again


def rerun(row: str) -> bool:
    """Make a row again from nothing and say whether it lies within the interval of the committed one."""
    committed = RUNS / ".committed"
    shutil.rmtree(committed, ignore_errors=True)
    unpack(RESULTS, committed)
    if not (committed / row).is_dir():
        raise CellsegError(f"{row}: is not among the committed results; run it first: make experiments EXP={row}")
    if all(is_scored(RUNS / f"again_{row}" / f"s{seed}") for seed in SEEDS):
        shutil.rmtree(RUNS / f"again_{row}")
    folders = [finish(row, seed, prefix="again_") for seed in SEEDS]
    agreed = True
    for table in sorted((folders[0] / "scores").glob("*.csv")):
        old, new = means(committed / row, table.name), means(folders[0].parent, table.name)
        half = half_width(old, new)
        difference = statistics.fmean(new) - statistics.fmean(old)
        agreed &= abs(difference) <= half
        word = "within" if abs(difference) <= half else "OUTSIDE"
        old_mean, new_mean = statistics.fmean(old), statistics.fmean(new)
        print(f"{row} {table.stem}: F1@.5 {new_mean:.4f}, committed {old_mean:.4f} ± {half:.4f} (95 %): {word}")
    return agreed


def means(run: Path, table: str) -> list[float]:
    """Return the mean F1 at IoU 0.5 of every seed that was scored."""
    return [aggregate(read_scores(path), "f1", (0.5,), "mean") for path in sorted(run.glob(f"s*/scores/{table}"))]


def half_width(old: list[float], new: list[float]) -> float:
    """Return half the 95 % interval of the difference of two means, with the spread of the committed seeds."""
    if len(old) < 2:
        raise CellsegError("one committed seed has no interval; run the others first")
    spread = statistics.stdev(old) * math.sqrt(1 / len(old) + 1 / len(new))
    return float(student.ppf(0.975, len(old) - 1)) * spread


if __name__ == "__main__":
    try:
        main()
    except CellsegError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it was")
