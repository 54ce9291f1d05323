"""Hand-written scores in, exact cells out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg.core import CellsegError
from cellseg.table_formats import rich_table
from cellseg.tables import _seed_words, build_table, read_table, render_table

HEAD = "image,group,split,dataset,rule,threshold,tp,fp,fn,n_true,n_pred,iou_sum,f1,status\n"


def scores(runs, run, seed, name, *rows, rule="strict"):
    """Write a score table; each row is (image, group, threshold, tp, fp, fn[, status])."""
    path = runs / run / f"s{seed}" / "scores" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for image, group, threshold, tp, fp, fn, *status in rows:
        f1 = 2 * tp / (2 * tp + fp + fn)
        lines.append(
            f"{image},{group},test,toy,{rule},{threshold},{tp},{fp},{fn},{tp + fn},{tp + fp},{tp * 0.75},{f1},"
            f"{status[0] if status else 'ok'}\n"
        )
    path.write_text(HEAD + "".join(lines))


@pytest.fixture
def runs(tmp_path):
    """Run `a` with one seed and `b` with three: F1 of two images with 4 true cells each."""
    runs = tmp_path / "runs"
    scores(runs, "a", 0, "target", ("p", "x", 0.5, 2, 2, 2), ("q", "y", 0.5, 1, 0, 3))  # .5, .4
    scores(runs, "b", 0, "target", ("p", "x", 0.5, 3, 1, 1), ("q", "y", 0.5, 2, 2, 2))  # .75, .5
    scores(runs, "b", 1, "target", ("p", "x", 0.5, 4, 0, 0), ("q", "y", 0.5, 2, 2, 2))  # 1, .5
    scores(runs, "b", 2, "target", ("q", "y", 0.5, 4, 0, 0), ("p", "x", 0.5, 4, 0, 0))  # 1, 1
    (runs / "a" / "s0" / "summary.json").write_text('{"ms": 12.5, "net": {"size": "tiny", "millions": 1}}')
    (runs / "b" / "s1" / "summary.json").write_text('{"ms": 20, "net": {"size": "base", "millions": 7}}')
    (runs / "b" / "s2" / "summary.json").write_text('{"ms": 30, "net": {"size": "base", "millions": 7}}')
    (runs / "b" / "s_old").mkdir()
    return runs


ROWS = """
[[row]]
name = "A"
run = "a"
[[row]]
name = "B"
run = "b"
"""


def spec(tmp_path, *columns, rows=ROWS, head='title = "T"'):
    path = tmp_path / "table.toml"
    path.write_text(
        head + "".join(f'\n[[column]]\nname = "c{i}"\n{column}\n' for i, column in enumerate(columns)) + rows
    )
    return path


def texts(tmp_path, runs, *columns, **keywords):
    return [[cell.text for cell in row] for row in build_table(spec(tmp_path, *columns, **keywords), runs).cells]


# ---- cells


def test_a_cell_is_mean_and_deviation_over_seeds(tmp_path, runs):
    """B: .625, .75, 1 over images; mean .791667, deviation .190941."""
    assert texts(tmp_path, runs, 'scores = "target"') == [["0.450"], ["0.792 ± 0.191"]]
    table = build_table(tmp_path / "table.toml", runs)
    assert table.seeds == [1, 3]
    assert table.cells[1][0].mean == pytest.approx(2.375 / 3)
    assert table.cells[1][0].sd == pytest.approx(0.1909406539564933)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ('statistic = "median"', ["0.450", "0.792 ± 0.191"]),
        ('statistic = "pooled"', ["0.462", "0.792 ± 0.191"]),  # 6/13; .625, .75, 1
        ('metric = "ap"', ["0.292", "0.711 ± 0.269"]),  # (1/3 + 1/4)/2; (.6 + 1/3)/2, (1 + 1/3)/2, 1
        ('metric = "recall"\ndigits = 2', ["0.38", "0.79 ± 0.19"]),
        ('metric = "precision"\ndigits = 1', ["0.8", "0.8 ± 0.2"]),
        ('metric = "sq"', ["0.750", "0.750 ± 0.000"]),
        ('group = "x"', ["0.500", "0.917 ± 0.144"]),
        ('group = "y"', ["0.400", "0.667 ± 0.289"]),
    ],
)
def test_metric_statistic_group_and_digits(tmp_path, runs, column, expected):
    assert texts(tmp_path, runs, f'scores = "target"\n{column}') == [[text] for text in expected]


def test_a_span_is_the_mean_over_its_thresholds(tmp_path):
    runs = tmp_path / "runs"
    steps = [(i / 20, int(i < 12)) for i in range(10, 20)]  # matched at .5 and .55 only
    for run in "ab":
        scores(runs, run, 0, "target", *[("p", "", t, hit, 1 - hit, 1 - hit) for t, hit in steps])
    columns = [f'scores = "target"\nthreshold = {t}' for t in ('"0.5:0.95"', '"0.5:0.9"', "0.55", "0.6")]
    assert texts(tmp_path, runs, *columns)[0] == ["0.200", "0.222", "1.000", "0.000"]


def test_differences_go_seed_by_seed_or_to_the_mean(tmp_path, runs):
    columns = ('scores = "target"\ndifference_to = "A"', 'scores = "target"\ndifference_to = "B"')
    assert texts(tmp_path, runs, *columns) == [["0.000", "-0.342"], ["+0.342 ± 0.191", "0.000 ± 0.000"]]


def test_a_ratio_is_that_of_the_means(tmp_path):
    runs = tmp_path / "runs"
    for run, seed, hits in (("a", 0, 1), ("b", 0, 2), ("b", 1, 4)):  # 1, 2 and 4 of 10 found
        scores(runs, run, seed, "target", ("p", "", 0.5, hits, 0, 10 - hits))
    columns = ('scores = "target"\nmetric = "ap"\nratio_to = "A"', 'scores = "target"\nratio_to = "B"')
    found = texts(tmp_path, runs, *columns)
    assert [row[0] for row in found] == ["1.000", "3.000 ± 1.414"]
    assert found[1][1].startswith("1.000 ± ")


def test_values_of_the_summary(tmp_path, runs):
    columns = ('json = "ms"\ndigits = 1', 'json = "net.size"', 'json = "net.millions"\ndigits = 0', 'json = "none"')
    assert texts(tmp_path, runs, *columns) == [
        ["12.5", "tiny", "1", "—"],
        ["25.0 ± 7.1 (n=2)", "base", "7 ± 0 (n=2)", "—"],
    ]


def test_words_of_the_row(tmp_path, runs):
    rows = '\n[[row]]\nname = "A"\nrun = "a"\ntext = { labels = "5" }\n[[row]]\nname = "B"\nrun = "b"\n'
    assert texts(tmp_path, runs, 'text = "labels"', rows=rows) == [["5"], ["—"]]


def test_what_is_missing_is_a_dash_and_is_named(tmp_path, runs):
    rows = ROWS + '\n[[row]]\nname = "C"\nrun = "c"\n[[row]]\nname = "D"\nrun = "b"\nseeds = [1, 7]\n'
    path = spec(tmp_path, 'scores = "target"', 'scores = "source"', rows=rows)
    table = build_table(path, runs)
    assert [[cell.text for cell in row] for row in table.cells] == [
        ["0.450", "—"],
        ["0.792 ± 0.191", "—"],
        ["—", "—"],
        ["0.750 (n=1)", "—"],
    ]
    assert table.seeds == [1, 3, 0, 2]
    (missing,) = [note for note in table.notes if note.startswith("Missing")]
    assert missing == "Missing: a s0 source; b s0 source; b s1 source; b s2 source; c; b s7 target; b s7 source."


def test_the_best_mean_is_bold(tmp_path, runs):
    columns = ('scores = "target"\nbest = "max"', 'json = "ms"\nbest = "min"')
    table = build_table(spec(tmp_path, *columns), runs)
    assert [[cell.best for cell in row] for row in table.cells] == [[False, True], [True, False]]


def test_the_notes_say_where_the_figures_come_from(tmp_path, runs):
    scores(runs, "a", 0, "target", ("p", "x", 0.5, 2, 2, 2), ("q", "y", 0.5, 0, 0, 4, "missing"))
    path = spec(tmp_path, 'scores = "target"', head='title = "T"\nnote = "Two toy images."')
    assert build_table(path, runs).notes == [
        "Two toy images.",
        "target: 2 images, 8 true cells (toy test), rule strict.",
        "Cells are mean ± standard deviation over n seeds. Seeds: A 0; B 0, 1, 2.",
        "Predictions missing or unusable, scored 0: a s0 target 1.",
        "Made by `cellseg table table.toml`.",
    ]


def test_seeds_that_most_rows_share_are_said_once():
    assert _seed_words({"A": [0], "B": [0, 1], "C": [0, 1], "D": []}) == "0, 1, but A 0; D none"
    assert _seed_words({"A": [0], "B": [0]}) == "0"
    assert _seed_words({"A": [0], "B": []}) == "A 0; B none"


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([("p", "x", 0.5, 4, 0, 0)], "strict"),
        ([("p", "x", 0.5, 4, 0, 0), ("r", "y", 0.5, 4, 0, 0)], "strict"),
        ([("p", "x", 0.5, 4, 0, 0), ("q", "y", 0.5, 4, 0, 1)], "strict"),
        ([("p", "x", 0.5, 4, 0, 0), ("q", "y", 0.5, 4, 0, 0)], "neurips"),
    ],
    ids=["fewer images", "other images", "another truth", "another rule"],
)
def test_figures_that_cannot_be_compared_share_no_column(tmp_path, runs, rows, rule):
    scores(runs, "b", 2, "target", *rows, rule=rule)
    with pytest.raises(CellsegError, match=r"b.s2.*cannot share a column"):
        build_table(spec(tmp_path, 'scores = "target"'), runs)


def test_a_threshold_or_group_that_was_not_scored(tmp_path, runs):
    with pytest.raises(CellsegError, match=r"target\.csv: column 'c0'.*0\.75"):
        build_table(spec(tmp_path, 'scores = "target"\nthreshold = 0.75'), runs)
    with pytest.raises(CellsegError, match="'z'"):
        build_table(spec(tmp_path, 'scores = "target"\ngroup = "z"'), runs)


# ---- the file


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ('scroes = "target"', "unknown key 'column.1.scroes'; did you mean 'scores'?"),
        ('scores = "target"\nmetric = "iou"', "'column.1.metric'"),
        ('scores = "target"\nthreshold = "0.5:0.97"', "'0.5:0.95'"),
        ('scores = "target"\nthreshold = "0.9:0.5"', "'0.5:0.95'"),
        ('scores = "target"\nthreshold = 50', "must lie in"),
        ('scores = "target"\ndigits = "3"', "digits"),
        ('scores = "target"\njson = "ms"', "exactly one"),
        ("digits = 3", "exactly one"),
        ('json = "ms"\ngroup = "x"', "only a column of 'scores' has group"),
        ('scores = "target"\ndifference_to = "Z"', "'Z'"),
        ('scores = "target"\nratio_to = "Z"', "ratio_to names no row: 'Z'"),
        ('scores = "target"\ndifference_to = "A"\nratio_to = "A"', "not both"),
    ],
)
def test_mistakes_in_a_column_are_named(tmp_path, column, said):
    with pytest.raises(CellsegError) as caught:
        read_table(spec(tmp_path, column))
    assert said in str(caught.value)
    assert "table.toml" in str(caught.value)


def test_other_mistakes_in_the_file_are_named(tmp_path):
    with pytest.raises(CellsegError, match="unknown key 'titel'; did you mean 'title'"):
        read_table(spec(tmp_path, 'scores = "target"', head='titel = "T"\ntitle = "T"'))
    with pytest.raises(CellsegError, match=r"unknown key 'row\.1\.seed'; did you mean 'seeds'"):
        read_table(spec(tmp_path, 'scores = "target"', rows='\n[[row]]\nname = "A"\nrun = "a"\nseed = 1\n'))
    with pytest.raises(CellsegError, match="row names must be unique; repeated: A"):
        read_table(spec(tmp_path, 'scores = "target"', rows=ROWS + ROWS.replace("B", "C")))
    with pytest.raises(CellsegError, match="'row'"):
        read_table(spec(tmp_path, 'scores = "target"', rows=""))
    with pytest.raises(CellsegError, match="no such table"):
        read_table(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("title = ")
    with pytest.raises(CellsegError, match="TOML"):
        read_table(tmp_path / "bad.toml")


def test_the_runs_folder_of_the_file_is_the_default(tmp_path, runs):
    path = spec(tmp_path, 'scores = "target"', head=f'title = "T"\nruns = {json.dumps(str(runs))}')
    assert build_table(path).cells[0][0].text == "0.450"


# ---- formats

TABLE = """title = "Gain & loss | 100 %"
note = "50 % of #1_a"
[[column]]
name = "F1@[.5]"
scores = "target"
best = "max"
[[column]]
name = "Δ | B"
scores = "target"
difference_to = "B_2"
[[row]]
name = "A"
run = "a"
[[row]]
name = "B_2"
run = "b"
"""


@pytest.fixture
def rendered(tmp_path, runs):
    (tmp_path / "gain.toml").write_text(TABLE)
    paths = render_table(tmp_path / "gain.toml", runs, tmp_path / "out")
    assert [path.name for path in paths] == ["gain.md", "gain.csv", "gain.tex"]
    return [path.read_text(encoding="utf-8") for path in paths]


def test_markdown(rendered):
    assert rendered[0] == (
        "# Gain & loss | 100 %\n"
        "\n"
        "| Method | F1@[.5] | Δ \\| B | n |\n"
        "| --- | --: | --: | --: |\n"
        "| A | 0.450 | -0.342 | 1 |\n"
        "| B_2 | **0.792 ± 0.191** | 0.000 ± 0.000 | 3 |\n"
        "\n"
        "- 50 % of #1_a\n"
        "- target: 2 images, 8 true cells (toy test), rule strict.\n"
        "- Cells are mean ± standard deviation over n seeds. Seeds: A 0; B_2 0, 1, 2.\n"
        "- Made by `cellseg table gain.toml`.\n"
    )


def test_csv(rendered):
    assert rendered[1] == (
        "Method,run,F1@[.5],F1@[.5] sd,F1@[.5] n,Δ | B,Δ | B sd,Δ | B n,n\n"
        "A,a,0.450000,,1,-0.341667,,1,1\n"
        "B_2,b,0.791667,0.190941,3,0.000000,0.000000,3,3\n"
    )


def test_latex_is_escaped(rendered):
    lines = rendered[2].splitlines()
    assert lines[:5] == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Gain \& loss \textbar{} 100 \%}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
    ]
    assert lines[5] == r"Method & F1@{[}.5{]} & $\Delta$ \textbar{} B & n \\"
    assert lines[7:9] == [
        r"A & 0.450 & $-$0.342 & 1 \\",
        r"B\_2 & \textbf{0.792 $\pm$ 0.191} & 0.000 $\pm$ 0.000 & 3 \\",
    ]
    assert r"{\footnotesize 50 \% of \#1\_a}" in lines
    assert lines[-1] == r"\end{table}"
    assert rendered[2].endswith("\n")


def test_rendering_again_gives_the_same_bytes(rendered, tmp_path, runs):
    again = render_table(tmp_path / "gain.toml", runs, tmp_path / "again")
    assert [path.read_text(encoding="utf-8") for path in again] == rendered
    assert str(tmp_path) not in "".join(rendered)


def test_the_terminal_shows_brackets_as_they_are(tmp_path, runs):
    from rich.console import Console

    (tmp_path / "gain.toml").write_text(TABLE)
    console = Console(width=100, record=True, file=sys.stderr)
    console.print(rich_table(build_table(tmp_path / "gain.toml", runs)))
    text = console.export_text()
    assert "F1@[.5]" in text
    assert "0.792 ± 0.191" in text
    assert "[bold]" not in text


def test_tables_import_neither_torch_nor_their_floor_mates():
    unwanted = "{'torch', 'cellseg.evaluate', 'pandas', 'jinja2'}"
    code = f"import sys, cellseg.tables; print(sorted({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_row_of_the_start_reads_what_the_run_began_with(tmp_path, runs):
    """B began three times with the same weights: .25 on image p, .5 on q."""
    for seed in range(3):
        rows = (("p", "x", 0.5, 1, 3, 3), ("q", "y", 0.5, 2, 2, 2))
        scores(runs, "b", f"{seed}/start", "target", *rows)
    rows = ROWS.replace('name = "B"\nrun = "b"', 'name = "before"\nrun = "b"\nstart = true')
    columns = ('scores = "target"', 'scores = "target"\ndifference_to = "before"', 'json = "ms"')
    assert texts(tmp_path, runs, *columns, rows=rows) == [
        ["0.450", "+0.075", "12.500"],
        ["0.375 ± 0.000", "0.000 ± 0.000", "—"],
    ]
    for path in (runs / "b").glob("s*/start/scores/target.csv"):
        path.unlink()
    assert "Missing: b s0 start target" in " ".join(build_table(tmp_path / "table.toml", runs).notes)


def test_a_row_with_a_start_of_its_own_is_related_to_that(tmp_path, runs):
    """A began with .25 on image p and .5 on q, B with .5 and .5."""
    for run, hits in (("a", 1), ("b", 2)):
        for seed in range(3 if run == "b" else 1):
            rows = (("p", "x", 0.5, hits, 4 - hits, 4 - hits), ("q", "y", 0.5, 2, 2, 2))
            scores(runs, run, f"{seed}/start", "target", *rows)
    rows = "".join(
        f'\n[[row]]\nname = "{name}"\nrun = "{run}"\n{more}'
        for name, run, more in (
            ("before A", "a", "start = true"),
            ("before B", "b", 'start = true\nbefore = "before B"'),
            ("A", "a", ""),
            ("B", "b", 'before = "before B"'),
        )
    )
    plain = 'scores = "target"'
    columns = [f'{plain}\n{word}_to = "before A"' for word in ("difference", "ratio")]
    found = texts(tmp_path, runs, plain, *columns, f'{plain}\ndifference_to = "A"', rows=rows)
    assert [row[0][:5] for row in found] == ["0.375", "0.500", "0.450", "0.792"]
    assert [row[1][:6] for row in found] == ["0.000", "0.000 ", "+0.075", "+0.292"]
    assert [row[2][:5] for row in found] == ["1.000", "1.000", "1.200", "1.583"]
    assert found[3][3].startswith("+0.342")  # a column that relates to no start
    wrong = rows.replace('before = "before B"', 'before = "A"')
    with pytest.raises(CellsegError, match="before names no row of a start: 'A'"):
        texts(tmp_path, runs, plain, rows=wrong)


def test_a_run_that_was_not_made_says_what_the_table_says_of_it(tmp_path, runs):
    head = 'title = "T"\nmissing = "not run: needs the full data set"'
    rows = ROWS.replace('run = "b"', 'run = "nobody"')
    columns = ('scores = "target"', 'json = "nothing"', 'text = "published"')
    assert texts(tmp_path, runs, *columns, rows=rows, head=head) == [
        ["0.450", "—", "—"],
        ["not run: needs the full data set"] * 2 + ["—"],
    ]


@pytest.mark.slow
def test_every_committed_table_compiles_in_latex(tmp_path):
    if shutil.which("pdflatex") is None or subprocess.run(["kpsewhich", "booktabs.sty"], check=False).returncode:
        pytest.skip("no pdflatex with the package booktabs on this machine")
    results = Path(__file__).parent.parent / "experiments" / "results"
    names = sorted(results.glob("*.tex"))
    assert names
    head = "\\documentclass[a3paper,landscape]{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage{booktabs}\n"
    tables = "\n\\clearpage\n".join(path.read_text(encoding="utf-8") for path in names)
    (tmp_path / "all.tex").write_text(f"{head}\\begin{{document}}\n{tables}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
