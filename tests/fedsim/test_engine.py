"""How the in-process engine is set up."""

import gc

import pytest

from fedsim.engine import settle_process


@pytest.mark.parametrize(("before", "after"), [(700, 10_000), (0, 0), (50_000, 50_000)])
def test_cycles_are_looked_for_more_rarely_unless_never(before, after):
    kept = gc.get_threshold()
    try:
        gc.set_threshold(before, 7, 8)
        settle_process()
        assert gc.get_threshold() == (after, 7, 8)
    finally:
        gc.set_threshold(*kept)
