"""How notebooks are run, compared and stored: all but the kernels, none of which runs here."""

import json
import os
import subprocess
import threading
from collections import Counter

import nbformat
import numpy as np
import pytest
from filelock import FileLock
from safetensors.torch import save_file

import run_notebooks
from helpers import POINTER, files, literal, row, store_rows, touch_sets, write_cache
from osr import paths, results
from osr.records import SETS
from osr.weights import checkpoint_metadata

pytestmark = pytest.mark.usefixtures("sandbox")
CLONED = [f"{name}-{split}" for name in SETS for split in SETS[name].cloned]


@pytest.fixture
def clone(repository, monkeypatch):
    """Return a repository with two empty notebooks and the images that come with it."""
    monkeypatch.setattr(run_notebooks, "ROOT", repository)
    monkeypatch.setattr(run_notebooks, "OSR_ROOT", repository)
    monkeypatch.setenv("OSR_PROFILE", "full")  # which `main` sets: so it is taken back afterwards
    monkeypatch.setattr(run_notebooks.signal, "signal", lambda *_: None)  # the tests keep theirs
    (repository / "notebooks").mkdir()
    for name in ("03_test", "07_test", "template"):
        (repository / f"notebooks/{name}.ipynb").touch()
    touch_sets(repository, *CLONED)
    return repository


def texts(folder):
    """Return {name: content} of the files below a folder."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def fill(clone):
    """Put images and weights into a clone, as far as their size is looked at."""
    for name in CLONED:
        np.savez(clone / f"data/{name}.npz", images=0)
    store_rows(clone, [row(weights="cnn-01"), row(seed=1, weights="cnn-02")])
    save_file({}, clone / "data/checkpoints/cnn-01.safetensors", {"meta": "{}"})


# --- which notebooks, in which order --------------------------------------------------------------


def test_notebooks_are_chosen_by_number(clone):
    assert [path.stem for path in run_notebooks.notebooks()] == ["03_test", "07_test"]
    assert [path.stem for path in run_notebooks.notebooks(["07"])] == ["07_test"]
    with pytest.raises(SystemExit, match="no notebook 08, 3: there are 03, 07"):
        run_notebooks.notebooks(["3", "07", "08"])


def test_two_notebooks_run_at_a_time(clone, monkeypatch):
    assert run_notebooks.AT_ONCE == min(2, run_notebooks.CORES)
    monkeypatch.setattr(run_notebooks, "AT_ONCE", 2)
    for number in "12":
        (clone / f"notebooks/{number}_test.ipynb").touch()
    met, lock, running = threading.Barrier(2, timeout=20), threading.Lock(), []

    def work(path):
        with lock:
            running.append(path)
            assert len(running) <= 2
        met.wait()  # for another one: four notebooks are two pairs
        threading.Event().wait(0.01)
        with lock:
            running.remove(path)
        return path.name

    stems = [path.stem for path in run_notebooks.notebooks()]
    assert run_notebooks.side_by_side(work) == {stem: f"{stem}.ipynb" for stem in stems}
    assert len(stems) == 4


def test_a_notebook_waits_for_those_that_it_reads_from_if_they_run_at_all():
    done = set()

    def work(path):
        number = path.stem.split("_")[0]
        assert {*run_notebooks.NEEDS.get(number, ())} & chosen <= done
        threading.Event().wait(0.01)
        done.add(number)

    known = {path.stem.split("_")[0] for path in run_notebooks.notebooks()}
    assert {*run_notebooks.NEEDS} < known
    for chosen in (known, {"03b", "06", "07"}):
        done.clear()
        run_notebooks.side_by_side(work, run_notebooks.notebooks(chosen))
        assert done == chosen


# --- comparing ------------------------------------------------------------------------------------


def compared(old, new, old_notes=(), new_notes=()):
    """Compare two lists of rows."""
    sides = ((old, old_notes), (new, new_notes))
    return run_notebooks.compare_rows(*({"rows": r, "data_notes": dict(n)} for r, n in sides))


def test_comparison_of_rows_sees_a_drift_a_missing_row_and_a_new_one(clone):
    one, two, three = row(), row(metric="fpr95"), row(metric="aupr_in")
    assert compared([one, two], [two, row(value=0.5004)]) == (2, [], {})
    equal, lines, wanting = compared([one, two], [row(value=0.502), three])
    assert (equal, wanting) == (0, {})
    assert lines == [
        "A | margin | mnist | fashionmnist | auroc: stored 0.5, computed 0.502",
        "A | margin | mnist | fashionmnist | fpr95: stored 0.5, computed None",
        "A | margin | mnist | fashionmnist | aupr_in: stored None, computed 0.5",
    ]
    assert compared([row(seed=1)], [row(seed=1, value=0.9), row(seed=2)]) == (0, [], {})
    few = [row(value=0.53, images=100)], [row(value=0.54, images=100)]
    assert [compared([one], new)[0] for new in few] == [1, 0]


def test_what_rests_on_an_absent_set_is_counted_and_not_compared(clone):
    old = [row(), row(ood="svhn"), row(ood="svhn+cifar10"), row(ood="cifar10")]
    new = [row(), row(ood="svhn", stored=True)]
    assert compared(old, new) == (1, [], Counter({"svhn": 2, "cifar10": 1}))
    new = [row(stored=True)]  # it could have been computed, but for a model of another seed
    assert compared([row()], new) == (0, [], {"weights, which do not ship": 1})
    assert len(compared(old, [row(), row(ood="svhn", value=0.6)])[1]) == 1  # computed after all


def test_a_set_that_is_a_copy_on_one_side_may_differ_more(clone):
    old, new = [row(), row(ood="kmnist+noise")], [row(value=0.515), row(ood="kmnist+noise")]
    new[1]["value"] = 0.485
    assert len(compared(old, new)[1]) == 2
    notes = {"fashionmnist test": "a lossy copy", "kmnist": "another"}
    assert compared(old, new, notes) == compared(old, new, (), notes) == (2, [], {})
    assert len(compared(old, new, notes, notes)[1]) == 2  # the same copy on both sides
    assert len(compared(old, [row(value=0.53), new[1]], notes)[1]) == 1


def notebook(*printed, marker=run_notebooks.MARKER):
    """Return a notebook of one cell that has printed some lines."""
    cell = nbformat.v4.new_code_cell(f"{marker}\nprint()", id="a")
    cell.outputs = [nbformat.v4.new_output("stream", text=f"{line}\n") for line in printed]
    return nbformat.v4.new_notebook(cells=[cell])


def test_comparison_of_texts_gives_the_lines_of_checked_cells_that_differ():
    compare = run_notebooks.compare_texts
    assert compare(notebook("one", "two"), notebook("one", "two")) == []
    assert compare(notebook("one 0.5", "two"), notebook("one 0.6", "two", "three")) == [
        "cell a, stored: one 0.5", "cell a, now   : one 0.6", "cell a, now   : three",
    ]  # fmt: skip
    assert compare(notebook("one"), nbformat.v4.new_notebook()) == ["cell a, stored: one"]
    unchecked = [notebook(word, marker="# a cell") for word in ("one", "two")]
    assert compare(*unchecked) == []


def test_a_comparison_is_summed_up(clone, capsys):
    for name, now in (("03_test", "one"), ("07_test", "two")):
        nbformat.write(notebook("one"), clone / f"notebooks/{name}.ipynb")
        (clone / ".run/notebooks").mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(now), clone / f".run/notebooks/{name}.ipynb")
    store_rows(clone, [row(), row(ood="svhn"), row(ood="kmnist")])
    store_rows(clone / ".run", [row(), row(ood="kmnist", value=0.6)])
    lines = run_notebooks.compare(clone / ".run", run_notebooks.notebooks())
    assert lines == [
        "A | margin | mnist | kmnist | auroc: stored 0.5, computed 0.6",
        "07_test.ipynb, cell a, stored: one", "07_test.ipynb, cell a, now   : two",
    ]  # fmt: skip
    *shown, summary, want = capsys.readouterr().out.splitlines()
    assert shown == [f"DIFFERS  {line}" for line in lines]
    assert summary == "1 stored values equal, 3 differ, 1 not computed"
    assert want.strip() == "1 for want of svhn"


# --- storing --------------------------------------------------------------------------------------


@pytest.fixture
def run_of_two(clone):
    """Put the results and figures of two notebooks into the output; return their rows."""
    output = clone / ".run"
    new = [row(value=0.5004, weights="new"), row(ood="kmnist", value=0.702), row(ood="svhn")]
    store_rows(output, new, config={"epochs": 3})
    store_rows(output, [row(method="sum")], "07_test")
    (output / "figures").mkdir()
    for name in ("03_a.png", "03_a.pdf", "03b_a.png", "07_a.png", "mine.png"):
        (output / "figures" / name).write_text("new")
        (output / f"figures/{name}.01234567.part").write_text("of a write that was killed")
    (output / "report/results/07_test.json.01234567.part").write_text("of another")
    store_rows(clone, [row(value=0.5), row(ood="kmnist", value=0.7)])
    (clone / "figures").mkdir()
    (clone / "figures/03_a.png").write_text("old")
    return new


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_stored_anew_keeps_the_digits_of_values_that_agree(clone, run_of_two, kept):
    run_notebooks.install(clone / ".run", run_notebooks.notebooks(), keep_stored=kept)
    found = json.loads((clone / "report/results/03_test.json").read_text())
    expected = [row(value=0.5, weights="new"), *run_of_two[1:]]
    assert found["rows"] == (expected if kept else run_of_two)  # not those of a retraining
    assert found["config"] == {"epochs": 3} and found["profile"] == "full"
    assert results.stored_rows("07_test") == [row(method="sum", stored=True)]
    assert texts(clone / "figures") == dict.fromkeys(("03_a.png", "03_a.pdf", "07_a.png"), b"new")
    assert files(clone / "report") == ["03_test.json", "07_test.json"]


def test_only_the_notebooks_that_were_run_are_stored(clone, run_of_two):
    run_notebooks.install(clone / ".run", run_notebooks.notebooks(["07"]), keep_stored=True)
    assert results.stored_rows("03_test", ood="kmnist")[0]["value"] == 0.7
    assert texts(clone / "figures") == {"03_a.png": b"old", "07_a.png": b"new"}
    assert results.stored_rows("07_test")


def test_storing_replaces_notebooks_figures_and_results_and_builds_the_reports(
    clone, run_of_two, monkeypatch, capsys
):
    fill(clone)
    built = []

    def execute(output, environment, paths):
        assert environment == {"OSR_PROFILE": "full", "OSR_RETRAIN": None}
        for path in paths:
            (output / "notebooks").mkdir(exist_ok=True)
            (output / "notebooks" / path.name).write_text("executed")

    monkeypatch.setattr(run_notebooks, "execute_all", execute)
    monkeypatch.setattr(run_notebooks, "compare", lambda *_: [])
    monkeypatch.setattr(run_notebooks, "build_reports", built.append)
    assert run_notebooks.main("notebooks", "07") == 0
    assert "replaces the stored outputs, figures and results of 07, and" in capsys.readouterr().out
    notebooks = texts(clone / "notebooks")
    assert [name for name, text in notebooks.items() if text == b"executed"] == ["07_test.ipynb"]
    assert results.stored_rows("07_test") and built == [clone / ".run", clone]


def test_a_retraining_replaces_the_weights_once_all_is_trained(clone, monkeypatch):
    fill(clone)
    (clone / "figures").mkdir()
    monkeypatch.setenv("OSR_OUTPUT", ".retrain")
    shelf, output = clone / "data/checkpoints", clone / ".retrain"
    before = texts(clone)

    def execute(output, environment, paths):
        assert environment == {"OSR_PROFILE": "full", "OSR_RETRAIN": "1"}
        assert texts(clone).items() >= before.items() and not files(output / "checkpoints")
        if fails:
            raise KeyboardInterrupt
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in ("cnn-03", "tried-04"):
            save_file({}, output / f"checkpoints/{name}.safetensors", {"meta": '{"new": 1}'})
        store_rows(output, [row(weights="cnn-03", value=0.5004)])

    monkeypatch.setattr(run_notebooks, "execute_all", execute)
    fails = True
    with pytest.raises(KeyboardInterrupt):
        run_notebooks.main("retrain")
    assert texts(clone).items() >= before.items() and not (output / "finished").exists()
    fails = False
    for _ in range(2):  # the second begins anew
        assert run_notebooks.main("retrain") == 0
        assert [*texts(shelf)] == ["cnn-03.safetensors"]
        assert checkpoint_metadata(shelf / "cnn-03.safetensors") == {"new": 1}
        stored = json.loads((clone / "report/results/03_test.json").read_text())
        assert stored["rows"] == [row(weights="cnn-03", value=0.5004)]
        before = texts(shelf.parent)
        before = {f"data/{name}": text for name, text in before.items()}


def test_to_forget_a_run_removes_its_results_and_sweeps_by_name_and_nothing_else(clone):
    output = clone / ".run"
    for name in ("03_test", "07_test", "mine"):
        store_rows(output, [], name)
    others = ("notes.txt", "report/results/.local/mine.json", "checkpoints/a-01.safetensors",
              "data/own_pictures/a.png", "notebooks/mine.ipynb", "figures/mine.png")  # fmt: skip
    for name in (*others, "report/results/.local/sweeps/train/0123.json"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("a reader's")
    run_notebooks.forget(output)
    assert sorted(texts(output)) == sorted([*others, "report/results/mine.json"])
    run_notebooks.forget(clone / "nowhere")  # nor is there anything to do
    assert not (clone / "nowhere").exists()


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


STORED = ("figures/03_a.png", "figures/03_a.pdf", "report/results/03_test.json",
          "report/report.pdf", "report/system_c.pdf", "report/RESULTS.md")  # fmt: skip
READERS = ("notebooks/03_test.ipynb", "report/report.typ", "README.md", "osr/mine.py")


def test_restore_brings_back_what_is_stored_and_leaves_what_a_reader_has_changed(clone, capfd):
    for name in (*STORED, *READERS):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("stored")
    git(clone, "init", "-q")
    git(clone, "add", "-f", *STORED, *READERS)
    git(clone, "commit", "-q", "-m", "all")
    new = ("figures/mine.png", "report/results/mine.json", "notebooks/mine.ipynb")
    for name in (*STORED, *READERS, *new):
        (clone / name).write_text("changed")
    (clone / STORED[1]).unlink()
    git(clone, "add", STORED[0], READERS[0])  # even what has been staged
    before = texts(clone)
    assert run_notebooks.main("restore") == 0
    assert texts(clone) == before | dict.fromkeys(STORED, b"stored")
    assert "figures, results and reports are as stored" in capfd.readouterr().out


def test_restore_outside_of_git_says_so(clone, monkeypatch, capfd):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(clone.parent))
    monkeypatch.setenv("LC_ALL", "C")
    assert run_notebooks.main("restore") != 0
    out, problem = capfd.readouterr()
    assert "not a git repository" in problem and "as stored" not in out


# --- refusing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["data/mnist-test.npz", "data/checkpoints/cnn-01.safetensors"])
def test_half_a_clone_is_refused_with_a_file_that_is_gone_and_gits_command(clone, file):
    fill(clone)
    place = literal(clone / file)
    run_notebooks.refuse_half_a_clone()  # does not
    (clone / file).write_bytes(POINTER)
    with pytest.raises(
        SystemExit, match=f"1 of 6 files .*{place}: .*git lfs pull --include {file}"
    ):
        run_notebooks.main("demo")
    fill(clone)
    whole = (clone / file).read_bytes()
    (clone / file).write_bytes(whole[:-10])
    with pytest.raises(SystemExit, match=f"1 of 6 files .*{place}: .*git checkout -- {file}"):
        run_notebooks.main("run")
    (clone / file).unlink()
    with pytest.raises(SystemExit, match=f"1 of 6 files .*{place}: .*git checkout -- {file}"):
        run_notebooks.main("run")
    assert not (clone / ".run").exists() and not (clone / ".demo").exists()


def test_half_a_clone_is_refused_whatever_ones_own_folder_holds(clone, data):
    fill(clone)
    (clone / "data/mnist-test.npz").unlink()
    write_cache(data, "kmnist-test")
    with pytest.raises(SystemExit, match="1 of 6 files .*git checkout -- data/mnist-test.npz"):
        run_notebooks.refuse_half_a_clone()


def test_images_in_a_folder_of_ones_own_make_up_for_those_of_the_clone(clone, data):
    fill(clone)
    (clone / "data/mnist-test.npz").unlink()
    write_cache(data, "mnist-test")
    run_notebooks.refuse_half_a_clone()


@pytest.mark.parametrize("command", ["notebooks", "retrain"])
def test_nothing_is_stored_where_the_stored_values_rest_on_more_data(clone, monkeypatch, command):
    fill(clone)
    store_rows(clone, [row(), row(ood="kmnist+svhn"), row(ood="cifar10-train")], "07_test")
    monkeypatch.setattr(run_notebooks, "execute_all", None)
    monkeypatch.setenv("OSR_OUTPUT", str(clone / "out"))
    before = texts(clone)
    with pytest.raises(SystemExit, match="nothing was run or replaced: .* rests on cifar10, svhn,"):
        run_notebooks.main(command)
    after = texts(clone)
    after.pop("out/.lock", None)
    assert after == before
    run_notebooks.refuse_poorer_data(run_notebooks.notebooks(["03"]))  # which needs neither
    touch_sets(clone, "svhn-test", "cifar10-train")
    run_notebooks.refuse_poorer_data(run_notebooks.notebooks())


def test_nothing_is_stored_where_what_is_shown_rests_on_more_data(clone, monkeypatch):
    store_rows(clone, [], data_notes={"cifar10 train": "a lossy copy"})
    with pytest.raises(SystemExit, match="rests on cifar10, which are not here. `make data`"):
        run_notebooks.refuse_poorer_data(run_notebooks.notebooks(["03"]))
    monkeypatch.setenv("OSR_DATA", "nowhere")
    with pytest.raises(SystemExit, match="not here; OSR_DATA=nowhere names no folder. `make data`"):
        run_notebooks.refuse_poorer_data(run_notebooks.notebooks(["03"]))


def test_a_file_of_the_clone_that_may_not_be_read_is_not_called_damaged(clone, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    fill(clone)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match="mnist-test.npz"):
        run_notebooks.is_broken(clone / "data/mnist-test.npz")


def test_an_osr_of_another_clone_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(run_notebooks, "OSR_ROOT", tmp_path)
    with pytest.raises(SystemExit, match=f"imports osr from {literal(tmp_path)}: `pip install -e "):
        run_notebooks.main("run")


@pytest.mark.parametrize("arguments", [(), ("train",), ("retrain", "03")])
def test_an_unknown_command_gets_the_list_of_all(clone, arguments):
    with pytest.raises(SystemExit, match="Execute the notebooks"):
        run_notebooks.main(*arguments)


# --- one run at a time ----------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_says_so_and_does_nothing(clone, monkeypatch):
    fill(clone)
    calls = []

    def run(output, paths, numbers):
        calls.append([path.stem for path in paths])
        with pytest.raises(
            SystemExit, match=f"another run is at work in {literal(output)}: wait for it, "
        ):
            run_notebooks.main("run")
        assert run_notebooks.main("demo", "07") == 0  # in a folder of its own
        return ["something differs"]

    monkeypatch.setattr(run_notebooks, "run", run)
    monkeypatch.setattr(run_notebooks, "demo", lambda *_: calls.append("demo") or [])
    assert run_notebooks.main("run", "03") == 1
    assert calls == [["03_test"], "demo"]
    with FileLock(clone / ".demo/.lock", timeout=0):  # nothing holds it any longer
        with pytest.raises(SystemExit, match="another run is at work"):
            run_notebooks.main("demo")


def test_an_output_that_cannot_be_written_is_an_error_that_names_the_variable(clone, monkeypatch):
    fill(clone)
    place = clone / "taken"
    place.write_text("a file in the folder's place")
    for output in (place, place / "below"):
        monkeypatch.setenv("OSR_OUTPUT", str(output))
        with pytest.raises(
            SystemExit, match=f"cannot write in {literal(output)} .*: set OSR_OUTPUT to a"
        ):
            run_notebooks.main("demo")
    assert place.read_text() == "a file in the folder's place"


def test_a_run_forgets_what_was_there_before_unless_it_is_a_part(clone, monkeypatch):
    fill(clone)
    done = []
    for name in ("execute_all", "build_reports"):
        monkeypatch.setattr(run_notebooks, name, lambda *_, name=name: done.append(name))
    for command, numbers, kept, reports in (
        ("run", ["03"], True, 1), ("run", [], False, 1), ("demo", ["03"], True, 0),
        ("demo", [], False, 1),
    ):  # fmt: skip
        output = clone / f".{command}"
        old = store_rows(output, [])
        monkeypatch.setattr(run_notebooks, "compare", lambda *_: [])
        assert run_notebooks.main(command, *numbers) == 0 and old.exists() == kept
        assert done == ["execute_all"] + ["build_reports"] * reports
        done.clear()
    assert os.environ["OSR_PROFILE"] == "demo" and paths.output_dir() == clone / ".demo"
    assert "03_test.json" in files(clone / "report")  # what is stored is not
