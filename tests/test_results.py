"""Result rows and files."""

import json
import math
import os
from pathlib import Path
from unittest.mock import Mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from helpers import files, literal, row, some_rows, store_rows, touch_sets
from osr import figures, paths, results

pytestmark = pytest.mark.usefixtures("sandbox")


# --- rows in a notebook ---------------------------------------------------------------------------


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


def test_a_generator_of_rows_is_as_good_as_a_list():
    everything = list(some_rows().values())
    assert results.select_rows(iter(everything), seed=1) == results.select_rows(everything, seed=1)
    assert results.row_values(iter(everything), method="short/two", metric="auroc").shape == (3,)
    assert len(results.as_stored(iter(everything))) == len(everything)
    results.save_results("03_test", (found for found in everything), {})
    assert len(results.read_results("03_test")) == len(everything)


def test_a_field_that_a_row_does_not_have_is_an_error():
    for select in (results.select_rows, results.row_values):
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


# --- what agrees with what is stored --------------------------------------------------------------


@pytest.mark.parametrize(
    "stored, value, images, same",
    [
        (0.9, 0.9004, 0, True),
        (0.9, 0.8996, 0, True),
        (0.9, 0.902, 0, False),
        (0.9, 0.898, 0, False),
        (250.0, 250.1, 0, True),  # 0.04 per cent of it
        (250.0, 250.5, 0, False),  # 0.2 per cent
        (-250.0, -250.1, 0, True),
        (0.001, 0.0014, 0, True),
        (0.5, 0.53, 100, True),  # three images of a hundred
        (0.5, 0.47, 100, True),
        (0.5, 0.54, 100, False),  # four
        (0.5, 0.503, 1000, True),
        (0.5, 0.504, 1000, False),
        (0.5, 0.5004, 1_000_000, True),
    ],
)
def test_a_value_is_the_stored_one_or_its_own(repository, stored, value, images, same):
    old, new = row(value=stored), row(value=value, weights="others-01")
    assert results.agree(new | {"images": images}, old) == same
    assert results.agree(new, old | {"images": images}) == same  # either side may know
    store_rows(repository, [old | {"images": images}] if images else [old])
    expected = new | {"value": stored if same else value}
    assert results.as_stored([new]) == results.as_stored({"any key": new}) == [expected]
    rows = {}
    shown = results.add_rows(rows, {"auroc": value}, system="A", method="margin",
                             ood="fashionmnist", images=images)  # fmt: skip
    assert shown == {"auroc": stored if same else value}
    assert [r["value"] for r in rows.values()] == [value]  # what is saved is what was computed


@pytest.mark.parametrize("key", results.KEYS)
def test_a_row_of_another_name_is_not_the_stored_one(repository, key):
    store_rows(repository, [row(value=0.9)])
    other = row(value=0.9004) | {key: 1 if key == "seed" else "another"}
    assert results.as_stored([other, row(value=0.9004)]) == [other, row(value=0.9)]


@pytest.mark.parametrize("environment", [{"OSR_PROFILE": "demo"}, {"OSR_RETRAIN": "1"}])
def test_a_demo_and_a_retraining_keep_their_own_values(repository, monkeypatch, environment):
    store_rows(repository, [row(value=0.9)])
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert results.as_stored([row(value=0.90041234567)]) == [row(value=0.900412)]


def test_the_stored_values_are_those_of_now(repository):
    for number, value in enumerate((0.9, 0.9002)):
        path = store_rows(repository, [row(value=value)])
        os.utime(path, (number, number))
        assert results.as_stored([row(value=0.9001)]) == [row(value=value)]
    store_rows(repository, [row(method="sum", value=0.7)], "07_test")
    assert results.as_stored([row(method="sum", value=0.7001)]) == [row(method="sum", value=0.7)]
    path.unlink()
    assert results.as_stored([row(value=0.9001)]) == [row(value=0.9001)]


# --- what rests on a set that is not here ---------------------------------------------------------

CLONED = ("mnist-train", "mnist-test", "fashionmnist-train", "fashionmnist-test", "kmnist-test")


@pytest.mark.parametrize(
    "known, unknown, missing",
    [
        ("mnist", "", []),
        ("mnist", "kmnist", []),  # its test images are enough
        ("kmnist", "mnist", ["kmnist"]),  # a network learns from its training images
        ("mnist", "kmnist-train", ["kmnist"]),
        ("mnist", "fashionmnist-train", []),
        ("mnist", "cifar10-train", ["cifar10"]),
        ("mnist", "fashionmnist+cifar10", ["cifar10"]),
        ("mnist", "noise+svhn+letters+cifar10", ["svhn", "cifar10"]),
        ("svhn", "cifar10", ["svhn", "cifar10"]),
        ("mnist", "noise", []),
        ("mnist-rest", "mnist-8", []),
        ("mnist-without-0-1", "mnist-0", []),
        ("mnist-validation", "letters-train", []),
        ("mnist_c", "", ["mnist_c"]),
        ("mnist_c/fog", "", ["mnist_c/fog"]),
        ("mnist_c/zigzag", "", []),
        ("uci_digits-train", "symbols", []),
    ],
)
def test_the_sets_that_a_row_rests_on(repository, known, unknown, missing):
    (repository / "data/mnist_c").mkdir()
    touch_sets(repository, *CLONED, "mnist_c/zigzag-test")
    assert results.missing_sets(row(id=known, ood=unknown)) == missing


def test_a_known_set_needs_both_of_its_splits(repository):
    touch_sets(repository, "mnist-test", "fashionmnist-train", "fashionmnist-test")
    assert results.missing_sets(row(id="mnist")) == ["mnist"]
    assert results.missing_sets(row(id="fashionmnist", ood="mnist")) == []


@pytest.fixture
def clone(repository):
    """Return a repository with the images that come with it, and no others."""
    touch_sets(repository, *CLONED)
    return repository


def test_stored_rows_of_an_absent_set_join_the_results_with_a_mark(clone):
    store_rows(clone, [row(value=0.1), row(ood="svhn", value=0.2), row(ood="svhn", seed=1),
                       row(ood="kmnist+svhn", value=0.4), row(method="dropped")])  # fmt: skip
    results.save_results("03_test", [row(value=0.9)], {})
    expected = [
        row(value=0.9), row(ood="svhn", value=0.2, stored=True), row(ood="svhn", seed=1),
        row(ood="kmnist+svhn", value=0.4, stored=True),
    ]  # fmt: skip
    assert results.read_results("03_test") == expected
    results.save_results("03_test", [row(value=0.9), row(ood="svhn", value=0.3)], {})
    assert results.read_results("03_test")[1] == row(ood="svhn", value=0.3)  # computed after all
    touch_sets(clone, "svhn-test")
    results.save_results("03_test", [row(value=0.9)], {})
    assert results.read_results("03_test") == [row(value=0.9)]


def test_stored_rows_are_marked_where_nothing_was_computed_at_all(clone):
    store_rows(clone, [row(ood="svhn")])
    results.save_results("03_test", [], {})
    assert results.read_results("03_test") == [row(ood="svhn", stored=True)]


def test_rows_that_are_marked_or_of_few_images_are_saved_as_such():
    rows = [row(images=100), row(seed=1, stored=True)]
    results.save_results("03_test", rows, {})
    assert results.read_results("03_test") == rows


def test_a_run_reads_its_own_results_and_else_those_of_the_repository(repository):
    store_rows(repository, [row(value=0.1)])
    store_rows(repository, [row(value=0.2)], "07_test")
    results.save_results("03_test", [row(value=0.3)], {})
    results.save_results("08_test", [row(value=0.4)], {})
    found = {name: results.read_results(name)[0]["value"] for name in results.results_files()}
    assert found == {"03_test": 0.3, "07_test": 0.2, "08_test": 0.4}
    assert json.loads((repository / "report/results/03_test.json").read_text())["rows"] == [
        row(value=0.1)
    ]


@pytest.mark.parametrize("environment", [{"OSR_PROFILE": "demo"}, {"OSR_RETRAIN": "1"}])
def test_a_demo_and_a_retraining_read_their_own_results_alone(repository, monkeypatch, environment):
    store_rows(repository, [row()])
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert results.read_results("03_test") == [] and results.results_files() == {}
    results.save_results("03_test", [row(value=0.3)], {})
    assert [r["value"] for r in results.read_results("03_test")] == [0.3]


def test_rows_of_the_repository_are_marked(repository):
    store_rows(repository, [row(seed=0), row(seed=1), row(method="sum")])
    results.save_results("03_test", [row(value=0.9)], {})  # the run's own are not meant
    expected = [row(seed=0, stored=True), row(seed=1, stored=True)]
    assert results.stored_rows("03_test", method="margin") == expected
    assert results.stored_rows("04_test") == []


# --- result files ---------------------------------------------------------------------------------


def saved(notebook="03_test"):
    return json.loads((paths.results_dir() / f"{notebook}.json").read_text(encoding="utf-8"))


def test_results_come_back_as_they_were_saved():
    rows = [
        row(value=np.float32(0.5)),
        row(metric="fpr95", value=0.1234567),
        row(ood="", metric="accuracy", value=1),
    ]
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


@pytest.mark.parametrize("name", ["../03_test", "a/b", "a\\b", "/tmp/x", "", "con", "x*", None])
def test_a_name_that_leaves_the_folder_or_cannot_be_a_files_is_refused(sandbox, name):
    with pytest.raises(ValueError, match="cannot name a file"):
        results.save_results(name, [row()], {})
    with pytest.raises(ValueError, match="cannot name a file"):
        results.stored_rows(name)
    assert files(sandbox) == []


def own(_):
    results.save_results("03_test", [row(), row(seed=1, value=0.25)], {"é": 2})
    return paths.results_dir() / "03_test.json", "delete it and run the notebook again"


def stored(repository):
    path = repository / "report/results/03_test.json"
    results.write_results(path, {"profile": "full", "config": {}, "data_notes": {}}, [row()])
    return path, "`git checkout -- report/results/03_test.json` brings it back"


@pytest.mark.parametrize("place", [own, stored])
def test_a_results_file_that_was_changed_or_cut_is_an_error_that_names_it(repository, place):
    path, way_out = place(repository)
    text, sound = path.read_text(encoding="utf-8"), results.read_file(path)
    changes = [text.replace("0.5", "0.6"), text.replace('"full"', '"fuII"'), text + "}", "[]", ""]
    changes += [text.replace('"rows"', '"row"'), text.replace('"A"', '"B"'), "{}", "null"]
    changes += [text[:length] for length in range(1, len(text) - 2, 7)]
    for changed in changes:
        assert changed != text
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(
            ValueError, match=f"{literal(path)} is damaged or was edited.*{way_out}"
        ):
            results.read_file(path)
    path.write_bytes(text.encode().replace(b"mnist", b"mn\xffst"))
    with pytest.raises(ValueError, match=f"{literal(path)} is damaged.*{way_out}"):
        results.read_results("03_test")
    path.write_text(json.dumps(json.loads(text)), encoding="utf-8")  # laid out otherwise
    assert results.read_file(path) == sound
    assert set(sound) == {"profile", "config", "data_notes", "rows"}


def test_no_flipped_bit_of_a_results_file_changes_a_number_unnoticed(repository):
    path, _ = own(repository)
    content, sound = path.read_bytes(), results.read_file(path)["rows"]
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert results.read_file(path)["rows"] == sound
        except ValueError as error:
            assert str(path) in str(error)


def test_an_older_results_file_without_a_sum_is_read(repository):
    path = store_rows(repository, [row()])
    assert "sum" not in json.loads(path.read_text()) and results.read_file(path)["rows"] == [row()]


def test_a_results_file_that_may_not_be_read_is_not_called_damaged(repository, monkeypatch):
    path, _ = own(repository)
    problem = PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=problem))
    with pytest.raises(PermissionError, match=literal(path)):
        results.read_file(path)


def test_the_sum_does_not_depend_on_how_a_configuration_was_written():
    results.save_results("03_test", [row()], {"sizes": (1, 2), 10: "b", 2: "a"})
    path = paths.results_dir() / "03_test.json"
    assert results.read_file(path)["config"] == {"sizes": [1, 2], "10": "b", "2": "a"}


def test_every_stored_results_file_holds_its_sum():
    files = sorted((paths.ROOT / "report/results").glob("*.json"))
    assert len(files) > 5
    for path in files:
        assert '\n "sum": "' in path.read_text(encoding="utf-8"), path
        assert results.read_file(path)["profile"] == "full"


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


def test_stored_rows_of_other_seeds_are_kept(clone):
    old = [row(seed=seed, value=seed / 10) for seed in range(3)]
    old += [row(method="dropped", seed=seed) for seed in range(3)]
    content = store_rows(clone, old).read_bytes()
    results.save_results("03_test", [row(seed=0, value=0.9), row(method="new")], {})
    found = {(r["method"], r["seed"]): r["value"] for r in results.read_results("03_test")}
    assert found == {("margin", 0): 0.9, ("new", 0): 0.5, ("margin", 1): 0.1, ("margin", 2): 0.2}
    assert not any("stored" in r for r in results.read_results("03_test"))
    assert (clone / "report/results/03_test.json").read_bytes() == content
    assert (clone / ".run/report/results/03_test.json").is_file()


def test_a_run_elsewhere_keeps_stored_rows_and_leaves_the_file(clone, monkeypatch, sandbox):
    content = store_rows(clone, [row(seed=0), row(seed=1, value=0.25)]).read_bytes()
    monkeypatch.setenv("OSR_OUTPUT", str(sandbox / "elsewhere"))
    results.save_results("03_test", [row(seed=0, value=0.75)], {})
    assert [r["value"] for r in results.read_results("03_test")] == [0.75, 0.25]
    assert (clone / "report/results/03_test.json").read_bytes() == content
    assert files(sandbox / "elsewhere") == ["03_test.json"]


def test_rows_of_another_configuration_are_dropped_and_said_so(clone, capsys):
    store_rows(clone, [row(seed=0), row(seed=1), row(ood="svhn")], config={"epochs": 120})
    results.save_results("03_test", [row(seed=0)], {"epochs": 1})
    assert results.read_results("03_test") == [row(seed=0)]
    assert "another configuration" in capsys.readouterr().out


def test_the_demo_keeps_no_stored_rows(clone, monkeypatch):
    store_rows(clone, [row(seed=0), row(seed=1), row(ood="svhn")])
    monkeypatch.setenv("OSR_PROFILE", "demo")
    results.save_results("03_test", [row(seed=0, value=0.75)], {})
    assert results.read_results("03_test") == [row(seed=0, value=0.75)]


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
        with pytest.raises(
            OSError, match="cannot write .*out.* Make .* a writable folder, or set OSR_OUTPUT"
        ):
            save()
    plt.close("all")
    assert files(sandbox) == ["out"]
