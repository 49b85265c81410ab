"""The numbers of the comparison, against SciPy and summary.json."""

import numpy as np
import pytest
from scipy import stats

from fedsim.report.measures import paired_table, ranks_table, results_tables
from fedsim.report.study import study
from tests.fedsim.report.run_dirs import write_run

# test accuracy by seed
FEDAVG = [0.71, 0.75, 0.70, 0.78]
FEDPROX = [0.74, 0.76, 0.75, 0.79]
FEDADAM = [0.60, 0.71, 0.66, 0.69]


@pytest.fixture
def three(tmp_path):
    for name, values in (("fedavg", FEDAVG), ("fedprox", FEDPROX), ("fedadam", FEDADAM)):
        for seed, value in enumerate(values):
            write_run(tmp_path / f"{name}{seed}", seed=seed, strategy=name, accuracy=value)
    return study([tmp_path])


def column(table, title):
    return [c.title for c in table.columns].index(title)


def test_the_table_holds_the_mean_and_students_interval(three):
    table = results_tables(three)[0]
    cells = {row[0]: row[column(table, "test accuracy")] for row in table.rows}
    low, high = stats.t.interval(0.95, 3, loc=np.mean(FEDAVG), scale=stats.sem(FEDAVG))
    assert cells["fedavg"].mean == pytest.approx(np.mean(FEDAVG))
    assert cells["fedavg"].mean - cells["fedavg"].half == pytest.approx(low)
    assert cells["fedavg"].mean + cells["fedavg"].half == pytest.approx(high)


def test_every_measure_is_that_of_summary_json(three):
    tables = results_tables(three)
    run = three.groups[0].runs[0]
    found = {}
    for table in tables:
        for i, c in enumerate(table.columns):
            found[c.title] = [row[i] for row in table.rows]
    group = three.groups[0]
    for title, key in (
        ("worst tenth of clients", "worst_decile_accuracy"),
        ("forgetting", "forgetting"),
        ("uploaded", "upload_bytes"),
        ("seconds a round", "seconds_per_round"),
    ):
        expected = np.mean([r.summary[key] for r in group.runs])
        assert found[title][0].mean == pytest.approx(expected)
    assert found["clients' own tests"][0].mean == pytest.approx(
        np.mean([r.summary["test_accuracy"] for r in group.runs])
    )
    assert run.summary["rejected_updates"] == 0
    assert "rejected updates" not in found


def test_paired_tests_are_scipys_between_the_best_and_the_others(three):
    table = paired_table(three)
    by_other = {row[column(table, "against")]: row for row in table.rows}
    assert set(by_other) == {"fedavg", "fedadam"}
    for name, values in (("fedavg", FEDAVG), ("fedadam", FEDADAM)):
        row = by_other[name]
        assert row[column(table, "best method")] == "fedprox"
        p = stats.ttest_rel(FEDPROX, values).pvalue
        assert row[column(table, "p, paired t")] == pytest.approx(p)
        w = stats.wilcoxon(FEDPROX, values).pvalue
        assert row[column(table, "p, Wilcoxon")] == pytest.approx(w)


def test_ranks_are_over_seeds_in_a_single_scenario(three):
    table = ranks_table(three)
    assert list(table.rows) == [("fedprox", 1.0), ("fedavg", 2.0), ("fedadam", 3.0)]
    p = stats.friedmanchisquare(FEDAVG, FEDPROX, FEDADAM).pvalue
    assert f"p = {p:.3f}" in table.note


def test_ranks_are_over_scenarios_where_there_are_several(tmp_path):
    for alpha, better in ((0.1, "fedavg"), (1, "fedprox"), (100, "fedprox")):
        for strategy in ("fedavg", "fedprox"):
            accuracy = 0.9 if strategy == better else 0.8
            folder = tmp_path / f"{strategy}{alpha}"
            write_run(folder, strategy=strategy, alpha=alpha, accuracy=accuracy)
    table = ranks_table(study([tmp_path]))
    assert dict(table.rows) == pytest.approx({"fedprox": 4 / 3, "fedavg": 5 / 3})
    assert "3 scenarios" in table.note


def test_one_method_with_one_seed_is_not_compared(tmp_path):
    write_run(tmp_path / "a")
    found = study([tmp_path])
    assert paired_table(found) is None
    assert ranks_table(found) is None
