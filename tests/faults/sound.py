"""Sound inputs, a folder for each door, made from nothing and small: what the corpus damages."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from cellseg.config import RunConfig

SIZE = (48, 64)
NAME = "A172_Phase_C7_1_00d00h00m_1"
INDEX_HEAD = "id,image,labels,dataset,split,group,height,width,n_instances,label_kind,diameter,well\n"
SCORES_HEAD = "image,group,split,dataset,rule,threshold,tp,fp,fn,n_true,n_pred,iou_sum,f1,status\n"
TABLE = """title = "A table"
runs = "runs"

[[column]]
name = "F1"
scores = "target"

[[column]]
name = "steps"
json = "steps"
digits = 0

[[row]]
name = "ours"
run = "a"
"""
RUN = """[data]
train = [{ index = "data/index.csv", split = "train" }]
evaluate = [{ name = "target", index = "data/index.csv", split = "test" }]

[model]
network = "half_unet"
size = "tiny"

[train]
steps = 20
lr = 3e-4
regularizer = { kind = "l2sp", alpha = 0.01 }

[predict]
tile = 128
"""


def pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Return an image with some texture."""
    grid = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    return ((grid * 2654435761 >> 7) % 251 + 2).astype(dtype)


def squares(ids: tuple[int, ...] = (1, 2, 3), dtype: str = "uint16", size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return labels: a row of squares of 8 x 8 pixels."""
    out = np.zeros(size, dtype)
    for place, one in enumerate(ids):
        out[8:16, 4 + 12 * place : 12 + 12 * place] = one
    return out


def tiff(image: Any, **options: Any) -> bytes:
    """Return the bytes of a TIFF."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, **options)
    return buffer.getvalue()


def raster(image: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    """Return the bytes of a PNG, JPEG or BMP."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(buffer, kind)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    """Return the bytes of an ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@cache
def images() -> dict[str, bytes]:
    """Return sound image files of every kind by name."""
    grey, colour = pixels(*SIZE), pixels(*SIZE, 3)
    return {
        "plain.tif": tiff(grey),
        "lzw.tif": tiff(grey, compression="lzw", predictor=True, rowsperstrip=11),
        "tiled.tif": tiff(pixels(96, 160, 3), compression="zlib", tile=(32, 32), photometric="rgb"),
        "float.tif": tiff(pixels(*SIZE, dtype="float32"), compression="zstd"),
        "deep.tif": tiff(pixels(*SIZE, dtype="uint16"), byteorder=">"),
        "channels.ome.tif": tiff(pixels(3, *SIZE), ome=True, metadata={"axes": "CYX"}),
        "stack.tif": tiff(pixels(2, 3, *SIZE), imagej=True, metadata={"axes": "TZYX"}),
        "planar.tif": tiff(pixels(3, *SIZE), photometric="rgb", planarconfig="separate"),
        "big.tif": tiff(grey, bigtiff=True),
        "jpeg.tif": tiff(pixels(64, 64, 3), compression="jpeg", photometric="rgb"),
        "grey.png": raster(grey, "PNG"),
        "colour.png": raster(colour, "PNG"),
        "deep.png": raster(pixels(*SIZE, dtype="uint16"), "PNG"),
        "palette.png": raster(grey, "PNG", "P"),
        "colour.jpg": raster(colour, "JPEG"),
        "cmyk.jpg": raster(colour, "JPEG", "CMYK"),
        "grey.bmp": raster(grey, "BMP"),
        "colour.bmp": raster(colour, "BMP"),
    }


@cache
def label_files() -> dict[str, bytes]:
    """Return sound label files of every kind by name."""
    return {
        "zlib.tif": tiff(squares(), compression="zlib"),
        "int16.tif": tiff(squares(dtype="int16"), compression="deflate"),
        "wide.tif": tiff(squares((1, 70000, 3), "uint32")),
        "int64.tif": tiff(squares(dtype="int64")),
        "float.tif": tiff(squares(dtype="float32")),
        "tiled.tif": tiff(squares(size=(96, 160)), tile=(32, 32), compression="zstd"),
        "deep.png": raster(squares(), "PNG"),
        "palette.png": raster(squares(dtype="uint8"), "PNG", "P"),
        "int32.npy": npy(squares(dtype="int32")),
        "grey.bmp": raster(squares(dtype="uint8"), "BMP"),
    }


def box(left: float, top: float, side: float = 8) -> list[float]:
    """Return the polygon of a square."""
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def annotations(names: tuple[str, ...] = (NAME,), **changes: Any) -> dict[str, Any]:
    """Return a COCO file of three squares an image; ``changes`` go into its first annotation."""
    entries = [
        {"id": place, "file_name": f"{name}.tif", "height": SIZE[0], "width": SIZE[1]}
        for place, name in enumerate(names)
    ]
    cells = [
        {"id": 10 * entry["id"] + n, "image_id": entry["id"], "category_id": 1, "segmentation": [box(4 + 12 * n, 8)]}
        | {"area": 64.0, "bbox": [4 + 12 * n, 8, 8, 8], "iscrowd": 0}
        for entry in entries
        for n in range(3)
    ]
    cells[0] |= changes
    categories = [{"id": 1, "name": "cell"}]
    return {"info": {"year": "2021"}, "categories": categories, "images": entries, "annotations": cells}


def put(root: Path, **files: bytes | str) -> None:
    """Write files below ``in``; a double underscore in a name is a slash, a single dot is kept."""
    write(root, {name.replace("__", "/"): content for name, content in files.items()})


def write(root: Path, files: dict[str, bytes | str]) -> None:
    """Write files below ``in``, by relative path."""
    for name, content in files.items():
        path = root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def livecell(coco: Any = None) -> dict[str, bytes | str]:
    """Return a folder in LIVECell's form: two images, one annotated."""
    text = coco if isinstance(coco, bytes | str) else json.dumps(coco if coco is not None else annotations())
    return {
        f"images/{NAME}.tif": images()["lzw.tif"],
        "images/A172_Phase_C8_1_00d00h00m_1.tif": images()["lzw.tif"],
        "annotations/livecell_coco_train.json": text,
    }


def folder() -> dict[str, bytes | str]:
    """Return a folder of two images with labels and one without."""
    names = {"a": "plain.tif", "b": "grey.png", "c": "deep.png"}
    out: dict[str, bytes | str] = {f"images/{one}{Path(file).suffix}": images()[file] for one, file in names.items()}
    out |= {"labels/a.tif": label_files()["zlib.tif"], "labels/b.npy": label_files()["int32.npy"]}
    return out | {"index.csv": "image,split,group,n_instances\na.tif,train,x,3\nb.png,val,y,3\nc.png,,x,\n"}


def neurips() -> dict[str, bytes | str]:
    """Return a folder in the challenge's form."""
    return {
        "Training-labeled/images/cell_00001.png": images()["colour.png"],
        "Training-labeled/images/cell_00002.tif": images()["deep.tif"],
        "Training-labeled/labels/cell_00001_label.tiff": label_files()["int16.tif"],
        "Training-labeled/labels/cell_00002_label.tiff": label_files()["int16.tif"],
        "release-part1/unlabeled_cell_00001.tif": images()["plain.tif"],
    }


def index() -> dict[str, bytes | str]:
    """Return an index with its two images."""
    rows = "a,a.tif,a_labels.tif,toy,train,x,48,64,3,instances,9.03,A1\nb,b.png,,toy,unlabelled,y,48,64,,,,\n"
    files = {"a.tif": images()["plain.tif"], "a_labels.tif": label_files()["zlib.tif"], "b.png": images()["grey.png"]}
    return {"index.csv": INDEX_HEAD + rows, **files}


def evaluate() -> dict[str, bytes | str]:
    """Return true and predicted label images."""
    both = {"a.tif": label_files()["zlib.tif"], "b.png": label_files()["deep.png"]}
    return {f"{side}/{name}": content for side in ("truth", "pred") for name, content in both.items()}


def coco() -> dict[str, bytes | str]:
    """Return a COCO file and a prediction for its image with confidences."""
    scores = "id,score\n1,0.5\n2,0.25\n3,1.0\n"
    prediction = {f"pred/{NAME}.tif": label_files()["zlib.tif"], f"pred/{NAME}.scores.csv": scores}
    return {"truth.json": json.dumps(annotations()), **prediction}


def table() -> dict[str, bytes | str]:
    """Return a table file and a run that it shows."""
    scores = SCORES_HEAD + "".join(f"{one},x,test,toy,strict,0.5,3,0,0,3,3,2.5,1.0,ok\n" for one in "ab")
    return {
        "table.toml": TABLE,
        "runs/a/s0/scores/target.csv": scores,
        "runs/a/s0/summary.json": '{"steps": 20}',
        "runs/a/s0/config.json": RunConfig().model_dump_json(),
    }


def archive() -> dict[str, bytes | str]:
    """Return a zip of two files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("images/a.tif", images()["plain.tif"])
        packed.writestr("readme.txt", "words " * 200)
    return {"data.zip": buffer.getvalue()}


@cache
def weights_file() -> bytes:
    """Return the weights of a tiny network."""
    import tempfile

    import torch

    from cellseg.checkpoint import save_weights
    from cellseg.config import check_config
    from cellseg.models.build import build_model

    torch.manual_seed(0)
    config = check_config({"model": {"size": "tiny"}}).model
    with tempfile.TemporaryDirectory() as made:
        save_weights(Path(made) / "w.safetensors", build_model(config), config, {"diameter": 12.0})
        return (Path(made) / "w.safetensors").read_bytes()


@cache
def cellpose_file() -> bytes:
    """Return a small network in Cellpose's own form."""
    import torch

    from cellseg.config import check_config
    from cellseg.models.build import build_model
    from cellseg.models.cellpose_files import cellpose_state

    torch.manual_seed(0)
    config = check_config({"model": {"network": "cellpose", "widths": [4, 8]}}).model
    buffer = io.BytesIO()
    torch.save(cellpose_state(build_model(config)), buffer)
    return buffer.getvalue()


@cache
def state_file() -> bytes:
    """Return the state of a run: tensors and plain values."""
    import torch

    buffer = io.BytesIO()
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.zeros(3)}
    torch.save({"student": tensors, "optimizer": {"state": {}, "param_groups": []}, "step": 7, "best": 0.5}, buffer)
    return buffer.getvalue()


def predict() -> dict[str, bytes | str]:
    """Return a model and two images."""
    return {
        "model.safetensors": weights_file(),
        "images/a.tif": images()["plain.tif"],
        "images/b.png": images()["colour.png"],
    }


def copy_in(root: Path, source: Path) -> None:
    """Copy one real file into the case."""
    (root / "in").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, root / "in" / source.name)
