"""A client's copy of the table of prototypes: rows ``classes``, ``means`` and ``counts``."""

import torch

from fedsim.arrays import Params
from fedsim.functional.prototypes import Statistics, class_means, merge


def overlaid(table: Params, rows: Params) -> Params:
    """The table with new and changed rows in it; classes ascend."""
    if not table or len(table["classes"]) == 0:
        return rows
    if len(rows["classes"]) == 0:
        return table
    kept = ~torch.isin(table["classes"], rows["classes"])
    columns = {name: torch.cat([table[name][kept], rows[name]]) for name in rows}
    order = columns["classes"].argsort()
    return {name: column[order] for name, column in columns.items()}


def joined(table: Params, own: Params) -> Params:
    """The table after the client's own statistics, by the running mean of every class."""
    if len(table["classes"]) == 0:
        old = Statistics(own["classes"], torch.zeros_like(own["sums"]), own["counts"] * 0)
    else:
        counts = table["counts"]
        old = Statistics(table["classes"], table["means"] * counts.unsqueeze(1), counts)
    merged = merge([old, Statistics(own["classes"], own["sums"], own["counts"])])
    return {
        "classes": merged.classes,
        "means": class_means(merged).float(),
        "counts": merged.counts,
    }
