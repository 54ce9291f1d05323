"""What the sections of ``make bench-inference`` have in common: their options, their three files, their last words."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cellseg.files import write_text

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, str]


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options of every section."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-bench/bin/python", help="Python with the peers")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/results", help="folder of the three files")
    parser.add_argument("--threads", type=int, default=2, help="threads of every method")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds of turns")
    return parser


def require_peers(python: Path) -> None:
    """End with one line where the environment of the peers is missing."""
    if not python.is_file():
        sys.exit(f"{python} is missing; make it by 'make bench-env'")


def publish(
    name: str, fields: Sequence[str], rows: list[Row], out: Path, text: str, draw: Callable[[list[Row], Path], None]
) -> None:
    """Write ``name.csv``, ``.md`` and ``.png`` into a folder and print the text."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.csv", buffer.getvalue())
    write_text(out / f"{name}.md", text)
    draw(rows, out / f"{name}.png")
    print(text, end="")


def verdict(broken: list[str]) -> int:
    """Say which limits were not kept; the exit status."""
    print("\n".join(["Limits not kept:", *broken] if broken else ["All limits kept."]), file=sys.stderr)
    return 1 if broken else 0
