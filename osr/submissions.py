"""A folder of models that people hand in: each judged apart, a row each, a table of them."""

import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load, save

from osr.contract import OOD_LABEL, eval_model, ood_score
from osr.hand_in import run_apart
from osr.hand_in_files import advice, left_out, stem
from osr.metrics import ood_metrics
from osr.paths import expanded, one_line, progress, writable
from osr.tables import write_csv


def judge_submissions(folder, loader, device, seconds=600, output=None):
    """Judge every hand-in of a folder, each in a process of its own.

    Each runs in a temporary folder with a copy of its own files, a small environment, and the
    images alone, shuffled; what it returns is scored here. So one that is broken, never ends,
    changes the settings of torch or writes files does not touch the others, and none finds the
    labels among its own things. At its end, or when it is stopped, the processes that it has
    started are ended as well, unless they have left its process group. This is no protection
    against malice: code that looks for your files, or for other processes, finds them. Judge only
    what you would run.

    Parameters
    ----------
    folder : str or Path
        A hand-in is a Python file, or a folder, see `load_submission`. What is called like one
        (``ada.md`` beside ``ada.py``) belongs to it; everything else, but hidden files, is a row
        that says what to do with it.
    loader : iterable of (images, labels)
        As for `eval_model`; read once, held in memory. Batches are as large as its largest.
    device : str or torch.device
    seconds : float
        A hand-in that takes longer is stopped; Python's and torch's own start does not count.
    output : str or Path, optional
        A folder outside `folder` that receives the rows as ``submissions.csv``.

    Returns
    -------
    list of dict
        One a hand-in, by name: "submission", "acc_mnist", "acc_ood", "acc_total", "auroc" (of the
        garbage margin; nan where it returns verdicts or infinite scores, or a side is missing),
        "seconds" (that its process took) and "problem" (one line; "" where there is none). The
        numbers are nan where it could not be judged.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or nothing in it.
    ValueError
        If `output` lies in `folder`, or the loader breaks the contract, see `eval_model`.
    """
    given = isinstance(folder, str | os.PathLike) and str(folder)  # "" would be the current one
    if not given or not Path(folder).is_dir():
        shown = folder if given else repr(folder)
        raise FileNotFoundError(f"{shown} is not a folder: give the one that holds the submissions")
    hand_ins = _hand_ins(Path(folder))
    if not hand_ins:
        raise FileNotFoundError(
            f"no submission in {folder}: put a <name>.py there for each, or a folder with one"
        )
    if output is not None:
        output = expanded(output).resolve()
        if any(path.exists() and path.samefile(folder) for path in (output, *output.parents)):
            raise ValueError(f"{output} lies among the submissions: give the table another folder")
        writable(output)
    batches, images = _shuffled(loader, device)
    pool, stop = ThreadPoolExecutor(os.cpu_count()), threading.Event()
    try:
        calls = [
            pool.submit(_judge, name, paths, batches, images, device, seconds, stop)
            for name, paths in hand_ins.items()
        ]
        for call in progress(calls, "submissions"):
            while not call.done():  # where its result is awaited, Windows does not interrupt
                time.sleep(0.05)
        rows = [call.result() for call in calls]
    finally:
        stop.set()  # an interrupt ends those that run; the others do not start
        pool.shutdown(cancel_futures=True)
    if output is not None:
        write_csv(output / "submissions.csv", rows)
    return rows


def _is_hand_in(path):
    return path.is_dir() or (path.suffix == ".py" and path.is_file())


def _hand_ins(folder):
    """Return {name: paths} of what lies in a folder: hand-ins, or files that belong to none."""
    paths = sorted(path for path in folder.iterdir() if not left_out(path))
    found = {}
    for path in filter(_is_hand_in, paths):
        found.setdefault(path.name if path.is_dir() else path.stem, []).append(path)
    heads = tuple(f"{name}.".casefold() for name in found)
    for path in paths:
        if not _is_hand_in(path) and not f"{path.name}.".casefold().startswith(heads):
            found.setdefault(stem(path), []).append(path)
    return dict(sorted(found.items()))


def _shuffled(loader, device):
    """Return a loader's samples in an order without a rule: as batches, and the images as bytes."""
    batches = list(loader)
    eval_model(lambda images: torch.zeros(len(images), 11, device="cpu"), batches, device)
    kinds = {(images.dtype, images.shape[1:]) for images, _ in batches}
    if len(kinds) > 1:
        shown = " and ".join(f"{dtype} {tuple(shape)}" for dtype, shape in kinds)
        raise ValueError(f"the loader gives images of several kinds ({shown}): give one")
    images = torch.cat([images.detach().cpu() for images, _ in batches])
    labels = torch.cat([torch.as_tensor(labels, device="cpu").long() for _, labels in batches])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0), device="cpu")
    images, labels, size = images[order], labels[order], max(len(part) for part, _ in batches)
    parts = zip(images.split(size), labels.split(size), strict=True)
    return list(parts), save({"images": images})


def _judge(name, paths, batches, images, device, seconds, stop):
    """Return the row of a hand-in, or of what is none."""
    numbers = ("acc_mnist", "acc_ood", "acc_total", "auroc", "seconds")
    row = {"submission": one_line(name), **dict.fromkeys(numbers, math.nan), "problem": ""}
    found = [path for path in paths if _is_hand_in(path)]
    if not found:
        row["problem"] = advice(paths)
    elif len(found) > 1:
        row["problem"] = f"there are {name}.py and a folder {name}: keep one of them"
    else:
        size = len(batches[0][0])
        try:
            outputs, row["problem"], row["seconds"] = run_apart(
                found[0], images, size, device, seconds, stop
            )
            if outputs:
                row |= _score(outputs, batches)
        except (OSError, ValueError, RuntimeError) as error:
            row["problem"] = str(error) or repr(error)
    return row | {"problem": one_line(row["problem"])}


def _score(answer, batches):
    """Return the accuracies and the AUROC of what a model returned for each batch."""
    try:
        outputs = load(answer)
        outputs = [outputs[str(i)] for i in range(len(batches))]
    except Exception as error:  # there is no end to what a forged answer can hold
        raise ValueError(f"its answer is not what a model returned ({error!r})") from error
    left = iter(outputs)
    known, ood, total = eval_model(lambda images: next(left), batches, "cpu")
    scores = {"acc_mnist": known, "acc_ood": ood, "acc_total": total}
    if all(output.ndim == 2 for output in outputs):
        margins = ood_score(torch.cat(outputs).double())
        unknown = torch.cat([labels for _, labels in batches]) == OOD_LABEL
        if margins.isfinite().all() and 0 < unknown.sum() < len(unknown):
            scores["auroc"] = ood_metrics(margins[~unknown], margins[unknown])["auroc"]
    return scores
