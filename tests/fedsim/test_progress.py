import io

import numpy as np
from rich.console import Console

from fedsim.progress import matrix_table, number, rejections_table, size


def text(table):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_numbers_and_sizes_read_well():
    assert number(0.91849) == "0.918"
    assert number(None) == number(float("nan")) == "-"
    assert [size(n) for n in (999, 1000, 1_500_000)] == ["999 B", "1.0 kB", "1.5 MB"]


def test_a_short_matrix_is_shown_whole():
    shown = text(matrix_table(np.array([[0.5, np.nan], [0.25, 0.75]]), "Accuracy"))
    assert "0.500" in shown
    assert "test 2" in shown
    assert " - " in shown


def test_of_a_long_matrix_the_first_the_last_and_some_between_are_shown():
    shown = text(matrix_table(np.eye(600), "Accuracy"))
    assert "10 of 600" in shown
    assert "experience 1 " in shown
    assert "experience 600" in shown
    assert len(shown.splitlines()) < 20


def test_alike_rejections_share_a_line_and_the_list_is_capped():
    rows = [
        {"round": r, "client": c, "kind": "shape", "reason": f"[{c}] is wrong"}
        for r in range(1, 7)
        for c in range(12)
    ]
    shown = text(rejections_table(rows))
    assert shown.count("1, 2, 3 … 6") == 10
    assert "[9] is wrong" in shown  # brackets are no markup
    assert "[10] is wrong" not in shown
    assert "and 2 more, see rejections.jsonl" in shown
