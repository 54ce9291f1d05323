"""Slides in blocks: the result is that of the image undivided, and whatever stops a run, the next one goes on."""

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from fakes import Reader

from cellseg.checkpoint import save_weights
from cellseg.confidences import read_confidences
from cellseg.config import ModelConfig, NormalizeConfig, PredictConfig
from cellseg.core import CellsegError
from cellseg.images import read_labels
from cellseg.instances import representation
from cellseg.metrics import match
from cellseg.models.build import build_model
from cellseg.orders import Told, Wish, in_strips
from cellseg.predict import Segmenter, decoding_shape
from cellseg.predict_images import predict_images
from cellseg.predict_slides import predict_slide, run_block, segment_block, start_job
from cellseg.slides.block_files import BlockFolder
from cellseg.slides.blocks import BLOCK, Region, make_plan
from cellseg.slides.pyramids import read_slide
from cellseg.slides.windows import write_tiled
from cellseg.sliding import KEPT_BYTES
from cellseg.sources import InMemory

SHAPE = (300, 340)
RAW = NormalizeConfig(rule="none")


def ellipse(labels, cell, centre, axes, angle):
    rows, columns = np.indices(labels.shape)
    down, right = rows - centre[0], columns - centre[1]
    along = (down * np.cos(angle) + right * np.sin(angle)) / axes[0]
    across = (right * np.cos(angle) - down * np.sin(angle)) / axes[1]
    inside = along**2 + across**2 <= 1
    if not labels[inside].any():
        labels[inside] = cell


@pytest.fixture(scope="module")
def truth():
    """Some fifty ellipses of up to 40 pixels, and one of 130 that a halo of 72 cuts."""
    rng, labels = np.random.default_rng(1), np.zeros(SHAPE, np.int32)
    ellipse(labels, 1, (150, 170), (65, 7), 0.8)
    for cell in range(2, 110):
        ellipse(labels, cell, rng.uniform((0, 0), SHAPE), rng.uniform(5, 20, 2), rng.uniform(0, np.pi))
    return labels


def image_of(labels, name, noise=0.3):
    """The image in which a :class:`Reader` reads the noisy maps of these labels."""
    module = representation(name)
    maps = module.ideal_maps(module.encode(labels))
    maps = np.concatenate([maps, np.zeros((3 - len(maps), *labels.shape), np.float32)])
    maps = maps + np.random.default_rng(2).normal(0, noise, maps.shape).astype(np.float32)
    return np.ascontiguousarray(maps.transpose(1, 2, 0), np.float32)


class Whole(Reader):
    """Takes all three channels for the maps."""

    def forward(self, images):
        return images.clone()


def segmenter_of(name="distance", network=None, **settings):
    config = ModelConfig(representation=name, normalize=RAW, size="tiny")
    network = network or (Reader() if name == "distance" else Whole())
    return Segmenter(network, config, PredictConfig(tile=64, **settings), torch.device("cpu"), {"diameter": 24.0})


def predict(segmenter, image, out, **wish):
    said = []
    (found,) = predict_images(segmenter, [("a", image)], out, Wish(**wish), Told(said.append))
    return found, said


def in_reading_order(labels):
    """Number the cells by their first pixels."""
    ids, first = np.unique(labels, return_index=True)
    order = ids[np.argsort(first)]
    numbers = np.zeros(labels.max() + 1, np.int32)
    numbers[order[order > 0]] = np.arange(1, np.count_nonzero(order) + 1)
    return numbers[labels]


@pytest.mark.parametrize("name", ["distance", "flow"])
@pytest.mark.parametrize("zoom", [1.0, 0.7, 1.5])
def test_blocks_give_the_undivided_result(truth, tmp_path, name, zoom):
    image, one = image_of(truth, name), segmenter_of(name)
    write_tiled(tmp_path / "a.tif", image)
    whole, whole_scores = one.segment_normalized_with_scores(image, 24 / zoom)
    for block in (97, 160):
        found, _ = predict(one, tmp_path / "a.tif", tmp_path / "out", diameter=24 / zoom, block=block)
        labels = read_labels(found.labels)
        assert np.array_equal(labels > 0, whole > 0)
        assert np.array_equal(np.unique(labels), np.arange(whole.max() + 1))
        assert match(whole, labels, (0.9,))[0].f1 == 1
        assert np.allclose(np.sort(found.scores), np.sort(whole_scores), atol=2e-3)
        assert np.allclose(read_confidences(found.target, labels), found.scores, atol=1e-8)
        if zoom == 1 or name == "flow":
            assert np.array_equal(labels, in_reading_order(whole))
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.scores.csv", "a.tif"]


def test_the_halo_grows_around_a_cell_that_it_cuts_and_no_further(monkeypatch):
    one, shapes = segmenter_of(), []
    decode = Segmenter.decode

    def watched(self, maps, zoom):
        shapes.append(maps.shape[1:])
        return decode(self, maps, zoom)

    monkeypatch.setattr(Segmenter, "decode", watched)
    labels = np.zeros(SHAPE, np.int32)
    ellipse(labels, 1, (150, 170), (110, 7), 0.8)  # reaches 77 rows and 79 columns from the middle
    plan = make_plan(SHAPE, 1.0, 24.0, 50)
    assert (plan.halo, plan.largest_halo) == (72, 144)
    blocks = {block.place: block for block in plan.blocks()}
    source = InMemory(image_of(labels, "distance", noise=0))
    segment_block(one, source, plan, blocks[0, 6])
    segment_block(one, source, plan, blocks[3, 3])
    corner, middle = blocks[0, 6].core.grown(72, SHAPE).shape, blocks[3, 3].core
    assert shapes == [corner, middle.grown(72, SHAPE).shape, middle.grown(144, SHAPE).shape]


def test_a_cell_larger_than_any_halo_gets_one_number(tmp_path):
    labels = np.zeros((150, 900), np.int32)
    labels[60:76, 5:890] = 1
    labels[20:40, 100:120], labels[100:120, 300:330] = 2, 3
    write_tiled(tmp_path / "a.tif", image_of(labels, "distance", noise=0))
    found, _ = predict(segmenter_of(), tmp_path / "a.tif", tmp_path / "out", diameter=24.0, block=64)
    assert np.array_equal(read_labels(found.labels), in_reading_order(labels))
    assert len(found.scores) == 3


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("zoom", [0.6, 1.0, 1.4])
def test_a_network_says_the_same_of_a_pixel_in_whatever_region(zoom, tta):
    torch.manual_seed(0)
    one = segmenter_of("flow", build_model(ModelConfig(size="tiny")).eval(), tta=tta)
    source = InMemory(np.random.default_rng(0).random((190, 220, 3), np.float32))
    shape = decoding_shape(source.shape, zoom)
    whole = one.maps_of(source, zoom, Region.whole(shape))
    assert whole.shape == (3, *shape)
    for region in (Region(0, 0, 50, 60), Region(70, 31, 133, 180)):
        part = one.maps_of(source, zoom, region)
        assert np.array_equal(part, whole[:, region.rows, region.columns])


def test_a_block_is_plain_data_and_may_be_computed_elsewhere(truth, tmp_path):
    write_tiled(tmp_path / "a.tif", image_of(truth, "distance"))
    one = segmenter_of()
    job = start_job(one, tmp_path / "a.tif", tmp_path / "a_labels.tif", Wish(24.0, block=100))
    there, job_there, block = pickle.loads(pickle.dumps((one, job, job.unfinished()[4])))
    ours, theirs = (segment_block(s, j.source, j.plan, block) for s, j in ((one, job), (there, job_there)))
    assert np.array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    run_block(there, job_there, block)
    assert len(job.unfinished()) == len(job.plan.blocks()) - 1


@pytest.mark.parametrize("as_zarr", [False, True])
def test_an_empty_image_has_empty_labels(tmp_path, as_zarr):
    write_tiled(tmp_path / "a.tif", np.full(SHAPE, 7, np.uint8))
    network = Reader()
    one = segmenter_of(network=network)
    network.forward = lambda images: images[:, :2] - 8
    for block, name in ((100, "slide"), (BLOCK, "small")):
        found, _ = predict(one, tmp_path / "a.tif", tmp_path / name, block=block, as_zarr=as_zarr)
        labels = read_slide(found.labels)
        assert labels.shape == SHAPE
        assert not labels.any()
        assert (tmp_path / name / "a.scores.csv").read_text() == "label,score\n"


class Counted(Reader):
    """Counts the windows it is shown, and may stop at one of them."""

    def __init__(self, stop=None, error=KeyboardInterrupt):
        super().__init__()
        self.shown, self.stop, self.error = 0, stop, error

    def forward(self, images):
        self.shown += 1
        if self.shown == self.stop:
            raise self.error()
        return super().forward(images)


@pytest.fixture
def slide(truth, tmp_path):
    write_tiled(tmp_path / "a.tif", image_of(truth, "distance"))
    return tmp_path / "a.tif"


def undivided(truth):
    image = image_of(truth, "distance")
    return in_reading_order(segmenter_of().segment_normalized(image, 24.0))


def finished_in(folder):
    return sorted(folder.glob("[0-9]*-*.tif"))


WISH = {"diameter": 24.0, "block": 100}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(KeyboardInterrupt, "interrupted; "), (MemoryError, "out of memory"), (RuntimeError, "RuntimeError; ")],
)
def test_what_stops_a_run_says_how_to_go_on_and_the_next_does(truth, slide, tmp_path, monkeypatch, error, reason):
    stopped = Counted(stop=21, error=error)  # of the 6 x 7 windows
    with pytest.raises(CellsegError, match=reason) as told:
        predict(segmenter_of(network=stopped), slide, tmp_path / "out", **WISH)
    finished = finished_in(tmp_path / "out" / "a.blocks")
    assert 0 < len(finished) < 12
    assert f"; {len(finished)} of 12 blocks of a.tif are finished and kept in " in str(told.value)
    assert str(told.value).endswith("a.blocks: the same command goes on there")
    before = {path: path.stat().st_mtime_ns for path in finished}
    monkeypatch.setattr(BlockFolder, "remove", lambda folder: None)
    found, said = predict(segmenter_of(), slide, tmp_path / "out", **WISH)
    assert said == [f"a.tif: {len(finished)} of 12 blocks were finished before, going on"]
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    assert np.array_equal(read_labels(found.labels), undivided(truth))


def test_a_finished_slide_is_not_done_again_unless_something_changed(slide, tmp_path):
    first, _ = predict(segmenter_of(), slide, tmp_path / "out", **WISH)
    again, said = predict(segmenter_of(network=Counted(stop=1)), slide, tmp_path / "out", **WISH)
    assert said == [f"a.tif: was finished before, {tmp_path / 'out' / 'a.tif'} is kept"]
    assert np.allclose(again.scores, first.scores, atol=1e-8)
    for changed in ({"min_size": 11}, {}):
        wish = WISH if changed else WISH | {"diameter": 25.0}
        _, said = predict(segmenter_of(**changed), slide, tmp_path / "out", **wish)
        assert said == []
    slide.touch()
    _, said = predict(segmenter_of(), slide, tmp_path / "out", **WISH | {"diameter": 25.0})
    assert said == []


def test_blocks_of_another_run_are_removed_with_a_warning(truth, slide, tmp_path):
    job = start_job(segmenter_of(), slide, tmp_path / "out" / "a.tif", Wish(30.0, block=100))
    run_block(segmenter_of(), job, job.unfinished()[0])
    with pytest.warns(UserWarning, match=r"a\.blocks: blocks of another run, which are removed"):
        found, said = predict(segmenter_of(), slide, tmp_path / "out", **WISH)
    assert said == []
    assert np.array_equal(read_labels(found.labels), undivided(truth))


def test_a_full_disk_loses_the_block_in_flight_only(truth, slide, tmp_path, monkeypatch):
    write, calls = tifffile.imwrite, []

    def full(path, *arguments, **options):
        calls.append(path)
        if len(calls) > 3:
            Path(path).write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(CellsegError, match=r"No space left on device\).*; 3 of 12 blocks of a\.tif are finished"):
        predict(segmenter_of(), slide, tmp_path / "out", **WISH)
    monkeypatch.setattr(tifffile, "imwrite", write)
    found, said = predict(segmenter_of(), slide, tmp_path / "out", **WISH)
    assert said == ["a.tif: 3 of 12 blocks were finished before, going on"]
    assert np.array_equal(read_labels(found.labels), undivided(truth))


def test_a_truncated_chunk_is_named_and_the_run_goes_on_when_it_is_whole_again(truth, tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=image_of(truth, "distance"), chunks=(64, 64, 3))
    chunk = path / "c" / "4" / "5" / "0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    with pytest.raises(CellsegError, match=r"a\.zarr: cannot be read, it may be damaged.* of 12 blocks of a\.zarr are"):
        predict(segmenter_of(), path, tmp_path / "out", **WISH)
    chunk.write_bytes(content)
    with pytest.warns(UserWarning, match="its files changed since this was begun, finished blocks are kept; remove "):
        found, said = predict(segmenter_of(), path, tmp_path / "out", as_zarr=True, **WISH)
    assert "blocks were finished before, going on" in said[0]
    assert found.labels == tmp_path / "out" / "a.zarr" / "labels" / "cells"
    assert np.array_equal(read_slide(found.labels), undivided(truth))


@pytest.mark.parametrize("held", [None, "word"])
def test_a_note_of_blocks_by_another_version_ends_in_no_traceback(truth, slide, tmp_path, held):
    target = tmp_path / "a.tif"
    job = start_job(segmenter_of(), slide, target, Wish(**WISH))
    run_block(segmenter_of(), job, job.unfinished()[0])
    facts = job.folder.facts()
    run = {key: value for key, value in facts["run"].items() if key != "pixels"} if held is None else held
    job.folder.start(facts | {"run": run})
    total = len(job.plan.blocks())
    if held is None:  # before the pixels were noted
        assert len(start_job(segmenter_of(), slide, target, Wish(**WISH)).unfinished()) == total - 1
        return
    with pytest.warns(UserWarning, match="blocks of another run, which are removed"):
        assert len(start_job(segmenter_of(), slide, target, Wish(**WISH)).unfinished()) == total


@pytest.mark.parametrize("layout", ["array", "group"])
def test_a_zarr_that_was_edited_in_place_is_segmented_anew(truth, tmp_path, layout):
    path, image = tmp_path / "a.zarr", image_of(truth, "distance")
    if layout == "group":
        scales = [{"axes": [{"name": name} for name in "yxc"], "datasets": [{"path": "full"}]}]
        zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": scales}})
    array = zarr.create_array(path / ("full" if layout == "group" else ""), data=image, chunks=(64, 64, 3))
    where = {"out": tmp_path, "as_zarr": True}  # into its own folder, which is no edit
    first, _ = predict(segmenter_of(), path, **where, **WISH)
    _, said = predict(segmenter_of(network=Counted(stop=1)), path, **where, **WISH)
    assert said == [f"a.zarr: was finished before, {first.labels} is kept"]
    array[:] = image[::-1]
    again, said = predict(segmenter_of(), path, **where, **WISH)
    assert said == []
    expected = in_reading_order(segmenter_of().segment_normalized(image[::-1], 24.0))
    assert np.array_equal(read_slide(again.labels), expected)


@pytest.mark.parametrize("inner", ["", "0"])
def test_labels_of_a_zarr_predicted_into_its_own_folder_go_into_it(truth, tmp_path, inner):
    path = tmp_path / "a.ome.zarr"
    if inner:
        zarr.create_group(path, attributes={"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
    scales = {"axes": [{"name": name} for name in "cyx"], "datasets": [{"path": "0"}]}
    image = zarr.create_group(path / inner, attributes={"ome": {"version": "0.5", "multiscales": [scales]}})
    image.create_array("0", data=image_of(truth, "distance").transpose(2, 0, 1).copy())
    for block in (100, BLOCK):
        found, _ = predict(segmenter_of(), path, tmp_path, as_zarr=True, diameter=24.0, block=block)
        assert found.labels == path / inner / "labels" / "cells"
        assert match(read_slide(found.labels), undivided(truth), (0.99,))[0].f1 == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.ome.scores.csv", "a.ome.zarr"]


def test_a_file_without_regions_is_copied_in_tiles_once(truth, tmp_path):
    path = tmp_path / "a.tif"
    planes = image_of(truth, "distance").transpose(2, 0, 1)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(CellsegError, match="interrupted"):
        predict(segmenter_of(network=Counted(stop=20)), path, tmp_path / "out", **WISH)
    assert (tmp_path / "out" / "a.blocks" / "image.tif").is_file()
    found, _ = predict(segmenter_of(), path, tmp_path / "out", **WISH)
    assert np.array_equal(read_labels(found.labels), undivided(truth))


def test_an_image_decoded_finer_than_a_block_is_cut_too(truth, tmp_path):
    write_tiled(tmp_path / "a.tif", image_of(truth, "distance"))
    one = segmenter_of()
    found, _ = predict(one, tmp_path / "a.tif", tmp_path / "out", diameter=16.0, block=350)  # decoded at 450 x 510
    whole = one.segment_normalized(image_of(truth, "distance"), 16.0)
    assert tifffile.TiffFile(found.labels).pages.first.is_tiled  # slides are written in tiles
    assert match(read_labels(found.labels), whole, (0.9,))[0].f1 == 1


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_predict_slides as here

class Slow(here.Reader):
    def forward(self, images):
        time.sleep(0.03)
        return super().forward(images)

here.predict(here.segmenter_of(network=Slow()), Path(sys.argv[2]), Path(sys.argv[3]), **here.WISH)
"""


def test_a_killed_run_goes_on_at_the_blocks_that_are_not_there(truth, slide, tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(slide), str(tmp_path / "out")]
    process = subprocess.Popen(command)
    folder = tmp_path / "out" / "a.blocks"
    while len(finished_in(folder)) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(finished_in(folder))
    assert not (tmp_path / "out" / "a.tif").exists()
    found, said = predict(segmenter_of(), slide, tmp_path / "out", **WISH)
    assert said == [f"a.tif: {done} of 12 blocks were finished before, going on"]
    assert np.array_equal(read_labels(found.labels), undivided(truth))
    assert not folder.exists()


def test_the_command_cuts_slides_and_writes_zarr(tmp_path):
    from typer.testing import CliRunner

    from cellseg.cli import app

    torch.manual_seed(0)
    config = ModelConfig(size="tiny")
    save_weights(tmp_path / "m.safetensors", build_model(config), config, {"diameter": 24.0})
    (tmp_path / "in").mkdir()
    image = np.random.default_rng(0).integers(0, 255, (150, 130), dtype=np.uint8)
    write_tiled(tmp_path / "in" / "b.tif", image)
    zarr.create_array(tmp_path / "in" / "c.zarr", data=image)
    options = ["--model", tmp_path / "m.safetensors", "--diameter", 24, "--block", 80, "--device", "cpu"]
    arguments = ["predict", tmp_path / "in", "--out", tmp_path / "out", "--format", "zarr,geojson", *options]
    done = CliRunner().invoke(app, [*map(str, arguments), "--measure", str(tmp_path / "cells.csv")])
    assert done.exit_code == 0, done.output
    names = ["b.cells.csv", "b.geojson", "b.scores.csv", "b.zarr", "c.cells.csv", "c.geojson", "c.scores.csv", "c.zarr"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    labels = [read_slide(tmp_path / "out" / name / "labels" / "cells") for name in ("b.zarr", "c.zarr")]
    assert labels[0].shape == image.shape
    assert np.array_equal(*labels)
    assert len((tmp_path / "out" / "b.scores.csv").read_text().splitlines()) == labels[0].max() + 1


def test_the_windows_of_a_finished_slide_are_not_kept(slide, tmp_path):
    one = segmenter_of()
    job = start_job(one, slide, tmp_path / "b.tif", Wish(**WISH))
    run_block(one, job, job.unfinished()[0])
    assert len(one.kept) > 0
    predict_slide(one, job, tmp_path / "b.tif", slide)
    assert len(one.kept) == 0


def test_predict_slide_runs_only_what_is_left(slide, tmp_path):
    one = segmenter_of()
    job = start_job(one, slide, tmp_path / "b.tif", Wish(**WISH))
    for block in job.plan.blocks():
        run_block(one, job, block)
    scores = predict_slide(segmenter_of(network=Counted(stop=1)), job, tmp_path / "b.tif", slide)
    assert len(scores) == read_labels(tmp_path / "b.tif").max()


def test_blocks_come_in_strips_of_which_a_row_of_windows_is_kept():
    plan = make_plan((20_000, 20_000), 1.0, 24.0, 2048)
    order = in_strips(plan)
    assert sorted(block.place for block in order) == [block.place for block in plan.blocks()]
    widths = [len({b.column for b in order[start : start + 10]}) for start in (0, 30, 50, 80)]
    assert [block.place for block in order[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert widths == [3, 2, 3, 2]
    kept = KEPT_BYTES // (3 * 512 * 512 * 2)  # windows of three maps in bf16
    assert (3 * 2000 + 2 * plan.halo + 512) / 384 * (2000 + 2 * plan.halo + 512) / 384 <= kept
    narrow = make_plan((4_000, 1_000), 1.0, 24.0, 200)
    assert in_strips(narrow) == narrow.blocks()
