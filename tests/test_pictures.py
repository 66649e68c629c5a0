"""Folders, files and arrays of pictures: read, prepared, judged, laid out."""

import csv
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from osr import pictures
from osr.images import to_model_input

# --- read -----------------------------------------------------------------------------------------


def stroke(ink=0, paper=255, size=(60, 60)):
    """Return a picture of a slanted stroke."""
    picture = Image.new("L", size, paper)
    ImageDraw.Draw(picture).line([(35, 10), (25, 50)], fill=ink, width=6)
    return picture


def test_pictures_of_any_size_and_mode_become_model_input(tmp_path, capsys):
    colours = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    for mode, name in (("RGB", "a.png"), ("L", "b.bmp"), ("1", "c.png"), ("P", "d.gif")):
        picture.convert(mode).save(tmp_path / name)
    Image.fromarray(np.full((5, 9), 40_000, np.uint16)).save(tmp_path / "e.png")
    half = Image.new("RGBA", (28, 28), (255, 255, 255, 128))  # half transparent white
    half.save(tmp_path / "f.png")
    (tmp_path / ".DS_Store").write_text("of the system")
    images, names = pictures.load_pictures(tmp_path, prepare=False)
    assert names == ["a.png", "b.bmp", "c.png", "d.gif", "e.png", "f.png"]
    assert capsys.readouterr().out == ""
    assert images.shape == (6, 1, 28, 28) and images.dtype == torch.float32
    assert torch.equal(images[:1], to_model_input(colours[None]))
    assert images[4].mean() == pytest.approx(40_000 / 65_535, abs=0.01)
    assert images[5].mean() == pytest.approx(0.5, abs=0.01)  # on black


def test_a_folder_is_prepared_and_what_was_done_is_counted(tmp_path, capsys):
    stroke().save(tmp_path / "ink.png")
    stroke(255, 0).save(tmp_path / "light.png")
    stroke(size=(300, 200)).save(tmp_path / "wide.png")
    Image.new("L", (60, 60), 200).save(tmp_path / "paper.png")
    images, names = pictures.load_pictures(tmp_path)
    assert names == ["ink.png", "light.png", "paper.png", "wide.png"]
    assert capsys.readouterr().out == (
        "4 pictures in MNIST's form: 2 inverted, 1 cropped, 1 blank (paper.png); prepare=False "
        "takes them as they are\n"
    )
    assert images[2].max() == 0
    for other in (images[1], images[3]):
        assert (images[0] - other).abs().mean() < 0.02
    assert images[0, 0, 14].max() == 1 and images[0, 0, 0].max() == 0


def test_files_and_images_are_taken_too(tmp_path, capsys):
    stroke().save(tmp_path / "a.png")
    first, names = pictures.load_pictures(tmp_path / "a.png")
    assert names == ["a.png"]
    images, names = pictures.load_pictures([str(tmp_path / "a.png"), stroke(), tmp_path / "a.png"])
    assert names == ["a.png", "1", "a.png"] and torch.equal(images, first.expand(3, -1, -1, -1))
    alone, names = pictures.load_pictures(stroke())
    assert names == ["0"] and torch.equal(alone, first)
    with pytest.raises(FileNotFoundError, match="b.png' is not a folder, nor a file"):
        pictures.load_pictures([tmp_path / "a.png", tmp_path / "b.png"])
    with pytest.raises(ValueError, match="no readable picture: give files"):
        pictures.load_pictures([])
    with pytest.raises(ValueError, match="picture 0 is a ndarray: give files or PIL images"):
        pictures.load_pictures([np.zeros((28, 28), np.uint8)])


def test_broken_pictures_are_named_counted_and_left_out(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:400])
    (tmp_path / "phone.heic").write_bytes(b"a format that is not read")
    Image.fromarray(np.ones((5, 5), np.float32)).save(tmp_path / "real.tiff")
    (tmp_path / "below").mkdir()
    images, names = pictures.load_pictures(tmp_path, prepare=False)
    assert names == ["good.png"]
    torch.testing.assert_close(images, to_model_input(noise[None]))  # grey from RGB
    said = capsys.readouterr().out
    assert "4 of 5 cannot be read: cut.png (" in said
    assert all(name in said for name in ("empty.png", "phone.heic", "real.tiff (real numbers"))


def test_of_many_broken_pictures_the_first_are_named(tmp_path, capsys):
    stroke().save(tmp_path / "z.png")
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    pictures.load_pictures(tmp_path)
    said = capsys.readouterr().out
    assert "30 of 31 cannot be read" in said and "and 20 more" in said and "25.png" not in said


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_a_file_name_that_is_no_text_is_judged_like_the_others(tmp_path):
    try:
        stroke().save(os.fsencode(tmp_path) + b"/\xff\xfe.png", "PNG")
    except OSError:
        pytest.skip("this file system refuses such names")
    (row,) = pictures.judge_pictures(Brightness(), tmp_path, tmp_path / "out")
    assert row["picture"] == "??.png"
    assert "??.png" in (tmp_path / "out/scores.csv").read_text(encoding="utf-8")


def test_a_folder_without_a_readable_picture_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder, nor a file"):
        pictures.load_pictures(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="'' is not a folder"):
        pictures.load_pictures("")
    with pytest.raises(ValueError, match="no readable picture in .*give files such as"):
        pictures.load_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no readable picture"):
        pictures.load_pictures(tmp_path)


# --- judged ---------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """The brighter a picture, the more unknown; a dark one is a 7."""

    def forward(self, x):
        assert not self.training
        scores = torch.zeros(len(x), 11)
        scores[:, 7] = 1
        scores[:, 10] = 2 * x.mean((1, 2, 3))
        return scores


def greys(*values):
    return np.stack([np.full((28, 28), value, np.uint8) for value in values])


def test_pictures_are_judged_the_most_digit_like_first(tmp_path):
    model = Brightness().train()
    rows = pictures.judge_pictures(model, greys(255, 0, 102), tmp_path / "out")
    assert rows == [
        {"picture": "1", "verdict": "7", "ood_score": -1.0, "digit": 7},
        {"picture": "2", "verdict": "7", "ood_score": -0.2, "digit": 7},
        {"picture": "0", "verdict": "unknown", "ood_score": 1.0, "digit": 7},
    ]
    assert model.training
    with open(tmp_path / "out/scores.csv", encoding="utf-8", newline="") as file:
        assert [*csv.DictReader(file)] == [{k: str(v) for k, v in row.items()} for row in rows]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "contact_sheet.png", "scores.csv",
    ]  # fmt: skip


def test_a_picture_without_ink_is_blank_and_unknown(tmp_path):
    given = [Image.new("L", (50, 50), 255), stroke()]
    rows = pictures.judge_pictures(Brightness(), given, tmp_path)
    assert [(row["picture"], row["verdict"]) for row in rows] == [("1", "7"), ("0", "blank")]
    assert rows[1]["ood_score"] == math.inf
    (row,) = pictures.judge_pictures(Brightness(), given[:1], tmp_path, prepare=False)
    assert row["verdict"] == "unknown" and row["ood_score"] == 1


def test_an_array_is_prepared_where_it_is_asked_for(tmp_path):
    array = np.stack([np.asarray(stroke())] * 2)
    plain = pictures.judge_pictures(Brightness(), array, tmp_path)
    assert plain[0]["ood_score"] > 0.5  # paper is bright
    prepared = pictures.judge_pictures(Brightness(), array, tmp_path, prepare=True)
    assert prepared[0]["ood_score"] < -0.5
    assert [row["picture"] for row in prepared] == ["0", "1"]
    assert prepared == pictures.judge_pictures(
        Brightness(), array[..., None], tmp_path, prepare=True
    )
    with pytest.raises(ValueError, match=r"one picture as picture\[None\]"):
        pictures.judge_pictures(Brightness(), array[0], tmp_path, prepare=True)


def test_a_shipped_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="no shipped model 'detector'"):
        pictures.judge_pictures("detector", greys(0), tmp_path)
    (row,) = pictures.judge_pictures("osr_detector", [stroke()], tmp_path)
    assert row["verdict"] == "1"


def test_a_folder_of_pictures_is_judged_under_the_names_of_its_files(tmp_path):
    for name, value in (("bright.png", 255), ("dark.png", 0)):
        Image.fromarray(greys(value)[0]).save(tmp_path / name)
    rows = pictures.judge_pictures(Brightness(), tmp_path, tmp_path / "out", prepare=False)
    assert [row["picture"] for row in rows] == ["dark.png", "bright.png"]
    for given in (str(tmp_path), tmp_path / "dark.png", [tmp_path / "dark.png"]):
        with pytest.raises(ValueError, match="holds the pictures: give the results a folder of"):
            pictures.judge_pictures(Brightness(), given, tmp_path)


def test_the_contact_sheet_shows_the_pictures_in_their_order(tmp_path):
    pictures.judge_pictures(Brightness(), greys(255, 0, 102), tmp_path)
    assert shades(tmp_path, 3) == pytest.approx([0, 0.4, 1], abs=0.02)


def shades(folder, across):
    with Image.open(folder / "contact_sheet.png") as sheet:
        grey = np.asarray(sheet.convert("L")) / 255
    height, width = grey.shape
    tile = width / across
    lines = round(height / (42 * tile / 32))
    places = [(line + 0.65, column + 0.5) for line in range(lines) for column in range(across)]
    return [grey[int(y * height / lines), int(x * tile)] for y, x in places]


def test_a_contact_sheet_of_many_is_an_even_choice_from_first_to_last(tmp_path):
    images = greys(*np.linspace(0, 255, 500).astype(int))
    pictures.judge_pictures(Brightness(), images, tmp_path)
    assert shades(tmp_path, 12) == pytest.approx(np.linspace(0, 1, 240), abs=0.02)


@pytest.mark.parametrize("n, rows", [(12, 1), (13, 2), (300, 20)])
def test_a_contact_sheet_has_twelve_in_a_row_and_at_most_240(tmp_path, n, rows):
    images = np.zeros((n, 28, 28), np.uint8)
    assert len(pictures.judge_pictures(Brightness(), images, tmp_path)) == n
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        width, height = sheet.size
    assert height / width == pytest.approx(rows * 43 / (12 * 32), abs=0.01)


def test_a_contact_sheet_names_the_files(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    written = []
    text = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **k: (written.append(s), text(self, x, y, s, **k))
    )
    for name in ("seven.png", "a_name_that_is_far_too_long.png"):
        stroke().save(tmp_path / name)
    pictures.judge_pictures(Brightness(), tmp_path, tmp_path / "out")
    assert {"seven.png", "a_name\u2026ng.png"} <= set(written)
    assert all(len(name) <= 13 for name in written)


def one_infinite(value):
    scores = torch.zeros(2, 11)
    scores[1, 10] = value
    return lambda x: scores


@pytest.mark.parametrize(
    "model, given, message",
    [
        (Brightness(), greys(0)[:0], "there are no pictures: give at least one"),
        (lambda x: torch.full((len(x),), 3), greys(0), "returned verdicts.*return .N, 11. scores"),
        (one_infinite(torch.inf), greys(0, 1), "infinite scores"),
        (one_infinite(-torch.inf), greys(0, 1), "infinite scores"),
        (one_infinite(torch.nan), greys(0, 1), "1 of 2 score rows hold NaN"),
        (lambda x: torch.zeros(len(x), 10), greys(0), "eleventh score"),
        (Brightness, greys(0), r"Brightness is a class: give a model, Brightness\(\)"),
        (Brightness(), greys(0) / 255, "expected uint8 images"),
        (Brightness(), greys(0)[0, ..., None], r"one picture as picture\[None\]"),
        (Brightness(), np.zeros((3, 40, 30), np.uint8), "three grey pictures or one in colour"),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_writes_nothing(tmp_path, model, given, message):
    with pytest.raises(ValueError, match=message):
        pictures.judge_pictures(model, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_with_signs_of_formulas_and_integer_scores_are_judged_too(tmp_path):
    stroke().save(tmp_path / "$x_{2}^$.png")
    scores = torch.zeros(1, 11, dtype=torch.long)
    scores[0, 7] = 3
    (row,) = pictures.judge_pictures(lambda x: scores, tmp_path.glob("*.png"), tmp_path / "out")
    assert row == {"picture": "$x_{2}^$.png", "verdict": "7", "ood_score": -3.0, "digit": 7}
    (row,) = pictures.judge_pictures(lambda x: scores, Image.new("L", (9, 9)), tmp_path / "out")
    assert row["verdict"] == "blank"


def test_the_results_go_where_a_shell_would_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    pictures.judge_pictures(Brightness(), greys(0), "~/judged")
    assert (tmp_path / "judged/scores.csv").is_file()
    with pytest.raises(ValueError, match="stands for nothing"):
        pictures.judge_pictures(Brightness(), greys(0), "")


def test_folders_below_are_named_once(tmp_path, capsys):
    stroke().save(tmp_path / "a.png")
    (tmp_path / "deep").mkdir()
    pictures.judge_pictures(Brightness(), tmp_path, tmp_path / "out")
    assert capsys.readouterr().out.count("folders below are left out: deep\n") == 1
