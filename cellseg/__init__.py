"""Adapt a pretrained cell segmenter to your images, and see exactly what was gained and what was lost.

Examples
--------
>>> import cellseg
>>> from cellseg.images import read_image
>>> image = read_image("cells.tif")  # raw values, (H, W) or (H, W, C)
>>> model = cellseg.load("experiments/runs/real_teacher/s0")  # a run folder or a weights file
>>> labels = model.segment(image)  # int32 (H, W), 0 is background, 1..N are the cells

For one image ``cellseg.segment(image, model=..., diameter=...)`` does the same. Labels become tables and outlines for
QuPath and Fiji in :mod:`cellseg.outputs`.
"""

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


def __dir__() -> list[str]:
    """List what the package offers, also before it was imported."""
    return sorted({*globals(), *__all__})
