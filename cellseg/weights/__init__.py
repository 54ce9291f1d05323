"""Weights that come with the package: ``teacher``, trained on images that anybody may use (card: ``teacher.md``)."""

from __future__ import annotations

from pathlib import Path

TEACHER = "teacher"
"""Name under which every command and ``train.init`` take the shipped model."""

SUFFIX = ".safetensors"


def find_shipped(name: str) -> Path | None:
    """Find the weights file of a shipped model.

    Parameters
    ----------
    name : str
        Such as ``teacher``.

    Returns
    -------
    Path or None
        The file within the package; None where no model of that name is shipped, or the package was installed
        without its data.

    Examples
    --------
    >>> find_shipped("nobody") is None
    True
    """
    if name != TEACHER:
        return None
    path = Path(__file__).with_name(f"{name}{SUFFIX}")
    return path if path.is_file() else None
