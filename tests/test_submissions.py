"""Folders of models that people hand in, good, broken and harmful ones."""

import csv
import math
import os
import re
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_model
from torch import nn
from torch.nn import functional as F

from helpers import BRIGHTEST, FUNCTION, LABELS, VERDICTS, literal, one_batch
from osr import hand_in, hand_in_files, submissions
from osr.hand_in_files import locate

GIVEN = r"torch.float32 images of shape \(5, 1, 28, 28\)"
COLUMNS = ["submission", "acc_mnist", "acc_ood", "acc_total", "auroc", "seconds", "problem"]


GOOD = FUNCTION + "return x.flatten(1)[:, :11]"


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
    "leaves": (FUNCTION + "raise SystemExit('no')", r"^SystemExit: no \(leaves.py, line 3\)$"),
    "no_model": ("class Net:\n    pass", "^no_model.py defines no class Model"),
    "a_number": ("Model = 3", "^a_number.py defines no class Model"),
    "a_network": ("from torch import nn\nModel = nn.Flatten()", "^a_network.py defines no class"),
    "empty": ("", "^empty.py defines no class Model"),
    "nothing": ("def Model():\n    pass", r"^Model\(\) of nothing.py gives a NoneType"),
    "arguments": (
        "class Model:\n    def __init__(self, width):\n        pass",
        "^TypeError: .*width",
    ),
    "syntax": ("class Model(:", "^SyntaxError: .*syntax.py, line 1"),
    "exits": (
        "import sys\nsys.exit('bye')",
        r"^it ended Python with SystemExit: bye when it was imported \(exits.py, line 2\) - put "
        "what runs under `if __name__ == .__main__.:`$",
    ),
    "interrupts": ("raise KeyboardInterrupt", r"^KeyboardInterrupt: \(interrupts.py, line 1\)$"),
    "imports": ("import my_layers_of_1999", "^ModuleNotFoundError: .*my_layers_of_1999"),
    "without_words": ("raise ValueError", "^ValueError: "),
    "long": (
        FUNCTION + "raise RuntimeError('\\x1b[31ma\\u202e\\n' * 10**6)",
        rf"^RuntimeError: .\[31ma. .*\.\.\. \(long.py, line 3\) .*{GIVEN}",
    ),
}


def pixels(verdicts):
    return F.one_hot(torch.tensor(verdicts), 784).float().view(-1, 1, 28, 28)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with one good submission, whose answers on `submitted` are VERDICTS."""
    folder = tmp_path / "hand_ins"
    folder.mkdir()
    hand_over(folder, "good", BRIGHTEST)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 11))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(11, 784))
        network[1].bias.zero_()
    save_model(network, str(folder / "good.safetensors"))
    return folder


def hand_over(folder, name, text):
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


def judge(folder, loader=None, **options):
    loader = loader or one_batch(LABELS, pixels(VERDICTS))
    rows = submissions.judge_submissions(folder, loader, "cpu", **options)
    assert all(list(row) == COLUMNS for row in rows)
    assert [row["submission"] for row in rows] == sorted(row["submission"] for row in rows)
    for row in rows:
        assert row["problem"].isprintable() and len(row["problem"]) <= 300
    return {row["submission"]: row for row in rows}


@pytest.fixture
def at_once(monkeypatch):
    """Judge in this process, one after the other: a process each takes seconds."""

    def run(path, images, size, device, seconds, stop):
        return *hand_in.answer(*locate(path), images, size, device, lambda text: None), 0.5

    monkeypatch.setattr(submissions, "run_apart", run)
    monkeypatch.setattr(submissions.os, "cpu_count", lambda: 1)


def accuracies(row):
    return [row[name] for name in ("acc_mnist", "acc_ood", "acc_total")]


def assert_good(row):
    """The margins are 1 for the unknown that is seen, and a digit; -1 for all others."""
    assert accuracies(row) == pytest.approx([2 / 3, 1 / 2, 3 / 5]) and row["problem"] == ""
    assert row["auroc"] == pytest.approx((1 / 2 + 2 + 1 / 2 * 2) / 6)  # pairs: ties are halves


def problem(row):
    assert all(math.isnan(value) for value in [*accuracies(row), row["auroc"]])
    return row["problem"]


@pytest.mark.usefixtures("at_once")
def test_a_submission_is_judged_with_its_weights(folder):
    assert_good(judge(str(folder))["good"])
    (folder / "good.safetensors").unlink()
    row = judge(folder)["good"]
    assert accuracies(row) == pytest.approx([1 / 3, 0, 1 / 5])  # always a zero
    assert "there is no good.safetensors" in row["problem"]


@pytest.mark.usefixtures("at_once")
def test_a_broken_submission_is_a_row_that_says_what_is_wrong(folder):
    for name, (text, _) in BROKEN.items():
        hand_over(folder, name, text)
    rows = judge(folder)
    assert set(rows) == {"good", *BROKEN}
    assert_good(rows["good"])
    for name, (_, expected) in BROKEN.items():
        assert re.search(expected, problem(rows[name])), name


@pytest.mark.usefixtures("at_once")
def test_a_problem_names_its_line_in_a_folder_given_from_here(folder, monkeypatch):
    hand_over(folder, "raises", BROKEN["raises"][0])
    monkeypatch.chdir(folder.parent)
    assert re.search(BROKEN["raises"][1], problem(judge(folder.name)["raises"]))


@pytest.mark.usefixtures("at_once")
def test_a_problem_in_a_helper_names_its_line_too(folder):
    (folder / "ada").mkdir()
    hand_over(folder / "ada", "net", "from helpers import Model")
    hand_over(folder / "ada", "helpers", BROKEN["raises"][0])
    assert "KeyError: 'latent' (helpers.py, line 3)" in problem(judge(folder)["ada"])


HARMFUL = {  # what only a process of its own survives; most stand before "good"
    "a_settings": "import torch\nfrom osr import contract\ncontract.OOD_LABEL = 0\n"
    "torch.set_default_dtype(torch.float64)\ntorch.set_default_device('meta')\n" + GOOD,
    "b_forges": "import os\nfor fd in range(1, 30):\n    try:\n"
    "        os.write(fd, b'\\0\\0[7, \"best\", null]')\n    except OSError:\n        pass\n"
    "for name in ('c_changes.py', '../good.py', '../../good.py'):\n"
    "    open(name, 'w').write('raise RuntimeError')\nos._exit(0)",
    "c_changes": FUNCTION + "x -= 1; return x.flatten(1)[:, :11]",
    "random": GOOD,  # the name of one of Python's own
    "zz_never_ends": "while True: pass",
}


def test_a_harmful_submission_does_not_touch_the_others(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as many processes as cores
    monkeypatch.chdir(folder)
    for name, text in HARMFUL.items():
        hand_over(folder, name, text)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    rows = judge(folder, seconds=5)
    assert set(rows) == {*HARMFUL, "good"}
    for name in ("good", "random", "c_changes"):
        assert_good(rows[name])
        assert 0 < rows[name]["seconds"] < 600
    assert "answer is not what a model returned" in problem(rows["b_forges"])
    assert problem(rows["zz_never_ends"]) == "stopped after 5 s: importing zz_never_ends.py"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


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
    hand_over(folder, "ada", BRIGHTEST)
    save_model(network, str(folder / "ada.safetensors"))
    rows = judge(folder)
    fits = f"^ada.safetensors does not fit class Model.*{expected}.*: write it with .*ada.py"
    assert re.search(fits, problem(rows["ada"]))
    assert_good(rows["good"])


@pytest.mark.usefixtures("at_once")
def test_a_submission_may_define_dataclasses(folder):
    text = "from dataclasses import dataclass\n\n@dataclass\nclass Config:\n    width: int = 1\n\n"
    hand_over(folder, "good", "from __future__ import annotations\n" + text + BRIGHTEST)
    assert_good(judge(folder)["good"])


@pytest.mark.usefixtures("at_once")
def test_nothing_vanishes(folder):
    """Every entry is a row, or belongs to one; but what nobody has handed in."""
    for name in ("a.ipynb", "b.zip", "c.h5", "d.ckpt", "e.PY", "f.docx", "g", "h.tar.gz", "i.pt"):
        (folder / name).touch()
    for name in ("i.md", "good.md", "Good.PDF", "good.tar.gz", "good", "Ada.zip"):
        (folder / name).touch()  # of those above, of "good", of "ada"
    for name in (".hidden.py", ".DS_Store"):
        (folder / name).touch()
    hand_over(folder, "_name", GOOD)
    hand_over(folder, "two", GOOD)
    for name in ("ada/deep/er", "two", "notes", "__MACOSX/ada", "__pycache__"):
        (folder / name).mkdir(parents=True)
    hand_over(folder / "ada/deep/er", "net", GOOD)
    (folder / "notes/net.ipynb").touch()
    rows = judge(folder)
    assert {name for name, row in rows.items() if not row["problem"]} == {"_name", "ada", "good"}
    said = {name: row["problem"] for name, row in rows.items() if row["problem"]}
    assert "".join(sorted(said)) == "abcdefghinotestwo"
    assert said["a"].startswith("a.ipynb is a notebook") and "rename it to e.py" in said["e"]
    assert said["h"].startswith("h.tar.gz is an archive") and said["i"].startswith("no i.py in")
    assert said["notes"].startswith("net.ipynb is a notebook")
    assert said["two"] == "there are two.py and a folder two: keep one of them"


@pytest.mark.usefixtures("at_once")
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_of_strange_signs_is_one_line(folder):
    (folder / "a\x1b[31m\n.pdf").touch()
    assert list(judge(folder)) == ["a?[31m", "good"]


@pytest.mark.usefixtures("at_once")
def test_a_folder_that_cannot_be_read_is_a_problem_of_its_own(folder, monkeypatch):
    (folder / "ada").mkdir()

    def refuse(path):
        if path.name == "ada":
            raise PermissionError(13, "Permission denied", str(path))
        return hand_in_files.locate(path)

    monkeypatch.setitem(globals(), "locate", refuse)
    rows = judge(folder)
    assert "Permission denied" in problem(rows["ada"])
    assert_good(rows["good"])


def test_a_folder_without_submissions_is_an_error(tmp_path, monkeypatch):
    (tmp_path / ".hidden.py").write_text("")
    with pytest.raises(
        FileNotFoundError, match=f"no submission in {literal(tmp_path)}: .*<name>.py"
    ):
        judge(tmp_path)
    (tmp_path / "ada.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    for wrong in (tmp_path / "nowhere", tmp_path / "ada.py", "", None):
        shown = literal(wrong) if wrong else repr(wrong)
        with pytest.raises(FileNotFoundError, match=f"^{shown} is not a folder"):
            judge(wrong)


@pytest.mark.parametrize(
    "loader, expected",
    [
        ([], "loader is empty"),
        ([(pixels([1]), torch.tensor([11]))], "use 0..9 for digits, 10 for unknown"),
        ([(pixels([1]).numpy(), torch.tensor([1]))], "images are a ndarray"),
        ([pixels([1])], r"not \(images, labels\)"),
        (
            [(torch.zeros(1, side, side), torch.tensor([1])) for side in (28, 32)],
            r"several kinds \(.*\(28, 28\).*\): give one",
        ),
    ],
)
def test_a_fault_of_the_loader_is_said_once_and_nothing_is_run(
    folder, monkeypatch, loader, expected
):
    monkeypatch.setattr(submissions, "run_apart", None)
    with pytest.raises(ValueError, match=expected):
        submissions.judge_submissions(folder, loader, "cpu")


def test_a_device_that_is_not_there_is_said_once(folder, monkeypatch):
    monkeypatch.setattr(submissions, "run_apart", None)
    with pytest.raises(RuntimeError, match="no_such_device"):
        submissions.judge_submissions(folder, one_batch(LABELS), "no_such_device")


def replaying(outputs):
    """Return a `run_apart` that answers with outputs, one for each batch."""
    answer = save({str(i): torch.as_tensor(output) for i, output in enumerate(outputs)})
    return lambda *arguments: (answer, "", 0.5)


def shuffled(loader):
    """Return the images and labels in the order in which the models are given them."""
    batches, _ = submissions._shuffled(loader, "cpu")
    return (torch.cat(parts) for parts in zip(*batches, strict=True))


def test_batches_are_mixed_and_as_large_as_those_of_the_loader():
    images = torch.arange(1000.0).view(1000, 1, 1, 1)
    labels = torch.arange(1000) // 100  # ten digits in turn
    sizes = [100, 250, 250, 250, 150]
    loader = list(zip(images.split(sizes), labels.split(sizes), strict=True))
    batches, sent = submissions._shuffled(loader, "cpu")
    assert [len(part) for part, _ in batches] == [250] * 4
    for part, labels in batches:
        assert torch.equal(part.flatten().long() // 100, labels)  # each keeps its own
        assert labels.bincount(minlength=10).min() >= 10
    assert torch.cat([part for part, _ in batches]).flatten().sort().values.tolist() == [
        *range(1000)
    ]
    assert submissions._shuffled(loader, "cpu")[1] == sent  # the same each time
    assert b"labels" not in sent


def test_what_is_measured_does_not_depend_on_the_settings_of_torch(folder, monkeypatch):
    loader = one_batch(LABELS, pixels(VERDICTS))
    _, labels = shuffled(loader)
    monkeypatch.setattr(submissions, "run_apart", replaying([labels]))
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
        rows = submissions.judge_submissions(folder, loader, "cpu")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert accuracies(rows[0]) == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_the_auroc_is_that_of_all_pairs(folder, monkeypatch, dtype):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(11, (200,), generator=generator)
    _, order = shuffled(one_batch(labels))
    scores = (40 * torch.rand(200, 11, generator=generator)).to(dtype)
    monkeypatch.setattr(submissions, "run_apart", replaying([scores]))
    row = judge(folder, one_batch(labels))["good"]
    numbers = scores.double().numpy()
    margins = numbers[:, 10] - numbers[:, :10].max(1)
    unknown = np.asarray(order) == 10
    higher = margins[unknown][:, None] - margins[~unknown][None]
    assert row["auroc"] == pytest.approx(((higher > 0) + (higher == 0) / 2).mean(), abs=1e-12)


@pytest.mark.parametrize(
    "labels, output",
    [
        (LABELS, torch.tensor(VERDICTS)),
        (LABELS, torch.eye(11)[:5].log()),
        ([3, 7, 0, 1, 2], torch.eye(11)[:5]),
        ([10] * 5, torch.eye(11)[:5]),
    ],
    ids=["verdicts", "infinite", "digits", "unknowns"],
)
def test_without_finite_scores_or_a_side_there_is_no_auroc(folder, monkeypatch, labels, output):
    monkeypatch.setattr(submissions, "run_apart", replaying([output]))
    row = judge(folder, one_batch(labels))["good"]
    assert row["problem"] == "" and math.isnan(row["auroc"]) and not math.isnan(row["acc_total"])


@pytest.mark.parametrize(
    "answer",
    [
        b"no safetensors",
        save({"0": torch.eye(11)[:5]})[:-1],
        save({"0": torch.eye(11)[:4]}),
        save({"0": torch.full((5, 11), math.nan)}),
        save({"0": torch.full((5, 11), True)}),
        save({"0": torch.full((5,), 11)}),
        save({"1": torch.eye(11)[:5]}),
        save({"0": torch.eye(11)[:5].to(torch.float8_e4m3fn)}),
    ],
    ids=["text", "cut", "rows", "nan", "bool", "eleven", "name", "float8"],
)
def test_a_forged_answer_is_a_problem_of_its_row(folder, monkeypatch, answer):
    hand_over(folder, "ada", GOOD)
    good = replaying([torch.eye(11)[list(VERDICTS)]])
    monkeypatch.setattr(
        submissions,
        "run_apart",
        lambda path, *rest: (answer, "the best", 0.5) if path.stem == "ada" else good(),
    )
    rows = judge(folder)
    assert problem(rows["ada"]) not in ("", "the best")
    assert rows["good"]["problem"] == ""


def test_what_cannot_be_run_is_a_problem_of_its_row(folder, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(submissions, "run_apart", fail)
    assert "No space left on device" in problem(judge(folder)["good"])


def test_an_interrupt_ends_those_that_run_and_starts_no_other(folder, monkeypatch):
    for i in range(20):
        hand_over(folder, f"sleeper_{i}", GOOD)
    started, ended = [], []

    def run(path, images, size, device, seconds, stop):
        started.append(path)
        assert stop.wait(60)
        ended.append(path)
        return b"", "", 0.5

    def interrupt(calls, description):
        while not started:
            threading.Event().wait(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(submissions, "run_apart", run)
    monkeypatch.setattr(submissions, "progress", interrupt)
    monkeypatch.setattr(submissions.os, "cpu_count", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        judge(folder)
    assert 1 <= len(started) <= 4 and sorted(started) == sorted(ended)


@pytest.mark.usefixtures("at_once")
def test_the_rows_are_a_table_in_a_folder_of_its_own(folder, tmp_path):
    hand_over(folder, "=1+1", "raise ValueError('=2+2')")
    rows = judge(folder, output=tmp_path / "new/table")
    with open(tmp_path / "new/table/submissions.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [list(row) for row in table] == [COLUMNS] * 2
    assert [row["submission"] for row in table] == ["'=1+1", "good"]
    assert table[0]["problem"].startswith("'=2+2 (=1+1.py, line 1)")
    for row, given in zip(table, rows.values(), strict=True):
        for name in COLUMNS[1:-1]:
            assert float(row[name]) == pytest.approx(given[name], nan_ok=True)


@pytest.mark.parametrize("where", ["", "below", "below/it"])
def test_a_table_among_the_submissions_is_refused_before_any_work(folder, monkeypatch, where):
    monkeypatch.setattr(submissions, "run_apart", None)
    with pytest.raises(ValueError, match="lies among the submissions"):
        judge(folder, output=folder / where)
    assert not (folder / "below").exists()


def test_a_table_that_cannot_be_written_is_refused_before_any_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "run_apart", None)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        judge(folder, output=tmp_path / "file")
