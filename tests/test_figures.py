"""Figures: their bytes, the style, rows of pictures."""

from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from helpers import files
from osr import figures, paths
from osr.records import SETS

pytestmark = pytest.mark.usefixtures("sandbox")


DRAWN = ("mnist", "fashionmnist", "kmnist", "cifar10", "svhn", "tinyimagenet")


def draw():
    fig, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, 1, 3], label="café")
    axes.legend()
    figures.save_figure(fig, "test")
    plt.close(fig)
    folder = paths.output_dir() / "figures"
    assert files(folder) == ["test.pdf", "test.png"]
    return (folder / "test.png").read_bytes(), (folder / "test.pdf").read_bytes()


def test_a_figure_is_written_twice_with_the_same_bytes_and_no_date():
    png, pdf = draw()
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
    assert (png, pdf) == draw()
    for mark in (b"CreationDate", b"ModDate", b"D:20", b"tIME", b"Creation Time", b"date:"):
        assert mark not in png + pdf


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "a:b", "nul"])
def test_a_name_that_would_leave_the_folder_is_an_error(name):
    fig = plt.figure()
    with pytest.raises(ValueError, match="cannot name a file everywhere"):
        figures.save_figure(fig, name)
    plt.close(fig)
    assert files(paths.output_dir()) == []


def test_a_failed_figure_leaves_the_old_one(monkeypatch):
    png, pdf = draw()

    def half(fig, path, **_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(KeyboardInterrupt):
        draw()
    plt.close("all")
    folder = paths.output_dir() / "figures"
    assert files(folder) == ["test.pdf", "test.png"]
    assert (folder / "test.png").read_bytes() == png


def test_a_notebook_starts_with_its_seed_and_says_what_runs(monkeypatch, capsys):
    with plt.rc_context():
        device = figures.start_notebook(3)
        drawn = torch.rand(1)
        assert plt.rcParams["font.size"] == 8
        said, where = capsys.readouterr().out.splitlines()
        assert said == f"profile full, device {device}, torch {torch.__version__}, seeds [0]"
        assert where == f"figures and results go to {paths.output_dir()}"
        monkeypatch.setenv("OSR_PROFILE", "demo")
        monkeypatch.delenv("OSR_OUTPUT")
        figures.start_notebook(3)
        assert torch.equal(torch.rand(1), drawn)
        said = capsys.readouterr().out
        assert "figures and results go to .demo\nSmall models on few images: the text" in said


def test_the_style_changes_what_it_should():
    with plt.rc_context():
        figures.use_report_style()
        assert plt.rcParams["font.size"] == 8 and not plt.rcParams["axes.spines.top"]
        assert plt.rcParams["figure.figsize"][0] == figures.COLUMN_WIDTH == 3.3
    names = list(figures.COLORS)
    starts = [names.index(name) for name in ("mnist", "mnist-rest", "reconstruction", "plain_cnn")]
    groups = [names[i:j] for i, j in pairwise([*starts, None])]  # drawn together
    groups[0] = [name for name in groups[0] if name not in SETS or name in DRAWN]
    groups[-1] = groups[-1][: groups[-1].index("base")]
    groups.append(["base", "sp", "pixmix"])
    for group in groups:
        assert len({figures.COLORS[name] for name in group}) == len(group)


# --- rows of pictures -----------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """Return the list of what has been shown; close all figures afterwards."""
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(plt.gcf()))
    with plt.rc_context():
        figures.use_report_style()
        yield calls
    plt.close("all")


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def drawn(axis):
    """Return the picture that an axis shows, with the channels first."""
    (image,) = axis.images
    return np.asarray(image.get_array()).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (3, 3, 4)])
def test_every_picture_stands_in_its_row_and_column_and_nothing_else_does(shown, shape):
    strips = {"long": noise(5, *shape), "short": noise(2, *shape), "one": noise(1, *shape)}
    figures.show_strips(strips)
    (axis,) = shown[0].axes
    sheet = drawn(axis).copy()
    assert sheet.shape == (3, 3 * (3 + 2), 5 * (4 + 2))  # a frame around each
    for row, pictures in enumerate(strips.values()):
        for column, picture in enumerate(pictures):
            part = sheet[:, 5 * row + 1 : 5 * row + 4, 6 * column + 1 : 6 * column + 5]
            np.testing.assert_array_equal(part, np.broadcast_to(picture, (3, 3, 4)))
            part[:] = 1
    assert (sheet == 1).all()
    assert [label.get_text() for label in axis.get_yticklabels()] == list(strips)
    assert axis.get_yticks().tolist() == [2, 7, 12] and not len(axis.get_xticks())
    assert len(shown) == 1 and not axis.texts and files(paths.output_dir()) == []


def test_pictures_may_be_arrays_on_a_graph_and_beyond_the_range(shown):
    pictures = torch.tensor([[[-1.0, 0.25], [0.5, 2.0]]], requires_grad=True)
    figures.show_strips({"tensor": pictures, "array": pictures.detach().numpy()})
    sheet = drawn(shown[0].axes[0])
    for top in (1, 5):
        np.testing.assert_array_equal(sheet[0, top : top + 2, 1:3], [[0, 0.25], [0.5, 1]])


def test_a_default_device_and_dtype_change_no_row(shown):
    strips = {"a": noise(2, 5, 5), "b": noise(1, 5, 5).numpy().astype(float)}
    figures.show_strips(strips, captions={"a": ["x"]})
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        figures.show_strips(strips, captions={"a": ["x"]})
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    one, other = (np.asarray(fig.axes[0].images[0].get_array()) for fig in shown)
    np.testing.assert_array_equal(one, other)


def boxes(axis):
    """Return {text: (left, right, top, bottom)} of the captions, in pixels of the sheet."""
    axis.figure.draw_without_rendering()
    found = {}
    for text in axis.texts:
        box = text.get_window_extent()
        (left, bottom), (right, top) = axis.transData.inverted().transform(box.get_points())
        found[text.get_text()] = left, right, top, bottom
    return found


def test_captions_stand_above_their_pictures_and_cover_none(shown):
    strips = {"a": noise(6, 28, 28), "b": noise(3, 28, 28), "c": noise(6, 28, 28)}
    said = {"a": [f"{i}\ntwo" for i in range(6)], "c": ["only", "", "third"]}
    figures.show_strips(strips, captions=said)
    (axis,) = shown[0].axes
    sheet = drawn(axis)
    ink = (sheet < 1).any(0)
    free = ~ink.any(1)  # rows of the sheet without a picture
    found = boxes(axis)
    assert set(found) == {*said["a"], "only", "", "third"}
    tops = [int(tick) - 14 for tick in axis.get_yticks()]  # of the pictures
    for label, top in zip(strips, tops, strict=True):
        np.testing.assert_array_equal(sheet[0, top + 1 : top + 29, 1:29], strips[label][0])
        for i, text in enumerate(said.get(label, [])):
            if text:
                left, right, upper, lower = found[text]
                assert (left + right) / 2 == pytest.approx(30 * i + 14.5, abs=0.5)
                assert right - left < 30
                assert lower <= top + 1 and free[max(0, round(upper)) : top].all()
    first, second, third = np.diff([-30, *tops]) - 30  # the room above each row
    assert first > 1.5 * third > 0 == second  # for two lines, for one, for none


@pytest.mark.parametrize("size", [4, 8])
def test_captions_have_the_size_that_is_asked_for_and_their_room(shown, size):
    figures.show_strips({"a": noise(8, 28, 28)}, captions={"a": ["Ágy"] * 8}, size=size)
    (axis,) = shown[0].axes
    assert {text.get_fontsize() for text in axis.texts} == {size}
    (_, _, upper, lower) = boxes(axis)["Ágy"]
    (tick,) = axis.get_yticks()
    assert upper >= -0.5 - 0.1 * size and lower <= tick - 14 + 1


def test_a_name_saves_the_figure_and_shows_it(shown):
    figures.show_strips({"a": noise(2, 5, 5)}, "strips")
    assert files(paths.output_dir()) == ["strips.pdf", "strips.png"] and len(shown) == 1
    assert shown[0].get_size_inches()[0] == figures.PAGE_WIDTH


def test_an_axis_of_ones_own_is_drawn_in_and_neither_saved_nor_shown(shown):
    fig, (left, right) = plt.subplots(1, 2, figsize=(6, 2))
    figures.show_strips({"a": noise(3, 5, 5)}, "strips", captions={"a": ["x"]}, axis=right)
    assert shown == [] and files(paths.output_dir()) == [] and plt.get_fignums() == [fig.number]
    assert not left.images
    sheet = drawn(right)
    room = sheet.shape[1] - 7
    np.testing.assert_array_equal(sheet[0, room + 1 : room + 6, 8:13], noise(3, 5, 5)[1])
    (_, _, upper, lower) = boxes(right)["x"]
    assert lower <= room + 1 and room > 0
