"""Image sets: caches, downloads, the demo's stand-ins, preprocessing, splits, augmentation."""

import inspect
import itertools
import math
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import functional as tvf

import osr_utils
from osr_utils import CombinedDataset, DatasetNotFoundError, load_images, to_model_input

pytestmark = pytest.mark.usefixtures("sandbox")
sources = osr_utils.data_module("sources")

PHOTOGRAPHS = ("cifar10", "svhn", "tinyimagenet")  # the demo's colour images
DEMO_NAMES = (
    "mnist", "fashionmnist", "kmnist", "mnist_c/brightness", "mnist_c/impulse_noise",
    "mnist_c/translate", *PHOTOGRAPHS,
)  # fmt: skip


@pytest.fixture
def data(monkeypatch, tmp_path):
    """Return an empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("OSR_DATA", str(folder))
    return folder


def random_images(*shape):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def write_cache(folder, name="mnist-test", **arrays):
    path = folder / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    content = {"images": random_images(3, 28, 28), "labels": np.array([3, 1, 4])} | arrays
    np.savez(path, **content)
    return path


# --- profile --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value, expected", [(None, "full"), ("", "full"), ("demo", "demo")])
def test_profile(monkeypatch, value, expected):
    if value is not None:
        monkeypatch.setenv("OSR_PROFILE", value)
    assert osr_utils.profile() == expected


@pytest.mark.parametrize("value", ["Demo", "fast", "0"])
def test_an_unknown_profile_is_an_error_everywhere(monkeypatch, value):
    monkeypatch.setenv("OSR_PROFILE", value)
    for call in (osr_utils.profile, lambda: load_images("mnist", "test")):
        with pytest.raises(ValueError, match=f"OSR_PROFILE='{value}'.*'full'.*'demo'"):
            call()


# --- caches ---------------------------------------------------------------------------------------


def test_a_cache_is_read_as_it_was_written(data):
    write_cache(data)
    assert osr_utils.is_available("mnist", "test")
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


@pytest.mark.parametrize("name", ["emnist", "MNIST", "", "mnist_c", "mnist_c/snow", "../mnist"])
def test_an_unknown_name_lists_the_known_ones(name):
    for call in (load_images, osr_utils.is_available):
        with pytest.raises(ValueError, match="unknown data set.*mnist, fashionmnist.*mnist_c/fog"):
            call(name, "test")


def test_a_misspelt_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'fashionmnist'"):
        load_images("FashionMNIST", "test")


def test_letters_and_symbols_of_the_test_are_other_drawings():
    for name in ("letters", "symbols"):
        train, test = (load_images(name, split) for split in ("train", "test"))
        assert (train.labels != test.labels).mean() > 0.8


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="unknown split 'val' of 'mnist'; use 'train' or 'test'"):
        load_images("mnist", "val")


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


@pytest.fixture
def network(monkeypatch):
    """Return a function that replaces a torchvision data set by a fake, with a network."""
    monkeypatch.setattr(sources, "online", lambda name: True)
    return lambda name, fake: monkeypatch.setattr(torchvision.datasets, name, fake)


@pytest.mark.parametrize("name", ["mnist", "mnist_c/fog", "cifar100"])
def test_a_missing_set_without_a_network_names_file_folder_and_ways_out(data, monkeypatch, name):
    monkeypatch.setattr(sources, "online", lambda name: False)
    path = data / f"{name}-test.npz"
    assert not osr_utils.is_available(name, "test")
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


class FakeDownload:
    """Stand in for a torchvision data set: leave a file in the folder, then bring the images."""

    def __init__(self, root, download, train=None, split=None):
        assert download
        self.which = split or ("train" if train else "test")
        with open(f"{root}/partial.gz", "w") as file:
            file.write("half a file")


class FakeMNIST(FakeDownload):
    data = torch.from_numpy(random_images(3, 28, 28))

    @property
    def targets(self):
        return torch.tensor([1, 1, 1] if self.which == "train" else [2, 2, 2])


class FakeCIFAR10(FakeDownload):
    data = random_images(2, 32, 32, 3)
    targets = (9, 0)


class FakeSVHN(FakeDownload):
    data = random_images(2, 3, 32, 32)  # channels first
    labels = np.array([5, 6])


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


def test_cifar_keeps_its_channels_and_svhn_gets_them_last(data, network):
    network("CIFAR10", FakeCIFAR10)
    network("SVHN", FakeSVHN)
    cifar, svhn = load_images("cifar10", "test"), load_images("svhn", "train")
    np.testing.assert_array_equal(cifar.images, FakeCIFAR10.data)
    assert svhn.images.shape == (2, 32, 32, 3) and svhn.labels.tolist() == [5, 6]
    for channel in range(3):
        np.testing.assert_array_equal(svhn.images[..., channel], FakeSVHN.data[:, channel])


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


def fake_archive(monkeypatch, fill):
    monkeypatch.setattr(sources, "online", lambda name: True)

    def download(address, folder, md5):
        assert address.startswith("http") and len(md5) == 32
        fill(Path(folder))

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", download)


def test_the_mnist_c_archive_brings_every_corruption_at_once(data, monkeypatch):
    def fill(folder):
        for number, name in enumerate(("fog", "zigzag")):
            part = folder / "mnist_c" / name
            part.mkdir(parents=True)
            np.save(part / "test_images.npy", np.full((2, 28, 28, 1), number, np.uint8))
            np.save(part / "test_labels.npy", np.array([7, number], np.int32))

    fake_archive(monkeypatch, fill)
    fog = load_images("mnist_c/fog", "test")
    assert fog.images.shape == (2, 28, 28) and fog.labels.tolist() == [7, 0]
    assert osr_utils.is_available("mnist_c/zigzag", "test")
    assert (load_images("mnist_c/zigzag", "test").images == 1).all()
    files = sorted(p.name for p in data.rglob("*") if p.is_file())
    assert files == ["fog-test.npz", "zigzag-test.npz"]


def test_the_tinyimagenet_archive_is_decoded_and_resized(data, monkeypatch):
    def fill(folder):
        root = folder / "tiny-imagenet-200"
        for word, grey in (("n02", 200), ("n01", 50)):
            (root / f"train/{word}/images").mkdir(parents=True)
            Image.new("L", (64, 64), grey).save(root / f"train/{word}/images/{word}_0.JPEG")
        (root / "val/images").mkdir(parents=True)
        Image.new("RGB", (64, 64), (255, 0, 0)).save(root / "val/images/val_0.JPEG")
        (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t62\t62\n")
        (root / "wnids.txt").write_text("n02\nn01\n")

    fake_archive(monkeypatch, fill)
    train, test = load_images("tinyimagenet", "train"), load_images("tinyimagenet", "test")
    assert train.images.shape == (2, 32, 32, 3) and train.labels.tolist() == [0, 1]
    assert abs(train.images.astype(int) - [[[[200]]], [[[50]]]]).max() <= 2
    assert test.labels.tolist() == [1] and test.images[0, 5, 5, 0] > 240


def test_online_is_true_where_a_server_answers_or_refuses(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError("https://zenodo.org", 403, "no", None, None)

    for answer in (lambda request, timeout: None, refuse):
        monkeypatch.setattr(urllib.request, "urlopen", answer)
        assert sources.online("mnist", seconds=10)


def test_online_is_false_at_once_where_the_request_fails(monkeypatch):
    def fail(request, timeout):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    start = time.monotonic()
    assert not sources.online("mnist", seconds=30)
    assert time.monotonic() - start < 5


def test_online_gives_up_on_a_request_that_hangs(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: release.wait(30))
    start = time.monotonic()
    assert not sources.online("mnist", seconds=0.2)
    assert time.monotonic() - start < 5
    release.set()
    assert inspect.signature(sources.online).parameters["seconds"].default < 8


# --- the demo -------------------------------------------------------------------------------------


@pytest.fixture
def demo(monkeypatch, data):
    """Run in the demo profile; a look at the network is an error."""
    monkeypatch.setenv("OSR_PROFILE", "demo")
    monkeypatch.setattr(sources, "online", None)
    return data


def assert_made_on_the_spot(name, split, shape, folder):
    """Check a generated set; return the name that it carries."""
    assert osr_utils.is_available(name, split)
    images, labels, found, note = load_images(name, split)
    assert images.dtype == np.uint8 and images.shape == (len(labels), *shape)
    assert labels.dtype == np.int64 and set(labels.tolist()) == set(range(10))
    assert len(labels) >= 500 and note
    assert (images.reshape(len(images), -1).max(1) > 0).all()  # no glyph is missing
    np.testing.assert_array_equal(load_images(name, split).images, images)
    assert not list(folder.iterdir())
    return found


@pytest.mark.parametrize("name", DEMO_NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_stand_in_of_the_demo_is_a_valid_image_set(demo, name, split):
    shape = (32, 32, 3) if name in PHOTOGRAPHS else (28, 28)
    assert assert_made_on_the_spot(name, split, shape, demo) == f"demo:{name}"


@pytest.mark.parametrize("name", [name for name in DEMO_NAMES if name not in PHOTOGRAPHS])
def test_the_demos_splits_share_no_image(demo, name):
    train, test = (load_images(name, split).images for split in ("train", "test"))
    train = {image.tobytes() for image in train}
    assert not any(image.tobytes() in train for image in test)


@pytest.mark.parametrize("name", ["cifar100", "mnist_c/fog", "mnist_c/identity"])
def test_what_the_demo_lacks_is_said(demo, name):
    assert not osr_utils.is_available(name, "test")
    with pytest.raises(DatasetNotFoundError, match=f"no stand-in for '{name}'.*OSR_PROFILE=full"):
        load_images(name, "test")


# --- sets from the dependencies -------------------------------------------------------------------

BUNDLED = ("uci_digits", "letters", "symbols")


@pytest.fixture(params=["full", "demo"])
def offline(monkeypatch, data, request):
    """Run in either profile with an empty data folder; a look at the network is an error."""
    monkeypatch.setenv("OSR_PROFILE", request.param)
    monkeypatch.setattr(sources, "online", None)
    return data


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_bundled_sets_need_no_file_and_no_network_in_either_profile(offline, name, split):
    assert assert_made_on_the_spot(name, split, (28, 28), offline) == name


@pytest.mark.parametrize("name", BUNDLED)
def test_the_splits_of_a_bundled_set_share_no_image(name):
    train, test = (load_images(name, split).images for split in ("train", "test"))
    train = {image.tobytes() for image in train}
    assert len(train) > 490 and not any(image.tobytes() in train for image in test)


def test_letters_and_symbols_share_no_image():
    letters, symbols = (
        {image.tobytes() for split in ("train", "test") for image in load_images(n, split).images}
        for n in ("letters", "symbols")
    )
    assert not letters & symbols


def test_uci_digits_are_all_of_scikit_learns_digits_with_their_labels():
    parts = [load_images("uci_digits", split) for split in ("train", "test")]
    assert [len(part.images) for part in parts] == [1297, 500]
    images, labels = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:2])
    digits = load_digits()
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(digits.target))
    frame = images.copy()
    frame[:, 4:24, 4:24] = 0
    assert not frame.any()
    core = torch.tensor(images[:, None, 4:24, 4:24] / 255)
    small = tvf.resize(core, [8, 8], antialias=True).flatten(1)
    scaled = torch.tensor(digits.images / 16).flatten(1)
    nearest = torch.cdist(small, scaled).argmin(1).numpy()
    np.testing.assert_array_equal(labels, digits.target[nearest])
    assert len(set(nearest.tolist())) > 0.99 * 1797


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_set_has_no_other_splits(name):
    for call in (load_images, osr_utils.is_available):
        with pytest.raises(ValueError, match=f"unknown split 'val' of '{name}'"):
            call(name, "val")


# --- preprocessing --------------------------------------------------------------------------------


def test_grey_is_the_weighted_sum_of_the_channels():
    images = np.zeros((5, 28, 28, 3), np.uint8)
    images[0, :, :, 0] = images[1, :, :, 1] = images[2, :, :, 2] = 255
    images[3] = 255
    images[4] = (10, 100, 200)  # (2.99 + 58.7 + 22.8) / 255
    expected = [0.299, 0.587, 0.114, 1, 84.49 / 255]
    x = to_model_input(images)
    assert x.shape == (5, 1, 28, 28) and x.dtype == torch.float32
    assert x.amax((1, 2, 3)).tolist() == pytest.approx(expected, abs=1e-6)
    assert x.amin((1, 2, 3)).tolist() == pytest.approx(expected, abs=1e-6)
    assert x.max() <= 1


def test_grey_images_of_the_right_size_are_only_scaled():
    images = random_images(3, 28, 28)
    x = to_model_input(images)
    np.testing.assert_allclose(x[:, 0].numpy(), images / 255, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 64, 48), (1, 14, 20), (1, 32, 32, 3)])
def test_resizing_agrees_with_torchvision_and_pillow(shape):
    images = random_images(*shape)
    grey = images[0] / 255 @ [0.299, 0.587, 0.114] if len(shape) == 4 else images[0] / 255
    x = to_model_input(images)[0, 0].numpy()
    torch_x = tvf.resize(torch.tensor(grey)[None], [28, 28], antialias=True)[0]
    np.testing.assert_allclose(x, torch_x.numpy(), atol=2e-6)
    pillow = Image.fromarray(grey.astype(np.float32)).resize((28, 28), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(x, np.asarray(pillow), atol=2e-6)
    assert 0 <= x.min() and x.max() <= 1


def test_many_images_are_treated_as_each_alone():
    images = random_images(4100, 6, 5)
    x = to_model_input(images)
    assert x.shape == (4100, 1, 28, 28)
    for index in (0, 4095, 4096, 4099):
        assert torch.equal(x[index], to_model_input(images[index : index + 1])[0])


def test_no_images_give_no_input():
    assert to_model_input(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 1, 28, 28)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28), np.float32),
        np.zeros((2, 28, 28), np.int64),
        np.zeros((28, 28), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((2, 32, 32, 1), np.uint8),
        np.zeros((2, 32, 32, 4), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_their_dtype_and_shape(images):
    found = f"{images.dtype} {images.shape}".replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"found {found}; .*colour channel last"):
        to_model_input(images)


def test_a_checksum_depends_on_dtype_shape_and_bytes():
    base = np.arange(6, dtype=np.int64)
    others = [base.reshape(2, 3), base.astype(np.int32), base + 1, base[::-1]]
    sums = {osr_utils.checksum(array) for array in (base, *others)}
    assert len(sums) == 5 and {len(s) for s in sums} == {12}
    strided = np.stack([base, base], 1)[:, 0]  # the same content in another layout
    assert osr_utils.checksum(strided) == osr_utils.checksum(base)


# --- splits ---------------------------------------------------------------------------------------


def test_digit_split_by_hand():
    parts = osr_utils.digit_split([8, 0, 4, 8, 9, 1, 4])
    assert {key: value.tolist() for key, value in parts.items()} == {
        "8": [0, 3], "4": [2, 6], "rest": [1, 4, 5],
    }  # fmt: skip


def test_digit_split_covers_every_image_once():
    labels = np.random.default_rng(0).integers(10, size=500)
    parts = osr_utils.digit_split(labels, digits=(1, 2, 3))
    assert list(parts) == ["1", "2", "3", "rest"]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(500))
    assert not set(labels[parts["rest"]]) & {1, 2, 3}


@pytest.mark.parametrize(
    "split, sizes",
    [
        ("train", {"8": 5851, "4": 5842, "rest": 48307}),
        ("test", {"8": 974, "4": 982, "rest": 8044}),
    ],
)
def test_the_six_sets_of_system_c(split, sizes):
    if not osr_utils.is_available("mnist", split):
        pytest.skip(f"no real MNIST in {osr_utils.data_dir()}: run `make data` or set OSR_DATA")
    parts = osr_utils.digit_split(load_images("mnist", split).labels)
    assert {key: len(value) for key, value in parts.items()} == sizes


@pytest.mark.parametrize("sizes", [(9, 1), (3, 0, 4), (10,), (1, 1)])
def test_sample_split_draws_disjoint_subsets(sizes):
    parts = osr_utils.sample_split(10, sizes, seed=0)
    assert [len(part) for part in parts] == list(sizes)
    drawn = np.concatenate(parts)
    assert len(set(drawn.tolist())) == sum(sizes) and set(drawn) <= set(range(10))


def test_sample_split_depends_on_the_seed_alone():
    first, again, other = (osr_utils.sample_split(1000, (500, 100), s) for s in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))


def test_sample_split_of_too_many_is_an_error():
    with pytest.raises(ValueError, match="asked for 11 of 10 images"):
        osr_utils.sample_split(10, (6, 5), seed=0)


# --- augmentation ---------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def first_draw():
    """Return what the first image of a batch of one draws, in [-1, 1]: angle, x and y shift."""
    return (torch.rand(3, 1, generator=generator()) * 2 - 1)[:, 0].tolist()


def test_no_rotation_and_no_shift_change_nothing():
    x = torch.rand(4, 1, 28, 28)
    y = osr_utils.augment(x, generator(), degrees=0, translate=0)
    torch.testing.assert_close(y, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(6, 1, 28, 28), (6, 3, 32, 32)])
def test_augmented_images_keep_shape_and_range(shape):
    x = torch.ones(shape)
    y = osr_utils.augment(x, generator(), degrees=45, translate=0.3)
    assert y.shape == shape and y.dtype == torch.float32
    assert y.min() == 0 and y.max() <= 1 + 1e-6
    assert y[:, :, 13:15, 13:15].min() > 0.999  # the middle stays, the background fills in


def test_augmentation_is_seeded_and_differs_from_image_to_image():
    x = torch.rand(1, 1, 28, 28).repeat(5, 1, 1, 1)
    first, again, other = (osr_utils.augment(x, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) == 5


def test_a_rotation_by_90_degrees_turns_the_image():
    x = torch.rand(1, 1, 28, 28)
    y = osr_utils.augment(x, generator(), degrees=90 / first_draw()[0], translate=0)
    turned = [torch.rot90(x, k, (2, 3)) for k in (1, -1)]
    assert any(torch.allclose(y, t, atol=1e-4) for t in turned)


def centroid(x):
    places = torch.arange(28.0)
    return [float((x.sum(axis).flatten() * places).sum() / x.sum()) for axis in (2, 3)]


def test_a_shift_moves_the_image_by_that_many_pixels():
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 12:16, 12:16] = torch.rand(4, 4)
    _, right, down = first_draw()
    y = osr_utils.augment(x, generator(), degrees=0, translate=3 / 28 / abs(right))
    moved = [b - a for a, b in zip(centroid(x), centroid(y), strict=True)]
    assert abs(moved[0]) == pytest.approx(3, abs=1e-3)
    assert abs(moved[1]) == pytest.approx(3 * abs(down / right), abs=1e-3)
    assert y.sum() == pytest.approx(float(x.sum()), rel=1e-4)


def test_a_shift_of_whole_pixels_copies_them():
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, :, 12:16] = torch.rand(4)  # the same in every row
    translate = 3 / 28 / abs(first_draw()[1])
    y = osr_utils.augment(x, generator(), degrees=0, translate=translate)[:, :, 14]
    moved = [x[:, :, 14].roll(shift, 2) for shift in (3, -3)]
    assert any(torch.allclose(y, m, atol=1e-4) for m in moved)


def test_shifts_stay_within_their_bound_and_use_it():
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, 13:15, 13:15] = 1
    y = osr_utils.augment(x, generator(), degrees=0, translate=0.1)
    moved = [math.hypot(*(c - 13.5 for c in centroid(image[None]))) for image in y]
    axis = [abs(c - 13.5) for image in y for c in centroid(image[None])]
    assert max(axis) <= 2.8 + 1e-3 and max(axis) > 2.6 and max(moved) > 2.8


def test_rotations_stay_within_their_bound_and_use_it():
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, 13:15, 22:24] = 1  # to the right of the centre
    y = osr_utils.augment(x, generator(), degrees=15, translate=0)
    angles = [
        math.degrees(math.atan2(down - 13.5, right - 13.5))
        for right, down in (centroid(image[None]) for image in y)
    ]
    assert max(map(abs, angles)) <= 15.5 and max(angles) > 14 and min(angles) < -14


def second_draw():
    """Return what the first image of a batch of one draws next: width, height and shear."""
    numbers = generator()
    torch.rand(3, 1, generator=numbers)
    return (torch.rand(3, 1, generator=numbers) * 2 - 1)[:, 0].tolist()


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("options", [{}, {"scale": 0.0, "shear": 0.0}])
def test_without_scale_and_shear_the_draws_are_the_old_ones(n, options):
    x = torch.rand(n, 1, 28, 28, generator=generator(1))
    numbers, reference = generator(2), generator(2)
    y = osr_utils.augment(x, numbers, degrees=20, translate=0.2, **options)
    angle, right, down = torch.rand(3, n, generator=reference) * 2 - 1
    angle = angle * math.radians(20)
    rows = [angle.cos(), -angle.sin(), right * 2 * 0.2, angle.sin(), angle.cos(), down * 2 * 0.2]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), x.shape, align_corners=False)
    expected = F.grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)
    assert torch.equal(numbers.get_state(), reference.get_state())


@pytest.mark.parametrize("options", [{"scale": 0.3}, {"shear": 0.3}])
def test_scale_or_shear_draw_three_more_numbers_an_image(options):
    numbers, reference = generator(), generator()
    osr_utils.augment(torch.rand(5, 1, 28, 28), numbers, **options)
    torch.rand(3, 5, generator=reference)
    torch.rand(3, 5, generator=reference)
    assert torch.equal(numbers.get_state(), reference.get_state())


@pytest.mark.parametrize("degrees, translate", [(0, 0), (25, 0.15)])
@pytest.mark.parametrize("scale, shear", [(0.3, 0), (0, 0.4), (0.3, 0.4)])
def test_augmentation_agrees_with_scipys_affine_transform(degrees, translate, scale, shear):
    x = torch.rand(1, 1, 28, 28, generator=generator(1))
    y = osr_utils.augment(x, generator(), degrees, translate, scale, shear)
    angle, right, down = first_draw()
    wide, high, slant = second_draw()
    cos, sin = (f(angle * math.radians(degrees)) for f in (math.cos, math.sin))
    turn = np.array([[cos, sin], [-sin, cos]])  # of (row, column), as in scipy
    stretch = np.array([[math.exp(high * scale), 0], [slant * shear, math.exp(wide * scale)]])
    matrix, centre = turn @ stretch, np.full(2, 13.5)
    offset = centre - matrix @ centre + 28 * translate * np.array([down, right])
    image = x[0, 0].numpy().astype(np.float64)
    expected = ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(y[0, 0].numpy(), expected, atol=1e-4)


def test_warp_is_torchs_affine_grid_and_grid_sample():
    x, theta = torch.rand(5, 3, 12, 12), torch.randn(5, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, x.shape, align_corners=False)
    expected = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(osr_utils.warp(x, theta), expected, rtol=0, atol=1e-4)


def test_scale_changes_each_side_within_its_bound_and_uses_it():
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, 9:19, 9:19] = 1
    y = osr_utils.augment(x, generator(), degrees=0, translate=0, scale=0.3)[:, 0]
    wide, high = y[:, 13:15].mean(1).sum(1) / 10, y[:, :, 13:15].mean(2).sum(1) / 10
    torch.testing.assert_close(y.sum((1, 2)), wide * high * 100, rtol=1e-4, atol=0)
    for side in (wide, high):
        assert side.min() >= math.exp(-0.3) - 0.01 and side.max() <= math.exp(0.3) + 0.01
        assert side.min() < math.exp(-0.28) and side.max() > math.exp(0.28)
        assert side.log().mean().abs() < 0.03
    assert np.corrcoef(wide, high)[0, 1] == pytest.approx(0, abs=0.2)
    for image in y[:20]:
        assert centroid(image[None, None]) == pytest.approx([13.5, 13.5], abs=1e-3)


def test_shear_shifts_each_row_in_proportion_to_its_height():
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, :, 13:15] = 1
    y = osr_utils.augment(x, generator(), degrees=0, translate=0, shear=0.3)[:, 0]
    torch.testing.assert_close(y.sum(2), torch.full((300, 28), 2.0), rtol=1e-4, atol=0)
    shift = (y * (torch.arange(28) - 13.5)).sum(2) / 2
    height = torch.arange(28) - 13.5
    slope = (shift[:, -1] - shift[:, 0]) / 27
    torch.testing.assert_close(shift, slope[:, None] * height, rtol=0, atol=1e-3)
    assert slope.abs().max() <= 0.3 + 1e-4 and slope.min() < -0.28 and slope.max() > 0.28


# --- CombinedDataset ------------------------------------------------------------------------------


def combined(**transforms):
    mnist = TensorDataset(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([7, 0, 9]))
    ood = TensorDataset(torch.tensor([[4.0], [5.0]]), torch.tensor([3, 3]))
    return CombinedDataset(mnist, ood, **transforms)


def items(dataset):
    return list(itertools.islice(dataset, 100))  # one that never ends would fill the memory


def test_combined_dataset_is_known_then_unknown():
    dataset = combined()
    assert len(dataset) == 5
    assert [(x.item(), y) for x, y in items(dataset)] == [(1, 7), (2, 0), (3, 9), (4, 10), (5, 10)]
    assert all(type(label) is int for _, label in items(dataset))


def test_combined_dataset_transforms_each_side_by_its_own():
    dataset = combined(transform_mnist=lambda x: x * 10, transform_ood=lambda x: -x)
    assert [x.item() for x, _ in items(dataset)] == [10, 20, 30, -4, -5]
    only_ood = combined(transform_ood=lambda x: -x)
    assert [x.item() for x, _ in items(only_ood)] == [1, 2, 3, -4, -5]


@pytest.mark.parametrize("index, value", [(-1, 5), (-2, 4), (-5, 1), (2, 3), (3, 4)])
def test_combined_dataset_counts_from_either_end(index, value):
    assert combined()[index][0].item() == value


@pytest.mark.parametrize("index", [5, -6, 100])
def test_combined_dataset_ends(index):
    with pytest.raises(IndexError, match=f"index {index} in a data set of 5"):
        combined()[index]


def test_combined_dataset_works_in_a_data_loader():
    (x, y), last = DataLoader(combined(), batch_size=4)
    assert x.shape == (4, 1) and y.tolist() == [7, 0, 9, 10] and y.dtype == torch.int64
    assert last[1].tolist() == [10]
    shuffled = DataLoader(combined(), batch_size=2, shuffle=True)
    assert sorted(label for _, y in shuffled for label in y.tolist()) == [0, 7, 9, 10, 10]


def test_combined_dataset_takes_integer_labels_of_any_kind():
    dataset = CombinedDataset([(0, np.int64(4)), (1, 5)], [(2, "cat")])
    assert [label for _, label in items(dataset)] == [4, 5, 10]


def test_one_colour_picture_is_not_read_as_many_grey_ones():
    with pytest.raises(ValueError, match=r"picture\[None\]"):
        osr_utils.to_model_input(np.zeros((28, 28, 3), np.uint8))


# --- a folder of pictures -------------------------------------------------------------------------


def test_pictures_of_any_size_and_mode_become_model_input(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    for mode, name in (("RGB", "a.png"), ("L", "b.bmp"), ("1", "c.png"), ("P", "d.gif")):
        picture.convert(mode).save(tmp_path / name)
    Image.fromarray(np.full((5, 9), 40_000, np.uint16)).save(tmp_path / "e.png")
    half = Image.new("RGBA", (28, 28), (255, 255, 255, 128))  # half transparent white
    half.save(tmp_path / "f.png")
    (tmp_path / "notes.txt").write_text("no picture")
    images, names = osr_utils.load_pictures(tmp_path)
    assert names == ["a.png", "b.bmp", "c.png", "d.gif", "e.png", "f.png"]
    assert images.shape == (6, 1, 28, 28) and images.dtype == torch.float32
    assert torch.equal(images[:1], osr_utils.to_model_input(colours[None]))
    assert images[4].mean() == pytest.approx(40_000 / 65_535, abs=0.01)
    assert images[5].mean() == pytest.approx(0.5, abs=0.01)  # on black


def test_broken_pictures_are_named_counted_and_left_out(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:400])
    (tmp_path / "phone.heic").write_bytes(b"a format that is not read")
    Image.fromarray(np.ones((5, 5), np.float32)).save(tmp_path / "real.tiff")
    (tmp_path / "below").mkdir()
    images, names = osr_utils.load_pictures(tmp_path)
    assert names == ["good.png"]
    torch.testing.assert_close(images, to_model_input(noise[None]))  # grey from RGB
    said = capsys.readouterr().out
    assert "4 of 5 files are no pictures" in said
    assert all(name in said for name in ("cut.png", "empty.png", "phone.heic", "real.tiff"))


def test_a_folder_without_a_readable_picture_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        osr_utils.load_pictures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no readable picture.*put files such as"):
        osr_utils.load_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no readable picture"):
        osr_utils.load_pictures(tmp_path)
