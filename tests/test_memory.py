"""What a file may ask for: pipes, headers that lie and bombs are refused before anything is taken."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg import memory
from cellseg.core import CellsegError
from cellseg.images import read_image, read_labels, read_size
from cellseg.memory import MOST_PIXELS, free_bytes, require_file, require_plausible, require_room
from cellseg.slides.windows import has_windows

sys.path.insert(0, str(Path(__file__).parent / "faults"))
from damage import endless_zeros, png_of, tiff_of
from named_images import ome_of


def test_a_pipe_a_folder_and_a_device_are_no_files_and_what_is_not_there_passes(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    for path in (tmp_path / "pipe.tif", tmp_path, Path("/dev/zero")):
        with pytest.raises(CellsegError, match="a folder, a pipe or a device, not a file"):
            require_file(path)
    for name in ("nothing.tif", "a" * 5000, "a\0b"):
        require_file(tmp_path / name)


@pytest.mark.parametrize("function", [read_image, read_labels, read_size])
def test_a_pipe_that_nobody_writes_to_does_not_hold_a_reader_up(tmp_path, function):
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(CellsegError, match=r"a\.tif: cannot be read: it is a folder, a pipe"):
        function(tmp_path / "a.tif")


def test_room_is_for_two_copies(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 2 * 100 * 50 * 4)
    require_room("a.tif", (100, 50), 4)
    with pytest.raises(CellsegError) as error:
        require_room("a.tif", (101, 50), 4)
    assert str(error.value).startswith("a.tif: says it is 101 x 50, 0.0 GiB once decoded, but 0.0 GiB are free; ")


def test_more_pixels_than_any_image_has():
    require_plausible("a.tif", 2**17, MOST_PIXELS // 2**17)
    with pytest.raises(CellsegError, match=r"a\.tif: says it is 131,072 x 262,145 pixels, more than any image has"):
        require_plausible("a.tif", 2**17, MOST_PIXELS // 2**17 + 1)


def test_free_memory_is_the_least_of_all_limits(monkeypatch):
    assert 0 < free_bytes() < 2**60
    for name, left in (("_left_on_machine", 30), ("_left_in_container", 20), ("_left_to_process", 10)):
        monkeypatch.setattr(memory, name, lambda left=left: left)
    assert free_bytes() == 10
    monkeypatch.setattr(memory, "_left_in_container", lambda: -5)
    assert free_bytes() == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tiles.tif", tiff_of((2**16, 2**16), endless_zeros(2**22), 2**11)),
        ("strip.tif", tiff_of((2**15, 2**15), endless_zeros(2**30), None)),
        ("lie.tif", tiff_of((2**15, 2**15), b"", None, 1)),
        ("bomb.png", png_of((2**15, 2**15), endless_zeros(2**30))),
    ],
)
def test_bombs_are_refused_by_what_they_say_and_not_unpacked(tmp_path, monkeypatch, name, content):
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**30)
    for function in (read_image, read_labels):
        with pytest.raises(CellsegError, match=rf"{name}: says it is .* once decoded, but 1\.0 GiB are free"):
            function(tmp_path / name)


def test_the_same_files_written_small_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**22)
    (tmp_path / "tiles.tif").write_bytes(tiff_of((2**10, 2**10), endless_zeros(2**20), 2**10))
    (tmp_path / "zeros.png").write_bytes(png_of((2**10, 2**10 - 1), endless_zeros(2**20)))
    assert read_image(tmp_path / "tiles.tif").shape == (2**10, 2**10)
    assert read_labels(tmp_path / "zeros.png").shape == (2**10, 2**10 - 1)


def test_only_the_plane_that_is_read_counts_where_planes_lie_apart(tmp_path, monkeypatch):
    stack = np.zeros((50, 100, 100), np.uint8)
    tifffile.imwrite(tmp_path / "apart.tif", stack, metadata={"axes": "TYX"}, compression="zlib", ome=True)
    monkeypatch.setattr(memory, "free_bytes", lambda: 2 * 100 * 100)
    with pytest.warns(UserWarning, match="plane 0 of 50"):
        assert read_image(tmp_path / "apart.tif").shape == (100, 100)


def test_an_array_that_says_more_than_its_file_holds(tmp_path):
    head = b"{'descr': '<i4', 'fortran_order': False, 'shape': (99999, 99999), }\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64))
    with pytest.raises(CellsegError, match=r"a\.npy: cannot be read"):
        read_labels(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("other", "count", "message"),
    [
        ("../b.ome.tif", 1, r"has planes in '\.\./b\.ome\.tif', outside its folder"),
        ("/etc/passwd", 1, "outside its folder"),
        ("C:\\b.tif", 1, "outside its folder"),
        ("pipe.ome.tif", 1, "a folder, a pipe or a device, not a file"),
        ("b.ome.tif", 2**40, "says it has 1099511627776 planes"),
    ],
)
def test_an_ome_tiff_opens_no_other_file_than_its_neighbours(tmp_path, other, count, message):
    ome_of(other, count)(tmp_path)
    os.mkfifo(tmp_path / "in" / "pipe.ome.tif")
    for function in (read_image, read_size, has_windows):
        with pytest.raises(CellsegError, match=message):
            function(tmp_path / "in" / "a.ome.tif")


def test_an_ome_tiff_in_two_files_is_read(tmp_path):
    ome_of("b.ome.tif")(tmp_path)
    ome_of("a.ome.tif")(tmp_path / "other")
    (tmp_path / "other" / "in" / "a.ome.tif").rename(tmp_path / "in" / "b.ome.tif")
    with pytest.warns(UserWarning, match="plane 0 of 2"):
        assert read_image(tmp_path / "in" / "a.ome.tif").shape == (48, 64)
