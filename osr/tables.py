"""Result rows as text: means with deviations, tables."""

from osr.results import as_stored, row_values, select_rows

STORED = "°"  # behind a value that was not computed in this run


def mean_and_deviation(rows, **wanted):
    """Return the text "mean ± standard deviation" of `row_values`, in per cent, halves rounded up.

    The deviation is that of the values (divided by their number); a single value has none, and
    "-" says that there is no value. A ° follows where one was not computed in this run.
    """
    found = select_rows(rows, **wanted)
    values = 100 * row_values(found)
    if not len(values):
        return "-"
    parts = [values.mean()] if len(values) == 1 else [values.mean(), values.std()]
    return " ± ".join(f"{part + 1e-9:.2f}" for part in parts) + _mark(found)


def _mark(rows):
    return STORED if any(row.get("stored") for row in rows) else ""


def format_rows(rows, seed=0):
    """Lay out rows as a text table: a line a method, known and unknown set, a column a metric.

    Parameters
    ----------
    rows : dict or list of dict
        As for `save_results`.
    seed : int or None
        The seed to show, or None for mean ± standard deviation over the seeds.

    Returns
    -------
    str
        Values with three decimals, as they are stored where they agree (see `as_stored`); a °
        follows what was not computed in this run. Without rows, a line that says so.
    """
    import pandas as pd

    rows = as_stored(rows)
    if seed is not None:
        rows = [row for row in rows if row["seed"] == seed]
    if not rows:
        return "nothing was computed here"
    frame = pd.DataFrame([row | {"mark": _mark([row])} for row in rows])
    cells = frame.groupby(["method", "id", "ood", "metric"], sort=False)
    text = cells["value"].mean().map("{:.3f}".format)
    if seed is None:
        text = text + " ± " + cells["value"].std(ddof=0).map("{:.3f}".format)
    text = text + cells["mark"].max()
    table = text.unstack("metric")[frame["metric"].unique()].fillna("")
    table = table.reindex(frame.groupby(["method", "id", "ood"], sort=False).size().index)
    return table.reset_index().to_string(index=False)
