"""The model that somebody hands in: its files, and how it is made of them."""

import importlib.util
import os
import re
import symtable
import sys
import warnings
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

from safetensors.torch import load_model as fill_from_file
from torch import nn

from osr.paths import one_line

PICKLES = (".pt", ".pth", ".pt2", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
OTHER_WEIGHTS = (".h5", ".hdf5", ".keras", ".onnx")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
NO_FILE = (
    "no {stem}.py in {folder}: hand in a Python file with a class Model, and its weights as "
    "{stem}.safetensors (a pickle such as .pt can run any code when it is opened, and is not read)"
)
ADVICE = {  # by the end of a name, the most telling first
    (".py", ".py.txt"): "{name} does not end in .py: rename it to {stem}.py",
    (".ipynb",): "{name} is a notebook: export its class Model, with the imports, as {stem}.py",
    ARCHIVES: "{name} is an archive: unpack it into a folder of its own, and move it away",
    (".safetensors", *PICKLES): NO_FILE,
    OTHER_WEIGHTS: (
        "{name} is not read: hand in a Python file, {stem}.py, with a class Model, and its "
        "weights as {stem}.safetensors"
    ),
    ("",): "{name} is no hand-in: give a Python file, {stem}.py, or move this one away",
}


def load_submission(path):
    """Build the model that somebody hands in.

    Parameters
    ----------
    path : str or Path
        A Python file that defines a class ``Model``: ``<name>.py``, with its weights, if any,
        beside it in ``<name>.safetensors``, as ``safetensors.torch.save_model(model, path)``
        writes them. Or a folder in which one Python file defines it, whose weights may be the
        folder's only .safetensors; it may import what lies in its folder (only while it is
        loaded). ``Model()`` takes no arguments and gives a callable for `eval_model`. The code is
        run: load only what you trust.

    Returns
    -------
    callable
        What ``Model()`` gives; with its weights, if there are any.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no Python file in the folder.
    ValueError
        If there is no class ``Model``, or more than one, if ``Model()`` gives nothing that can be
        called, or if its weights are a pickle or do not fit.
    Exception
        What the hand-in itself raises.
    """
    file, folder = locate(path)
    with importable(file, folder):
        return load_parts(file, folder, lambda step: None)[0]


def left_out(path):
    """Return whether a path is hidden, or nobody's: of Python's, macOS's or an environment's."""
    return path.name.startswith(".") or path.name in ("__pycache__", "__MACOSX", "site-packages")


def stem(path):
    """Return a file's name without its ending; .py.txt and .tar.gz are one."""
    return re.sub(r"(\.py|\.tar)?\.\w+$", "", path.name, flags=re.IGNORECASE)


def advice(paths):
    """Return what to do about files of which none is a hand-in: about the most telling one."""
    for ends, text in ADVICE.items():
        for path in paths:
            if path.suffix != ".py" and path.name.lower().endswith(ends):
                return text.format(name=path.name, stem=stem(path), folder=path.parent)
    return NO_FILE.format(stem=paths[0].stem, folder=paths[0].parent)


def companions(file):
    """Return the files beside a Python file that share its name, itself included."""
    head = f"{file.stem}.".casefold()  # so that every file system gives the same
    found = [path for path in file.parent.iterdir() if path.name.casefold().startswith(head)]
    others = tuple(f"{path.stem}." for path in found if path.suffix == ".py" and path != file)
    own = [path for path in found if path == file or not path.name.startswith(others)]
    return sorted(path for path in own if path.is_file())


def files_below(folder):
    """Return the files in a folder and below it; links to folders are not followed."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not left_out(path):
            found += files_below(path)
        elif path.is_file() and not left_out(path):
            found.append(path)
    return found


def locate(path):
    """Return the Python file of a hand-in, and its folder: None where it is a file alone.

    Raises
    ------
    FileNotFoundError
        If there is none; it says what to do.
    ValueError
        If a folder holds several with a class ``Model``, or several without.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise FileNotFoundError(f"{path!r} is no hand-in: give a Python file, or a folder with one")
    path = Path(path)
    if not path.is_dir():
        if path.suffix != ".py" or not path.is_file():
            raise FileNotFoundError(advice([path]))
        return path.absolute(), None
    path = path.absolute()
    files = files_below(path)
    found = {file: _how_it_has_model(file) for file in files if file.suffix == ".py"}
    if not found:
        raise FileNotFoundError(advice(files or [path / f"{path.name}.py"]))
    best = max(found.values())
    chosen = [file for file, how in found.items() if how == best]
    if len(chosen) > 1:
        names = ", ".join(file.relative_to(path).as_posix() for file in chosen)
        what = (
            "each with a Model: keep one, or judge the folder of each"
            if best > 1
            else "none with a class Model: give it one"
        )
        raise ValueError(f"{path.name} holds {len(chosen)} Python files, {what} ({names})")
    return chosen[0], path


def _how_it_has_model(file):
    """Return 3 for a file that defines Model, 2 if it imports it, 1 if it is damaged, else 0."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of somebody else's spelling
            name = symtable.symtable(file.read_bytes(), file.name, "exec").lookup("Model")
    except KeyError:
        return 0
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 1  # loading it will say why
    return 3 if name.is_assigned() else 2 if name.is_imported() else 0


def find_weights(file, folder):
    """Return the weights of a hand-in, or None, and a word on why it has none.

    ``<name>.safetensors`` beside ``<name>.py``, in any case; else the only .safetensors of its
    folder, if it has one. A ValueError says that what bears its name is of a kind that is not read.
    """
    name = f"{file.stem}.safetensors"
    beside = companions(file)
    files = files_below(folder) if folder else beside
    trained = [path for path in files if path.suffix.lower() == ".safetensors"]
    named = [path for path in beside if path.name.casefold() == name.casefold()]
    named.sort(key=lambda path: path.name != name)
    if named or (folder and len(trained) == 1):
        return (named or trained)[0], ""
    unread = [path for path in files if path.suffix.lower() in PICKLES + OTHER_WEIGHTS]
    for path in unread:
        if path in beside:
            pickle = "a pickle, which can run any code when it is opened, and is "
            raise ValueError(
                f"{path.name} is {pickle * (path.suffix.lower() in PICKLES)}not read: save the "
                f"weights as {name} with safetensors.torch.save_model"
            )
    others = ", ".join(path.name for path in trained + unread)
    return None, f"there is no {name}" + (f" ({others}: not read)" if others else "")


@contextmanager
def importable(file, folder):
    """Have imports look into a hand-in's folder first; afterwards forget what came from there."""
    places = [file.parent, folder] if folder else []
    own = {
        python.relative_to(place).parts[0].removesuffix(".py")
        for python in (files_below(folder) if folder else [])
        for place in places
        if python.suffix == ".py" and python.is_relative_to(place)
    }

    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [str(p) for p in places]) if name in own else None

    def loaded():
        return {name: m for name, m in sys.modules.items() if name.partition(".")[0] in own}

    before = loaded()
    for name in before:  # another's `helpers`; but torch needs Python's own `random`
        if name.partition(".")[0] not in sys.stdlib_module_names:
            del sys.modules[name]
    finder = SimpleNamespace(find_spec=find_spec)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)


def load_parts(file, folder, say):
    """Return a hand-in's model, and a word if it has no weights; `say` hears what is being done."""
    weights, missing = find_weights(file, folder)
    say(f"importing {file.name}")
    name = f"submission_{folder.name if folder else file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, "Model", None)
    if not callable(build) or isinstance(build, nn.Module):
        raise ValueError(f"{file.name} defines no class Model: give the network's class that name")
    say("building Model()")
    model = build()
    if not callable(model) or isinstance(model, type):
        raise ValueError(
            f"Model() of {file.name} gives a {type(model).__name__}: let it give the network, "
            "which can be called with images"
        )
    if weights:
        say(f"loading {weights.name} ({weights.stat().st_size / 1e6:,.0f} MB)")
        try:
            fill_from_file(model, weights)
        except (OSError, MemoryError):  # the file may be good
            raise
        except Exception as error:
            raise ValueError(
                f"{weights.name} does not fit class Model, or is damaged "
                f"({one_line(str(error), 150)}): write it with safetensors.torch.save_model from "
                f"the class that {file.name} defines"
            ) from error
    return model, missing
