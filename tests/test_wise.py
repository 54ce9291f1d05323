import pytest
import torch

from cellseg.core import CellsegError
from cellseg.models.wise import interpolate, mixed_distances

START = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
END = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(7)}


def test_a_quarter_of_the_way_to_the_end():
    mixed = interpolate(START, END, 0.25)
    assert mixed["w"].tolist() == [0.25, 3.0]
    assert int(mixed["n"]) == 7  # a count is not averaged


@pytest.mark.parametrize(("weight", "expected"), [(0.0, START), (1.0, END)])
def test_the_ends_are_exact_and_copied(weight, expected):
    mixed = interpolate(START, END, weight)
    assert all(torch.equal(mixed[name], expected[name]) for name in expected)
    mixed["w"].zero_()
    assert expected["w"].any()


def test_other_shapes_names_and_shares_are_refused():
    with pytest.raises(CellsegError, match="differ in 'w'"):
        interpolate(START, END | {"w": torch.zeros(3)}, 0.5)
    with pytest.raises(CellsegError, match="differ in 'x'"):
        interpolate(START, END | {"x": torch.zeros(3)}, 0.5)
    with pytest.raises(CellsegError, match=r"but 1\.5 was given"):
        interpolate(START, END, 1.5)


def test_distances_shrink_with_the_share():
    summary = {"distance": 0.5, "distances": {"a": 0.25, "b": 1.0}, "steps": 3}
    assert mixed_distances(summary, 0.5) == {"distance": 0.25, "distances": {"a": 0.125, "b": 0.5}}
    assert mixed_distances({"distance": None, "distances": None}, 0.5) == {"distance": None, "distances": None}
