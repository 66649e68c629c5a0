"""Trained weights: fitted once, stored without pickle, found again by what shaped them."""

import json
import os
import time

import torch

from osr import paths
from osr.checkpoints import (
    checkpoint_metadata,
    load_weights,
    read_tensors,
    save_weights,
    weights_of,
    write_tensors,
)
from osr.functions import source_digests
from osr.modes import plain_defaults
from osr.paths import checksum, digest, own_weights, safe_name, shipped_dir, switch, writable
from osr.training import seed_everything


@plain_defaults()
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
        The first part of a file's name, without a folder.
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
        torch's default device and dtype play no part.

    Raises
    ------
    ValueError
        If shipped weights for this configuration exist for other training data (and `note` is
        empty), or a file of weights is damaged or does not fit.
    FileNotFoundError
        If the repository's weights are not here.
    OSError
        If `checkpoint_dir` cannot be written; before anything is trained.
    FloatingPointError
        If the trained weights are not finite; nothing is stored.
    """
    safe_name(name)
    if "seed" not in config:
        raise ValueError('config has no "seed": give one')
    sums = {key: checksum(value) for key, value in data.items()}
    try:
        config = json.loads(json.dumps(config))
    except TypeError as error:
        raise ValueError(
            f"config is not JSON-able ({error}): give plain numbers, texts, lists"
        ) from error
    if type(config["seed"]) is not int:
        raise ValueError(f"the seed is {config['seed']!r}: give a whole number")
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
    writable(own.parent)
    print(f"{name}: training, seed {config['seed']} ({reason})")
    seed_everything(config["seed"])
    model = build()
    model.log = {}
    start = time.perf_counter()
    train(model)
    broken = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"{name}: the training diverged, NaN or infinity in {', '.join(broken[:3])}"
            f"{' and others' * (len(broken) > 3)}; nothing is stored. Lower the learning "
            "rate, or keep infinity out of buffers"
        )
    meta = {"name": name, "config": config, "data": sums, "source": code}
    meta["trained"] = {
        "seconds": round(time.perf_counter() - start, 1),
        "device": next((value.device.type for value in model.parameters()), "cpu"),
        "torch": torch.__version__,
    }
    save_weights(model, own, meta)
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
    for path, meta in weights_of(name, config["seed"], shipped_dir()):
        stored = meta["config"]
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
    if switch("OSR_ACCEPT_SOURCE"):
        write_tensors(path, read_tensors(path), checkpoint_metadata(path) | {"source": code})
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
