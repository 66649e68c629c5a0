"""Profiles, seeds, folders, names, atomic writing, checksums."""

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from helpers import POINTER, files, literal
from osr import paths

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.mark.parametrize("value, expected", [(None, "full"), ("", "full"), ("demo", "demo")])
def test_profile(monkeypatch, value, expected):
    if value is not None:
        monkeypatch.setenv("OSR_PROFILE", value)
    assert paths.profile() == expected


def test_a_switch_is_on_with_1_off_with_0_and_anything_else_is_an_error(monkeypatch):
    for value, off_by_default, on_by_default in (
        (None, False, True), ("", False, True), ("0", False, False), ("1", True, True),
    ):  # fmt: skip
        if value is not None:
            monkeypatch.setenv("OSR_TEST", value)
        assert paths.switch("OSR_TEST") is off_by_default
        assert paths.switch("OSR_TEST", default=True) is on_by_default
    for value in ("true", "yes", "on", "False", "2", "01", " 1"):
        monkeypatch.setenv("OSR_TEST", value)
        with pytest.raises(ValueError, match=f"OSR_TEST='{value}': use 1 .on. or 0 .off."):
            paths.switch("OSR_TEST")


def test_a_switch_that_is_misspelt_is_an_error_wherever_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("OSR_RETRAIN", "true")
    for call in (paths.retraining, paths.seeds, paths.own_weights):
        with pytest.raises(ValueError, match="OSR_RETRAIN='true'"):
            call()
    monkeypatch.setenv("OSR_PROGRESS", "off")
    with pytest.raises(ValueError, match="OSR_PROGRESS='off'"):
        paths.progress([], "none")


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


FOLDERS = {"OSR_DATA": lambda: paths.data_dirs()[0], "OSR_OUTPUT": paths.output_dir}


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_home_and_variables_in_a_folder_are_replaced(monkeypatch, tmp_path, variable):
    for name in ("HOME", "USERPROFILE", "MINE"):  # of POSIX, of Windows
        monkeypatch.setenv(name, str(tmp_path))
    for value in ("~/sets", "$MINE/sets", "${MINE}/sets"):
        monkeypatch.setenv(variable, value)
        assert FOLDERS[variable]() == (tmp_path / "sets").resolve()


@pytest.mark.parametrize("variable", FOLDERS)
@pytest.mark.parametrize("value", ["$UNSET/sets", "a/${UNSET}", "~nobody-of-that-name/sets"])
def test_a_variable_that_is_not_set_never_becomes_a_folder(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{literal(value)}: .* stands for nothing"):
        FOLDERS[variable]()


def test_an_osr_data_that_names_no_folder_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("OSR_DATA", raising=False)
    assert paths.data_hint() == ""
    (tmp_path / "file").touch()
    for value, hint in (
        ("", ""), (tmp_path, ""), (tmp_path / "dota", f"; OSR_DATA={tmp_path / 'dota'} names no f"),
        (tmp_path / "file", f"; OSR_DATA={tmp_path / 'file'} names no folder"),
    ):  # fmt: skip
        monkeypatch.setenv("OSR_DATA", str(value))
        assert paths.data_hint().startswith(hint) and bool(paths.data_hint()) == bool(hint)


@pytest.mark.parametrize(
    "name", ["a", "02_latent", "my digits", "v1.2", ".a", "é", "console", "com"]
)
def test_a_name_for_a_file_is_passed_on(name):
    assert paths.safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "a\\b", "/a", "c:", "a*", "a?", 'a"', "a<b", "a>b", "a|b", "a.",
     "a ", "a\nb", "\x1b[31m", "\x7f", "a\0", "\ud800", "NUL", "nul.txt", "Com1", "lpt9.a.b",
     "con .a", "COM²", "CONOUT$", "x" * 201, "é" * 101, None, 3, b"a", Path("a")],
)  # fmt: skip
def test_a_name_that_is_none_for_a_file_somewhere_is_an_error(name):
    with pytest.raises(ValueError, match="cannot name a file everywhere"):
        paths.safe_name(name)


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


def test_another_file_does_not_come_back_by_git_unless_it_is_a_pointer(repository, tmp_path):
    for path in (repository / "data/svhn-test.npz", tmp_path / "elsewhere.npz"):
        assert paths.way_to_restore(path, "delete it") == "delete it"
        path.write_bytes(b"PK half a file")
        assert paths.way_to_restore(path, "delete it") == "delete it"
        path.write_bytes(POINTER)
        assert "a pointer of Git LFS" in paths.way_to_restore(path, "delete it")


def test_seeds_that_are_no_numbers_are_an_error(monkeypatch):
    monkeypatch.setenv("OSR_RETRAIN", "1")
    monkeypatch.setenv("SEEDS", "0,one")
    with pytest.raises(ValueError, match="SEEDS='0,one': give whole numbers"):
        paths.seeds()


# --- writing --------------------------------------------------------------------------------------


def test_a_path_is_replaced_as_one_piece_or_not_at_all(tmp_path):
    path = tmp_path / "below/result.txt"
    with paths.atomic_path(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.parent == path.parent
    with pytest.raises(KeyboardInterrupt), paths.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from osr.paths import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "name", ["07_a.png", "07_a.pdf", "07_a.json", "a-test.npz", "a.safetensors"]
)
def test_what_a_killed_write_leaves_passes_for_no_data_and_is_removed(tmp_path, name):
    path = tmp_path / name
    path.write_text("whole")
    killed = subprocess.run([sys.executable, "-c", KILLED, path])
    (left,) = set(tmp_path.iterdir()) - {path}
    assert killed.returncode and left.read_text() == "half" and path.read_text() == "whole"
    for pattern in ("*.json", "*.png", "*.pdf", "*.npz", "*.csv", "a*.safetensors"):
        assert left not in tmp_path.glob(pattern)
    assert left.suffix == ".part" and left.stem.startswith(f"{name}.")
    assert "*.part" in (paths.ROOT / ".gitignore").read_text().splitlines()
    another = tmp_path / f"{name}.json.01234567.part"  # of another file
    another.touch()
    os.utime(another, (0, 0))
    with paths.atomic_path(path):  # of a process that is perhaps still writing
        assert left.exists()
    os.utime(left, (time.time() - paths.LEFT_OVER - 1,) * 2)
    with paths.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert set(tmp_path.iterdir()) == {path, another} and path.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with paths.atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("content")
        with paths.atomic_path(tmp_path / "a.safetensors") as temporary:
            save_file({}, temporary)  # which replaces the file
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("a.*")} == {mode}


def test_a_path_that_cannot_be_written_is_an_error_that_names_the_variable(tmp_path):
    (tmp_path / "out").write_text("a file in the folder's place")
    with pytest.raises(OSError, match="cannot write .*b.txt: .* set OSR_OUTPUT to one"):
        with paths.atomic_path(tmp_path / "out/a/b.txt"):
            raise AssertionError("nothing is written")
    with pytest.raises(OSError, match="cannot write .*a: .* set OSR_OUTPUT to one"):
        paths.writable(tmp_path / "out/a")
    assert (tmp_path / "out").read_text() == "a file in the folder's place"


def test_a_folder_that_can_be_written_is_said_to_be_in_silence(tmp_path):
    assert paths.writable(tmp_path / "new/folder") is None
    assert files(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch, code):
    path = tmp_path / "out/a.txt"
    said = f"cannot write {literal(path)}: .* Free some space"
    with pytest.raises(OSError, match=said) as caught, paths.atomic_path(path):
        raise OSError(code, os.strerror(code))
    assert caught.value.__cause__.errno == code and files(tmp_path) == []

    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match=said), paths.atomic_path(path):
        raise AssertionError("nothing is written")


def test_an_error_that_names_a_file_or_is_none_of_the_disk_is_passed_on(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "gone", "other.txt"), OSError("half a picture")):
        with pytest.raises(OSError) as caught, paths.atomic_path(tmp_path / "a.txt"):
            raise error
        assert caught.value is error


# --- checksums, texts, progress -------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "array",
    [np.array([None, "a"]), np.array([object()]), np.zeros(2, [("a", int), ("b", object)]),
     np.array(["a"], np.dtypes.StringDType())],
)  # fmt: skip
def test_objects_have_no_checksum_for_their_bytes_are_addresses(array):
    with pytest.raises(ValueError, match="no checksum of .*: give an array of numbers"):
        paths.checksum(array)


def test_a_text_from_outside_becomes_one_printable_line():
    assert paths.one_line("  décoded\n\tfrom a  copy ") == "décoded from a copy"
    assert paths.one_line("\x1b[31mred\x00 \ud800 \u202e") == "?[31mred? ? ?"
    assert paths.one_line("x" * 300) == "x" * 300
    assert paths.one_line("x" * 301) == "x" * 297 + "..."
    assert paths.one_line("abcdef", 5) == "ab..."


def test_progress_passes_everything_on_in_silence(capfd):
    assert list(paths.progress(range(5), "five")) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_a_progress_bar_is_drawn_and_vanishes(capfd, monkeypatch):
    monkeypatch.delenv("OSR_PROGRESS")
    assert list(paths.progress(range(5), "five")) == [0, 1, 2, 3, 4]
    out, drawn = capfd.readouterr()
    assert out == "" and "five" in drawn and drawn.rsplit("\r", 1)[1].strip() == ""


@pytest.mark.parametrize("folder", [".", "data/.."])
def test_a_run_never_writes_into_the_repository_itself(monkeypatch, folder):
    monkeypatch.setenv("OSR_OUTPUT", folder)
    with pytest.raises(ValueError, match="OSR_OUTPUT names the repository"):
        paths.output_dir()
