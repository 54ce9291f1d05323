"""Put known defects back, one at a time, in a copy of the repository, and see which test notices: ``make mutations``.

The defects are those that published code of the field has or had (wrong ties, predictions that vanish, an anchor that
is a reference, a penalty that meets scaled gradients, an average without buffers, ids that wrap).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutation:
    """A defect: what it is, where it goes, and the tests that are asked."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str


MUTATIONS = (
    Mutation(
        "a match wants an IoU above the threshold, not at it",
        "cellseg/metrics/matching.py",
        "exact.denominator * table.intersection >= exact.numerator * table.union",
        "exact.denominator * table.intersection > exact.numerator * table.union",
        "tests/test_metrics.py",
    ),
    Mutation(
        "thresholds by adding 0.05 up",
        "cellseg/metrics/scores.py",
        "found += [step / 20 for step in range(steps[0], steps[1] + 1)]",
        "found += map(float, __import__('numpy').arange(bounds[0], bounds[1] + 0.01, 0.05))",
        "tests/test_scores.py",
    ),
    Mutation(
        "a missing prediction vanishes from the mean",
        "cellseg/evaluate.py",
        "list(track(_results(pairs, score, workers)",
        "list(track(_results([pair for pair in pairs if pair.pred is not None], score, workers)",
        "tests/test_evaluate.py",
    ),
    Mutation(
        "the anchor is a reference to the trained weights",
        "cellseg/regularizers/anchored.py",
        "start.detach().clone().to(parameter.device, torch.float32)",
        "start.detach().to(parameter.device, torch.float32)",
        "tests/test_regularizers.py",
    ),
    Mutation(
        "the penalty's gradient is added before gradients are unscaled",
        "cellseg/train.py",
        "    norm = _unscale_and_clip(state, settings.clip_norm, fabric)\n",
        "    if state.penalty is not None:\n        state.penalty.before_step()\n"
        "        state.penalty.before_step = lambda: None\n"
        "    norm = _unscale_and_clip(state, settings.clip_norm, fabric)\n",
        "tests/test_holding.py",
    ),
    Mutation(
        "the averaged weights leave out buffers",
        "cellseg/models/teacher.py",
        "mine, theirs = self.model.state_dict(), student.state_dict()",
        "mine, theirs = dict(self.model.named_parameters()), student.state_dict()",
        "tests/test_models.py",
    ),
    Mutation(
        "ids above 65,535 wrap",
        "cellseg/images.py",
        "stored = ids.astype(np.uint16 if int(ids.max()) <= np.iinfo(np.uint16).max else np.uint32)",
        "stored = ids.astype(np.uint16)",
        "tests/test_images.py",
    ),
)


def try_mutation(mutation: Mutation, copy: Path) -> list[str]:
    """Put a defect into a copy, run its tests until one fails, take it out; return the tests that failed."""
    path = copy / mutation.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(mutation.right) != 1:
        raise SystemExit(f"{mutation.file}: wanted once, found {sound.count(mutation.right)} times: {mutation.right}")
    path.write_text(sound.replace(mutation.right, mutation.wrong), encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", mutation.tests]
    ran = subprocess.run(words, cwd=copy, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(copy)})
    path.write_text(sound, encoding="utf-8")
    if ran.returncode not in (0, 1):
        raise SystemExit(f"{mutation.tests}: pytest ended with status {ran.returncode}: {ran.stdout[-2000:]}")
    return re.findall(r"^FAILED (.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)


def main() -> int:
    """Try all defects and print which test notices each; 1 if one goes unnoticed."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    unnoticed = 0
    print("| defect | in | noticed by |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="cellseg-mutations-") as made:
        copy = Path(made) / "copy"
        for part in ("cellseg", "tests"):
            shutil.copytree(REPOSITORY / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "pyproject.toml", copy)
        for mutation in MUTATIONS:
            failed = try_mutation(mutation, copy)
            unnoticed += not failed
            said = f"`{failed[0]}`" if failed else "**no test**"
            print(f"| {mutation.what} | `{mutation.file}` | {said} |", flush=True)
    print(f"\n{len(MUTATIONS)} defects put back, {unnoticed} unnoticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
