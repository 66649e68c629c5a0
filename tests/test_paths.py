"""Profiles, seeds, folders, checksums."""

import numpy as np
import pytest

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


def test_outputs_go_where_the_environment_says(sandbox, monkeypatch):
    assert paths.output_dir() == (sandbox / "out").resolve()
    assert paths.results_dir() == (sandbox / "out/report/results").resolve()
    monkeypatch.delenv("OSR_OUTPUT")
    assert paths.output_dir() == paths.ROOT
    monkeypatch.setenv("OSR_PROFILE", "demo")
    assert paths.output_dir() == paths.ROOT / ".demo"


def test_only_a_plain_full_run_reads_the_shipped_weights(sandbox, monkeypatch):
    own = (sandbox / "out/checkpoints").resolve()
    beside_the_shipped = paths.ROOT / "data/checkpoints/local"
    assert paths.shipped_dir() == paths.ROOT / "data/checkpoints"
    assert paths.checkpoint_dir() == beside_the_shipped and not paths.own_weights()
    monkeypatch.setenv("OSR_RETRAIN", "1")
    assert paths.checkpoint_dir() == own and paths.own_weights()
    monkeypatch.delenv("OSR_OUTPUT")
    assert paths.checkpoint_dir() == beside_the_shipped
    monkeypatch.setenv("OSR_OUTPUT", str(sandbox / "out"))
    monkeypatch.setenv("OSR_RETRAIN", "0")
    assert paths.checkpoint_dir() == beside_the_shipped and not paths.own_weights()
    monkeypatch.setenv("OSR_PROFILE", "demo")
    assert paths.checkpoint_dir() == own and paths.own_weights()
    monkeypatch.delenv("OSR_OUTPUT")
    assert paths.checkpoint_dir() == paths.ROOT / ".demo/checkpoints"
    assert paths.shipped_dir() == paths.ROOT / "data/checkpoints"


def test_data_lie_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("OSR_DATA", raising=False)
    assert paths.data_dir() == paths.ROOT / "data"
    monkeypatch.setenv("OSR_DATA", "../elsewhere")
    assert paths.data_dir() == paths.ROOT.parent / "elsewhere"
    monkeypatch.setenv("OSR_DATA", "/elsewhere")
    assert str(paths.data_dir()) == "/elsewhere"


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
