"""run_sweep: parallel, resumable, the same on a Dask cluster."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from helpers import files, run_cell
from osr import functions, sweep


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Stored rows land here; calls leave a file a configuration beside them."""
    monkeypatch.setenv("OSR_OUTPUT", str(tmp_path))
    return tmp_path


def area(config, images):
    """Leave a mark, and return a number that depends on the configuration and the data."""
    calls = Path(config["folder"])
    (calls / f"{config['side']}-{time.time_ns()}").touch()
    if config["side"] < 0:
        raise ValueError("a side is negative")
    return {"area": config["side"] ** 2, "sum": float(images.sum()), "process": os.getpid()}


def run(tmp_path, sides, images):
    calls = tmp_path / "calls"
    calls.mkdir(exist_ok=True)
    configs = [{"side": side, "folder": str(calls)} for side in sides]
    rows = sweep.run_sweep(area, configs, {"images": images})
    return rows, sorted(int(path.name.rpartition("-")[0]) for path in calls.iterdir())


IMAGES = np.arange(6.0)


def test_rows_come_in_order_and_from_other_processes(tmp_path):
    rows, calls = run(tmp_path, (3, 1, 2), IMAGES)
    assert [row["result"]["area"] for row in rows] == [9, 1, 4]
    assert [row["config"]["side"] for row in rows] == [3, 1, 2]
    assert all(row["result"]["sum"] == 15 and row["problem"] == "" for row in rows)
    assert calls == [1, 2, 3]
    if os.cpu_count() > 1:
        assert os.getpid() not in {row["result"]["process"] for row in rows}


def test_what_is_stored_is_not_computed_again(tmp_path):
    first, _ = run(tmp_path, (1, 2), IMAGES)
    second, calls = run(tmp_path, (2, 3, 1), IMAGES)
    assert second[0] == first[1] and second[2] == first[0]
    assert calls == [1, 2, 3]


def test_other_data_are_another_sweep(tmp_path):
    run(tmp_path, (1,), IMAGES)
    rows, calls = run(tmp_path, (1,), IMAGES + 1)
    assert rows[0]["result"]["sum"] == 21 and calls == [1, 1]


def test_a_failure_is_named_and_the_others_go_on(tmp_path, capsys):
    rows, _ = run(tmp_path, (1, -2, 3), IMAGES)
    assert [row["result"] and row["result"]["area"] for row in rows] == [1, None, 9]
    assert rows[1]["problem"] == "ValueError: a side is negative"
    printed = capsys.readouterr().out
    assert "'side': -2" in printed and "a side is negative" in printed
    _, calls = run(tmp_path, (1, -2, 3), IMAGES)
    assert calls == [-2, -2, 1, 3]  # a failure is tried again, the others are not


# --- what a call may return -----------------------------------------------------------------------

RESULTS = {  # as it is returned, and as JSON holds it
    "numbers": ((np.float64(0.5), np.int64(2), np.bool_(True)), [0.5, 2, True]),
    "arrays": ({"a": np.eye(2), "b": np.array(["x"])}, {"a": [[1, 0], [0, 1]], "b": ["x"]}),
    "tensors": ([torch.ones(2, requires_grad=True), torch.tensor(3)], [[1, 1], 3]),
    "keys": ({2: "a", 10: "b", np.int64(3): None}, {"2": "a", "10": "b", "3": None}),
}
REFUSED = {
    "nan": ({"loss": math.nan}, "loss is nan"),
    "infinity": ({"a": [1, {"b": -math.inf}]}, "a[1].b is -inf"),
    "nan in an array": ({"w": np.array([[0], [math.nan]])}, "w[1][0] is nan"),
    "infinite tensor": (torch.tensor(math.inf), "the value is inf"),
    "set": ({"kinds": {1, 2}}, "kinds: a set is not JSON-able"),
    "bytes": ([0, b"x"], "[1]: a bytes is not JSON-able"),
    "complex": (1j, "a complex is not JSON-able"),
    "path": ({"file": Path("x")}, "Path is not JSON-able"),
    "key": ({(1, 2): 3}, "not tuple"),
}


def returned(config):
    return (RESULTS | REFUSED)[config["case"]][0]


def test_numbers_in_any_clothes_come_back_plain_and_what_is_none_is_named(capsys):
    configs = [{"case": case} for case in (*RESULTS, *REFUSED)]
    rows = sweep.run_sweep(returned, configs, {})
    assert [row["config"] for row in rows] == configs
    for row in rows:
        value, expected = (RESULTS | REFUSED)[row["config"]["case"]]
        if row["config"]["case"] in RESULTS:
            assert row["result"] == expected and row["problem"] == ""
        else:
            assert row["result"] is None and expected in row["problem"]
    assert capsys.readouterr().out.count("returned failed for") == len(REFUSED)
    assert sweep.run_sweep(returned, configs[: len(RESULTS)], {}) == rows[: len(RESULTS)]
    assert capsys.readouterr().out == ""  # found again, none of them damaged


def test_a_call_that_exits_or_is_cancelled_is_a_failure_of_its_row_alone():
    text = """
        import asyncio, sys
        def leave(config):
            if config["n"] == 1:
                sys.exit("enough")
            if config["n"] == 2:
                raise asyncio.CancelledError
            return config["n"]
    """
    leave = run_cell(text)["leave"]
    rows = sweep.run_sweep(leave, [{"n": n} for n in range(5)], {})
    assert [row["result"] for row in rows] == [0, None, None, 3, 4]
    assert rows[1]["problem"] == "SystemExit: enough" and "Cancelled" in rows[2]["problem"]


# --- what is asked for ----------------------------------------------------------------------------


def test_configurations_may_come_from_a_generator_with_numbers_of_numpy():
    rows = sweep.run_sweep(lambda config: config["n"] ** 2, ({"n": n} for n in np.arange(3)), {})
    assert [row["result"] for row in rows] == [0, 1, 4]
    assert [row["config"] for row in rows] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_the_folder_of_a_lambda_has_a_name_that_every_system_takes(folder):
    (row,) = sweep.run_sweep(lambda config: 1, [{}], {})
    (path,) = folder.rglob("*.json")
    assert row["result"] == 1 and path.parent.name == "lambda"
    paths = [part for part in path.relative_to(folder).parts if set(part) & set('<>:"|?*')]
    assert paths == []


@pytest.mark.parametrize(
    "configs, problem",
    [
        ([{"k": 1}, 3], "configuration 1 is no dict: 3"),
        ("ab", "configuration 0 is no dict: 'a'"),
        ([[("k", 1)]], "configuration 0 is no dict"),
        ([{"k": {1}}], "configuration 0: k: a set is not JSON-able"),
        ([{"k": 1}, {"a": [math.nan]}], r"configuration 1: a\[0\] is nan"),
        ([{"k": len}], "configuration 0: k: a builtin.* is not JSON-able"),
        ([{(1, 2): 1}], "configuration 0: .* not tuple"),
    ],
)
def test_a_configuration_that_cannot_be_is_named_before_any_work(tmp_path, configs, problem):
    with pytest.raises(ValueError, match=problem):
        sweep.run_sweep(lambda config: (tmp_path / "called").touch(), configs, {})
    assert files(tmp_path) == []


class Callable:
    def __call__(self, config):
        return 1

    def method(self, config):
        return 1


@pytest.mark.parametrize(
    "function", [partial(area, images=3), Callable(), Callable().method, Callable, len, None]
)
def test_only_a_plain_function_is_taken_and_the_way_out_is_told(folder, function):
    with pytest.raises(ValueError, match="takes a function.* not a .*from its configuration or"):
        sweep.run_sweep(function, [{}], {})
    assert files(folder) == []


def test_a_folder_that_cannot_be_written_is_found_before_any_work(tmp_path, monkeypatch):
    first, _ = run(tmp_path, (1,), IMAGES)
    stored = tmp_path / "report/results/.local/sweeps/area"
    stored.rename(tmp_path / "kept")
    stored.write_text("a file in the folder's place")
    with pytest.raises(OSError, match="cannot write .*area"):
        run(tmp_path, (1, 2), IMAGES)
    assert len(files(tmp_path / "calls")) == 1
    stored.unlink()
    (tmp_path / "kept").rename(stored)
    monkeypatch.setattr(sweep, "writable", None)  # which is not called where all is stored
    assert run(tmp_path, (1,), IMAGES)[0] == first


def test_a_call_may_change_its_configuration(monkeypatch, folder):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # in this very process
    before = threading.active_count()
    rows = sweep.run_sweep(lambda config: [config.pop("n"), os.getpid()], [{"n": 1}, {"n": 2}], {})
    assert [row["config"] for row in rows] == [{"n": 1}, {"n": 2}]
    assert [row["result"] for row in rows] == [[1, os.getpid()], [2, os.getpid()]]
    assert threading.active_count() == before and len(files(folder)) == 2


# --- processes that die ---------------------------------------------------------------------------

several = pytest.mark.skipif(joblib.cpu_count() < 2, reason="one core: calls run in this process")

DYING = """
    import os, signal, time
    def fragile(config, images):
        if config["n"] == 1:
            os._exit(0)
        if config["n"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return config["n"]
"""


@several
def test_a_process_that_dies_is_a_failure_of_its_row_alone(folder):
    fragile = run_cell(DYING)["fragile"]
    rows = sweep.run_sweep(fragile, [{"n": n} for n in range(8)], {"images": IMAGES})
    assert [row["result"] for row in rows] == [0, None, 2, 3, None, 5, 6, 7]
    assert {rows[n]["problem"] for n in (1, 4)} == {sweep.DIED}
    assert len(files(folder)) == 6  # stored, and not computed again
    (row,) = sweep.run_sweep(fragile, [{"n": 1}], {"images": IMAGES})
    assert row["problem"] == sweep.DIED


@several
@pytest.mark.skipif(sys.platform == "win32", reason="a process there does not learn of it")
def test_the_processes_of_a_sweep_that_is_killed_alone_end_too(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(
        textwrap.dedent("""
        import sys, time
        from osr import sweep

        def slow(config):
            print("begun", file=sys.stderr, flush=True)
            time.sleep(600)

        if __name__ == "__main__":
            sweep.run_sweep(slow, [{}], {})  # one process works, the others wait
        """)
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert any(b"begun" in line for line in process.stderr)  # the first
        process.kill()
        process.communicate(timeout=60)  # until the last that could write there has ended


# --- what is stored -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "list", "another"])
def test_a_damaged_row_is_found_and_computed_again(tmp_path, capsys, damage):
    sound, _ = run(tmp_path, (1, 2), IMAGES)
    path = next(p for p in tmp_path.rglob("*.json") if '"side": 2' in p.read_text())
    other = next(p for p in tmp_path.rglob("*.json") if '"side": 1' in p.read_text())
    text = path.read_text()
    path.write_text(
        {
            "cut": text[: len(text) // 2],
            "changed": text.replace('"area": 4', '"area": 5'),
            "empty": "",
            "list": "[]",
            "another": other.read_text(),
        }[damage]
    )
    rows, calls = run(tmp_path, (1, 2), IMAGES)
    assert rows[0] == sound[0] and rows[1]["result"]["area"] == 4
    assert calls == [1, 2, 2]
    printed = capsys.readouterr().out
    assert path.name in printed and "'side': 2" in printed
    assert json.loads(path.read_text())["result"]["area"] == 4


CELL = """
    def half(x):
        return x / 2

    def describe(config, images):
        print("a line that every call prints")
        print(f"n = {config['n']}")
        return half(config["n"]) + float(images[0])
"""


def sweep_cell(text, ns, capsys, **names):
    """Run a sweep of a function of a notebook's cell; return its results and what was printed."""
    describe = run_cell(text, **names)["describe"]
    rows = sweep.run_sweep(describe, [{"n": n} for n in ns], {"images": IMAGES})
    assert not any(row["problem"] for row in rows)
    return [row["result"] for row in rows], capsys.readouterr().out


def test_a_function_of_a_notebook_runs_and_a_change_of_what_it_calls_computes_anew(capsys):
    first = sweep_cell(CELL, (2, 4), capsys)
    assert first == ([1, 2], "a line that every call prints\nn = 2\nn = 4\n")
    assert sweep_cell(CELL, (2, 4), capsys) == ([1, 2], "")  # stored
    commented = CELL.replace("    return x / 2", "    # a half\n            return x / 2")
    assert sweep_cell(commented, (2, 4), capsys) == ([1, 2], "")
    changed = CELL.replace("x / 2", "x / 4")
    assert sweep_cell(changed, (2, 4), capsys) == ([0.5, 1], first[1])
    assert sweep_cell(changed, (2, 4), capsys) == ([0.5, 1], "")
    assert sweep_cell(CELL, (4, 2), capsys) == ([2, 1], "")  # these are still there


def test_a_change_of_the_function_itself_computes_anew(capsys):
    """Its source is in the key: a sweep with none would return what is stored."""
    assert sweep_cell(CELL, (2,), capsys)[0] == [1]
    changed = CELL.replace("+ float(images[0])", "+ 7")
    assert changed != CELL and sweep_cell(changed, (2,), capsys)[0] == [8]


def test_what_the_calls_print_is_passed_on_once_and_in_short(capsys):
    found, printed = sweep_cell(CELL, range(8), capsys)
    assert found == [n / 2 for n in range(8)]
    assert printed.splitlines() == [
        "a line that every call prints", "n = 0", "n = 1", "... and 6 more such lines",
    ]  # fmt: skip


def test_a_call_reads_the_same_sources_as_the_notebook(capsys):
    """So fit_or_load, called there, does not find that the code has changed."""
    text = """
        def part(x):
            return x

        def describe(config, images):
            return sources(part)
    """
    found, _ = sweep_cell(text, (1,), capsys, sources=functions.source_digests)
    assert found == [functions.source_digests(run_cell(text, sources=None)["part"])]


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(
        textwrap.dedent(f"""
        import time
        from pathlib import Path
        import numpy as np
        from osr import sweep

        def slow(config, images):
            if config["n"] >= 4 and not Path({str(tmp_path / "go")!r}).exists():
                time.sleep(60)
            with open({str(tmp_path / "log")!r}, "a") as file:
                file.write(f"{{config['n']}} ")
            return config["n"] * 2

        if __name__ == "__main__":
            configs = [{{"n": n}} for n in range(8)]
            rows = sweep.run_sweep(slow, configs, {{"images": np.ones(3)}})
            print([row["result"] for row in rows])
    """)
    )
    command, log = [sys.executable, str(script)], tmp_path / "log"
    first = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    stored = tmp_path / "report/results/.local/sweeps/slow"
    deadline = time.monotonic() + 60
    while len(list(stored.glob("*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert first.poll() is None  # halfway
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert sorted(map(int, log.read_text().split())) == [0, 1, 2, 3]
    (tmp_path / "go").touch()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert second.stdout.strip() == str([2 * n for n in range(8)])
    assert sorted(map(int, log.read_text().split())) == list(range(8))  # each once


def test_the_same_call_runs_on_a_dask_cluster(tmp_path, monkeypatch):
    from dask.distributed import LocalCluster  # takes a second, in every worker too

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        rows, calls = run(tmp_path, (1, -2, 3), IMAGES)
        workers = {worker.pid for worker in cluster.workers.values()}
    assert [row["result"] and row["result"]["area"] for row in rows] == [1, None, 9]
    assert "negative" in rows[1]["problem"] and calls == [-2, 1, 3]
    assert {row["result"]["process"] for row in rows if row["result"]} <= workers
    assert len(list(tmp_path.rglob("*.json"))) == 2  # stored here, not on a worker


def test_what_a_call_defines_has_its_source_in_the_other_process():
    """`fit_or_load` in a sweep stores what a notebook's function defines when it is called."""
    names = run_cell(
        """
        from osr.functions import source_digests

        def outer(config):
            def inner(x):
                return x + config["k"]
            return source_digests(inner)
        """
    )
    (row,) = sweep.run_sweep(names["outer"], [{"k": 1}], {})
    assert row["result"] == names["outer"]({"k": 1})
    assert row["result"]["outer.<locals>.inner"] != functions.digest([""])


def test_a_call_that_returns_nothing_is_a_problem(capsys):
    def forgetful(config):
        config["n"] += 1

    (row,) = sweep.run_sweep(forgetful, [{"n": 1}], {})
    assert row["result"] is None and row["problem"] == "it returned nothing: end it with return"
