"""One hand-in in a process of its own: what it is given, what it may say, and its end."""

import io
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from safetensors.torch import load, save

from osr import hand_in

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
IMAGES = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 28, 28).contiguous()
BEATS = """
    import time
    for i in range(200):
        open({path!r}, "a").write(".")
        time.sleep(0.05)
"""


def run(path, seconds=60, stop=None):
    """Run a hand-in on five images, two at a time."""
    stop = stop or threading.Event()
    images = save({"images": IMAGES})
    return hand_in.run_apart(path, images, 2, "cpu", seconds, stop)


@pytest.fixture
def python(monkeypatch, tmp_path):
    """Return a function that runs a text in the place of the judging process, without torch."""
    (tmp_path / "ada.py").touch()
    popen = subprocess.Popen

    def replace(text, **options):
        def start(command, **given):
            if command[0] != sys.executable:  # of Windows
                return popen(command, **given)
            return popen([sys.executable, "-c", textwrap.dedent(text)], **given)

        monkeypatch.setattr(hand_in.subprocess, "Popen", start)
        return run(tmp_path / "ada.py", **options)

    return replace


SAY = "import sys, os, time; sys.stdout.buffer.write({!r}); sys.stdout.flush()\n"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("os._exit(3)", r"(exit status 3; importing ada.py)"),
        ("sys.exit(0)", r"(exit status 0; importing ada.py)"),
        pytest.param(
            "os.kill(os.getpid(), 9)",
            "(SIGKILL: perhaps the memory was not enough; importing ada.py)",
            marks=POSIX,
        ),
        pytest.param("os.kill(os.getpid(), 11)", "(SIGSEGV; importing ada.py)", marks=POSIX),
    ],
)
def test_a_process_that_dies_says_how_and_what_it_was_doing(python, text, expected):
    outputs, problem, _ = python(SAY.format(b"starting\nimporting ada.py\n") + text)
    assert (outputs, problem) == (b"", f"it ended the process that judged it {expected}")


def test_a_process_that_never_began_is_not_blamed_on_the_hand_in(python):
    outputs, problem, _ = python("import sys; sys.exit(1)")
    assert problem == "its process did not start (exit status 1): nothing of it has run"


def test_a_stopped_one_says_what_it_was_doing(python):
    text = SAY.format(b"importing ada.py\nloading ada.safetensors (1,200 MB)\n") + "time.sleep(60)"
    outputs, problem, seconds = python(text, seconds=0.2)
    assert problem == "stopped after 0.2 s: loading ada.safetensors (1,200 MB)"
    assert outputs == b"" and 0.2 <= seconds < 60


def test_the_start_of_python_is_not_counted(python):
    text = "import time; time.sleep(1)\n" + SAY.format(b"importing ada.py\n\0\0outputs")
    assert python(text, seconds=0.5)[:2] == (b"outputs", "")


@pytest.mark.parametrize("answer", [b"a\n\0a problem\0", b"\0a problem\0\0\n\0"])
def test_an_answer_is_a_problem_and_outputs(python, answer):
    outputs, problem, _ = python(SAY.format(answer))
    assert (problem, outputs) == ("a problem", answer.partition(b"problem\0")[2])


def test_an_answer_without_end_is_not_kept(python, monkeypatch):
    monkeypatch.setattr(hand_in, "MOST", 10**6)
    outputs, problem, _ = python(SAY.format(b"\0\0") + "sys.stdout.write('x' * 10**8)")
    assert (outputs, problem) == (b"", "its answer has more than 1 MB")
    said = bytearray()
    hand_in._hear(io.BufferedReader(io.BytesIO(bytes(10**7))), said, 1000)
    assert len(said) < 10**5


def test_one_is_ended_at_once_when_it_is_to_stop(python):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    problem = python(SAY.format(b"a\n") + "time.sleep(60)", stop=stop, seconds=5)[1]
    assert "stopped after" not in problem


@POSIX
@pytest.mark.parametrize("end", ["time.sleep(60)", "os._exit(0)"])
def test_what_it_has_started_ends_with_it(python, tmp_path, end):
    path = tmp_path / "beats"
    beats = textwrap.dedent(BEATS.format(path=str(path)))
    start = f"import subprocess; subprocess.Popen([sys.executable, '-c', {beats!r}])\n"
    wait = f"while not os.path.exists({str(path)!r}): time.sleep(0.01)\n"
    python(SAY.format(b"importing ada.py\n") + start + wait + end, seconds=0.2)
    before = path.stat().st_size
    time.sleep(0.3)
    assert path.stat().st_size == before > 0


@POSIX
def test_what_leaves_its_group_is_not_waited_for(python, tmp_path):
    path = tmp_path / "beats"
    beats = textwrap.dedent(BEATS.format(path=str(path)))
    start = (
        f"import subprocess; subprocess.Popen([sys.executable, '-c', {beats!r}], stdin=0, "
        "start_new_session=True)\n"
    )
    wait = f"while not os.path.exists({str(path)!r}): time.sleep(0.01)\n"
    assert python(SAY.format(b"\0\0out") + start + wait)[0] == b"out"
    before = path.stat().st_size
    time.sleep(0.3)
    assert path.stat().st_size > before  # it runs for ten seconds


def test_windows_ends_the_tree_of_a_process(monkeypatch):
    commands, process = [], subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with monkeypatch.context() as patch:
        patch.setattr(hand_in.os, "name", "nt")
        patch.setattr(hand_in.subprocess, "run", lambda command, **_: commands.append(command))
        hand_in._end(process)
    assert commands == [["taskkill", "/F", "/T", "/PID", str(process.pid)]]
    assert process.returncode is not None


LOOKS = """
import gc, os, sys
from pathlib import Path
import torch

FOUND = {
    "arguments": sys.argv[1:],
    "input": sys.stdin.read(),
    "files": sorted(path.name for path in Path.cwd().glob("*.*")),
    "here": Path.cwd() == Path(__file__).parent == Path(sys.argv[0]).parent,
    "home": all(Path.cwd().is_relative_to(os.environ[n]) for n in ("HOME", "TMPDIR")),
    "secret": os.environ.get("TOKEN_OF_MINE"),
    "labels": [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and (t == 10).any()],
}
frame = sys._getframe()
while frame := frame.f_back:
    FOUND["labels"] += [name for name in frame.f_locals if "label" in name]
os.write(1, b"\\0\\0what it prints is no answer")
raise RuntimeError(FOUND)
"""


def test_it_sees_its_own_files_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_MINE", "hush")
    monkeypatch.chdir(tmp_path)
    for name in ("ada.md", "ada.safetensors", "bob.py", "torch.py", "random.py", "answers.json"):
        (tmp_path / name).write_text("raise RuntimeError")
    (tmp_path / "ada.py").write_text(LOOKS)
    outputs, problem, seconds = run("ada.py")
    assert problem == (
        "RuntimeError: {'arguments': [], 'input': '', 'files': ['ada.md', 'ada.py', "
        "'ada.safetensors'], 'here': True, 'home': True, 'secret': None, 'labels': []} "
        f"(ada.py, line {LOOKS.count(chr(10))})"
    )
    assert outputs == b"" and seconds > 0


ARGUMENTS = """
import argparse, threading, time
from pathlib import Path
from blocks.scale import SCALE
threading.Thread(target=time.sleep, args=(60,)).start()
assert not Path("../.git").exists()
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=11)
width = parser.parse_args().width

class Model:
    kept = None

    def __call__(self, x):
        from late import LATE  # while it is called
        open("trace", "w").write("")
        if self.kept is None:
            self.kept = x.new_zeros(2, width)
        self.kept[:] = SCALE * x.flatten(1)[0, 0] + LATE
        x.zero_()
        return self.kept[: len(x)]  # the same memory each time
"""


def test_a_folder_is_run_in_a_copy_and_answers_batch_by_batch(tmp_path):
    (tmp_path / "ada/code/blocks").mkdir(parents=True)
    (tmp_path / "ada/code/net.py").write_text(ARGUMENTS)
    (tmp_path / "ada/code/blocks/scale.py").write_text("SCALE = 100")
    (tmp_path / "ada/late.py").write_text("LATE = 1")
    (tmp_path / "ada/.git").mkdir()
    before = sorted(tmp_path.rglob("*"))
    outputs, problem, _ = run(tmp_path / "ada", seconds=20)
    assert problem == ""
    outputs = load(outputs)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "0": (2, 11), "1": (2, 11), "2": (1, 11),
    }  # fmt: skip
    assert [float(outputs[name][0, 0]) for name in "012"] == [1, 201, 401]
    assert sorted(tmp_path.rglob("*")) == before


AS_EVALUATED = """
import torch
from torch import nn

class Model(nn.Dropout):
    def to(self, device):
        self.device = device
        return super().to(device)

    def forward(self, x):
        assert not (self.training or x.requires_grad or torch.is_grad_enabled())
        assert self.device == "cpu"
        return torch.full((len(x),), 7)
"""


def test_a_model_is_called_as_by_eval_model(tmp_path):
    (tmp_path / "ada.py").write_text(AS_EVALUATED)
    steps = []
    images = save({"images": IMAGES})
    outputs, problem = hand_in.answer(tmp_path / "ada.py", None, images, 3, "cpu", steps.append)
    assert problem == ""
    assert {name: part.tolist() for name, part in load(outputs).items()} == {
        "0": [7, 7, 7], "1": [7, 7],
    }  # fmt: skip
    assert steps == ["importing ada.py", "building Model()", "batch 1 of 2", "batch 2 of 2"]


@POSIX
def test_a_hand_in_ends_soon_after_whoever_judges_it_is_killed(tmp_path):
    beats = tmp_path / "beats"
    text = textwrap.dedent(BEATS.format(path=str(beats))).replace("range(200)", "range(10**6)")
    (tmp_path / "ada.py").write_text(text)
    judge = (
        "import threading, torch\nfrom safetensors.torch import save\nfrom osr import hand_in\n"
        "images = save({'images': torch.zeros(2, 1)})\n"
        f"hand_in.run_apart({str(tmp_path / 'ada.py')!r}, images, 2, 'cpu', 600, threading.Event())"
    )
    parent = subprocess.Popen([sys.executable, "-c", judge])
    deadline = time.monotonic() + 60
    while not beats.exists():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    before = -1
    while beats.stat().st_size != before:
        assert time.monotonic() < deadline
        before = beats.stat().st_size
        time.sleep(1)
