"""Data sets by name: which are here, loading, drawing from them.

`python -m osr.datasets` (`make data`) downloads every set that is not there yet.
"""

import difflib
import os
import sys

import numpy as np

from osr.caches import (
    DatasetNotFoundError,
    ImageSet,
    cache_path,
    cloned_path,
    download,
    read_cache,
)
from osr.own_sets import registered
from osr.paths import profile, way_to_restore
from osr.records import SETS

DEMO_IMAGES = {"train": 4_000, "test": 1_000}  # of the sets in the repository


def is_available(name, split):
    """Return whether `load_images` can answer at once, without a download."""
    record = _record(name, split)
    if (name, split) in registered:
        return True
    if not record.address:  # a set that the dependencies bring; of a registered one, what is given
        return bool(record.source)
    if profile() == "demo" and split not in record.cloned:
        return bool(record.demo)
    return cache_path(name, split).is_file()


def available_sets(names, split="test"):
    """Return those of some data sets that are here; print, in one line, which are not."""
    absent = [name for name in names if not is_available(name, split)]
    if absent:
        of_mnist_c = all(name.startswith("mnist_c/") for name in absent)
        shown = "mnist_c" if of_mnist_c else ", ".join(absent)
        fetched = any(SETS[name].address and split not in SETS[name].cloned for name in absent)
        hint = "; `make data` fetches what is missing" if fetched else ""
        print(
            f"not here: {shown} ({split}{hint}). What rests on it is left out below, or, where it "
            "is marked °, as it was stored."
        )
    return [name for name in names if name not in absent]


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
        If the set is not here and cannot be downloaded.
    """
    record = _record(name, split)
    if (name, split) in registered:
        return registered[name, split]
    if not record.source:
        raise DatasetNotFoundError(
            f"{name!r} was registered without a {split} split: give register {split}=..."
        )
    if not record.address:
        from osr import sources

        images, labels, note = getattr(sources, record.source)(name, split)
        return ImageSet(images, labels, name, note)
    if profile() == "demo" and split not in record.cloned:
        return _stand_in(name, split, record)
    path = cache_path(name, split)
    if not path.is_file() and split in record.cloned:
        raise DatasetNotFoundError(
            f"{cloned_path(name, split)} belongs to the repository, but is not here: "
            f"{way_to_restore(cloned_path(name, split))}"
        )
    if not path.is_file():
        download(name, split, record)
    found = read_cache(cache_path(name, split), name, record.classes)
    if profile() == "full":
        return found
    n = DEMO_IMAGES[split]
    note = f"the first {n:,} of {len(found.images):,} images" if n < len(found.images) else ""
    note = "; ".join(filter(None, [found.note, note]))
    return ImageSet(found.images[:n], found.labels[:n], name, note)


def _stand_in(name, split, record):
    """Return what stands in, in the demo, for a set that is not in the repository."""
    from osr import sources

    if not record.demo:
        there = ", ".join(other for other in SETS if is_available(other, split))
        raise DatasetNotFoundError(
            f"the demo has no {name}-{split}; it has {there}. Use OSR_PROFILE=full for the real one"
        )
    if record.demo == "corrupted":
        digits = load_images("mnist", split)
        images, labels, note = sources.corrupted(name, digits.images), digits.labels, "made here"
    else:
        images, labels, note = getattr(sources, record.demo)(name, split)
    return ImageSet(images, labels, f"demo:{name}", note)


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


def _record(name, split):
    if name not in SETS:
        close = difflib.get_close_matches(str(name).lower(), SETS, 1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        raise ValueError(f"unknown data set {name!r}; {hint} {', '.join(SETS)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r} of {name!r}; use 'train' or 'test'")
    return SETS[name]


def download_all():
    """Download every set that is not there yet, each on its own; return those that did not come."""
    os.environ["OSR_PROFILE"] = "full"
    came, missing, failed = [], {}, set()
    for name, record in SETS.items():
        for split in record.wanted if record.address else ():
            here = f"{name}-{split}"
            fetched = not cache_path(name, split).is_file() and split not in record.cloned
            if fetched and record.source in failed:
                missing[here] = "as the one before it, from the same place"
                continue
            try:
                if fetched:
                    print(f"{here}: from {record.address}", flush=True)
                    download(name, split, record)
                print(f"{here}: {len(load_images(name, split).images):,} images", flush=True)
                came += [here] * fetched
            except (DatasetNotFoundError, ValueError) as error:
                failed |= {record.source} if fetched else set()
                missing[here] = str(error).split(". Three ways out")[0]
                print(f"{here}: {missing[here]}", flush=True)
    print(f"\nfetched: {', '.join(came) or 'nothing new'}")
    return missing


if __name__ == "__main__":
    if not_here := download_all():
        for this, why in not_here.items():
            print(f"did not come: {this}: {why}")
        sys.exit(f"{len(not_here)} did not come; `make data` tries these again")
