"""Mix the last weights of a run with those it began with (WiSE-FT), as a run of its own: part of ``make teacher``.

The last training of the teacher gains on phase contrast and loses a little on nuclei; halfway back it has both. The new
folder holds the configuration of the run, so that it is scored and shipped like any other.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from cellseg.adapt import interpolate
from cellseg.checkpoint import STATE_NAME, WEIGHTS_NAME, load_state, load_weights, save_weights
from cellseg.core import CellsegError
from cellseg.files import write_text
from cellseg.journal import SUMMARY_NAME, read_summary
from cellseg.models.teacher import EmaTeacher
from cellseg.models.wise import mixed_distances


def main() -> None:
    """Write weights, configuration and summary of the mixture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="finished run folder with an averaged student")
    parser.add_argument("--weight", type=float, default=0.5, help="share of the last weights")
    parser.add_argument("--out", type=Path, required=True, help="run folder of the mixture")
    arguments = parser.parse_args()
    model, config, about = load_weights(arguments.run)
    if about.get("init") is None:
        raise CellsegError(f"{arguments.run}: began with no other weights; there is nothing to mix with")
    state = load_state(arguments.run / STATE_NAME)
    average = EmaTeacher(model, 0.5)
    average.load_state_dict(state["averaged"])
    first = load_weights(about["init"])[0].state_dict()
    model.load_state_dict(interpolate(first, average.model.state_dict(), arguments.weight))
    about |= {"step": state["step"], "wise": arguments.weight}
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(arguments.run / "config.json", arguments.out / "config.json")
    save_weights(arguments.out / WEIGHTS_NAME, model, config, about)
    told = {
        "steps": state["step"],
        "chosen_step": state["step"],
        "mixed": {"run": str(arguments.run), "weight": arguments.weight},
    }
    told["chosen_by"] = f"mixed, {arguments.weight:g} of the last weights"
    summary = read_summary(arguments.run)
    summary |= told | mixed_distances(summary, arguments.weight)
    write_text(arguments.out / SUMMARY_NAME, json.dumps(summary, indent=2) + "\n")
    print(arguments.out / WEIGHTS_NAME)


if __name__ == "__main__":
    main()
