"""What tests of several rooms use."""

import json
import linecache
import re
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def random_images(*shape):
    """Return noise, the same each time."""
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def write_cache(folder, name="mnist-test", **arrays):
    """Write the decoded file of a data set: three digits, or what is given."""
    path = folder / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    content = {"images": random_images(3, 28, 28), "labels": np.array([3, 1, 4])} | arrays
    np.savez(path, **content)
    return path


STRANGER = "stranger-000000000000.safetensors"  # weights that the `repository` of a test ships
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9866078\n"


def touch_sets(repository, *names):
    """Put something in the place of images into a repository, such as "mnist-test"."""
    for name in names:
        (repository / f"data/{name}.npz").touch()


def store_rows(repository, rows, notebook="03_test", **head):
    """Write results as a repository stores them; return their path."""
    path = Path(repository) / f"report/results/{notebook}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"profile": "full", "config": {}, "data_notes": {}} | head
    path.write_text(json.dumps(head | {"rows": rows}), encoding="utf-8")
    return path


# Files that people hand in.
BRIGHTEST = """
from torch import nn

class Model(nn.Sequential):  # the score of class k is pixel k
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 11))
        nn.init.zeros_(self[1].weight)
        nn.init.zeros_(self[1].bias)
"""
FUNCTION = "class Model:\n    def __call__(self, x):\n        "  # and what it returns


class FakeDownload:
    """Stand in for a torchvision data set: leave a file in the folder, then bring the images."""

    def __init__(self, root, download, train=None, split=None):
        assert download
        self.which = split or ("train" if train else "test")
        with open(f"{root}/partial.gz", "w") as file:
            file.write("half a file")


LABELS = [3, 7, 0, 10, 10]
VERDICTS = [3, 10, 0, 10, 2]  # right: 2 of 3 known, 1 of 2 unknown


def one_batch(labels, images=None):
    """Return a loader of one batch."""
    import torch

    labels = torch.as_tensor(labels)
    return [(torch.zeros(len(labels), 1, 28, 28) if images is None else images, labels)]


@contextmanager
def other_defaults():
    """Have torch make float64 tensors without numbers wherever it is not told otherwise."""
    import torch

    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def state_bytes(model):
    """Return {name: bytes} of all that a model keeps."""
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def literal(path):
    """Return a pattern that matches a path; on Windows its backslashes would be escapes."""
    return re.escape(str(path))


def files(folder):
    """Return the names of all files below a folder."""
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


def row(**changes):
    """Return a result row."""
    return {
        "system": "A", "method": "margin", "id": "mnist", "ood": "fashionmnist", "seed": 0,
        "metric": "auroc", "value": 0.5, "weights": "",
    } | changes  # fmt: skip


def some_rows():
    """Return rows of two methods on three seeds, added in no order."""
    from osr import results

    rows = {}
    for seed, value in ((2, 0.3), (0, 0.1), (1, 0.4)):
        for method, more in (("short/one", 0), ("short/two", 0.25), ("long", 0.5)):
            values = {"auroc": value + more, "fpr95": 1 - value}
            results.add_rows(rows, values, system="A", method=method, ood="kmnist", seed=seed)
    results.add_rows(rows, {"accuracy": 0.75}, system="B", method="long", weights="cnn-01")
    return rows


def train_autoencoder(seed=0, name="multitask_autoencoder", images=(1, 2, 3), **config):
    """Have `fit_or_load` find or train an autoencoder, in no time; return the name of its file."""
    from osr import models, weights

    return weights.fit_or_load(
        name,
        {"seed": seed} | config,
        lambda model: model.alpha.fill_(5),
        build=models.MultitaskAutoencoder,
        data={"images": np.array(images)},
    ).checkpoint


def ship(**options):
    """Train an autoencoder and move its weights to those that ship; return the name of its file."""
    from osr import paths

    stem = train_autoencoder(**options)
    file = f"{stem}.safetensors"
    (paths.checkpoint_dir() / file).rename(paths.shipped_dir() / file)
    return stem


def run_cell(text, name="", **names):
    """Run a text as a notebook runs a cell, under a name of its own; return what it defines."""
    text = textwrap.dedent(text)
    name = name or f"/nowhere/{hash(text)}.py"
    names = {"__name__": "a_notebook"} | names
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), names)
    return names
