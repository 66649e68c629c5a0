"""One hand-in, run on images in a process of its own.

``python -m osr.hand_in <file> <folder, or ""> <device> <batch size>`` reads images from its input
and writes to its output what it is doing, and at the end a problem and what the model returned.
"""

import math
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from osr.contract import eval_model
from osr.hand_in_files import companions, importable, left_out, load_parts, locate
from osr.modes import evaluation_mode
from osr.paths import end_with, one_line

MOST = 10**8  # bytes that an answer may have beyond those of the images
KEPT = re.compile(  # of the environment: what Python and torch need to run, and nothing else
    r"PATH|LANG|LANGUAGE|TZ|USER|LOGNAME|USERNAME|SYSTEMROOT|SYSTEMDRIVE|WINDIR|COMSPEC|PATHEXT|"
    r"NUMBER_OF_PROCESSORS|PROCESSOR_ARCHITECTURE|LD_LIBRARY_PATH|DYLD_\w*LIBRARY_PATH|"
    r"(LC|OMP|MKL|KMP|OPENBLAS|CUDA|HIP|HSA|ROCR|PYTORCH)_\w+"
)


def run_apart(path, images, size, device, seconds, stop):
    """Run a hand-in on images, in a process and a folder of its own.

    Parameters
    ----------
    path : str or Path
        As for `load_submission`.
    images : bytes
        safetensors that hold "images".
    size : int
        Images a batch.
    device : str or torch.device
    seconds : float
        It is ended when it takes longer; Python's and torch's own start does not count.
    stop : threading.Event
        It is ended when this is set.

    Returns
    -------
    outputs : bytes
        safetensors that hold what the model returned for batch "0", "1", ...: to be doubted, as
        its own code can have written them. Empty where there are none.
    problem : str
        Empty where there is none.
    seconds : float
        That its process took.

    Raises
    ------
    FileNotFoundError, ValueError
        As `locate`.
    OSError
        If it cannot be copied, or no process be started.
    """
    file, folder = locate(path)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        root = Path(place).resolve() / "hand_in"
        copy = root / (file.relative_to(folder) if folder else file.name)
        if folder:
            shutil.copytree(folder, root, symlinks=True, ignore=_not_copied)
        else:
            root.mkdir()
            for part in companions(file):
                shutil.copy(part, root)
        arguments = [str(copy), str(root) if folder else "", str(device), str(size)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "osr.hand_in", *arguments],
            cwd=copy.parent,
            env=_environment(place),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that what it starts can be ended with it
        )
        said, most, late = bytearray(), MOST + len(images), False
        start, begun = time.monotonic(), math.inf
        try:
            threading.Thread(target=_feed, args=(process.stdin, images), daemon=True).start()
            reader = threading.Thread(target=_hear, args=(process.stdout, said, most), daemon=True)
            reader.start()
            while process.poll() is None and not late and not stop.wait(0.05):
                begun = min(begun, time.monotonic()) if said else begun
                late = time.monotonic() - begun > seconds
        finally:
            took = round(time.monotonic() - start, 1)
            _end(process)
        reader.join(1)  # what has left its group could keep the pipe open
    steps, _, rest = bytes(said).partition(b"\0")
    problem, whole, outputs = rest.partition(b"\0")
    doing = steps.decode(errors="replace").strip().rpartition("\n")[2]
    if len(said) > most:
        return b"", f"its answer has more than {most / 1e6:,.0f} MB", took
    if late:
        return b"", f"stopped after {seconds:g} s: {doing}", took
    if not whole:
        return b"", _death(process.returncode, doing), took
    return outputs, problem.decode(errors="replace"), took


def _not_copied(folder, names):
    return [name for name in names if left_out(Path(name))]


def _environment(home):
    """Return the environment of a hand-in's process, whose home and temporary folder are `home`."""
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name.upper())}
    kept |= dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), home)
    return kept | {"PYTHONUSERBASE": site.getuserbase()}  # torch may be installed there


def _feed(pipe, images):
    with suppress(OSError), pipe:  # it may end before it has read them
        pipe.write(images)


def _hear(pipe, said, most):
    with pipe:
        while part := pipe.read1(1 << 16):
            if len(said) <= most:
                said += part


def _end(process):
    """End a process, and what it has started, unless that has left its group."""
    with suppress(OSError):
        if os.name == "nt":
            command = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _death(status, doing):
    """Say how a process ended that gave no answer."""
    cause = {-s: s.name for s in signal.Signals}.get(status, f"exit status {status}")
    hint = ": perhaps the memory was not enough" if cause == "SIGKILL" else ""
    if not doing:
        return f"its process did not start ({cause}{hint}): nothing of it has run"
    return f"it ended the process that judged it ({cause}{hint}; {doing})"


def answer(file, folder, images, size, device, say):
    """Return what a hand-in returns for each batch (safetensors; empty: none), and its problem.

    It is called as by `eval_model`, with labels that mean nothing; `say` hears every step.
    """
    images = load(images)["images"].split(size)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in images]
    steps, outputs, problem = [], {}, ""

    def step(text):
        steps.append(text)
        say(text)

    def run(images):
        step(f"batch {len(outputs) + 1} of {len(batches)}")
        output = model(images)
        if isinstance(output, torch.Tensor):  # copied: a model may use its memory again
            outputs[f"{len(outputs)}"] = output.detach().cpu().clone().contiguous()
        return output

    try:
        with importable(file, folder):
            model, missing = load_parts(file, folder, step)
            if isinstance(model, nn.Module):
                model.to(device)
                if missing and [*model.parameters()]:
                    problem = f"judged with the weights that Model() gives: {missing}"
            with evaluation_mode(model):
                eval_model(run, batches, device)
        return save(outputs), problem
    except BaseException as error:  # SystemExit and KeyboardInterrupt are nothing else here
        return b"", _describe(error, folder or file.parent, steps)


def _describe(error, place, steps):
    """Say what a hand-in in the folder `place` has raised, and in which line of it; in short."""
    ours = isinstance(error, ValueError | FileNotFoundError) and str(error)
    problem = str(error) if ours else f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(place)]
    end = [f"({Path(frame.filename).name}, line {frame.lineno})" for frame in own[-1:]]
    if isinstance(error, SystemExit) and steps[-1].startswith("importing"):
        problem = f"it ended Python with {problem} when it was imported"
        end.append('- put what runs under `if __name__ == "__main__":`')
    end = one_line(" ".join([*end, *getattr(error, "__notes__", ())]), 150)
    problem = one_line(problem.replace(f"{place}{os.sep}", ""), 299 - len(end))
    return f"{problem} {end}".strip()


def main(file, folder, device, size):
    """Answer through the standard streams, of which the hand-in has nothing."""
    images = sys.stdin.buffer.read()
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv[:] = [file]
    end_with(os.getppid())

    def say(text):
        pipe.write(f"{text}\n".encode(errors="replace"))
        pipe.flush()

    folder = Path(folder) if folder else None
    outputs, problem = answer(Path(file), folder, images, int(size), device, say)
    pipe.write(b"\0".join([b"", problem.encode(errors="replace"), outputs]))
    pipe.flush()
    os._exit(0)  # whatever it has left running


if __name__ == "__main__":
    main(*sys.argv[1:])
