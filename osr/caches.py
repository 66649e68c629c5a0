"""The decoded files of the data sets, <data>/<name>-<split>.npz: found, checked, downloaded."""

import shutil
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from osr.paths import ROOT, atomic_path, data_dirs, way_to_restore
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
    if images.dtype != np.uint8 or images.shape[3:] not in ((), (3,)) or images.ndim < 3:
        return f"images are {images.dtype} {images.shape}, not uint8 (N, H, W) or (N, H, W, 3)"
    if labels.dtype != np.int64 or labels.shape != images.shape[:1] or not len(labels):
        return f"labels are {labels.dtype} {labels.shape} for {len(images)} images"
    if labels.min() < 0 or (classes and labels.max() >= classes):
        wanted = f"within 0..{classes - 1}" if classes else "from 0 on"
        return f"labels run from {labels.min()} to {labels.max()}, not {wanted}"
    return ""


def read_cache(path, name, classes):
    """Return the `ImageSet` of a decoded file; a ValueError that names it where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        images, labels = arrays["images"], arrays["labels"]
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        if "pointer" in _way_out(path):
            raise ValueError(f"{path}: {_way_out(path)}") from None
        raise ValueError(
            f"{path} is damaged or no image cache ({error!r}); {_way_out(path)}"
        ) from error
    if problem := check_images(images, labels, classes):
        raise ValueError(f"{path} is no cache of {name}: {problem}; {_way_out(path)}")
    return ImageSet(images, labels, name, str(arrays.get("note", "")))


def _way_out(path):
    if path in {cloned_path(name, split) for name in SETS for split in SETS[name].cloned}:
        return way_to_restore(path)
    return "delete it and run `make data`, or point OSR_DATA at a good copy"


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
    problem = None
    if not sources.online(record.address):
        problem = "the network does not answer"
    if problem is None:
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
    raise DatasetNotFoundError(
        f"no {path.name} in {path.parent}, and {problem}. Three ways out: run `make data` with a "
        "network; set OSR_DATA to a folder that has the file; or, small and without a download, "
        "`make demo` (a notebook alone: OSR_PROFILE=demo)"
    )
