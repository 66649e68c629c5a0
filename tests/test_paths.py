"""Profiles, seeds, folders, checksums."""

from pathlib import Path

import numpy as np
import pytest

from helpers import POINTER
from osr import paths

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.mark.parametrize("value, expected", [(None, "full"), ("", "full"), ("demo", "demo")])
def test_profile(monkeypatch, value, expected):
    if value is not None:
        monkeypatch.setenv("OSR_PROFILE", value)
    assert paths.profile() == expected


@pytest.mark.parametrize(
    "retrain, value, expected",
    [
        (None, "1,2", [0]),
        ("0", "1,2", [0]),
        ("1", None, [0]),
        ("1", "0", [0]),
        ("1", "2,1", [0, 1, 2]),
        ("1", "0,1,2,3,4", [0, 1, 2, 3, 4]),
    ],
)
def test_seeds(sandbox, monkeypatch, retrain, value, expected):
    for name, content in (("OSR_RETRAIN", retrain), ("SEEDS", value)):
        if content is not None:
            monkeypatch.setenv(name, content)
    assert paths.seeds() == expected


def test_every_run_writes_outside_of_what_is_stored(sandbox, monkeypatch):
    assert paths.output_dir() == (sandbox / "out").resolve()
    assert paths.results_dir() == (sandbox / "out/report/results").resolve()
    assert paths.checkpoint_dir() == (sandbox / "out/checkpoints").resolve()
    monkeypatch.delenv("OSR_OUTPUT")
    for profile, folder in (("full", ".run"), ("demo", ".demo")):
        monkeypatch.setenv("OSR_PROFILE", profile)
        assert paths.output_dir() == paths.ROOT / folder
        assert paths.results_dir() == paths.ROOT / folder / "report/results"
        assert paths.checkpoint_dir() == paths.ROOT / folder / "checkpoints"
        assert f"{folder}/" in (paths.ROOT / ".gitignore").read_text().splitlines()
    monkeypatch.setenv("OSR_OUTPUT", "../elsewhere")  # is seen from the repository
    assert paths.output_dir() == paths.ROOT.parent / "elsewhere"


def test_only_a_plain_full_run_reads_the_shipped_weights(monkeypatch):
    assert not paths.own_weights()
    for name, value, own in (
        ("OSR_RETRAIN", "1", True), ("OSR_RETRAIN", "0", False), ("OSR_PROFILE", "demo", True),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
        assert paths.own_weights() == own
        assert paths.shipped_dir() == paths.ROOT / "data/checkpoints"


def test_data_lie_where_the_environment_says_and_then_in_the_repository(monkeypatch):
    stored = paths.ROOT / "data"
    monkeypatch.delenv("OSR_DATA", raising=False)
    assert paths.data_dirs() == [stored]
    monkeypatch.setenv("OSR_DATA", "")
    monkeypatch.setenv("MINE", "mine")
    assert paths.data_dirs() == [stored]
    for value, folder in (
        ("../elsewhere", paths.ROOT.parent / "elsewhere"), ("/sets", Path("/sets").resolve()),
        ("~/sets", Path.home() / "sets"), ("$MINE/sets", paths.ROOT / "mine/sets"),
    ):  # fmt: skip
        monkeypatch.setenv("OSR_DATA", value)
        assert paths.data_dirs() == [folder, stored]


def test_a_file_of_the_repository_comes_back_by_a_command_that_names_it(repository):
    path = repository / "data/mnist-train.npz"
    whole, sparse = "git checkout -- data/mnist-train.npz", "git sparse-checkout disable"
    said = paths.way_to_restore(path)
    assert whole in said and sparse in said
    path.write_bytes(POINTER)
    said = paths.way_to_restore(path)
    assert "git lfs pull --include data/mnist-train.npz" in said and whole not in said
    path.write_bytes(b"PK half a file")
    said = paths.way_to_restore(path)
    assert whole in said and sparse not in said and "lfs" not in said


def test_seeds_that_are_no_numbers_are_an_error(monkeypatch):
    monkeypatch.setenv("OSR_RETRAIN", "1")
    monkeypatch.setenv("SEEDS", "0,one")
    with pytest.raises(ValueError, match="SEEDS='0,one': give whole numbers"):
        paths.seeds()


def test_a_path_is_replaced_as_one_piece_or_not_at_all(tmp_path):
    path = tmp_path / "below/result.txt"
    with paths.atomic_path(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.suffix == ".txt"
    with pytest.raises(KeyboardInterrupt), paths.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_an_error_that_names_the_variable(tmp_path):
    (tmp_path / "out").write_text("a file in the folder's place")
    with pytest.raises(OSError, match="cannot write .*b.txt: .* set OSR_OUTPUT to one"):
        with paths.atomic_path(tmp_path / "out/a/b.txt"):
            raise AssertionError("nothing is written")
    assert (tmp_path / "out").read_text() == "a file in the folder's place"


def test_a_digest_is_of_the_content_and_not_of_the_order_of_keys():
    assert paths.digest({"a": 1, "b": [2]}) == paths.digest({"b": [2], "a": 1})
    assert paths.digest({"a": 1}) != paths.digest({"a": 2}) and len(paths.digest(None)) == 12


def test_a_checksum_depends_on_dtype_shape_and_bytes():
    base = np.arange(6, dtype=np.int64)
    others = [base.reshape(2, 3), base.astype(np.int32), base + 1, base[::-1]]
    sums = {paths.checksum(array) for array in (base, *others)}
    assert len(sums) == 5 and {len(s) for s in sums} == {12}
    strided = np.stack([base, base], 1)[:, 0]  # the same content in another layout
    assert paths.checksum(strided) == paths.checksum(base)


def test_progress_passes_everything_on_in_silence(capfd):
    assert list(paths.progress(range(5), "five")) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_a_progress_bar_is_drawn_and_vanishes(capfd, monkeypatch):
    monkeypatch.delenv("OSR_PROGRESS")
    assert list(paths.progress(range(5), "five")) == [0, 1, 2, 3, 4]
    out, drawn = capfd.readouterr()
    assert out == "" and "five" in drawn and drawn.rsplit("\r", 1)[1].strip() == ""
