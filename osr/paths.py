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
        raise ValueError(f"OSR_PROFILE={value!r}: use 'full' (the default) or 'demo' (small)")
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


def data_dirs():
    """Return the folders that may hold decoded data sets: ``OSR_DATA`` if it is set, then data/.

    A relative ``OSR_DATA`` is seen from the repository; ``~`` and variables in it are expanded.
    """
    folders = [os.environ.get("OSR_DATA"), "data"]
    return [_seen_from_here(folder) for folder in folders if folder]


def output_dir():
    """Return the folder that receives all that a run writes: ``OSR_OUTPUT``, or .run (.demo).

    So nothing that the repository stores is ever overwritten by running a notebook.
    """
    default = ".run" if profile() == "full" else ".demo"
    return _seen_from_here(os.environ.get("OSR_OUTPUT") or default)


def _seen_from_here(folder):
    return (ROOT / os.path.expandvars(os.path.expanduser(folder))).resolve()


def results_dir():
    """Return the folder of the result files that this run writes."""
    return output_dir() / "report/results"


def shipped_dir():
    """Return the folder of the weights that come with the repository."""
    return ROOT / "data/checkpoints"


def own_weights():
    """Return whether this run uses its own weights alone: a demo, a retraining."""
    return profile() == "demo" or retraining()


def checkpoint_dir():
    """Return the folder that receives the weights which this run trains."""
    return output_dir() / "checkpoints"


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
        hint = ", or set OSR_OUTPUT to one" if path.is_relative_to(output_dir()) else ""
        raise OSError(
            f"cannot write {path}: {error.strerror}. Make {path.parent} a writable folder{hint}"
        ) from error
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def way_to_restore(path):
    """Return how a file that belongs to the repository comes back, once it is gone or damaged."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_file() and path.read_bytes()[:24] == b"version https://git-lfs.":
        return f"it is a pointer of Git LFS, not the file: `git lfs pull --include {name}`"
    if path.is_file():
        return f"`git checkout -- {name}` brings it back"
    return f"`git checkout -- {name}` brings it (a sparse clone: `git sparse-checkout disable`)"


def checksum(array):
    """Return the SHA-256 of an array's dtype, shape and bytes: 12 hexadecimal digits."""
    array = np.ascontiguousarray(array)
    found = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    found.update(array.tobytes())
    return found.hexdigest()[:12]


def digest(value):
    """Return the SHA-256 of a JSON-able value: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
