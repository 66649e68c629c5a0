"""Models that people hand in, good, broken and harmful ones."""

import math
import pickle
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn import functional as F

from helpers import LABELS, VERDICTS, literal, one_batch
from osr import submissions

GIVEN = r"torch.float32 images of shape \(5, 1, 28, 28\)"


BRIGHTEST = """
from torch import nn

class Model(nn.Sequential):  # the score of class k is pixel k
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 11))
        nn.init.zeros_(self[1].weight)
        nn.init.zeros_(self[1].bias)
"""


FUNCTION = "class Model:\n    def __call__(self, x):\n        "


BROKEN = {
    "ten": (
        FUNCTION + "return x.flatten(1)[:, :10]",
        r"torch.float32 \(5, 10\) for 5 images: .*add an eleventh score",
    ),
    "nan": (FUNCTION + "return x.flatten(1)[:, :11] * float('nan')", "5 of 5 score rows hold NaN"),
    "raises": (
        FUNCTION + "return {}['latent']",
        rf"^KeyError: 'latent' \(raises.py, line 3\) .*{GIVEN}",
    ),
    "refuses": (
        FUNCTION + "raise ValueError('too\\n  small')",
        rf"^too small \(refuses.py, line 3\) .*{GIVEN}",
    ),
    "colour": (
        "from torch import nn\ndef Model():\n    return nn.Conv2d(3, 11, 28)",
        f"^RuntimeError: .*3 channels.*{GIVEN}",
    ),
    "flat": (
        "from torch import nn\ndef Model():\n    return nn.Linear(784, 11)",
        f"^RuntimeError: .*140x28 and 784x11.*{GIVEN}",
    ),
    "leaves": (FUNCTION + "raise SystemExit('no')", r"^SystemExit: no \(leaves.py, line 3\)"),
    "no_model": ("class Net:\n    pass", "^no_model.py defines no class Model"),
    "a_number": ("Model = 3", "^a_number.py defines no class Model"),
    "a_network": ("from torch import nn\nModel = nn.Flatten()", "^a_network.py defines no class"),
    "empty": ("", "^empty.py defines no class Model"),
    "arguments": (
        "class Model:\n    def __init__(self, width):\n        pass",
        "^TypeError: .*width",
    ),
    "syntax": ("class Model(:", "^SyntaxError: .*syntax.py, line 1"),
    "exits": ("import sys\nsys.exit('bye')", r"^SystemExit: bye \(exits.py, line 2\)"),
    "imports": ("import my_layers_of_1999", "^ModuleNotFoundError: .*my_layers_of_1999"),
}


def pixels(verdicts):
    return F.one_hot(torch.tensor(verdicts), 784).float().view(-1, 1, 28, 28)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with one good submission, whose answers on `submitted` are VERDICTS."""
    hand_in(tmp_path, "good", BRIGHTEST)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 11))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(11, 784))
        network[1].bias.zero_()
    save_model(network, str(tmp_path / "good.safetensors"))
    return tmp_path


def hand_in(folder, name, text):
    (folder / f"{name}.py").write_text(text)


def judge(folder, **options):
    loader = one_batch(LABELS, pixels(VERDICTS))
    rows = submissions.judge_submissions(folder, loader, "cpu", **options)
    columns = ["submission", "acc_mnist", "acc_ood", "acc_total", "problem"]
    assert all(list(row) == columns for row in rows)
    assert [row["submission"] for row in rows] == sorted(row["submission"] for row in rows)
    return {row["submission"]: tuple(row.values())[1:] for row in rows}


@pytest.fixture
def at_once(monkeypatch):
    """Judge in this process: a process each takes seconds."""

    def run(command, **options):
        submissions.judge(*command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(submissions.subprocess, "run", run)


def assert_good(row):
    assert row == (pytest.approx(2 / 3), pytest.approx(1 / 2), pytest.approx(3 / 5), "")


def problem(row):
    assert all(math.isnan(value) for value in row[:3]) and "\n" not in row[3]
    return row[3]


class Bomb:
    """Leave a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.usefixtures("at_once")
def test_a_submission_is_judged_with_its_weights(folder):
    assert_good(judge(str(folder))["good"])
    (folder / "good.safetensors").unlink()
    *accuracies, problem = judge(folder)["good"]
    assert accuracies == pytest.approx([1 / 3, 0, 1 / 5])  # always a zero
    assert "there is no good.safetensors" in problem


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_submission_is_a_row_that_says_what_is_wrong(folder, name):
    text, expected = BROKEN[name]
    hand_in(folder, name, text)
    rows = judge(folder)
    assert set(rows) == {"good", name}
    assert_good(rows["good"])
    assert re.search(expected, problem(rows[name]))


@pytest.mark.usefixtures("at_once")
def test_a_problem_names_its_line_in_a_folder_given_from_here(folder, monkeypatch):
    hand_in(folder, "raises", BROKEN["raises"][0])
    monkeypatch.chdir(folder.parent)
    assert re.search(BROKEN["raises"][1], problem(judge(folder.name)["raises"]))


HARMFUL = {  # what only a process of its own survives; all stand before "good"
    "a_settings": "import torch\ntorch.set_default_dtype(torch.float64)\n" + BRIGHTEST,
    "b_patches": "from osr import contract\ncontract.OOD_LABEL = 0\n" + BRIGHTEST,
    "c_changes": FUNCTION + "x -= 1; return x.flatten(1)[:, :11]",
    "d_dies": "import os\nos._exit(3)",
    "e_interrupts": "raise KeyboardInterrupt",
}


def test_a_harmful_submission_does_not_touch_the_others(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as many processes as cores
    for name, text in {**HARMFUL, "raises": BROKEN["raises"][0]}.items():
        hand_in(folder, name, text)
    rows = judge(folder)
    assert set(rows) == {*HARMFUL, "raises", "good"}
    assert_good(rows["good"])
    assert re.search(BROKEN["raises"][1], problem(rows["raises"]))
    for name in ("d_dies", "e_interrupts"):
        assert "ended the process" in problem(rows[name])
    assert "exit status 3" in rows["d_dies"][3]


def test_a_submission_that_never_ends_is_stopped(tmp_path):
    hand_in(tmp_path, "never_ends", "while True: pass")
    start = time.monotonic()
    assert problem(judge(tmp_path, seconds=1)["never_ends"]) == "no answer within 1 s: stopped"
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "network, expected",
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "size mismatch.*1.weight"),
        (nn.Linear(784, 11), "Missing key.*1.weight"),
        (nn.Sequential(nn.Linear(1, 1), nn.Linear(784, 11)), "Unexpected key.*0.weight"),
    ],
)
@pytest.mark.usefixtures("at_once")
def test_weights_that_do_not_fit_are_a_problem(folder, network, expected):
    hand_in(folder, "ada", BRIGHTEST)
    save_model(network, str(folder / "ada.safetensors"))
    rows = judge(folder)
    assert re.search(f"^ada.safetensors does not fit class Model.*{expected}", problem(rows["ada"]))
    assert_good(rows["good"])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2", ".pkl"])
@pytest.mark.usefixtures("at_once")
def test_a_pickle_alone_is_a_row_and_is_not_opened(folder, suffix):
    trace = folder / "opened"
    (folder / f"ada{suffix}").write_bytes(pickle.dumps(Bomb(trace)))
    row = judge(folder)["ada"]
    assert "no ada.py" in problem(row) and "ada.safetensors" in row[3] and "pickle" in row[3]
    assert not trace.exists()
    pickle.loads((folder / f"ada{suffix}").read_bytes())
    assert trace.exists()  # so the pickle would have told


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.usefixtures("at_once")
def test_a_pickle_beside_a_submission_is_not_opened(folder, suffix):
    hand_in(folder, "ada", BRIGHTEST)
    (folder / f"ada{suffix}").write_bytes(pickle.dumps(Bomb(folder / "opened")))
    rows = judge(folder)
    assert set(rows) == {"ada", "good"} and not (folder / "opened").exists()
    expected = {".pt": "ada.pt is a pickle", ".safetensors": "ada.safetensors does not fit"}
    assert problem(rows["ada"]).startswith(expected[suffix])


@pytest.mark.usefixtures("at_once")
def test_an_error_without_a_message_is_a_problem_as_well(folder):
    hand_in(folder, "ada", "raise ValueError")
    assert problem(judge(folder)["ada"]).startswith("ValueError")


@pytest.mark.usefixtures("at_once")
def test_a_submission_may_define_dataclasses(folder):
    text = "from dataclasses import dataclass\n\n@dataclass\nclass Config:\n    width: int = 1\n\n"
    hand_in(folder, "good", "from __future__ import annotations\n" + text + BRIGHTEST)
    assert_good(judge(folder)["good"])


@pytest.mark.usefixtures("at_once")
def test_weights_without_their_python_file_are_a_problem(folder):
    (folder / "good.safetensors").rename(folder / "ada.safetensors")
    assert "no ada.py" in problem(judge(folder)["ada"])


@pytest.mark.usefixtures("at_once")
def test_hidden_and_private_files_and_other_kinds_are_ignored(folder):
    for name in ("_template", ".hidden"):
        hand_in(folder, name, "raise SystemExit")
    (folder / "notes.txt").write_text("")
    (folder / "__pycache__").mkdir(exist_ok=True)
    assert list(judge(folder)) == ["good"]


def test_a_folder_without_submissions_is_an_error(tmp_path):
    (tmp_path / "_template.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        FileNotFoundError, match=f"no submission in {literal(tmp_path)}: .*<name>.py"
    ):
        judge(tmp_path)
    for wrong in (tmp_path / "nowhere", tmp_path / "notes.txt"):
        with pytest.raises(FileNotFoundError, match=f"{literal(wrong)} is not a folder"):
            judge(wrong)


def test_a_loaded_submission_is_its_model_with_its_weights(folder):
    model = submissions.load_submission(str(folder / "good.py"))
    assert type(model).__name__ == "Model" and isinstance(model, nn.Sequential)
    assert torch.equal(model[1].weight, torch.eye(11, 784))
    assert model(pixels(VERDICTS)).argmax(1).tolist() == VERDICTS


def test_two_submissions_keep_their_own_names(folder):
    for name, value in (("ada", 3), ("bob", 4)):
        text = f"import torch\nV = {value}\n{FUNCTION}return torch.full((len(x),), V)"
        hand_in(folder, name, text)
    ada, bob = (submissions.load_submission(folder / f"{name}.py") for name in ("ada", "bob"))
    assert [model(torch.zeros(1)).item() for model in (ada, bob)] == [3, 4]


@pytest.mark.parametrize("name", ["nobody.py", "ada.pt", "folder.py"])
def test_a_submission_that_is_no_python_file_names_what_to_hand_in(tmp_path, name):
    (tmp_path / "ada.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    (tmp_path / "folder.py").mkdir()
    stem = name.split(".")[0]
    message = f"no {stem}.py in {tmp_path}: .*{stem}.safetensors"
    with pytest.raises(FileNotFoundError, match=message):
        submissions.load_submission(tmp_path / name)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name, error", [("syntax", SyntaxError), ("exits", SystemExit)])
def test_what_a_submission_raises_is_raised_where_it_stands_alone(tmp_path, name, error):
    hand_in(tmp_path, name, BROKEN[name][0])
    with pytest.raises(error):
        submissions.load_submission(tmp_path / f"{name}.py")
