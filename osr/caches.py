"""The decoded files of the data sets, <data>/<name>-<split>.npz: found, checked, downloaded."""

import shutil
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from osr.images import shape_problem
from osr.paths import ROOT, atomic_path, data_dirs, data_hint, one_line, way_to_restore
from osr.records import SETS


class ImageSet(NamedTuple):
    """Decoded images of one split.

    Attributes
    ----------
    images : uint8 array, (N, H, W) grey or (N, H, W, 3) RGB
    labels : int64 array, (N,)
    name : str
        As given to `load_images`; starts with ``"demo:"`` for a stand-in.
    note : str
        Says where the images differ from the official data; "" where they do not.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str
    note: str = ""


class DatasetNotFoundError(FileNotFoundError):
    """A data set is not here and cannot be had; the message says why."""


def cache_path(name, split):
    """Return where the decoded file of a split lies, or where a download would put it."""
    paths = [folder / f"{name}-{split}.npz" for folder in data_dirs()]
    return next((path for path in paths if path.is_file()), paths[0])


def cloned_path(name, split):
    """Return where the repository holds a split, or None if it does not."""
    return ROOT / f"data/{name}-{split}.npz" if split in SETS[name].cloned else None


def check_images(images, labels, classes):
    """Return what is wrong with decoded images and their labels, "" if nothing is.

    `classes` bounds the labels; None: any that are not negative.
    """
    if problem := _kind_problem(images, labels):
        return problem
    if labels.min() < 0 or (classes and labels.max() >= classes):
        wanted = f"within 0..{classes - 1}" if classes else "from 0 on"
        return f"labels run from {labels.min()} to {labels.max()}, not {wanted}"
    return ""


def _kind_problem(images, labels):
    if problem := shape_problem(images):
        return problem
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not len(labels):
        return f"labels are {labels.dtype} {labels.shape} for {len(images)} images"
    return ""


def read_arrays(path):
    """Return images, labels (int64) and note of a .npz file; whatever else it holds stays unread.

    A ValueError says how it is damaged, or what else it is; an OSError or a MemoryError what keeps
    it from being read here, though it may be whole.
    """
    try:
        with open(path, "rb") as file:
            if file.read(2) != b"PK":  # numpy would recommend to read it as a pickle
                raise ValueError("it does not begin as a .npz file")
        with np.load(path, allow_pickle=False) as file:
            problem = _kind_problem(*(_announced(file, key) for key in ("images", "labels")))
            if "note" in file and file.zip.getinfo("note.npy").file_size > 100_000:
                problem = "its note has more than 100,000 bytes"
            if not problem:
                note = one_line(str(file["note"])) if "note" in file else ""
                return file["images"], file["labels"].astype(np.int64), note
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory: close other programs") from error
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        if isinstance(error, PermissionError):
            raise PermissionError(f"you may not read {path}: give yourself the right") from error
        if isinstance(error, OSError) and error.filename:  # it could not be opened
            raise
        raise ValueError(f"damaged, or another kind of file ({error!r})") from error
    raise ValueError(problem)


def _announced(file, key):
    """Return a stand-in, without memory, of the shape and dtype that an array in a file has."""
    with file.zip.open(f"{key}.npy") as member:
        version = "{}_{}".format(*np.lib.format.read_magic(member))
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{version}")(member)
    return np.broadcast_to(np.zeros((), dtype), shape)


def read_cache(path, name, classes):
    """Return the `ImageSet` of a decoded file; a ValueError that names it where it is damaged."""
    try:
        images, labels, note = read_arrays(path)
        if problem := check_images(images, labels, classes):
            raise ValueError(problem)
    except ValueError as error:
        stored = path in [cloned_path(name, split) for split in SETS[name].cloned]
        fetch = "" if stored else "delete it and run `make data`, or point OSR_DATA at a good copy"
        raise ValueError(
            f"{path} is no cache of {name}: {error}; {way_to_restore(path, fetch)}"
        ) from error
    return ImageSet(images, labels, name, note)


def download(name, split, record):
    """Build the decoded file of a set from its official source (`record`, of `osr.records`).

    What has been downloaded stays until it is decoded, so the next try goes on from there. A
    DatasetNotFoundError says why it cannot be had, and names the ways out.
    """
    from osr import sources

    if name == "mnist_c/identity":
        raise DatasetNotFoundError(f"no {name}-{split}: it is MNIST-test itself; load 'mnist'")
    if name.startswith("mnist_c/") and split == "train":
        raise DatasetNotFoundError(f"no {name}-{split}: MNIST-C is a test set; use 'test'")
    path = cache_path(name, split)
    problem = sources.unreachable(record.address)
    if not problem:
        folder = data_dirs()[0] / "downloads" / record.source
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.rglob("*"):  # archives have a checksum, what was unpacked has none
                if old.is_file() and old.suffix not in (".gz", ".zip", ".mat"):
                    old.unlink()
            for found, part, images, labels in sources.official(name, split, record, folder):
                if cache_path(found, part).is_file():
                    continue  # a download brings more than was asked for; what is there stays
                with atomic_path(cache_path(found, part)) as temporary:
                    with open(temporary, "wb") as file:
                        np.savez_compressed(file, images=images, labels=labels)
        except Exception as error:  # torchvision and the network raise half a dozen kinds
            problem = f"the download failed ({error!r}); what has come is kept in {folder}, delete "
            problem += "that if this happens again"
        else:
            shutil.rmtree(folder)
            with suppress(OSError):  # another set is still on its way
                folder.parent.rmdir()
            return
    demo = "; or, small and without a download, `make demo` (a notebook alone: OSR_PROFILE=demo)"
    demo = demo if record.demo else ""
    raise DatasetNotFoundError(
        f"no {path.name} in {path.parent}, and {problem}{data_hint()}. Ways out: run `make data` "
        "with a network; or set OSR_DATA to a folder that has the file" + demo
    )
