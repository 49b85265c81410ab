import pytest

import fedsim
from fedsim.arguments import check_arguments
from fedsim.build import make
from fedsim.checks import ConfigError
from fedsim.config import compose, resolve


@pytest.mark.parametrize(
    ("override", "part", "words"),
    [
        ("training.epochs=abc", "client", "training.epochs must be a whole number, got 'abc'"),
        ("training.epochs=1.5", "client", "training.epochs must be a whole number, got 1.5"),
        ("optimizer.lr=fast", "client", "optimizer.lr must be a number"),
        ("client.memory=true", "client", "client.memory must be a whole number, got true"),
        ("training.clip_norm=x", "client", "training.clip_norm must be a number or null, got 'x'"),
        ("backbone.hidden=200", "backbone", r"backbone.hidden must be a list .* got 200"),
        ("backbone.hidden=[8,x]", "backbone", r"each a whole number\), got \[8, 'x'\]"),
        ("engine.raise_errors=3", "engine", "engine.raise_errors must be true or false, got 3"),
        ("checkpoint.keep=null", "checkpoint", "checkpoint.keep must be a whole number, got null"),
        ("clock.rounds_per_experience=[1,x]", "clock", "whole number or a list"),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_key_that_sets_it(override, part, words):
    with pytest.raises(ConfigError, match=words):
        make(resolve(compose([override])), part)


def test_a_strategy_of_flowers_is_asked_too():
    node = resolve(compose(["strategy=fedadam", "strategy.eta=abc"]))
    with pytest.raises(ConfigError, match=r"strategy\.eta must be a number, got 'abc'"):
        make(node, "strategy")


def ambiguous(first: "Nowhere", second: int = None):  # noqa: F821, RUF013 - as people write it
    return first, second


def test_what_cannot_be_known_is_left_to_the_target():
    target = f"{__name__}.ambiguous"
    part = {"_target_": target, "first": "a", "second": "b"}
    check_arguments({"client": part, "other": {"_target_": "no.such.thing", "x": 1}}, "client")
    check_arguments({"client": part, "other": {"_target_": "no.such.thing", "x": 1}}, "other")


@pytest.mark.parametrize("choice", ["client=ewc", "client=avalanche_ewc", "strategy=krum"])
def test_defaults_are_of_the_types_that_are_asked_for(choice):
    node = resolve(compose([choice]))
    for part in ("clock", "backbone", "head", "client", "strategy", "scenario", "gate", "faults"):
        check_arguments(node, part)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer=adam optimizer.betas=[0.9]", "optimizer: "),
        ("training.epochs=0", "training.epochs=0 would train nothing"),
        ("engine.keep_states=0", "engine.keep_states must be at least 1"),
        ("schedule=cosine schedule.final=-2", "multiply the learning rate by 0 or more"),
        ("schedule=steps schedule.milestones=[2]", r"milestones must lie in \[0, 1\), got \[2\]"),
    ],
)
def test_a_value_that_would_fail_in_a_round_is_refused_before(override, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        fedsim.run(f"dataset=toy client=sgd num_clients=2 {override}", folder=tmp_path / "run")
