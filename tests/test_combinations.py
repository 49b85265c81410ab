"""Choices that each work must work together: whole runs, clients one by one and at once."""

import pytest

import fedsim
from fedsim.checks import ConfigError

SMALL = (
    "dataset=toy dataset.train_examples=240 num_clients=9 clock.rounds_per_experience=2"
    " scenario.num_experiences=2 training.epochs=1 "
)
IMAGES = (
    "dataset=digits backbone=conv4 training.batch_size=32 num_clients=9 scenario=single"
    " training.epochs=1 clock.rounds_per_experience=2 "
)
CHOICES = {
    "plain": SMALL + "client=sgd",
    "proximal": SMALL + "client=fedprox strategy=fedprox",
    "replay": SMALL + "client=replay",
    "elastic weights": SMALL + "client=ewc",
    "personal heads": SMALL + "client=fedper strategy=fedper",
    "prototypes that pull": SMALL + "client=fedproto strategy=fedproto",
    "exemplars": SMALL + "client=icarl strategy=icarl",
    "own times": SMALL + "client=replay order=shuffled clock=staggered clock.max_shift=1",
    "task labels": SMALL + "client=sgd scenario=task_incremental",
    "faults": SMALL + "client=sgd faults=flaky",
    "a robust mean": SMALL + "client=sgd strategy=krum",
    "no exchange": SMALL + "client=sgd mode=local",
    "tested after training": SMALL + "client=sgd evaluation.when=after_training",
    "statistics that stay": IMAGES + "client=sgd batch_statistics=local",
    "many clients": SMALL.replace("scenario.num_experiences=2", "scenario=single")
    + "client=sgd partition=resampled num_clients=300 participation=0.1",
}


@pytest.mark.parametrize("choice", CHOICES)
def test_clients_at_once_end_where_clients_one_by_one_do(choice, tmp_path):
    alone, together = (
        fedsim.run(f"{CHOICES[choice]} engine.cohort={cohort}", folder=tmp_path / cohort)
        for cohort in ("off", "auto")
    )
    assert together.summary["test_accuracy"] == pytest.approx(
        alone.summary["test_accuracy"], abs=0.005
    )
    assert len(together.rows) == len(alone.rows) > 0
    assert together.rows["accuracy"].mean() == pytest.approx(
        alone.rows["accuracy"].mean(), abs=0.01
    )
    assert together.summary["rejected_updates"] == alone.summary["rejected_updates"]


def test_training_losses_do_not_come_with_tests(tmp_path):
    words = SMALL + "client=sgd strategy=qfedavg evaluation.when=after_training"
    with pytest.raises(ConfigError, match="QFedAvg reads training losses"):
        fedsim.run(words, folder=tmp_path / "run")
