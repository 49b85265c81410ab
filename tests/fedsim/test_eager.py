"""The compiler stays out of a run, its results are the same with it, and it works when it comes."""

import json
import subprocess
import sys

RUNS = """
import json, sys
if sys.argv[1] == "compiler":
    import torch._dynamo
import fedsim
small = "dataset=toy scenario=single client=sgd clock.rounds_per_experience=2 num_clients=4"
moments = "optimizer=adam training.keep_optimizer=true"
choices = ["", "engine.cohort=auto", "optimizer=adam", moments]
digests = [
    fedsim.run(f"{small} {words}", folder=f"{sys.argv[2]}/{n}").summary["digest"]
    for n, words in enumerate(choices)
]
print(json.dumps({"digests": digests, "loaded": "torch._dynamo" in sys.modules}))
"""

AFTERWARDS = """
import sys
import torch
from fedsim.eager import keep_compiler_out
keep_compiler_out()
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.5)
weight.grad = torch.ones(2)
optimizer.step()
assert weight.tolist() == [0.5, 0.5]
assert torch.is_grad_enabled()
assert "torch._dynamo" not in sys.modules
twice = torch.compile(lambda x: 2 * x, backend="eager")
assert twice(torch.ones(2)).tolist() == [2.0, 2.0]
assert "torch._dynamo" in sys.modules
optimizer.step()
optimizer.zero_grad()
assert weight.tolist() == [0.0, 0.0]
assert weight.grad is None
known = torch.optim.Optimizer.zero_grad.__wrapped__.__dynamo_disable
assert getattr(known, "_torchdynamo_disable", False), "torch's own note is back"
"""


def run(code, *words):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_do_not_load_the_compiler_and_end_with_the_same_bits(tmp_path):
    without = json.loads(run(RUNS, "nothing", tmp_path / "without"))
    assert not without["loaded"]
    loaded = json.loads(run(RUNS, "compiler", tmp_path / "with"))
    assert loaded["loaded"]
    assert without["digests"] == loaded["digests"]
    assert len(set(without["digests"])) > 1


def test_what_is_compiled_later_finds_torch_as_it_was():
    run(AFTERWARDS)
