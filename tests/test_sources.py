"""What the official downloads bring, and what the dependencies bring."""

import http.client
import inspect
import os
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms.v2 import functional as tvf

from helpers import FakeDownload, random_images
from osr import datasets, sources
from osr.datasets import load_images

pytestmark = pytest.mark.usefixtures("sandbox")


# --- official downloads ---------------------------------------------------------------------------


class FakeCIFAR10(FakeDownload):
    data = random_images(2, 32, 32, 3)
    targets = (9, 0)


class FakeSVHN(FakeDownload):
    data = random_images(2, 3, 32, 32)  # channels first
    labels = np.array([5, 6])


def test_cifar_keeps_its_channels_and_svhn_gets_them_last(data, network):
    network("CIFAR10", FakeCIFAR10)
    network("SVHN", FakeSVHN)
    cifar, svhn = load_images("cifar10", "test"), load_images("svhn", "train")
    np.testing.assert_array_equal(cifar.images, FakeCIFAR10.data)
    assert svhn.images.shape == (2, 32, 32, 3) and svhn.labels.tolist() == [5, 6]
    for channel in range(3):
        np.testing.assert_array_equal(svhn.images[..., channel], FakeSVHN.data[:, channel])


def fake_archive(monkeypatch, fill):
    monkeypatch.setattr(sources, "unreachable", lambda address: "")

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
    assert datasets.is_available("mnist_c/zigzag", "test")
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


# --- is there a network? --------------------------------------------------------------------------

ADDRESS = "https://zenodo.org/a.zip"


def test_a_server_that_answers_or_refuses_a_request_is_reached(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError("https://zenodo.org", 403, "no", None, None)

    for answer in (lambda request, timeout: None, refuse):
        monkeypatch.setattr(urllib.request, "urlopen", answer)
        assert sources.unreachable(ADDRESS, seconds=10) == ""


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "failure, said",
    [
        (
            ssl.SSLCertVerificationError(1, "expired"),
            "has a certificate that is not accepted.*clock",
        ),
        (socket.gaierror(-2, "Name or service not known"), "is not found; is there a network"),
        (ConnectionRefusedError(111, "Connection refused"), "refuses the connection"),
        (TimeoutError("timed out"), "gives no answer within 30 s"),
        (OSError(101, "Network is unreachable"), "cannot be asked .*Network is unreachable"),
        (http.client.RemoteDisconnected("closed"), "cannot be asked .*closed"),
        (http.client.BadStatusLine("GARBAGE"), "cannot be asked .*GARBAGE"),
        (http.client.IncompleteRead(b""), "cannot be asked .*IncompleteRead"),
    ],
)
def test_what_keeps_a_server_from_answering_is_said_with_its_name(monkeypatch, failure, said):
    for error in (failure, urllib.error.URLError(failure)):

        def fail(request, timeout, error=error):
            raise error

        monkeypatch.setattr(urllib.request, "urlopen", fail)
        why = sources.unreachable(ADDRESS, seconds=30)
        assert re.match(f"zenodo.org {said}", why), why


def test_a_request_that_hangs_is_given_up(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: release.wait(30))
    said = sources.unreachable(ADDRESS, seconds=0.2)
    assert said == "zenodo.org gives no answer within 0.2 s"
    release.set()
    assert inspect.signature(sources.unreachable).parameters["seconds"].default < 8


# --- class folders --------------------------------------------------------------------------------


def test_no_picture_stops_the_folder_and_what_is_none_is_named_with_its_reason(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("good", "odd", "large"):
        Image.new("L", (5, 5), 100).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no picture")

    def read(path, read_picture=sources.read_picture):
        if path.stem in ("odd", "large"):
            raise ValueError(f"{path.stem}\x1b[2J\nreason" + "!" * 5000 * (path.stem == "odd"))
        return read_picture(path)

    monkeypatch.setattr(sources, "read_picture", read)
    images, labels = sources.class_folders(tmp_path)
    assert images.shape == (1, 5, 5, 3) and labels.tolist() == [0]
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: 3 files are no pictures: a/large.png (large?[2J reason), ")
    assert "a/text.png (" in said and said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_file_name_that_is_no_text_stops_nothing(tmp_path, capfd):
    folder = tmp_path / "a"
    folder.mkdir()
    try:
        Path(os.fsdecode(bytes(folder) + b"/caf\xe9.png")).write_text("no picture")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    Image.new("L", (5, 5), 100).save(os.fsdecode(bytes(folder) + b"/\xe9.png"))
    images, _ = sources.class_folders(tmp_path)
    assert len(images) == 1 and "1 files are no pictures: a/caf?.png (" in capfd.readouterr().out


# --- the demo -------------------------------------------------------------------------------------


PHOTOGRAPHS = ("cifar10", "svhn", "tinyimagenet")
CORRUPTED = ("mnist_c/brightness", "mnist_c/impulse_noise", "mnist_c/translate")
STAND_INS = (*PHOTOGRAPHS, *CORRUPTED)


def assert_made_on_the_spot(name, split, shape, folder):
    """Check a generated set; return it."""
    assert datasets.is_available(name, split)
    found = load_images(name, split)
    images, labels, _, note = found
    assert images.dtype == np.uint8 and images.shape == (len(labels), *shape)
    assert labels.dtype == np.int64 and set(labels.tolist()) <= set(range(10))
    assert len(labels) >= 500 and note
    assert (images.reshape(len(images), -1).max(1) > 0).all()  # no glyph is missing
    np.testing.assert_array_equal(load_images(name, split).images, images)
    assert not list(folder.iterdir())
    return found


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_stand_in_of_the_demo_is_a_valid_image_set_and_says_so(demo, name, split):
    shape = (32, 32, 3) if name in PHOTOGRAPHS else (28, 28)
    assert assert_made_on_the_spot(name, split, shape, demo).name == f"demo:{name}"


@pytest.mark.parametrize("name", ["mnist", *STAND_INS])
def test_the_demos_splits_share_no_image(demo, name):
    train, test = (load_images(name, split).images for split in ("train", "test"))
    train = {image.tobytes() for image in train}
    assert not any(image.tobytes() in train for image in test)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_labels_of_the_demos_photographs_can_be_learnt(demo, name):
    """A linear model of the mean colour and its deviation reads them off the other half."""
    train, test = (load_images(name, split) for split in ("train", "test"))
    x, unseen = (
        np.concatenate([part.images.mean((1, 2)), part.images.std((1, 2))], 1)
        for part in (train, test)
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x, train.labels)
    chance = np.bincount(test.labels).max() / len(test.labels)
    assert model.score(unseen, test.labels) > max(0.6, 2 * chance)


def test_the_demos_corruptions_are_those_of_its_digits(demo):
    digits = load_images("mnist", "test")
    x = digits.images.astype(int)
    found = {name: load_images(name, "test") for name in CORRUPTED}
    assert all(np.array_equal(part.labels, digits.labels) for part in found.values())
    bright, noisy, moved = (part.images.astype(int) for part in found.values())
    assert ((bright == x + 80) | ((bright == 255) & (x > 175))).all()
    changed = noisy != x
    assert set(noisy[changed].tolist()) == {0, 255}
    # One in ten turns white, one in ten black, though most are black already.
    assert (noisy == 255)[x == 0].mean() == pytest.approx(0.1, abs=0.005)
    assert (noisy == 0)[x > 100].mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(moved[:, 3:, :-3], x[:, :-3, 3:])


# --- sets from the dependencies -------------------------------------------------------------------


BUNDLED = ("uci_digits", "letters", "symbols")


@pytest.fixture(params=["full", "demo"])
def offline(monkeypatch, data, request):
    """Run in either profile with an empty data folder; a look at the network is an error."""
    monkeypatch.setenv("OSR_PROFILE", request.param)
    monkeypatch.setattr(sources, "unreachable", None)
    return data


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_bundled_sets_need_no_file_and_no_network_in_either_profile(offline, name, split):
    found = assert_made_on_the_spot(name, split, (28, 28), offline)
    assert found.name == name and set(found.labels.tolist()) == set(range(10))


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


def test_letters_and_symbols_of_the_test_are_other_drawings():
    for name in ("letters", "symbols"):
        train, test = (load_images(name, split) for split in ("train", "test"))
        assert (train.labels != test.labels).mean() > 0.8


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


# --- default device and dtype ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BUNDLED, *STAND_INS, "mnist"])
def test_a_default_device_and_dtype_change_no_image(demo, name):
    plain = load_images(name, "test")
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        sources._glyphs.cache_clear()
        found = load_images(name, "test")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found.images, plain.images)
    np.testing.assert_array_equal(found.labels, plain.labels)
