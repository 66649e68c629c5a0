"""The contract of the course: eval_model, ood_score, submissions, and the modes of a module."""

import math
import pickle
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import osr_utils
from osr_utils import eval_model

LABELS = [3, 7, 0, 10, 10]
VERDICTS = [3, 10, 0, 10, 2]  # right: 2 of 3 known, 1 of 2 unknown


def one_batch(labels, images=None):
    labels = torch.as_tensor(labels)
    return [(torch.zeros(len(labels), 1, 28, 28) if images is None else images, labels)]


def scores(verdicts):
    return F.one_hot(torch.tensor(verdicts), 11).float()


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
@pytest.mark.parametrize(
    "output",
    [
        scores(VERDICTS),
        scores(VERDICTS).double() * 100 - 1000,
        scores(VERDICTS).bfloat16(),
        scores(VERDICTS).long(),
        torch.tensor(VERDICTS),
        torch.tensor(VERDICTS, dtype=torch.int32),
        torch.tensor(VERDICTS, dtype=torch.uint8),
    ],
)
def test_accuracies_by_hand(output, device):
    found = eval_model(lambda x: output, one_batch(LABELS), device)
    assert found == pytest.approx((2 / 3, 1 / 2, 3 / 5), abs=1e-12)
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize("kind", ["scores", "verdicts"])
def test_the_published_numbers(kind):
    labels = torch.cat([torch.arange(10_000) % 10, torch.full((10_000,), 10)])
    verdicts = labels.clone()
    verdicts[9_496:9_750] = 10  # 254 known images called unknown,
    verdicts[9_750:10_000] = (labels[9_750:10_000] + 1) % 10  # 250 given another digit
    verdicts[19_614:] = 4  # 386 unknown images called a four
    index = torch.arange(20_000.0)[:, None]
    loader = DataLoader(TensorDataset(index, labels), batch_size=512, shuffle=True)

    def model(x):
        found = verdicts[x[:, 0].long()]
        return F.one_hot(found, 11) * 2.0 if kind == "scores" else found

    found = eval_model(model, loader, "cpu")
    assert found == pytest.approx((0.9496, 0.9614, 0.9555), abs=1e-12)


@pytest.mark.parametrize(
    "labels, verdicts, expected",
    [
        ([1, 2, 3, 4], [1, 2, 3, 10], (0.75, math.nan, 0.75)),
        ([10, 10], [10, 0], (math.nan, 0.5, 0.5)),
        ([0], [0], (1, math.nan, 1)),
        ([10], [9], (math.nan, 0, 0)),
    ],
)
def test_a_side_without_samples_is_nan(labels, verdicts, expected):
    found = eval_model(lambda x: torch.tensor(verdicts), one_batch(labels), "cpu")
    assert found == pytest.approx(expected, nan_ok=True)


def test_the_total_weighs_images_and_not_batches_or_sides():
    loader = one_batch([1] * 9) + one_batch([10])
    found = eval_model(lambda x: torch.full((len(x),), 1), loader, "cpu")
    assert found == pytest.approx((1, 0, 0.9))


def test_an_infinite_score_is_a_score():
    output = torch.full((1, 11), -math.inf)
    output[0, 10] = 0
    assert eval_model(lambda x: output, one_batch([10]), "cpu")[1] == 1


def test_one_call_a_batch_in_the_loaders_order():
    seen = []

    def model(x):
        seen.append(x.flatten().tolist())
        return torch.zeros(len(x), 11)

    images = torch.arange(7.0)[:, None]
    loader = DataLoader(TensorDataset(images, torch.arange(7)), batch_size=3)
    eval_model(model, loader, "cpu")
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


def test_any_iterable_of_pairs_is_a_loader():
    pairs = ([torch.zeros(1, 3), np.array([label])] for label in (0, 10))
    assert eval_model(lambda x: torch.tensor([0]), pairs, "cpu") == (1, 0, 0.5)


def test_no_gradient_is_recorded():
    layer = nn.Linear(2, 11)
    outputs = []

    def model(x):
        outputs.append(layer(x))
        return outputs[-1]

    eval_model(model, [(torch.zeros(1, 2), torch.tensor([0]))], "cpu")
    assert not outputs[0].requires_grad


# --- modes ----------------------------------------------------------------------------------------


class Network(nn.Sequential):
    """Note the modes of all modules at each call; fail on demand."""

    def __init__(self, error=None):
        super().__init__(nn.Linear(2, 11), nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(11)))
        self.error, self.seen = error, []

    def forward(self, x):
        self.seen.append(modes(self))
        if self.error:
            raise self.error
        return super().forward(x)


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("error", [None, RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("training", [True, False])
def test_every_module_is_in_eval_mode_and_gets_its_own_back(training, error):
    model = Network(error).train(training)
    model[1][0].train(not training)
    before = modes(model)
    statistics = model[1][1].running_mean.clone()
    loader = one_batch([1, 10], torch.rand(2, 2))
    if error:
        with pytest.raises(type(error)):
            eval_model(model, loader, "cpu")
    else:
        eval_model(model, loader, "cpu")
    assert model.seen == [[False] * 5]
    assert modes(model) == before and len(set(before)) == 2
    assert torch.equal(model[1][1].running_mean, statistics)


def test_modes_come_back_after_a_broken_contract():
    model = Network().train()
    with pytest.raises(ValueError, match="labels run"):
        eval_model(model, one_batch([11], torch.rand(1, 2)), "cpu")
    assert all(modes(model)) and model.seen == []


def test_evaluation_mode_takes_what_is_no_module():
    with osr_utils.evaluation_mode(len):
        pass


def test_a_loader_that_is_none_says_so():
    network = Network()
    for batch, expected in (
        ((torch.zeros(2, 2), torch.tensor([1])), "2 images with 1 labels"),
        ((torch.zeros(2, 2).numpy(), torch.tensor([1, 2])), "images are a ndarray.*ToTensor"),
        ((torch.zeros(1, 28, 28), 3), "wrap the data set in a DataLoader"),
    ):
        with pytest.raises(ValueError, match=expected):
            eval_model(network, [batch], "cpu")
    with pytest.raises(ValueError, match="the model is a str"):
        eval_model("osr_detector", one_batch([1]), "cpu")


def test_float_verdicts_are_told_to_become_integers():
    with pytest.raises(ValueError, match=r"end with .long\(\)"):
        eval_model(lambda x: torch.zeros(len(x)), one_batch([1, 2]), "cpu")


# --- what a model raises --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("latent"), ValueError("mine")])
def test_what_a_model_raises_comes_back_with_what_it_was_given(error):
    images = torch.rand(2, 2, dtype=torch.float64)
    with pytest.raises(type(error)) as caught:
        eval_model(Network(error), one_batch([1, 10], images), "cpu")
    assert caught.value is error
    (note,) = error.__notes__
    assert "torch.float64 images of shape (2, 2)" in note


def test_a_broken_contract_is_no_exception_of_the_model():
    with pytest.raises(ValueError) as caught:
        eval_model(lambda x: x, one_batch([1]), "cpu")
    assert not hasattr(caught.value, "__notes__")


def test_what_the_loader_raises_is_no_exception_of_the_model():
    def loader():
        yield from one_batch([1])
        raise OSError("disk")

    with pytest.raises(OSError, match="disk") as caught:
        eval_model(lambda x: torch.zeros(len(x), 11), loader(), "cpu")
    assert not hasattr(caught.value, "__notes__")


# --- broken contracts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output, message",
    [
        (torch.zeros(4, 10), r"torch.float32 \(4, 10\) for 4 images.*\(4, 11\).*eleventh score"),
        (torch.zeros(4, 12), r"\(4, 12\) for 4 images: return \(4, 11\) scores"),
        (torch.zeros(3, 11), r"\(3, 11\) for 4 images"),
        (torch.zeros(4, 11, 1), r"\(4, 11, 1\)"),
        ((torch.zeros(4, 11), torch.zeros(4)), "returned a tuple: return one tensor"),
        (np.zeros((4, 11)), "returned a ndarray: return one tensor"),
        (None, "returned a NoneType"),
        (torch.zeros(4), r"torch.float32 \(4,\) for 4 images.*integer verdicts"),
        (torch.zeros(4, dtype=torch.bool), r"torch.bool \(4,\)"),
        (torch.zeros(4, 11, dtype=torch.bool), r"torch.bool \(4, 11\)"),
        (torch.zeros(4, 11, dtype=torch.complex64), r"torch.complex64 \(4, 11\)"),
        (torch.zeros(4, 1, dtype=torch.long), r"torch.int64 \(4, 1\)"),
        (torch.tensor([0, 1, 2]), r"\(3,\) for 4 images"),
        (torch.tensor([0, 1, 2, 11]), r"verdicts run from 0 to 11: use 0\.\.9.*10 for unknown"),
        (torch.tensor([0, 1, 2, -1]), "verdicts run from -1 to 2"),
        (torch.zeros(()), r"torch.float32 \(\)"),
    ],
)
def test_other_outputs_are_refused_with_what_was_found(output, message):
    with pytest.raises(ValueError, match=message):
        eval_model(lambda x: output, one_batch([1, 2, 3, 10]), "cpu")


@pytest.mark.parametrize("column", [0, 10])
def test_nan_scores_are_refused_wherever_they_stand(column):
    output = torch.zeros(4, 11)
    output[1, column] = output[3, column] = math.nan
    with pytest.raises(ValueError, match="2 of 4 score rows hold NaN"):
        eval_model(lambda x: output, one_batch([1, 2, 3, 10]), "cpu")


@pytest.mark.parametrize(
    "labels, message",
    [
        ([1, 11], r"labels run from 1 to 11: use 0\.\.9 for digits, 10 for unknown"),
        ([-1, 10], "labels run from -1 to 10"),
        ([1.0, 10.0], r"\(N,\) integer labels, found torch.float32 \(2,\)"),
        ([True, False], r"found torch.bool \(2,\)"),
        ([[1], [10]], r"found torch.int64 \(2, 1\)"),
        (scores([1, 10]).long(), r"found torch.int64 \(2, 11\)"),
    ],
)
def test_other_labels_are_refused_with_what_was_found(labels, message):
    with pytest.raises(ValueError, match=message):
        eval_model(lambda x: torch.zeros(2, 11), one_batch(labels), "cpu")


@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(torch.zeros(0, 1)))])
def test_an_empty_loader_is_refused(loader):
    with pytest.raises(ValueError, match="data loader is empty"):
        eval_model(lambda x: torch.zeros(len(x), 11), loader, "cpu")


# --- ood_score ------------------------------------------------------------------------------------


def test_the_garbage_margin_by_hand():
    logits = torch.zeros(3, 11)
    logits[0, 10], logits[0, 4] = 2, 5  # 2 - 5
    logits[1, :10], logits[1, 10] = -3, 1  # 1 + 3
    logits[2, 0], logits[2, 9], logits[2, 10] = 1, 7, 7  # a tie
    assert osr_utils.ood_score(logits).tolist() == [-3, 4, 0]


def test_a_positive_margin_is_the_verdict_unknown():
    logits = torch.randn(200, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(osr_utils.ood_score(logits) > 0, logits.argmax(1) == 10)


# --- submissions ----------------------------------------------------------------------------------

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
    rows = osr_utils.judge_submissions(folder, loader, "cpu", **options)
    columns = ["submission", "acc_mnist", "acc_ood", "acc_total", "problem"]
    assert all(list(row) == columns for row in rows)
    assert [row["submission"] for row in rows] == sorted(row["submission"] for row in rows)
    return {row["submission"]: tuple(row.values())[1:] for row in rows}


@pytest.fixture
def at_once(monkeypatch):
    """Judge in this process: a process each takes seconds."""

    def run(command, **options):
        osr_utils._judge(*command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(osr_utils.subprocess, "run", run)


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
    "b_patches": "import osr_utils\nosr_utils.OOD_LABEL = 0\n" + BRIGHTEST,
    "c_changes": FUNCTION + "x -= 1; return x.flatten(1)[:, :11]",
    "d_dies": "import os\nos._exit(3)",
    "e_interrupts": "raise KeyboardInterrupt",
    "f_never_ends": "while True: pass",
}


def test_a_harmful_submission_does_not_touch_the_others(folder):
    for name, text in {**HARMFUL, "raises": BROKEN["raises"][0]}.items():
        hand_in(folder, name, text)
    rows = judge(folder, seconds=20)
    assert set(rows) == {*HARMFUL, "raises", "good"}
    assert_good(rows["good"])
    assert re.search(BROKEN["raises"][1], problem(rows["raises"]))
    for name in ("d_dies", "e_interrupts"):
        assert "ended the process" in problem(rows[name])
    assert "exit status 3" in rows["d_dies"][3]
    assert "no answer within 20 s" in problem(rows["f_never_ends"])


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
    with pytest.raises(FileNotFoundError, match=f"no submission in {tmp_path}: .*<name>.py"):
        judge(tmp_path)
    for wrong in (tmp_path / "nowhere", tmp_path / "notes.txt"):
        with pytest.raises(FileNotFoundError, match=f"{wrong} is not a folder"):
            judge(wrong)


def test_a_loaded_submission_is_its_model_with_its_weights(folder):
    model = osr_utils.load_submission(str(folder / "good.py"))
    assert type(model).__name__ == "Model" and isinstance(model, nn.Sequential)
    assert torch.equal(model[1].weight, torch.eye(11, 784))
    assert model(pixels(VERDICTS)).argmax(1).tolist() == VERDICTS


def test_two_submissions_keep_their_own_names(folder):
    for name, value in (("ada", 3), ("bob", 4)):
        text = f"import torch\nV = {value}\n{FUNCTION}return torch.full((len(x),), V)"
        hand_in(folder, name, text)
    ada, bob = (osr_utils.load_submission(folder / f"{name}.py") for name in ("ada", "bob"))
    assert [model(torch.zeros(1)).item() for model in (ada, bob)] == [3, 4]


@pytest.mark.parametrize("name", ["nobody.py", "ada.pt", "folder.py"])
def test_a_submission_that_is_no_python_file_names_what_to_hand_in(tmp_path, name):
    (tmp_path / "ada.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    (tmp_path / "folder.py").mkdir()
    stem = name.split(".")[0]
    message = f"no {stem}.py in {tmp_path}: .*{stem}.safetensors"
    with pytest.raises(FileNotFoundError, match=message):
        osr_utils.load_submission(tmp_path / name)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name, error", [("syntax", SyntaxError), ("exits", SystemExit)])
def test_what_a_submission_raises_is_raised_where_it_stands_alone(tmp_path, name, error):
    hand_in(tmp_path, name, BROKEN[name][0])
    with pytest.raises(error):
        osr_utils.load_submission(tmp_path / f"{name}.py")
