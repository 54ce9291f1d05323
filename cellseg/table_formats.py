"""A finished table and the formats it is written in: Markdown, CSV, LaTeX and the terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

DASH = "—"
"""Shown where there is no value."""


@dataclass(frozen=True)
class Cell:
    """A value over seeds; ``text`` is what is printed."""

    text: str
    mean: float | None = None
    sd: float | None = None
    n: int = 0
    best: bool = False


@dataclass
class Table:
    """A finished table: words and cells, and the lines below it that say where they come from."""

    title: str
    columns: list[str]
    names: list[str]
    runs: list[str]
    cells: list[list[Cell]]
    seeds: list[int]
    notes: list[str] = field(default_factory=list)


def _lines(table: Table, bold: Callable[[str], str], show: Callable[[str], str]) -> list[list[str]]:
    """Return the head and the rows as words, each shown by ``show`` and the best by ``bold``."""
    rows = [
        [show(name), *(bold(show(cell.text)) if cell.best else show(cell.text) for cell in cells), str(n)]
        for name, cells, n in zip(table.names, table.cells, table.seeds, strict=True)
    ]
    return [[show(word) for word in ("Method", *table.columns, "n")], *rows]


def to_markdown(table: Table) -> str:
    """Return the table as Markdown."""
    head, *rows = _lines(table, lambda text: f"**{text}**", lambda text: text.replace("|", "\\|"))
    rule = ["---", *["--:"] * (len(head) - 1)]
    lines = [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]
    return "\n".join([f"# {table.title}", "", *lines, "", *(f"- {note}" for note in table.notes), ""])


def to_csv(table: Table) -> str:
    """Return the table as CSV: mean, standard deviation and number of seeds of every cell, to 6 decimals."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:z.6f}"

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Method", "run", *(name + part for name in table.columns for part in ("", " sd", " n")), "n"])
    for name, run, cells, n in zip(table.names, table.runs, table.cells, table.seeds, strict=True):
        parts = ((c.text, "", "") if c.mean is None else (number(c.mean), number(c.sd), str(c.n)) for c in cells)
        writer.writerow([name, run, *(part for three in parts for part in three), n])
    return text.getvalue()


_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"±": r"$\pm$", "—": "---", "–": "--", "Δ": r"$\Delta$", "‖": r"$\|$", "−": "$-$", "⁰": "$^0$", "·": r"$\cdot$"},
    **{"α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "θ": r"$\theta$", "≥": r"$\geq$", "≤": r"$\leq$"},
    **{"→": r"$\rightarrow$", "²": "$^2$", "×": r"$\times$", "`": "", "|": r"\textbar{}", "[": "{[}", "]": "{]}"},
}

_LATEX_TEMPLATE = r"""\begin{table}
\centering
\caption{<<title>>}
\begin{tabular}{l<<"r" * (head | length - 1)>>}
\toprule
<<head | join(" & ")>> \\
\midrule
<%- for row in rows %>
<<row | join(" & ")>> \\
<%- endfor %>
\bottomrule
\end{tabular}
<%- for note in notes %>

{\footnotesize <<note>>}
<%- endfor %>
\end{table}
"""


def to_latex(table: Table) -> str:
    """Return the table as a LaTeX ``table`` environment; needs the package booktabs."""
    from jinja2 import Environment

    def show(text: str) -> str:
        shown = "".join(_LATEX.get(char, char) for char in text)
        return re.sub(r"(?<![\w.])-(?=\d)", "$-$", shown)

    head, *rows = _lines(table, lambda text: f"\\textbf{{{text}}}", show)
    # Jinja's usual braces are LaTeX's own.
    environment = Environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        keep_trailing_newline=True,
    )
    template = environment.from_string(_LATEX_TEMPLATE)
    return template.render(title=show(table.title), head=head, rows=rows, notes=[show(note) for note in table.notes])


def rich_table(table: Table) -> RichTable:
    """Return the table for the terminal: ``rich.print(rich_table(table))``."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    head, *rows = _lines(table, lambda text: f"[bold]{text}[/bold]", escape)
    shown = RichTable(title=escape(table.title), caption=escape("\n".join(table.notes)), caption_justify="left")
    for index, word in enumerate(head):
        shown.add_column(word, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*row)
    return shown
