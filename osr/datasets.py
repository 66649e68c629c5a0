"""Data sets by name: which are here, loading, drawing from them.

`python -m osr.datasets` (`make data`) downloads every set that is not there yet.
"""

import difflib
import operator
import os
import sys
from itertools import groupby

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
from osr.paths import data_hint, profile, way_to_restore
from osr.records import SETS, folded

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
    names = [names] if isinstance(names, str) else list(names)
    absent = [name for name in names if not is_available(name, split)]
    if absent:
        records = [SETS[name] for name in absent]
        fetched = any(r.address and split in set(r.wanted) - set(r.cloned) for r in records)
        hint = "; `make data` fetches what is missing" if fetched else ""
        print(
            f"not here: {', '.join(folded(absent))} ({split}{hint}{data_hint()}). What rests on it "
            "is left out below, or, where it is marked °, as it was stored."
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
            f"{way_to_restore(cloned_path(name, split))}{data_hint()}"
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
    digits : collection of int
        The digits that get a set of their own.

    Returns
    -------
    dict of str to int64 array
        Ascending indices: one entry a digit ("8", "4"), and "rest".

    Raises
    ------
    ValueError
        If `labels` or `digits` are no whole numbers.
    """
    labels, digits = np.asarray(labels), _whole_numbers("digits", digits)
    if labels.ndim != 1 or (labels.dtype.kind not in "iu" and len(labels)):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}: give whole numbers, (N,)")
    parts = {str(digit): np.flatnonzero(labels == digit) for digit in digits}
    parts["rest"] = np.flatnonzero(~np.isin(labels, digits))
    return parts


def sample_split(n, sizes, seed):
    """Draw disjoint random subsets of ``range(n)``.

    Parameters
    ----------
    n : int
    sizes : collection of int
    seed : int

    Returns
    -------
    list of int64 array
        One array of distinct indices a size, in random order.

    Raises
    ------
    ValueError
        If more than `n` indices are asked for, or a size is negative or no whole number.
    """
    sizes, [n] = _whole_numbers("sizes", sizes), _whole_numbers("n", [n])
    if min(sizes, default=0) < 0:
        raise ValueError(f"sizes are {sizes}: none can be below 0")
    if sum(sizes) > n:
        raise ValueError(f"asked for {sum(sizes)} of {n} images; ask for fewer")
    order = np.random.default_rng(seed).permutation(n)
    return np.split(order[: sum(sizes)], np.cumsum(sizes, dtype=int)[:-1])[: len(sizes)]


def _whole_numbers(what, values):
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise ValueError(f"{what} are {values!r}: give whole numbers, such as (8, 4)") from error


def _record(name, split):
    if not isinstance(name, str) or name not in SETS:
        written = str(name).lower().replace("-", "_")
        known = [one for one in SETS if written.startswith("mnist_c") == ("/" in one)]
        close = difflib.get_close_matches(written, known, 1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        more = ", mnist_c/fog and other corruptions" if "mnist" in known else ""
        raise ValueError(f"unknown data set {name!r}; {hint} {', '.join(known)}{more}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r} of {name!r}; use 'train' or 'test'")
    return SETS[name]


def download_all():
    """Download every set that is not there yet, each on its own; return why some did not come."""
    os.environ["OSR_PROFILE"] = "full"
    there = [(name, split) for name in SETS if SETS[name].address for split in SETS[name].wanted]
    came, missing, failed = [], {}, set()
    for here, parts in groupby(there, lambda one: f"{folded(one[:1])[0]}-{one[1]}"):
        images, problems = 0, []
        for name, split in parts:
            record, fetched = SETS[name], False
            try:
                fetched = not cache_path(name, split).is_file() and split not in record.cloned
                if fetched and record.source in failed:
                    problems = problems or ["as the one before it, from the same place"]
                    continue
                if fetched:
                    print(f"{here}: from {record.address}{data_hint()}", flush=True)
                    download(name, split, record)
                images += len(load_images(name, split).images)
                came += [here] * (fetched and here not in came)
            except (OSError, ValueError, MemoryError) as error:
                failed |= {record.source} if fetched else set()
                problems.append(str(error).split(". Ways out")[0])
        if images:
            print(f"{here}: {images:,} images", flush=True)
        if problems:
            missing[here] = "; ".join(problems)
            print(f"{here}: {missing[here]}", flush=True)
    print(f"\nfetched: {', '.join(came) or 'nothing new'}")
    return missing


if __name__ == "__main__":
    if not_here := download_all():
        for this, why in not_here.items():
            print(f"did not come: {this}: {why}")
        sys.exit(f"{len(not_here)} did not come; `make data` tries these again")
