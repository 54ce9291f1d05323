"""Every result says what it was made with."""

import json
import subprocess
from pathlib import Path

import cellseg
from cellseg.provenance import describe, processor, revision


def test_revision_is_that_of_the_checkout():
    root = Path(cellseg.__file__).resolve().parent.parent
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert revision() == "unknown" if not head else head.startswith(revision().split()[0])


def test_description_is_plain_text_without_folders():
    known = describe()
    assert json.loads(json.dumps(known)) == known
    assert {"revision", "python", "cpu", "cellseg", "torch", "command"} <= set(known)
    assert not known["command"].startswith("/")
    assert processor().endswith("cores")
