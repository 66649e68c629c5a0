"""System C: until the evaluation no 4, and no 8 of the training split, has any influence."""

import json
import textwrap
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from run_notebooks import ROOT, execute

NOTEBOOK = ROOT / "notebooks/02_autoencoder_topology.ipynb"
EVALUATION = "# EVALUATION"  # how the cell begins that may read test/4

# Every 4, and every 8 of the training split, becomes noise; their indices are taken away.
SPOIL = textwrap.dedent("""
    def spoilt(name, split, load=osr.load_images):
        found = load(name, split)
        images = found.images.copy()
        hidden = np.isin(found.labels, (8, 4) if split == "train" else (4,))
        images[hidden] = np.random.default_rng(1).integers(0, 256, images[hidden].shape)
        split_of_size[len(images)] = split
        return found._replace(images=images)


    def locked(labels, split=osr.digit_split):
        parts = split(labels)
        del parts["4"]
        if split_of_size[len(labels)] == "train":
            del parts["8"]
        return parts


    split_of_size = {}
    osr.load_images, osr.digit_split = spoilt, locked
""")
SAVE = textwrap.dedent("""
    import json
    from pathlib import Path

    text = json.dumps([[*rows.values()], [*map(str, thresholds.items())]])
    Path("PATH").write_text(text)
""")


def run_until_evaluation(folder, spoil):
    """Execute the demo of the notebook up to the evaluation; return what it then knows."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    end = next(i for i in code if notebook.cells[i].source.startswith(EVALUATION))
    notebook.cells = notebook.cells[:end]
    answer = folder / "answer.json"
    save = nbformat.v4.new_code_cell(SAVE.replace("PATH", str(answer)))
    notebook.cells.append(save)
    if spoil:
        notebook.cells.insert(code[0] + 1, nbformat.v4.new_code_cell(SPOIL))
    path = folder / NOTEBOOK.name
    nbformat.write(notebook, path)
    environment = {"OSR_PROFILE": "demo", "OSR_RETRAIN": None, "OSR_OUTPUT": str(folder / "output")}
    environment |= {"OMP_NUM_THREADS": "1"}  # the two runs share the cores
    execute(path, environment, folder / "executed.ipynb", 300)
    return json.loads(answer.read_text())


@pytest.mark.runs
def test_nothing_before_the_evaluation_depends_on_a_held_out_digit(tmp_path_factory):
    """The weights that rows name carry the checksum of their training data."""
    folders = tmp_path_factory.mktemp("untouched"), tmp_path_factory.mktemp("spoilt")
    with ThreadPoolExecutor(2) as pool:
        untouched, spoilt = pool.map(run_until_evaluation, folders, (False, True))
    assert all(untouched)  # there are rows, with their weights, and thresholds
    assert spoilt == untouched


def test_what_the_evaluation_reads_is_the_held_out_digit():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    (evaluation,) = (i for i, source in enumerate(cells) if source.startswith(EVALUATION))
    assert 'digit_split(mnist_test.labels)["4"]' in cells[evaluation]
    assert not any('"mnist-4"' in source or '["4"]' in source for source in cells[:evaluation])
