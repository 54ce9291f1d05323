"""What the source may not hold: code that runs data, pickles that are trusted, shells."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "cellseg").rglob("*.py"))
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {
    ("pickle", "load"), ("pickle", "loads"), ("os", "system"), ("os", "popen"), ("yaml", "load"), ("joblib", "load"),
    ("marshal", "loads"), ("shelve", "open"), ("tempfile", "mktemp"), ("pd", "read_pickle"), ("zipfile", "extractall"),
}  # fmt: skip


def findings(tree):
    """Yield what a reader of the source should look at, with its line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        words = {word.arg: word.value for word in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in NAMES:
            yield node.lineno, node.func.id
        elif isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            name = node.func.attr
            if (owner, name) in CALLS or name in ("extractall", "extract"):
                yield node.lineno, f"{owner}.{name}"
            if (owner, name) == ("torch", "load") and not is_constant(words.get("weights_only"), True):
                yield node.lineno, "torch.load without weights_only"
            if (owner, name) == ("np", "load") and not is_constant(words.get("allow_pickle"), False):
                yield node.lineno, "np.load that may unpickle"
        if "shell" in words or is_constant(words.get("verify"), False):
            yield node.lineno, "a shell, or TLS without its check"


def is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_comes_in_is_run(path):
    assert not list(findings(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)", "pickle.loads(x)", "os.system(x)", "torch.load(x)", "np.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)", "archive.extractall(x)", "subprocess.run(x, shell=True)",
        "requests.get(x, verify=False)",
    ],
)  # fmt: skip
def test_the_reader_of_the_source_sees_it(text):
    assert len(list(findings(ast.parse(text)))) == 1


def test_every_claim_names_a_test_that_is_there():
    words = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("`")
    named = {word for word in words if word.startswith("tests/")}
    assert len(named) >= 6
    assert all((ROOT / name).is_file() for name in named)
