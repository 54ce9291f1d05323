"""Who may import whom: lower floors never know of higher ones."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cellseg"
FLOOR = {
    "core": 0, "config": 0, "files": 0, "regularizer_config": 0, "adapt_config": 0, "progress": 0, "provenance": 0,
    "memory": 0, "images": 1, "tiff": 1, "labels": 1, "scale": 1, "ranges": 1,
    "prefetch": 1, "orders": 1, "weights": 1, "metrics": 1, "confidences": 1, "instances": 1, "outputs": 1,
    "resampling": 1, "sources": 1, "slides": 1,
    "batches": 2, "digests": 2, "elastic_net": 2, "cutmix": 2, "halving": 2, "sliding": 2, "optimizer": 2,
    "datasets": 2, "pairing": 2, "models": 2, "losses": 2, "regularizers": 2, "checkpoint": 2, "journal": 2, "state": 2,
    "resume": 2, "decoding": 2, "devices": 2,
    "label_free": 3, "rounds": 3,
    "train": 3, "adapt": 3, "predict": 3, "evaluate": 3, "compare": 3, "evaluate_coco": 3, "tables": 3,
    "predict_slides": 3, "predict_images": 3, "farm": 3, "table_formats": 0, "report": 3,
    "names": 0, "cli": 4,
}  # fmt: skip
SIDEWAYS = {
    ("adapt", "train"), ("adapt", "predict"), ("train", "predict"), ("predict_slides", "predict"),
    ("predict_images", "predict"), ("predict_images", "predict_slides"),
    ("farm", "predict"), ("farm", "predict_images"), ("farm", "predict_slides"),
    ("label_free", "predict"), ("train", "label_free"), ("rounds", "label_free"), ("adapt", "label_free"),
    ("rounds", "predict"), ("rounds", "train"), ("adapt", "rounds"), ("report", "label_free"),
}  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def part(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        if module.startswith("cellseg.") and part(module) != mine:
            other = part(module)
            if FLOOR[mine] == FLOOR[other] == 3:
                assert (mine, other) in SIDEWAYS, f"{path.name} imports {module}"
            assert FLOOR[other] <= FLOOR[mine], f"{path.name} (floor {FLOOR[mine]}) imports {module}"
        if FLOOR[mine] < 2 or mine in {"evaluate", "evaluate_coco", "tables"}:
            assert module.split(".")[0] not in {"torch", "monai", "lightning_fabric"}, f"{path.name} imports {module}"
        if module.split(".")[0] == "albumentations":
            assert path.name == "augment.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 410
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{path.name}: {node.name} has {lines} lines"
