"""Files of weights: without pickle, with a sum over all that they hold, which reading checks."""

import json
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from osr.paths import atomic_path, checksum, digest, shipped_dir, way_to_restore
from osr.training import to_half

LOG = "log."  # before the names of what a training leaves behind
TOLD = {"name", "config", "data", "trained"}  # what every file says of its weights


def save_weights(model, path, meta):
    """Write a model's tensors, what its training left behind, and what is said of them."""
    parameters = dict(model.named_parameters())
    tensors = {}  # parameters in half precision; buffers (statistics, alpha) as they are
    for key, value in model.state_dict().items():
        value = to_half(value) if key in parameters else value
        tensors[key] = value.detach().cpu().contiguous()
    tensors |= {LOG + key: value.cpu().contiguous() for key, value in model.log.items()}
    write_tensors(path, tensors, meta)


def write_tensors(path, tensors, meta):
    """Write tensors and what is said of them, with the sums of both."""
    meta = meta | {"tensors": _sum(tensors)}
    # The sums stand in one text with the rest: safetensors would write several in any order.
    text = json.dumps(meta | {"sum": digest(meta)}, sort_keys=True, separators=(",", ":"))
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"meta": text}))


def _sum(tensors):
    """Return a digest of the names, dtypes, shapes and bytes of tensors."""
    parts = {}
    for key, value in tensors.items():
        content = checksum(value.flatten().view(torch.uint8).numpy())
        parts[key] = [str(value.dtype), list(value.shape), content]
    return digest(parts)


def load_weights(model, path):
    """Fill a model with a file of weights; return it in eval mode, on the CPU.

    Raises
    ------
    ValueError
        If the file is damaged or does not fit; its name is in the message.
    OSError, MemoryError
        If it is not here, may not be read, or does not fit into memory.
    """
    path = Path(path)
    tensors = read_tensors(path)
    log = {key[len(LOG) :]: tensors.pop(key) for key in list(tensors) if key.startswith(LOG)}
    floats = [key for key, value in tensors.items() if value.is_floating_point()]
    tensors |= {key: tensors[key].float() for key in floats}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        name, first = type(model).__name__, str(error).splitlines()[1:2] or [str(error)]
        raise ValueError(
            f"{path} does not fit {name} ({first[0].strip()}): give the network that it was stored "
            "for; if you have changed that, give its config one key more, to train it anew"
        ) from error
    model.checkpoint, model.log = path.stem, log
    model.to("cpu", memory_format=torch.channels_last)  # which is twice as fast there
    return model.eval()


def read_tensors(path):
    """Return the tensors of a file by name, checked against their sum where the file has one."""
    with _reading(path), safe_open(path, "pt") as file:
        tensors, told = file.get_tensors(), file.metadata() or {}  # as of another program
        ours = any(key == "meta" or text.startswith('{"config":') for key, text in told.items())
        if ours and _told(file)[1] not in (None, _sum(tensors)):
            raise ValueError("its tensors have changed")
        return tensors


def checkpoint_metadata(path):
    """Return what a weight file says of itself: name, config, data checksums, training.

    Raises what `load_weights` raises.
    """
    with _reading(path), safe_open(path, "pt") as file:
        return _told(file)[0]


def _told(file):
    """Return what a file says of itself, and the sum of its tensors: None in an older one."""
    meta = json.loads(file.metadata()["meta"])
    if meta.pop("sum", None) != (digest(meta) if "tensors" in meta else None):
        raise ValueError("what it says of itself has changed")
    tensors = meta.pop("tensors", None)
    return meta, tensors


def weights_of(name, seed, folder):
    """Return [(path, metadata)] of the weights of a model and a seed in a folder."""
    found = []
    for path in sorted(folder.glob(f"{escape(name)}-*.safetensors")):
        meta = checkpoint_metadata(path)
        with _reading(path):
            if lacks := TOLD - meta.keys():
                raise ValueError(f"it does not say its {', '.join(sorted(lacks))}")
            if (meta["name"], meta["config"]["seed"]) == (name, seed):
                found.append((path, meta))
    return found


@contextmanager
def _reading(path):
    """Name a file in what goes wrong with it, and tell a damaged one from one out of reach."""
    try:
        with path.open("rb"):  # safetensors would call one that may not be read missing
            yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise PermissionError(f"you may not read {path}: give yourself the right") from error
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory: close other programs") from error
    except Exception as error:
        way_out = way_to_restore(path) if path.parent == shipped_dir() else "delete it"
        raise ValueError(
            f"{path} is damaged or no weight file ({type(error).__name__}: {error}); {way_out}"
        ) from error
