"""Instance overlap, matching and the rules of counting; torch-free."""

from cellseg.metrics.matching import THRESHOLDS, count_matches
from cellseg.metrics.overlap import Overlap, overlap
from cellseg.metrics.rules import match, neurips_f1
from cellseg.metrics.summary import aji, count_errors, foreground_dice, seg

__all__ = [
    "THRESHOLDS",
    "Overlap",
    "aji",
    "count_errors",
    "count_matches",
    "foreground_dice",
    "match",
    "neurips_f1",
    "overlap",
    "seg",
]
