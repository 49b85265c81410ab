"""Avalanche's strategies as clients: equal to Avalanche's own loop, whole across rounds."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fedsim.client import initial_model
from fedsim.clock import Clock, StaggeredClock
from fedsim.seeding import derive
from fedsim.state import ClientState
from tests.clients import avalanche_case as case
from tests.clients.avalanche_case import (
    METHODS,
    TRAINING,
    client,
    run,
    setting,
    setting_for,
    stored,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def largest_difference(left, right):
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def avalanche_alone(name, settings):
    """Weights after every experience of Avalanche's own ``strategy.train(experience)``."""
    from avalanche.training.losses import MaskedCrossEntropy

    strategy = case.strategy(name)
    model = initial_model(settings)
    options = {
        "optimizer": TRAINING.optimizer(list(model.parameters())),
        "train_mb_size": TRAINING.batch_size,
        "train_epochs": TRAINING.epochs,
        "eval_mb_size": TRAINING.batch_size,
        "evaluator": None,
    }
    if name == "icarl":
        options |= {"feature_extractor": model.backbone, "classifier": model.head}
    else:
        masked = MaskedCrossEntropy() if name == "feature-replay" else nn.CrossEntropyLoss()
        options |= {"model": model, "criterion": masked}
    built = strategy.func(**options, **strategy.keywords)
    after, ends = built._after_training_exp, []

    def close():
        ends.append([tensor.clone() for tensor in built.model.state_dict().values()])
        case.seed(derive(settings.seed, "close", len(ends) - 1, 0))
        after()

    built._after_training_exp = close
    for position, experience in enumerate(settings.scenario.streams(0).train_stream):
        case.seed(derive(settings.seed, "noise", position + 1, 0))
        built.train(experience, eval_streams=[])
    return ends


@pytest.mark.parametrize("name", METHODS)
def test_one_round_per_experience_is_avalanches_own_training(name):
    settings = setting_for(name)
    expected = avalanche_alone(name, settings)
    one = client(name, settings)
    uploads, _ = run(lambda round_: one, settings, [1, 2, 3])
    for theirs, ours in zip(expected, uploads, strict=True):
        class_means = len(theirs) - len(ours)  # iCaRL's, after all weights
        assert class_means in ((0, 1) if name == "icarl" else (0,))
        for left, right in zip(theirs, ours.values(), strict=False):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-6)
    assert largest_difference(uploads[1], uploads[2]) > 1e-3  # it did train


@pytest.mark.parametrize("name", METHODS)
def test_rounds_in_fresh_processes_equal_rounds_in_one(name):
    settings = setting_for(name, rounds=2)
    rounds = [1, 2, 3, 4, 5]
    warm = client(name, settings)
    together, _ = run(lambda round_: warm, settings, rounds)

    arrays, state = case.start(settings), ClientState()
    for round_, expected in zip(rounds, together, strict=True):
        cold = client(name, settings)
        down = case.download(settings, round_, arrays)
        arrays = cold.train(down, state).records["arrays"]
        state = stored(state)
        assert largest_difference(arrays, expected) == 0.0


@pytest.mark.parametrize("name", ["ewc", "replay", "icarl", "cwr", "gdumb", "feature-replay"])
def test_clients_of_one_process_do_not_disturb_each_other(name):
    settings = setting(rounds=2, clients=2, norm=False)
    alone, _ = run(lambda round_: client(name, settings), settings, [1, 2, 3], client_id=0)

    shared = client(name, settings)
    states = [ClientState(), ClientState()]
    arrays = [case.start(settings), case.start(settings)]
    for round_ in (1, 2, 3):
        for who in (0, 1):
            down = case.download(settings, round_, arrays[who], who)
            arrays[who] = shared.train(down, states[who]).records["arrays"]
            shared.evaluate(down, states[who])
    assert largest_difference(arrays[0], alone[-1]) == 0.0
    assert largest_difference(arrays[0], arrays[1]) > 0.0


def plugin(built, kind):
    return next(p for p in built._strategy.plugins if type(p).__name__ == kind)


def test_several_rounds_are_one_experience():
    settings = setting(rounds=3)
    one, state, arrays = client("ewc", settings), ClientState(), case.start(settings)
    counts = []
    for round_ in range(1, 8):
        arrays = one.train(case.download(settings, round_, arrays), state).records["arrays"]
        clock = one._strategy.clock
        saved = len(plugin(one, "EWCPlugin").importances)
        counts.append((clock.train_exp_counter, saved, clock.train_exp_epochs))
    assert counts == [(0, 0, 2), (0, 0, 4), (0, 0, 6), (1, 1, 2), (1, 1, 4), (1, 1, 6), (2, 2, 2)]
    assert one._strategy.clock.train_iterations == 7 * 2 * 4  # rounds, epochs, batches


def test_closing_uses_the_download_that_follows_the_experience():
    settings = setting(rounds=2)
    one, state = client("ewc", settings), ClientState()
    first = case.start(settings)
    one.train(case.download(settings, 1, first), state)
    agreed = {n: t + 0.25 if t.is_floating_point() else t for n, t in first.items()}
    one.train(case.download(settings, 3, agreed), state)
    anchor = plugin(one, "EWCPlugin").saved_params[0]["head.weight"].data
    assert torch.equal(anchor, agreed["head.weight"])


def test_a_missed_experience_is_neither_opened_nor_closed():
    settings = setting()
    one = client("replay", settings)
    _, state = run(lambda round_: one, settings, [1, 3])
    assert one._strategy.clock.train_exp_counter == 1
    assert state["avalanche"]["visited"].tolist() == [0, 2]
    groups = plugin(one, "ReplayPlugin").storage_policy.buffer_groups
    labels = {int(label) for buffer in groups.values() for label in buffer.buffer.targets}
    assert labels <= set(settings.scenario.classes(0))


def test_icarl_names_the_right_classes_after_a_missed_experience():
    settings = setting()
    one = client("icarl", settings)
    run(lambda round_: one, settings, [1, 3])
    memory = plugin(one, "_ICaRLPlugin")
    assert sorted(memory.observed_classes) == sorted(
        settings.scenario.classes(0) + settings.scenario.classes(2)
    )
    assert {labels[0] for labels in memory.y_memory} == set(settings.scenario.classes(0))


def test_a_staggered_clock_moves_the_boundary():
    clock = StaggeredClock(num_experiences=3, rounds_per_experience=3, max_shift=2, seed=1)
    late = next(c for c in range(50) if clock.shift(c) == 2)
    settings = setting(clients=late + 1, norm=False, clock=clock)
    one, state, arrays = client("ewc", settings), ClientState(), case.start(settings)
    closed = []
    for round_ in range(1, 8):
        down = case.download(settings, round_, arrays, late)
        arrays = one.train(down, state).records["arrays"]
        closed.append(one._strategy.clock.train_exp_counter)
    assert closed == [0, 0, 0, 0, 0, 1, 1]


def test_replayed_examples_are_remembered_as_indices():
    settings = setting()
    one = client("replay", settings)
    _, state = run(lambda round_: one, settings, [1, 2, 3])
    floats = [t for t in state["avalanche"].values() if t.is_floating_point() and t.dim() > 1]
    assert floats == []
    assert len(plugin(one, "ReplayPlugin").storage_policy.buffer) == 10


def test_synaptic_intelligence_differs_from_naive_training():
    settings = setting(norm=False)
    with_penalty, _ = run(lambda round_: client("si", settings), settings, [1, 2])
    naive, _ = run(lambda round_: client("naive", settings), settings, [1, 2])
    assert largest_difference(with_penalty[0], naive[0]) == 0.0  # nothing to remember yet
    assert largest_difference(with_penalty[1], naive[1]) > 1e-5


def test_icarl_is_evaluated_with_the_classes_it_is_learning():
    settings = setting(rounds=2)
    one, state, arrays = client("icarl", settings), ClientState(), case.start(settings)
    assert one.personal
    assert not client("ewc", settings).personal
    arrays = one.train(case.download(settings, 1, arrays), state).records["arrays"]
    before = {name: t.clone() for name, t in state["avalanche"].items()}
    down = case.download(settings, 1, arrays)
    accuracy = one.evaluate(down, state).metrics["accuracy"]
    assert accuracy[0] > 0.6
    assert accuracy[1:] == [0.0, 0.0]  # no exemplars, so never predicted
    assert accuracy == client("icarl", settings).evaluate(down, stored(state)).metrics["accuracy"]
    assert all(torch.equal(before[n], t) for n, t in state["avalanche"].items())


@pytest.mark.parametrize("name", ["naive", "feature-replay", "icarl"])
@pytest.mark.parametrize("who", [0, None])
def test_without_a_memory_the_head_answers(name, who):
    settings = setting()
    one, arrays = client(name, settings), case.start(settings)
    plain = initial_model(settings).eval()
    shard = settings.scenario.shard(0, 0, "test")
    accuracy = float((plain(shard.inputs).argmax(1) == shard.targets).float().mean())
    down = case.download(settings, 1, arrays, who)
    measured = one.evaluate(down, ClientState()).metrics["accuracy"]
    assert measured[0] == pytest.approx(accuracy)


def test_the_loss_and_the_schedule_reach_avalanche():
    import dataclasses

    settings = setting()
    halted = dataclasses.replace(TRAINING, schedule=lambda progress: 0.0, keep_optimizer=False)
    arrays = case.start(settings)
    upload = client("naive", settings, halted).train(
        case.download(settings, 1, arrays), ClientState()
    )
    moved = {n: t for n, t in upload.records["arrays"].items() if "running" not in n}
    assert all(torch.equal(t, arrays[n]) for n, t in moved.items() if t.is_floating_point())
    assert upload.num_examples == 20
    assert 0.5 < upload.metrics["loss"] < 5.0


def test_gradients_are_clipped():
    import dataclasses

    settings = setting(norm=False)
    clipped = dataclasses.replace(TRAINING, clip_norm=1e-6)
    arrays = case.start(settings)
    down = case.download(settings, 1, arrays)
    end = client("naive", settings, clipped).train(down, ClientState()).records["arrays"]
    assert 0.0 < largest_difference(end, arrays) < 1e-5


def test_a_client_without_data_or_time_is_idle():
    late = setting(clock=Clock(num_experiences=3, rounds_per_experience=1))
    late.clock.at = lambda round_, client_id=None: late.clock._tick(round_, 0, joins=9)
    state = ClientState()
    upload = client("ewc", late).train(case.download(late, 1, case.start(late)), state)
    assert (upload.num_examples, upload.records, len(state)) == (0, {}, 0)


def test_training_leaves_the_global_generators_alone():
    import random

    settings = setting()
    case.seed(5)
    before = (torch.get_rng_state(), random.getstate())
    run(lambda round_: client("agem", settings), settings, [1, 2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_importing_the_client_does_not_import_avalanche():
    code = "import sys, clients.avalanche; sys.exit('avalanche' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
