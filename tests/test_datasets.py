"""Data sets by name: which there are, drawing from them, and sets of one's own."""

import numpy as np
import pytest
from PIL import Image

from helpers import random_images, write_cache
from osr import caches, datasets, paths, sources
from osr.caches import DatasetNotFoundError
from osr.datasets import load_images

pytestmark = pytest.mark.usefixtures("sandbox")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["Demo", "fast", "0"])
def test_an_unknown_profile_is_an_error_everywhere(monkeypatch, value):
    monkeypatch.setenv("OSR_PROFILE", value)
    for call in (paths.profile, lambda: load_images("mnist", "test")):
        with pytest.raises(ValueError, match=f"OSR_PROFILE='{value}'.*'full'.*'demo'"):
            call()


@pytest.mark.parametrize("name", ["emnist", "MNIST", "", "mnist_c", "mnist_c/snow", "../mnist"])
def test_an_unknown_name_lists_the_known_ones(name):
    for call in (load_images, datasets.is_available):
        with pytest.raises(ValueError, match="unknown data set.*mnist, fashionmnist.*mnist_c/fog"):
            call(name, "test")


def test_a_misspelt_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'fashionmnist'"):
        load_images("FashionMNIST", "test")


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="unknown split 'val' of 'mnist'; use 'train' or 'test'"):
        load_images("mnist", "val")


@pytest.mark.parametrize("name", ["uci_digits", "letters", "symbols"])
def test_a_bundled_set_has_no_other_splits(name):
    for call in (load_images, datasets.is_available):
        with pytest.raises(ValueError, match=f"unknown split 'val' of '{name}'"):
            call(name, "val")


@pytest.mark.parametrize("name", ["cifar100", "mnist_c/fog", "mnist_c/identity"])
def test_what_the_demo_lacks_is_said(demo, name):
    assert not datasets.is_available(name, "test")
    with pytest.raises(DatasetNotFoundError, match=f"no stand-in for '{name}'.*OSR_PROFILE=full"):
        load_images(name, "test")


# --- splits ---------------------------------------------------------------------------------------


def test_digit_split_by_hand():
    parts = datasets.digit_split([8, 0, 4, 8, 9, 1, 4])
    assert {key: value.tolist() for key, value in parts.items()} == {
        "8": [0, 3], "4": [2, 6], "rest": [1, 4, 5],
    }  # fmt: skip


def test_digit_split_covers_every_image_once():
    labels = np.random.default_rng(0).integers(10, size=500)
    parts = datasets.digit_split(labels, digits=(1, 2, 3))
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
    if not datasets.is_available("mnist", split):
        pytest.skip(f"no real MNIST in {paths.data_dir()}: run `make data` or set OSR_DATA")
    parts = datasets.digit_split(load_images("mnist", split).labels)
    assert {key: len(value) for key, value in parts.items()} == sizes


@pytest.mark.parametrize("sizes", [(9, 1), (3, 0, 4), (10,), (1, 1)])
def test_sample_split_draws_disjoint_subsets(sizes):
    parts = datasets.sample_split(10, sizes, seed=0)
    assert [len(part) for part in parts] == list(sizes)
    drawn = np.concatenate(parts)
    assert len(set(drawn.tolist())) == sum(sizes) and set(drawn) <= set(range(10))


def test_sample_split_depends_on_the_seed_alone():
    first, again, other = (datasets.sample_split(1000, (500, 100), s) for s in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))


def test_sample_split_of_too_many_is_an_error():
    with pytest.raises(ValueError, match="asked for 11 of 10 images"):
        datasets.sample_split(10, (6, 5), seed=0)


def test_sample_images_is_the_draw_of_sample_split(data):
    labels = np.arange(40) % 10
    write_cache(data, images=random_images(40, 28, 28), labels=labels, note="a part")
    whole = load_images("mnist", "test")
    for n, seed in ((7, 0), (7, 1), (40, 3), (1000, 3)):
        found = datasets.sample_images("mnist", "test", n, seed)
        (pick,) = datasets.sample_split(40, (min(n, 40),), seed)
        np.testing.assert_array_equal(found.images, whole.images[pick])
        np.testing.assert_array_equal(found.labels, labels[pick])
        assert (found.name, found.note) == ("mnist", "a part")
    assert len(pick) == len(set(pick.tolist())) == 40


def test_data_notes_are_those_of_the_sets_that_have_one(data):
    write_cache(data, note="a part")
    write_cache(data, "kmnist-test")
    sets = {"known": load_images("mnist", "test"), "far": load_images("kmnist", "test")}
    sets["near"] = datasets.sample_images("letters", "test", 5, 0)
    notes = datasets.data_notes(sets)
    assert list(notes) == ["known", "near"] and notes["known"] == "a part"
    assert notes["near"].startswith("letters from the fonts")


# --- sets of one's own ----------------------------------------------------------------------------

forgotten_afterwards = pytest.mark.usefixtures("registry")


@forgotten_afterwards
@pytest.mark.parametrize("profile", ["full", "demo"])
@pytest.mark.parametrize("shape", [(4, 20, 30), (4, 32, 32, 3)])
def test_registered_arrays_are_a_set_like_the_others(monkeypatch, profile, shape):
    monkeypatch.setenv("OSR_PROFILE", profile)
    images = random_images(*shape)
    datasets.register("mine", test=(images, np.array([0, 200, 3, 3], np.uint8)))
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


@forgotten_afterwards
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_folder_of_class_folders_is_numbered_by_the_alphabet(tmp_path, kind):
    for name, grey, number in (("b", 20, 2), ("a", 10, 1), ("c d", 30, 1)):
        (tmp_path / "sets" / name).mkdir(parents=True)
        for i in range(number):
            picture = Image.new("L", (12, 8), grey + i)
            picture.save(tmp_path / "sets" / name / f"{i}.png")
    (tmp_path / "sets/a/.hidden").write_text("")
    (tmp_path / "sets/notes.txt").write_text("")
    datasets.register("mine", train=kind(tmp_path / "sets"))
    found = load_images("mine", "train")
    assert found.images.shape == (4, 8, 12, 3) and found.images.dtype == np.uint8
    assert found.labels.tolist() == [0, 1, 1, 2] and found.labels.dtype == np.int64
    assert found.images[:, 0, 0, 0].tolist() == [10, 20, 21, 30]


@forgotten_afterwards
def test_pictures_of_several_sizes_become_64_x_64(tmp_path):
    (tmp_path / "a").mkdir()
    for side in (10, 100):
        Image.new("RGB", (side, 20), (255, 0, 0)).save(tmp_path / f"a/{side}.png")
    datasets.register("mine", test=tmp_path)
    found = load_images("mine", "test")
    assert found.images.shape == (2, 64, 64, 3) and (found.images == [255, 0, 0]).all()


@forgotten_afterwards
@pytest.mark.parametrize("labels", [np.array([3, 1, 4]), np.array([3, 1, 255], np.uint8)])
def test_a_file_of_arrays_is_registered(tmp_path, labels):
    path = write_cache(tmp_path, "anything", labels=labels, note="a lossy copy")
    datasets.register("mine", train=str(path), test=path)
    for split in ("train", "test"):
        found = load_images("mine", split)
        np.testing.assert_array_equal(found.images, random_images(3, 28, 28))
        assert found.labels.tolist() == labels.tolist() and found.labels.dtype == np.int64
        assert (found.name, found.note) == ("mine", "a lossy copy")


@forgotten_afterwards
def test_what_is_registered_again_is_replaced_in_both_splits():
    images = random_images(3, 28, 28)
    datasets.register("mine", train=(images, np.zeros(3, int)), test=(images, np.zeros(3, int)))
    datasets.register("mine", test=(images[:1], np.array([7])))
    assert load_images("mine", "test").labels.tolist() == [7]
    assert not datasets.is_available("mine", "train")
    with pytest.raises(DatasetNotFoundError, match="without a train split"):
        load_images("mine", "train")


@forgotten_afterwards
def test_a_registration_that_fails_leaves_the_one_before():
    images = random_images(3, 28, 28)
    datasets.register("mine", test=(images, np.zeros(3, int)))
    with pytest.raises(ValueError, match="cannot be registered"):
        datasets.register("mine", train=(images, np.zeros(3, int)), test=(images, np.zeros(2, int)))
    assert len(load_images("mine", "test").labels) == 3
    assert not datasets.is_available("mine", "train")


@forgotten_afterwards
@pytest.mark.parametrize("name", ["mnist", "mnist_c/fog", "letters"])
def test_a_name_of_the_repository_is_taken(name):
    with pytest.raises(ValueError, match=f"'{name}' is a set of this repository: give yours anoth"):
        datasets.register(name, test=(random_images(1, 28, 28), np.zeros(1, int)))


@forgotten_afterwards
@pytest.mark.parametrize(
    "given, problem",
    [
        ((random_images(3, 28, 28), np.zeros(2, int)), "labels are int64 .2,. for 3 images"),
        ((random_images(3, 28, 28) / 255, np.zeros(3, int)), r"images are float64 \(3, 28, 28\)"),
        ((random_images(3, 3, 28, 28), np.zeros(3, int)), r"\(3, 3, 28, 28\), not uint8"),
        ((random_images(28, 28), np.zeros(28, int)), r"images are uint8 \(28, 28\)"),
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
        datasets.register("mine", test=given)
    with pytest.raises(ValueError, match="unknown data set 'mine'"):
        load_images("mine", "test")


@forgotten_afterwards
def test_nothing_to_register_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no images for 'mine': give train=..., test=..., or both"):
        datasets.register("mine")
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere: give the one"):
        datasets.register("mine", test=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no readable picture in the folders of .*one folder"):
        datasets.register("mine", test=tmp_path)


@forgotten_afterwards
@pytest.mark.parametrize("content", [b"", b"PK half an archive", b"404: Not Found"])
def test_a_file_of_ones_own_that_cannot_be_read_is_named_and_not_to_be_deleted(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} .*arrays images and labels") as caught:
        datasets.register("mine", test=path)
    assert "delete" not in str(caught.value) and "make data" not in str(caught.value)


# --- make data ------------------------------------------------------------------------------------


def test_make_data_asks_for_every_set_and_says_which_did_not_come(data, monkeypatch, capsys):
    monkeypatch.setenv("OSR_PROFILE", "demo")  # has no say here
    monkeypatch.setattr(sources, "online", lambda address: False)
    write_cache(data)
    missing = datasets.download_all()
    wanted = [f"{name}-{split}" for name, record in datasets.SETS.items() if record.address
              for split in record.wanted]  # fmt: skip
    assert ["mnist-test", *missing] == sorted(wanted, key=lambda name: name != "mnist-test")
    said = capsys.readouterr().out
    assert "mnist-test: 3 images\n" in said and "mnist-train: no mnist-train.npz in" in said


def test_an_image_set_is_a_plain_tuple():
    images, labels, name, note = caches.ImageSet(np.zeros(1), np.zeros(1), "mnist")
    assert (name, note) == ("mnist", "")
