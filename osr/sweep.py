"""Many configurations, one process a core; each result is stored as soon as it is there."""

import json
import os
from contextlib import ExitStack, redirect_stdout
from io import StringIO

from osr.functions import remember, source_digests, texts
from osr.paths import atomic_path, checksum, digest, progress, results_dir

SHOWN = 3  # lines printed by the calls of a sweep


def run_sweep(function, configs, arrays):
    """Call ``function(config, **arrays)`` for every configuration, one process a core.

    Each result is stored as soon as it is there, so a sweep that was killed goes on where it
    stopped. With a Dask scheduler's address in ``DASK_SCHEDULER_ADDRESS`` the configurations run
    on that cluster, whose workers must be able to import `osr_utils`.

    Parameters
    ----------
    function : callable
        Returns something JSON-able, without NaN and infinity. May be defined in a notebook; a
        change of its source or of what it calls there (see `osr.functions.source_digests`), of a
        configuration or of an array computes a result anew.
    configs : list of dict
        JSON-able; each holds everything that shapes its result.
    arrays : dict of str to array
        Shared by all calls; memory-mapped, not copied, on one machine.

    Returns
    -------
    list of dict
        One a configuration, in order: "config", "result" (None where it failed) and "problem"
        ("" where there is none; a failure is also printed, is not stored, and does not stop the
        others).
    """
    from joblib import Parallel, delayed, parallel_config

    sums = {key: checksum(value) for key, value in arrays.items()}
    shared = [function.__name__, source_digests(function), sums]
    folder = results_dir() / ".local/sweeps" / function.__name__
    configs = json.loads(json.dumps(configs))
    paths = [folder / f"{digest([*shared, config])}.json" for config in configs]
    rows = [_read_sweep_row(path, config) for path, config in zip(paths, configs, strict=True)]
    missing = [i for i, row in enumerate(rows) if row is None]
    known, said = texts(function), {}
    calls = (delayed(_call_for_sweep)(i, function, configs[i], arrays, known) for i in missing)
    with ExitStack() as stack:
        if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
            from dask.distributed import Client

            stack.enter_context(Client(address, set_as_default=True))
            stack.enter_context(parallel_config(backend="dask"))
        found = Parallel(n_jobs=-1, return_as="generator_unordered")(calls)
        for i, result, problem, said[i] in progress(found, function.__name__, len(missing)):
            rows[i] = {"config": configs[i], "result": result, "problem": problem}
            if problem:
                print(f"{function.__name__} failed for {configs[i]}: {problem}")
                continue
            text = json.dumps({**rows[i], "sum": digest([configs[i], result])}, allow_nan=False)
            with atomic_path(paths[i]) as temporary:
                temporary.write_text(text, encoding="utf-8")
    _relay([line for i in sorted(said) for line in said[i].splitlines()])
    return rows


def _call_for_sweep(index, function, config, arrays, known):
    """Return (index, result, problem, what was printed), in a process of its own."""
    remember(known)
    with redirect_stdout(StringIO()) as said:
        try:
            text = json.dumps(function(config, **arrays), allow_nan=False)
            result, problem = json.loads(text), ""  # as a stored row comes back
        except Exception as error:
            result, problem = None, f"{type(error).__name__}: {error}"
    return index, result, problem, said.getvalue()


def _relay(lines):
    """Print what the calls of a sweep printed: once, and in full only if it is little."""
    lines = list(dict.fromkeys(lines))
    print(*lines[:SHOWN], sep="\n", end="\n" if lines else "")
    if len(lines) > SHOWN:
        print(f"... and {len(lines) - SHOWN} more such lines")


def _read_sweep_row(path, config):
    """Return a stored row of a sweep, or None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row.pop("sum") == digest([config, row["result"]]) and row["config"] == config:
            return row
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    print(f"{path.name} is damaged: computing {config} again")
    return None
