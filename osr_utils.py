"""Shared helpers of the notebooks: data, contract, models, training, metrics, weights, results.

An *OOD score* is higher for inputs that look more out-of-distribution (OOD); OOD is the positive
class of every metric. Images are float32 (N, 1, 28, 28) in [0, 1] wherever a model sees them.
"""

import csv
import difflib
import hashlib
import importlib.util
import inspect
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent
OOD_LABEL = 10  # the label, and the index of the logit, that means "unknown"


def profile():
    """Return the run's profile, ``"full"`` (the default) or ``"demo"``, from ``OSR_PROFILE``.

    Raises
    ------
    ValueError
        If ``OSR_PROFILE`` holds anything else.
    """
    value = os.environ.get("OSR_PROFILE") or "full"
    if value not in ("full", "demo"):
        raise ValueError(f"OSR_PROFILE={value!r}: use 'full' (real data) or 'demo' (no download)")
    return value


def retraining():
    """Return True when ``OSR_RETRAIN=1`` asks for every model to be trained from scratch."""
    return os.environ.get("OSR_RETRAIN") == "1"


def seeds():
    """Return the seeds to evaluate: 0 (its weights ship), and those in ``SEEDS`` on a retrain."""
    if not retraining():
        return [0]
    text = os.environ.get("SEEDS") or "0"
    try:
        return sorted({0} | {int(seed) for seed in text.split(",")})
    except ValueError as error:
        raise ValueError(f"SEEDS={text!r}: give whole numbers, such as SEEDS=0,1,2") from error


def output_dir():
    """Return the folder that receives figures/ and report/results/ (``OSR_OUTPUT`` moves it)."""
    default = "." if profile() == "full" else ".demo"
    return (ROOT / (os.environ.get("OSR_OUTPUT") or default)).resolve()


# --- data -----------------------------------------------------------------------------------------

CORRUPTIONS = (
    "brightness", "canny_edges", "dotted_line", "fog", "glass_blur", "impulse_noise",
    "motion_blur", "rotate", "scale", "shear", "shot_noise", "spatter", "stripe", "translate",
    "zigzag",
)  # fmt: skip
_BUNDLED = ("uci_digits", "letters", "symbols")  # made from the dependencies, in every profile
_NAMES = (
    "mnist", "fashionmnist", "kmnist", "cifar10", "cifar100", "svhn", "tinyimagenet",
    *(f"mnist_c/{corruption}" for corruption in ("identity", *CORRUPTIONS)),
    *_BUNDLED,
)  # fmt: skip
_CLASSES = {"cifar100": 100, "tinyimagenet": 200}  # 10 everywhere else


class ImageSet(NamedTuple):
    """Decoded images of one split.

    Attributes
    ----------
    images : uint8 array, (N, H, W) grey or (N, H, W, 3) RGB
    labels : int64 array, (N,)
    name : str
        As given to `load_images`; starts with ``"demo:"`` for a stand-in.
    note : str
        Says where the images differ from the official data; "" where they do not.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str
    note: str = ""


class DatasetNotFoundError(FileNotFoundError):
    """A data set is neither cached nor downloadable."""


def data_dir():
    """Return the folder of the decoded data sets: ``OSR_DATA`` (seen from here), or data/."""
    return (ROOT / (os.environ.get("OSR_DATA") or "data")).resolve()


def is_available(name, split):
    """Return whether `load_images` can answer at once, without a download."""
    _check_name(name, split)
    if name in _BUNDLED:
        return True
    if profile() == "demo":
        return name in data_module("sources").DEMO
    return _cache_path(name, split).is_file()


def load_images(name, split):
    """Load one split of a data set, downloading it once where it is not cached.

    Parameters
    ----------
    name : str
        mnist, fashionmnist, kmnist, cifar10, cifar100, svhn, tinyimagenet, mnist_c/<corruption>;
        and three small sets that need no download: uci_digits (handwritten digits of
        scikit-learn), letters and symbols (from matplotlib's fonts; other fonts in each split).
    split : {"train", "test"}

    Returns
    -------
    ImageSet

    Raises
    ------
    ValueError
        For an unknown name or split, or a cache that is damaged or holds something else.
    DatasetNotFoundError
        If the set is not cached and cannot be downloaded.
    """
    _check_name(name, split)
    if name in _BUNDLED:
        images, labels, note = data_module("sources").BUNDLED[name](name, split)
        return ImageSet(images, labels, name, note)
    if profile() == "demo":
        demo = data_module("sources").DEMO
        if name not in demo:
            raise DatasetNotFoundError(
                f"the demo has no stand-in for {name!r}; it has {', '.join(demo)}. "
                "Use OSR_PROFILE=full for the real data"
            )
        images, labels, note = demo[name](name, split)
        return ImageSet(images, labels, f"demo:{name}", note)
    path = _cache_path(name, split)
    if not path.is_file():
        _download(name, split)
    return _read_cache(path, name)


def checksum(array):
    """Return the SHA-256 of an array's dtype, shape and bytes: 12 hexadecimal digits."""
    array = np.ascontiguousarray(array)
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()[:12]


def to_model_input(images, device="cpu"):
    """Turn decoded images into model input, the same way for every data set.

    Grey = .299 R + .587 G + .114 B (ITU-R BT.601), bilinear resize with antialias, clip to [0, 1].

    Parameters
    ----------
    images : uint8 array, (N, H, W) or (N, H, W, 3)
    device : str or torch.device

    Returns
    -------
    float32 tensor, (N, 1, 28, 28) in [0, 1]

    Raises
    ------
    ValueError
        If the dtype or the shape is another one.
    """
    images = np.asarray(images)
    grey = images.ndim == 3 and images.shape[2] != 3  # (H, W, 3) is one picture, not H of them
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
        raise ValueError(
            f"expected uint8 images of shape (N, H, W) or (N, H, W, 3), found {images.dtype} "
            f"{images.shape}; scale to 0..255, put the colour channel last, give one picture as "
            "picture[None]"
        )
    out = torch.empty(len(images), 1, 28, 28, device=device)
    for start in range(0, len(images), 4096):  # bounds the memory of the float copies
        x = torch.tensor(images[start : start + 4096], device=device).float() / 255
        x = x[:, None] if grey else (x @ x.new_tensor([0.299, 0.587, 0.114]))[:, None]
        if x.shape[2:] != (28, 28):
            x = F.interpolate(x, (28, 28), mode="bilinear", antialias=True, align_corners=False)
        out[start : start + 4096] = x.clamp(0, 1)
    return out


def load_pictures(folder):
    """Load a folder of pictures, of any size, colour mode and format, as model input.

    Parameters
    ----------
    folder : str or Path
        What is transparent in a picture becomes black.

    Returns
    -------
    images : float32 tensor, (N, 1, 28, 28) in [0, 1]
        Prepared as by `to_model_input`; a picture that is not square is squeezed into one.
    names : list of str
        The files, in alphabetical order. Those that cannot be read are printed and left out.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If no file in it is a readable picture.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the one that holds the pictures")
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    images, names, broken = [], [], []
    for path in progress(paths, folder.name):
        try:
            with Image.open(path) as picture:
                picture = ImageOps.exif_transpose(picture)  # as the camera was held
                if picture.mode == "F":
                    raise ValueError("real numbers: save it with 8 or 16 bits")
                if picture.mode.startswith("I"):  # 16 bits
                    picture = picture.point(lambda value: value / 256).convert("L")
                picture = picture.convert("RGBA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"{path.name} ({error})")
            continue
        black = Image.new("RGBA", picture.size, "black")
        rgb = np.asarray(Image.alpha_composite(black, picture).convert("RGB"))
        images.append(to_model_input(rgb[None]))
        names.append(path.name)
    if broken:
        print(f"{folder}: {len(broken)} of {len(paths)} files are no pictures: {', '.join(broken)}")
    if not images:
        raise ValueError(
            f"no readable picture in {folder}: put files such as .png or .jpg there (not in "
            "folders below it)"
        )
    return torch.cat(images), names


def digit_split(labels, digits=(8, 4)):
    """Split a labelled set into single digits and the rest (the six sets of system C).

    Parameters
    ----------
    labels : int array, (N,)
    digits : sequence of int
        The digits that get a set of their own.

    Returns
    -------
    dict of str to int64 array
        Ascending indices: one entry a digit ("8", "4"), and "rest".
    """
    labels = np.asarray(labels)
    parts = {str(digit): np.flatnonzero(labels == digit) for digit in digits}
    parts["rest"] = np.flatnonzero(~np.isin(labels, digits))
    return parts


def sample_split(n, sizes, seed):
    """Draw disjoint random subsets of ``range(n)``.

    Parameters
    ----------
    n : int
    sizes : sequence of int
    seed : int

    Returns
    -------
    list of int64 array
        One array of distinct indices a size, in random order.

    Raises
    ------
    ValueError
        If more than `n` indices are asked for.
    """
    if sum(sizes) > n:
        raise ValueError(f"asked for {sum(sizes)} of {n} images; ask for fewer")
    order = np.random.default_rng(seed).permutation(n)
    return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])


def augment(images, generator, degrees=15.0, translate=0.1, scale=0.0, shear=0.0):
    """Rotate, shift, scale and shear every image of a batch by its own amount, in one call.

    Parameters
    ----------
    images : float tensor, (N, C, S, S)
        Black (0) is the background that fills in.
    generator : torch.Generator
        On the CPU, so that one seed draws the same numbers on every device.
    degrees : float
        Largest rotation either way.
    translate : float
        Largest shift either way, as a share of the side.
    scale : float
        Each side is divided by a factor of its own between exp(-scale) and exp(scale).
    shear : float
        Largest horizontal shear either way, as a share of the height.

    Returns
    -------
    float tensor, (N, C, S, S)
    """
    n = len(images)
    draw = torch.rand(3, n, generator=generator).to(images.device) * 2 - 1
    angle = draw[0] * math.radians(degrees)
    cos, sin = angle.cos(), angle.sin()
    shift = draw[1:] * 2 * translate  # the grid runs from -1 to 1
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).view(n, 2, 3)
    if scale or shear:
        draw = torch.rand(3, n, generator=generator).to(images.device) * 2 - 1
        wide, high = (draw[:2] * scale).exp()
        stretch = torch.stack([wide, draw[2] * shear, torch.zeros_like(wide), high], 1)
        theta = torch.cat([theta[:, :, :2] @ stretch.view(n, 2, 2), theta[:, :, 2:]], 2)
    return warp(images, theta)


def warp(images, theta):
    """Resample each image on its own affine grid, bilinearly; black (0) fills in.

    Parameters
    ----------
    images : float tensor, (N, C, S, S)
    theta : float tensor, (N, 2, 3)
        Maps the output's coordinates (x, y, 1), from -1 to 1, to the input's, as for
        ``torch.nn.functional.affine_grid``, which is slower on small images.

    Returns
    -------
    float tensor, (N, C, S, S)
    """
    side = images.shape[-1]
    line = (2 * torch.arange(side, device=images.device) + 1) / side - 1
    points = torch.stack(
        [line.repeat(side), line.repeat_interleave(side), torch.ones_like(line).repeat(side)]
    )
    grid = (theta.reshape(-1, 3) @ points).view(-1, 2, side, side).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


class CombinedDataset(Dataset):
    """Known images followed by OOD images, as in the course's ``project_utils``.

    Parameters
    ----------
    mnist, ood : map-style dataset of (image, label)
        The labels of `ood` are replaced by 10.
    transform_mnist, transform_ood : callable, optional
        Applied to the image on access.
    """

    def __init__(self, mnist, ood, transform_mnist=None, transform_ood=None):
        self.mnist, self.ood = mnist, ood
        self.transform_mnist, self.transform_ood = transform_mnist, transform_ood

    def __len__(self):
        return len(self.mnist) + len(self.ood)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} in a data set of {len(self)}")
        index %= len(self)
        if index < len(self.mnist):
            image, label = self.mnist[index]
            transform = self.transform_mnist
        else:
            image, label = self.ood[index - len(self.mnist)][0], OOD_LABEL
            transform = self.transform_ood
        return (transform(image) if transform else image), int(label)


def _check_name(name, split):
    if name not in _NAMES:
        close = difflib.get_close_matches(str(name).lower(), _NAMES, 1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        raise ValueError(f"unknown data set {name!r}; {hint} {', '.join(_NAMES)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r} of {name!r}; use 'train' or 'test'")


def _cache_path(name, split):
    return data_dir() / f"{name}-{split}.npz"


def _read_cache(path, name):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        images, labels = arrays["images"], arrays["labels"]
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        raise ValueError(f"{path} is damaged or no image cache ({error!r}); {_MEND}") from error
    classes = _CLASSES.get(name, 10)
    if images.dtype != np.uint8 or images.shape[3:] not in ((), (3,)) or images.ndim < 3:
        problem = f"images are {images.dtype} {images.shape}, not uint8 (N, H, W) or (N, H, W, 3)"
    elif labels.dtype != np.int64 or labels.shape != images.shape[:1] or not len(labels):
        problem = f"labels are {labels.dtype} {labels.shape} for {len(images)} images"
    elif labels.min() < 0 or labels.max() >= classes:
        problem = f"labels run from {labels.min()} to {labels.max()}, not within 0..{classes - 1}"
    else:
        return ImageSet(images, labels, name, str(arrays.get("note", "")))
    raise ValueError(f"{path} is no cache of {name}: {problem}; {_MEND}")


_MEND = "delete it and run `make data`, or point OSR_DATA at a good copy"


def _download(name, split):
    """Build the decoded cache of a set from its official source."""
    path = _cache_path(name, split)
    problem = None
    if name == "mnist_c/identity":
        problem = "it is MNIST-test itself"
    elif name.startswith("mnist_c/") and split == "train":
        problem = "MNIST-C is used as a test set only"
    elif not data_module("sources").online(name):
        problem = "the network does not answer"
    if problem is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                parts = data_module("sources").official(name, split, folder)
                for found, part, images, labels in parts:
                    if _cache_path(found, part).is_file():
                        continue  # a download brings more than was asked for; what is there stays
                    with atomic_path(_cache_path(found, part)) as temporary:
                        with open(temporary, "wb") as file:
                            np.savez_compressed(file, images=images, labels=labels)
        except (OSError, RuntimeError) as error:  # what torchvision raises for a failed download
            problem = f"the download failed ({error!r})"
        else:
            return
    raise DatasetNotFoundError(
        f"no {path.name} in {path.parent}, and {problem}. Three ways out: run `make data` with a "
        "network; set OSR_DATA to a folder that has the file; or, small and without a download, "
        "`make demo` (a notebook alone: OSR_PROFILE=demo)"
    )


@cache
def data_module(name):
    """Import data/<name>.py by its path: "data" is too common a name for an import."""
    spec = importlib.util.spec_from_file_location(f"osr_{name}", ROOT / f"data/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- contract -------------------------------------------------------------------------------------


@torch.inference_mode()
def eval_model(model, data_loader, device):
    """Return a model's accuracy on known digits, on unknowns, and on all of them together.

    Parameters
    ----------
    model : callable
        ``model(images)`` returns (N, 11) scores whose argmax is the verdict, or (N,) integer
        verdicts in 0..10; 10 means unknown. Called exactly once a batch. A module is moved to
        `device`, put into eval mode, and given its own mode back; any other callable is called
        as it is.
    data_loader : iterable of (images, labels)
        Labels 0..9 are known digits, 10 is unknown.
    device : str or torch.device

    Returns
    -------
    (acc_mnist, acc_ood, acc_total) : tuple of float
        Fractions in [0, 1]; nan for a side that has no samples.

    Raises
    ------
    ValueError
        If outputs or labels break the contract, or the loader is empty.
    Exception
        What the model itself raises, with a note that says what it was given.
    """
    if isinstance(model, type):
        raise ValueError(f"{model.__name__} is a class: give a model, {model.__name__}()")
    if not callable(model):
        raise ValueError(f"the model is a {type(model).__name__}: give one that can be called")
    with evaluation_mode(model):
        if isinstance(model, nn.Module):
            model.to(device)
        hits, counts = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
        for batch in data_loader:
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise ValueError(f"the loader gives a {type(batch).__name__}, not (images, labels)")
            images, labels = _check_images(batch[0]).to(device), _check_labels(batch[1])
            if len(images) != len(labels):
                raise ValueError(f"the loader gives {len(images)} images with {len(labels)} labels")
            try:
                output = model(images)
            except Exception as error:
                error.add_note(
                    f"[the model was given {images.dtype} images of shape {tuple(images.shape)}]"
                )
                raise
            hit = _verdicts(output, len(labels)).cpu() == labels
            unknown = labels == OOD_LABEL
            hits += torch.stack([(hit & ~unknown).sum(), (hit & unknown).sum()])
            counts += torch.stack([(~unknown).sum(), unknown.sum()])
    if counts.sum() == 0:
        raise ValueError("the data loader is empty: give it at least one batch")
    hits, counts = hits.tolist(), counts.tolist()
    known, ood = (h / n if n else math.nan for h, n in zip(hits, counts, strict=True))
    return known, ood, sum(hits) / sum(counts)


def ood_score(logits):
    """Return the garbage margin z[10] - max z[0..9] of (N, 11) logits, (N,): higher = more OOD."""
    return logits[:, OOD_LABEL] - logits[:, :OOD_LABEL].max(1).values


def uncertainty_estimate(logits):
    """Return the uncertainty estimate UE of (N, K) logits, (N,) in [0, 1].

    With p the softmax, u = 1 / K and y the one-hot vector of the largest p, UE = 1 - |p - u|^2 /
    |y - u|^2: 0 where one output has all the probability, 1 where all are equal (Suhail et al.
    2025, arXiv 2505.23448).
    """
    k = logits.shape[1]
    distance = (logits.softmax(1) - 1 / k).square().sum(1)
    return (1 - distance / (1 - 1 / k)).clamp(0, 1)  # rounding errs to both sides


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
    from safetensors.torch import load_model as load_weights  # noqa: PLC0415

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
            load_weights(model, weights)
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
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import osr_utils as osr; "
    arguments = [str(value) for value in (path, place / "batches.npz", answer, device)]
    command = [sys.executable, "-c", code + "osr._judge(*sys.argv[1:])", *arguments]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    accuracies, problem = (math.nan,) * 3, ""
    try:
        if path.is_file():
            done = subprocess.run(command, timeout=seconds, **quiet)
            problem = f"it ended the process that judged it (exit status {done.returncode})"
        else:
            _judge(*arguments)  # says what is missing; nothing of it runs
    except subprocess.TimeoutExpired:
        problem = f"no answer within {seconds} s: stopped"
    if answer.is_file():
        accuracies, problem = json.loads(answer.read_text(encoding="utf-8"))
    row = dict(zip(("acc_mnist", "acc_ood", "acc_total"), accuracies, strict=True))
    return {"submission": path.stem, **row, "problem": problem}


def _judge(path, batches, answer, device):
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


def judge_pictures(model, pictures, output, device="cpu"):
    """Say of each picture which digit it is, or that it is unknown; write a table and a sheet.

    Parameters
    ----------
    model : callable
        (N, 1, 28, 28) in [0, 1] -> (N, 11) scores, such as `load_model` gives.
    pictures : str or Path, or uint8 array (N, H, W) or (N, H, W, 3)
        A folder, see `load_pictures`, or decoded pictures, see `to_model_input`. White on black, as
        MNIST has it.
    output : str or Path
        The folder that receives ``scores.csv`` and ``contact_sheet.png`` (of more than 240 pictures
        an even selection); not the folder of the pictures.
    device : str or torch.device

    Returns
    -------
    list of dict
        One a picture, the most digit-like first: "picture" (file name or index), "verdict" ("0"
        to "9" or "unknown"), "ood_score" (the garbage margin: unknown above 0) and "digit" (the
        likeliest one, whatever the verdict).

    Raises
    ------
    ValueError
        If there is no picture, the output would lie among the pictures, or the model does not
        return (N, 11) finite scores.
    """
    if isinstance(pictures, str | Path):
        if Path(output).resolve() == Path(pictures).resolve():
            raise ValueError(f"{output} holds the pictures: give the results a folder of their own")
        images, names = load_pictures(pictures)
    else:
        images = to_model_input(pictures)
        names = [str(i) for i in range(len(images))]
    if not len(images):
        raise ValueError("there are no pictures: give at least one")
    if isinstance(model, nn.Module):
        model.to(device)
    with evaluation_mode(model):
        scores = predict(model, images.to(device))
    verdicts = _verdicts(scores, len(images))
    if scores.ndim != 2 or not scores.isfinite().all():
        raise ValueError("the model must return (N, 11) finite scores, no verdicts and no infinity")
    margins, digits = ood_score(scores), scores[:, :OOD_LABEL].argmax(1)
    order = margins.argsort().tolist()
    rows = [
        {
            "picture": names[i],
            "verdict": "unknown" if verdicts[i] == OOD_LABEL else str(int(verdicts[i])),
            "ood_score": round(float(margins[i]), 4),
            "digit": int(digits[i]),
        }
        for i in order
    ]
    with atomic_path(Path(output) / "scores.csv") as temporary:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    _contact_sheet(images[order], rows, Path(output) / "contact_sheet.png")
    return rows


def _contact_sheet(images, rows, path, most=240, across=16):
    """Draw pictures with their verdict and score; of more than `most` an even selection."""
    from matplotlib.figure import Figure  # noqa: PLC0415
    from torchvision.utils import make_grid  # noqa: PLC0415

    pick = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    tiles = F.pad(images[pick].cpu(), (1, 1, 1, 1), value=0.5)  # a frame
    tiles = F.pad(tiles, (1, 1, 10, 0), value=1)  # white, with room for a line above
    sheet = make_grid(tiles, across, padding=0, pad_value=1).permute(1, 2, 0).numpy()
    height, width = tiles.shape[2:]
    inches = PAGE_WIDTH / (across * width)  # of a pixel
    size = inches * sheet.shape[1], inches * len(sheet)
    fig = Figure(size, dpi=150, layout="none")
    axis = fig.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.imshow(sheet)
    for place, i in enumerate(pick):
        line, column = divmod(place, across)
        unknown = rows[i]["verdict"] == "unknown"
        said = "unk." if unknown else rows[i]["verdict"]
        score = rows[i]["ood_score"]
        text = f"{said} {score:.1f}" if abs(score) < 100 else f"{said} {score:.0f}"
        axis.text((column + 0.5) * width, line * height + 9, text, ha="center", fontsize=6,
                  color=COLORS["fashionmnist" if unknown else "mnist"])  # fmt: skip
    with atomic_path(path) as temporary:
        fig.savefig(temporary, format="png", metadata={"Software": None})


@contextmanager
def evaluation_mode(model):
    """Put a module into eval mode, and give every submodule its own mode back afterwards."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_images(images):
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"images are a {type(images).__name__}, not a tensor: give them through "
            "`to_model_input`, or torchvision's ToTensor"
        )
    return images


def _check_labels(labels):
    labels = torch.as_tensor(labels).cpu()
    if labels.ndim == 0:
        raise ValueError("a label, not a batch of them: wrap the data set in a DataLoader")
    integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not integer:
        raise ValueError(
            f"expected (N,) integer labels, found {labels.dtype} {tuple(labels.shape)}; use 0..9 "
            "for digits, 10 for unknown"
        )
    if len(labels) and (labels.min() < 0 or labels.max() > OOD_LABEL):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}: use 0..9 for digits, 10 for unknown"
        )
    return labels.long()


def _verdicts(output, n):
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"the model returned a {type(output).__name__}: return one tensor, (N, 11) scores or "
            "(N,) verdicts"
        )
    numeric = not (output.is_complex() or output.dtype == torch.bool)
    if output.shape == (n,) and numeric and not output.is_floating_point():
        if n and (output.min() < 0 or output.max() > OOD_LABEL):
            raise ValueError(
                f"verdicts run from {output.min()} to {output.max()}: use 0..9 for digits, 10 for "
                "unknown"
            )
        return output
    if output.shape != (n, OOD_LABEL + 1) or not numeric:
        hint = "; add an eleventh score for 'unknown'" if output.shape == (n, OOD_LABEL) else ""
        if output.shape == (n,):
            hint = "; end with .long() if these are verdicts"
        raise ValueError(
            f"the model returned {output.dtype} {tuple(output.shape)} for {n} images: return "
            f"({n}, 11) scores or ({n},) integer verdicts{hint}"
        )
    if output.isnan().any():
        raise ValueError(
            f"{int(output.isnan().any(1).sum())} of {n} score rows hold NaN: check the model for "
            "divisions by zero, logarithms of zero, or weights that diverged"
        )
    return output.argmax(1)


# --- models (of the shipped weights) --------------------------------------------------------------


class MultitaskAutoencoder(nn.Module):
    """System A: one encoder, a decoder and a classifier; the error is the eleventh logit.

    ``forward`` takes (N, 1, 28, 28) in [0, 1] and returns (N, 11): ten class logits z and
    alpha * e, where e is the mean squared reconstruction error over the 784 pixels, both images
    in [-1, 1]. So x is unknown iff alpha > max z / e.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.to_latent = nn.Linear(64 * 7 * 7, 128)
        self.from_latent = nn.Linear(128, 64 * 7 * 7)
        self.deconv1 = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.deconv2 = nn.ConvTranspose2d(32, 1, 2, stride=2)
        self.classifier = nn.Linear(128, 10)
        self.register_buffer("alpha", torch.ones(()))

    def encode(self, x):
        """Return the (N, 128) latent vectors."""
        x = x * 2 - 1  # [0, 1] => [-1, 1]
        # ReLU after the pooling gives the same result as before it, on a quarter of the pixels.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # 28x28 => 14x14
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # 14x14 => 7x7
        return self.to_latent(x.flatten(1))

    def decode(self, latent):
        """Return (N, 1, 28, 28) reconstructions in [-1, 1]."""
        x = self.from_latent(latent).view(-1, 64, 7, 7)
        x = F.relu(self.deconv1(x))  # 7x7 => 14x14
        return torch.tanh(self.deconv2(x))  # 14x14 => 28x28

    def reconstruct(self, x):
        """Return (N, 1, 28, 28) reconstructions in [0, 1], for pictures."""
        return (self.decode(self.encode(x)) + 1) / 2

    def logits_and_error(self, x):
        """Return the (N, 10) class logits and the (N,) reconstruction errors."""
        latent = self.encode(x)
        error = (self.decode(latent) - (x * 2 - 1)).square().flatten(1).mean(1)
        return self.classifier(latent), error

    def forward(self, x):
        _warn_of_range(x)
        logits, error = self.logits_and_error(x)
        return torch.cat([logits, self.alpha * error[:, None]], 1)


def stage(before, width, kernel, norm=nn.BatchNorm2d):
    """Two convolutions that halve the side, each with a normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, width, kernel, 2, kernel // 2, bias=False),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(),
    )


class OpenSetDetector(nn.Module):
    """System A's detector: a classifier whose eleventh logit is a distance between features.

    ``forward`` takes (N, 1, 28, 28) in [0, 1] and returns (N, 11): the evidence z for each digit,
    which is its logit plus its log-odds against the outliers of the training, and alpha * e, where
    e is the squared Mahalanobis distance (Lee et al. 2018), divided by the number of features, of
    the pooled features of all stages to their mean over the training digits of the most likely
    class. So x is unknown iff alpha > max z / e.
    """

    WIDTHS = (32, 64, 96)  # channels of the stages

    def __init__(self):
        super().__init__()
        first, second, third = self.WIDTHS
        self.stage1 = stage(1, first, 5)  # 28x28 => 14x14
        self.stage2 = stage(first, second, 3)  # 14x14 => 7x7
        self.stage3 = stage(second, third, 3)  # 7x7 => 4x4
        self.head = nn.Linear(third, 11)  # ten digits, and the outliers of the training
        self.register_buffer("mean", torch.zeros(10, sum(self.WIDTHS)))
        self.register_buffer("whiten", torch.eye(sum(self.WIDTHS)))
        self.register_buffer("alpha", torch.ones(()))

    def features(self, x):
        """Return the (N, 192) features: the mean of each channel of each stage."""
        one = self.stage1(x * 2 - 1)
        two = self.stage2(one)
        return torch.cat([stage.mean((2, 3)) for stage in (one, two, self.stage3(two))], 1)

    def classify(self, features):
        """Return the (N, 11) logits that training works on: ten digits and its outliers."""
        return self.head(features[:, -self.WIDTHS[-1] :])

    @torch.inference_mode()
    def fit_distance(self, images, labels):
        """Set the class means and the shared covariance of the features, from known images."""
        labels = labels.cpu()
        with evaluation_mode(self):
            features = predict(self.features, images).double()
        mean = torch.stack([features[labels == digit].mean(0) for digit in range(10)])
        within = features - mean[labels]
        covariance = within.T @ within / len(within)
        covariance += torch.diag(1e-3 * covariance.diagonal() + 1e-8)  # dead channels
        self.mean.copy_(mean)
        self.whiten.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance)).T)

    def distance(self, features, digit):
        """Return the squared distances (N,) of features to the mean of a digit (N,) each."""
        return ((features - self.mean[digit]) @ self.whiten).square().mean(1)

    def logits_and_error(self, x):
        """Return the (N, 10) evidence for each digit and the (N,) feature distances."""
        features = self.features(x)
        logits = self.classify(features)
        evidence = 2 * logits[:, :10] - logits[:, 10:]
        return evidence, self.distance(features, evidence.argmax(1))

    def forward(self, x):
        _warn_of_range(x)
        logits, error = self.logits_and_error(x)
        return torch.cat([logits, self.alpha * error[:, None]], 1)


class GarbageClassifier(nn.Module):
    """System D: a classifier whose eleventh output has been trained as a class, on garbage.

    ``forward`` takes (N, 1, 28, 28) in [0, 1] and returns (N, 11) logits. The buffers `history`
    (a line per epoch), `gallery` (ten pictures) and `gallery_uncertainty` are what the training
    leaves behind, for the curves of notebook 06.
    """

    EPOCHWISE = ("history", "gallery", "gallery_uncertainty")  # buffers with a line per epoch

    def __init__(self, epochs=10, channels=1, widths=(16, 32, 64)):
        super().__init__()
        self.register_buffer("history", torch.zeros(epochs, 9))
        self.register_buffer("gallery", torch.zeros(epochs, 10, 28, 28, dtype=torch.uint8))
        self.register_buffer("gallery_uncertainty", torch.zeros(epochs, 10))
        first, second, third = widths  # channels of the stages
        self.stages = nn.Sequential(  # 28x28 => 14x14 => 7x7 => 4x4
            stage(channels, first, 5), stage(first, second, 3), stage(second, third, 3)
        )
        self.head = nn.Linear(third, 11)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in self.EPOCHWISE:  # as many epochs as were stored
            setattr(self, name, torch.zeros_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def features(self, x):
        """Return the (N, 64) features, or as wide as the last stage: the mean of each channel."""
        return self.stages(x * 2 - 1).mean((2, 3))

    def stage_means(self, x):
        """Return (N, 112), or wider: the mean of each channel of every stage, for distances."""
        x, means = x * 2 - 1, []
        for part in self.stages:
            x = part(x)
            means.append(x.mean((2, 3)))
        return torch.cat(means, 1)

    def forward(self, x):
        _warn_of_range(x)
        return self.head(self.features(x))


class DigitClassifier(nn.Module):
    """System B: a classifier of ten digits, (N, 1, 28, 28) in [0, 1] -> (N, 10) logits."""

    WIDTHS = (24, 48, 96)  # channels of the stages

    def __init__(self, norm=None):
        super().__init__()
        norm = norm or partial(nn.GroupNorm, 1)  # over the whole picture, all channels together
        first, second, third = self.WIDTHS
        self.features = nn.Sequential(  # 28x28 => 14x14 => 7x7 => 4x4
            *stage(1, first, 5, norm),
            *stage(first, second, 3, norm),
            *stage(second, third, 3, norm),
        )
        self.head = nn.Linear(16 * third, 10)

    def channel_means(self, x):
        """Return (N, 96): the mean of each channel of the last stage, for feature distances."""
        return self.features(x).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def _warn_of_range(x):
    """Warn of images that were scaled otherwise: nothing else would show it."""
    if x.numel() and (x.amin() < -0.01 or x.amax() > 1.01):
        warnings.warn(
            f"images run from {x.amin():.2f} to {x.amax():.2f}, but the model was trained on "
            "[0, 1]: leave out Normalize, divide bytes by 255",
            stacklevel=3,
        )


SHIPPED = {
    "multitask_autoencoder": MultitaskAutoencoder,
    "plain_cnn": OpenSetDetector,  # trained without outliers
    "osr_detector_9k": OpenSetDetector,  # trained on 9,000 digits
    "osr_detector": OpenSetDetector,
    "network_inversion": partial(GarbageClassifier, widths=(24, 48, 96)),
}


# --- training -------------------------------------------------------------------------------------


def seed_everything(seed):
    """Seed Python, NumPy and torch; make float32 exact (TF32 off) and CUDA deterministic."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def pick_device():
    """Return the best device here: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def progress(iterable, description, total=None):
    """Wrap an iterable in a progress bar that vanishes at its end; ``OSR_PROGRESS=0``: no bar."""
    hidden = os.environ.get("OSR_PROGRESS") == "0"
    return tqdm(iterable, description, total, leave=False, disable=hidden)


def train(
    model, images, labels, loss, *, epochs, seed, batch_size=512, lr=1e-3, augmentation=None,
    one_cycle=False, device="cpu",
):  # fmt: skip
    """Train a model with Adam, the whole data set on the device.

    Parameters
    ----------
    model : nn.Module
        Trained in place; ends in eval mode, its parameters rounded to the half precision in
        which `fit_or_load` stores them.
    images : float tensor, (N, 1, 28, 28) in [0, 1]
    labels : int tensor, (N,)
    loss : callable
        ``loss(model, x, y)`` -> scalar tensor.
    epochs, batch_size : int
    lr : float
        Adam's learning rate; the peak of the schedule with `one_cycle`.
    seed : int
        Draws the order of the images and the augmentation.
    augmentation : callable, optional
        ``augmentation(x, generator)`` -> x, for a batch.
    one_cycle : bool
        Follow the one-cycle schedule (Smith & Topin 2019) instead of a constant rate.
    device : str or torch.device

    Returns
    -------
    list of float
        Mean training loss of each epoch.

    Raises
    ------
    FloatingPointError
        If the loss is no longer finite.
    """
    device = torch.device(device)
    images, labels = images.to(device), labels.to(device)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=device.type != "mps")
    steps = math.ceil(len(images) / batch_size)
    schedule = None
    if one_cycle:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps)
    generator = torch.Generator().manual_seed(seed)
    history = []
    for epoch in progress(range(epochs), type(model).__name__):
        total = torch.zeros((), device=device)
        for index in torch.randperm(len(images), generator=generator).to(device).split(batch_size):
            x, y = images[index], labels[index]
            if augmentation:
                x = augmentation(x, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=_has_bf16(device)):
                value = loss(model, x, y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += value.detach() * len(index)
        history.append(float(total) / len(images))
        if not math.isfinite(history[-1]):
            raise FloatingPointError(f"the loss is {history[-1]} in epoch {epoch}; lower lr ({lr})")
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return history


def _has_bf16(device):
    """Return whether the processor has bfloat16 instructions (emulated ones cost time)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def run_sweep(function, configs, arrays):
    """Call ``function(config, **arrays)`` for every configuration, one process a core.

    Each result is stored as soon as it is there, so a sweep that was killed goes on where it
    stopped. With a Dask scheduler's address in ``DASK_SCHEDULER_ADDRESS`` the configurations run
    on that cluster, whose workers must be able to import `osr_utils`.

    Parameters
    ----------
    function : callable
        Returns something JSON-able. May be defined in a notebook; a change of its own source, a
        configuration or an array computes a result anew, a change of what it calls does not.
    configs : list of dict
        JSON-able; each holds everything that shapes its result.
    arrays : dict of str to array
        Shared by all calls; memory-mapped, not copied, on one machine.

    Returns
    -------
    list of dict
        One a configuration, in order: "config", "result" (None where it failed) and "problem"
        ("" where there is none; a failure is also printed, is not stored, and does not stop the
        others).
    """
    from joblib import Parallel, delayed, parallel_config  # noqa: PLC0415

    sums = {key: checksum(value) for key, value in arrays.items()}
    shared = [function.__name__, inspect.getsource(function), sums]
    folder = results_dir() / ".local/sweeps" / function.__name__
    configs = json.loads(json.dumps(configs))
    paths = [folder / f"{_digest([*shared, config])}.json" for config in configs]
    rows = [_read_sweep_row(path, config) for path, config in zip(paths, configs, strict=True)]
    missing = [i for i, row in enumerate(rows) if row is None]
    calls = (delayed(_call_for_sweep)(i, function, configs[i], arrays) for i in missing)
    with ExitStack() as stack:
        if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
            from dask.distributed import Client  # noqa: PLC0415

            stack.enter_context(Client(address, set_as_default=True))
            stack.enter_context(parallel_config(backend="dask"))
        found = Parallel(n_jobs=-1, return_as="generator_unordered")(calls)
        for i, result, problem in progress(found, function.__name__, len(missing)):
            rows[i] = {"config": configs[i], "result": result, "problem": problem}
            if problem:
                print(f"{function.__name__} failed for {configs[i]}: {problem}")
                continue
            text = json.dumps({**rows[i], "sum": _digest([configs[i], result])}, allow_nan=False)
            with atomic_path(paths[i]) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return rows


def _call_for_sweep(index, function, config, arrays):
    """Return (index, result, problem), in a process of its own."""
    try:
        return index, function(config, **arrays), ""
    except Exception as error:
        return index, None, f"{type(error).__name__}: {error}"


def _read_sweep_row(path, config):
    """Return a stored row of a sweep, or None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row.pop("sum") == _digest([config, row["result"]]) and row["config"] == config:
            return row
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    print(f"{path.name} is damaged: computing {config} again")
    return None


def _digest(value):
    """Return the SHA-256 of a JSON-able value: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


# --- scores and metrics ---------------------------------------------------------------------------


@torch.inference_mode()
def predict(function, images, batch_size=250):
    """Apply a function to a tensor of images in batches.

    Parameters
    ----------
    function : callable
        A model, or one of its methods: x -> tensor, or a tuple of tensors.
    images : float tensor, (N, 1, 28, 28)
    batch_size : int

    Returns
    -------
    tensor or tuple of tensor
        The results of all batches, on the CPU.
    """
    parts = [function(x) for x in images.split(batch_size)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return torch.cat(parts).cpu()


def ood_metrics(id_scores, ood_scores):
    """Compare the OOD scores of known and unknown samples; exact with ties.

    Parameters
    ----------
    id_scores, ood_scores : array or tensor of finite numbers
        Higher = more OOD.

    Returns
    -------
    dict of str to float
        ``auroc``; ``aupr_in`` and ``aupr_out``, the average precision with the known (score
        negated) or the unknown as the positive class, summed as in scikit-learn's
        ``average_precision_score``; ``fpr95``, the share of known samples flagged at the first
        threshold that flags at least 95 % of the unknown ones.

    Raises
    ------
    ValueError
        If a side is empty or not finite.
    """
    sides = []
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if isinstance(scores, torch.Tensor):
            scores = scores.detach().cpu().double().numpy()
        scores = np.asarray(scores, dtype=np.float64).ravel()
        if not scores.size or not np.isfinite(scores).all():
            what = "is empty" if not scores.size else "holds NaN or infinite values"
            raise ValueError(f"{name} {what}: give at least one finite score a side")
        sides.append(np.sort(scores)[::-1])
    known, unknown = sides
    # After merging, ends marks the last sample of each group of equal scores, highest first.
    scores = np.concatenate(sides)
    order = np.argsort(-scores, kind="stable")  # two sorted runs: a merge
    ends = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    hits = np.cumsum(order >= known.size)[ends]  # unknown samples flagged at each threshold
    alarms = ends + 1 - hits  # known samples flagged
    n_id, n_ood = known.size, unknown.size
    new_hits, new_alarms = np.diff(hits, prepend=0), np.diff(alarms, prepend=0)
    area = np.dot(new_alarms.astype(float), hits - new_hits / 2)
    kept, missed = n_id - alarms + new_alarms, n_ood - hits + new_hits  # from the low end
    return {
        "auroc": float(area / n_id / n_ood),
        "aupr_in": float(np.dot(new_alarms / n_id, kept / (kept + missed))),
        "aupr_out": float(np.dot(new_hits / n_ood, hits / (hits + alarms))),
        "fpr95": float(alarms[np.searchsorted(hits / n_ood, 0.95)] / n_id),
    }


def output_scores(logits):
    """Return OOD scores of (N, 10) or (N, 11) logits, {name: (N,) float64}: higher = more OOD.

    ``msp``, ``max_logit`` and ``energy`` are the field's baselines (Hendrycks & Gimpel 2017; Liu et
    al. 2020), ``ue_k`` is the `uncertainty_estimate`; all four read the ten known classes alone.
    Where there is an eleventh output, ``ue_k1``, ``garbage_probability`` and ``garbage_margin``
    (`ood_score`) read all of them.
    """
    logits = logits.double()
    known = logits[:, :OOD_LABEL]
    scores = {
        "msp": -known.softmax(1).max(1).values,
        "max_logit": -known.max(1).values,
        "energy": -known.logsumexp(1),
        "ue_k": uncertainty_estimate(known),
    }
    if logits.shape[1] > OOD_LABEL:
        scores["ue_k1"] = uncertainty_estimate(logits)
        scores["garbage_probability"] = logits.softmax(1)[:, OOD_LABEL]
        scores["garbage_margin"] = ood_score(logits)
    return scores


def fit_detectors(features, labels, head=None):
    """Fit pytorch-ood's feature detectors, each with ``predict_features`` -> (N,) scores.

    Parameters
    ----------
    features : float32 tensor, (N, D)
        Of training images.
    labels : int tensor, (N,)
    head : nn.Linear, optional
        The classifier's last layer, if it reads the last columns of the features: ViM needs its
        first ten outputs.

    Returns
    -------
    dict of str to detector
        "mahalanobis" (Lee et al. 2018), "rmd" (Ren et al. 2021), "knn" (Sun et al. 2022, k = 50)
        and "vim" (Wang et al. 2022).
    """
    from pytorch_ood.detector import KNN, RMD, Mahalanobis, ViM  # noqa: PLC0415

    detectors = {
        "mahalanobis": Mahalanobis(None),
        "rmd": RMD(None),
        "knn": KNN(None, k=min(50, len(features))),
    }
    if head:
        d = features.shape[1]
        weight = F.pad(head.weight[:OOD_LABEL].detach().cpu(), (d - head.in_features, 0))
        bias = head.bias[:OOD_LABEL].detach().cpu()
        detectors["vim"] = ViM(None, d=d // 2, w=weight, b=bias)
    for detector in detectors.values():
        detector.fit_features(features, labels)
    return detectors


def all_scores(outputs, features, head, known, inputs):
    """Return every score of a network on some sets of images, {set: {score: (N,) tensor}}.

    Parameters
    ----------
    outputs : dict of str to tensor
        The network's (N, 10) or (N, 11) logits of each set.
    features : callable
        Batches of images -> (N, D) features for the detectors.
    head : nn.Linear or None
        See `fit_detectors`.
    known : (tensor, tensor)
        Training images and labels, to fit the detectors to.
    inputs : dict of str to tensor
        Images of each set.
    """
    images, labels = known
    detectors = fit_detectors(predict(features, images), labels, head)
    scores = {}
    for name, x in inputs.items():
        scores[name] = output_scores(outputs[name])
        seen = predict(features, x)
        scores[name] |= {key: found.predict_features(seen) for key, found in detectors.items()}
    return scores


@torch.inference_mode()
def calibrate_alpha_percentile(model, loader, device, percentile):
    """Choose alpha so that a given share of known calibration images stays known.

    An image x is unknown iff alpha > r(x) = max z(x) / max(e(x), 1e-12), with the class logits z
    and the reconstruction error e; so alpha = quantile_{1-p}(r), linearly interpolated.

    Parameters
    ----------
    model : nn.Module
        With ``logits_and_error(x)`` -> (N, 10), (N,); used in eval mode.
    loader : iterable of (images, ...)
        Known images only, without augmentation.
    device : str or torch.device
    percentile : float in [0, 1]
        Share p of the images to keep known.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the loader is empty, p is out of range, or alpha is not finite and positive.
    """
    if not 0 <= percentile <= 1:
        raise ValueError(f"percentile is {percentile}: give the share to keep known, 0..1")
    model.to(device)
    ratios = []
    with evaluation_mode(model):
        for images, *_ in loader:
            logits, error = model.logits_and_error(images.to(device))
            ratios.append((logits.max(1).values / error.clamp_min(1e-12)).cpu().double())
    if not sum(map(len, ratios)):
        raise ValueError("the calibration loader is empty: give it known images")
    alpha = float(np.quantile(torch.cat(ratios).numpy(), 1 - percentile))
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha is {alpha} at percentile {percentile}: the class logits of that share of the "
            "images are not positive. Train longer, or keep a smaller share"
        )
    return alpha


# --- weights, results, figures --------------------------------------------------------------------


def fit_or_load(name, config, train, *, build, data, note=""):
    """Load a model's stored weights, or train it and store them.

    Parameters
    ----------
    name : str
    config : dict
        Everything that shapes the weights, JSON-able, with "seed".
    train : callable
        ``train(model)`` trains in place (and calibrates what the model keeps in buffers).
    build : callable
        ``build()`` -> nn.Module, called right after `seed_everything`.
    data : dict of str to array
        The training and calibration arrays; their checksums enter the hash of the weights.
    note : str
        Of the training set, where it differs from the official data (`ImageSet.note`).

    Returns
    -------
    nn.Module
        On the CPU, in eval mode, as loading from disk gives it; its ``checkpoint`` attribute
        names the file. Weights for a configuration that does not ship are stored in
        data/checkpoints/local/, which git ignores and `load_model` does not read.

    Raises
    ------
    ValueError
        If weights for this configuration exist for other training data (and `note` is empty),
        or a file of weights is damaged or does not fit.
    """
    sums = {key: checksum(value) for key, value in data.items()}
    config = json.loads(json.dumps(config))
    folder, file = checkpoint_dir(), f"{name}-{_digest([config, sums])}.safetensors"
    if (folder / file).is_file():
        return load_weights(build(), folder / file)
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        meta = checkpoint_metadata(path)
        if meta["name"] != name or meta["config"]["seed"] != config["seed"]:
            continue
        if meta["config"] != config:
            if folder == ROOT / "data/checkpoints":
                folder = folder / "local"  # weights of one's own must not pass for shipped ones
        elif note:
            print(f"{name}: shipped weights; this machine's training set differs ({note})")
            return load_weights(build(), path)
        else:
            raise ValueError(
                f"{path.name} was trained on other data: {meta['data']} there, {sums} here. "
                "If you changed a split, say so in the configuration; if not, check the data set "
                "with notebook 01, or retrain with OSR_RETRAIN=1"
            )
    if not (folder / file).is_file():
        print(f"{name}: no stored weights for this configuration; training, seed {config['seed']}")
        seed_everything(config["seed"])
        model = build()
        start = time.perf_counter()
        train(model)
        seconds = round(time.perf_counter() - start, 1)
        _save_weights(model, folder / file, name, config, sums, seconds)
    return load_weights(build(), folder / file)


def load_model(name, device="cpu"):
    """Return a shipped 11-output model, ready to use.

    Parameters
    ----------
    name : str
        One of `list_models`.
    device : str or torch.device

    Returns
    -------
    nn.Module
        In eval mode; (N, 1, 28, 28) in [0, 1] -> (N, 11) finite float32 logits.

    Raises
    ------
    ValueError
        For an unknown name, or weights that are damaged.
    FileNotFoundError
        If the weights are not there.
    """
    if name not in SHIPPED:
        raise ValueError(f"no shipped model {name!r}; there are {', '.join(SHIPPED)}")
    return load_weights(SHIPPED[name](), _shipped_path(name)).to(device)


def list_models():
    """Return {name: {"file", "config", "trained", "metrics"}} of the shipped models.

    "trained" says when, where and for how long; "metrics" are the seed-0 rows that the notebooks
    saved for the model, as {"method | id | ood | metric": value}.
    """
    models = {}
    rows = [row for path in sorted(results_dir().glob("*.json")) for row in read_results(path.stem)]
    for name in SHIPPED:
        path = _shipped_path(name)
        meta = checkpoint_metadata(path)
        metrics = {
            " | ".join(row[key] for key in ("method", "id", "ood", "metric")): row["value"]
            for row in rows
            if row["seed"] == 0 and row["weights"] == path.stem
        }
        models[name] = {"file": path.name, "config": meta["config"], "trained": meta["trained"]}
        models[name]["metrics"] = metrics
    return models


def save_results(notebook, rows, config, data_notes=None):
    """Write a notebook's rows to report/results/<notebook>.json, atomically.

    Rows of the committed file whose seed was not computed this time are kept, if they belong to
    the same configuration.

    Parameters
    ----------
    notebook : str
        Such as "03_alpha_calibration".
    rows : list of dict
        With system, method, id, ood ("" where none), seed, metric, value (a finite number), and
        weights (the checkpoint that gave the value, "" where none).
    config : dict
    data_notes : dict of str to str, optional
        Set name -> note, for the sets that differ from the official data.

    Raises
    ------
    ValueError
        If a row lacks a key, repeats another, or its value is not finite.
    """
    keys = ("system", "method", "id", "ood", "seed", "metric")
    seen = set()
    for row in rows:
        if set(row) != {*keys, "value", "weights"} or not math.isfinite(row["value"]):
            raise ValueError(f"bad row {row}: give {', '.join(keys)}, a finite value and weights")
        identity = tuple(row[key] for key in keys)
        if identity in seen:
            raise ValueError(f"the row {identity} stands twice: give each a method of its own")
        seen.add(identity)
    order = (*keys[:-1], "weights", "metric")  # the same in every file
    rows = [
        {key: row[key] for key in order} | {"value": round(float(row["value"]), 6)} for row in rows
    ]
    path = ROOT / f"report/results/{notebook}.json"
    if profile() == "full" and path.is_file():
        computed = {row["seed"] for row in rows}
        series = {tuple(row[key] for key in keys if key != "seed") for row in rows}
        committed = json.loads(path.read_text(encoding="utf-8"))
        if committed["config"] != json.loads(json.dumps(config)):
            print("rows of other seeds are dropped: they belong to another configuration")
            committed["rows"] = []
        for row in committed["rows"]:
            name = tuple(row[key] for key in keys if key != "seed")
            if row["seed"] not in computed and name in series:
                rows.append(row)
    head = {"profile": profile(), "config": config, "data_notes": data_notes or {}}
    head = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)  # one a line
    text = f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'
    with atomic_path(results_dir() / f"{notebook}.json") as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_results(notebook):
    """Return the rows that `save_results` wrote; [] where there are none yet."""
    path = results_dir() / f"{notebook}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def format_rows(rows, seed=0):
    """Lay out rows as a text table: one line a method and unknown set, one column a metric.

    Parameters
    ----------
    rows : list of dict
        As for `save_results`.
    seed : int or None
        The seed to show, or None for mean ± standard deviation over the seeds.

    Returns
    -------
    str
        Fractions with three decimals.
    """
    import pandas as pd  # noqa: PLC0415

    frame = pd.DataFrame(rows)
    if seed is not None:
        frame = frame[frame["seed"] == seed]
    cells = frame.groupby(["method", "id", "ood", "metric"], sort=False)["value"]
    text = cells.mean().map("{:.3f}".format)
    if seed is None:
        text = text + " ± " + cells.std(ddof=0).map("{:.3f}".format)
    table = text.unstack("metric")[frame["metric"].unique()].fillna("")
    table = table.reindex(frame.groupby(["method", "id", "ood"], sort=False).size().index)
    return table.reset_index().to_string(index=False)


def results_dir():
    """Return the folder of the result files."""
    return output_dir() / "report/results"


def checkpoint_dir():
    """Return the folder of the weights: the shipped ones, unless this run trains its own."""
    own = profile() == "demo" or retraining()
    return output_dir() / "checkpoints" if own else ROOT / "data/checkpoints"


COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.8  # inches
# Okabe & Ito's palette, which colour-blind readers tell apart: one colour a data set or method.
COLORS = {
    "mnist": "#0072B2", "fashionmnist": "#D55E00", "cifar10": "#009E73", "kmnist": "#CC79A7",
    "svhn": "#E69F00", "tinyimagenet": "#56B4E9", "reference": "#777777",
    "mnist-rest": "#0072B2", "mnist-8": "#D55E00", "mnist-4": "#009E73",
    "reconstruction": "#CC79A7", "best": "#0072B2",
    "plain_cnn": "#56B4E9", "plain_cnn/openmax": "#E69F00",
    "plain_cnn/distance/max_logit": "#009E73", "autoencoder_10": "#CC79A7",
    "multitask_autoencoder": "#D55E00", "osr_detector_9k": "#777777", "osr_detector": "#0072B2",
}  # fmt: skip


def use_report_style():
    """Set matplotlib to the report's style: 8 pt, thin lines, no top and right spines."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    plt.rcParams.update({
        "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "lines.linewidth": 1.2, "figure.figsize": (COLUMN_WIDTH, 2.4), "figure.dpi": 120,
        "figure.constrained_layout.use": True, "savefig.dpi": 200, "image.cmap": "gray",
        "pdf.fonttype": 42,
    })  # fmt: skip


def save_figure(fig, name):
    """Write a figure to figures/<name>.png and .pdf, atomically and without a date."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # the layout is found: once is enough
    for suffix, dates in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
        with atomic_path(output_dir() / "figures" / f"{name}{suffix}") as temporary:
            fig.savefig(temporary, format=suffix[1:], metadata=dates)


@contextmanager
def atomic_path(path):
    """Yield a temporary path that becomes `path` on success and vanishes on failure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror}. Make {path.parent} a writable folder"
        ) from error
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _save_weights(model, path, name, config, sums, seconds):
    from safetensors.torch import save  # noqa: PLC0415

    parameters = dict(model.named_parameters())
    tensors = {  # parameters in half precision; buffers (statistics, alpha) as they are
        key: (value.half() if key in parameters else value).detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    device = next(model.parameters()).device.type
    trained = {"seconds": seconds, "device": device, "torch": torch.__version__}
    meta = {"name": name, "config": config, "data": sums, "trained": trained}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"meta": json.dumps(meta, sort_keys=True)}))


def load_weights(model, path):
    """Fill a model with a file of weights; return it in eval mode, on the CPU.

    Raises
    ------
    ValueError
        If the file is damaged or does not fit; its name is in the message.
    """
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        state = load_file(path)
        floats = (key for key, value in state.items() if value.is_floating_point())
        model.load_state_dict(state | {key: state[key].float() for key in floats})
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or does not fit {type(model).__name__} ({error}); restore it with "
            "`git checkout data/checkpoints`, or retrain with OSR_RETRAIN=1"
        ) from error
    model.checkpoint = path.stem
    return model.to(memory_format=torch.channels_last).eval()  # twice as fast on a processor


def checkpoint_metadata(path):
    """Return what a weight file says of itself: name, config, data checksums, training."""
    from safetensors import safe_open  # noqa: PLC0415

    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["meta"])
    except Exception as error:
        raise ValueError(f"{path} is damaged or no weight file ({error!r}); delete it") from error


def _shipped_path(name):
    """Return the path of a shipped model's weights."""
    metas = {p: checkpoint_metadata(p) for p in checkpoint_dir().glob(f"{name}-*.safetensors")}
    paths = [p for p, m in metas.items() if m["name"] == name and m["config"]["seed"] == 0]
    if len(paths) != 1:
        raise FileNotFoundError(
            f"{len(paths)} weight files {name}-*.safetensors in {checkpoint_dir()}, not one; "
            + ("run `make demo` first" if profile() == "demo" else "see `git status` there")
        )
    return paths[0]
