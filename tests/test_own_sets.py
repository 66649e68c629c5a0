"""Data sets of one's own: arrays, a file, a folder of pictures under a new name."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import literal, random_images, write_cache
from osr import datasets
from osr.caches import DatasetNotFoundError
from osr.datasets import load_images
from osr.own_sets import register
from osr.records import COLORS, SETS

pytestmark = pytest.mark.usefixtures("sandbox", "registry")


@pytest.mark.parametrize("profile", ["full", "demo"])
@pytest.mark.parametrize("shape", [(4, 20, 30), (4, 32, 32, 3)])
def test_registered_arrays_are_a_set_like_the_others(monkeypatch, profile, shape):
    monkeypatch.setenv("OSR_PROFILE", profile)
    images = random_images(*shape)
    register("mine", test=(images, np.array([0, 200, 3, 3], np.uint8)))
    assert datasets.is_available("mine", "test") and not datasets.is_available("mine", "train")
    found = load_images("mine", "test")
    np.testing.assert_array_equal(found.images, images)
    assert found.labels.tolist() == [0, 200, 3, 3] and found.labels.dtype == np.int64
    assert (found.name, found.note) == ("mine", "")
    assert len(datasets.sample_images("mine", "test", 2, seed=0).images) == 2
    with pytest.raises(DatasetNotFoundError, match="'mine' was registered without a train split"):
        load_images("mine", "train")
    with pytest.raises(ValueError, match="unknown split 'val' of 'mine'"):
        load_images("mine", "val")
    with pytest.raises(ValueError, match="did you mean 'mine'"):
        load_images("mime", "test")


def test_what_is_registered_is_a_copy_and_has_a_title_and_a_colour():
    given = load_images("letters", "test")  # an ImageSet has a note
    images = given.images.copy()
    register("mine", test=given._replace(images=images))
    images[:] = 0
    found = load_images("mine", "test")
    np.testing.assert_array_equal(found.images, given.images)
    assert (found.name, found.note) == ("mine", given.note)
    assert SETS["mine"].title == "mine" and COLORS["mine"].startswith("#")


@pytest.mark.parametrize("name", ["", None, 3, "a/b", "..", "mine*", "nul"])
def test_a_name_is_a_text_that_could_name_a_file(name, registry):
    before = dict(registry)
    with pytest.raises(ValueError, match=f"{re.escape(repr(name))} cannot name a file everywhere"):
        register(name, test=(random_images(1, 28, 28), np.zeros(1, int)))
    assert registry == before


@pytest.mark.parametrize("kind", [tuple, list])
def test_images_and_labels_come_as_a_tuple_or_a_list_of_two(kind):
    images, labels = random_images(3, 28, 28), [4, 5, 6]
    register("mine", test=kind([images, labels]))
    assert load_images("mine", "test").labels.tolist() == labels
    np.testing.assert_array_equal(load_images("mine", "test").images, images)
    with pytest.raises(ValueError, match=f"'mine' is a {kind.__name__}: give a tuple"):
        register("mine", test=kind(images))


def test_a_home_and_variables_in_the_path_of_a_set_are_replaced(tmp_path, monkeypatch):
    write_cache(tmp_path, "anything")
    for name in ("HOME", "USERPROFILE", "MINE"):  # of POSIX, of Windows
        monkeypatch.setenv(name, str(tmp_path))
    for given in ("~/anything.npz", "$MINE/anything.npz", Path("~/anything.npz")):
        register("mine", test=given)
        assert load_images("mine", "test").labels.tolist() == [3, 1, 4]
    with pytest.raises(ValueError, match=r"\$UNSET stands for nothing"):
        register("mine", test="$UNSET/anything.npz")


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_folder_of_class_folders_is_numbered_by_the_alphabet(tmp_path, kind):
    for name, grey, number in (("b", 20, 2), ("a", 10, 1), ("c d", 30, 1)):
        (tmp_path / "sets" / name).mkdir(parents=True)
        for i in range(number):
            picture = Image.new("L", (12, 8), grey + i)
            picture.save(tmp_path / "sets" / name / f"{i}.png")
    (tmp_path / "sets/a/.hidden").write_text("")
    (tmp_path / "sets/notes.txt").write_text("")
    register("mine", train=kind(tmp_path / "sets"))
    found = load_images("mine", "train")
    assert found.images.shape == (4, 8, 12, 3) and found.images.dtype == np.uint8
    assert found.labels.tolist() == [0, 1, 1, 2] and found.labels.dtype == np.int64
    assert found.images[:, 0, 0, 0].tolist() == [10, 20, 21, 30]


def test_pictures_of_several_sizes_become_64_x_64(tmp_path):
    (tmp_path / "a").mkdir()
    for side in (10, 100):
        Image.new("RGB", (side, 20), (255, 0, 0)).save(tmp_path / f"a/{side}.png")
    register("mine", test=tmp_path)
    found = load_images("mine", "test")
    assert found.images.shape == (2, 64, 64, 3) and (found.images == [255, 0, 0]).all()


@pytest.mark.parametrize("labels", [np.array([3, 1, 4]), np.array([3, 1, 255], np.uint8)])
def test_a_file_of_arrays_is_registered(tmp_path, labels):
    path = write_cache(tmp_path, "anything", labels=labels, note="a lossy copy")
    register("mine", train=str(path), test=path)
    for split in ("train", "test"):
        found = load_images("mine", split)
        np.testing.assert_array_equal(found.images, random_images(3, 28, 28))
        assert found.labels.tolist() == labels.tolist() and found.labels.dtype == np.int64
        assert (found.name, found.note) == ("mine", "a lossy copy")


def test_what_is_registered_again_is_replaced_in_both_splits():
    images = random_images(3, 28, 28)
    register("mine", train=(images, np.zeros(3, int)), test=(images, np.zeros(3, int)))
    register("mine", test=(images[:1], np.array([7])))
    assert load_images("mine", "test").labels.tolist() == [7]
    assert not datasets.is_available("mine", "train")
    with pytest.raises(DatasetNotFoundError, match="without a train split"):
        load_images("mine", "train")


def test_a_registration_that_fails_leaves_the_one_before():
    images = random_images(3, 28, 28)
    register("mine", test=(images, np.zeros(3, int)))
    with pytest.raises(ValueError, match="cannot be registered"):
        register("mine", train=(images, np.zeros(3, int)), test=(images, np.zeros(2, int)))
    assert len(load_images("mine", "test").labels) == 3
    assert not datasets.is_available("mine", "train")


@pytest.mark.parametrize("name", ["mnist", "mnist_c/fog", "letters"])
def test_a_name_of_the_repository_is_taken(name):
    with pytest.raises(ValueError, match=f"'{name}' is a set of this repository: give yours anoth"):
        register(name, test=(random_images(1, 28, 28), np.zeros(1, int)))


@pytest.mark.parametrize(
    "given, problem",
    [
        ((random_images(3, 28, 28), np.zeros(2, int)), "labels are int64 .2,. for 3 images"),
        ((random_images(3, 28, 28) / 255, np.zeros(3, int)), r"found float64 \(3, 28, 28\)"),
        ((random_images(3, 3, 28, 28), np.zeros(3, int)), r"uint8 \(3, 3, 28, 28\)"),
        ((random_images(28, 28), np.zeros(28, int)), r"uint8 \(28, 28\)"),
        ((random_images(28, 28, 3), np.zeros(28, int)), r"uint8 \(28, 28, 3\)"),
        ((random_images(3, 28, 0), np.zeros(3, int)), r"uint8 \(3, 28, 0\)"),
        ((random_images(3, 28, 28), ["a", "b", "c"]), "labels are <U1"),
        ((random_images(3, 28, 28), np.zeros(3)), "labels are float64"),
        (
            (random_images(3, 28, 28), np.array([0, -1, 2])),
            "labels run from -1 to 2, not from 0 on",
        ),
        ((random_images(0, 28, 28), np.zeros(0, int)), "for 0 images"),
        (random_images(3, 28, 28), "is a ndarray: give a tuple"),
        ((random_images(3, 28, 28),), "is a tuple: give a tuple"),
        (3, "is a int: give a tuple"),
    ],
)
def test_what_is_no_set_is_refused_with_what_was_found(given, problem):
    with pytest.raises(ValueError, match=f"'mine'.*{problem}"):
        register("mine", test=given)
    with pytest.raises(ValueError, match="unknown data set 'mine'"):
        load_images("mine", "test")


def test_nothing_to_register_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no images for 'mine': give train=..., test=..., or both"):
        register("mine")
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere: give the one"):
        register("mine", test=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no readable picture in the folders of .*one folder"):
        register("mine", test=tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK half an archive", b"404: Not Found"])
def test_a_file_of_ones_own_that_cannot_be_read_is_named_and_not_to_be_deleted(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{literal(path)} .*arrays images and labels") as caught:
        register("mine", test=path)
    assert "delete" not in str(caught.value) and "make data" not in str(caught.value)


@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied"), MemoryError()])
def test_a_file_of_ones_own_that_may_be_whole_is_never_called_damaged(
    tmp_path, monkeypatch, failure
):
    def fail(*_, **__):
        raise failure

    path = write_cache(tmp_path, "mine")
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(type(failure), match=literal(path)) as caught:
        register("mine", test=path)
    assert "damaged" not in str(caught.value)
