"""Rows of measurements, and their form as a table."""

import json
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
    """Write evaluation rows as one table; a column that no row has is left out.

    They go to Arrow as JSON: from Python objects it would make columns only after loading pandas,
    half a second and 75 MB in which no column takes part.
    """
    import pyarrow as pa
    import pyarrow.json as pj
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
    schema = pa.schema(columns)
    with pq.ParquetWriter(path, schema) as writer:
        if rows:
            lines = "\n".join(json.dumps({n: plain(v) for n, v in row.items()}) for row in rows)
            options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            table = pj.read_json(pa.BufferReader(lines.encode()), parse_options=options)
            writer.write_table(table.select(schema.names))


def plain(value: Any) -> Any:
    """The value as JSON knows it: NaN and infinity become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
