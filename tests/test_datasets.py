"""Data sets by name: which there are, the demo's part of them, drawing from them, `make data`."""

import http.client
import re
import runpy

import numpy as np
import pytest
import torch

from helpers import files, random_images, write_cache
from osr import caches, datasets, paths, sources
from osr.caches import DatasetNotFoundError
from osr.datasets import load_images
from osr.records import CORRUPTIONS, SETS

pytestmark = pytest.mark.usefixtures("sandbox")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["Demo", "fast", "0"])
def test_an_unknown_profile_is_an_error_everywhere(monkeypatch, value):
    monkeypatch.setenv("OSR_PROFILE", value)
    for call in (paths.profile, lambda: load_images("mnist", "test")):
        with pytest.raises(ValueError, match=f"OSR_PROFILE='{value}'.*'full'.*'demo'"):
            call()


@pytest.mark.parametrize("name", ["emnist", "MNIST", "", "../mnist", 3, None, ["mnist"]])
def test_an_unknown_name_lists_the_known_ones_in_short(name):
    for call in (load_images, datasets.is_available):
        with pytest.raises(
            ValueError, match="unknown data set.*mnist, fashionmnist.*mnist_c/fog"
        ) as e:
            call(name, "test")
        assert str(e.value).count("mnist_c") == 1 and len(str(e.value)) < 200


@pytest.mark.parametrize("name", ["mnist_c", "mnist_c/snow", "MNIST-C", "mnist_c/", "MNIST-C/fogg"])
def test_an_unknown_corruption_lists_the_corruptions(name):
    with pytest.raises(
        ValueError, match="did you mean 'mnist_c/.*There are mnist_c/.*mnist_c/fog"
    ) as e:
        load_images(name, "test")
    assert str(e.value).count("mnist_c/") >= len(CORRUPTIONS) and "fashionmnist" not in str(e.value)


@pytest.mark.parametrize(
    "name, nearest", [("FashionMNIST", "fashionmnist"), ("cifar-10", "cifar10"),
                      ("mnist_c", "mnist_c/fog"), ("mnist_c/zig_zag", "mnist_c/zigzag")],
)  # fmt: skip
def test_a_misspelt_name_is_told_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        load_images(name, "test")


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="unknown split 'val' of 'mnist'; use 'train' or 'test'"):
        load_images("mnist", "val")


@pytest.mark.parametrize("name", ["uci_digits", "letters", "symbols"])
def test_a_bundled_set_has_no_other_splits(name):
    for call in (load_images, datasets.is_available):
        with pytest.raises(ValueError, match=f"unknown split 'val' of '{name}'"):
            call(name, "val")


def test_what_is_not_here_is_said_in_one_line(repository, data, capsys):
    write_cache(data)
    write_cache(data, "cifar10-test", images=random_images(3, 32, 32, 3))
    fogs = ["mnist_c/fog", "mnist_c/zigzag"]
    for names, split, here, said in (
        (["cifar10", "letters", "mnist"], "test", ["cifar10", "letters", "mnist"], ""),
        (["svhn", "mnist", "kmnist"], "test", ["mnist"], "not here: svhn, kmnist (test; `make "),
        (["mnist", "uci_digits"], "train", ["uci_digits"], "not here: mnist (train). "),
        (fogs, "test", [], "not here: mnist_c (test; `make data` fetches "),
        ([*fogs, "svhn"], "test", [], "not here: mnist_c, svhn (test; `make data` fetches "),
        ("mnist", "test", ["mnist"], ""),
        ("svhn", "test", [], "not here: svhn (test; "),
        ((name for name in ("svhn", "mnist")), "test", ["mnist"], "not here: svhn (test; "),
    ):
        assert datasets.available_sets(names, split) == here
        out = capsys.readouterr().out
        assert out.startswith(said) and out.count("\n") == bool(said)
        assert "OSR_DATA" not in out


def test_what_is_not_here_for_want_of_a_folder_is_said_to_be(repository, monkeypatch, capsys):
    monkeypatch.setenv("OSR_DATA", str(repository / "dota"))
    assert datasets.available_sets(["svhn"]) == []
    said = f"fetches what is missing; OSR_DATA={repository / 'dota'} names no folder). What"
    assert said in capsys.readouterr().out


# --- the demo -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, split", [("mnist", "train"), ("mnist", "test"), ("fashionmnist", "test"),
                    ("kmnist", "test")],
)  # fmt: skip
def test_the_demo_reads_the_first_images_of_what_comes_with_the_repository(demo, name, split):
    n, whole = {"train": (4_000, "60,000"), "test": (1_000, "10,000")}[split]
    found = load_images(name, split)
    with np.load(paths.ROOT / f"data/{name}-{split}.npz") as file:
        np.testing.assert_array_equal(found.images, file["images"][:n])
        np.testing.assert_array_equal(found.labels, file["labels"][:n])
    assert (found.name, found.note) == (name, f"the first {n:,} of {whole} images")
    assert datasets.is_available(name, split) and set(found.labels.tolist()) == set(range(10))


def test_the_demo_keeps_the_note_of_a_file(demo):
    write_cache(demo, note="a lossy copy")
    found = load_images("mnist", "test")
    assert len(found.images) == 3 and "a lossy copy" in found.note and "1,000" not in found.note


@pytest.mark.parametrize(
    "name, split",
    [("cifar100", "test"), ("mnist_c/fog", "test"), ("mnist_c/identity", "test"),
     ("kmnist", "train")],
)  # fmt: skip
def test_what_the_demo_lacks_is_said_with_what_it_has(demo, name, split):
    assert not datasets.is_available(name, split)
    with pytest.raises(DatasetNotFoundError, match=f"the demo has no {name}-{split}; it has ") as e:
        load_images(name, split)
    there, advice = str(e.value).split("it has ")[1].split(". Use ")
    assert there.split(", ") == [other for other in SETS if datasets.is_available(other, split)]
    assert "OSR_PROFILE=full" in advice


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
    "digits", [{4, 8}, [np.int64(8), 4], (d for d in (8, 4)), np.array([8, 4])]
)
def test_digits_are_any_collection_of_whole_numbers(digits):
    parts = datasets.digit_split(torch.tensor([8, 0, 4]), digits)
    assert {key: value.tolist() for key, value in parts.items()} == {
        "8": [0], "4": [2], "rest": [1],
    }  # fmt: skip


@pytest.mark.parametrize(
    "labels, digits, found",
    [
        ([8, 4], "84", "digits are '84'"), ([8, 4], ["8"], r"digits are \['8'\]"),
        ([8, 4], 8, "digits are 8"), ([8, 4], [8.0], r"digits are \[8\.0\]"),
        (["8", "4"], (8, 4), r"labels are <U1 \(2,\)"), ([8.0, 4.0], (8, 4), "labels are float64"),
        ([[8], [4]], (8, 4), r"labels are int64 \(2, 1\)"), (8, (8, 4), r"labels are int64 \(\)"),
        ((n for n in (8, 4)), (8, 4), "labels are object"), ({8, 4}, (8, 4), "labels are object"),
        ([True, False], (8, 4), "labels are bool"),
    ],
)  # fmt: skip
def test_labels_and_digits_that_could_find_nothing_are_an_error(labels, digits, found):
    with pytest.raises(ValueError, match=f"{found}.*: give whole numbers"):
        datasets.digit_split(labels, digits)


@pytest.mark.parametrize(
    "split, sizes",
    [
        ("train", {"8": 5851, "4": 5842, "rest": 48307}),
        ("test", {"8": 974, "4": 982, "rest": 8044}),
    ],
)
def test_the_six_sets_of_system_c(split, sizes):
    parts = datasets.digit_split(load_images("mnist", split).labels)
    assert {key: len(value) for key, value in parts.items()} == sizes


@pytest.mark.parametrize("sizes", [(9, 1), (3, 0, 4), (10,), (1, 1), (np.int64(2), 3), (), (0,)])
def test_sample_split_draws_disjoint_subsets(sizes):
    parts = datasets.sample_split(10, sizes, seed=0)
    assert [len(part) for part in parts] == list(sizes)
    drawn = np.concatenate([np.zeros(0, int), *parts])
    assert len(set(drawn.tolist())) == sum(sizes) and set(drawn) <= set(range(10))


def test_sample_split_depends_on_the_seed_alone():
    first, again, other = (datasets.sample_split(1000, (500, 100), s) for s in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))


def test_sample_split_of_too_many_is_an_error():
    with pytest.raises(ValueError, match="asked for 11 of 10 images"):
        datasets.sample_split(10, (6, 5), seed=0)


@pytest.mark.parametrize("sizes", [[-1, 3, 3], [2.5, 1], [3.0], "12", ["1"], 3, [None]])
def test_sizes_that_are_no_numbers_of_images_are_an_error(sizes):
    with pytest.raises(ValueError, match="sizes are .*: (give whole numbers|none can be below 0)"):
        datasets.sample_split(5, sizes, 0)


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


# --- make data ------------------------------------------------------------------------------------

WANTED = [f"{n}-{split}" for n, record in SETS.items() if record.address for split in record.wanted]
SHOWN = list(dict.fromkeys(re.sub("/.*-", "-", name) for name in WANTED))  # MNIST-C is one
CLONED = [f"{name}-{split}" for name, record in SETS.items() for split in record.cloned]


def test_make_data_asks_for_every_set_and_says_which_did_not_come(
    repository, data, monkeypatch, capsys
):
    monkeypatch.setenv("OSR_PROFILE", "demo")  # has no say here
    monkeypatch.setattr(sources, "unreachable", lambda address: f"no answer from {address}")
    write_cache(data)
    missing = datasets.download_all()
    assert ["mnist-test", *missing] == sorted(SHOWN, key=lambda name: name != "mnist-test")
    said = capsys.readouterr().out
    assert "mnist-test: 3 images\n" in said and "kmnist-train: no kmnist-train.npz in" in said
    assert "no answer from http://codh.rois.ac.jp" in missing["kmnist-train"]
    assert "`git checkout -- data/mnist-train.npz`" in missing["mnist-train"]  # not another file
    assert said.endswith("\nfetched: nothing new\n")
    assert said.count("mnist_c-test: ") == 2  # where from, and that it did not come


@pytest.mark.parametrize(
    "failure",
    [
        OSError("reset by peer"),
        RuntimeError("File not found or corrupted."),
        http.client.IncompleteRead(b"half"),
    ],
)
def test_a_dead_server_a_failure_and_a_damaged_file_stop_no_other_download(
    repository, data, monkeypatch, capsys, failure
):
    def official(name, split, record, folder):
        if name == "cifar100":
            raise failure
        yield name, split, random_images(2, 32, 32, 3), np.array([0, 1])

    monkeypatch.setenv("OSR_PROFILE", "demo")
    dead = {"https://zenodo.org": "zenodo.org gives no answer"}
    monkeypatch.setattr(sources, "unreachable", lambda address: dead.get(address[:18], ""))
    monkeypatch.setattr(sources, "official", official)
    (data / "svhn-train.npz").write_bytes(b"404: Not Found")
    for name in CLONED:
        write_cache(data, name)
    missing = datasets.download_all()
    expected = {
        "cifar100-train": repr(failure), "cifar100-test": "as the one before it",
        "svhn-train": "svhn-train.npz is no cache of svhn: damaged",
        "mnist_c-test": "zenodo.org gives no answer",
    }  # fmt: skip
    assert list(missing) == list(expected)
    for name, reason in missing.items():
        assert expected[name] in reason
    came = [name for name in WANTED if not name.startswith((*expected, *CLONED, "mnist_c/"))]
    there = [f"{name}.npz" for name in (*came, *CLONED, "svhn-train")]
    assert files(data) == sorted(there)
    said = capsys.readouterr().out
    assert said.endswith(f"\nfetched: {', '.join(came)}\n")
    assert datasets.download_all().keys() == missing.keys()  # the next time only these are tried
    assert capsys.readouterr().out.endswith("\nfetched: nothing new\n")


def test_make_data_has_one_line_for_the_corruptions_and_names_those_that_are_damaged(
    repository, data, monkeypatch, capsys
):
    for name in WANTED:
        write_cache(data, name)
    for name in ("fog", "zigzag"):
        (data / f"mnist_c/{name}-test.npz").write_bytes(b"404: Not Found")
    missing = datasets.download_all()
    assert list(missing) == ["mnist_c-test"]
    assert "fog-test.npz is no cache of" in missing["mnist_c-test"]
    assert "zigzag-test.npz is no cache of" in missing["mnist_c-test"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "mnist_c" in line]
    assert lines == ["mnist_c-test: 39 images", f"mnist_c-test: {missing['mnist_c-test']}"]


@pytest.mark.parametrize("failure", [MemoryError("too large"), PermissionError("not for you")])
def test_make_data_goes_on_after_a_file_that_cannot_be_read(repository, data, monkeypatch, failure):
    def read(path, name, classes, read_cache=datasets.read_cache):
        if path.name == "cifar10-train.npz":
            raise failure
        return read_cache(path, name, classes)

    for name in WANTED:
        write_cache(data, name)
    monkeypatch.setattr(datasets, "read_cache", read)
    assert datasets.download_all() == {"cifar10-train": str(failure)}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_make_data_ends_with_a_summary_and_an_error_where_a_set_did_not_come(
    repository, data, monkeypatch, capsys
):
    monkeypatch.setenv("OSR_PROFILE", "full")
    monkeypatch.setattr(sources, "unreachable", lambda address: "no answer")
    for name in set(WANTED) - {"kmnist-train"}:
        write_cache(data, name)
    with pytest.raises(SystemExit, match="1 did not come; `make data` tries these again"):
        runpy.run_module("osr.datasets", run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("did not come: kmnist-train: no kmnist-train.npz in ")
    assert last.endswith("no answer")  # the ways out stand above
    write_cache(data, "kmnist-train")
    runpy.run_module("osr.datasets", run_name="__main__")
    assert "did not come" not in capsys.readouterr().out


def test_an_image_set_is_a_plain_tuple():
    images, labels, name, note = caches.ImageSet(np.zeros(1), np.zeros(1), "mnist")
    assert (name, note) == ("mnist", "")
