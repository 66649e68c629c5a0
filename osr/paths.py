"""Where things lie, what the environment asks for, and how files are written."""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


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
    """Return True when ``OSR_RETRAIN=1`` asks for every model to be trained from scratch.

    What a retraining has stored is kept, so that one that was stopped goes on.
    """
    return os.environ.get("OSR_RETRAIN") == "1"


def seeds():
    """Return the seeds to evaluate: 0 (its weights ship), and those in ``SEEDS`` on a retrain.

    A ValueError says that ``SEEDS`` holds something else than whole numbers.
    """
    if not retraining():
        return [0]
    text = os.environ.get("SEEDS") or "0"
    try:
        return sorted({0} | {int(seed) for seed in text.split(",")})
    except ValueError as error:
        raise ValueError(f"SEEDS={text!r}: give whole numbers, such as SEEDS=0,1,2") from error


def data_dir():
    """Return the folder of the decoded data sets: ``OSR_DATA`` (seen from here), or data/."""
    return (ROOT / (os.environ.get("OSR_DATA") or "data")).resolve()


def output_dir():
    """Return the folder of figures/, report/results/, own checkpoints/ (``OSR_OUTPUT``)."""
    default = "." if profile() == "full" else ".demo"
    return (ROOT / (os.environ.get("OSR_OUTPUT") or default)).resolve()


def results_dir():
    """Return the folder of the result files."""
    return output_dir() / "report/results"


def shipped_dir():
    """Return the folder of the weights that come with the repository."""
    return ROOT / "data/checkpoints"


def own_weights():
    """Return whether this run uses its own weights alone: a demo, a retraining."""
    return profile() == "demo" or retraining()


def checkpoint_dir():
    """Return the folder that receives the weights which this run trains."""
    beside = own_weights() and output_dir() != ROOT  # with its figures and results
    return output_dir() / "checkpoints" if beside else shipped_dir() / "local"


def progress(iterable, description, total=None):
    """Wrap an iterable in a progress bar that vanishes at its end; ``OSR_PROGRESS=0``: no bar."""
    from tqdm.auto import tqdm

    hidden = os.environ.get("OSR_PROGRESS") == "0"
    return tqdm(iterable, description, total, leave=False, disable=hidden)


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


def checksum(array):
    """Return the SHA-256 of an array's dtype, shape and bytes: 12 hexadecimal digits."""
    array = np.ascontiguousarray(array)
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()[:12]


def digest(value):
    """Return the SHA-256 of a JSON-able value: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
