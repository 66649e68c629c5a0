"""Decoded files: read, refused where they are damaged, and downloaded once."""

import hashlib
import http.client
import os
import tracemalloc
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from helpers import POINTER, FakeDownload, files, literal, random_images, write_cache
from osr import datasets, paths, sources
from osr.caches import DatasetNotFoundError, read_arrays
from osr.datasets import load_images
from osr.records import SETS

pytestmark = pytest.mark.usefixtures("sandbox")


# --- files ----------------------------------------------------------------------------------------


def test_a_cache_is_read_as_it_was_written(data):
    write_cache(data)
    assert datasets.is_available("mnist", "test")
    images = load_images("mnist", "test")
    assert images.images.dtype == np.uint8 and images.labels.dtype == np.int64
    np.testing.assert_array_equal(images.images, random_images(3, 28, 28))
    assert images.labels.tolist() == [3, 1, 4]
    assert (images.name, images.note) == ("mnist", "")


def test_colour_images_subfolders_and_more_classes(data):
    write_cache(data, "mnist_c/fog-test")
    write_cache(data, "cifar100-test", images=random_images(2, 32, 32, 3), labels=np.array([99, 0]))
    write_cache(data, "tinyimagenet-test", labels=np.array([199, 0, 7]))
    assert load_images("mnist_c/fog", "test").name == "mnist_c/fog"
    assert load_images("cifar100", "test").images.shape == (2, 32, 32, 3)
    assert load_images("tinyimagenet", "test").labels.max() == 199


def test_the_note_of_a_cache_survives(data):
    write_cache(data, note="décoded from a lossy copy")
    assert load_images("mnist", "test").note == "décoded from a lossy copy"


def test_a_note_is_one_short_line_without_escape_codes(data):
    write_cache(data, note="two\nlines \x1b[31m" + "x" * 1000)
    note = load_images("mnist", "test").note
    assert note.startswith("two lines ?[31mxxx") and note.isprintable() and len(note) == 300


@pytest.mark.parametrize(
    "arrays, problem",
    [
        ({"images": np.zeros((3, 28, 28), np.float32)}, r"float32 \(3, 28, 28\)"),
        ({"images": np.zeros((3, 784), np.uint8)}, r"\(3, 784\)"),
        ({"images": np.zeros((3, 3, 32, 32), np.uint8)}, r"\(3, 3, 32, 32\)"),
        ({"images": np.zeros((4, 28, 28), np.uint8)}, r"labels are int64 \(3,\) for 4 images"),
        ({"labels": np.array([3.0, 1.0, 4.0])}, "labels are float64"),
        ({"labels": np.array([[3], [1], [4]])}, r"labels are int64 \(3, 1\)"),
        ({"labels": np.array([3, 1, 10])}, r"labels run from 1 to 10, not within 0\.\.9"),
        ({"labels": np.array([-1, 1, 4])}, "labels run from -1 to 4"),
        ({"labels": np.array([2**64 - 1, 1, 4], np.uint64)}, "labels run from -1 to 4"),
        ({"labels": np.array(["3", "1", "4"])}, "labels are <U1"),
        ({"images": np.zeros((3, 28, 3), np.uint8)}, r"\(3, 28, 3\)"),
        ({"images": np.zeros((3, 28, 28, 4), np.uint8)}, r"\(3, 28, 28, 4\)"),
        ({"images": np.zeros((3, 0, 28), np.uint8)}, r"\(3, 0, 28\)"),
        ({"images": np.zeros((3, 28, 0, 3), np.uint8)}, r"\(3, 28, 0, 3\)"),
        ({"images": np.zeros((), np.uint8)}, r"uint8 \(\)"),
        (
            {"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, np.int64)},
            "for 0 images",
        ),
    ],
)
def test_a_cache_of_something_else_names_the_file_and_the_problem(data, arrays, problem):
    path = write_cache(data, **arrays)
    with pytest.raises(
        ValueError, match=f"{literal(path)} is no cache of mnist: .*{problem}.*delete it"
    ):
        load_images("mnist", "test")


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_bytes(b"404: Not Found")
    elif how == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif how == "pickle":
        np.savez(path, images=np.array([None]), labels=np.array([0]))
    elif how == "no images key":
        np.savez(path, x=np.zeros((3, 28, 28), np.uint8), labels=np.array([3, 1, 4]))


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "npy", "pickle", "no images key"])
def test_a_damaged_cache_names_the_file(data, how):
    path = write_cache(data)
    damage(path, how)
    with pytest.raises(
        ValueError, match=f"{literal(path)} is no cache of mnist: (damaged|.*object).*delete"
    ):
        load_images("mnist", "test")


@pytest.mark.parametrize("kind", ["unused", "images", "labels", "note"])
def test_a_small_file_that_would_fill_the_memory_is_not_read_to_its_end(data, kind):
    """Of what is no image, 40 MB are announced in 40 KB."""
    path = write_cache(data)
    with np.load(path) as file:
        arrays = dict(file)
    huge = np.zeros(5_000_000) if kind != "note" else np.array("x" * 10_000_000)
    np.savez_compressed(path, **arrays | {kind: huge})
    del huge
    tracemalloc.start()
    if kind == "unused":
        assert len(load_images("mnist", "test").images) == 3
    else:
        with pytest.raises(ValueError, match=f"{literal(path)} is no cache of mnist"):
            load_images("mnist", "test")
    assert path.stat().st_size < 1e5 and tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied"), MemoryError()])
def test_a_file_that_may_be_whole_is_never_called_damaged(data, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    path = write_cache(data)
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(type(failure), match=literal(path)) as caught:
        load_images("mnist", "test")
    said = str(caught.value)
    assert "may not read" in said or "does not fit into memory" in said
    assert "damaged" not in said and "delete" not in said


@pytest.mark.skipif(os.name == "nt" or not os.getuid(), reason="this user may read everything")
def test_a_file_that_one_may_not_read_is_named(data):
    path = write_cache(data)
    path.chmod(0)
    with pytest.raises(PermissionError, match=f"you may not read {literal(path)}"):
        load_images("mnist", "test")


def test_a_file_too_many_is_no_damage_either(data, monkeypatch):
    def too_many(path, *_, **__):
        raise OSError(24, "Too many open files", str(path))

    path = write_cache(data)
    monkeypatch.setattr(np, "load", too_many)
    with pytest.raises(OSError, match=f"Too many open files: .*{literal(path.name)}"):
        read_arrays(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_never_changes_the_images(data, save):
    path = data / "mnist-test.npz"
    images, labels = random_images(2, 9, 9), np.array([3, 1])
    save(path, images=images, labels=labels)
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = load_images("mnist", "test")
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # a byte without meaning, such as a time stamp inside the archive
            np.testing.assert_array_equal(found.images, images)
            np.testing.assert_array_equal(found.labels, labels)
    assert refused > 100


# --- what comes with the repository ---------------------------------------------------------------

README = (paths.ROOT / "data/README.md").read_text(encoding="utf-8")
EVEN = [1000] * 10
OFFICIAL = {  # how many images of each class, and the first labels: what their authors publish
    "mnist-train": ([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], "5041921314"),
    "mnist-test": ([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], "7210414959"),
    "fashionmnist-train": ([6000] * 10, "9003027255"),
    "fashionmnist-test": (EVEN, "9211614657"),
    "kmnist-test": (EVEN, "2938338325"),
}
MOMENTS = {  # mean and deviation of the pixels, as everybody normalises with them
    "mnist-train": (0.1307, 0.3081), "fashionmnist-train": (0.2860, 0.3530),
}  # fmt: skip


def test_the_files_of_the_repository_are_those_of_the_records():
    found = {f"{name}-{split}" for name, record in SETS.items() for split in record.cloned}
    assert found == set(OFFICIAL)
    ignored = (paths.ROOT / ".gitignore").read_text().splitlines()
    assert {f"!data/{name}.npz" for name in found} <= set(ignored)


@pytest.mark.parametrize("file", OFFICIAL)
def test_a_set_of_the_repository_is_the_official_one(monkeypatch, file):
    monkeypatch.delenv("OSR_DATA", raising=False)
    counts, first = OFFICIAL[file]
    name, split = file.split("-")
    images, labels, found, note = load_images(name, split)
    assert images.shape == (sum(counts), 28, 28) and sum(counts) in (60_000, 10_000)
    assert np.bincount(labels).tolist() == counts
    assert "".join(map(str, labels[:10])) == first and (found, note) == (name, "")
    if file in MOMENTS:
        deviation, mean = torch.std_mean(torch.from_numpy(images) / 255)
        assert (mean.item(), deviation.item()) == pytest.approx(MOMENTS[file], abs=6e-5)


@pytest.mark.parametrize("file", OFFICIAL)
def test_the_readme_gives_checksum_size_and_licence_of_each_file(file):
    content = (paths.ROOT / f"data/{file}.npz").read_bytes()
    (line,) = (line for line in README.splitlines() if hashlib.sha256(content).hexdigest() in line)
    cells = [cell.strip(" `[").split("]")[0] for cell in line.split("|")]
    assert f"{file}.npz" in cells and f"{len(content):,}" in cells
    licence = SETS[file.split("-")[0]].licence
    assert any(cell.split(",")[0] == licence for cell in cells)


def test_a_folder_of_ones_own_comes_first_and_what_it_lacks_is_read_here(repository, data):
    write_cache(repository / "data", labels=np.array([1, 1, 1]))
    assert load_images("mnist", "test").labels.tolist() == [1, 1, 1]
    assert datasets.is_available("mnist", "test") and not files(data)
    write_cache(data, labels=np.array([2, 2, 2]))
    assert load_images("mnist", "test").labels.tolist() == [2, 2, 2]


@pytest.mark.parametrize("profile", ["full", "demo"])
def test_what_a_clone_lacks_is_named_with_gits_command_and_not_downloaded(
    repository, monkeypatch, profile
):
    monkeypatch.setenv("OSR_PROFILE", profile)
    monkeypatch.setattr(sources, "unreachable", None)  # a look at the network is an error
    path = repository / "data/mnist-train.npz"
    assert not datasets.is_available("mnist", "train")
    with pytest.raises(DatasetNotFoundError) as caught:
        load_images("mnist", "train")
    for part in (str(path), "git checkout -- data/mnist-train.npz", "git sparse-checkout disable"):
        assert part in str(caught.value)


def test_what_a_clone_lacks_is_named_where_a_folder_of_ones_own_lacks_it_too(repository, data):
    with pytest.raises(DatasetNotFoundError, match="git checkout -- data/mnist-test.npz") as caught:
        load_images("mnist", "test")
    assert str(repository / "data/mnist-test.npz") in str(caught.value)


@pytest.mark.parametrize(
    "content, command",
    [
        (lambda old: POINTER, "git lfs pull --include data/mnist-test.npz"),
        (lambda old: old[: len(old) // 2], "git checkout -- data/mnist-test.npz"),
        (lambda old: b"", "git checkout -- data/mnist-test.npz"),
    ],
)
def test_a_pointer_and_a_truncated_file_of_a_clone_are_named_with_gits_command(
    repository, content, command
):
    path = write_cache(repository / "data")
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{literal(path)}.*`{command}`") as caught:
        load_images("mnist", "test")
    assert "delete" not in str(caught.value)


def test_a_downloaded_file_beside_those_of_the_clone_may_be_deleted(repository):
    path = write_cache(repository / "data", "kmnist-train", labels=np.array([0, 1, 10]))
    with pytest.raises(ValueError, match=f"{literal(path)} is no cache of kmnist: .*delete it"):
        load_images("kmnist", "train")


# --- downloads ------------------------------------------------------------------------------------


class FakeCIFAR(FakeDownload):
    """Three images; the labels tell the split."""

    data = random_images(3, 32, 32, 3)

    @property
    def targets(self):
        return [1, 1, 1] if self.which == "train" else [2, 2, 2]


class Fails(FakeCIFAR):
    """Leaves half a file behind, and fails."""

    failure = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        raise self.failure


KEPT = "downloads/CIFAR10/partial.gz"  # what a fake download leaves behind


@pytest.mark.parametrize(
    "name, split, demo",
    [("kmnist", "train", False), ("mnist_c/fog", "test", False), ("cifar10", "test", True)],
)
def test_a_missing_set_without_a_network_names_file_folder_and_ways_out(
    data, monkeypatch, name, split, demo
):
    monkeypatch.setattr(sources, "unreachable", lambda address: "no answer")
    path = data / f"{name}-{split}.npz"
    assert not datasets.is_available(name, split)
    with pytest.raises(DatasetNotFoundError) as caught:
        load_images(name, split)
    for part in (path.name, str(path.parent), "make data", "OSR_DATA"):
        assert part in str(caught.value)
    assert ("OSR_PROFILE=demo" in str(caught.value)) == demo  # which has a stand-in
    assert isinstance(caught.value, FileNotFoundError)
    assert ", and no answer. Ways out" in str(caught.value)
    assert not list(data.iterdir())


@pytest.mark.parametrize("name, split", [("cifar100", "test"), ("mnist", "train")])
def test_a_misspelt_folder_is_told_where_a_set_is_missing(repository, monkeypatch, name, split):
    monkeypatch.setattr(sources, "unreachable", lambda address: "no answer")
    monkeypatch.setenv("OSR_DATA", str(repository / "dota"))
    said = f"OSR_DATA={literal(repository / 'dota')} names no folder"
    with pytest.raises(DatasetNotFoundError, match=said):
        load_images(name, split)


def test_what_has_no_download_says_why(data, monkeypatch):
    monkeypatch.setattr(sources, "unreachable", lambda address: "")
    with pytest.raises(DatasetNotFoundError, match="MNIST-C is a test set; use 'test'"):
        load_images("mnist_c/fog", "train")
    with pytest.raises(DatasetNotFoundError, match="MNIST-test itself"):
        load_images("mnist_c/identity", "test")


def test_a_download_leaves_a_cache_that_is_there_alone(data, network):
    mine = {"images": random_images(1, 28, 28), "labels": np.array([7]), "note": "mine"}
    np.savez(data / "cifar10-test.npz", **mine)
    network("CIFAR10", FakeCIFAR)
    assert load_images("cifar10", "train").labels.tolist() == [1, 1, 1]
    assert load_images("cifar10", "test").note == "mine"


def test_a_download_does_not_repeat_what_came_with_the_repository(repository, data, network):
    path = write_cache(repository / "data", "kmnist-test")
    content = path.read_bytes()
    network("KMNIST", FakeCIFAR)
    assert load_images("kmnist", "train").labels.tolist() == [1, 1, 1]
    assert load_images("kmnist", "test").labels.tolist() == [3, 1, 4]
    assert files(data) == ["kmnist-train.npz"] and path.read_bytes() == content


def test_a_download_writes_the_cache_and_nothing_else(data, network):
    network("CIFAR10", FakeCIFAR)
    images = load_images("cifar10", "train")
    assert images.labels.tolist() == [1, 1, 1]
    assert load_images("cifar10", "test").labels.tolist() == [2, 2, 2]
    assert files(data) == ["cifar10-test.npz", "cifar10-train.npz"]
    network("CIFAR10", None)  # the second time it comes from the cache
    again = load_images("cifar10", "train")
    np.testing.assert_array_equal(again.images, FakeCIFAR.data)
    assert again.images.dtype == np.uint8 and again.labels.dtype == np.int64


def test_a_download_creates_the_data_folder(data, network):
    network("CIFAR10", FakeCIFAR)
    data.rmdir()
    assert len(load_images("cifar10", "test").images) == 3


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("File not found or corrupted."),
        urllib.error.URLError("reset"),
        http.client.IncompleteRead(b"half"),
    ],
)
def test_a_failed_download_keeps_what_has_come_and_gives_the_ways_out(
    data, network, monkeypatch, failure
):
    monkeypatch.setattr(Fails, "failure", failure)
    network("CIFAR10", Fails)
    with pytest.raises(DatasetNotFoundError, match="download failed.*make data") as caught:
        load_images("cifar10", "test")
    assert repr(failure) in str(caught.value)
    assert (data / KEPT).is_file() and files(data) == ["partial.gz"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), urllib.error.URLError("reset")])
def test_the_next_download_goes_on_from_what_has_come(data, network, monkeypatch, failure):
    class GoesOn(FakeCIFAR):
        def __init__(self, root, **kwargs):
            assert (data / KEPT).read_text() == "half a file" and data / KEPT in root.rglob("*")
            super().__init__(root, **kwargs)

    monkeypatch.setattr(Fails, "failure", failure)
    network("CIFAR10", Fails)
    with pytest.raises((KeyboardInterrupt, DatasetNotFoundError)):
        load_images("cifar10", "test")
    network("CIFAR10", GoesOn)
    assert load_images("cifar10", "test").labels.tolist() == [2, 2, 2]
    assert files(data) == ["cifar10-test.npz", "cifar10-train.npz"]  # nothing is kept any longer


def test_what_was_half_unpacked_does_not_stand_in_the_way_for_ever(data, monkeypatch):
    kept = data / "downloads/KMNIST"
    (kept / "KMNIST/raw").mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (kept / f"KMNIST/raw/{part}-{kind}-ubyte").write_bytes(b"half a file")
    monkeypatch.setattr(sources, "unreachable", lambda address: "")
    with pytest.raises(DatasetNotFoundError) as caught:
        load_images("kmnist", "train")
    assert str(kept) in str(caught.value) or not files(kept)


def test_a_data_folder_that_cannot_be_gives_the_ways_out(data, network):
    network("CIFAR10", FakeCIFAR)
    data.rmdir()
    data.write_text("a file in the folder's place")
    with pytest.raises(DatasetNotFoundError, match=f"{literal(data)}.*make data.*OSR_DATA"):
        load_images("cifar10", "test")
    assert data.read_text() == "a file in the folder's place"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_no_cache(data, network, monkeypatch, failure):
    def half(file, **arrays):
        file.write(b"PK half an archive")
        raise failure

    network("CIFAR10", FakeCIFAR)
    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises((KeyboardInterrupt, DatasetNotFoundError)):
        load_images("cifar10", "test")
    assert files(data) == ["partial.gz"]
