import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scenarios.avalanche import AvalancheBenchmark, split_classes, split_instances
from scenarios.order import ShuffledOrder
from scenarios.partition import IID
from scenarios.toy import toy


@pytest.fixture(scope="module")
def data():
    return toy(num_classes=6, shape=[1, 3, 3], train_examples=120, test_examples=60)


def federate(benchmark, num_experiences=3, tell_tasks=False):
    return AvalancheBenchmark(
        benchmark=benchmark,
        partition=IID(),
        order=ShuffledOrder(),
        num_clients=4,
        num_experiences=num_experiences,
        tell_tasks=tell_tasks,
        seed=0,
    )


def check(scenario, benchmark, num_train):
    """Clients together hold exactly what the benchmark's experiences hold."""
    total = 0
    for e, experience in enumerate(benchmark.train_stream):
        shards = [scenario.shard(c, e, "train") for c in range(4)]
        held = torch.cat([s.inputs for s in shards]).flatten(1)
        targets = torch.cat([s.targets for s in shards])
        pooled = scenario.shard(None, e, "train")
        rows = torch.stack([experience.dataset[i][0] for i in range(len(experience.dataset))])
        assert torch.equal(pooled.inputs, rows)
        assert pooled.targets.tolist() == list(experience.dataset.targets)
        assert torch.allclose(held.sum(), rows.sum(), atol=1e-3)
        assert sorted(targets.tolist()) == sorted(experience.dataset.targets)
        total += len(held)
    assert total == num_train


def test_class_incremental_benchmark(data):
    benchmark = split_classes(dataset=data, num_experiences=3, seed=0)
    scenario = federate(benchmark)
    check(scenario, benchmark, 120)
    assert scenario.num_classes == 6
    assert scenario.input_shape == (1, 3, 3)
    assert scenario.task_classes is None
    classes = [scenario.classes(e) for e in range(3)]
    assert sorted(c for part in classes for c in part) == list(range(6))
    for e in range(3):
        assert set(scenario.shard(None, e, "test").targets.tolist()) == set(classes[e])


def test_new_instances_benchmark_shows_its_test_data_everywhere(data):
    benchmark = split_instances(dataset=data, num_experiences=3, seed=0)
    scenario = federate(benchmark)
    check(scenario, benchmark, 120)
    assert all(len(scenario.indices(None, e, "test")) == 60 for e in range(3))


def test_building_a_benchmark_leaves_the_global_generator_alone(data):
    before = torch.random.get_rng_state()
    split_instances(dataset=data, num_experiences=3, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_random_augmentation_of_training_is_not_frozen_into_the_data(data):
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.benchmarks.utils.transform_groups import TransformGroups
    from torch.utils.data import TensorDataset

    inputs = data.train.take(np.arange(20))
    pairs = TensorDataset(inputs, data.train.targets[:20])
    pairs.targets = data.train.targets[:20].tolist()
    transforms = TransformGroups({"train": (lambda x: x + torch.rand(1), None), "eval": None})
    part = as_classification_dataset(pairs, transform_groups=transforms)
    assert not torch.equal(part[0][0], part[0][0])
    scenario = federate(benchmark_from_datasets(train=[part], test=[part]), num_experiences=1)
    assert torch.equal(scenario.shard(None, 0, "train").inputs, inputs)


def test_images_without_transforms_become_tensors(data):
    from PIL import Image

    grey = [Image.fromarray(np.full((2, 3), 51 * i, np.uint8)) for i in range(4)]

    class Pictures(list):
        @property
        def targets(self):
            return [label for _, label in self]

        def eval(self):
            return self

    dataset = Pictures((image, label) for image, label in zip(grey, [0, 1, 0, 1], strict=True))
    stream = [SimpleNamespace(dataset=dataset)]
    scenario = federate(SimpleNamespace(train_stream=stream, test_stream=stream), 1)
    shard = scenario.shard(None, 0, "train")
    assert shard.inputs.shape == (4, 1, 2, 3)
    assert torch.allclose(shard.inputs[:, 0, 0, 0], torch.tensor([0.0, 0.2, 0.4, 0.6]))
    assert scenario.build(np.empty(0, np.int64), 0, "train").inputs.shape == (0, 1, 2, 3)


def test_task_labels_are_told_on_demand(data):
    benchmark = split_classes(dataset=data, num_experiences=3, seed=0)
    scenario = federate(benchmark, tell_tasks=True)
    for e in range(3):
        assert torch.nonzero(scenario.task_classes[e]).flatten().tolist() == scenario.classes(e)
        assert set(scenario.shard(None, e, "test").tasks.tolist()) == {e}


def test_streams_that_do_not_fit_are_errors(data):
    benchmark = split_instances(dataset=data, num_experiences=3, seed=0)
    with pytest.raises(ValueError, match=r"num_experiences=5, but .* has 3 experiences"):
        federate(benchmark, num_experiences=5)
    with pytest.raises(ValueError, match="tell_tasks needs a test experience for every"):
        federate(benchmark, tell_tasks=True)
    train = list(benchmark.train_stream)
    uneven = SimpleNamespace(train_stream=train, test_stream=train[:2])
    with pytest.raises(ValueError, match="must have 1 or 3 experiences, got 2"):
        federate(uneven)


@pytest.mark.data
def test_a_classic_benchmark_of_avalanche():
    from avalanche.benchmarks import SplitMNIST

    root = Path(os.environ["FEDSIM_DATA"]) / "torchvision"
    benchmark = SplitMNIST(n_experiences=5, dataset_root=root, seed=0)
    scenario = federate(benchmark, num_experiences=5)
    assert sum(len(scenario.indices(None, e, "train")) for e in range(5)) == 60_000
    assert scenario.classes(0) == sorted(benchmark.train_stream[0].classes_in_this_experience)
    indices = scenario.indices(2, 0, "train")[:4]
    shard = scenario.build(indices, 0, "train")
    assert shard.inputs.shape == (4, 1, 28, 28)
    assert set(shard.targets.tolist()) <= set(scenario.classes(0))
