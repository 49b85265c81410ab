"""Objects packed for another process come out as they went in."""

import os
import socket

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedsim.arrays import TensorArray, to_params, to_record
from fedsim.parcels import pack, receive, send, unpack, unpack_shared

VALUES = {
    "weight": torch.randn(3, 4),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 7),
    "indices": torch.tensor([5, 1, 2**40]),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "halves": torch.randn(5).half(),
}


def assert_same(got, want):
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(got[name], tensor)


@pytest.fixture
def packed():
    """Packs objects; the files are closed at the end."""
    files = []

    def packing(value, known=None):
        parcel = pack(value, known)
        files.append(parcel.file)
        return parcel

    yield packing
    for file in files:
        os.close(file)


@pytest.mark.parametrize("opened", [unpack, unpack_shared])
def test_tensors_keep_type_shape_and_values(packed, opened):
    content = RecordDict({"arrays": to_record(VALUES), "config": ConfigRecord({"lr": 0.1})})
    got = opened(packed(content))
    assert_same(to_params(got["arrays"]), VALUES)
    assert got["config"]["lr"] == 0.1


def test_tensors_are_no_part_of_the_pickle(packed):
    assert packed(to_record({"w": torch.zeros(1_000_000)})).length < 1000


def test_a_part_of_a_larger_tensor_travels_alone(packed):
    whole = torch.randn(10_000, 4)
    parcel = packed(to_record({"w": whole[7]}))
    assert os.fstat(parcel.file).st_size < 2000
    assert torch.equal(to_params(unpack(parcel))["w"], whole[7])


def test_records_that_the_other_side_has_are_named_by_number(packed):
    known = to_record({"w": torch.zeros(1000)})
    parcel = packed({"known": known, "new": to_record({"b": torch.ones(1)})}, {id(known): 4})
    there = ArrayRecord({"w": TensorArray(torch.full((2,), 9.0))})
    got = unpack(parcel, {4: there})
    assert got["known"] is there
    assert to_params(got["new"])["b"].item() == 1.0


def test_writing_to_what_was_unpacked_reaches_nobody(packed):
    parcel = packed(to_record({"w": torch.zeros(3)}))
    for opened in (unpack, unpack_shared):
        to_params(opened(parcel))["w"].add_(1)
        assert to_params(opened(parcel))["w"].tolist() == [0.0, 0.0, 0.0]


def test_a_socket_carries_many_parcels_before_any_is_read():
    """So that nobody waits in vain for somebody who is sending, too."""
    here, there = socket.socketpair()
    for number in range(20):
        parcel = pack(to_record({"w": torch.full((100_000,), float(number))}))
        send(here, number, parcel)
        os.close(parcel.file)
    for number in range(20):
        kind, parcel = receive(there)
        assert kind == number
        assert to_params(unpack(parcel))["w"][-1].item() == number
        os.close(parcel.file)
    here.close()
    with pytest.raises(EOFError):
        receive(there)
    there.close()
