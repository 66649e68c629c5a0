"""Execute the notebooks: `python tests/run_notebooks.py COMMAND [NN ...]`.

run        real images, shipped weights, no training, no download; compares with what is stored
demo       small: every model trained in seconds, on about a thousand real images
notebooks  as run, then replaces the stored outputs, figures, results and reports (maintainers)
retrain    every model from scratch (SEEDS=0 by default); resumes where it was stopped (maintainers)
restore    brings stored figures, results and reports back, and touches nothing else

Everything lands in .run (demo: .demo, retrain: .retrain) or in OSR_OUTPUT. With numbers, such as
`run 06 07`, the first three execute those notebooks alone.
"""

import ast
import difflib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from filelock import FileLock, Timeout
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from osr.caches import cache_path, cloned_path
from osr.paths import ROOT as OSR_ROOT
from osr.paths import data_hint, output_dir, shipped_dir, way_to_restore
from osr.records import SETS, folded
from osr.results import agree, as_stored, missing_sets, name_of, read_file, write_results
from osr.weights import checkpoint_metadata

ROOT = Path(__file__).resolve().parents[1]
MARKER = "# NBVAL_CHECK_OUTPUT"
TOLERANCE_OTHER_DATA = 2e-2  # where a set is a copy on one side and the official one on the other
SHOWN = 40  # lines of differences
EXECUTING = []  # the clients of notebooks that are being executed
CORES = os.cpu_count() or 1
AT_ONCE = min(2, CORES)  # notebooks; more would not find enough that is independent


def notebooks(numbers=()):
    """Return the paths of the notebooks, or of those with some numbers, in order."""
    paths = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    known = [path.stem.split("_")[0] for path in paths]
    if unknown := {*numbers} - {*known}:
        sys.exit(f"no notebook {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return [path for path, number in zip(paths, known, strict=True) if number in (numbers or known)]


def execute(path, environment, target, timeout=None, after_cell=None):
    """Execute a notebook in its folder, with extra environment variables; write it to `target`."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=after_cell and (lambda **_: after_cell()),
    )
    variables = {**os.environ, "OSR_PROGRESS": "0", **environment}
    EXECUTING.append(client)
    try:
        client.execute(env={k: v for k, v in variables.items() if v is not None})
    finally:  # a notebook that failed is written as well, with its error
        EXECUTING.remove(client)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)


def stop(*_):
    """Leave at once, on Ctrl-C or when told to end, and take all that was started along."""
    for client in EXECUTING:
        process = client.km and client.km.provisioner and client.km.provisioner.process
        if process and hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # a kernel leads the group of its workers
        elif process:
            process.kill()
    print("\nstopped", flush=True)
    os._exit(130)


def definitions(path):
    """Return what a notebook's imports, functions, classes and CONSTANTS define; nothing else runs.

    So tests and the benchmark use a method where it is taught, without a copy of it.
    """
    cells = code_cells(nbformat.read(path, as_version=4))
    source = "\n".join(cell.source for cell in cells)
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
    "05": (), "03": (), "03b": ("03",), "02": (), "06": ("03b",), "07": ("06",),
    "07b": ("02", "05", "06"), "04": ("03", "03b"), "02b": ("02",),
}  # fmt: skip


def side_by_side(function, paths=None):
    """Call a function with every notebook, or some, two at a time; return {stem: its answer}."""
    paths = {path.stem.split("_")[0]: path for path in paths or notebooks()}
    jobs = {}

    def work(number):
        for other in NEEDS.get(number, ()):
            if other in jobs:
                jobs[other].result()
        return function(paths[number])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number in sorted(paths, key=[*NEEDS, *(paths.keys() - NEEDS.keys())].index):
            jobs[number] = pool.submit(work, number)
    return {paths[number].stem: job.result() for number, job in jobs.items()}


def execute_all(output, environment, paths):
    """Execute notebooks, two at a time; figures, results and executed copies land in `output`."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, CORES // AT_ONCE))
    environment = {"OSR_OUTPUT": str(output), "OMP_NUM_THREADS": threads, **environment}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"}
    cells = sum(len(code_cells(nbformat.read(path, as_version=4))) for path in paths)
    bar = tqdm(total=cells, unit="cell", disable=None)  # none in a log

    def run(path):
        start, target = time.perf_counter(), output / "notebooks" / path.name
        try:
            execute(path, environment, target, after_cell=bar.update)
        except CellExecutionError as error:
            return f"{path.stem} stopped: {error.ename}: {error.evalue}\nWhere: see {target}"
        bar.write(f"{path.stem}: {time.perf_counter() - start:.0f} s")

    with bar:
        problems = [*filter(None, side_by_side(run, paths).values())]
    if problems:
        sys.exit("\n".join(problems))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def checked_outputs(notebook):
    """Return the text of every checked cell, as {cell id: text}."""
    texts = {}
    for cell in code_cells(notebook):
        if cell.source.split("\n")[0] == MARKER:
            texts[cell.id] = "".join(output.get("text", "") for output in cell.outputs)
    return texts


def compare_rows(stored, new):
    """Compare the rows of seed 0 of two results files, `stored` and `new`.

    Returns
    -------
    int
        How many are equal, within the tolerance of `osr.results.agree`.
    list of str
        A line for each that differs, is missing, or is new.
    Counter
        For want of what how many were not computed.
    """
    sides = [
        {name_of(row): row for row in side["rows"] if not row["seed"]} for side in (stored, new)
    ]
    noted = {
        name.split()[0]
        for name in {*stored["data_notes"], *new["data_notes"]}
        if stored["data_notes"].get(name) != new["data_notes"].get(name)
    }
    equal, lines, wanting = 0, [], Counter()
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        old, now = (side.get(name) for side in sides)
        if old and (now is None or now.get("stored")):
            if missing := missing_sets(old):
                wanting[folded(missing)[0]] += 1
                continue
            if now:
                wanting["weights, which do not ship"] += 1
                continue
        other_data = noted & {name[2], *name[3].split("+")}
        if old and now and other_data and abs(old["value"] - now["value"]) <= TOLERANCE_OTHER_DATA:
            equal += 1
        elif old and now and agree(now, old):
            equal += 1
        else:
            values = (row and row["value"] for row in (old, now))
            text = "stored {}, computed {}".format(*values)
            lines.append(f"{' | '.join(str(part) for part in name if part != 0)}: {text}")
    return equal, lines, wanting


def compare_texts(stored, new):
    """Return a line for each line of a checked cell that is stored and not printed, or new."""
    lines = []
    for cell, text in checked_outputs(stored).items():
        found = checked_outputs(new).get(cell, "").splitlines()
        for line in difflib.ndiff(text.splitlines(), found):
            if line[:2] in ("- ", "+ "):
                kind = "stored" if line[0] == "-" else "now   "
                lines.append(f"cell {cell}, {kind}: {line[2:]}")
    return lines


def compare(output, paths):
    """Compare what was executed with what is stored; print the result; return what differs."""
    equal, differences, wanting = 0, [], Counter()
    for path in paths:
        pair = (nbformat.read(p, as_version=4) for p in (path, output / "notebooks" / path.name))
        differences += [f"{path.name}, {line}" for line in compare_texts(*pair)]
        name = f"report/results/{path.stem}.json"
        if (ROOT / name).is_file():
            files = (read_file(folder / name) for folder in (ROOT, output))
            same, lines, missing = compare_rows(*files)
            equal, differences, wanting = equal + same, differences + lines, wanting + missing
    report = output / "differences.txt"
    report.write_text("".join(f"{line}\n" for line in differences), encoding="utf-8")
    for line in differences[:SHOWN]:
        print("DIFFERS  " + line)
    if len(differences) > SHOWN:
        print(f"... and {len(differences) - SHOWN} more: see {report}")
    print(f"{equal:,} stored values equal, {len(differences)} differ, ", end="")
    print(f"{wanting.total():,} not computed", end="")
    for what, n in wanting.items():
        print(f"\n  {n:,} for want of {what}", end="")
    print()
    return differences


def build_reports(folder):
    """Build the reports from the results and figures of a folder, into its folder `report`."""
    subprocess.run([sys.executable, ROOT / "report/build.py", folder], check=True)


def weights_of_seed_0(folder):
    """Return the file names of the weights that the results' rows of seed 0 come from."""
    files = (folder / "report/results").glob("*.json")
    rows = [row for file in files for row in read_file(file)["rows"]]
    return {f"{row['weights']}.safetensors" for row in rows if row["seed"] == 0 and row["weights"]}


def refuse_half_a_clone():
    """Stop if images or weights that belong to the repository are not here."""
    paths = []
    for name in SETS:
        for split in SETS[name].cloned:
            path = cache_path(name, split)
            paths.append(path if path.is_file() else cloned_path(name, split))
    paths += [shipped_dir() / name for name in sorted(weights_of_seed_0(ROOT))]
    gone = [path for path in paths if is_broken(path)]
    if gone:
        way_out = (
            way_to_restore(gone[0])
            if len(gone) == 1
            else (
                "`git checkout -- data` brings them back (a sparse clone: `git sparse-checkout "
                "disable`; pointers of Git LFS: `git lfs pull`)"
            )
        )
        sys.exit(
            f"{len(gone)} of {len(paths)} files of images and weights are missing or damaged, such "
            f"as {gone[0]}: {way_out}"
        )


def is_broken(path):
    """Return whether a file of images or weights is missing, cut off or something else."""
    if not path.is_file():
        return True
    if path.suffix == ".npz":
        with open(path, "rb") as file:  # or what may not be read would be called damaged
            return not zipfile.is_zipfile(file)
    try:
        checkpoint_metadata(path)
    except ValueError:
        return True
    return False


def refuse_poorer_data(paths):
    """Stop if what is stored of some notebooks rests on data sets that are not here."""
    absent = set()
    for path in paths:
        file = ROOT / f"report/results/{path.stem}.json"
        stored = read_file(file) if file.is_file() else {}
        noted = [name.replace(" ", "-") for name in stored.get("data_notes", ())]
        rows = [*stored.get("rows", ()), *({"id": "", "ood": name} for name in noted)]
        absent.update(name for row in rows for name in missing_sets(row))
    if absent:
        sys.exit(
            f"nothing was run or replaced: what is stored rests on {', '.join(sorted(absent))}, "
            f"which are not here{data_hint()}. `make data` fetches them; or set OSR_DATA; or `make "
            "run`, which leaves them out and replaces nothing"
        )


def forget(output):
    """Remove what an earlier run has made, by name; nothing else in the folder."""
    for figure in figures_of(ROOT):
        (output / "figures" / figure.name).unlink(missing_ok=True)
    for path in notebooks():
        (output / f"report/results/{path.stem}.json").unlink(missing_ok=True)
    shutil.rmtree(output / "report/results/.local/sweeps", ignore_errors=True)


def figures_of(folder, number="[0-9]*"):
    """Return the figures of all notebooks, or of one, in a folder."""
    found = (folder / "figures").glob(f"{number}_*")
    return sorted(path for path in found if path.suffix in (".png", ".pdf"))


def install(output, paths, keep_stored):
    """Copy figures and results of notebooks into the repository.

    With `keep_stored`, values that agree with the stored ones keep their digits.
    """
    for path in paths:
        number, name = path.stem.split("_")[0], f"report/results/{path.stem}.json"
        for figure in figures_of(output, number):
            shutil.copyfile(figure, ROOT / "figures" / figure.name)
        if (output / name).is_file():
            head = read_file(output / name)
            rows = head.pop("rows")
            write_results(ROOT / name, head, as_stored(rows) if keep_stored else rows)


def restore():
    """Bring stored figures, results and reports back from git; nothing else is touched."""
    kinds = ["figures/*.png", "figures/*.pdf", "report/results/*.json"]
    kinds += ["report/*.pdf", "report/RESULTS.md"]
    done = subprocess.run(["git", "checkout", "HEAD", "--", *kinds], cwd=ROOT)
    print("figures, results and reports are as stored" if not done.returncode else "see above")
    return done.returncode


def run(output, paths, numbers):
    """Execute on real images, build the reports there, compare; return what differs."""
    if not numbers:
        forget(output)
    execute_all(output, {"OSR_PROFILE": "full", "OSR_RETRAIN": None}, paths)
    build_reports(output)
    print(f"look at the PDFs in {output / 'report'}, and at notebooks and figures in {output}")
    return compare(output, paths)


def demo(output, paths, numbers):
    """Execute small, and build the reports of it."""
    if not numbers:
        forget(output)
    execute_all(output, {"OSR_PROFILE": "demo", "OSR_RETRAIN": None}, paths)
    if not numbers:
        build_reports(output)
        print(f"look at the PDFs in {output / 'report'}")
    print(f"look at the notebooks and figures in {output}")
    return []


def store(output, paths, numbers):
    """Run, and replace what is stored."""
    refuse_poorer_data(paths)
    names = ", ".join(path.stem.split("_")[0] for path in paths)
    print(f"replaces the stored outputs, figures and results of {names}, and the reports")
    run(output, paths, numbers)
    install(output, paths, keep_stored=True)
    for path in paths:
        shutil.copyfile(output / "notebooks" / path.name, path)
    build_reports(ROOT)
    return []


def retrain(output, paths, numbers):
    """Train every model anew, and replace weights, figures and results."""
    refuse_poorer_data(paths)
    print("replaces the shipped weights, and the stored figures and results, once all is trained")
    finished = output / "finished"
    if finished.is_file():
        shutil.rmtree(output / "checkpoints")
        forget(output)
        finished.unlink()
    execute_all(output, {"OSR_PROFILE": "full", "OSR_RETRAIN": "1"}, paths)
    install(output, paths, keep_stored=False)
    old = {path.name for path in shipped_dir().glob("*.safetensors")}
    for name in sorted(weights_of_seed_0(output)):
        shutil.copyfile(output / "checkpoints" / name, shipped_dir() / name)
        old.discard(name)
    for name in old:  # only once all the new ones are in place
        (shipped_dir() / name).unlink()
    finished.touch()
    print("new weights and results are in place; `make notebooks` stores the new outputs")
    return []


def main(command="", *numbers):
    if OSR_ROOT != ROOT:  # an environment that was made for another clone
        sys.exit(f"this Python imports osr from {OSR_ROOT}: `pip install -e {ROOT}`")
    if command == "restore" and not numbers:
        return restore()
    works = {"run": run, "demo": demo, "notebooks": store, "retrain": retrain}
    if command not in works or (command == "retrain" and numbers):
        sys.exit(__doc__)
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, stop)
    start, paths = time.perf_counter(), notebooks(numbers)
    os.environ["OSR_PROFILE"] = "demo" if command == "demo" else "full"
    os.environ.pop("OSR_RETRAIN", None)
    if command == "retrain":
        os.environ.setdefault("OSR_OUTPUT", ".retrain")
    output = output_dir()
    refuse_half_a_clone()
    lock = FileLock(output / ".lock", timeout=0)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        sys.exit(f"another run is at work in {output}: wait for it, or set OSR_OUTPUT to a folder")
    except OSError as error:
        sys.exit(
            f"cannot write in {output} ({error.strerror}): set OSR_OUTPUT to a folder of yours"
        )
    with lock:
        differences = works[command](output, paths, numbers)
    print(f"{command}: {time.perf_counter() - start:.0f} s")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
