"""Models that people hand in: their files, found and loaded."""

import os
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

import helpers
from helpers import BRIGHTEST, FUNCTION
from osr.hand_in_files import advice, find_weights, load_submission, locate


def write(folder, **texts):
    """Write Python files below a folder; in their names __ stands for /."""
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def save_identity(path):
    """Write weights that make BRIGHTEST what it says."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 11))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(11, 784))
        network[1].bias.zero_()
    path.parent.mkdir(exist_ok=True)
    save_model(network, str(path))


def answer(path):
    """Return what a loaded model says of nothing in particular."""
    return int(load_submission(path)(torch.zeros(1, 1, 28, 28)))


class Bomb:
    """Leave a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_loaded_submission_is_its_model_with_its_weights(tmp_path):
    write(tmp_path, good=BRIGHTEST)
    save_identity(tmp_path / "good.safetensors")
    model = load_submission(str(tmp_path / "good.py"))
    assert type(model).__name__ == "Model" and isinstance(model, nn.Sequential)
    assert torch.equal(model[1].weight, torch.eye(11, 784))
    assert torch.equal(model(torch.eye(11, 784).view(11, 1, 28, 28)), torch.eye(11))


@pytest.mark.parametrize("weights", ["best", "net__net", "net__deep__best"])
def test_a_folder_is_a_submission_with_its_only_weights(tmp_path, weights):
    write(tmp_path, net__net=BRIGHTEST, net__train="from net import Model")
    save_identity(tmp_path / f"net/{weights.replace('net__', '').replace('__', '/')}.safetensors")
    assert torch.equal(load_submission(tmp_path / "net")[1].weight, torch.eye(11, 784))


def test_of_several_weights_those_with_the_name_of_the_python_file_count(tmp_path):
    write(tmp_path, ada__net=BRIGHTEST)
    (tmp_path / "ada/old.safetensors").write_bytes(b"")
    file, folder = locate(tmp_path / "ada")
    (tmp_path / "ada/older.safetensors").write_bytes(b"")
    assert find_weights(file, folder) == (
        None,
        "there is no net.safetensors (old.safetensors, older.safetensors: not read)",
    )
    save_identity(tmp_path / "ada/NET.SafeTensors")  # as if the file system took no notice of case
    assert torch.equal(load_submission(tmp_path / "ada")[1].weight, torch.eye(11, 784))


def test_the_case_of_a_name_does_not_matter_where_there_is_no_better_one(tmp_path):
    write(tmp_path, Ada=BRIGHTEST)
    save_identity(tmp_path / "aDA.safetensors")
    assert torch.equal(load_submission(tmp_path / "Ada.py")[1].weight, torch.eye(11, 784))
    (tmp_path / "ADA.safetensors").write_bytes(b"no weights")
    save_identity(tmp_path / "Ada.safetensors")
    assert torch.equal(load_submission(tmp_path / "Ada.py")[1].weight, torch.eye(11, 784))


def test_other_weights_beside_a_file_are_not_its_own(tmp_path):
    write(tmp_path, ada=BRIGHTEST)
    save_identity(tmp_path / "ada.old.safetensors")
    save_identity(tmp_path / "bob.safetensors")
    assert not load_submission(tmp_path / "ada.py")[1].weight.any()


def test_two_submissions_keep_their_own_names(tmp_path):
    for name, value in (("ada", 3), ("bob", 4)):
        write(tmp_path, **{name: f"import torch\nV = {value}\n{FUNCTION}return torch.tensor(V)"})
    models = [load_submission(tmp_path / f"{name}.py") for name in ("ada", "bob")]
    assert [int(model(torch.zeros(1))) for model in models] == [3, 4]


def test_each_folder_imports_its_own_helpers_and_leaves_those_of_others_alone(tmp_path):
    """Also where their names are those of the project's files, or of modules in use."""
    before, path = dict(sys.modules), list(sys.meta_path)
    text = "import torch\nfrom helpers import V\nfrom models.deep import W\nfrom osr import U\n"
    for name, value in (("ada", 3), ("bob", 4)):
        write(tmp_path / name, src__net=f"{text}{FUNCTION}return torch.tensor(U + V + W)")
        write(tmp_path / name, src__helpers=f"V = {value}", models__deep="W = 10", osr="U = 100")
    assert [answer(tmp_path / name) for name in ("ada", "bob")] == [113, 114]
    assert sys.modules["helpers"] is helpers and sys.meta_path == path
    changed = {name for name, module in sys.modules.items() if before.get(name) is not module}
    assert changed == {"submission_ada", "submission_bob"}


def test_a_file_that_is_called_as_one_of_python_does_not_hide_it(tmp_path):
    text = "import random\nimport torch\nimport statistics_of_mine as own\n"
    write(tmp_path / "ada", net=f"{text}{FUNCTION}return torch.tensor(random.randint(own.V, 3))")
    write(tmp_path / "ada", random="raise RuntimeError", statistics_of_mine="V = 3")
    assert answer(tmp_path / "ada") == 3


def test_what_lies_beside_a_file_is_not_imported_with_it(tmp_path):
    write(tmp_path, ada=f"import bob\n{FUNCTION}return x", bob="")
    with pytest.raises(ModuleNotFoundError, match="bob"):
        load_submission(tmp_path / "ada.py")


FOLDERS = {  # the files of a folder, and the one that counts
    "a class": (dict(a="", b="class Model: pass"), "b"),
    "a function": (dict(a="import b", b="def Model(): pass"), "b"),
    "a name": (dict(a="print(Model)", b="if True:\n    Model = print"), "b"),
    "below": (dict(a="", b__c__d="class Model: pass"), "b__c__d"),
    "imports": (dict(a="from b import Net as Model", b="class Net: pass"), "a"),
    "uses": (dict(train="from net import Model", net="class Model: pass"), "net"),
    "inside": (dict(a="def f():\n    class Model: pass", b="class Model: pass"), "b"),
    "alone": (dict(net="class Net: pass"), "net"),
    "damaged": (dict(a="", b="class Model(:"), "b"),
    "an environment": (
        {"a": "class Model: pass", "venv/lib/site-packages/x": "class Model: pass"},
        "a",
    ),
    "hidden": ({"a": "class Model: pass", ".ipynb_checkpoints/a": "class Model: pass"}, "a"),
}


@pytest.mark.parametrize("texts, expected", FOLDERS.values(), ids=FOLDERS)
def test_the_one_python_file_with_a_model_is_found_and_not_run(tmp_path, texts, expected):
    write(tmp_path, **{name: text + "\nraise SystemExit" for name, text in texts.items()})
    assert locate(tmp_path) == (tmp_path / f"{expected.replace('__', '/')}.py", tmp_path)


def test_a_search_says_nothing_of_how_a_file_is_written(tmp_path, recwarn):
    write(tmp_path, a='x = "\\d"\nclass Model: pass', b="from a import Model")
    assert locate(tmp_path) == (tmp_path / "a.py", tmp_path) and not recwarn.list


@pytest.mark.skipif(os.name == "nt", reason="Windows allows few to make links")
def test_a_link_to_a_folder_is_not_followed(tmp_path):
    write(tmp_path, ada__net=BRIGHTEST)
    (tmp_path / "ada/up").symlink_to("..", target_is_directory=True)
    assert locate(tmp_path / "ada")[0] == tmp_path / "ada/net.py"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("class Model: pass", r"holds 2 Python files, each with a Model.* \(a.py, b/c.py"),
        ("class Net: pass", "none with a class Model: give it one"),
    ],
)
def test_a_folder_where_the_choice_is_not_clear_is_an_error(tmp_path, text, expected):
    write(tmp_path, a=text, b__c=text)
    with pytest.raises(ValueError, match=expected):
        load_submission(tmp_path)


ADVICE = {
    "ada.PY": "ada.PY does not end in .py: rename it to ada.py",
    "ada.py.txt": "ada.py.txt does not end in .py: rename it to ada.py",
    "ada.ipynb": "ada.ipynb is a notebook: export its class Model, .* as ada.py",
    "ada.zip": "ada.zip is an archive: unpack it",
    "ada.tar.gz": "ada.tar.gz is an archive: unpack it",
    "ada.h5": "ada.h5 is not read: hand in a Python file, ada.py, .*ada.safetensors",
    "ada.ckpt": "no ada.py in .*: hand in .* ada.safetensors .*pickle",
    "ada.safetensors": "no ada.py in .*: hand in",
    "ada.docx": "ada.docx is no hand-in: give a Python file, ada.py",
    "ada": "ada is no hand-in: give a Python file, ada.py",
}


@pytest.mark.parametrize("name", ADVICE)
def test_what_is_no_python_file_says_what_to_do(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=f"^{ADVICE[name]}"):
        load_submission(tmp_path / name)
    if "." in name:
        with pytest.raises(FileNotFoundError, match=f"^{ADVICE[name]}"):
            load_submission(tmp_path)  # a folder of nothing else


def test_of_several_files_the_most_telling_is_named():
    names = [Path(name) for name in ("a.docx", "a.pt", "a.zip", "a.ipynb", "a.PY")]
    said = []
    while names:
        said.append(advice(names).partition(" ")[0])
        names.pop()
    assert said == ["a.PY", "a.ipynb", "a.zip", "no", "a.docx"]


@pytest.mark.parametrize("name", ["nobody.py", "ada.pt", "folder.py"])
def test_a_submission_that_is_no_python_file_names_what_to_hand_in(tmp_path, name):
    (tmp_path / "ada.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    (tmp_path / "folder.py").mkdir()
    stem = name.split(".")[0]
    with pytest.raises(FileNotFoundError, match=f"no {stem}.py.* in .*: .*{stem}.*.safetensors"):
        load_submission(tmp_path / name)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("path", ["", None, 3])
def test_nothing_is_no_submission(path, tmp_path, monkeypatch):
    write(tmp_path, ada="raise SystemExit")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"^{path!r} is no hand-in: give a Python file"):
        load_submission(path)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("def Model():\n    pass", "gives a NoneType"),
        ("class Model: pass", "gives a Model"),
        ("from torch import nn\nModel = lambda: nn.Flatten", "gives a type"),
    ],
)
def test_a_model_that_cannot_be_called_is_an_error(tmp_path, text, expected):
    write(tmp_path, ada=text)
    with pytest.raises(ValueError, match=rf"^Model\(\) of ada.py {expected}: let it give"):
        load_submission(tmp_path / "ada.py")


@pytest.mark.parametrize("suffix", [".pt", ".PTH", ".pkl", ".ckpt", ".h5", ".best.pt"])
def test_weights_that_are_not_read_are_an_error_unless_there_are_others(tmp_path, suffix):
    write(tmp_path, ada=f"import torch\n{FUNCTION}return torch.tensor(3)", ada_2=BRIGHTEST)
    for name in ("ada", "ada_2"):
        content = pickle.dumps(Bomb(tmp_path / "opened"))
        (tmp_path / f"{name}{suffix}").write_bytes(content)
    save_identity(tmp_path / "ada_2.safetensors")
    with pytest.raises(ValueError, match=rf"^ada{re.escape(suffix)} is .*not read: save .* as ada"):
        load_submission(tmp_path / "ada.py")
    assert torch.equal(load_submission(tmp_path / "ada_2.py")[1].weight, torch.eye(11, 784))
    assert not (tmp_path / "opened").exists()
    pickle.loads(content)
    assert (tmp_path / "opened").exists()  # so the pickle would have told


def test_good_weights_that_cannot_be_read_now_are_not_called_damaged(tmp_path, monkeypatch):
    write(tmp_path, ada=BRIGHTEST)
    save_identity(tmp_path / "ada.safetensors")
    for error in (PermissionError(13, "Permission denied"), MemoryError()):

        def fail(model, path, error=error):
            raise error

        monkeypatch.setattr("osr.hand_in_files.fill_from_file", fail)
        with pytest.raises(type(error)):
            load_submission(tmp_path / "ada.py")


@pytest.mark.parametrize("text, error", [("class Model(:", SyntaxError), ("exit(1)", SystemExit)])
def test_what_a_submission_raises_is_raised_where_it_stands_alone(tmp_path, text, error):
    write(tmp_path, ada__net=text)
    with pytest.raises(error):
        load_submission(tmp_path / "ada")
    assert sys.modules["helpers"] is helpers


def test_two_people_whose_names_differ_in_case_alone_have_weights_of_their_own(tmp_path):
    (tmp_path / "ada.py").touch()
    (tmp_path / "Ada.py").touch()
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes them for one")
    (tmp_path / "ada.safetensors").touch()
    assert find_weights(tmp_path / "ada.py", None)[0] == tmp_path / "ada.safetensors"
    assert find_weights(tmp_path / "Ada.py", None)[0] is None
