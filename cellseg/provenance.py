"""What a number was made with: revision, versions and machine, in a form that is saved beside it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "monai", "numpy", "scipy", "scikit-image", "opencv-python-headless", "albumentations")
"""Packages whose version may move a result."""


def describe() -> dict[str, str]:
    """Return revision, versions, processor and the command that runs, as plain strings.

    Without git or outside a checkout the revision is ``unknown``; uncommitted changes are said. The command is the
    program's name and its arguments, without the program's folder.
    """
    known = {"revision": revision(), "python": platform.python_version(), "cpu": processor()}
    known |= {name: found for name in ("cellseg", *PACKAGES) if (found := _version(name))}
    return known | {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])}


def revision() -> str:
    """Return the short git revision of the code that runs, with `` and changes`` where files differ from it."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        ran = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    if not (root / ".git").exists():
        return "unknown"
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "cellseg")
        return git("rev-parse", "--short", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """Return the name and the number of processors, such as ``AMD EPYC, 2 cores``."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
