"""Instance representations: encode labels to maps, decode maps to labels; torch-free."""

from __future__ import annotations

from cellseg.core import CellsegError
from cellseg.instances.interface import Representation


def representation(name: str) -> Representation:
    """Return a representation by the name that ``model.representation`` gives it.

    Raises
    ------
    CellsegError
        If there is none of that name.
    """
    from cellseg.instances import boundary, distance, flow

    known: dict[str, Representation] = {"flow": flow, "distance": distance, "boundary": boundary}
    if name not in known:
        raise CellsegError(f"unknown representation '{name}'; known: {', '.join(known)}")
    return known[name]
