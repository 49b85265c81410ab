import json

import pytest

from fedsim.config import choices
from fedsim.reproduce import Runner
from fedsim.reproductions import fedpub, fedpub_graphs


def runner(tmp_path, accuracy):
    """A runner whose runs score what a function of name and seed says."""

    def simulate(node, run_dir):
        run_dir.mkdir(parents=True)
        score = accuracy(node["name"], node["seed"])
        summary = {"test_accuracy": score, "measure/mask_zeros": 0.25}
        (run_dir / "summary.json").write_text(json.dumps(summary))

    return Runner(folder=tmp_path, seeds=(0, 1), simulate=simulate)


def test_a_cell_holds_within_two_deviations_or_above(tmp_path):
    scores = {"fedpub_cora_disjoint_10": (0.8101, 0.8161)}  # mean 81.31
    made = runner(tmp_path, lambda name, seed: scores[name][seed])
    found = [
        fedpub.cell(made, "fedpub", "disjoint_10", published)
        for published in ((81.54, 0.12), (81.56, 0.12), (70.0, 0.1), None)
    ]
    assert [check.holds for check in found] == [True, False, True, None]
    assert found[0].ours == "81.31 ± 0.30"
    assert "published 81.54 ± 0.12; reference code re-run 81.08 ± 0.76" in found[0].wanted


def test_the_table_has_a_cell_for_every_method_and_partition_and_each_is_an_experiment(tmp_path):
    asked = set()

    def accuracy(name, seed):
        asked.add(name)
        return (0.9 if name.startswith("fedpub") else 0.5) + seed / 100

    checks = list(fedpub.checks(runner(tmp_path, accuracy)))
    assert asked == {f"{m}_cora_{p}" for m in fedpub.PUBLISHED for p in fedpub.PARTITIONS}
    assert asked <= set(choices("experiment"))
    assert len(checks) == len(asked) + 3 + len(fedpub.PENALTIES)
    by_claim = {check.claim: check for check in checks}
    gap = by_claim["FED-PUB above FedAvg, Cora 10, smallest gap over seeds"]
    assert (gap.ours, gap.holds) == ("40.0 points", True)
    assert by_claim["Penalties, none"].ours == "90.50 ± 0.50, masks zero 25.0%"
    assert [check.claim for check in checks if check.holds is None][:2] == [
        "fedper, Cora overlapping 30", "fedper, Cora overlapping 50",
    ]  # fmt: skip


@pytest.mark.parametrize("graph", fedpub_graphs.GRAPHS)
def test_other_graphs_stand_beside_learning_alone_and_averaging(tmp_path, graph):
    scores = {"local": 0.5, "fedavg": 0.4, "fedpub": 0.6}
    made = runner(tmp_path, lambda name, _: scores[name.split("_")[0]])
    (check,) = [c for c in fedpub_graphs.checks(made) if graph in c.claim]
    assert check.wanted == "alone 50.00 ± 0.00, FedAvg 40.00 ± 0.00"
    assert (check.ours, check.holds) == ("60.00 ± 0.00", None)
