"""Two processes as torchrun starts them train what one process trains with twice the batch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from cellseg.adapt import adapt
from cellseg.checkpoint import load_weights
from cellseg.config import load_config
from cellseg.core import Record
from cellseg.datasets.index import write_index
from cellseg.images import write_labels
from cellseg.train import train

RUN = """
[[data.train]]
index = "{index}"

[[data.unlabelled]]
index = "{index}"

[model]
size = "tiny"

[augment]  # crops that lie inside their image, so that each weighs the same
rotate = false
scale_min = 1.0
scale_max = 1.0

[train]  # steps in proportion to the gradient
steps = 3
warmup_steps = 0
crop_size = 64
optimizer = "sgd"
lr = 0.05
precision = "off"
ema = 0.5
log_every = 1

[adapt]
method = "consistency"
ramp_steps = 0
confidence = 0.0
watch = 0
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Four images of disks, larger than a crop."""
    folder = tmp_path_factory.mktemp("disks")
    rows, columns = np.indices((80, 90))
    records = []
    for number in range(4):
        rng = np.random.default_rng(number)
        labels = np.zeros(rows.shape, np.int32)
        for cell, (y, x) in enumerate(rng.uniform((10, 10), (70, 80), (5, 2)), start=1):
            labels[(rows - y) ** 2 + (columns - x) ** 2 <= 11**2] = cell
        image = (labels > 0) * 120 + 40 + rng.normal(0, 6, labels.shape)
        image_file, label_file = folder / f"{number}.tif", folder / f"{number}_label.tif"
        tifffile.imwrite(image_file, image.clip(0, 255).astype(np.uint8))
        write_labels(label_file, labels)
        facts = ("disks", "train", "g", *labels.shape, 5, "instances", 24.0)
        records.append(Record(str(number), image_file, label_file, *facts))
    write_index(folder / "index.csv", records)
    return str(folder / "index.csv")


@pytest.fixture
def run(index, tmp_path):
    (tmp_path / "run.toml").write_text(RUN.format(index=index))
    return tmp_path / "run.toml"


def crops(number):
    return [f"train.batch_size={number}", f"adapt.batch_size={number}"]


def under_torchrun(command, run, *overrides):
    """Start two processes with half a batch each as a user does; return the run folder."""
    out = run.parent / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [word for override in (*crops(1), *overrides) for word in ("--set", override)]
    words = [*torchrun, "-m", "cellseg.cli", command, run, "--out", out, "--device", "cpu", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def weights(path):
    return load_weights(path)[0].state_dict()


def farthest(first, second):
    """Largest difference of two sets of weights."""
    assert set(first) == set(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_two_processes_train_what_one_does_with_twice_the_batch(run, tmp_path):
    two = weights(under_torchrun("train", run))
    one = weights(train(load_config(run, crops(2)), tmp_path / "one", device="cpu"))
    half = weights(train(load_config(run, crops(1)), tmp_path / "half", device="cpu"))
    assert farthest(one, two) < 1e-5
    assert farthest(one, half) > 1e-4  # the crops of the other process matter
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 3  # one of them writes


@pytest.mark.slow
def test_two_processes_adapt_what_one_does_with_twice_the_batch(run, tmp_path):
    teacher = train(load_config(run, crops(2)), tmp_path / "teacher", device="cpu")
    init = f"train.init={teacher}"
    two = weights(under_torchrun("adapt", run, init))
    one = weights(adapt(load_config(run, [*crops(2), init]), tmp_path / "one", device="cpu"))
    moved = farthest(one, weights(teacher))
    assert moved > 1e-3
    assert farthest(one, two) < 0.01 * moved  # a pixel of the soft targets may round to the other side of a threshold
