"""Execute the notebooks: `python tests/run_notebooks.py demo|run|notebooks|retrain [NN ...]`.

demo       small models on data that come inside the dependencies; everything lands in .demo/
run        real data, shipped weights; compares with what is committed, then replaces it
notebooks  as run, and rewrites the stored outputs in notebooks/
retrain    every model from scratch (SEEDS=0 by default); resumes where it was stopped

With numbers, such as `notebooks 06 07`, demo, run and notebooks execute those alone.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

import osr_utils

ROOT = Path(__file__).resolve().parents[1]
MARKER = "# NBVAL_CHECK_OUTPUT"
TOLERANCE = 2e-4  # of a recomputed value, on the same data
TOLERANCE_OTHER_DATA = 2e-2  # where the set is a copy on one side and the official one on the other


def notebooks(numbers=()):
    """Return the paths of the notebooks, or of those with some numbers, in order."""
    paths = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    known = [path.stem.split("_")[0] for path in paths]
    if unknown := {*numbers} - {*known}:
        sys.exit(f"no notebook {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return [path for path, number in zip(paths, known, strict=True) if number in (numbers or known)]


def execute(path, environment, target, timeout=None):
    """Execute a notebook in its folder, with extra environment variables; write it to `target`."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    bar = tqdm(total=cells, desc=path.stem, unit="cell", leave=False)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: bar.update(),
    )
    variables = {**os.environ, "OSR_PROGRESS": "0", **environment}
    try:
        with bar:
            client.execute(env={k: v for k, v in variables.items() if v is not None})
    finally:  # a notebook that failed is written as well, with its error
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)


def definitions(path):
    """Return what a notebook's imports, functions, classes and CONSTANTS define; nothing else runs.

    So tests and the benchmark use a method where it is taught, without a copy of it.
    """
    cells = nbformat.read(path, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    body = [
        node
        for node in ast.parse(source).body
        if isinstance(node, kept)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper())
    ]
    names = {"__name__": path.stem}
    exec(compile(ast.Module(body, []), str(path), "exec"), names)
    return names


# What a notebook reads of others (in a demo, their models), in the order in which they are taken.
NEEDS = {
    "05": (), "03": (), "03b": ("03",), "02": (), "06": ("03b",), "07": ("02", "05", "06"),
    "04": ("03", "03b"),
}  # fmt: skip


def side_by_side(function):
    """Call a function with every notebook, two at a time; return {stem: its answer}."""
    paths, jobs = {path.stem.split("_")[0]: path for path in notebooks()}, {}

    def work(number):
        for other in NEEDS.get(number, ()):
            jobs[other].result()
        return function(paths[number])

    with ThreadPoolExecutor(2) as pool:
        for number in (*NEEDS, *(paths.keys() - NEEDS.keys())):
            jobs[number] = pool.submit(work, number)
    return {paths[number].stem: job.result() for number, job in jobs.items()}


def execute_all(output, environment, paths=None):
    """Execute all notebooks, or some; figures, results and executed copies land in `output`."""
    environment = {"OSR_OUTPUT": str(output), **environment}
    for path in paths or notebooks():
        start = time.perf_counter()
        target = output / "notebooks" / path.name
        try:
            execute(path, environment, target)
        except CellExecutionError as error:
            sys.exit(f"{path.stem} stopped: {error.ename}: {error.evalue}\nWhere: see {target}")
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)


def build_report(*arguments):
    """Compile the report and the README's tables."""
    subprocess.run([sys.executable, ROOT / "report/build.py", *arguments], check=True)


def checked_outputs(notebook):
    """Return the text of every checked cell, as {cell id: text}."""
    texts = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.split("\n")[0] == MARKER:
            texts[cell.id] = "".join(output.get("text", "") for output in cell.outputs)
    return texts


def compare_rows(committed, recomputed):
    """Return one line a seed-0 row whose value moved, is missing, or is new."""
    keys = ("system", "method", "id", "ood", "metric")
    values = [
        {tuple(row[key] for key in keys): row["value"] for row in result["rows"] if not row["seed"]}
        for result in (committed, recomputed)
    ]
    noted = {
        name.split()[0]
        for name in {*committed["data_notes"], *recomputed["data_notes"]}
        if committed["data_notes"].get(name) != recomputed["data_notes"].get(name)
    }
    lines = []
    for key in dict.fromkeys([*values[0], *values[1]]):
        old, new = (side.get(key) for side in values)
        other_data = noted & {key[2], *key[3].split("+")}
        tolerance = TOLERANCE_OTHER_DATA if other_data else TOLERANCE
        if old is None or new is None or abs(old - new) > tolerance:
            lines.append(f"{' | '.join(key)}: committed {old}, recomputed {new}")
    return lines


def compare(output, paths):
    """Return (what differs in value or in a checked cell, what differs only in its bytes)."""
    differences, bytes_only = [], []
    for path in paths:
        stored, new = (
            checked_outputs(nbformat.read(p, as_version=4))
            for p in (path, output / "notebooks" / path.name)
        )
        differences += [
            f"{path.name}, cell {cell}: stored {stored[cell]!r}, now {new.get(cell)!r}"
            for cell in stored
            if stored[cell] != new.get(cell)
        ]
        name = f"report/results/{path.stem}.json"
        if (ROOT / name).is_file():
            differences += compare_rows(
                *(json.loads((p / name).read_text()) for p in (ROOT, output))
            )
    for path in products(output):
        old = ROOT / path.relative_to(output)
        if not old.is_file() or old.read_bytes() != path.read_bytes():
            bytes_only.append(str(path.relative_to(output)))
    return differences, bytes_only


def products(output):
    """Return the figures and results under a folder."""
    return [*sorted(output.glob("figures/*.p*")), *sorted(output.glob("report/results/*.json"))]


def weights_of_seed_0(folder):
    """Return the file names of the weights that the results' rows of seed 0 come from."""
    files = (folder / "report/results").glob("*.json")
    rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
    return {f"{row['weights']}.safetensors" for row in rows if row["seed"] == 0 and row["weights"]}


def install(output):
    """Copy figures and results into the repository."""
    for path in products(output):
        target = ROOT / path.relative_to(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    local = output / "report/results/.local"
    if local.is_dir():
        shutil.copytree(local, ROOT / "report/results/.local", dirs_exist_ok=True)


def main(command="", *numbers):
    if osr_utils.ROOT != ROOT:  # an environment that was made for another clone
        sys.exit(f"this Python imports osr_utils from {osr_utils.ROOT}: `pip install -e {ROOT}`")
    start = time.perf_counter()
    status, paths = 0, notebooks(numbers)
    if command == "demo":
        output = ROOT / ".demo"
        if not numbers:
            shutil.rmtree(output, ignore_errors=True)
        execute_all(output, {"OSR_PROFILE": "demo", "OSR_RETRAIN": None}, paths)
        if not numbers:
            build_report("demo")
        print(f"look at {output}/report/report.pdf, {output}/figures and {output}/notebooks")
    elif command in ("run", "notebooks"):
        output = ROOT / ".run"
        shutil.rmtree(output, ignore_errors=True)
        if numbers:  # the others' results, which some read
            hidden = shutil.ignore_patterns(".*")  # the rows of earlier sweeps
            shutil.copytree(ROOT / "report/results", output / "report/results", ignore=hidden)
        execute_all(output, {"OSR_PROFILE": "full", "OSR_RETRAIN": None}, paths)
        differences, bytes_only = compare(output, paths)
        install(output)
        if command == "notebooks":
            for path in paths:
                shutil.copyfile(output / "notebooks" / path.name, path)
        build_report()
        for line in differences:
            print("DIFFERS  " + line)
        for line in bytes_only:
            print("new bytes  " + line)
        print(f"{len(differences)} differences from what is committed")
        status = int(bool(differences) and command == "run")
    elif command == "retrain" and not numbers:
        output, finished = ROOT / ".retrain", ROOT / ".retrain/finished"
        if finished.is_file():
            shutil.rmtree(output)
        execute_all(output, {"OSR_PROFILE": "full", "OSR_RETRAIN": "1"})
        install(output)
        shipped = ROOT / "data/checkpoints"
        old = {path.name for path in shipped.glob("*.safetensors")}
        for name in sorted(weights_of_seed_0(output)):
            shutil.copyfile(output / "checkpoints" / name, shipped / name)
            old.discard(name)
        for name in old:  # only once all the new ones are in place
            (shipped / name).unlink()
        finished.touch()
        print("new weights and results are in place; `make notebooks` stores the new outputs")
    else:
        sys.exit(__doc__)
    print(f"{command}: {time.perf_counter() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
