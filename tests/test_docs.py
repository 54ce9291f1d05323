"""The documents: what they tell a reader to type works, what they name exists, and their links lead somewhere.

Every ```sh block of the README and of ``docs/`` is run (``-m slow``), block after block, in a small copy of the
repository (:mod:`docs_shell`). A comment in the line above a block says more: ``<!-- test: makes PATH … -->`` what must
be there afterwards, ``<!-- test: skip REASON -->`` that it is not run.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
import tifffile

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [
    *DOCUMENTS, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs/design").glob("*.md")),
    *sorted((ROOT / "data").glob("*.md")), *sorted((ROOT / "data/cards").glob("*.md")),
    ROOT / "experiments/README.md", ROOT / "experiments/results/README.md", ROOT / "cellseg/weights/teacher.md",
]  # fmt: skip
STUBS = ("python", "python3", "ruff", "mypy")

START = """
[data]
train = [{ index = "data/prepared/synthetic/index.csv", split = "train", groups = ["SynFluo"] }]
evaluate = [{ name = "first", index = "data/prepared/synthetic/index.csv", groups = ["SynFluo"], limit = 2 }]
[model]
size = "tiny"
"""


def named(path):
    return path.relative_to(ROOT).as_posix()


def blocks(text):
    """Yield (line number, remark, commands) of every ```sh block."""
    for found in re.finditer(r"(?:^<!-- test: (.*?) -->\n)?^```sh\n(.*?)^```$", text, re.M | re.S):
        yield text.count("\n", 0, found.start(2)), found[1] or "", found[2]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A web server and the folder it serves."""
    folder = tmp_path_factory.mktemp("mirror")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    SimpleHTTPRequestHandler.log_message = lambda *_: None
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=partial(http.serve_forever, 0.01), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", folder
    http.shutdown()
    http.server_close()


@pytest.fixture(scope="module")
def world(mirror, tmp_path_factory):
    """Return ``run(commands, folder)``, a POSIX shell whose ``cellseg`` is quick, and the folder to begin with.

    That is a small copy of the repository with everything that the documents assume to be there already.
    """
    if not hasattr(os, "fork") or not shutil.which("make"):
        pytest.skip("the documents' commands are for a POSIX shell with make")
    script, folder = Path(__file__).with_name("docs_shell.py"), tmp_path_factory.mktemp("clone")
    with TemporaryDirectory(prefix="docs") as home:
        address, programs = f"{home}/s", Path(home) / "bin"
        copy_repository(folder, programs)
        for name in ("cellseg", *STUBS):
            words = [sys.executable, "-I", "-S", str(script), "call", address, name]
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            (programs / name).chmod(0o755)
        environment = os.environ | {
            "DOCS_MIRROR": mirror[0], "NO_PROXY": "127.0.0.1", "NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1",
            "COLUMNS": "100", "CUDA_VISIBLE_DEVICES": "", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

        def run(commands, folder):
            return subprocess.run(
                ["sh", "-exc", commands], cwd=folder, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, check=False,
            )  # fmt: skip

        serve = [sys.executable, str(script), "serve", address, str(folder)]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, env=environment) as server:
            assert b"ready\n" in iter(server.stdout.readline, b""), "the server ended; its errors are above"
            try:
                add_own_images(folder)
                fill_mirror(folder / "data", mirror[1])
                publish_dsb2018(folder, mirror[1] / "dsb2018")
                done = run(REST, folder)
                assert done.returncode == 0, done.stdout
                yield run, folder
            finally:
                server.terminate()


REST = """
rm -r warm
cellseg download dsb2018 --root data
cellseg prepare dsb2018 --root data/dsb2018 --out data/prepared/dsb2018
cellseg evaluate my_masks my_masks --out before.csv
cp before.csv after.csv
"""


def copy_repository(folder, programs):
    """Copy what commands read, and give the copy an environment of programs that is up to date."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("runs", "results"))
    (folder / "start.toml").write_text(START)
    programs.mkdir()
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(programs)
    (folder / ".venv/.installed").touch()


def made_up(folder, line, split):
    """List (image, label file) of the made-up images of a line."""
    kind = "test" if split == "test" else "train_val"
    images = sorted((folder / f"data/synthetic/images/livecell_{kind}_images/{line}").glob("*.tif"))
    labels = folder / "data/prepared/synthetic/labels"
    return [(image, labels / image.name) for image in images if (labels / image.name).exists()]


def add_own_images(folder):
    """Give the reader three images with masks, the masks of one alone, and two images more that are kept aside."""
    for images, masks, split in (("my_images", "my_masks", "train"), ("my_test/images", "my_test/labels", "test")):
        (folder / images).mkdir(parents=True)
        (folder / masks).mkdir()
        for letter, (image, labels) in zip("abc", made_up(folder, "SynPhase", split), strict=False):
            shutil.copy(image, folder / images / f"{split}_{letter}.tif")
            shutil.copy(labels, folder / masks / f"{split}_{letter}.tif")
    (folder / "first_masks").mkdir()
    shutil.copy(folder / "my_masks/train_a.tif", folder / "first_masks")


def publish_dsb2018(folder, served):
    """Serve made-up images of two modalities as the Data Science Bowl is published, without test images."""
    chosen_by = (ROOT / "cellseg/datasets/dsb2018_val.txt").read_text().split()
    served.mkdir()
    (served / "stage1_solution.csv").write_text("ImageId,EncodedPixels,Height,Width,Usage\n")
    with zipfile.ZipFile(served / "stage1_test.zip", "w"):
        pass
    with zipfile.ZipFile(served / "stage1_train.zip", "w") as archive:
        for line in ("SynFluo", "SynBright"):
            for number, (image, labels) in enumerate(made_up(folder, line, "train")[:4]):
                name = chosen_by.pop() if number >= 2 else f"{line}{number}"
                pixels, truth = tifffile.imread(image), tifffile.imread(labels)
                pixels = (pixels >> 8 if pixels.dtype == np.uint16 else pixels).astype(np.uint8)
                if line == "SynBright":  # a stain
                    pixels = np.dstack([pixels, pixels // 2, pixels])
                archive.writestr(f"{name}/images/{name}.png", png(pixels))
                for cell in np.unique(truth[truth > 0]):
                    archive.writestr(f"{name}/masks/{cell}.png", png(np.where(truth == cell, 255, 0).astype(np.uint8)))


def png(image):
    """Return the bytes of a PNG."""
    return cv2.imencode(".png", image)[1].tobytes()


def fill_mirror(data, served):
    """Serve made-up images under the names under which the official sets are published."""
    shutil.copytree(data / "synthetic/annotations", served / "livecell/annotations")
    (served / "neurips").mkdir()
    archives = {
        "livecell/images.zip": data / "synthetic/images",
        **{
            f"neurips/{part}.zip": data / "synthetic_neurips" / part
            for part in ("Training-labeled", "Tuning", "Testing")
        },
        "neurips/train-unlabeled-part1.zip": data / "synthetic_neurips/release-part1",
        "neurips/train-unlabeled-part2.zip": data / "synthetic_neurips/train-unlabeled-part2",
    }
    for name, folder in archives.items():
        with zipfile.ZipFile(served / name, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder.parent))


def test_blocks_are_found_with_their_remarks():
    text = "a\n<!-- test: makes x y -->\n```sh\none\ntwo\n```\n\n```python\nnone\n```\n```sh\nthree\n```\n"
    assert list(blocks(text)) == [(3, "makes x y", "one\ntwo\n"), (11, "", "three\n")]
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert len(list(blocks(text))) == text.count("```sh"), f"{named(document)}: a block that is not found"


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [one for one in DOCUMENTS if "```sh" in one.read_text(encoding="utf-8")], ids=named
)
def test_every_command_runs(document, world, tmp_path):
    run, folder = world[0], tmp_path / "clone"
    shutil.copytree(world[1], folder, symlinks=True)
    for line, remark, commands in blocks(document.read_text(encoding="utf-8")):
        word, _, rest = remark.partition(" ")
        assert word in {"", "makes", "skip"}, f"{named(document)}:{line}: unknown remark '{remark}'"
        if word == "skip":
            assert rest, f"{named(document)}:{line}: say why it is skipped"
            continue
        done = run(commands, folder)
        assert done.returncode == 0, f"{named(document)}:{line} ended with {done.returncode}\n{done.stdout}"
        for path in rest.split() if word == "makes" else ():
            assert list(folder.glob(path)), f"{named(document)}:{line}: made no {path}\n{done.stdout}"


def slug(heading):
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


@pytest.mark.parametrize("document", LINKING, ids=named)
def test_every_link_leads_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (document.parent / path).resolve() if path else document
        assert aim.exists(), f"{named(document)}: nothing at {target}"
        assert aim.is_relative_to(ROOT), f"{named(document)}: {target} leads out of the repository"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", aim.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), f"{named(document)}: no heading for {target}"


@pytest.fixture(scope="module")
def commands():
    """The options of every command by its name."""
    import typer

    from cellseg.cli import app

    known = typer.main.get_command(app).commands
    return {
        name: {option for one in known[name].params for option in (*one.opts, *one.secondary_opts)} for name in known
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_what_is_named_in_passing_exists(document, commands):
    """Commands and their options, make targets, settings, files and functions in `code` within the text."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for code in re.findall(r"`([^`\n]+)`", text):
        for name, rest in re.findall(r"\bcellseg ([a-z][a-z-]*)((?: [^|]*)?)", code):
            assert name in commands, code
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) - commands[name] - {"--help"}
            assert not unknown, f"{code}: cellseg {name} has no {', '.join(unknown)}"
        for target in re.findall(r"^make ([a-z][a-z0-9-]*)", code):
            assert target in targets, code
        if re.fullmatch(r"(data|augment|model|train|adapt|predict)\.[a-z0-9_.]+( = .*)?", code):
            assert is_setting(code.partition(" = ")[0]), f"{code}: no such setting"
        if re.fullmatch(r"(cellseg|experiments|docs|data|tests)/[\w/.-]+\.(py|md|toml)", code):
            assert (ROOT / code).exists(), f"{code}: no such file"
        if re.fullmatch(r"cellseg(\.\w+)+", code):
            assert is_defined(code), f"{code}: neither a module nor a name in one"


def is_setting(key):
    """Say whether a dotted key is one of a run file's."""
    from cellseg.config import RunConfig

    model = RunConfig
    for part in key.split("."):
        if part not in getattr(model, "model_fields", {}):
            return False
        model = model.model_fields[part].annotation
    return True


def is_defined(name):
    """Say whether a dotted name is a module, or defined or imported at the top of one; nothing is imported."""
    path = ROOT.joinpath(*name.split("."))
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        return True
    files = (path.parent.with_suffix(".py"), path.parent / "__init__.py")
    file = next((one for one in files if one.is_file()), None)
    tree = ast.parse(file.read_text(encoding="utf-8")) if file else ast.Module([], [])
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    return path.name in names
