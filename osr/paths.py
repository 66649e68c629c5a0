"""Where things lie, what the environment asks for, and how files are written."""

import errno
import hashlib
import json
import os
import re
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LEFT_OVER = 600  # seconds after which nobody is still writing a temporary file


def profile():
    """Return the run's profile, ``"full"`` (the default) or ``"demo"``, from ``OSR_PROFILE``.

    A ValueError says that it holds anything else.
    """
    value = os.environ.get("OSR_PROFILE") or "full"
    if value not in ("full", "demo"):
        raise ValueError(f"OSR_PROFILE={value!r}: use 'full' (the default) or 'demo' (small)")
    return value


def switch(name, default=False):
    """Return whether an environment variable is on (1) or off (0); a ValueError if neither."""
    value = os.environ.get(name) or str(int(default))
    if value not in ("0", "1"):
        raise ValueError(f"{name}={value!r}: use 1 (on) or 0 (off)")
    return value == "1"


def retraining():
    """Return True when ``OSR_RETRAIN=1`` asks for every model to be trained from scratch.

    What a retraining has stored is kept, so that one that was stopped goes on.
    """
    return switch("OSR_RETRAIN")


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
    return [(ROOT / expanded(folder)).resolve() for folder in folders if folder]


def output_dir():
    """Return the folder that receives all that a run writes: ``OSR_OUTPUT``, or .run (.demo).

    So nothing that the repository stores is ever overwritten by running a notebook.
    """
    default = ".run" if profile() == "full" else ".demo"
    folder = (ROOT / expanded(os.environ.get("OSR_OUTPUT") or default)).resolve()
    if folder == ROOT:
        raise ValueError("OSR_OUTPUT names the repository, whose files would change: give another")
    return folder


def expanded(path):
    """Return a path with ``~`` and the variables in it replaced.

    A ValueError names what has no value, and would else become a folder called $NAME.
    """
    whole = os.path.expandvars(os.path.expanduser(path))
    pattern = r"\$\w+|\$\{[^}]*\}" + (r"|%\w+%" if os.name == "nt" else "")
    names = re.findall(pattern, str(path), re.ASCII)
    unset = [name for name in names if name.strip("${}%") not in os.environ]
    if unset or not whole or whole.startswith("~"):
        what = unset[0] if unset else repr(whole)
        raise ValueError(f"{path}: {what} stands for nothing: write the folder out")
    return Path(whole)


def data_hint():
    """Return "; OSR_DATA names no folder" where that is so, "" elsewhere: to end a message with."""
    given = os.environ.get("OSR_DATA")
    return f"; OSR_DATA={given} names no folder" if given and not data_dirs()[0].is_dir() else ""


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

    shown = switch("OSR_PROGRESS", default=True)
    return tqdm(iterable, description, total, leave=False, disable=not shown)


def safe_name(name):
    """Return a name that is to be a file's; a ValueError where some system could not use it."""
    if (
        not isinstance(name, str)
        or not 0 < len(name.encode(errors="replace")) <= 200  # with room for a suffix
        or name[-1] in ". "  # Windows drops these
        or re.search(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff]', name)
        or re.fullmatch(r"(con|prn|aux|nul|con(in|out)\$|(com|lpt)[0-9¹²³])( *\..*)?", name, re.I)
    ):
        raise ValueError(
            f"{name!r} cannot name a file everywhere: give a short text of letters, digits, "
            "underscores and hyphens, without a folder, and none of Windows' own (con, aux, nul)"
        )
    return name


def writable(folder):
    """Raise, before any work is done, the OSError that `atomic_path` would raise in a folder."""
    _new_file(folder / "test", folder).unlink()


@contextmanager
def atomic_path(path):
    """Yield a temporary path that becomes `path` on success and vanishes on failure.

    It ends in .part, which no pattern for data matches: name the format to what writes there. What
    a killed process has left is removed when the same file is next written.
    """
    temporary = _new_file(path, path)
    mode = temporary.stat().st_mode & 0o777
    try:
        _remove_left_over(path)
        yield temporary
        os.chmod(temporary, mode)  # safetensors puts a file of its own in its place
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename is None:  # as of a disk that is full
            raise _not_written(path, path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _new_file(path, shown):
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask
    except OSError as error:
        raise _not_written(path, shown, error) from error
    return temporary


def _remove_left_over(path):
    """Remove the temporary files of killed writes of a path; young ones may be in use."""
    start, length = f"{path.name}.", len(f"{path.name}.01234567.part")
    with suppress(OSError):  # another process may do the same
        for name in os.listdir(path.parent):
            if name.startswith(start) and name.endswith(".part") and len(name) == length:
                old = path.with_name(name)
                if time.time() - old.stat().st_mtime > LEFT_OVER:
                    old.unlink()


def _not_written(path, shown, error):
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "Free some space" if full else f"Make {path.parent} a writable folder"
    if path.is_relative_to(output_dir()):
        hint += f", or set OSR_OUTPUT to {'another disk' if full else 'one'}"
    return OSError(f"cannot write {shown}: {error.strerror}. {hint}")


def way_to_restore(path, otherwise=""):
    """Return what to do about a file that is gone or damaged.

    A file of the repository comes back by git; of another one `otherwise` says what to do.
    """
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    how = "it (a sparse clone: `git sparse-checkout disable`)"
    with suppress(OSError), open(path, "rb") as file:
        how = "it back"
        if file.read(24) == b"version https://git-lfs.":
            return f"it is a pointer of Git LFS, not the file: `git lfs pull --include {name}`"
    return otherwise or f"`git checkout -- {name}` brings {how}"


def one_line(text, most=300):
    """Return a text from outside as one line: printable signs alone, and not too many."""
    line = "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def checksum(array):
    """Return the SHA-256 of an array's dtype, shape and bytes: 12 hexadecimal digits.

    A ValueError says that it holds objects, of which the bytes are mere addresses.
    """
    array = np.ascontiguousarray(array)
    if array.dtype.hasobject:
        raise ValueError(f"no checksum of {array.dtype}: give an array of numbers")
    found = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    found.update(array.tobytes())
    return found.hexdigest()[:12]


def digest(value):
    """Return the SHA-256 of a JSON-able value: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def end_with(parent):
    """End this process soon after its parent, which may be killed without a word to it."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":  # Windows would name a dead parent, too
        Thread(target=watch, daemon=True).start()
