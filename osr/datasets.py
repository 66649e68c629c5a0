"""Data sets by name: loading, drawing from them, and sets of one's own.

`python -m osr.datasets` (`make data`) downloads every set that is not there yet.
"""

import difflib
import os
import sys
from pathlib import Path

import numpy as np

from osr.caches import (
    DatasetNotFoundError,
    ImageSet,
    cache_path,
    check_images,
    download,
    read_cache,
)
from osr.paths import profile
from osr.records import COLORS, SETS, Record

_registered = {}  # (name, split) -> ImageSet


def is_available(name, split):
    """Return whether `load_images` can answer at once, without a download."""
    record = _record(name, split)
    if (name, split) in _registered:
        return True
    if not record.address:  # a set that the dependencies bring; of a registered one, what is given
        return bool(record.source)
    return bool(record.demo) if profile() == "demo" else cache_path(name, split).is_file()


def load_images(name, split):
    """Load one split of a data set, downloading it once where it is not cached.

    Parameters
    ----------
    name : str
        mnist, fashionmnist, kmnist, cifar10, cifar100, svhn, tinyimagenet, mnist_c/<corruption>;
        three small sets that need no download: uci_digits (handwritten digits of scikit-learn),
        letters and symbols (from matplotlib's fonts; other fonts in each split); and what
        `register` has named.
    split : {"train", "test"}

    Returns
    -------
    ImageSet

    Raises
    ------
    ValueError
        For an unknown name or split, or a cache that is damaged or holds something else.
    DatasetNotFoundError
        If the set is not cached and cannot be downloaded.
    """
    record = _record(name, split)
    if (name, split) in _registered:
        return _registered[name, split]
    if not record.source:
        raise DatasetNotFoundError(
            f"{name!r} was registered without a {split} split: give register {split}=..."
        )
    demo = profile() == "demo" and record.address
    if demo and not record.demo:
        there = ", ".join(other for other in SETS if SETS[other].demo)
        raise DatasetNotFoundError(
            f"the demo has no stand-in for {name!r}; it has {there}. "
            "Use OSR_PROFILE=full for the real data"
        )
    if demo or not record.address:
        from osr import sources

        make = getattr(sources, record.demo if demo else record.source)
        images, labels, note = make(name, split)
        return ImageSet(images, labels, f"demo:{name}" if demo else name, note)
    path = cache_path(name, split)
    if not path.is_file():
        download(name, split, record)
    return read_cache(path, name, record.classes)


def sample_images(name, split, n, seed):
    """Return at most `n` images of a split, drawn with a seed, as an `ImageSet`."""
    found = load_images(name, split)
    size = len(found.images)
    pick = sample_split(size, (min(n, size),), seed)[0]
    return found._replace(images=found.images[pick], labels=found.labels[pick])


def data_notes(sets):
    """Return {key: note} of those of {key: ImageSet} that differ from the official data."""
    return {key: found.note for key, found in sets.items() if found.note}


def digit_split(labels, digits=(8, 4)):
    """Split a labelled set into single digits and the rest (the six sets of system C).

    Parameters
    ----------
    labels : int array, (N,)
    digits : sequence of int
        The digits that get a set of their own.

    Returns
    -------
    dict of str to int64 array
        Ascending indices: one entry a digit ("8", "4"), and "rest".
    """
    labels = np.asarray(labels)
    parts = {str(digit): np.flatnonzero(labels == digit) for digit in digits}
    parts["rest"] = np.flatnonzero(~np.isin(labels, digits))
    return parts


def sample_split(n, sizes, seed):
    """Draw disjoint random subsets of ``range(n)``.

    Parameters
    ----------
    n : int
    sizes : sequence of int
    seed : int

    Returns
    -------
    list of int64 array
        One array of distinct indices a size, in random order.

    Raises
    ------
    ValueError
        If more than `n` indices are asked for.
    """
    if sum(sizes) > n:
        raise ValueError(f"asked for {sum(sizes)} of {n} images; ask for fewer")
    order = np.random.default_rng(seed).permutation(n)
    return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])


def register(name, train=None, test=None):
    """Give a data set of your own a name that `load_images` knows from then on, in this process.

    Parameters
    ----------
    name : str
        A new one; a name that you have registered before is replaced.
    train, test : (images, labels), or str or Path
        Arrays, uint8 (N, H, W) or (N, H, W, 3) and integers (N,); or a .npz file with arrays
        ``images`` and ``labels``; or a folder that holds one folder of pictures for each class,
        which are numbered in alphabetical order (pictures of several sizes are resized to 64 x 64).
        One of the two may be missing.

    Raises
    ------
    ValueError
        If the name is taken, neither split is given, or a split is none of the above.
    FileNotFoundError
        If there is no such file or folder.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} is no name: give a text")
    mine = any(key[0] == name for key in _registered)
    if name in SETS and not mine:
        raise ValueError(f"{name!r} is a set of this repository: give yours another name")
    given = {split: part for split, part in (("train", train), ("test", test)) if part is not None}
    if not given:
        raise ValueError(f"no images for {name!r}: give train=..., test=..., or both")
    found = {(name, split): _own_images(name, part) for split, part in given.items()}
    for split in ("train", "test"):
        _registered.pop((name, split), None)
    _registered.update(found)
    SETS[name] = Record(name, "your own", "")
    COLORS[name] = SETS[name].colour


def _own_images(name, given):
    note = given.note if isinstance(given, ImageSet) else ""
    if isinstance(given, str | Path):
        path = Path(given).expanduser()
        if path.is_dir():
            from osr import sources

            return ImageSet(*sources.class_folders(path), name)
        if not path.is_file():
            raise FileNotFoundError(f"no file or folder {path}: give the one that holds {name!r}")
        try:
            with np.load(path, allow_pickle=False) as file:
                given = file["images"], file["labels"]
                note = str(file["note"]) if "note" in file else ""
        except Exception as error:  # as in `read_cache`
            raise ValueError(
                f"{path} cannot be read ({error!r}): give a .npz file with arrays images and labels"
            ) from error
    if not isinstance(given, tuple) or len(given) < 2:
        raise ValueError(
            f"{name!r} is a {type(given).__name__}: give a tuple (images, labels), a folder with "
            "one folder a class, or a .npz file"
        )
    images, labels = (np.array(part) for part in given[:2])  # what you change later stays yours
    if labels.dtype.kind in "iu":
        labels = labels.astype(np.int64)
    if problem := check_images(images, labels, None):
        raise ValueError(f"{name!r} cannot be registered: {problem}")
    return ImageSet(images, labels, name, note)


def _record(name, split):
    if name not in SETS:
        close = difflib.get_close_matches(str(name).lower(), SETS, 1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        raise ValueError(f"unknown data set {name!r}; {hint} {', '.join(SETS)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r} of {name!r}; use 'train' or 'test'")
    return SETS[name]


def download_all():
    """Download every set that is not there yet; return those that did not come."""
    os.environ["OSR_PROFILE"] = "full"
    missing = []
    for name, record in SETS.items():
        for split in record.wanted if record.address else ():
            try:
                images = load_images(name, split).images
                print(f"{name}-{split}: {len(images):,} images", flush=True)
            except (DatasetNotFoundError, ValueError) as error:
                missing.append(f"{name}-{split}")
                print(f"{name}-{split}: {error}", flush=True)
    return missing


if __name__ == "__main__":
    if not_here := download_all():
        sys.exit(f"missing: {', '.join(not_here)}; run `make data` again later")
