"""Trained weights: fitted once, stored without pickle, found again by what shaped them."""

import json
import os
import time

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from osr import paths
from osr.functions import source_digests
from osr.paths import (
    atomic_path,
    checksum,
    digest,
    own_weights,
    shipped_dir,
    way_to_restore,
)
from osr.training import seed_everything

LOG = "log."  # before the names of what a training leaves behind


def fit_or_load(name, config, train, *, build, data, note=""):
    """Load a model's stored weights, or train it and store them; print which, and why.

    The file's name holds a hash of `config` and `data`. The file also holds digests of the sources
    of `train`, of what it calls in your notebook, and of a network that is defined there. Where
    one has changed since, the line that is printed names it, and the stored weights are used;
    only a retraining (``OSR_RETRAIN=1``) then trains anew. With ``OSR_ACCEPT_SOURCE=1`` the file
    takes over today's digests, its tensors unchanged.

    Parameters
    ----------
    name : str
    config : dict
        Everything that shapes the weights, JSON-able, with "seed"; constants are not watched.
    train : callable
        ``train(model)`` trains in place (and calibrates what the model keeps in buffers). What it
        puts into the dict ``model.log``, tensors by name, is stored with the weights.
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
        names the file, its ``log`` holds what the training left behind. Weights that do not ship
        are stored in `checkpoint_dir`, which `load_model` reads in a demo and a retraining alone.

    Raises
    ------
    ValueError
        If shipped weights for this configuration exist for other training data (and `note` is
        empty), or a file of weights is damaged or does not fit.
    FileNotFoundError
        If the repository's weights are not here.
    """
    if "seed" not in config:
        raise ValueError('config has no "seed": give one')
    sums = {key: checksum(value) for key, value in data.items()}
    config = json.loads(json.dumps(config))
    code = source_digests(train, build)
    file = f"{name}-{digest([config, sums])}.safetensors"
    own, reason = paths.checkpoint_dir() / file, "a demo's or a retraining's first"
    if not own_weights():
        shipped, reason = _find_shipped(name, config, sums, file, note)
        if shipped:
            return _load(build(), shipped, code, reason)
    if own.is_file() and not (paths.retraining() and _changed(own, code)):
        os.utime(own)  # the last one used is the one that `load_model` takes
        return _load(build(), own, code, "")
    print(f"{name}: training, seed {config['seed']} ({reason})")
    seed_everything(config["seed"])
    model = build()
    model.log = {}
    start = time.perf_counter()
    train(model)
    meta = {"name": name, "config": config, "data": sums, "source": code}
    meta["trained"] = {
        "seconds": round(time.perf_counter() - start, 1),
        "device": next(model.parameters()).device.type,
        "torch": torch.__version__,
    }
    _save(model, own, meta)
    return load_weights(build(), own)


def _find_shipped(name, config, sums, file, note):
    """Return (path, "") of shipped weights, or (None, why there are none)."""
    if not any(shipped_dir().glob("*.safetensors")):
        raise FileNotFoundError(
            f"no weights in {shipped_dir()}, which belong to the repository: `git checkout -- "
            "data/checkpoints` (a sparse clone: `git sparse-checkout disable`)"
        )
    if (shipped_dir() / file).is_file():
        return shipped_dir() / file, ""
    nearest, fewest = "no weights of that name and seed ship", None
    for path in sorted(shipped_dir().glob(f"{name}-*.safetensors")):
        meta = checkpoint_metadata(path)
        stored = meta["config"]
        if meta["name"] != name or stored["seed"] != config["seed"]:
            continue
        if stored == config and note:
            return path, f"this machine's training set differs: {note}"
        if stored == config:
            raise ValueError(
                f"{path.name} was trained on other data: {meta['data']} there, {sums} here. "
                "If you changed a split, say so in the configuration; if not, check the data set "
                "with notebook 01, or retrain with OSR_RETRAIN=1"
            )
        changed = [key for key in {**stored, **config} if stored.get(key) != config.get(key)]
        if fewest is None or len(changed) < fewest:
            fewest, there = len(changed), [f"{key} = {stored.get(key)}" for key in changed]
            nearest = f"shipped weights have {', '.join(there)}"
    return None, nearest


def _load(model, path, code, remark):
    """Load weights and print one line: the file, and what differs."""
    changed = _changed(path, code)
    if os.environ.get("OSR_ACCEPT_SOURCE") == "1":
        _write(path, load_file(path), checkpoint_metadata(path) | {"source": code})
    elif changed:
        remark += (", and " if remark else "") + (
            f"{', '.join(changed)} changed since; to train anew, give config one key more"
        )
    print(f"loaded {path.stem}" + (f" ({remark})" if remark else ""))
    return load_weights(model, path)


def _changed(path, code):
    """Return the names of the functions that have changed since the weights were trained."""
    stored = checkpoint_metadata(path).get("source") or code  # older files have none
    return sorted(key for key in {**stored, **code} if stored.get(key) != code.get(key))


def load_weights(model, path):
    """Fill a model with a file of weights; return it in eval mode, on the CPU.

    Raises
    ------
    ValueError
        If the file is damaged or does not fit; its name is in the message.
    """
    try:
        tensors = load_file(path)
        log = {key[len(LOG) :]: tensors.pop(key) for key in list(tensors) if key.startswith(LOG)}
        floats = (key for key, value in tensors.items() if value.is_floating_point())
        model.load_state_dict(tensors | {key: tensors[key].float() for key in floats})
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or does not fit {type(model).__name__} ({error}); {_way_out(path)}"
        ) from error
    model.checkpoint, model.log = path.stem, log
    return model.to(memory_format=torch.channels_last).eval()  # twice as fast on a processor


def checkpoint_metadata(path):
    """Return what a weight file says of itself: name, config, data checksums, training."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["meta"])
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or no weight file ({error!r}); {_way_out(path)}"
        ) from error


def _way_out(path):
    return way_to_restore(path) if path.parent == shipped_dir() else "delete it"


def _save(model, path, meta):
    parameters = dict(model.named_parameters())
    tensors = {}  # parameters in half precision; buffers (statistics, alpha) as they are
    for key, value in model.state_dict().items():
        value = value.half() if key in parameters else value
        tensors[key] = value.detach().cpu().contiguous()
    tensors |= {LOG + key: value.cpu().contiguous() for key, value in model.log.items()}
    _write(path, tensors, meta)


def _write(path, tensors, meta):
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"meta": json.dumps(meta, sort_keys=True)}))
