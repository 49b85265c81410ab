"""Tables that can be shown on a page and written as CSV and LaTeX."""

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedsim.progress import size
from fedsim.statistics import Interval

Kind = Literal["text", "fraction", "bytes", "seconds", "count", "p", "rank"]
_DIGITS = {"fraction": 3, "seconds": 3, "count": 1, "p": 3, "rank": 2}
_TEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%_#${}"},
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "<": "$<$",
        ">": "$>$",
        "^": r"\^{}",
        "~": r"\~{}",
        "…": r"\dots{}",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column.

    Attributes:
        title: Heading, in words.
        kind: How values are shown.
        best: Which value of a block of rows is set in bold: ``max``, ``min`` or None.
    """

    title: str
    kind: Kind = "text"
    best: Literal["max", "min"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        name: File name without ending.
        title: Heading; empty for none.
        columns: The columns.
        rows: Values: text, numbers, intervals or None.
        blocks: Rows of one block are compared; by default all are.
        note: How to read it.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    blocks: Sequence[str] = field(default_factory=tuple)
    note: str = ""

    def html(self) -> str:
        """The table as an element for a page."""
        head = "".join(f"<th{_side(c)}>{html.escape(c.title)}</th>" for c in self.columns)
        best, body = self._best(), []
        for i, row in enumerate(self.rows):
            new = (
                " class=block" if i and self.blocks and self.blocks[i] != self.blocks[i - 1] else ""
            )
            cells = []
            for j, (column, value) in enumerate(zip(self.columns, row, strict=True)):
                text = html.escape(shown(value, column.kind))
                cells.append(
                    f"<td{_side(column)}>{f'<b>{text}</b>' if (i, j) in best else text}</td>"
                )
            body.append(f"<tr{new}>{''.join(cells)}</tr>")
        title = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        note = f"<p class=note>{html.escape(self.note)}</p>" if self.note else ""
        table = (
            f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        )
        return f"<div class=table tabindex=0>{table}</div>{note}"

    def csv(self) -> str:
        """The table with full precision; an interval takes three columns."""
        wide = [
            any(isinstance(row[j], Interval) for row in self.rows) for j in range(len(self.columns))
        ]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        head: list[str] = []
        for column, is_wide in zip(self.columns, wide, strict=True):
            more = [f"{column.title} +-", f"{column.title} n"] if is_wide else []
            head += [column.title, *more]
        writer.writerow(head)
        for row in self.rows:
            line: list[Any] = []
            for value, is_wide in zip(row, wide, strict=True):
                line += _spread(value) if is_wide else [_number(value)]
            writer.writerow(line)
        return buffer.getvalue()

    def latex(self) -> str:
        """The table as ``tabular`` with ``booktabs`` rules."""
        best = self._best()
        align = "".join("l" if column.kind == "text" else "r" for column in self.columns)
        lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
        lines += [" & ".join(_tex(column.title) for column in self.columns) + r" \\", r"\midrule"]
        for i, row in enumerate(self.rows):
            if i and self.blocks and self.blocks[i] != self.blocks[i - 1]:
                lines.append(r"\midrule")
            cells = []
            for j, (column, value) in enumerate(zip(self.columns, row, strict=True)):
                text = _tex(shown(value, column.kind))
                cells.append(rf"\textbf{{{text}}}" if (i, j) in best else text)
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def _best(self) -> set[tuple[int, int]]:
        """Cells that are best of their block, where more than one was measured."""
        found = set()
        blocks = list(self.blocks) or [""] * len(self.rows)
        for j, column in enumerate(self.columns):
            if column.best is None:
                continue
            pick = max if column.best == "max" else min
            for block in dict.fromkeys(blocks):
                values = {
                    i: _number(row[j])
                    for i, row in enumerate(self.rows)
                    if blocks[i] == block and _number(row[j]) != ""
                }
                texts = {i: shown(value, column.kind) for i, value in values.items()}
                if len(set(texts.values())) > 1:  # what reads alike is alike
                    top = texts[pick(values, key=values.__getitem__)]
                    found |= {(i, j) for i, text in texts.items() if text == top}
        return found


def shown(value: Any, kind: Kind) -> str:
    """A value as one reads it; a dash where there is none."""
    if isinstance(value, Interval):
        if math.isnan(value.mean):
            return "-"
        mean = shown(value.mean, kind)
        exact = math.isnan(value.half) or kind == "bytes" or (value.half == 0 and kind == "count")
        return mean if exact else f"{mean} ± {shown(value.half, kind)}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if kind == "text":
        return str(value)
    if kind == "bytes":
        return size(int(value))
    if kind == "p" and value < 0.001:
        return "< 0.001"
    if kind == "count" and float(value).is_integer():
        return str(int(value))
    return f"{value:.{_DIGITS[kind]}f}"


def _side(column: Column) -> str:
    return "" if column.kind == "text" else " class=number"


def _number(value: Any) -> Any:
    """The value itself, an interval's mean, or nothing."""
    if isinstance(value, Interval):
        value = value.mean
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _spread(value: Any) -> list[Any]:
    if isinstance(value, Interval):
        return [_number(value.mean), _number(value.half), value.count]
    return [_number(value), "", ""]


def _tex(text: str) -> str:
    return text.translate(_TEX)
