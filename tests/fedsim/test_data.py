import numpy as np
import torch

from fedsim.data import Shard, TensorExamples


def shard(n=5, tasks=None):
    return Shard(
        inputs=torch.arange(n, dtype=torch.float32).unsqueeze(1),
        targets=torch.arange(n) * 10,
        tasks=tasks,
        indices=np.arange(n),
    )


def test_bytes_are_scaled_and_normalised_when_taken():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(1, 2, 1, 1)
    examples = TensorExamples(
        inputs=images, targets=torch.zeros(2, dtype=torch.long), mean=(0.5, 0.0), std=(0.5, 2.0)
    )
    taken = examples.take(np.array([1, 0]))
    assert taken.dtype == torch.float32
    assert taken.flatten(1).tolist() == [[1.0, 0.5], [-1.0, 0.0]]
    assert examples.inputs.dtype == torch.uint8


def test_floats_are_taken_as_they_are():
    inputs = torch.randn(3, 4)
    examples = TensorExamples(inputs=inputs, targets=torch.zeros(3, dtype=torch.long))
    assert torch.equal(examples.take(np.array([2, 0])), inputs[[2, 0]])
    assert examples.take(np.empty(0, np.int64)).shape == (0, 4)


def test_batches_keep_the_order_without_a_generator():
    batches = list(shard().batches(2))
    assert [b.targets.tolist() for b in batches] == [[0, 10], [20, 30], [40]]
    assert batches[0].tasks is None


def test_batches_shuffle_inputs_targets_and_tasks_alike():
    batches = list(shard(tasks=torch.arange(5)).batches(2, torch.Generator().manual_seed(0)))
    inputs = torch.cat([b.inputs for b in batches]).flatten()
    targets = torch.cat([b.targets for b in batches])
    tasks = torch.cat([b.tasks for b in batches])
    assert torch.equal(inputs * 10, targets.float())
    assert torch.equal(tasks * 10, targets)
    assert sorted(targets.tolist()) == [0, 10, 20, 30, 40]
    assert targets.tolist() != [0, 10, 20, 30, 40]


def test_zero_is_one_full_batch_and_nothing_is_none():
    assert [len(b.targets) for b in shard().batches(0)] == [5]
    assert list(shard(0).batches(0)) == []
    assert list(shard(0).batches(2, torch.Generator())) == []


def test_memory_of_a_shard():
    assert len(shard(3)) == 3
    assert shard(3).nbytes == 12
