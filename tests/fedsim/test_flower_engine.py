import json
import subprocess
import sys

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from fedsim import flower_engine
from fedsim.build import make
from fedsim.checks import ConfigError
from fedsim.config import compose, resolve
from fedsim.flower_engine import FlowerEngine, SuperLinkEngine
from fedsim.grid import LocalGrid
from fedsim.roster import plain


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine.timeout=0"], "engine.timeout must be above 0, or null for no limit; got 0"),
        (["engine.num_cpus=0"], "engine.num_cpus must be above 0"),
        (["engine.num_gpus=-1"], "engine.num_gpus at least 0, got 1 and -1"),
        (["engine.cohort=8"], "engine.cohort=8 needs engine=local"),
        (["engine.device=cuda"], "engine.num_gpus above 0: Ray hides the GPUs"),
    ],
)
def test_options_that_cannot_work(words, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=message):
        make(resolve(compose(["engine=flower", *words])), "engine")


@pytest.mark.parametrize("word", ["engine.shuffle=true", "engine.keep_states=5"])
def test_options_of_the_engine_in_process_are_unknown(word):
    with pytest.raises(ConfigError, match=f"there is no key '{word.split('=')[0]}'"):
        compose(["engine=flower", word])


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(flower_engine, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"engine=flower needs Ray; .*pip install -e '\.\[ray\]'"):
        FlowerEngine()


@pytest.mark.parametrize("name", ["auto", "off"])
def test_a_cohort_that_comes_to_one_by_one_is_taken(name):
    pytest.importorskip("ray")
    assert make(resolve(compose(["engine=flower", f"engine.cohort={name}"])), "engine")


def test_only_flower_starts_runs_on_its_superlink(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedsim.main", "engine=superlink", "dataset=toy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "fedsim: engine: engine=superlink is for apps that Flower starts: use flwr run"
    )


def test_an_app_does_not_choose_its_engine():
    node = resolve(compose(["engine=superlink", "engine=local"]))
    with pytest.raises(ConfigError, match="leave engine="):
        SuperLinkEngine.of(node, grid=LocalGrid(ClientApp(), 1))


def test_options_of_an_app():
    node = resolve(compose(["engine=superlink", "engine.wait=5", "engine.timeout=60"]))
    engine = SuperLinkEngine.of(node, grid=LocalGrid(ClientApp(), 1))
    assert (engine.wait, engine.timeout, engine.raise_errors) == (5, 60, False)
    with pytest.raises(ConfigError, match="timeout must be above 0"):
        SuperLinkEngine.of(
            resolve(compose(["engine=superlink", "engine.timeout=-1"])),
            grid=LocalGrid(ClientApp(), 1),
        )


@pytest.mark.parametrize("trace", [False, True])
def test_an_exception_in_a_process_of_rays_becomes_a_reply_that_names_it(trace):
    pytest.importorskip("ray")
    from fedsim.ray_runtime import Answering

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict(), 7, "train")  # says no round
    words = ["engine=flower", "dataset=toy", "dataset.train_examples=40", "num_clients=2"]
    config = json.dumps(resolve(compose(words)))
    context = Context(1, 7, {"partition-id": 0}, RecordDict(), {})
    reply = Answering(config, trace=trace)(message, context)
    reason = plain(reply.error.reason)
    assert reason.startswith("ValueError: the message needs an integer 'server-round'")
    assert ("Traceback" in reason) == trace
