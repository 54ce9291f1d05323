"""The application object, and what every command shares: options, messages, failures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from cellseg.core import CellsegError

if TYPE_CHECKING:
    from cellseg.config import RunConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt a pretrained cell segmenter to your images, and see exactly what was gained and what was lost.",
)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="dotted.key=value, as in the configuration.")]
Seed = Annotated[int, typer.Option(help="Seed of the run.")]
OnError = Annotated[
    Literal["stop", "skip"],
    typer.Option("--on-error", help="What a file does that cannot be used: stop, or be left out."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last saved state.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Read by :func:`main` before the commands run."""


def fail(message: str) -> NoReturn:
    """Say what went wrong in one line and stop with exit status 1."""
    say(f"error: {' '.join(message.split())}")
    raise SystemExit(1)


def say(text: str) -> None:
    """Print to stderr."""
    print(text, file=sys.stderr)


def check_known(what: str, name: str, known: tuple[str, ...]) -> None:
    """Refuse a name that is not in the list."""
    if name not in known:
        raise CellsegError(f"unknown {what} '{name}'; known: {', '.join(known)}")


def run_config(folder: Path) -> RunConfig:
    """Read the configuration a run folder was made with."""
    from cellseg.config import read_run

    return read_run(folder / "config.json")
