"""Result rows: add, select, average, lay out as text, save and read."""

import json
import math
from fnmatch import fnmatchcase

import numpy as np

from osr.paths import ROOT, atomic_path, profile, results_dir

KEYS = ("system", "method", "id", "ood", "seed", "metric")  # what names a row


def add_rows(rows, values, *, system, method, known="mnist", ood="", seed=0, weights=""):
    """Add one row a metric to the rows of a notebook.

    Parameters
    ----------
    rows : dict
        ``{}`` at first; its values are the rows. A row that stands there already is replaced, so a
        cell may run twice.
    values : dict of str to number
        Metric -> value.
    system, method, known, ood, seed, weights
        What the values are of: see `save_results` (`known` is the row's "id").
    """
    row = {"system": system, "method": method, "id": known, "ood": ood, "seed": seed}
    for metric, value in values.items():
        full = row | {"weights": weights, "metric": metric, "value": float(value)}
        rows[tuple(full[key] for key in KEYS)] = full


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


def mean_and_deviation(rows, **wanted):
    """Return the text "mean ± standard deviation" of `row_values`, in per cent, halves rounded up.

    The deviation is that of the values (divided by their number); a single value has none, and
    "-" says that there is no value.
    """
    values = 100 * row_values(rows, **wanted)
    if not len(values):
        return "-"
    parts = [values.mean()] if len(values) == 1 else [values.mean(), values.std()]
    return " ± ".join(f"{part + 1e-9:.2f}" for part in parts)


def save_results(notebook, rows, config, data_notes=None):
    """Write a notebook's rows to report/results/<notebook>.json, atomically.

    Rows of the committed file whose seed was not computed this time are kept, if they belong to
    the same configuration and their method was computed as well.

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
        If a row lacks a key, repeats another, or its value is not finite.
    """
    rows = list(rows.values() if isinstance(rows, dict) else rows)
    seen = set()
    for row in rows:
        if set(row) != {*KEYS, "value", "weights"} or not math.isfinite(row["value"]):
            raise ValueError(f"bad row {row}: give {', '.join(KEYS)}, a finite value and weights")
        identity = tuple(row[key] for key in KEYS)
        if identity in seen:
            raise ValueError(f"the row {identity} stands twice: give each a method of its own")
        seen.add(identity)
    order = (*KEYS[:-1], "weights", "metric")
    rows = [{key: row[key] for key in order} | {"value": round(float(row["value"]), 6)}
            for row in rows]  # fmt: skip
    path = ROOT / f"report/results/{notebook}.json"
    if profile() == "full" and path.is_file():
        computed = {row["seed"] for row in rows}
        series = {tuple(row[key] for key in KEYS if key != "seed") for row in rows}
        committed = json.loads(path.read_text(encoding="utf-8"))
        if committed["config"] != json.loads(json.dumps(config)):
            print("rows of other seeds are dropped: they belong to another configuration")
            committed["rows"] = []
        for row in committed["rows"]:
            name = tuple(row[key] for key in KEYS if key != "seed")
            if row["seed"] not in computed and name in series:
                rows.append(row)
    head = {"profile": profile(), "config": config, "data_notes": data_notes or {}}
    head = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)  # one a line
    text = f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'
    with atomic_path(results_dir() / f"{notebook}.json") as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_results(notebook):
    """Return the rows that `save_results` wrote; [] where there are none yet."""
    path = results_dir() / f"{notebook}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def format_rows(rows, seed=0):
    """Lay out rows as a text table: one line a method and unknown set, one column a metric.

    Parameters
    ----------
    rows : dict or list of dict
        As for `save_results`.
    seed : int or None
        The seed to show, or None for mean ± standard deviation over the seeds.

    Returns
    -------
    str
        Fractions with three decimals.
    """
    import pandas as pd

    frame = pd.DataFrame(rows.values() if isinstance(rows, dict) else rows)
    if seed is not None:
        frame = frame[frame["seed"] == seed]
    cells = frame.groupby(["method", "id", "ood", "metric"], sort=False)["value"]
    text = cells.mean().map("{:.3f}".format)
    if seed is None:
        text = text + " ± " + cells.std(ddof=0).map("{:.3f}".format)
    table = text.unstack("metric")[frame["metric"].unique()].fillna("")
    table = table.reindex(frame.groupby(["method", "id", "ood"], sort=False).size().index)
    return table.reset_index().to_string(index=False)
