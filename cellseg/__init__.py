"""Adapt a pretrained cell segmenter to your images, and see exactly what was gained and what was lost."""

__version__ = "0.1.0"
