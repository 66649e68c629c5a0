"""Result rows as text: means with deviations, tables, files for a spreadsheet."""

import csv

from osr.paths import atomic_path
from osr.results import KEYS, as_stored, row_values, select_rows

STORED = "°"  # behind a value that was not computed in this run


def mean_and_deviation(rows, **wanted):
    """Return the text "mean ± standard deviation" of `row_values`, in per cent, halves rounded up.

    The deviation is that of a sample (divided by n - 1); a single value has none, and "-" says
    that there is no value. A ° follows where one was not computed in this run.
    """
    found = select_rows(rows, **wanted)
    values = 100 * row_values(found)
    if not len(values):
        return "-"
    parts = [values.mean()] if len(values) == 1 else [values.mean(), values.std(ddof=1)]
    return " ± ".join(f"{part + 1e-9:.2f}" for part in parts) + _mark(found)


def format_seeds(values):
    """Return the text "mean ± (sample) standard deviation (seeds)" of fractions, one a seed."""
    deviation = f"± {values.std(ddof=1):.3f}" if len(values) > 1 else " " * 7
    return f"{values.mean():.3f} {deviation} ({len(values)})"


def _mark(rows):
    return STORED if any(row.get("stored") for row in rows) else ""


def format_rows(rows, seed=0):
    """Lay out rows as a text table: a line a method, known and unknown set, a column a metric.

    Parameters
    ----------
    rows : dict or list of dict
        As for `save_results`.
    seed : int or None
        The seed to show, or None for mean ± (sample) standard deviation.

    Returns
    -------
    str
        Values with three decimals, as they are stored where they agree (see `as_stored`); a °
        follows what was not computed in this run. Without rows, a line that says so.

    Raises
    ------
    ValueError
        If two rows differ in nothing but the system, which has no column.
    """
    import pandas as pd

    rows = as_stored(rows)
    if seed is not None:
        rows = [row for row in rows if row["seed"] == seed]
    if not rows:
        return "nothing was computed here"
    systems = {}
    for row in rows:
        other = systems.setdefault(tuple(row[key] for key in KEYS if key != "system"), row)
        if other is not row:
            raise ValueError(
                f"two values of one cell: {other} and {row}. Lay out one system at a time, such as "
                f"format_rows(select_rows(rows, system={row['system']!r})), and each row once"
            )
    frame = pd.DataFrame([row | {"mark": _mark([row])} for row in rows])
    cells = frame.groupby(["method", "id", "ood", "metric"], sort=False)
    text = cells["value"].mean().map("{:.3f}".format)
    if seed is None:
        text = text + cells["value"].std().map(" ± {:.3f}".format).replace(" ± nan", "")
    text = text + cells["mark"].max()
    table = text.unstack("metric")[frame["metric"].unique()].fillna("")
    table = table.reindex(frame.groupby(["method", "id", "ood"], sort=False).size().index)
    return table.reset_index().to_string(index=False)


def write_csv(path, rows):
    """Write rows (a list of dict with the same keys, not empty) to a .csv file, atomically.

    A text that a spreadsheet would run as a formula, such as a file named "=1+1.png", gets an
    apostrophe in front, as OWASP advises against CSV injection.
    """
    with atomic_path(path) as temporary:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)


def _harmless(value):
    risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{value}" if risky else value
