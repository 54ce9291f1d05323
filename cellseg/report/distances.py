"""How far an adaptation moved the weights it handed out, layer by layer, from the files of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellseg.core import CellsegError
from cellseg.report.runs import Method, Run
from cellseg.report.start import WEIGHTS, find_weights


@dataclass(frozen=True)
class Distance:
    """Relative distance ‖w − w⁰‖ / ‖w⁰‖ from the start.

    Attributes
    ----------
    whole : float
        Over all weights together.
    layers : dict of str to float
        Of every layer, weight and bias together, from the image to the maps; ‖w − w⁰‖ where the start is 0.
    """

    whole: float
    layers: Mapping[str, float]


def measure_distance(run: Run) -> Distance | None:
    """Compare the weights that a run handed out with those it started from; None where either is gone.

    Of the parameters only: the running statistics of batch norm are no weights. Frozen layers count, as 0.
    """
    weights = find_weights(run.folder, run.start) if run.start is not None else None
    if weights is None or not (run.folder / WEIGHTS).is_file():
        return None
    from cellseg.checkpoint import load_weights

    try:
        first, last = (dict(load_weights(path)[0].named_parameters()) for path in (weights, run.folder / WEIGHTS))
    except CellsegError:
        return None
    squares: dict[str, list[float]] = {}
    for name, value in last.items():
        if name not in first or first[name].shape != value.shape:
            return None
        layer = squares.setdefault(name.rpartition(".")[0] or name, [0.0, 0.0])
        layer[0] += float((value - first[name]).detach().square().sum())
        layer[1] += float(first[name].detach().square().sum())
    whole = [sum(pair[part] for pair in squares.values()) for part in (0, 1)]
    return Distance(_relative(*whole), {name: _relative(*pair) for name, pair in squares.items()})


def _relative(moved: float, start: float) -> float:
    return float((moved / (start or 1.0)) ** 0.5)


def mean_distance(method: Method) -> Distance | None:
    """Return the mean distance over the seeds of a method whose weights and start are there; None without any."""
    found = [distance for run in method.runs if (distance := measure_distance(run)) is not None]
    if not found:
        return None
    layers = {
        name: _mean([each.layers[name] for each in found])
        for name in found[0].layers
        if all(name in each.layers for each in found)
    }
    return Distance(_mean([each.whole for each in found]), layers)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def furthest(distance: Distance, count: int = 3) -> list[tuple[str, float]]:
    """Return the layers that moved most, the furthest first."""
    return sorted(distance.layers.items(), key=lambda item: (-item[1], item[0]))[:count]
