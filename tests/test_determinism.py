"""The same seed gives the same batches: a function of seed, step, process and number of processes alone."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from fakes import four_disks

from cellseg.config import AugmentConfig, ModelConfig
from cellseg.core import Record
from cellseg.datasets.crops import CropDataset
from cellseg.images import write_labels


def write_records(folder):
    records = []
    for number in range(5):
        image, truth = folder / f"{number}.tif", folder / f"{number}_label.tif"
        labels = np.roll(four_disks(), 5 * number, axis=0)
        tifffile.imwrite(image, (labels > 0).astype(np.uint8) * 90 + np.uint8(20 + number))
        write_labels(truth, labels)
        group = "ab"[number % 2]
        records.append(Record(str(number), image, truth, "d", "train", group, 96, 96, 4, "instances", 24.0))
    return records


def dataset(records, place=(0, 1), *, seed=3, balance="image", labelled=True):
    return CropDataset(
        records, ModelConfig(), AugmentConfig(), diameters=[24.0] * len(records), shape=(4 // place[1], 48), seed=seed,
        rank=place[0], world=place[1], balance=balance, labelled=labelled,
    )  # fmt: skip


def digest(crops):
    found = hashlib.sha256(repr(crops.ids).encode())
    for name in ("weak", "strong", "target", "weight"):
        if (tensor := getattr(crops, name)) is not None:
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def digests(records):
    """Batches of single processes and of two, labelled and not, in an order of their own."""
    return [
        digest(dataset(records, place, balance=balance, labelled=labelled)[step])
        for labelled, balance in ((True, "image"), (True, "group"), (False, "image"))
        for place in ((0, 1), (0, 2), (1, 2))
        for step in (7, 0, 1000)
    ]


def test_batches_do_not_depend_on_what_was_asked_before(tmp_path):
    records = write_records(tmp_path)
    one, other = dataset(records), dataset(records)
    forth = [digest(one[step]) for step in range(6)]
    back = [digest(other[step]) for step in reversed(range(6))][::-1]
    assert forth == back
    assert len(set(forth)) == 6
    assert digest(dataset(records, seed=4)[0]) != forth[0]


@pytest.mark.parametrize("balance", ["image", "group", "root"])
def test_two_processes_share_the_batch_of_one(tmp_path, balance):
    records = write_records(tmp_path)
    whole = dataset(records, balance=balance)
    parts = [dataset(records, (rank, 2), balance=balance) for rank in (0, 1)]
    for step in range(8):
        assert whole[step].ids == parts[0][step].ids + parts[1][step].ids
        assert torch.equal(whole[step].weak, torch.cat([part[step].weak for part in parts]))


@pytest.mark.slow
def test_another_process_with_other_hashes_makes_the_same_batches(tmp_path):
    records = write_records(tmp_path)
    program = (
        "import pathlib, sys; sys.path[:0] = sys.argv[2:]; import test_determinism as here; "
        "print(*here.digests(here.write_records(pathlib.Path(sys.argv[1]))))"
    )
    there = tmp_path / "there"
    there.mkdir()
    places = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    environment = os.environ | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "3"}
    ran = subprocess.run(
        [sys.executable, "-c", program, there, *places], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout.split() == digests(records)
