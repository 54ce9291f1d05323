"""A bounded part of ``make faults`` and ``make soak``: the harnesses see what they must see, and works come back."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import children
import soak
import works

FAULTS = Path(__file__).parent / "faults"


def run(program, *words):
    return subprocess.run([sys.executable, str(FAULTS / program), *words], capture_output=True, text=True)


def test_works_that_are_killed_come_back_the_same(tmp_path):
    ran = run("kills.py", "--kills", "6", "--works", "train,prepare folder,predict blocks", "--log", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(re.search(r"^kills: (\d+); works not the same after them: 0;", ran.stdout, re.MULTILINE)[1]) >= 6


@pytest.mark.slow
def test_a_full_disk_is_said_in_one_line():
    ran = run("disks.py", "--commands", "table")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "full disks and read-only folders: 8 tried on 1 commands, 0 things wrong" in ran.stdout


def test_what_nobody_put_into_words_is_still_one_line(monkeypatch, capsys):
    from cellseg import cli

    def refuse():
        raise PermissionError(13, "Permission denied", "out/x.csv")

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: out/x.csv: Permission denied; is the disk full or read-only, or the file not yours?"
    ]


def test_a_device_without_memory_is_told_in_one_line(monkeypatch, capsys):
    from cellseg import cli

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = "error: out of memory (CUDA out of memory. Tried to allocate 2 GiB); another --device may have more\n"
    assert capsys.readouterr().err == said


def test_ctrl_c_says_that_one_may_go_on(monkeypatch, capsys):
    from cellseg import cli, devices

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(devices, "pick_device", interrupt)
    monkeypatch.setattr(sys, "argv", ["cellseg", "info"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: interrupted; what was saved is kept, go on with --resume\n"


def write(root, **files):
    for name, text in files.items():
        (root / "out").mkdir(parents=True, exist_ok=True)
        (root / "out" / name.replace("_", ".", 1)).write_text(text)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({"a_csv": "1", "b_txt": "2"}, []),
        ({"a_csv": "1"}, ["missing: out/b.txt"]),
        ({"a_csv": "1", "b_txt": "2", "_a.7.tmp": "1"}, ["left behind: out/.a.7.tmp"]),
        ({"a_csv": "x", "b_txt": "2"}, ["out/a.csv: not the same bytes"]),
    ],
)
def test_the_comparison_sees_what_differs(tmp_path, found, wrong):
    write(tmp_path / "one", a_csv="1", b_txt="2")
    write(tmp_path / "two", **found)
    assert works.differences(tmp_path / "one", tmp_path / "two") == wrong


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("warning: w\nerror: a.tif: no room\n", "error: a.tif: no room"),
        ("error: a\nTraceback (most recent call last):\n", ""),
        ("error: a\nerror: b\n", ""),
        ("error: a\nand more\n", ""),
        ("", ""),
    ],
)
def test_what_is_one_clear_line(said, line):
    assert children.only_line(said) == line


def samples(memory, handles=(10, 10)):
    count = len(memory)
    return [
        soak.Sample("train", 10.0 * n, mb, handles[n > count // 2], 3, 1, n) for n, mb in enumerate(memory, start=1)
    ]


@pytest.mark.parametrize(
    ("memory", "handles", "left", "good"),
    [
        ([50.0] * 20 + [100.0] * 80, (10, 10), 0, True),  # what it took to warm up is no growth
        ([100.0 + n / 10 for n in range(100)], (10, 10), 0, False),
        ([100.0] * 100, (10, 40), 0, False),
        ([100.0] * 100, (10, 10), 1, False),
    ],
)
def test_the_soak_tells_growth_from_warming_up(memory, handles, left, good):
    text, found = soak.summarise(samples(memory, handles), left)
    assert found is good
    if good:
        assert "| train | 100 | 100 MB | 100 MB | +0.00 % | 10, 10 | 3 | 1 |" in text


def test_a_process_and_what_it_holds():
    child = subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    child.stdout.readline()
    assert child.pid in soak.family(os.getpid())
    seen = soak.look("x", child.pid, 0.0, 5)
    assert (seen.processes, seen.done, seen.segments) == (1, 5, 0)
    assert seen.memory_mb > 1 and seen.handles >= 3
    child.communicate()
    assert child.pid not in soak.family(os.getpid())
