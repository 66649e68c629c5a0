"""The notebooks as they are stored: order, outputs, markers, rows, weights. Nothing runs here."""

import json
import re

import nbformat
import pytest

import run_notebooks
from osr.results import as_stored
from run_notebooks import MARKER, ROOT, code_cells

NOTEBOOKS = run_notebooks.notebooks()
NAMES = [path.stem for path in NOTEBOOKS]
OFFICIAL_OOD = ("", "fashionmnist", "kmnist", *(f"mnist-{digit}" for digit in range(10)))


@pytest.fixture(params=NOTEBOOKS, ids=NAMES)
def stored(request):
    """A notebook as it is stored, with its path."""
    return request.param, nbformat.read(request.param, as_version=4)


def test_notebook_was_run_top_to_bottom_in_one_go(stored):
    _, notebook = stored
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.metadata.kernelspec.name == "python3"


def test_notebook_stores_no_error_no_stderr_no_machine_path_and_no_timing(stored):
    path, notebook = stored
    for cell in code_cells(notebook):
        assert "execution" not in cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|tmp|Users)/|[A-Z]:\\\\", text)
    assert path.stat().st_size < 1_000_000


def test_markers_are_exact_and_every_checked_cell_has_output(stored):
    _, notebook = stored
    checked = 0
    for cell in code_cells(notebook):
        for number, line in enumerate(cell.source.split("\n")):
            if "NBVAL" in line.upper():
                assert line == MARKER and number == 0, f"{line!r} is no marker"
                assert cell.outputs, "a checked cell without stored output checks nothing"
                checked += 1
    assert checked, "no checked cell"


def test_every_recomputed_row_on_official_data_stands_in_a_checked_cell(stored):
    path, notebook = stored
    lines = "\n".join(run_notebooks.checked_outputs(notebook).values()).split("\n")
    results = ROOT / f"report/results/{path.stem}.json"
    for row in json.loads(results.read_text())["rows"] if results.is_file() else []:
        copied = row["id"].startswith(("mnist_c", "cifar10", "svhn"))
        official = row["ood"] in OFFICIAL_OOD and not copied
        # Of the leaderboard's hundreds of lines the telling ones are printed in a checked cell; a
        # run compares all of them with the results file.
        if row["seed"] == 0 and official and row["system"] != "leaderboard":
            words = {row["method"], *filter(None, [row["ood"]])}
            # Stored with six decimals: the value itself may round to either side. What is printed
            # may be the value, or what `as_stored` makes of it; a difference has a sign.
            values = [row["value"] + change for change in (-5e-7, 5e-7)]
            values += [found["value"] for found in as_stored([row])]
            numbers = {f"{value:{sign}.3f}" for value in values for sign in ("", "+")}
            found = [{*line.split()} for line in lines]
            assert any(words <= line and numbers & line for line in found), f"not checked: {row}"


def test_result_rows_are_unique_and_of_the_full_profile():
    seen = set()
    for path in sorted((ROOT / "report/results").glob("*.json")):
        results = json.loads(path.read_text())
        assert results["profile"] == "full"
        for row in results["rows"]:
            key = tuple(row[k] for k in ("system", "method", "id", "ood", "seed", "metric"))
            assert key not in seen
            seen.add(key)


def test_shipped_weights_are_small_and_each_is_used_by_a_row():
    files = sorted((ROOT / "data/checkpoints").glob("*.safetensors"))
    assert {path.name for path in files} == run_notebooks.weights_of_seed_0(ROOT)
    assert max(path.stat().st_size for path in files) < 2_000_000
    assert sum(path.stat().st_size for path in files) < 50_000_000
