"""Shared set-up of the tests: imports from the repository root, outputs in temporary folders."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["OSR_PROGRESS"] = "0"
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture
def sandbox(monkeypatch, tmp_path):
    """Run in the full profile, without a retrain, with every output below a temporary folder."""
    for name in ("OSR_PROFILE", "OSR_RETRAIN", "SEEDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OSR_OUTPUT", str(tmp_path / "out"))
    return tmp_path
