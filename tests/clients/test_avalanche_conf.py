"""Every Avalanche strategy that the configuration offers goes from start to end."""

from pathlib import Path

import pytest

from fedsim.config import compose, resolve
from fedsim.main import simulate

CONF = Path(__file__).resolve().parents[2] / "conf" / "client"
NAMES = sorted(path.stem for path in CONF.glob("avalanche_*.yaml"))
SMALL = [
    "dataset=toy", "dataset.train_examples=720", "num_clients=2", "training.epochs=1",
    "clock.rounds_per_experience=1", "scenario.num_experiences=3", "progress=false",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path):
    summary = simulate(resolve(compose([*SMALL, f"client={name}"])), tmp_path, started=0.0)
    assert summary["rounds"] == 3
    assert summary["rejected_updates"] == 0
    assert 0.0 <= summary["test_accuracy"] <= 1.0
