"""Result rows and files."""

import json
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from helpers import files, row
from osr import figures, paths, results

pytestmark = pytest.mark.usefixtures("sandbox")


# --- rows in a notebook ---------------------------------------------------------------------------


def some_rows():
    """Return rows of two methods on three seeds, added in no order."""
    rows = {}
    for seed, value in ((2, 0.3), (0, 0.1), (1, 0.4)):
        for method, more in (("short/one", 0), ("short/two", 0.25), ("long", 0.5)):
            values = {"auroc": value + more, "fpr95": 1 - value}
            results.add_rows(rows, values, system="A", method=method, ood="kmnist", seed=seed)
    results.add_rows(rows, {"accuracy": 0.75}, system="B", method="long", weights="cnn-01")
    return rows


def test_a_row_is_what_save_results_takes():
    rows = {}
    results.add_rows(rows, {"auroc": np.float32(0.5), "n": 3}, system="A", method="m", seed=2)
    results.add_rows(
        rows, {"auroc": torch.tensor(0.25)}, system="A", method="m", known="mnist_c/fog",
        ood="svhn", weights="cnn-01",
    )  # fmt: skip
    plain = {"system": "A", "method": "m", "id": "mnist", "ood": "", "seed": 2, "weights": ""}
    assert list(rows.values()) == [
        plain | {"metric": "auroc", "value": 0.5},
        plain | {"metric": "n", "value": 3.0},
        row(method="m", id="mnist_c/fog", ood="svhn", value=0.25, weights="cnn-01"),
    ]
    assert all(type(found["value"]) is float for found in rows.values())
    results.save_results("03_test", rows, {})
    assert results.read_results("03_test") == list(rows.values())


def test_a_second_run_of_a_cell_replaces_its_rows():
    rows = some_rows()
    before = list(rows.values())
    for name, found in some_rows().items():
        assert rows[name] == found
    again = {"auroc": 0.9, "fpr95": 0.8}
    results.add_rows(rows, again, system="A", method="long", ood="kmnist", seed=1, weights="new")
    changed = [new for new, old in zip(rows.values(), before, strict=True) if new != old]
    assert [(found["metric"], found["value"], found["weights"]) for found in changed] == [
        ("auroc", 0.9, "new"), ("fpr95", 0.8, "new"),
    ]  # fmt: skip
    assert [found["metric"] for found in rows.values()] == [found["metric"] for found in before]


@pytest.mark.parametrize("kind", [lambda rows: rows, lambda rows: list(rows.values())])
def test_rows_are_selected_by_values_tuples_and_patterns(kind):
    rows = kind(some_rows())
    everything = list(some_rows().values())
    assert results.select_rows(rows) == everything and len(everything) == 19
    for wanted, expected in (
        ({"seed": 1}, [r for r in everything if r["seed"] == 1]),
        ({"seed": (1, 2)}, [r for r in everything if r["seed"]]),
        ({"seed": {0}, "metric": ["accuracy"]}, everything[-1:]),
        ({"method": "short/*"}, [r for r in everything if r["method"][:5] == "short"]),
        ({"method": "*o*", "ood": ""}, everything[-1:]),
        ({"method": "short"}, []),
        ({"method": ("short/*", "long")}, [r for r in everything if r["method"] == "long"]),
        ({"ood": ("", "kmnist"), "value": 0.75}, [r for r in everything if r["value"] == 0.75]),
        ({"weights": "cnn-*"}, everything[-1:]),
        ({"id": "MNIST*"}, []),
    ):
        assert results.select_rows(rows, **wanted) == expected, wanted


def test_a_field_that_a_row_does_not_have_is_an_error():
    for select in (results.select_rows, results.row_values, results.mean_and_deviation):
        with pytest.raises(
            ValueError, match=r"a row has no \['known', 'sed'\]; it has system, met"
        ):
            select(some_rows(), sed=0, known="mnist")
    with pytest.raises(ValueError, match="a row has no"):
        results.select_rows({}, sed=0)


def test_values_come_in_the_order_of_the_seeds():
    found = results.row_values(some_rows(), method="short/two", metric="auroc")
    assert found.tolist() == pytest.approx([0.35, 0.65, 0.55]) and found.dtype == np.float64
    assert results.row_values(some_rows(), method="none").shape == (0,)


def test_mean_and_deviation_by_hand():
    # 10, 40 and 30: mean 26.667, deviations -16.667, 13.333, 3.333, their mean square 155.56.
    found = results.mean_and_deviation(some_rows(), method="short/one", metric="auroc")
    assert found == "26.67 ± 12.47"
    assert results.mean_and_deviation(some_rows(), metric="accuracy") == "75.00"
    assert results.mean_and_deviation(some_rows(), metric="aupr_in") == "-"


@pytest.mark.parametrize("value, shown", [(0.99125, "99.13"), (0.00005, "0.01"), (1, "100.00")])
def test_halves_are_rounded_up(value, shown):
    assert results.mean_and_deviation([row(value=value)]) == shown


def test_mean_and_deviation_agree_with_numpy():
    values = np.random.default_rng(0).random(20).round(6)
    rows = [row(seed=seed, value=float(value)) for seed, value in enumerate(values)]
    rows += [row(seed=3, metric="fpr95")]
    mean, deviation = results.mean_and_deviation(rows, metric="auroc").split(" ± ")
    assert float(mean) == pytest.approx(100 * np.mean(values), abs=0.00501)
    assert float(deviation) == pytest.approx(100 * np.std(values), abs=0.00501)


def test_a_dict_and_a_list_of_rows_are_laid_out_alike():
    rows = some_rows()
    for seed in (0, None):
        assert results.format_rows(rows, seed) == results.format_rows(list(rows.values()), seed)
    assert "accuracy" in results.format_rows(rows) and "0.767" in results.format_rows(rows, None)


# --- result files ---------------------------------------------------------------------------------


def saved(notebook="03_test"):
    return json.loads((paths.results_dir() / f"{notebook}.json").read_text(encoding="utf-8"))


def test_results_come_back_as_they_were_saved():
    rows = [row(), row(metric="fpr95", value=0.1234567), row(ood="", metric="accuracy", value=1)]
    config = {"epochs": 3, "text": 'é {"system" ,\n   }', "nested": {"a": [1, {"b": [2, 3]}]}}
    results.save_results("03_test", rows, config, data_notes={"svhn": "a part"})
    assert results.read_results("03_test") == [
        row(), row(metric="fpr95", value=0.123457), row(ood="", metric="accuracy", value=1),
    ]  # fmt: skip
    assert {key: saved()[key] for key in ("profile", "config", "data_notes")} == {
        "profile": "full", "config": config, "data_notes": {"svhn": "a part"},
    }  # fmt: skip
    assert files(paths.results_dir()) == ["03_test.json"]


def test_a_result_file_holds_one_line_a_row():
    results.save_results("03_test", [row(), row(seed=1)], {})
    lines = (paths.results_dir() / "03_test.json").read_text().splitlines()
    assert sum('"system"' in line and '"weights"' in line for line in lines) == 2


def test_results_of_the_demo_say_so(monkeypatch):
    monkeypatch.setenv("OSR_PROFILE", "demo")
    results.save_results("03_test", [row()], {})
    assert saved()["profile"] == "demo"


def test_no_results_yet_is_an_empty_list():
    assert results.read_results("03_test") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="bad row.*a finite value"):
        results.save_results("03_test", [row(), row(seed=1, value=value)], {})
    assert results.read_results("03_test") == []


@pytest.mark.parametrize("key", list(row()))
def test_a_row_without_one_of_its_keys_is_refused(key):
    bad = {name: value for name, value in row().items() if name != key}
    with pytest.raises(ValueError, match="bad row.*system, method, id, ood, seed, metric"):
        results.save_results("03_test", [bad], {})


def test_a_row_with_another_key_is_refused():
    with pytest.raises(ValueError, match="bad row"):
        results.save_results("03_test", [row(epoch=3)], {})


def test_two_values_of_one_thing_are_refused():
    with pytest.raises(ValueError, match="'fashionmnist', 0, 'auroc'.* stands twice"):
        results.save_results("03_test", [row(), row(value=0.6, weights="x")], {})
    different = {
        "system": "B", "method": "sum", "id": "svhn", "ood": "", "seed": 1, "metric": "aupr_in",
    }  # fmt: skip
    rows = [row(), *(row(**{key: value}) for key, value in different.items())]
    results.save_results("03_test", rows, {})
    assert len(results.read_results("03_test")) == 7


def test_committed_rows_of_other_seeds_are_kept(repository):
    old = [row(seed=seed, value=seed / 10) for seed in range(3)]
    old += [row(method="dropped", seed=seed) for seed in range(3)]
    results.save_results("03_test", old, {})
    results.save_results("03_test", [row(seed=0, value=0.9), row(method="new")], {})
    found = {(r["method"], r["seed"]): r["value"] for r in results.read_results("03_test")}
    assert found == {("margin", 0): 0.9, ("new", 0): 0.5, ("margin", 1): 0.1, ("margin", 2): 0.2}


def test_a_run_elsewhere_keeps_committed_rows_and_leaves_the_file(repository, monkeypatch, sandbox):
    results.save_results("03_test", [row(seed=0), row(seed=1, value=0.25)], {})
    committed = (repository / "report/results/03_test.json").read_bytes()
    monkeypatch.setenv("OSR_OUTPUT", str(sandbox / "elsewhere"))
    results.save_results("03_test", [row(seed=0, value=0.75)], {})
    assert [r["value"] for r in results.read_results("03_test")] == [0.75, 0.25]
    assert (repository / "report/results/03_test.json").read_bytes() == committed


def test_rows_of_another_configuration_are_dropped_and_said_so(repository, capsys):
    results.save_results("03_test", [row(seed=0), row(seed=1)], {"epochs": 120})
    results.save_results("03_test", [row(seed=0)], {"epochs": 1})
    assert [r["seed"] for r in results.read_results("03_test")] == [0]
    assert "another configuration" in capsys.readouterr().out


def test_the_demo_keeps_no_committed_rows(repository, monkeypatch):
    results.save_results("03_test", [row(seed=0), row(seed=1)], {})
    monkeypatch.setenv("OSR_PROFILE", "demo")
    results.save_results("03_test", [row(seed=0)], {})
    assert len(results.read_results("03_test")) == 1


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_failed_save_keeps_the_old_results(monkeypatch, failure, where):
    def half(path, text, **_):
        with open(path, "w") as file:
            file.write(text[: len(text) // 2])
        raise failure

    def no(*_):
        raise failure

    results.save_results("03_test", [row()], {})
    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(Path, "write_text", half)
        else:
            patch.setattr(os, "replace", no)
        with pytest.raises(type(failure)):
            results.save_results("03_test", [row(value=0.9)], {})
    assert results.read_results("03_test") == [row()]
    assert files(paths.output_dir()) == ["03_test.json"]


def test_a_folder_that_cannot_be_is_an_error_with_advice(sandbox):
    (sandbox / "out").write_text("a file in the folder's place")
    for save in (
        lambda: results.save_results("03_test", [row()], {}),
        lambda: figures.save_figure(plt.figure(), "test"),
    ):
        with pytest.raises(OSError, match="cannot write .*out.* Make .* a writable folder"):
            save()
    plt.close("all")
    assert files(sandbox) == ["out"]


def test_rows_are_laid_out_by_seed_and_as_mean_and_deviation():
    row = {"system": "A", "method": "m", "id": "mnist", "metric": "accuracy", "weights": ""}
    rows = [row | {"ood": "", "seed": seed, "value": value} for seed, value in ((0, 0.5), (1, 0.7))]
    rows.append(row | {"ood": "kmnist", "seed": 0, "value": 0.25, "metric": "auroc"})
    head, first, second = results.format_rows(rows).split("\n")
    assert head.split() == ["method", "id", "ood", "accuracy", "auroc"]
    assert first.split() == ["m", "mnist", "0.500"]
    assert second.split() == ["m", "mnist", "kmnist", "0.250"]
    assert "0.600 ± 0.100" in results.format_rows(rows, seed=None)
