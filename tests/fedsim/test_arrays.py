import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedsim.arrays import TensorArray, decoded, num_bytes, to_params, to_record, to_tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
def test_tensors_survive_flowers_bytes(dtype, shape):
    tensor = torch.rand(shape).mul(7).to(dtype)
    array = TensorArray(tensor)
    as_flower = Array(array.dtype, array.shape, array.stype, array.data)
    assert torch.equal(to_tensor(as_flower), tensor)
    assert to_tensor(as_flower).dtype == dtype
    np.testing.assert_array_equal(as_flower.numpy(), tensor.numpy())


def test_a_record_shares_the_tensors_memory():
    tensor = torch.zeros(3)
    record = to_record({"w": tensor})
    assert to_params(record)["w"].data_ptr() == tensor.data_ptr()


def test_numpy_returns_a_copy_so_that_a_client_cannot_write_to_its_neighbours_payload():
    tensor = torch.zeros(3)
    array = TensorArray(tensor)
    array.numpy()[0] = 5
    assert tensor[0] == 0


def test_bfloat16_travels_as_float32():
    assert to_params(to_record({"w": torch.ones(2, dtype=torch.bfloat16)}))["w"].dtype == (
        torch.float32
    )


def test_fortran_order_is_read_right():
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(to_tensor(Array(values)).numpy(), values)


def test_a_tensor_array_pickles_as_a_plain_flower_array():
    copy = pickle.loads(pickle.dumps(TensorArray(torch.arange(3))))
    assert type(copy) is Array
    assert copy.numpy().tolist() == [0, 1, 2]


def test_decoded_records_are_decoded_once():
    record = ArrayRecord({"w": torch.ones(2)})
    once = decoded(record)
    assert isinstance(once["w"], TensorArray)
    assert decoded(once) is once


def test_unknown_storage_is_refused():
    with pytest.raises(ValueError, match="stored as"):
        to_tensor(Array("float32", (1,), "torch.pickle", b""))


def test_setting_the_bytes_replaces_the_values():
    array = TensorArray(torch.zeros(2))
    array.data = Array(np.array([1.0, 2.0])).data
    assert array.numpy().tolist() == [1.0, 2.0]


def test_num_bytes_counts_values_only():
    assert num_bytes({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int64)}) == 28
