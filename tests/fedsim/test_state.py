import pytest
import torch
from flwr.app import RecordDict

from fedsim.state import ClientState, DiskStore, MemoryStore


def stores(tmp_path):
    return [MemoryStore(), DiskStore(folder=tmp_path, keep=2)]


@pytest.mark.parametrize("which", [0, 1])
def test_a_store_returns_what_was_put(tmp_path, which):
    store = stores(tmp_path)[which]
    for client in range(6):
        records = RecordDict()
        state = ClientState(records)
        state["w"] = {"a": torch.full((2,), float(client)), "n": torch.tensor(client)}
        state.set_count("position", client)
        store.put(client, records)
    assert store.ids() == list(range(6))
    assert store.get(9) is None
    for client in (0, 5, 3, 0):
        state = ClientState(store.get(client))
        assert state["w"]["a"].tolist() == [client, client]
        assert state["w"]["n"].item() == client
        assert state.count("position") == client


def test_a_disk_store_forgets_no_change_made_after_reloading(tmp_path):
    store = DiskStore(folder=tmp_path, keep=1)
    for client in (0, 1):
        records = RecordDict()
        ClientState(records).set_count("n", client)
        store.put(client, records)
    again = store.get(0)
    ClientState(again).set_count("n", 7)
    store.put(0, again)
    store.get(1)
    assert ClientState(store.get(0)).count("n") == 7


def test_a_fresh_state_is_empty_and_reading_it_leaves_it_so():
    records = RecordDict()
    state = ClientState(records)
    assert "w" not in state
    assert state.count("position", -1) == -1
    assert len(records) == 0


def test_groups_and_counters_do_not_mix():
    state = ClientState()
    state.set_count("position", 1)
    state["w"] = {"a": torch.ones(1)}
    assert list(state) == ["w"]
    with pytest.raises(KeyError):
        state["counters"]
    del state["w"]
    assert len(state) == 0


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        DiskStore(folder=tmp_path, keep=0)
