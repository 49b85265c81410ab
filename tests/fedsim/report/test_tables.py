"""Tables as page, CSV and LaTeX."""

import csv
import io
import math

from fedsim.report.tables import Column, Table, shown
from fedsim.statistics import mean_interval

TABLE = Table(
    name="t",
    title="A < B",
    columns=[Column(title="method"), Column(title="acc_uracy", kind="fraction", best="max")],
    rows=[("a & b", mean_interval([0.5, 0.7])), ("c", 0.4), ("d", 0.9)],
    blocks=["x", "x", "y"],
)


def test_the_best_of_a_block_is_bold():
    assert "<b>0.600 ± 1.271</b>" in TABLE.html()
    assert "<b>0.900</b>" not in TABLE.html()  # nothing to compare with
    assert "A &lt; B" in TABLE.html()


def test_csv_has_full_precision_and_the_interval_in_columns():
    lines = list(csv.reader(io.StringIO(TABLE.csv())))
    assert lines[0] == ["method", "acc_uracy", "acc_uracy +-", "acc_uracy n"]
    assert float(lines[1][2]) == mean_interval([0.5, 0.7]).half
    assert lines[2] == ["c", "0.4", "", ""]


def test_latex_is_escaped():
    text = TABLE.latex()
    assert r"acc\_uracy" in text
    assert r"a \& b & \textbf{0.600 $\pm$ 1.271} \\" in text
    assert text.count(r"\midrule") == 2


def test_values_read_well():
    assert shown(None, "fraction") == "-"
    assert shown(math.nan, "p") == "-"
    assert shown(0.0002, "p") == "< 0.001"
    assert shown(1_500_000, "bytes") == "1.5 MB"
    assert shown(3.0, "count") == "3"
    assert shown(mean_interval([0.5]), "fraction") == "0.500"
