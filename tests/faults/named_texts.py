# ruff: noqa: E501 - tables of data
"""Cases with a name, of text: COCO files, indices, configurations, tables, scores and words of the command line."""

from __future__ import annotations

import json
from typing import Any

import sound
from named_images import Named, changed, files
from sound import NAME, annotations, box

DEEP = 10**5


def deep(what: str = "[", n: int = DEEP) -> str:
    """Return brackets in brackets."""
    return (
        what * n + {"[": "]", '{"a":': "0"}.get(what, "") * (n if what == "[" else 1) + ("}" * n if what != "[" else "")
    )


def coco_texts() -> dict[str, str | bytes]:
    """Return COCO files that are none, or lie."""
    sane = json.dumps(annotations())
    names = (
        "../../outside.tif",
        "/tmp/cellseg-fuzz-outside.tif",
        "..",
        "",
        "a\0.tif",
        "x" * 5000,
        "\ud800.tif",
        "a/b\\c:d.tif",
    )
    texts: dict[str, str | bytes] = {f"file_name {name[:20]!r}": _named(name) for name in names}
    segmentations: dict[str, Any] = {
        "NaN": [[float("nan")] * 8], "infinite": [[float("inf"), 0.0] * 4], "huge": [[1e300, -1e300] * 4],
        "outside": [box(1000, 1000)], "half outside": [box(-4, -4)], "negative": [box(-100, -100)], "two points": [[1, 2, 3, 4]],
        "odd": [[1, 2, 3, 4, 5, 6, 7]], "none": [], "empty ring": [[]], "text": "x", "null": None, "nested": [[[1, 2]]],
        "run-length": {"counts": [0, 9, 3063], "size": [48, 64]}, "a line": [[1, 1, 60, 1, 1, 1]],
        "a saw of 300,000 points": [[0, 0, 64, 48] * 150_000], "denormal": [[5e-324] * 8],
    }  # fmt: skip
    texts |= {f"polygon {name}": json.dumps(annotations(segmentation=one)) for name, one in segmentations.items()}
    fields: tuple[tuple[str, Any], ...] = (
        ("image_id", 99), ("image_id", -1), ("image_id", 1.5), ("image_id", None), ("image_id", 10**30), ("id", 1), ("id", -5),
        ("id", 2**63), ("area", -1), ("area", 1e308), ("area", float("nan")), ("area", "x"), ("iscrowd", 1), ("category_id", "x"),
    )  # fmt: skip
    texts |= {f"{key} = {value}": json.dumps(annotations(**{key: value})) for key, value in fields}
    for key, value in (
        ("width", 10**9),
        ("height", -1),
        ("width", 0),
        ("height", 2**40),
        ("id", 10**30),
        ("height", 1.5),
    ):
        changed_image = annotations()
        changed_image["images"][0][key] = value
        texts[f"image {key} = {value}"] = json.dumps(changed_image)
    repeated = annotations((NAME, NAME))
    repeated["images"][1]["id"] = repeated["images"][0]["id"]
    many = annotations()
    many["annotations"] = [many["annotations"][0] | {"id": n, "segmentation": [box(0, 0, 48)]} for n in range(20_000)]
    crowd = annotations()
    crowd["annotations"] = [
        crowd["annotations"][0] | {"id": n, "segmentation": [box(n % 60, n % 40, 3)]} for n in range(20_000)
    ]
    texts |= {
        "ids twice": json.dumps(repeated), "20,000 cells of the whole image": json.dumps(many),
        "20,000 small cells": json.dumps(crowd), "deep lists": deep(), "deep objects": deep('{"a":'),
        "deep in a field": sane[:-1] + ', "x": ' + deep() + "}", "deep polygon": sane.replace("[[4, ", "[" * DEEP + "4, ", 1),
        "not UTF-8": sane.encode().replace(b"cell", b"c\xffll"), "UTF-16": sane.encode("utf-16"), "BOM": b"\xef\xbb\xbf" + sane.encode(),
        "empty": "", "null": "null", "a list": "[]", "no images": '{"annotations": []}', "images: null": '{"images": null, "annotations": []}',
        "annotations: text": '{"images": [], "annotations": "x"}', "cut": sane[: len(sane) // 2], "nul bytes": b"\0" * 500,
        "keys twice": sane[:-1] + ', "images": []}', "a number of 10,000 digits": sane.replace('"id": 1,', '"id": ' + "9" * 10_000 + ",", 1),
    }  # fmt: skip
    return texts


def _named(name: str) -> str:
    content = annotations()
    content["images"][0]["file_name"] = name
    return json.dumps(content)


def coco_cases() -> Named:
    """Every such file, prepared and scored against."""
    for name, text in coco_texts().items():
        yield f"prepare: {name}", "livecell", changed(lambda text=text: sound.livecell(text), {})
        yield f"score: {name}", "coco", changed(sound.coco, {"truth.json": text})
    for text in ("", "id,score\n", "id,score\n1,nan\n2,1\n3,1\n", "id,score\n1,1e999\n", "x\n1\n", b"\xff\xfe", "id,score\n-1,1\n",
                 "id,score\n1,0.5\n1,0.5\n", "id,score\n" + "9" * 5000 + ",1\n", 'id,score\n"' + "1" * 200_000):  # fmt: skip
        yield f"score: confidences {text[:20]!r}", "coco", changed(sound.coco, {f"pred/{NAME}.scores.csv": text})


def index_cases() -> Named:
    """Rows that are none, paths that lead out."""
    row = "{id},{image},{labels},toy,train,x,{height},{width},{n},{kind},{diameter},A1\n"
    sane = {
        "id": "a",
        "image": "a.tif",
        "labels": "a_labels.tif",
        "height": "48",
        "width": "64",
        "n": "3",
        "kind": "instances",
    }
    sane |= {"diameter": "9"}
    changes = [
        *(("id", word) for word in ("../x", "/x", "..", ".", "", "a\0b", "a\nb", "a" * 300, "con", "a/b")),
        *(
            ("image", word)
            for word in ("../../etc/passwd", "/dev/zero", "nowhere.tif", "", "a\0.tif", "a_labels.tif", ".")
        ),
        *(("labels", word) for word in ("a.tif", "/dev/null", "index.csv")),
        *(("height", word) for word in ("-1", "0", "1e9", "99999999999999999999", "9" * 5000, "x", "", "NaN", "4.5")),
        *(("n", word) for word in ("-1", "x", "9" * 5000)),
        *(("kind", word) for word in ("x", "", "foreground", "partial")),
        *(("diameter", word) for word in ("-1", "0", "nan", "inf", "1e-300", "1e300", "x", "1e-9", "0.001")),
    ]
    for key, word in changes:
        text = '"' + row.format(**(sane | {key: word})).replace(",", '","').rstrip("\n") + '"\n'
        yield f"index: {key} = {word[:20]!r}", "index", changed(sound.index, {"index.csv": sound.INDEX_HEAD + text})
    line = row.format(**sane)
    for text in ("", sound.INDEX_HEAD, sound.INDEX_HEAD + line * 2, line, sound.INDEX_HEAD + line[:20], sound.INDEX_HEAD + line.strip() + ",x\n",
                 b"\xff\xfe\0", sound.INDEX_HEAD.encode() + b"\xff" + line.encode(), sound.INDEX_HEAD + '"' + "a" * 200_000, "\0" * 100,
                 sound.INDEX_HEAD + "\n\n" + line, sound.INDEX_HEAD.upper() + line):  # fmt: skip
        yield f"index: {text[-20:]!r}", "index", changed(sound.index, {"index.csv": text})


def config_texts() -> list[str | bytes]:
    """Return run files of every wrong shape."""
    words = (
        "-1",
        "0",
        "1e999",
        "nan",
        "inf",
        "-inf",
        '"x"',
        "true",
        "[]",
        "{}",
        "[[]]",
        "1979-05-27",
        "99999999999999999999",
        '"\\u0000"',
    )
    keys = ("train.steps", "train.lr", "train.clip_norm", "data.train", "model", "model.size", "train.regularizer", "base", "data.cache_mb",
            "augment.scale_min", "adapt.batch_size", "predict.tile", "data.diameter", "model.reference_diameter", "model.widths")  # fmt: skip
    texts: list[str | bytes] = [f"{key} = {word}" for key in keys for word in words]
    texts += [
        "a = " + deep(), "a = " + "{a = " * 5000 + "1" + "}" * 5000, ".".join("a" * 3000) + " = 1", "[" + ".".join("a" * 3000) + "]\nx = 1",
        "a = " + "9" * 5000, "x" * 10**6 + " = 1", "".join(f"k{n} = 1\n" for n in range(3000)), "[train]\n[train]\n", "=", b"\xff\xfe\0", b"\0",
        'base = "run.toml"', 'base = ["run.toml", "run.toml"]', 'base = "../../../../etc/passwd"', 'base = "."', 'base = "nowhere.toml"',
        'base = "/dev/zero"', "base = [1, 2]", 'model = { network = "cellpose", widths = [1000000000, 1000000000] }',
        'model = { network = "cellpose", widths = [] }', "[model]\nnetwork = 7", "[[data.train]]\nindex = 5", "[[data.train]]\nx = 1",
    ]  # fmt: skip
    return texts


def config_cases() -> Named:
    """Run files, overrides and saved configurations."""
    for text in config_texts():
        yield f"run file {text[:30]!r}", "config", files(run_dot_toml=text)
    for word in ("", "=", "a", "a=", "=1", "..=1", "train=1", "train.lr=" + deep(), "train.lr=1\nx=2", "train.lr=" + "9" * 5000, "train.lr=nan",
                 ".".join("a" * 5000) + "=1", "train.steps=1e3", "model.size=\"tiny\"\n[model]", "train.lr=\0", "train\0.lr=1"):  # fmt: skip
        yield (
            f"--set {word[:30]!r}",
            "config",
            changed(lambda: {"run.toml": sound.RUN}, {"overrides.json": json.dumps([word])}),
        )
    for text in (
        "",
        "null",
        "[]",
        deep(),
        deep('{"a":'),
        "{}",
        '{"train": 1}',
        '{"train": {"lr": NaN}}',
        '{"train": {"lr": 1e999}}',
        b"\xff",
    ):
        yield f"saved run {text[:30]!r}", "run_json", files(config_dot_json=text)


def table_cases() -> Named:
    """Table files and the scores and summaries they are made from."""
    scores, summary = "runs/a/s0/scores/target.csv", "runs/a/s0/summary.json"
    for text in ("", "title = 1", sound.TABLE + "x = 1\n", sound.TABLE.replace('"a"', '"../../../x"'), "a = " + deep(), b"\xff", "[[row]]\n" * 3000,
                 sound.TABLE.replace('"target"', '"../../../../etc/passwd"'), sound.TABLE.replace('"steps"\ndigits', '"..."\ndigits'),
                 sound.TABLE.replace('"a"', '"a\\u0000"'), "x = " + "9" * 5000):  # fmt: skip
        yield f"table {text[:30]!r}", "table", changed(sound.table, {"table.toml": text})
    rows = {"f1": "2.0", "tp": "-1", "threshold": "nan", "status": "x", "iou_sum": "inf"}
    for key, word in rows.items():
        at = sound.SCORES_HEAD.strip().split(",").index(key)
        cells = ["a", "x", "test", "toy", "strict", "0.5", "3", "0", "0", "3", "3", "2.5", "1.0", "ok"]
        cells[at] = word
        yield (
            f"scores: {key} = {word}",
            "table",
            changed(sound.table, {scores: sound.SCORES_HEAD + ",".join(cells) + "\n"}),
        )
    for text in (
        "",
        sound.SCORES_HEAD,
        "a,b\n1,2\n",
        b"\xff\xfe\0",
        sound.SCORES_HEAD + "a\n",
        sound.SCORES_HEAD + '"' + "a" * 10**6,
        "\0" * 50,
    ):
        yield f"scores {text[-20:]!r}", "table", changed(sound.table, {scores: text})
    for text in (
        "",
        "null",
        "[]",
        '{"steps": "x"}',
        '{"steps": NaN}',
        '{"steps": [1]}',
        deep(),
        b"\xff",
        '{"steps": 1e999}',
        '{"steps": true}',
    ):
        yield f"summary {text[:20]!r}", "table", changed(sound.table, {summary: text})


def command_cases() -> Named:
    """Words of the command line that lead nowhere, and files of the wrong kind."""
    lines = (
        [], ["--help"], ["nothing"], ["predict"], ["predict", "in/a.tif", "--out", "out", "--model", "in/a.tif"],
        ["predict", "in", "--out", "out", "--model", "nowhere"], ["evaluate", "in/a.tif", "in/a.tif"], ["evaluate", "in", "nowhere"],
        ["evaluate", "in/a.tif"], ["evaluate", "in", "in", "--thresholds", "0.5:nan"], ["evaluate", "in", "in", "--thresholds", ""],
        ["evaluate", "in", "in", "--out", "out/x.exe"], ["train", "in/a.tif"], ["train", "in"], ["train", "nowhere.toml"], ["adapt"],
        ["adapt", "--images", "in", "--out", "out/x", "--model", "in/a.tif"], ["table", "in/a.tif"], ["report", "in"], ["report", "in/a.tif"],
        ["compare", "in/a.tif", "in/a.tif"], ["compare", "a=b=c"], ["prepare", "folder", "--root", "in/a.tif", "--out", "out"],
        ["prepare", "livecell", "--root", "in", "--out", "out"], ["prepare", "neurips", "--root", "in", "--out", "out"],
        ["prepare", "folder", "--root", "in", "--out", "in/a.tif"], ["prepare", "x", "--root", "in", "--out", "out"],
        ["prepare", "folder", "--root", "in", "--out", "out", "--val-fraction", "nan"], ["import-cellpose", "in/a.tif", "--out", "out/x"],
        ["export-cellpose", "in/a.tif", "--out", "out/x"], ["suggest", "in", "--out", "out", "--model", "in/a.tif"], ["criteria", "in"],
        ["download", "livecell", "--root", "out"], ["predict", "in/a\x00.tif", "--out", "out"], ["predict", "\udcff.tif", "--out", "out"],
        ["predict", "in/a.tif", "--out", "out", "--diameter", "nan", "--model", "x"],
    )  # fmt: skip
    for words in lines:
        yield (
            f"cellseg {' '.join(words)[:50]!r}",
            "command",
            changed(lambda: {"a.tif": sound.images()["plain.tif"]}, {"argv.json": json.dumps(words)}),
        )
    for index, name in enumerate(("nan", "-1", "0", "1e-9", "1e9", "inf")):
        words = ["predict", "in/images", "--out", "out", "--model", "in/model.safetensors", "--diameter", name]
        yield (
            f"predict --diameter {name} ({index})",
            "command",
            changed(sound.predict, {"argv.json": json.dumps(words)}),
        )


def all_cases() -> Named:
    """Every case of this module."""
    for cases in (coco_cases, index_cases, config_cases, table_cases, command_cases):
        yield from cases()
