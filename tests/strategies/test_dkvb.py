import pytest
import torch
from torch import tensor

from fedsim.clock import Clock
from fedsim.functional.codebooks import assign
from fedsim.grid import LocalRoster
from fedsim.sampling import Uniform
from fedsim.seeding import generator
from fedsim.wire import Upload
from strategies.dkvb import DKVB, KeyRounds, Unlearning

BOOKS, PAIRS, SIZE, CLASSES = 2, 4, 3, 2
CLOCK = Clock(num_experiences=2, rounds_per_experience=3)


def strategy(rounds=0, merge="count_weighted", unlearning=None, dead_share=0.1):
    made = DKVB(
        sampler=Uniform(seed=0),
        evaluation_sampler=Uniform(seed=0),
        merge=merge,
        keys=KeyRounds(rounds=rounds, dead_share=dead_share),
        unlearning=unlearning,
        seed=0,
    )
    made.bind(CLOCK, LocalRoster(3))
    return made


def params(**more):
    return {
        "head.values": torch.zeros(BOOKS * PAIRS, CLASSES),
        "head.counts": torch.zeros(BOOKS * PAIRS),
        "head.masked": torch.zeros(BOOKS * PAIRS, dtype=torch.bool),
        "head.keys": torch.randn(BOOKS, PAIRS, SIZE, generator=generator(0, "keys")),
        "head.projections": torch.zeros(1),
        **more,
    }


def rows(client_id, indices, delta, counts, n=10, **records):
    update = {
        "indices": tensor(indices),
        "deltas": torch.full((len(indices), CLASSES), delta),
        "counts": tensor(counts),
    }
    return Upload(client_id=client_id, num_examples=n, records={"rows": update, **records})


def test_a_row_of_one_client_passes_unchanged_and_shared_rows_are_weighed_by_fetches():
    dkvb = strategy()
    uploads = [rows(0, [1, 5], 1.0, [3, 1]), rows(1, [5], 4.0, [2])]
    state = dkvb.aggregate(CLOCK.at(1), dkvb.init(params()), uploads)
    assert state.values[:, 0].tolist() == [0, 1.0, 0, 0, 0, 3.0, 0, 0]
    assert state.counts.tolist() == [0, 3, 0, 0, 0, 3, 0, 0]


def test_rows_that_nobody_touched_are_bit_identical():
    dkvb = strategy()
    start = params()
    start["head.values"] = torch.randn(BOOKS * PAIRS, CLASSES, generator=generator(0, "v"))
    state = dkvb.aggregate(CLOCK.at(1), dkvb.init(start), [rows(0, [2], 1.0, [1])])
    others = [i for i in range(8) if i != 2]
    assert torch.equal(
        state.values[others].view(torch.int32), start["head.values"][others].view(torch.int32)
    )


def test_only_rows_that_somebody_touched_are_sent():
    dkvb = strategy()
    empty = dkvb.payload(CLOCK.at(1), dkvb.init(params()), 0)
    assert len(empty["values"]["indices"]) == 0
    state = dkvb.aggregate(CLOCK.at(1), dkvb.init(params()), [rows(0, [1, 5], 1.0, [3, 1])])
    sent = dkvb.payload(CLOCK.at(2), state, 1)
    assert sent["values"]["indices"].tolist() == [1, 5]
    assert sent["values"]["values"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert "keys" not in sent  # regenerated from the seed
    again = dkvb.payload(CLOCK.at(2), state, 2)
    assert again["values"] is sent["values"]  # encoded once for all


def test_fitted_keys_are_sent_once_to_every_client():
    dkvb = strategy(rounds=1)
    state = dkvb.init(params())
    assert "keys" in dkvb.payload(CLOCK.at(1), state, 0)
    state = dkvb.aggregate(CLOCK.at(2), state, [rows(0, [1], 1.0, [1])])
    assert "keys" not in dkvb.payload(CLOCK.at(3), state, 0)
    assert "keys" in dkvb.payload(CLOCK.at(3), state, 1)
    assert "keys" in dkvb.payload(CLOCK.at(3), state, None)


def cells(client_id, heads, keys):
    total = assign(heads, keys)
    indices = total.counts.flatten().nonzero().flatten()
    record = {
        "indices": indices,
        "counts": total.counts.flatten()[indices],
        "sums": total.sums.view(-1, SIZE)[indices],
        "squares": total.squares.view(-1, SIZE)[indices],
    }
    return Upload(client_id=client_id, num_examples=5, records={"cells": record})


def test_a_key_round_is_a_k_means_step_over_all_clients_data():
    dkvb = strategy(rounds=2, dead_share=0.0)
    start = dkvb.init(params())
    heads = torch.randn(BOOKS, 60, SIZE, generator=generator(0, "h"))
    parts = [cells(c, heads[:, c::3], start.books.keys) for c in range(3)]
    split = dkvb.aggregate(CLOCK.at(1), start, parts)
    pooled = dkvb.aggregate(CLOCK.at(1), start, [cells(0, heads, start.books.keys)])
    torch.testing.assert_close(split.books.keys, pooled.books.keys)
    nearest = torch.cdist(heads, start.books.keys).argmin(dim=2)
    mean = heads[1][nearest[1] == 2].mean(dim=0)
    torch.testing.assert_close(split.books.keys[1, 2], mean, atol=1e-3, rtol=0)
    assert torch.equal(split.values, start.values)


def test_a_dead_key_is_drawn_anew_where_the_data_lie():
    dkvb = strategy(rounds=5)
    start = params()
    start["head.keys"][:, 0] = 1000.0  # far from everything
    state = dkvb.init(start)
    heads = torch.randn(BOOKS, 60, SIZE, generator=generator(0, "h"))
    state = dkvb.aggregate(CLOCK.at(1), state, [cells(0, heads, state.books.keys)])
    assert float(state.books.keys.abs().max()) < 10


def test_unlearning_masks_the_rows_fetched_most_and_tells_the_clients():
    dkvb = strategy(unlearning=Unlearning(label=1, pairs=1))
    assert dkvb.config(CLOCK.at(5)) == {"phase": "values"}
    assert dkvb.config(CLOCK.at(6)) == {"phase": "unlearn", "unlearn-class": 1}
    uploads = [
        Upload(
            client_id=c,
            num_examples=1,
            records={"fetched": {"indices": tensor([0, 1, 6]), "counts": tensor(n)}},
        )
        for c, n in enumerate([[5, 1, 1], [0, 9, 1]])
    ]
    state = dkvb.aggregate(CLOCK.at(6), dkvb.init(params()), uploads)
    assert state.masked.nonzero().flatten().tolist() == [1, 6]
    assert dkvb.payload(CLOCK.at(6), state, 0)["masked"]["indices"].tolist() == [1, 6]
    assert dkvb.measures(state)["rows_masked"] == 0.25


def test_a_trained_decoder_is_averaged_by_examples():
    dkvb = strategy()
    start = dkvb.init(params(**{"head.decoder.0.bias": tensor([0.0])}))
    uploads = [
        rows(0, [1], 1.0, [1], n=1, decoder={"0.bias": tensor([4.0])}),
        rows(1, [1], 1.0, [1], n=3, decoder={"0.bias": tensor([8.0])}),
    ]
    state = dkvb.aggregate(CLOCK.at(1), start, uploads)
    assert state.decoder["0.bias"].tolist() == [7.0]
    assert dkvb.payload(CLOCK.at(2), state, 0)["decoder"] is state.decoder


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="head=keyvalue"):
        strategy().init({"head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="merge must be one of"):
        strategy(merge="median")
    with pytest.raises(ValueError, match="rounds must be 0 or more"):
        KeyRounds(rounds=-1)
    with pytest.raises(ValueError, match="at least 1 pair"):
        Unlearning(label=0, pairs=0)
