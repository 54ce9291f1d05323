"""Adapt a pretrained cell segmenter to your images, and see exactly what was gained and what was lost."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "segment"]

if TYPE_CHECKING:
    from cellseg.predict import load, segment


def __getattr__(name: str) -> Any:
    """Import ``load`` and ``segment`` when they are first asked for, so that ``import cellseg`` is instant."""
    if name in {"load", "segment"}:
        from cellseg import predict

        return getattr(predict, name)
    raise AttributeError(f"module 'cellseg' has no attribute '{name}'")
