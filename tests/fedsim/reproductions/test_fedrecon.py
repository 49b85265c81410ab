from fedsim.reproductions import fedrecon
from tests.fedsim.reproductions.test_reproduce import runner

GOOD = {
    "test_accuracy": 0.9,
    "forgetting_unexplained": 0.0,
    "measure/upload_bytes_per_class": 276.0,
    "measure/download_bytes_per_class": 276.0,
    "measure/update_s_per_class": 0.001,
    "measure/after/field": 0.9,
    "measure/after/field_among_field": 0.95,
    "measure/after/base": 0.8,
    "measure/before/base": 0.8,
    "measure/before/field": 0.8,
    "measure/before/mission": 0.8,
    "upload_bytes/statistics": 1,
}


def answers(good, naive=0.3, raw=0.25):
    def summaries(node):
        if "identity" in str(node["dataset"].get("encoder")):
            return {**good, "test_accuracy": raw}
        is_baseline = node["client"]["_target_"] != "clients.prototypes.Prototypes"
        return {**good, "test_accuracy": naive} if is_baseline else good

    return summaries


def verdicts(tmp_path, summaries):
    made, calls = runner(tmp_path, summaries)
    return [check.holds for check in fedrecon.checks(made)], calls


def test_good_numbers_hold_and_every_run_can_be_composed(tmp_path):
    holds, calls = verdicts(tmp_path, answers(GOOD))
    assert False not in holds
    assert holds.count(True) == 9
    # digits, encoders; ours, two baselines and replay over two seeds; missions with three heads,
    # and six learners on digits, whose prototypes were there before
    assert len(calls) == 2 + 2 + 2 * (1 + 2 + 1) + 1 + 3 + 6


def test_every_learner_is_shown_at_the_same_points(tmp_path):
    made, _ = runner(tmp_path, answers(GOOD))
    shown = [check.ours for check in fedrecon.checks(made) if "an MLP" in check.claim]
    assert len(shown) == 6
    for text in shown:
        assert "before/mission 80.0%" in text
        assert "after/field 90.0%" in text
        assert "276 bytes up and 276 down a class, 0.0010 s" in text


def test_bad_numbers_fail(tmp_path):
    bad = {
        **GOOD,
        "test_accuracy": 0.4,
        "forgetting_unexplained": 0.01,
        "measure/upload_bytes_per_class": 500.0,
        "upload_bytes/arrays": 7,
        "measure/after/field": 0.5,
        "measure/after/field_among_field": 0.4,
    }
    holds, _ = verdicts(tmp_path, answers(bad, naive=0.39, raw=0.4))
    assert holds.count(False) == 9
    assert True not in holds
