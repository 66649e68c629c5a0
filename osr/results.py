"""Result rows: add, select, compare with what is stored, save and read."""

import json
import math
from fnmatch import fnmatchcase
from functools import cache

import numpy as np

from osr import paths
from osr.datasets import is_available
from osr.paths import ROOT, atomic_path, digest, profile, results_dir, retraining
from osr.records import SETS

KEYS = ("system", "method", "id", "ood", "seed", "metric")  # what names a row
TOLERANCE = 5e-4  # within which a value is the stored one: processors sum in different orders
FLIPS = 3  # images of a share that may change sides for the same reason


def add_rows(
    rows, values, *, system, method, known="mnist", ood="", seed=0, weights="", images=0
):  # fmt: skip
    """Add one row a metric to the rows of a notebook; return the values as a table shows them.

    Parameters
    ----------
    rows : dict
        ``{}`` at first; its values are the rows. A row that stands there already is replaced, so a
        cell may run twice.
    values : dict of str to number
        Metric -> value.
    system, method, known, ood, seed, weights
        What the values are of: see `save_results` (`known` is the row's "id").
    images : int
        Of how many images the values are shares, where these are few: see `agree`.

    Returns
    -------
    dict of str to float
        Metric -> the stored value where it agrees, else the given one (see `as_stored`).
    """
    row = {"system": system, "method": method, "id": known, "ood": ood, "seed": seed}
    row |= {"weights": weights} | ({"images": images} if images else {})
    added = [row | {"metric": metric, "value": float(value)} for metric, value in values.items()]
    rows.update((name_of(row), row) for row in added)
    return {row["metric"]: row["value"] for row in as_stored(added)}


def name_of(row):
    """Return what names a row: the tuple of its `KEYS`."""
    return tuple(row[key] for key in KEYS)


def agree(row, other):
    """Return whether two values of a row are one, but for the order in which a processor sums.

    They may differ by `TOLERANCE` (of the value, where that exceeds 1); of a share of few images,
    by `FLIPS` images.
    """
    scale = max(1, abs(other["value"]))
    images = row.get("images") or other.get("images")
    few = FLIPS / images if images else 0
    return abs(row["value"] - other["value"]) <= max(TOLERANCE * scale, few) + 1e-9


def as_stored(rows):
    """Return rows with the repository's stored value in place of one that agrees with it.

    So a table prints the same text on every processor, and another number where one has moved: a
    comparison of texts compares numbers. A demo and a retraining keep their own values.
    """
    rows = list(rows.values() if isinstance(rows, dict) else rows)
    own = profile() == "demo" or retraining()
    stored, result = {} if own else _stored_values(), []
    for row in rows:
        other = stored.get(name_of(row))
        same = other is not None and agree(row, other)
        result.append(row | {"value": other["value"] if same else round(row["value"], 6)})
    return result


def _stored_values():
    files = sorted((ROOT / "report/results").glob("*.json"))
    return _index(tuple((file, file.stat().st_mtime_ns) for file in files))


@cache
def _index(files):
    return {name_of(row): row for file, _ in files for row in read_file(file)["rows"]}


def read_file(path):
    """Return what a file of results holds: its head, and "rows".

    A ValueError names one that is not as it was written (an older one has no sum).
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("sum", None) not in (None, digest(found)) or "rows" not in found:
            raise ValueError("it does not hold what was saved")
    except (ValueError, TypeError, AttributeError) as error:
        stored = path.parent == ROOT / "report/results"
        again = "" if stored else "delete it and run the notebook again"
        way_out = paths.way_to_restore(path, again)
        raise ValueError(f"{path} is damaged or was edited ({error}); {way_out}") from error
    return found


def missing_sets(row):
    """Return the names of the data sets that a row's value rests on and that are not here."""
    missing = []
    for part in (row["id"], *row["ood"].split("+")):
        name, _, split = part.partition("-")
        names = [other for other in SETS if name in (other, other.split("/")[0])]
        # A known set needs its training images as well.
        splits = ("train",) if split == "train" else ("test", "train")[: 1 + (part == row["id"])]
        needed = [(other, each) for other in names for each in splits if each in SETS[other].wanted]
        if not all(is_available(*one) for one in needed):
            missing.append(name)
    return missing


def select_rows(rows, **wanted):
    """Return the rows whose fields are as wanted, in their order.

    Parameters
    ----------
    rows : dict or list of dict
        As `add_rows` fills it, or as `read_results` returns it.
    **wanted
        A field and its value, a collection of values, or a pattern with ``*``:
        ``select_rows(rows, seed=0, ood=("", "kmnist"), method="short/*")``.

    Raises
    ------
    ValueError
        If there is no such field.
    """
    fields = (*KEYS, "weights", "value")
    if unknown := set(wanted) - {*fields}:
        raise ValueError(f"a row has no {sorted(unknown)}; it has {', '.join(fields)}")

    def fits(value, choice):
        if isinstance(choice, str) and "*" in choice:
            return fnmatchcase(value, choice)
        return value == choice if isinstance(choice, str | int | float) else value in choice

    rows = rows.values() if isinstance(rows, dict) else rows
    return [row for row in rows if all(fits(row[key], v) for key, v in wanted.items())]


def row_values(rows, **wanted):
    """Return the values of the rows that `select_rows` finds, in the order of their seeds."""
    found = sorted(select_rows(rows, **wanted), key=lambda row: row["seed"])
    return np.array([row["value"] for row in found])


def save_results(notebook, rows, config, data_notes=None):
    """Write a notebook's rows to report/results/<notebook>.json of the run's output, atomically.

    Two kinds of rows of the repository's file join them, if they belong to the same configuration:
    those of other seeds than were computed, and, marked "stored", those that rest on a data set
    which is not here.

    Parameters
    ----------
    notebook : str
        Such as "03_alpha_calibration".
    rows : dict or iterable of dict
        From `add_rows`, or rows with system, method, id, ood ("" where none), seed, metric, value
        (a finite number), and weights (the checkpoint that gave the value, "" where none).
    config : dict
        What shaped the rows.
    data_notes : dict of str to str, optional
        Set name -> note, for the sets that differ from the official data.

    Raises
    ------
    ValueError
        If a row lacks a key, repeats another, or its value is not finite; or if `notebook` cannot
        be a file's name.
    """
    rows = list(rows.values() if isinstance(rows, dict) else rows)
    seen, optional = set(), {"images", "stored"}
    for row in rows:
        if {*row} - optional != {*KEYS, "value", "weights"} or not math.isfinite(row["value"]):
            raise ValueError(f"bad row {row}: give {', '.join(KEYS)}, a finite value and weights")
        if name_of(row) in seen:
            raise ValueError(f"the row {name_of(row)} stands twice: give each a method of its own")
        seen.add(name_of(row))
    path = stored_path(notebook)
    if profile() == "full" and path.is_file():
        computed = {row["seed"] for row in rows} or {0}
        series = {tuple(row[key] for key in KEYS if key != "seed") for row in rows}
        committed = read_file(path)
        if committed["config"] != json.loads(json.dumps(config)):
            print("stored rows are dropped: they belong to another configuration")
            committed["rows"] = []
        for row in committed["rows"]:
            own = tuple(row[key] for key in KEYS if key != "seed") in series
            if row["seed"] not in computed and (own or missing_sets(row)):
                rows.append(row)
            elif name_of(row) not in seen and missing_sets(row):
                rows.append(row | {"stored": True})
    order = (*KEYS[:-1], "weights", "images", "stored", "metric")
    rows = [{key: row[key] for key in order if key in row}
            | {"value": round(float(row["value"]), 6)} for row in rows]  # fmt: skip
    head = {"profile": profile(), "config": config, "data_notes": data_notes or {}}
    write_results(results_dir() / f"{notebook}.json", head, rows)


def write_results(path, head, rows):
    """Write a file of results: what stands above the rows, a sum over all, and one line a row."""
    content = json.loads(json.dumps(head | {"rows": rows}))  # as it will be read
    head = head | {"sum": digest(content)}
    head = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def read_results(notebook):
    """Return the rows that a notebook has saved: in this run, else those in the repository.

    A demo and a retraining know their own alone; [] where there are none yet.
    """
    path = results_files().get(notebook)
    return read_file(path)["rows"] if path else []


def results_files():
    """Return {notebook: path of its results}, as `read_results` finds them."""
    folders = [results_dir()]
    if profile() == "full" and not retraining():
        folders.insert(0, ROOT / "report/results")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.json"))}


def stored_path(notebook):
    """Return the path of a notebook's results in the repository."""
    return ROOT / f"report/results/{paths.safe_name(notebook)}.json"


def stored_rows(notebook, **wanted):
    """Return rows of the repository's file, marked as "stored" (see `select_rows`)."""
    path = stored_path(notebook)
    rows = read_file(path)["rows"] if path.is_file() else []
    return [row | {"stored": True} for row in select_rows(rows, **wanted)]
