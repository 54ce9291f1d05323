"""Instance representations: encode labels to maps, decode maps to labels; torch-free."""

from __future__ import annotations

from types import ModuleType

from cellseg.core import CellsegError


def representation(name: str) -> ModuleType:
    """Return the module of a representation; it has ``N_MAPS``, ``encode``, ``decode``, ``warp`` and ``confidence``."""
    if name == "flow":
        from cellseg.instances import flow

        return flow
    raise CellsegError(f"unknown representation '{name}'; known: flow")
