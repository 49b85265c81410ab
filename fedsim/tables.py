"""Rows of measurements, and their form as a table."""

import math
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# what rows hold where it was measured
MEASURED = (
    "accuracy",
    "accuracy_among_own",
    "accuracy_among_met",
    "loss",
    "val_accuracy",
    "val_examples",
)


def write_parquet(rows: list[Row], path: Path) -> None:
    """Write evaluation rows as one table; a column that no row has is left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    measured = [name for name in MEASURED if any(name in row for row in rows)]
    columns = [
        ("round", pa.int64()),
        ("experience", pa.int64()),
        ("client", pa.int64()),
        ("model", pa.string()),
        ("eval_experience", pa.int64()),
        *((n, pa.int64() if n.endswith("_examples") else pa.float64()) for n in measured),
        ("num_examples", pa.int64()),
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), path)


def plain(value: Any) -> Any:
    """The value as JSON knows it: NaN and infinity become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
