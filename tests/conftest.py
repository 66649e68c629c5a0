"""Shared set-up of the tests: outputs in temporary folders, no progress bars, no windows."""

import os
from pathlib import Path

import pytest
import torch

from osr import paths

ROOT = Path(__file__).resolve().parents[1]
if paths.ROOT != ROOT:  # an environment that was made for another clone
    raise pytest.UsageError(f"osr is imported from {paths.ROOT}: `pip install -e {ROOT}` first")
os.environ["OSR_PROGRESS"] = "0"
os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)  # in small networks threads only wait for each other


@pytest.fixture
def sandbox(monkeypatch, tmp_path):
    """Run in the full profile, without a retrain, with every output below a temporary folder."""
    for name in ("OSR_PROFILE", "OSR_RETRAIN", "OSR_ACCEPT_SOURCE", "SEEDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OSR_OUTPUT", str(tmp_path / "out"))
    return tmp_path


@pytest.fixture
def repository(monkeypatch, sandbox):
    """Stand a repository in for this one: no images, no results, weights of one strange model."""
    from helpers import STRANGER
    from osr import caches, models, paths, results, shipped

    root = sandbox / "repository"
    for room in (paths, caches, results):
        monkeypatch.setattr(room, "ROOT", root)
    (root / "data/checkpoints").mkdir(parents=True)
    (root / "data/checkpoints" / STRANGER).touch()
    known = {"multitask_autoencoder": models.MultitaskAutoencoder}
    monkeypatch.setattr(shipped, "SHIPPED", known)
    monkeypatch.delenv("OSR_OUTPUT")
    monkeypatch.delenv("OSR_DATA", raising=False)
    return root


@pytest.fixture
def data(monkeypatch, tmp_path):
    """Return an empty data folder, which comes before that of the repository."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("OSR_DATA", str(folder))
    return folder


@pytest.fixture
def network(monkeypatch):
    """Return a function that replaces a torchvision data set by a fake, with a network."""
    import torchvision

    from osr import sources

    monkeypatch.setattr(sources, "unreachable", lambda address: "")
    return lambda name, fake: monkeypatch.setattr(torchvision.datasets, name, fake)


@pytest.fixture
def demo(monkeypatch, data):
    """Run in the demo profile with an empty data folder; a look at the network is an error."""
    from osr import sources

    monkeypatch.setenv("OSR_PROFILE", "demo")
    monkeypatch.setattr(sources, "unreachable", None)
    return data


@pytest.fixture
def registry():
    """Forget afterwards what a test has registered."""
    from osr.own_sets import registered
    from osr.records import COLORS, SETS

    before = dict(SETS), dict(COLORS)
    yield SETS
    for names, old in zip((SETS, COLORS), before, strict=True):
        names.clear()
        names.update(old)
    registered.clear()
