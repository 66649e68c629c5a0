"""Models that people hand in, each judged in a process of its own.

``python -m osr.submissions <file> <batches> <answer> <device>`` judges one.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model as fill_from_file
from torch import nn

from osr.contract import eval_model
from osr.paths import atomic_path, progress

PICKLES = (".pt", ".pth", ".pt2", ".pkl")  # opening one can run any code


def load_submission(path):
    """Build the model that somebody hands in: a Python file that defines a class ``Model``.

    Parameters
    ----------
    path : str or Path
        ``<name>.py``. ``Model()`` takes no arguments and gives a callable for `eval_model`. Its
        weights, if any, lie beside it in ``<name>.safetensors``, as written by
        ``safetensors.torch.save_model(model, path)``. The Python file is run: load only what you
        trust.

    Returns
    -------
    callable
        What ``Model()`` gives; with its weights, if there are any.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it defines no class ``Model``, or its weights are a pickle.
    Exception
        What the file itself raises.
    """
    path = Path(path)
    weights = path.with_suffix(".safetensors")
    if path.suffix != ".py" or not path.is_file():
        raise FileNotFoundError(
            f"no {path.stem}.py in {path.parent}: hand in a Python file with a class Model, and "
            f"its weights as {weights.name} (a pickle such as .pt can run any code when it is "
            "opened, and is not read)"
        )
    pickles = [p.name for p in map(path.with_suffix, PICKLES) if p.is_file()]
    if pickles and not weights.is_file():
        raise ValueError(
            f"{pickles[0]} is a pickle, which can run any code when it is opened, and is not "
            f"read: save the weights as {weights.name} with safetensors.torch.save_model"
        )
    spec = importlib.util.spec_from_file_location(f"submission_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, "Model", None)
    if not callable(build) or isinstance(build, nn.Module):
        raise ValueError(f"{path.name} defines no class Model: give the network's class that name")
    model = build()
    if weights.is_file():
        try:
            fill_from_file(model, weights)
        except Exception as error:
            raise ValueError(
                f"{weights.name} does not fit class Model, or is damaged ({error}): write it with "
                f"safetensors.torch.save_model from the class that {path.name} defines"
            ) from error
    return model


def judge_submissions(folder, loader, device, seconds=600):
    """Judge every submission in a folder, each in a process of its own.

    One that is broken, never ends or changes the settings of torch does not touch the others.

    Parameters
    ----------
    folder : str or Path
        Holds one self-contained Python file a submission, see `load_submission`.
    loader : iterable of (images, labels)
        As for `eval_model`; read once, held in memory.
    device : str or torch.device
    seconds : float
        A submission that takes longer is stopped.

    Returns
    -------
    list of dict
        One a submission, by name: "submission", "acc_mnist", "acc_ood", "acc_total" (nan where
        it could not be judged) and "problem" ("" where there is none).

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it holds no submission.
    """
    folder = Path(folder)
    kinds = {".py", ".safetensors", *PICKLES}
    names = {path.stem for path in folder.glob("[!._]*") if path.suffix in kinds}
    if not names:
        raise FileNotFoundError(
            f"no submission in {folder}: put <name>.py files there"
            if folder.is_dir()
            else f"{folder} is not a folder: give the one that holds the submissions"
        )
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(os.cpu_count()) as pool:
        arrays = {}
        for i, (images, labels) in enumerate(loader):
            arrays[f"images{i}"], arrays[f"labels{i}"] = np.asarray(images), np.asarray(labels)
        np.savez(Path(place) / "batches.npz", **arrays)
        calls = [
            pool.submit(_judge_apart, folder / f"{name}.py", Path(place), device, seconds)
            for name in sorted(names)
        ]
        return [call.result() for call in progress(calls, "submissions")]


def _judge_apart(path, place, device, seconds):
    """Return the row of one submission, judged in a process of its own."""
    answer = place / f"{path.stem}.json"
    arguments = [str(value) for value in (path, place / "batches.npz", answer, device)]
    command = [sys.executable, "-m", "osr.submissions", *arguments]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    accuracies, problem = (math.nan,) * 3, ""
    try:
        if path.is_file():
            done = subprocess.run(command, timeout=seconds, **quiet)
            problem = f"it ended the process that judged it (exit status {done.returncode})"
        else:
            judge(*arguments)  # says what is missing; nothing of it runs
    except subprocess.TimeoutExpired:
        problem = f"no answer within {seconds} s: stopped"
    if answer.is_file():
        accuracies, problem = json.loads(answer.read_text(encoding="utf-8"))
    row = dict(zip(("acc_mnist", "acc_ood", "acc_total"), accuracies, strict=True))
    return {"submission": path.stem, **row, "problem": problem}


def judge(path, batches, answer, device):
    """Write the accuracies of one submission and its problem, if any, to a file."""
    path, accuracies, problem = Path(path).absolute(), (math.nan,) * 3, ""
    with np.load(batches) as file:
        parts = [
            torch.from_numpy(file[f"{part}{i}"])
            for i in range(len(file.files) // 2)
            for part in ("images", "labels")
        ]
    try:
        model = load_submission(path)
        accuracies = eval_model(model, list(zip(parts[::2], parts[1::2], strict=True)), device)
        trained = path.with_suffix(".safetensors")
        if isinstance(model, nn.Module) and [*model.parameters()] and not trained.is_file():
            problem = f"judged with the weights that Model() gives: there is no {trained.name}"
    except (Exception, SystemExit) as error:
        ours = isinstance(error, ValueError | FileNotFoundError) and str(error)
        problem = str(error) if ours else f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
        where = [f"({path.name}, line {lines[-1]})"] if lines else []
        problem = " ".join(" ".join([problem, *where, *getattr(error, "__notes__", ())]).split())
    with atomic_path(Path(answer)) as temporary:
        temporary.write_text(json.dumps([accuracies, problem]), encoding="utf-8")


if __name__ == "__main__":
    judge(*sys.argv[1:])
