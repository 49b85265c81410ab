import numpy as np
import pytest
import torch

from fedsim.data import Dataset, Shard, TensorExamples


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


def dataset(inputs=None, targets=None, num_classes=3, **kwargs):
    inputs = torch.zeros(4, 2) if inputs is None else inputs
    targets = torch.tensor([0, 1, 2, 0]) if targets is None else targets
    part = TensorExamples(inputs=inputs, targets=targets)
    return Dataset(name="own", train=part, test=part, num_classes=num_classes, **kwargs)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"targets": torch.tensor([1, 2, 3, 1])}, r"must lie in \[0, 2\]; they go from 1 to 3"),
        ({"targets": torch.zeros(4, dtype=torch.int32)}, "int64, got torch.int32"),
        ({"targets": torch.eye(4, dtype=torch.int64)}, r"one class number per example.*\(4, 4\)"),
        ({"targets": torch.tensor([0, 1, 2])}, "4 inputs for 3 targets"),
        ({"inputs": torch.zeros(4, 2).double()}, "got torch.float64"),
        ({"inputs": np.zeros((4, 2))}, "got ndarray"),
        ({"inputs": torch.tensor([[0.0], [1.0], [float("nan")], [1.0]])}, "NaN or infinity"),
        ({"inputs": torch.zeros(4, 8, 8, 3, dtype=torch.uint8)}, r"permute\(0, 3, 1, 2\)"),
        ({"inputs": torch.zeros(4, 8, dtype=torch.uint8)}, r"shape \(N, C, H, W\), got \(4, 8\)"),
        ({"class_names": ("a", "b")}, "2 class names for 3 classes"),
    ],
)
def test_a_data_set_that_no_model_can_learn_from_is_refused_at_once(wrong, words):
    assert dataset().num_classes == 3
    with pytest.raises((TypeError, ValueError), match=words):
        dataset(**wrong)


def test_a_large_sum_of_finite_inputs_is_no_infinity():
    assert dataset(inputs=torch.full((4, 1), 3e38)).num_classes == 3
