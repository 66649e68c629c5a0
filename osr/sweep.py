"""Many configurations, one process a core; each result is stored as soon as it is there."""

import json
import math
import os
from contextlib import ExitStack, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType

from osr.functions import remember, source_digests, texts
from osr.paths import (
    atomic_path,
    checksum,
    digest,
    end_with,
    progress,
    results_dir,
    safe_name,
    writable,
)

SHOWN = 3  # lines printed by the calls of a sweep
DIED = "its process died: killed, out of memory, or a library crashed; try it alone, and smaller"


def run_sweep(function, configs, arrays):
    """Call ``function(config, **arrays)`` for every configuration, one process a core.

    Each result is stored as soon as it is there, so a sweep that was killed goes on where it
    stopped. With a Dask scheduler's address in ``DASK_SCHEDULER_ADDRESS`` the configurations run
    on that cluster, whose workers must be able to import `osr_utils`.

    Parameters
    ----------
    function : function
        By def or lambda. Returns something JSON-able, without NaN and infinity; arrays and tensors
        become numbers and lists. May be defined in a notebook; a change of its source or of what
        it calls there (see `osr.functions.source_digests`), of a configuration or of an array
        computes a result anew, but not that of another value which it reads.
    configs : iterable of dict
        JSON-able; each holds everything that shapes its result.
    arrays : dict of str to array
        Shared by all calls; memory-mapped, not copied, on one machine.

    Returns
    -------
    list of dict
        One a configuration, in order: "config", "result" (None where it failed) and "problem"
        ("" where there is none; a failure is also printed, is not stored, and does not stop the
        others). A call whose process dies is a failure, too, where there are several processes.

    Raises
    ------
    ValueError
        For another kind of function, or a configuration that is no dict or not JSON-able.
    OSError
        If the folder of the results cannot be written. Both come before any work.
    """
    from joblib import delayed, parallel_config

    if not isinstance(function, FunctionType):
        raise ValueError(
            f"run_sweep takes a function (def or lambda), not a {type(function).__name__}: what "
            "that carries would not count when results are found again. Write a function that "
            "reads it from its configuration or from arrays"
        )
    configs = [_checked(config, f"configuration {i}") for i, config in enumerate(configs)]
    sums = {key: checksum(value) for key, value in arrays.items()}
    shared = [function.__name__, source_digests(function), sums]
    folder = results_dir() / ".local/sweeps" / safe_name(function.__name__.strip("<>"))  # a lambda
    paths = [folder / f"{digest([*shared, config])}.json" for config in configs]
    rows = [_read_sweep_row(path, config) for path, config in zip(paths, configs, strict=True)]
    missing = [i for i, row in enumerate(rows) if row is None]
    if missing:
        writable(folder)
    known, said = texts(function), {}
    with ExitStack() as stack:
        marks = Path(stack.enter_context(TemporaryDirectory()))  # of the calls that have begun
        if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
            from dask.distributed import Client

            stack.enter_context(Client(address, set_as_default=True))
            stack.enter_context(parallel_config(backend="dask"))
            marks = None  # its scheduler looks after its workers, on other machines

        def call(i):
            return delayed(_call_for_sweep)(i, function, configs[i], arrays, known, marks)

        found = _results(missing, call, marks)
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


def _checked(config, place):
    """Return a configuration as JSON gives it back."""
    if not isinstance(config, dict):
        raise ValueError(f"{place} is no dict: {config!r:.100}")
    try:
        return _plain(config)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{place}: {error}") from error


def _plain(value):
    """Return a value as JSON gives it back; an error names what JSON cannot hold, and where."""
    return json.loads(json.dumps(_numbers(value, ""), allow_nan=False))


def _numbers(value, place):
    """Return a value with numbers and lists in place of arrays and tensors."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {
            key.item() if hasattr(key, "item") else key: _numbers(part, f"{place}.{key}")
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_numbers(part, f"{place}[{i}]") for i, part in enumerate(value)]
    place = place.removeprefix(".") or "the value"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} is {value}, and JSON has no such number")
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{place}: a {type(value).__name__} is not JSON-able")
    return value


def _results(missing, call, marks):
    """Yield what the calls return, in any order; where a process dies, find the call that ends it.

    With it ends every other process. What had begun is called again alone, the rest together.
    """
    from joblib import Parallel
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    batches = [missing]
    while batches:
        batch = batches.pop()
        left = set(batch)
        try:
            parallel = Parallel(
                n_jobs=-1, return_as="generator_unordered",
                initializer=end_with, initargs=(os.getpid(),),
            )  # fmt: skip
            for found in parallel(map(call, batch)):
                left.remove(found[0])
                yield found
            continue
        except TerminatedWorkerError:
            begun = {i for i in left if (marks / str(i)).exists()}
            if not begun:  # no call's fault
                raise
        if len(batch) == 1:
            yield batch[0], None, DIED, ""
        else:
            batches += [*([i] for i in sorted(begun)), sorted(left - begun)]


def _call_for_sweep(index, function, config, arrays, known, marks):
    """Return (index, result, problem, what was printed), in a process of its own."""
    if marks:
        (marks / str(index)).touch()
    remember(known)
    with redirect_stdout(StringIO()) as said:
        try:
            result, problem = _plain(function(deepcopy(config), **arrays)), ""
            if result is None:
                problem = "it returned nothing: end it with return"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit is one of these
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
