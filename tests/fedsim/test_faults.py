import pytest
import torch

from fedsim.checks import ConfigError
from fedsim.clock import Clock
from fedsim.faults import STRIKES, Faults
from fedsim.wire import Download, Upload
from tests.fedsim.builders import small_setting

CLOCK = Clock(num_experiences=1, rounds_per_experience=9)


def faults(**kinds):
    return Faults(**{"seed": 3, "num_clients": 10, **kinds})


def pair(client=0, round_=1):
    sent = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(4)}
    got = {"w": torch.tensor([2.0, 4.0]), "n": torch.tensor(5)}
    down = Download(client_id=client, tick=CLOCK.at(round_, client), records={"arrays": sent})
    return Upload(client_id=client, num_examples=8, records={"arrays": got}), down


def test_shares_are_met_and_kinds_exclude_each_other():
    made = faults(nan=0.25, dropout=0.5)
    kinds = [made.strike(r, c) for r in range(200) for c in range(10)]
    assert abs(kinds.count("nan") / 2000 - 0.25) < 0.04
    assert abs(kinds.count("dropout") / 2000 - 0.5) < 0.04
    assert set(kinds) == {"nan", "dropout", None}


def test_who_is_struck_follows_from_seed_round_and_client():
    def drawn(seed):
        return [faults(seed=seed, inf=0.5).strike(r, c) for r in range(9) for c in range(10)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_named_clients_are_struck_in_every_round():
    made = faults(empty=[2, 5])
    assert {c for r in range(5) for c in range(10) if made.strike(r, c)} == {2, 5}


def test_a_share_of_the_clients_attacks_in_all_rounds():
    made = faults(sign_flip=0.3, noise=[7])
    assert len(made.attackers("sign_flip")) == 3
    assert made.attackers("noise") == {7}
    assert not made.attackers("label_flip")


def test_a_reversed_update():
    upload, down = pair()
    spoiled = faults(sign_flip=[0], scale=2.0).spoil(upload, down).records["arrays"]
    assert torch.equal(spoiled["w"], torch.tensor([-1.0, -2.0]))  # 1 - 2 * 1, 2 - 2 * 2
    assert spoiled["n"] == 5


def test_noise_has_its_scale_and_its_seed():
    upload, down = pair()
    made = faults(noise=[0], scale=0.5)
    first, again = (made.spoil(upload, down).records["arrays"]["w"] for _ in range(2))
    assert torch.equal(first, again)
    other = made.spoil(*pair(round_=2)).records["arrays"]["w"]
    assert not torch.equal(first, other)
    assert 0 < float((first - upload.records["arrays"]["w"]).abs().max()) < 2.5


def test_the_upload_itself_is_never_written_to():
    for kind in STRIKES:
        upload, down = pair()
        faults(**{kind: [0]}, timeout=60.0).spoil(upload, down)
        assert torch.equal(upload.records["arrays"]["w"], torch.tensor([2.0, 4.0]))


def test_waiting_is_virtual():
    made = faults(straggle=[1], hang=[2], delay_s=8.0, timeout=20.0)
    assert made.waited(1, [0, 3]) == 0.0
    assert made.waited(1, [0, 1]) == 8.0
    assert made.waited(1, [1, 2]) == 20.0


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ({"nan": 1.5}, "share in"),
        ({"nan": "often"}, "share or a list"),
        ({"nan": True}, "share or a list"),
        ({"nan": [10]}, "no client 10"),
        ({"nan": 0.6, "inf": 0.6}, "add up to 1.2"),
        ({"delay_s": 0}, "delay_s must be above 0"),
    ],
)
def test_faults_that_cannot_be_are_refused(kinds, text):
    with pytest.raises(ValueError, match=text):
        faults(**kinds)


def test_faults_that_do_not_fit_the_run_are_refused():
    with pytest.raises(ConfigError, match=r"needs engine\.timeout"):
        faults(hang=0.1).check(is_graph=False)
    with pytest.raises(ConfigError, match="not graphs"):
        faults(label_flip=0.1).check(is_graph=True)
    faults(hang=0.1, timeout=1.0).check(is_graph=True)


def test_flipped_labels_are_the_training_labels_of_the_attackers():
    honest, attacked = small_setting().scenario, small_setting().scenario
    attacked.flipped = frozenset({1})
    for client, split in ((0, "train"), (1, "test")):
        a, b = (s.shard(client, 0, split).targets for s in (honest, attacked))
        assert torch.equal(a, b)
    a, b = (s.shard(1, 0, "train").targets for s in (honest, attacked))
    assert torch.equal(3 - a, b)
