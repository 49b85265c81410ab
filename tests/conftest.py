"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest
import torch

# A shell's background job ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors are fastest on one thread, and sums then come out the same everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path_factory, monkeypatch):
    """Decoded data sets go to a folder of the test run, not to the user's cache."""
    if "FEDSIM_CACHE" not in os.environ:
        folder = Path(tmp_path_factory.getbasetemp()) / "cache"
        monkeypatch.setenv("FEDSIM_CACHE", str(folder))


def pytest_collection_modifyitems(items):
    """Skip the tests whose means are absent, saying which."""
    no_data = pytest.mark.skip(reason="FEDSIM_DATA names no data folder")
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("data") and not os.environ.get("FEDSIM_DATA"):
            item.add_marker(no_data)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
