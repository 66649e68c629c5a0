"""Decoded files: read, refused where they are damaged, and downloaded once."""

import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from helpers import FakeDownload, random_images, write_cache
from osr import datasets, sources
from osr.caches import DatasetNotFoundError
from osr.datasets import load_images

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
        (
            {"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, np.int64)},
            "for 0 images",
        ),
    ],
)
def test_a_cache_of_something_else_names_the_file_and_the_problem(data, arrays, problem):
    path = write_cache(data, **arrays)
    with pytest.raises(ValueError, match=f"{path} is no cache of mnist: .*{problem}.*delete it"):
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
    with pytest.raises(ValueError, match=f"{path} is damaged or no image cache.*delete it"):
        load_images("mnist", "test")


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


# --- downloads ------------------------------------------------------------------------------------


class FakeMNIST(FakeDownload):
    """Three images; the labels tell the split."""

    data = torch.from_numpy(random_images(3, 28, 28))

    @property
    def targets(self):
        return torch.tensor([1, 1, 1] if self.which == "train" else [2, 2, 2])


@pytest.mark.parametrize("name", ["mnist", "mnist_c/fog", "cifar100"])
def test_a_missing_set_without_a_network_names_file_folder_and_ways_out(data, monkeypatch, name):
    monkeypatch.setattr(sources, "online", lambda name: False)
    path = data / f"{name}-test.npz"
    assert not datasets.is_available(name, "test")
    with pytest.raises(DatasetNotFoundError) as caught:
        load_images(name, "test")
    for part in (path.name, str(path.parent), "make data", "OSR_DATA", "OSR_PROFILE=demo"):
        assert part in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert not list(data.iterdir())


def test_what_has_no_download_says_why(data, monkeypatch):
    monkeypatch.setattr(sources, "online", lambda name: True)
    with pytest.raises(DatasetNotFoundError, match="test set only"):
        load_images("mnist_c/fog", "train")
    with pytest.raises(DatasetNotFoundError, match="MNIST-test itself"):
        load_images("mnist_c/identity", "test")


def test_a_download_leaves_a_cache_that_is_there_alone(data, network):
    mine = {"images": random_images(1, 28, 28), "labels": np.array([7]), "note": "mine"}
    np.savez(data / "mnist-test.npz", **mine)
    network("MNIST", FakeMNIST)
    assert load_images("mnist", "train").labels.tolist() == [1, 1, 1]
    assert load_images("mnist", "test").note == "mine"


def test_a_download_writes_the_cache_and_nothing_else(data, network):
    network("MNIST", FakeMNIST)
    images = load_images("mnist", "train")
    assert images.labels.tolist() == [1, 1, 1]
    assert load_images("mnist", "test").labels.tolist() == [2, 2, 2]
    assert sorted(p.name for p in data.iterdir()) == ["mnist-test.npz", "mnist-train.npz"]
    network("MNIST", None)  # the second time it comes from the cache
    again = load_images("mnist", "train")
    np.testing.assert_array_equal(again.images, random_images(3, 28, 28))
    assert again.images.dtype == np.uint8 and again.labels.dtype == np.int64


def test_a_download_creates_the_data_folder(data, network):
    network("MNIST", FakeMNIST)
    data.rmdir()
    assert len(load_images("mnist", "test").images) == 3


@pytest.mark.parametrize(
    "failure", [RuntimeError("File not found or corrupted."), urllib.error.URLError("reset")]
)
def test_a_failed_download_leaves_nothing_and_gives_the_ways_out(data, network, failure):
    class Fails(FakeDownload):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            raise failure

    network("MNIST", Fails)
    with pytest.raises(DatasetNotFoundError, match="download failed.*make data") as caught:
        load_images("mnist", "test")
    assert repr(failure) in str(caught.value)
    assert not list(data.iterdir())


def test_a_data_folder_that_cannot_be_gives_the_ways_out(data, network):
    network("MNIST", FakeMNIST)
    data.rmdir()
    data.write_text("a file in the folder's place")
    with pytest.raises(DatasetNotFoundError, match=f"{data}.*make data.*OSR_DATA"):
        load_images("mnist", "test")
    assert data.read_text() == "a file in the folder's place"


def test_an_interrupted_download_leaves_nothing(data, network):
    class Interrupted(FakeDownload):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            raise KeyboardInterrupt

    network("MNIST", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_images("mnist", "test")
    assert not list(data.iterdir())


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_of_the_cache_leaves_nothing(data, network, monkeypatch, failure):
    def half(file, **arrays):
        file.write(b"PK half an archive")
        raise failure

    network("MNIST", FakeMNIST)
    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises((KeyboardInterrupt, DatasetNotFoundError)):
        load_images("mnist", "test")
    assert not list(data.iterdir())
