"""The recipes of CONTRIBUTING.md, followed block by block in a copy of the repository."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest

from osr.records import SETS
from run_notebooks import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(part.split("\n", 1) for part in TEXT.split("\n## ")[1:])
WEIGHTS = sorted((ROOT / "data/checkpoints").glob("*.safetensors"))
SHIPPED = "multitask_autoencoder plain_cnn osr_detector osr_detector_9k network_inversion".split()


def copied(tmp_path):
    """Copy the code, the shipped models and the notebooks, without the rest."""
    for name in ("osr", "tests", "notebooks", "report/results"):
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("osr_utils.py", "pyproject.toml", "README.md", "data/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "data/checkpoints").mkdir()
    for path in WEIGHTS:
        if path.name.rsplit("-", 1)[0] in SHIPPED:
            shutil.copyfile(path, tmp_path / "data/checkpoints" / path.name)
    return tmp_path


def run(copy, *arguments, **variables):
    """Run Python in the copy, with its code; return what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OSR_")}
    environment |= {"PYTHONPATH": str(copy), "OSR_PROGRESS": "0", **variables}
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=copy, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def put(copy, block):
    """Put a block where its first line says: at the end of a file, before a name, or in a dict."""
    head, code = block.split("\n", 1)
    file, where = re.fullmatch(r"# (\S+), (.+)", head).groups()
    path = copy / file
    lines = path.read_text(encoding="utf-8").split("\n")
    if where == "at the end":
        at, code = len(lines), "\n\n" + code
    else:
        how, name = where.split()
        (node,) = (
            node
            for node in ast.parse("\n".join(lines)).body
            if isinstance(node, ast.Assign) and node.targets[0].id == name
        )
        at = node.end_lineno - 1 if how == "in" else node.lineno - 1
        code = code if how == "in" else code + "\n\n"
        while how == "before" and lines[at - 1].startswith("#"):  # its comment stays with it
            at -= 1
    path.write_text("\n".join(lines[:at] + code.split("\n")[:-1] + lines[at:]))


ALL = """
import runpy, sys
import pytest

for number in "012":
    print("\\n=== recipe", number)
    runpy.run_path(f"try_{number}.py", run_name="__main__")
import osr_utils as osr
print(osr.COLORS["checkers"], osr.SETS["checkers"].title, "\\n=== tests")
rooms = [f"tests/test_{room}.py" for room in ("records", "scores", "models")]
sys.exit(pytest.main(["-q", "-x", *rooms]))
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Follow the first three recipes in one copy; return it, and what each "try it" prints.

    Everything runs in one process, whose imports take longer than the rest; the tests of the rooms
    that were extended come last.
    """
    copy = copied(tmp_path_factory.mktemp("recipes"))
    for number, recipe in enumerate(list(RECIPES)[:3]):
        blocks = re.findall(r"```(?:python|text)\n(.*?)```", RECIPES[recipe], re.DOTALL)
        for block in blocks[:-1]:
            put(copy, block)
        assert blocks[-1].startswith("# try it\n")
        (copy / f"try_{number}.py").write_text(blocks[-1])
    return copy, run(copy, "-c", ALL).split("\n=== ")[1:]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_at_most_ten_steps(recipe):
    steps = re.findall(r"^(\d+)\. ", RECIPES[recipe], re.MULTILINE)
    assert steps == [str(k) for k in range(1, len(steps) + 1)] and len(steps) <= 10


@pytest.mark.runs
def test_a_new_data_set_stands_in_a_table(followed):
    table = followed[1][0]
    assert re.search(r"osr_detector +uci_digits +checkers +[01]\.\d{3}", table), table
    assert "#117733 checkerboards" in followed[1][2]


@pytest.mark.runs
def test_a_new_score_and_a_new_detector_stand_in_a_table(followed):
    table = followed[1][1]
    for name in ("entropy", "nearest_mean", "msp", "vim"):
        assert re.search(rf"^ *{name} +uci_digits +letters +[01]\.\d{{3}}", table, re.M), table


@pytest.mark.runs
def test_a_new_model_ships_and_stands_in_a_table(followed):
    copy, (*_, table, _) = followed
    found = re.search(r"linear_detector +uci_digits +([01]\.\d{3})", table)
    assert found and float(found[1]) > 0.8, table  # chance is one in eleven
    assert "'linear_detector']" in table
    assert len(list((copy / "data/checkpoints").glob("linear_detector-*.safetensors"))) == 1


@pytest.mark.runs
def test_the_rooms_that_were_extended_pass_their_tests(followed):
    assert " passed" in followed[1][3]


@pytest.mark.runs
def test_a_new_notebook_is_executed_stored_and_looked_at(tmp_path):
    copy = copied(tmp_path)
    text = (copy / "notebooks/template.ipynb").read_text(encoding="utf-8")
    path = copy / "notebooks/08_my_question.ipynb"
    path.write_text(text.replace("08_template", "08_my_question"), encoding="utf-8")
    images = [f"{name}-{split}.npz" for name in SETS for split in SETS[name].cloned]
    for file in (*(ROOT / "data" / name for name in images), *WEIGHTS):
        shutil.copyfile(file, copy / file.relative_to(ROOT))
    run(copy, "tests/run_notebooks.py", "demo", "08")
    assert (copy / ".demo/figures/08_pictures.png").is_file()
    assert not list((copy / "report/results").glob("08_*"))
    for name in ("figures", "report"):
        shutil.copytree(ROOT / name, copy / name, dirs_exist_ok=True)
    run(copy, "tests/run_notebooks.py", "notebooks", "08")
    results = (copy / "report/results/08_my_question.json").read_text(encoding="utf-8")
    assert '"osr_detector"' in results and '"letters"' in results
    looked = run(copy, "-m", "pytest", "-q", "tests/test_notebooks.py", "-k", "08_my_question")
    assert " passed" in looked and "osr_detector" in path.read_text(encoding="utf-8")
