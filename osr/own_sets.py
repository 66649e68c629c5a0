"""Data sets of one's own: a name for arrays, for a file or for a folder of pictures."""

from pathlib import Path

import numpy as np

from osr.caches import ImageSet, check_images, read_arrays
from osr.paths import expanded, safe_name
from osr.records import COLORS, SETS, Record

registered = {}  # (name, split) -> ImageSet


def register(name, train=None, test=None):
    """Give a data set of your own a name that `load_images` knows from then on, in this process.

    Parameters
    ----------
    name : str
        A new one, without a slash; a name that you have registered before is replaced.
    train, test : (images, labels), or str or Path
        Arrays, uint8 (N, H, W) or (N, H, W, 3) and integers (N,); or a .npz file with arrays
        ``images`` and ``labels``; or a folder that holds one folder of pictures for each class,
        which are numbered in alphabetical order (pictures of several sizes are resized to 64 x 64).
        ``~`` and variables in a path are expanded. One of the two may be missing.

    Raises
    ------
    ValueError
        If the name is taken or could name no file, neither split is given, or a split is none of
        the above.
    FileNotFoundError
        If there is no such file or folder.
    """
    mine = any(key[0] == name for key in registered)
    if name in SETS and not mine:
        raise ValueError(f"{name!r} is a set of this repository: give yours another name")
    safe_name(name)
    given = {split: part for split, part in (("train", train), ("test", test)) if part is not None}
    if not given:
        raise ValueError(f"no images for {name!r}: give train=..., test=..., or both")
    found = {(name, split): _own_images(name, part) for split, part in given.items()}
    for split in ("train", "test"):
        registered.pop((name, split), None)
    registered.update(found)
    SETS[name] = Record(name, "your own", "")
    COLORS[name] = SETS[name].colour


def _own_images(name, given):
    note = given.note if isinstance(given, ImageSet) else ""
    if isinstance(given, str | Path):
        path = expanded(given)
        if path.is_dir():
            from osr import sources

            return ImageSet(*sources.class_folders(path), name)
        if not path.is_file():
            raise FileNotFoundError(f"no file or folder {path}: give the one that holds {name!r}")
        try:
            *given, note = read_arrays(path)
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be taken: {error}; give a .npz file with arrays images and labels"
            ) from error
    if not isinstance(given, tuple | list) or (len(given) != 2 and not isinstance(given, ImageSet)):
        raise ValueError(
            f"{name!r} is a {type(given).__name__}: give a tuple (images, labels), a folder with "
            "one folder a class, or a .npz file"
        )
    images, labels = (np.array(part) for part in given[:2])  # what you change later stays yours
    if problem := check_images(images, labels, None):
        raise ValueError(f"{name!r} cannot be registered: {problem}")
    return ImageSet(images, labels.astype(np.int64), name, note)
