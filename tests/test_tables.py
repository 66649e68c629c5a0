"""Result rows as text."""

import csv

import numpy as np
import pytest

from helpers import row, some_rows, store_rows
from osr.results import select_rows
from osr.tables import format_rows, format_seeds, mean_and_deviation, write_csv

pytestmark = pytest.mark.usefixtures("sandbox")


# --- mean_and_deviation ---------------------------------------------------------------------------


def test_mean_and_deviation_by_hand():
    # 10, 40 and 30: mean 26.667, deviations -16.667, 13.333, 3.333, sum of squares / 2: 233.33.
    found = mean_and_deviation(some_rows(), method="short/one", metric="auroc")
    assert found == "26.67 ± 15.28"
    assert mean_and_deviation(some_rows(), metric="accuracy") == "75.00"
    assert mean_and_deviation(some_rows(), metric="aupr_in") == "-"


@pytest.mark.parametrize("value, shown", [(0.99125, "99.13"), (0.00005, "0.01"), (1, "100.00")])
def test_halves_are_rounded_up(value, shown):
    assert mean_and_deviation([row(value=value)]) == shown


def test_mean_and_deviation_agree_with_numpy():
    values = np.random.default_rng(0).random(20).round(6)
    rows = [row(seed=seed, value=float(value)) for seed, value in enumerate(values)]
    rows += [row(seed=3, metric="fpr95")]
    mean, deviation = mean_and_deviation(rows, metric="auroc").split(" ± ")
    assert float(mean) == pytest.approx(100 * np.mean(values), abs=0.00501)
    assert float(deviation) == pytest.approx(100 * np.std(values, ddof=1), abs=0.00501)


def test_a_text_is_marked_where_one_of_its_values_is_a_stored_one():
    rows = [row(seed=0, value=0.5), row(seed=1, value=0.7), row(ood="svhn", stored=True)]
    assert mean_and_deviation(rows, ood="fashionmnist") == "60.00 ± 14.14"
    assert mean_and_deviation(rows, ood="svhn") == "50.00°"
    rows[1]["stored"] = True
    assert mean_and_deviation(rows, ood="fashionmnist") == "60.00 ± 14.14°"
    assert mean_and_deviation(rows, ood="fashionmnist", seed=0) == "50.00"
    assert mean_and_deviation(rows, ood="cifar10") == "-"
    with pytest.raises(ValueError, match=r"a row has no \['known'\]"):
        mean_and_deviation(rows, known="mnist")


def test_seeds_are_counted_beside_their_mean_and_deviation():
    assert format_seeds(np.array([0.5, 0.7])) == "0.600 ± 0.141 (2)"
    assert format_seeds(np.array([0.25])).split() == ["0.250", "(1)"]


# --- format_rows ----------------------------------------------------------------------------------


def test_a_dict_and_a_list_of_rows_are_laid_out_alike():
    rows = some_rows()
    for seed in (0, None):
        assert format_rows(rows, seed) == format_rows(list(rows.values()), seed)
    assert "accuracy" in format_rows(rows) and "0.767" in format_rows(rows, None)


def test_rows_are_laid_out_by_seed_and_as_mean_and_deviation():
    row = {"system": "A", "method": "m", "id": "mnist", "metric": "accuracy", "weights": ""}
    rows = [row | {"ood": "", "seed": seed, "value": value} for seed, value in ((0, 0.5), (1, 0.7))]
    rows.append(row | {"ood": "kmnist", "seed": 0, "value": 0.25, "metric": "auroc"})
    head, first, second = format_rows(rows).split("\n")
    assert head.split() == ["method", "id", "ood", "accuracy", "auroc"]
    assert first.split() == ["m", "mnist", "0.500"]
    assert second.split() == ["m", "mnist", "kmnist", "0.250"]
    assert "0.600 ± 0.141" in format_rows(rows, seed=None)


@pytest.mark.parametrize("seed", [0, None])
def test_rows_of_one_cell_are_not_averaged(seed):
    rows = [row(value=0.25), row(value=0.75, system="B"), row(seed=1, system="B")]
    with pytest.raises(ValueError, match=r"two values of one cell.*select_rows\(rows, system='B'"):
        format_rows(rows, seed)
    assert "0.250" in format_rows(select_rows(rows, system="A"), seed)
    assert "0.75" in format_rows(select_rows(rows, system="B"))
    with pytest.raises(ValueError, match="two values of one cell.*each row once"):
        format_rows([row(), row()], seed)
    apart = [row(), row(system="B", ood="kmnist"), row(system="B", method="sum")]
    assert len(format_rows(apart, seed).split("\n")) == 4


def test_a_table_takes_a_generator_of_rows():
    rows = list(some_rows().values())
    assert format_rows(iter(rows), None) == format_rows(rows, None)
    assert mean_and_deviation(iter(rows), metric="accuracy") == "75.00"


def test_a_table_marks_what_was_not_computed():
    rows = [row(value=0.25), row(metric="fpr95", value=0.75, stored=True), row(seed=1, value=0.75)]
    rows.append(row(ood="svhn", stored=True))
    head, first, second = format_rows(rows).split("\n")
    assert head.split() == ["method", "id", "ood", "auroc", "fpr95"]
    assert first.split() == ["margin", "mnist", "fashionmnist", "0.250", "0.750°"]
    assert second.split() == ["margin", "mnist", "svhn", "0.500°"]
    rows[2]["stored"] = True  # of seed 1
    assert "0.250 " in format_rows(rows) and "0.500 ± 0.354°" in format_rows(rows, seed=None)


def test_a_table_shows_the_stored_value_where_a_value_agrees(repository, monkeypatch):
    store_rows(repository, [row(value=0.1234), row(metric="fpr95", value=0.5)])
    rows = [row(value=0.1238), row(metric="fpr95", value=0.502)]
    assert format_rows(rows).split()[-2:] == ["0.123", "0.502"]
    monkeypatch.setenv("OSR_PROFILE", "demo")
    assert format_rows(rows).split()[-2:] == ["0.124", "0.502"]


@pytest.mark.parametrize("rows, seed", [({}, 0), ([], None), ([row(seed=1)], 0)])
def test_a_table_of_nothing_says_so(rows, seed):
    assert format_rows(rows, seed) == "nothing was computed here"


def test_a_spreadsheet_runs_nothing_of_a_table(tmp_path):
    risky = ["=1+1.png", "+a.png", "-a.png", "@a.png", "\ta.png", "\ra.png", "a=b.png"]
    write_csv(tmp_path / "a.csv", [{"picture": name, "ood_score": -1.5} for name in risky])
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        found = [*csv.DictReader(file)]
    assert [row["picture"] for row in found] == [*(f"'{name}" for name in risky[:-1]), "a=b.png"]
    assert {row["ood_score"] for row in found} == {"-1.5"}  # a number stays one
