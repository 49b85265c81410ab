import subprocess
import sys

import pyarrow.parquet as pq

from fedsim.tables import write_parquet

ROW = {
    "round": 1, "experience": 0, "client": None, "model": "global", "eval_experience": 0,
    "accuracy": 0.5, "loss": float("nan"), "num_examples": 4, "unknown": [1],
}  # fmt: skip


def test_a_table_has_the_known_columns_and_null_for_what_is_missing(tmp_path):
    write_parquet([ROW, {**ROW, "client": 3, "val_examples": 2}], tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == [
        "round", "experience", "client", "model", "eval_experience",
        "accuracy", "loss", "val_examples", "num_examples",
    ]  # fmt: skip
    assert table["client"].to_pylist() == [None, 3]
    assert table["loss"].to_pylist() == [None, None]
    assert table["val_examples"].to_pylist() == [None, 2]
    assert str(table.schema.field("val_examples").type) == "int64"


def test_a_table_without_rows_can_be_read(tmp_path):
    write_parquet([], tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == 0
    assert "num_examples" in table.column_names


def test_a_table_is_written_without_pandas(tmp_path):
    code = """
import pathlib, sys
from fedsim.tables import write_parquet
write_parquet([{"round": 1, "num_examples": 2}], pathlib.Path(sys.argv[1]) / "one.parquet")
write_parquet([], pathlib.Path(sys.argv[1]) / "none.parquet")
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == 0
