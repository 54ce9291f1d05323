"""Train our network and Cellpose's for the same processor time, side by side: for ``bench_inference_end_to_end.py``.

Each trains from scratch on the DSB2018 training images at their own scale, on one thread of its own; processor time
is the clock, so that it does not matter what else the machine does. Neither trainer has a limit of time: a few steps
are timed first and the number of steps follows, and what was spent in the end is written down. No image outside the
training split is looked at; both hand out the weights of the last step.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from results import ROOT
from turns import FURTHER, THREADS

from cellseg.config import Selection
from cellseg.datasets.index import select
from cellseg.files import write_text
from cellseg.provenance import revision

RUN = ROOT / "experiments" / "real_teacher.toml"
TIMED = 40
"""Steps of ours that are timed: 320 crops, so that reading the images is in it as it is in the run."""
SETTINGS = ("data.val=[]", "data.evaluate=[]", "data.diameter='none'", "train.workers=0")
"""No selection on validation images, and images at their own scale, as Cellpose gets them."""


def train_both(index: Path, folder: Path, minutes: float, peers: Path, *, resume: bool) -> dict[str, dict[str, Any]]:
    """Train both and return facts about each: ``weights``, ``steps``, ``processor_minutes``, ``revision``.

    Parameters
    ----------
    index : Path
        Prepared DSB2018.
    folder : Path
        Where runs are kept.
    minutes : float
        Processor minutes of each.
    peers : Path
        Python with Cellpose.
    resume : bool
        Use what a run before finished here, and go on with ours where it stopped; else both begin anew.
    """
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    theirs = folder / "cellpose"
    process, plan = None, folder / "plan.json"
    if not plan.is_file():
        write_text(plan, json.dumps({"revision": revision()}))
    if not theirs.is_file():
        process = _start_cellpose(index, theirs, minutes, peers)
    try:
        ours = _train_ours(index, folder, minutes, plan)
    except BaseException:
        if process is not None:
            process.kill()
        raise
    if process is not None and process.wait():
        sys.exit(f"{theirs}: Cellpose's training ended with status {process.returncode}")
    at = {"revision": json.loads(plan.read_text())["revision"]}
    other = json.loads(theirs.with_suffix(".json").read_text()) | {"weights": str(theirs)}
    return {"cellseg": ours | at, "cellpose": other | at}


def _environment() -> dict[str, str]:
    return os.environ | dict.fromkeys(THREADS, "1") | FURTHER | {"NO_ALBUMENTATIONS_UPDATE": "1"}


def _start_cellpose(index: Path, out: Path, minutes: float, peers: Path) -> subprocess.Popen[bytes]:
    records = select(Selection(index=str(index), split="train"))
    pairs = out.with_name("images.json")
    write_text(pairs, json.dumps([[str(record.image), str(record.labels)] for record in records]))
    script = Path(__file__).with_name("cellpose_train.py")
    return subprocess.Popen([peers, script, pairs, str(minutes), out], env=_environment())


def _train_ours(index: Path, folder: Path, minutes: float, plan: Path) -> dict[str, Any]:
    planned = json.loads(plan.read_text())
    if "steps" not in planned:
        timed = _run(index, folder / "timed", TIMED)
        shutil.rmtree(folder / "timed")
        planned["steps"] = max(1, round(TIMED * minutes / timed["processor_minutes"]))
        write_text(plan, json.dumps(planned))
    steps = planned["steps"]
    print(f"cellseg: {steps} steps", file=sys.stderr, flush=True)
    return _run(index, folder / "cellseg", steps) | {"weights": str(folder / "cellseg")}


def _run(index: Path, out: Path, steps: int) -> dict[str, Any]:
    """Run ``cellseg train``, or go on with it, and return its summary."""
    data = f'data.train=[{{ index = "{index}", split = "train" }}]'
    settings = [word for value in (*SETTINGS, data, f"train.steps={steps}") for word in ("--set", value)]
    command = [sys.executable, "-m", "cellseg.cli", "train", RUN, "--out", out, "--resume", "--device", "cpu"]
    subprocess.run([*command, *settings], check=True, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary
