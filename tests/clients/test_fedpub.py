from functools import partial

import pytest
import torch

from clients.fedpub import FedPub, Masking
from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.arrays import to_params, to_record
from fedsim.backbones.graph import GCN
from fedsim.backbones.vision import Flatten
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.evaluation import Evaluation
from fedsim.functional.masks import masks, weights
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.sampling import Uniform
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download
from strategies.fedpub import FedPub as Server
from strategies.mean import Mean
from tests.fedsim.builders import small_setting
from tests.scenarios.graph_toy import scenario

SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
PROXY = {"num_blocks": 2, "block_size": 5, "p_in": 0.5}


def setting(rounds=3, dropout=0.5, **changes):
    data = scenario()
    gcn = partial(GCN, input_shape=data.input_shape, hidden=8, dropout=dropout)
    return Setting(
        scenario=data,
        clock=Clock(num_experiences=1, rounds_per_experience=rounds, evaluate_every=1),
        model=lambda: Model(gcn(), 4),
        seed=0,
        **changes,
    )


def fedpub(base=None, *, epochs=1, sparse=False, optimizer=None, **masking):
    optimizer = optimizer or partial(torch.optim.Adam, lr=0.05)
    training = LocalTraining(
        optimizer=optimizer,
        epochs=epochs,
        batch_size=0,
        keep_optimizer=optimizer.func is not torch.optim.SGD,
    )
    return FedPub(
        base or setting(),
        training=training,
        masking=Masking(**masking),
        proxy=PROXY,
        sparse=sparse,
    )


def run(client, strategy, grid=None):
    grid = grid or LocalGrid(client_app_of(lambda _: client), 4, raise_errors=True)
    loop = Loop(
        strategy=strategy,
        grid=grid,
        roster=grid.roster,
        clock=client.setting.clock,
        seed=0,
        evaluation=client.setting.evaluation,
    )
    arrays = to_record(dict(initial_model(client.setting).state_dict()))
    return list(loop.run(arrays)), grid


def down(client, round_=1, client_id=0, arrays=None):
    arrays = arrays or dict(initial_model(client.setting).state_dict())
    tick = client.setting.clock.at(round_, client_id)
    return Download(client_id=client_id, tick=tick, records={"arrays": arrays})


class Tapped(LocalGrid):
    """Keeps every message in both directions."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []

    def stream(self, messages, **options):
        messages = list(messages)
        self.seen += messages
        for reply in super().stream(messages, **options):
            self.seen.append(reply)
            yield reply


def test_no_message_holds_a_mask():
    client = fedpub(penalties="connected", l1=0.01)
    grid = Tapped(client_app_of(lambda _: client), 4, raise_errors=True)
    run(client, Server(**SAMPLERS), grid)
    own = [to_params(grid.store.get(c)["masks"]) for c in range(4)]
    assert all(not torch.equal(m, torch.ones_like(m)) for state in own for m in state.values())
    names = initial_model(client.setting).state_dict().keys()
    for message in grid.seen:
        assert message.content.array_records.keys() <= {"arrays", "embedding"}
        for name, record in message.content.array_records.items():
            params = to_params(record)
            assert params.keys() <= (names if name == "arrays" else {"mean"})
            for tensor in params.values():
                held = [m for state in own for m in state.values() if m.shape == tensor.shape]
                assert not any(torch.equal(tensor, mask) for mask in held)


def test_every_client_starts_with_fresh_masks_and_loading_leaves_its_own_alone():
    client = fedpub()
    first, second = ClientState(), ClientState()
    client.train(down(client, client_id=0), first)
    trained = {name: mask.clone() for name, mask in first["masks"].items()}
    client.load(client.model, down(client, client_id=1), second)
    assert all(bool((mask == 1).all()) for mask in masks(client.model).values())
    client.load(client.model, down(client, round_=2, client_id=0), first)
    assert all(torch.equal(mask, trained[n]) for n, mask in masks(client.model).items())


def test_drawn_masks_differ_between_clients_and_not_between_runs():
    drawn = []
    for client_id in (0, 1, 0):
        client = fedpub(init="xavier")
        client.load(client.model, down(client, client_id=client_id), ClientState())
        drawn.append({name: mask.clone() for name, mask in masks(client.model).items()})
    assert all(torch.equal(drawn[0][n], drawn[2][n]) for n in drawn[0])
    assert not any(torch.equal(drawn[0][n], drawn[1][n]) for n in drawn[0])


def gradients(round_=1, moved=0.0, **options):
    """Gradients of the loss and its value, the weights moved away from those received."""
    client = fedpub(setting(dropout=0.0), **options)
    message = down(client, round_=round_)
    client.load(client.model, message, ClientState())
    with torch.no_grad():
        for weight in weights(client.model).values():
            weight += moved
    shard = client.scenario.shard(0, 0, "train")
    (batch,) = shard.batches(0)
    client.model.train()
    loss = client.loss(client.model, batch, message, ClientState())
    loss.backward()
    found = {n: p.grad.clone() for n, p in masks(client.model).items()}
    return loss.item(), found, {n: p.grad.clone() for n, p in weights(client.model).items()}


def test_connected_penalties_pull_masks_by_their_sign_and_weights_to_the_anchor():
    _, mask, weight = gradients(round_=2, moved=0.1, penalties="none")
    _, mask_l1, weight_prox = gradients(
        round_=2, moved=0.1, penalties="connected", l1=0.5, proximal=2.0
    )
    for name in mask:
        pull = mask_l1[name] - mask[name]
        assert torch.allclose(pull, torch.full_like(pull, 0.5), atol=1e-6)
    for name in weight:  # d/dw 2 * |w - a|^2 = 4 * 0.1
        pull = weight_prox[name] - weight[name]
        assert torch.allclose(pull, torch.full_like(pull, 0.4), atol=1e-5)


def test_the_proximal_term_begins_in_the_second_round():
    none, _, _ = gradients(round_=1, moved=0.1, penalties="none")
    first, _, _ = gradients(round_=1, moved=0.1, penalties="connected", l1=0.0, proximal=2.0)
    second, _, _ = gradients(round_=2, moved=0.1, penalties="connected", l1=0.0, proximal=2.0)
    assert first == pytest.approx(none)
    assert second > none + 0.1


def test_reference_penalties_change_the_reported_loss_only():
    plain, mask, weight = gradients(round_=2, moved=0.1, penalties="none")
    value, mask_r, weight_r = gradients(round_=2, moved=0.1, penalties="reference", l1=0.5)
    assert value > plain + 1.0
    assert all(torch.equal(mask[n], mask_r[n]) for n in mask)
    assert all(torch.equal(weight[n], weight_r[n]) for n in weight)


def test_masks_of_ones_one_epoch_and_scale_zero_are_averaging_with_equal_weights():
    """One step of gradient descent at masks of ones moves the weights as without masks."""
    sgd = partial(torch.optim.SGD, lr=0.5)
    client = fedpub(setting(rounds=1), optimizer=sgd, penalties="none")
    ours, _ = run(client, Server(**SAMPLERS, scale=0.0))
    training = LocalTraining(optimizer=sgd, epochs=1, batch_size=0)
    plain = SGD(setting(rounds=1), training=training)
    theirs, _ = run(plain, Mean(**SAMPLERS, weighting="clients"))
    got, expected = to_params(ours[-1][1]), to_params(theirs[-1][1])
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.allclose(got[name], expected[name], atol=1e-7)


def test_the_embedding_is_of_the_masked_model_and_without_dropout():
    client = fedpub()
    client.load(client.model, down(client), ClientState())
    client.model.train()
    before = client.embedding(client.model)
    assert torch.equal(before, client.embedding(client.model))
    with torch.no_grad():
        masks(client.model)["backbone.layers.1.lin.weight"].fill_(1e-4)  # below the threshold
    bias = weights(client.model)["backbone.layers.1.bias"]
    assert torch.allclose(client.embedding(client.model), bias.detach(), atol=1e-7)


def test_moments_and_masks_go_on_where_the_client_left_off():
    """Two rounds from the same download differ: Adam and the masks remember the first."""
    client, state = fedpub(setting(dropout=0.0)), ClientState()
    first = client.train(down(client, 1), state).records["arrays"]
    assert {"masks", "optimizer"} <= set(state)
    second = client.train(down(client, 2), state).records["arrays"]
    assert any(not torch.equal(first[n], second[n]) for n in first)
    fresh = client.train(down(client, 1), ClientState()).records["arrays"]
    assert all(torch.equal(first[n], fresh[n]) for n in first)


def test_shrinking_gives_exact_zeros_and_sparse_uploads_get_smaller():
    sizes = {}
    for sparse in (False, True):
        client = fedpub(
            setting(rounds=8, evaluation=Evaluation(when="after_training")),
            sparse=sparse, shrink=8.0, threshold=0.0, penalties="none", lr=0.02,
        )  # fmt: skip
        rounds, grid = run(client, Server(**SAMPLERS))
        sizes[sparse] = sum(rounds[-1][0].upload_bytes.values())
        zeros = [
            float((m == 0).float().mean())
            for c in range(4)
            for m in to_params(grid.store.get(c)["masks"]).values()
        ]
        assert min(zeros) > 0.2
        assert rounds[-1][0].measures["mask_zeros"] > 0.3
    assert sizes[True] < 0.8 * sizes[False]


def test_in_adams_metric_what_the_loss_ignores_is_zero_at_once_and_the_rest_stays():
    client, state = fedpub(shrink=1e-4, adaptive=True, penalties="none"), ClientState()
    client.load(client.model, down(client), state)
    shard = client.scenario.shard(0, 0, "train")
    client.train(down(client), state)
    weight = state["masks"]["head.weight"]
    classes = set(shard.targets.tolist())
    assert all(bool((weight[c] != 0).any()) for c in classes)
    optimizer = state["optimizer"]
    order = [name for name, _ in client.model.named_parameters()]
    at = order.index("head.parametrizations.weight.0.mask")
    scale = optimizer[f"{at}.exp_avg_sq"].div(1 - 0.999).sqrt() + 1e-8
    gone = 0.05 * 1e-4 / scale > 1.1  # the step to zero is larger than the mask ever was
    assert gone.any()
    assert bool((weight[gone] == 0).all())


def test_adams_metric_needs_adam():
    sgd = partial(torch.optim.SGD, lr=0.1)
    client = fedpub(shrink=1e-4, adaptive=True, optimizer=sgd)
    with pytest.raises(ValueError, match="optimizer=adam"):
        client.train(down(client), ClientState())


def test_sparse_transfer_of_dense_masks_changes_nothing():
    """Every entry counts, so the server gets the same models."""
    finals = []
    for sparse in (False, True):
        client = fedpub(sparse=sparse, threshold=0.0, penalties="none")
        rounds, _ = run(client, Server(**SAMPLERS))
        finals.append(to_params(rounds[-1][1]))
    assert all(torch.equal(finals[0][n], finals[1][n]) for n in finals[0])


def test_masks_can_have_their_own_rate():
    moved = {}
    for rate in (None, 1e-6):
        client, state = fedpub(lr=rate, penalties="none"), ClientState()
        client.train(down(client, 1), state)
        client.train(down(client, 2), state)
        moved[rate] = max(float((m - 1).abs().max()) for m in state["masks"].values())
    assert moved[None] > 0.01
    assert 0 < moved[1e-6] < 1e-5


def test_partial_participation_runs_and_asks_only_the_cohort():
    client = fedpub(
        setting(evaluation=Evaluation(when="after_training", selection="best_validation"))
    )
    samplers = {**SAMPLERS, "sampler": Uniform(seed=0, fraction=0.5)}
    rounds, grid = run(client, Server(**samplers))
    cohorts = [log.cohort for log, _ in rounds[1:]]
    assert all(len(cohort) == 2 for cohort in cohorts)
    for log, _ in rounds[1:]:
        assert [u.client_id for u in log.evaluations] == log.cohort
        assert list(log.matrices["similarity"].clients) == log.cohort
    assert grid.store.ids() == sorted({c for cohort in cohorts for c in cohort})


def test_images_are_refused():
    base = small_setting(backbone=Flatten)
    with pytest.raises(ValueError, match="graph"):
        FedPub(base, training=fedpub().training, masking=Masking(), proxy={})


@pytest.mark.parametrize(
    "wrong", [{"penalties": "some"}, {"l1": -1}, {"threshold": -0.1}, {"lr": 0.0}, {"shrink": -1}]
)
def test_impossible_masking_is_refused(wrong):
    with pytest.raises(ValueError, match=f"masking.{next(iter(wrong))}"):
        Masking(**wrong)
