"""The command line: each command composes the library's functions; heavy imports wait inside them.

Results go to stdout, talk to stderr. Exit status: 0 success, 1 an expected failure in one clear line (``--debug``
shows its traceback), 2 misuse.
"""

from __future__ import annotations

import logging
import sys
import warnings

from cellseg.cli import data, label_free, predicting, scoring, training, weights  # noqa: F401 (each adds its commands to the application)
from cellseg.cli.app import app, fail, say
from cellseg.core import CellsegError

_CTRL_C = 130
_INTERRUPTED = "interrupted; what was saved is kept, go on with --resume"


def main() -> None:
    """Run the command line; turn expected failures into one line and exit status 1."""
    debug = "--debug" in sys.argv[1:]
    for library in ("tifffile", "lightning_fabric", "PIL"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what they say is said again, in one line, by us
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    try:
        app()
    except (CellsegError, MemoryError) as error:
        if debug:
            raise
        fail(str(error) or "out of memory")
    except RuntimeError as error:
        from cellseg.halving import ran_out

        if debug or not ran_out(error):
            raise
        fail(f"out of memory ({' '.join(str(error).split())[:200]}); another --device may have more")
    except OSError as error:  # what no reader and no writer has put into words
        if debug:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        fail(f"{where}{error.strerror or error}; is the disk full or read-only, or the file not yours?")
    except KeyboardInterrupt:
        fail(_INTERRUPTED)
    except SystemExit as ended:
        if ended.code == _CTRL_C:  # typer's way to end without a word
            fail(_INTERRUPTED)
        raise
