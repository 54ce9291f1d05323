"""A shell for the commands of the documents: they run as they are written, each in a process of its own, but quickly.

``cellseg`` on its path hands arguments, folder and output to a server that imported everything once and forks a process
for each command (``python docs_shell.py serve SOCKET FOLDER``). There training is cut to a step, made-up images are few
and small, downloads come from a local mirror with the licence accepted, and of Python scripts only
``experiments/declared.py`` is run. All else is as a user has it. What all documents begin with is made in FOLDER by
the server itself, so that the first use of every library, the slowest, happens once.
"""

import gc
import importlib
import json
import os
import socket
import sys

TINY = (
    *("train.steps=1", "train.batch_size=1", "train.crop_size=64", "train.warmup_steps=1", "train.log_every=1"),
    *("train.validate_every=1", "train.save_every=1", "adapt.batch_size=1", "adapt.watch=1", "predict.diameter=model"),
)
BEGINNING = """
prepare synthetic --root data/synthetic --out data/prepared/synthetic
prepare synthetic --form neurips --root data/synthetic_neurips --out data/prepared/synthetic_neurips
train start.toml --out RUN
evaluate RUN
adapt --images data/synthetic/images/livecell_train_val_images/SynPhase --model RUN --out warm
report warm
"""
"""What the documents go on with, and once what costs most."""
SCRIPTS = ("experiments/declared.py",)
IMPORTED = """cv2 cellseg.adapt cellseg.compare cellseg.datasets.folder cellseg.datasets.neurips cellseg.evaluate
cellseg.label_free.suggest cellseg.report.page cellseg.report.picture cellseg.tables matplotlib.pyplot scipy.stats
skimage.measure skimage.segmentation torch.utils.tensorboard requests roifile scipy.cluster.vq pycocotools.mask"""


def call(address, program, *arguments):
    """Run a command on the server with the standard output and error of this process; return its exit status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = {"program": program, "arguments": arguments, "folder": os.getcwd()}  # noqa: PTH109 (a light start)
        socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
        connection.shutdown(socket.SHUT_WR)
        return int(connection.recv(16) or b"1")


def serve(address, folder):
    """Begin in a folder what the documents go on with, then fork one process a command until this one is ended."""
    for name in IMPORTED.split():
        importlib.import_module(name)
    sys.modules["cv2"].setNumThreads(1)  # a pool of threads would not survive a fork
    shrink_and_mirror()
    os.chdir(folder)
    for line in BEGINNING.strip().splitlines():
        if status := run("cellseg", line.split()):
            return status
    gc.freeze()  # what is there is left where it is, also in memory that processes share
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        while True:
            connection, _ = door.accept()
            with connection:
                text, outputs, _, _ = socket.recv_fds(connection, 1 << 16, 2)
                process = os.fork()
                if process == 0:
                    for number, output in enumerate(outputs, start=1):
                        os.dup2(output, number)
                    request = json.loads(text)
                    os.chdir(request["folder"])
                    os._exit(run(request["program"], request["arguments"]))
                for output in outputs:
                    os.close(output)
                connection.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def shrink_and_mirror():
    """Make made-up data sets small, and have downloads come from ``DOCS_MIRROR``, whose files have other checksums."""
    import dataclasses
    from functools import partial

    from cellseg.datasets import download, made_up, synthetic, synthetic_neurips

    size = (96, 128)
    synthetic.write_synthetic = partial(
        synthetic.write_synthetic, n_train=4, n_val=1, n_test=2, n_unlabelled=1, size=size
    )
    made_up.EACH, made_up.write_synthetic = 1, synthetic.write_synthetic
    synthetic_neurips.write_synthetic_neurips = partial(
        synthetic_neurips.write_synthetic_neurips,
        n_train=5, n_weak=1, n_tuning=2, n_test=2, n_unlabelled=2, size=size, slide=None,
    )  # fmt: skip
    for name, source in download.SOURCES.items():
        files = tuple(dataclasses.replace(remote, sha256=None) for remote in source.files)
        base_url = f"{os.environ['DOCS_MIRROR']}/{name}"
        download.SOURCES[name] = dataclasses.replace(source, base_url=base_url, files=files)


def run(program, arguments):
    """Run one command in this process and return its exit status."""
    import runpy
    import traceback

    sys.argv = [program, *hurried(arguments)]
    status = 1
    try:
        if program == "cellseg":
            from cellseg.cli import main

            main()
        elif arguments and arguments[0] in SCRIPTS:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))  # noqa: PTH100, PTH120 (a light start)
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    return status


def hurried(arguments):
    """Return arguments of ``cellseg`` with what makes them quick; later settings win over earlier ones."""
    if arguments[:1] == ["download"]:
        return [*arguments, "--accept-licence"]
    if arguments[:1] not in (["train"], ["adapt"]) or "--help" in arguments:
        return arguments
    return [*arguments, *(part for setting in TINY for part in ("--set", setting))]


if __name__ == "__main__":
    sys.exit({"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:]))
