"""Images on many workers: the results of one process, whatever becomes of the workers."""

import json
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from fakes import Reader
from test_predict_slides import SHAPE, WISH, finished_in, image_of, segmenter_of, truth, undivided  # noqa: F401

from cellseg.checkpoint import save_weights
from cellseg.config import ModelConfig, PredictConfig
from cellseg.core import CellsegError
from cellseg.farm import scheduling, tasks
from cellseg.farm.cluster import connect, threads_each
from cellseg.farm.scheduling import RETRIES, Part, predict_on, take
from cellseg.farm.tasks import Recipe
from cellseg.farm.tasks import segmenter_of as loaded
from cellseg.images import read_labels
from cellseg.models.build import build_model
from cellseg.orders import Interrupted, Told, Wish, orders_of
from cellseg.predict import load
from cellseg.predict_images import predict_images
from cellseg.slides.blocks import make_plan
from cellseg.slides.windows import write_tiled

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'cellseg[dask]'")


@pytest.fixture(autouse=True)
def one_thread():
    """What a network finds depends in its last bits on the number of threads, which each thread has of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def here():
    """A cluster of two workers that are threads of this process, so that what is patched here is patched there."""
    with threads() as cluster, distributed.Client(cluster) as client:
        yield client


def threads():
    options = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
    return distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options)


@pytest.fixture
def recipe(monkeypatch):
    """A model that reads the cells off the image."""
    monkeypatch.setattr(tasks, "_load", lambda recipe: segmenter_of())
    monkeypatch.setattr(tasks, "_LOADED", {})
    return Recipe("reader", "cpu", PredictConfig(), None)


@pytest.fixture
def slide(truth, tmp_path):  # noqa: F811 (a fixture of another module)
    write_tiled(tmp_path / "a.tif", image_of(truth, "distance"))
    return tmp_path / "a.tif"


def small(path):
    """An image of one block, with two cells."""
    labels = np.zeros((60, 70), np.int32)
    labels[10:30, 12:35], labels[36:55, 40:60] = 1, 2
    tifffile.imwrite(path, image_of(labels, "distance", noise=0), photometric="rgb")
    return labels


def predict(client, recipe, files, out, **told):
    orders = orders_of([(path.stem, path) for path in files], out, Wish(**WISH))
    return {found.name: found for found in predict_on(client, recipe, orders, Told(**told))}


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    config, path = ModelConfig(size="tiny"), tmp_path_factory.mktemp("model") / "m.safetensors"
    save_weights(path, build_model(config), config, {"diameter": 24.0})
    return path


def test_a_killed_worker_changes_nothing(weights, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (640, 640), dtype=np.uint8)
    write_tiled(tmp_path / "a.tif", image)
    tifffile.imwrite(tmp_path / "b.tif", image[:60, :60])
    files, wish = [("a", tmp_path / "a.tif"), ("b", tmp_path / "b.tif")], Wish(24.0, block=64)
    segmenter = load(weights, device="cpu")
    serial = {found.name: found for found in predict_images(segmenter, files, tmp_path / "serial", wish)}
    assert len(serial["a"].scores) > 20
    blocks, killed = tmp_path / "out" / "a.blocks", {}

    def kill(worker):
        while len(finished_in(blocks)) < 5:
            time.sleep(0.005)
        killed["after"] = len(finished_in(blocks))
        os.kill(worker, signal.SIGKILL)

    recipe = Recipe(str(weights), "cpu", segmenter.settings, torch.get_num_threads())
    with connect(2, None) as client:
        workers = list(client.run(os.getpid).values())
        assert len({os.getpid(), *workers}) == 3
        killer = threading.Thread(target=kill, args=[workers[0]])
        killer.start()
        found = {one.name: one for one in predict_on(client, recipe, orders_of(files, tmp_path / "out", wish))}
        killer.join()
    assert 5 <= killed["after"] < 100  # blocks
    assert set(found) == {"a", "b"}
    assert all(np.array_equal(found[name].scores, serial[name].scores) for name in found)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "serial")


def test_the_files_of_many_workers_are_those_of_one_process(here, recipe, slide, truth, tmp_path):  # noqa: F811
    labels = small(tmp_path / "b.tif")
    found = predict(here, recipe, [slide, tmp_path / "b.tif"], tmp_path / "out")
    assert np.array_equal(read_labels(found["a"].labels), undivided(truth))
    assert np.array_equal(read_labels(found["b"].labels), labels)
    files = [("a", slide), ("b", tmp_path / "b.tif")]
    list(predict_images(segmenter_of(), files, tmp_path / "serial", Wish(**WISH)))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "serial")
    said = []
    again = predict(here, recipe, [slide], tmp_path / "out", notice=said.append)
    assert said == [f"a.tif: was finished before, {tmp_path / 'out' / 'a.tif'} is kept"]
    assert np.allclose(again["a"].scores, found["a"].scores, atol=1e-8)


def test_what_else_is_wanted_is_done_by_the_workers(here, recipe, tmp_path):
    small(tmp_path / "b.tif")
    predict(here, recipe, [tmp_path / "b.tif"], tmp_path / "out", beside=Beside(tmp_path / "noted"))
    assert (tmp_path / "noted").read_text() == "b, not by the main thread"


class Beside:
    """Notes in a file who was told what."""

    def __init__(self, path):
        self.path = path

    def __call__(self, found):
        who = "" if threading.current_thread() is threading.main_thread() else "not "
        self.path.write_text(f"{found.name}, {who}by the main thread")


class Failing(Reader):
    """Cannot look at windows that show a bright spot, and counts how often it was tried."""

    tried = 0

    def forward(self, images):
        if images.amax() > 50:
            type(self).tried += 1
            raise RuntimeError("a bright spot")
        return super().forward(images)


def test_a_block_that_always_fails_is_named_and_the_rest_goes_on(here, recipe, slide, tmp_path, monkeypatch):
    image = tifffile.imread(slide)
    image[150, 3] = 60  # seen by blocks on the left alone
    write_tiled(tmp_path / "a.tif", image)
    labels, failed = small(tmp_path / "b.tif"), []
    monkeypatch.setattr(Failing, "tried", 0)
    monkeypatch.setattr(tasks, "_load", lambda recipe: segmenter_of(network=Failing()))
    files = [slide, tmp_path / "b.tif"]
    found = predict(here, recipe, files, tmp_path / "out", failed=failed.append)
    assert list(found) == ["b"]
    assert np.array_equal(read_labels(found["b"].labels), labels)
    (error,) = failed
    assert Failing.tried >= 1 + RETRIES
    assert str(error).startswith("a.tif, block 000")
    assert "): a bright spot; " in str(error)
    assert str(error).endswith("a.blocks: the same command goes on there")
    kept = finished_in(tmp_path / "out" / "a.blocks")
    said = []
    monkeypatch.setattr(tasks, "_load", lambda recipe: segmenter_of())
    assert set(predict(here, recipe, [slide], tmp_path / "out", notice=said.append)) == {"a"}
    assert len(said) == (len(kept) > 0)
    with pytest.raises(CellsegError, match="no such file"):  # without anyone to take it, an error stops all
        predict(here, recipe, [tmp_path / "none.tif"], tmp_path / "out")


def test_ctrl_c_says_what_is_kept(here, recipe, slide, tmp_path, monkeypatch):
    collect = scheduling._Farm.collect

    def interrupted(self):
        yield from collect(self)
        if len(finished_in(tmp_path / "out" / "a.blocks")) >= 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(scheduling._Farm, "collect", interrupted)
    with pytest.raises(CellsegError, match=r"^interrupted; \d+ of 12 blocks of a\.tif are finished and kept in "):
        predict(here, recipe, [slide], tmp_path / "out")


def test_only_as_many_tasks_are_in_flight_as_there_are_workers(here, recipe, slide, tmp_path, monkeypatch):
    submit, flying = scheduling._Farm.submit, []

    def watched(self):
        submit(self)
        flying.append(len(self.flying))

    monkeypatch.setattr(scheduling._Farm, "submit", watched)
    predict(here, recipe, [slide], tmp_path / "out")
    assert max(flying) == 2


def test_a_worker_with_another_model_is_refused(recipe):
    with pytest.raises(CellsegError, match="reader is another model here than on the other workers"):
        loaded(replace(recipe, fingerprint="another"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CellsegError("a.tif: damaged"), "a.tif: damaged"),
        (distributed.KilledWorker("key", None, 2), "a.tif: every worker that tried it died, perhaps of too little"),
        (MemoryError(), "a.tif: out of memory; a smaller --block needs less"),
        (ZeroDivisionError("division\nby zero"), "a.tif: ZeroDivisionError: division by zero"),
        (ModuleNotFoundError("No module named 'cellseg'"), r"a worker cannot use cellseg \(No module named 'cellseg'"),
        (CancelledError("lost"), r"the Dask scheduler is gone, what was finished is kept \(lost\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_task_raises_becomes_one_line(error, said):
    def result():
        raise error

    with pytest.raises(CellsegError, match=said) as told:
        scheduling._result(SimpleNamespace(result=result), "a.tif")
    assert "\n" not in str(told.value)


def names(blocks):
    return [block.name for block in blocks]


def test_workers_take_neighbours_and_then_half_of_what_others_have():
    blocks = make_plan((100, 1200), 1.0, 24.0, 100).blocks()  # 12 in a row
    parts = [Part(deque(blocks))]
    assert take(parts, "a", 2) == blocks[:2]  # nobody's yet
    assert take(parts, "b", 2) == blocks[7:9]  # half of the ten that are left
    assert take(parts, "a", 2) == blocks[2:4]
    assert take(parts, "b", 2) == blocks[9:11]
    assert take(parts, "b", 2) == blocks[11:]
    assert take(parts, "b", 2) == blocks[5:7]  # of three, the larger half
    assert take(parts, "a", 2) == [blocks[4]]
    assert take(parts, "a", 2) == take(parts, "b", 2) == []


def test_all_blocks_are_taken_once_whoever_asks():
    blocks, rng = make_plan((1000, 1000), 1.0, 24.0, 100).blocks(), np.random.default_rng(0)
    parts, taken = [Part(deque(blocks))], []
    while run := take(parts, f"worker {rng.integers(7)}", 3):
        taken += run
    assert sorted(names(taken)) == names(blocks)


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("cellseg.farm.cluster._PATIENCE_S", 0.1)
    with (
        pytest.raises(CellsegError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there"),
        connect(None, "tcp://127.0.0.1:9"),
    ):
        pass
    with pytest.raises(CellsegError, match=r"--scheduler nowhere\.json: no such file"), connect(None, "nowhere.json"):
        pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CellsegError, match=r"need Dask, which is not installed: pip install 'cellseg\[dask\]'"):
        connect(2, None).__enter__()


def test_a_cluster_that_runs_is_joined_by_its_address_or_file(here, recipe, tmp_path):
    small(tmp_path / "b.tif")
    (tmp_path / "s.json").write_text(json.dumps({"address": here.scheduler.address}))
    for where in (here.scheduler.address, str(tmp_path / "s.json")):
        with connect(None, where) as client:
            assert client is not here
            assert set(predict(client, recipe, [tmp_path / "b.tif"], tmp_path / "out")) == {"b"}
    assert len(here.nthreads()) == 2  # it goes on


def test_a_scheduler_that_is_lost_stops_the_work_and_says_so(recipe, slide, tmp_path, monkeypatch):
    collect, cluster = scheduling._Farm.collect, threads()

    def lost(self):
        if len(finished_in(tmp_path / "out" / "a.blocks")) >= 2:
            cluster.close()
        yield from collect(self)

    monkeypatch.setattr(scheduling._Farm, "collect", lost)
    failed = []
    with cluster, distributed.Client(cluster, timeout=1) as client, pytest.raises(Interrupted) as told:
        predict(client, recipe, [slide], tmp_path / "out", failed=failed.append)
    assert str(told.value).startswith("the Dask scheduler is gone, what was finished is kept")
    assert failed == []  # it is not the image's fault


def test_threads_are_shared_out(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_each(workers) for workers in (1, 3, 8, 20)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads_each(2) == 1


def test_the_command_hands_its_work_to_a_cluster(here, weights, tmp_path, monkeypatch):
    from contextlib import nullcontext

    from typer.testing import CliRunner

    from cellseg.cli import app

    image = np.random.default_rng(0).integers(0, 255, (150, 130), dtype=np.uint8)
    write_tiled(tmp_path / "a.tif", image)
    (tmp_path / "bad.tif").write_bytes(b"no image")
    monkeypatch.setattr("cellseg.farm.cluster.connect", lambda workers, scheduler: nullcontext(here))
    monkeypatch.setattr("cellseg.farm.cluster.threads_each", lambda workers: 1)
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(weights), "--diameter", "24", "--block", "80", "--device", "cpu", "--format", "geojson"]
    arguments = ["predict", "a.tif", "bad.tif", *options, "--measure", "cells.csv"]
    done = CliRunner().invoke(app, [*arguments, "--out", "out", "--workers", "2"])
    assert done.exit_code == 1, done.output  # one was left out
    assert "left out: " in done.output
    alone = CliRunner().invoke(app, [*arguments, "--out", "alone"])
    assert alone.output.replace("alone", "out") == done.output.replace(f"{tmp_path}/", "")  # sent as absolute paths
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")
    both = CliRunner().invoke(app, [*arguments, "--out", "out", "--workers", "2", "--scheduler", "tcp://a:1"])
    assert isinstance(both.exception, CellsegError)
