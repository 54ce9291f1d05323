# ruff: noqa: E501 - tables of data
"""Cases with a name, of pixels: images, labels, folders of both, archives, networks and states."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sound
from damage import endless_zeros, png_of, tiff_of

Write = Callable[[Path], None]
Named = Iterator[tuple[str, str, Write]]


def files(**named: bytes | str) -> Write:
    """Return a writer of files below ``in``; ``__`` in a name is a slash and ``_dot_`` a dot."""
    return lambda root: sound.write(root, {n.replace("__", "/").replace("_dot_", "."): c for n, c in named.items()})


def changed(base: Callable[[], dict[str, bytes | str]], changes: dict[str, bytes | str | None]) -> Write:
    """Return a writer of sound files with some replaced, added or (None) left out."""

    def write(root: Path) -> None:
        merged: dict[str, Any] = base() | changes
        sound.write(root, {name: content for name, content in merged.items() if content is not None})

    return write


def image_cases() -> Named:
    """Headers that lie, bombs, odd shapes, values that are none."""
    for door in ("image", "labels"):
        for side in (2**15, 2**20, 2**31 - 1, 2**32 - 1):
            yield f"{door} of {side} a side, no data", door, files(a_dot_tif=tiff_of((side, side), b"", None, 1))
            yield (
                f"{door} of {side} a side, one strip",
                door,
                files(a_dot_tif=tiff_of((side, side), b"\x78\xda\x03\x00", None)),
            )
            yield f"{door} png of {side} a side", door, files(a_dot_png=png_of((side, side), b"\x78\xda\x03\x00"))
        bomb = endless_zeros(2**22)
        yield f"{door}: tiles of zeros, 4 GiB", door, files(a_dot_tif=tiff_of((2**16, 2**16), bomb, 2**11))
        yield f"{door}: tiles of zeros, 64 GiB", door, files(a_dot_tif=tiff_of((2**18, 2**18), bomb, 2**11))
        yield (
            f"{door}: one strip of 2 GiB of zeros",
            door,
            files(a_dot_tif=tiff_of((2**15, 2**16), endless_zeros(2**31), None)),
        )
        yield (
            f"{door}: png of 10 GiB of zeros",
            door,
            files(a_dot_png=png_of((10**5, 10**5), endless_zeros(10 * 2**30))),
        )
        yield f"{door}: bmp that says 2**31", door, files(a_dot_bmp=bmp_of(2**31 - 1, 2**31 - 1))
        for head in (b"", b"II*\0", b"MM\0+", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0" + b"\xff" * 60):
            yield f"{door}: only {head[:8]!r}", door, files(a_dot_tif=head)
        for shape in ((0, 5), (5, 0), (2, 3, 4, 5, 6), (1, 1, 1, 7, 9), (7,), (1, 1)):
            yield f"{door} of shape {shape}", door, files(a_dot_tif=sound.tiff(np.zeros(shape, "uint8")))
        yield f"{door}: pages in a circle", door, files(a_dot_tif=circle())
        yield f"{door}: a pipe", door, pipe
        yield f"{door}: a folder", door, lambda root: (root / "in" / "a.tif").mkdir(parents=True)
        yield f"{door}: a link to itself", door, loop
        yield f"{door}: a link to nowhere", door, lambda root: link(root, "nowhere")
        yield f"{door}: a device without end", door, lambda root: link(root, "/dev/zero")
        yield f"{door}: OME that names a pipe", door, ome_pipe
        yield f"{door}: OME that names a file outside", door, ome_of("../../../etc/passwd")
        yield f"{door}: OME of 2**40 planes", door, ome_of("b.ome.tif", count=2**40)
        yield f"{door}: OME of 9 million planes", door, ome_of("b.ome.tif", count=9 * 10**6)
    for value in (np.nan, np.inf, -np.inf, 1e38, -1e308):
        odd = np.full(sound.SIZE, value)
        for kind in ("float32", "float64"):
            with np.errstate(over="ignore"):
                yield f"all {value} as {kind}", "image", files(a_dot_tif=sound.tiff(odd.astype(kind)))
        odd = sound.pixels(*sound.SIZE, dtype="float64")
        odd[3:5] = value
        yield f"some {value}", "image", files(a_dot_tif=sound.tiff(odd))
    for kind in ("int64", "uint64", "int8", "float16", "complex64"):
        yield f"image of {kind}", "image", files(a_dot_tif=sound.tiff(sound.pixels(*sound.SIZE).astype(kind)))
    yield (
        "image of 300 channels",
        "image",
        files(a_dot_tif=sound.tiff(np.zeros((300, 8, 9), "uint8"), metadata={"axes": "CYX"})),
    )
    yield "XML that grows", "image", files(a_dot_tif=sound.tiff(sound.pixels(*sound.SIZE), description=laughs()))


def label_cases() -> Named:
    """Ids that are none."""
    for name, ids, kind in (
        ("negative", (1, -2, 3), "int32"), ("above int32", (1, 2**31, 3), "uint32"), ("above int32", (1, 2**40, 3), "int64"),
        ("above int64", (1, 2**63, 3), "uint64"), ("largest int32", (1, 2**31 - 1, 3), "int64"),
        ("fraction", (1, 2.5, 3), "float64"), ("nan", (1, np.nan, 3), "float32"), ("inf", (1, np.inf, 3), "float64"),
        ("huge float", (1, 1e30, 3), "float64"), ("wrapped", (1, -30000, 3), "int16"),
    ):  # fmt: skip
        content = sound.tiff(sound.squares(ids, kind))
        yield f"ids: {name} ({kind})", "labels", files(a_dot_tif=content)
        yield f"truth: {name} ({kind})", "evaluate", changed(sound.evaluate, {"truth/a.tif": content})
        yield f"prediction: {name} ({kind})", "evaluate", changed(sound.evaluate, {"pred/a.tif": content})
        yield f"folder: {name} ({kind})", "folder", changed(sound.folder, {"labels/a.tif": content})
    for name, array in (
        ("objects", np.array([[{}]], object)), ("text", np.array([["a"]])), ("structure", np.zeros((3, 3), "i4,f8")),
        ("dates", np.zeros((3, 3), "M8[s]")), ("3-D", np.zeros((2, 3, 4), "i4")), ("nothing", np.zeros((0, 4), "i4")),
    ):  # fmt: skip
        yield f"npy of {name}", "labels", files(a_dot_npy=sound.npy(array, allow_pickle=True))
    for shape in ("(99999999, 99999999)", "(4, -4)", "(" * 3000 + ")" * 3000, "(4,4" + "," * 5000, "'x'", "(True, 4)"):
        yield f"npy that says {shape[:30]}", "labels", files(a_dot_npy=npy_saying(shape))
    yield "labels in colour", "labels", files(a_dot_png=sound.images()["colour.png"])
    yield (
        "prediction of another size",
        "evaluate",
        changed(sound.evaluate, {"pred/a.tif": sound.tiff(sound.squares(size=(50, 70)))}),
    )
    bomb = tiff_of((2**16, 2**16), endless_zeros(2**22), 2**11)
    yield "prediction of 4 GiB of zeros", "evaluate", changed(sound.evaluate, {"pred/a.tif": bomb})


def folder_cases() -> Named:
    """Folders with one bad image, names that are none, links that lead in circles."""
    bad = {"empty": b"", "text": b"not an image", "bomb": tiff_of((2**18, 2**18), endless_zeros(2**22), 2**11)}
    for name, content in bad.items():
        yield f"folder with one image: {name}", "folder", changed(sound.folder, {"images/a.tif": content})
        yield f"folder with one label file: {name}", "folder", changed(sound.folder, {"labels/a.tif": content})
        yield (
            f"challenge with one image: {name}",
            "neurips",
            changed(sound.neurips, {"Training-labeled/images/cell_00002.tif": content}),
        )
        yield (
            f"LIVECell with one image: {name}",
            "livecell",
            changed(sound.livecell, {"images/A172_Phase_C8_1_00d00h00m_1.tif": content}),
        )
        yield f"predict with one image: {name}", "predict", changed(sound.predict, {"images/c.tif": content})
    for name in (b"\xff\xfe.tif", "new\nline.tif", "-rf.tif", "a" * 240 + ".tif", "ä ö.tif", "=cmd.tif", "..tif"):
        shown = name if isinstance(name, str) else "not UTF-8"
        yield f"image called {shown[:20]!r}", "folder", named_file(name)
        yield f"predict an image called {shown[:20]!r}", "predict", named_file(name, sound.predict)
    yield "links in a circle", "folder", circle_of_folders(sound.folder)
    yield "links in a circle", "livecell", circle_of_folders(sound.livecell)
    yield "links in a circle", "neurips", circle_of_folders(sound.neurips)
    for text in ("", "image\n", "image\n../../a.tif\n", "image\na.tif\na.tif\n", "x,y\n1,2\n", b"\xff\xfe", b"image\n\0\n",
                 "image,n_instances\na.tif,-1\n", "image,n_instances\na.tif," + "9" * 5000 + "\n", 'image\n"' + "a" * 200000,
                 "image,well\na.tif,../x\nb.png,=1+1\nc.png,\n", "image,n_instances\na.tif,²\n"):  # fmt: skip
        yield f"source index {text[:20]!r}", "folder", changed(sound.folder, {"index.csv": text})


def archive_cases() -> Named:
    """Zips that would leave the folder, never end, or lie."""
    for name in (
        "../out.txt",
        "/tmp/cellseg-fuzz-out.txt",
        "a/../../out.txt",
        "..\\out.txt",
        "C:\\out.txt",
        "a\0b",
        "",
        ".",
    ):
        yield f"zip with {name!r}", "archive", files(data_dot_zip=zip_of({name: b"x"}))
    yield "zip with a link", "archive", files(data_dot_zip=zip_of({"link": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777))
    yield "zip with a name twice", "archive", files(data_dot_zip=twice())
    yield "zip with a file as a folder", "archive", files(data_dot_zip=zip_of({"a": b"x", "a/b": b"y"}))
    yield "zip of 4 TiB", "archive", files(data_dot_zip=lying_zip(2**42))


def network_cases() -> Named:
    """Weights and states that hold code, lie about their size, or are none."""
    for protocol in (0, 2, 4):
        evil = pickle.dumps(Evil("outside"), protocol)
        for door in ("weights", "state"):
            yield f"{door}: pickle {protocol} that makes a folder", door, files(last_dot_pt=evil)
            yield f"{door}: zip around pickle {protocol}", door, files(last_dot_pt=torch_zip(evil))
    for header in ({}, {"__metadata__": {"format": "cellseg-1"}}, {"__metadata__": model_of(size="base")},
                   {"__metadata__": model_of(network="cellpose", widths=[10**9, 10**9])},
                   {"__metadata__": model_of(network="cellpose", widths=[2**15] * 3)},
                   {"__metadata__": model_of(network="cellpose", widths=[1] * 5000)},
                   {"__metadata__": model_of() | {"about": "[1]"}}, {"__metadata__": model_of() | {"about": "[" * 10**5}},
                   {"__metadata__": model_of() | {"about": '{"diameter": "x"}'}},
                   {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
                   {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}):  # fmt: skip
        yield f"safetensors {json.dumps(header)[:60]}", "weights", files(w_dot_safetensors=safetensors(header))
    yield "safetensors of 2**63 bytes of header", "weights", files(w_dot_safetensors=struct.pack("<Q", 2**63) + b"{}")
    for wrong in ("diameter", "nan", "dtype"):
        yield f"weights with wrong {wrong}", "weights", wrong_weights(wrong)
    for name in ("list", "number", "stretched", "sparse"):
        yield f"torch file of a {name}", "weights", torch_file(name, "cyto")
        yield f"state of a {name}", "state", torch_file(name, "last.pt")


# ---- pieces


class Evil:
    """What a malicious pickle holds: a call that is made while it is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.name,)


def bmp_of(height: int, width: int) -> bytes:
    """Return a BMP that is nothing but its header."""
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def circle() -> bytes:
    """Return a TIFF whose page is followed by itself."""
    data = bytearray(tiff_of((8, 8), bytes(64), None, 1))
    (count,) = struct.unpack_from("<H", data, 8)
    struct.pack_into("<I", data, 10 + 12 * count, 8)
    return bytes(data)


def laughs() -> str:
    """Return OME-XML whose entities multiply to 10**9."""
    entities = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    return f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">{entities}]><OME xmlns="ome">&l9;</OME>'


def npy_saying(shape: str) -> bytes:
    """Return an ``.npy`` file with a header of our own."""
    head = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head)) + head + bytes(64)


def pipe(root: Path) -> None:
    """Make a pipe that nobody writes to."""
    (root / "in").mkdir(parents=True)
    os.mkfifo(root / "in" / "a.tif")


def loop(root: Path) -> None:
    """Make a link to itself."""
    link(root, "a.tif")


def link(root: Path, target: str) -> None:
    """Make a link."""
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.tif").symlink_to(target)


def ome_pipe(root: Path) -> None:
    """Write an OME-TIFF whose second file is a pipe."""
    ome_of(".pipe.ome.tif")(root)
    os.mkfifo(root / "in" / ".pipe.ome.tif")


def ome_of(other: str, count: int = 1) -> Write:
    """Return a writer of an OME-TIFF with planes in another file."""
    plane = '<TiffData IFD="0" FirstT="{0}" PlaneCount="{2}"><UUID FileName="{1}">urn:uuid:{0}</UUID></TiffData>'
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"><Image ID="I">'
        '<Pixels ID="P" DimensionOrder="XYZCT" Type="uint8" SizeX="64" SizeY="48" SizeZ="1" SizeC="1" SizeT="2">'
        f"{plane.format(0, 'a.ome.tif', 1)}{plane.format(1, other, count)}</Pixels></Image></OME>"
    )
    return files(a_dot_ome_dot_tif=sound.tiff(sound.pixels(*sound.SIZE), description=text, metadata=None))


def named_file(name: str | bytes, base: Callable[[], dict[str, bytes | str]] = sound.folder) -> Write:
    """Return a writer of a sound folder with one more image of an odd name."""

    def write(root: Path) -> None:
        sound.write(root, {key: content for key, content in base().items() if key != "index.csv"})
        (root / "in" / "images" / os.fsdecode(name)).write_bytes(sound.images()["plain.tif"])

    return write


def circle_of_folders(base: Callable[[], dict[str, bytes | str]]) -> Write:
    """Return a writer of a sound folder with links to its parents and to themselves."""

    def write(root: Path) -> None:
        sound.write(root, base())
        for folder in [path for path in (root / "in").rglob("*") if path.is_dir()]:
            (folder / "up").symlink_to("..")
            (folder / "self").symlink_to("self")
            (folder / "self.tif").symlink_to("self.tif")

    return write


def zip_of(members: dict[str, bytes], mode: int = 0o644) -> bytes:
    """Return a zip; a NUL in a name is kept."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in members.items():
            member = zipfile.ZipInfo("placeholder")
            member.filename, member.external_attr = name, mode << 16
            packed.writestr(member, content)
    return buffer.getvalue()


def twice() -> bytes:
    """Return a zip that holds one name twice, with different contents."""
    import warnings

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed.writestr("a.txt", "one")
        packed.writestr("a.txt", "three")
    return buffer.getvalue()


def lying_zip(size: int) -> bytes:
    """Return a zip whose directory says a member is much larger than it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("a.txt", "x")
        packed.filelist[0].file_size = size
    return buffer.getvalue()


def torch_zip(code: bytes) -> bytes:
    """Return what ``torch.save`` writes, with a pickle of our own inside."""
    return zip_of({"a/data.pkl": code, "a/version": b"3\n", "a/byteorder": b"little"})


def model_of(**words: Any) -> dict[str, str]:
    """Return the header of a weights file."""
    return {"format": "cellseg-1", "model": json.dumps(words or {"size": "tiny"}), "about": "{}"}


def safetensors(header: dict[str, Any]) -> bytes:
    """Return a safetensors file that is nothing but its header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def wrong_weights(kind: str) -> Write:
    """Return a writer of weights that fit and are yet wrong."""

    def write(root: Path) -> None:
        import torch
        from safetensors.torch import load, save

        tensors = load(sound.weights_file())
        first = sorted(tensors)[0]
        about = {"diameter": "NaN" if kind == "diameter" else 12}
        if kind == "nan":
            tensors[first] = tensors[first] * np.nan
        if kind == "dtype":
            tensors[first] = tensors[first].to(torch.int8)
        files(w_dot_safetensors=save(tensors, model_of() | {"about": json.dumps(about)}))(root)

    return write


def torch_file(kind: str, name: str) -> Write:
    """Return a writer of a PyTorch file that holds something else than is wanted."""

    def write(root: Path) -> None:
        import torch

        one = torch.zeros(1)
        state = torch.load(io.BytesIO(sound.cellpose_file()), weights_only=True)
        stretched = {key: one.expand(10**5, *[9] * (v.ndim - 1)) if v.ndim else one for key, v in state.items()}
        content = {"list": [1, 2], "number": 3, "stretched": stretched, "sparse": {"a": torch.zeros(3, 3).to_sparse()}}[
            kind
        ]
        (root / "in").mkdir(parents=True)
        torch.save(content, root / "in" / name)

    return write


def all_cases() -> Named:
    """Every case of this module."""
    for cases in (image_cases, label_cases, folder_cases, archive_cases, network_cases):
        yield from cases()


__all__ = ["Named", "Write", "all_cases", "changed", "files"]
