"""Files are whole or absent, and what a killed writer left is removed by the next one."""

import os
import signal
import subprocess
import sys

import pytest

from cellseg import files, journal
from cellseg.core import CellsegError
from cellseg.files import atomic_path, write_text

DIES = """
import os, signal, sys
from cellseg.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def begin_to_write(path, how):
    return subprocess.Popen([sys.executable, "-c", DIES, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_what_a_killed_writer_left_is_removed_and_the_old_file_is_whole(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    writer = begin_to_write(tmp_path / "a.txt", "die")
    left = writer.communicate()[0].decode().strip()
    assert writer.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [left, "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    files._swept.clear()  # as in a new process
    write_text(tmp_path / "b.txt", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_what_another_process_is_writing_stays(tmp_path):
    writer = begin_to_write(tmp_path / "a.txt", "wait")
    name = writer.stdout.readline().decode().strip()
    files._swept.clear()
    write_text(tmp_path / "b.txt", "mine")
    assert (tmp_path / name).read_text() == "half"
    writer.kill()
    writer.wait()
    files._swept.clear()
    write_text(tmp_path / "b.txt", "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("name", [".hidden", ".a.tmp.txt", "a.12.tmp.txt", ".a.b.tmp.txt", ".12.tmp.d"])
def test_files_of_the_user_are_no_temporaries(tmp_path, name):
    (tmp_path / name).mkdir() if name.endswith(".d") else (tmp_path / name).write_text("mine")
    files._swept.clear()
    write_text(tmp_path / "b.txt", "new")
    assert (tmp_path / name).exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    full = pytest.raises(CellsegError, match=r"a\.txt: cannot be written \(No space left on device\)")
    with full, atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(28, os.strerror(28))
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_log_with_half_a_line_is_read_and_gone_on_with(tmp_path):
    journal.truncate(tmp_path, 0)
    for step in (1, 2, 3):
        journal.append(tmp_path, step, {"loss": 0.5 * step})
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    assert [line["step"] for line in journal.read_log(tmp_path)] == [1, 2, 3]
    journal.truncate(tmp_path, 2)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'


def test_tensorboard_reads_the_numbers_of_a_run_that_went_on(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal.truncate(tmp_path, 0)
    for step in (1, 2, 3):
        journal.append(tmp_path, step, {"loss": 0.5 * step})
    with (tmp_path / journal.EVENTS_NAME).open("ab") as events:
        events.write(b"half a record")
    journal.truncate(tmp_path, 2)
    journal.append(tmp_path, 3, {"loss": 9.0})
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_damaged_summary_is_named(tmp_path):
    (tmp_path / "summary.json").write_text('{"steps": 4')
    with pytest.raises(CellsegError, match=r"summary\.json: damaged"):
        journal.read_summary(tmp_path)
