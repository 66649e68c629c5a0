"""Folders of pictures: read, judged, laid out."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from osr import pictures
from osr.images import to_model_input

# --- read -----------------------------------------------------------------------------------------


def test_pictures_of_any_size_and_mode_become_model_input(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    for mode, name in (("RGB", "a.png"), ("L", "b.bmp"), ("1", "c.png"), ("P", "d.gif")):
        picture.convert(mode).save(tmp_path / name)
    Image.fromarray(np.full((5, 9), 40_000, np.uint16)).save(tmp_path / "e.png")
    half = Image.new("RGBA", (28, 28), (255, 255, 255, 128))  # half transparent white
    half.save(tmp_path / "f.png")
    (tmp_path / "notes.txt").write_text("no picture")
    images, names = pictures.load_pictures(tmp_path)
    assert names == ["a.png", "b.bmp", "c.png", "d.gif", "e.png", "f.png"]
    assert images.shape == (6, 1, 28, 28) and images.dtype == torch.float32
    assert torch.equal(images[:1], to_model_input(colours[None]))
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
    images, names = pictures.load_pictures(tmp_path)
    assert names == ["good.png"]
    torch.testing.assert_close(images, to_model_input(noise[None]))  # grey from RGB
    said = capsys.readouterr().out
    assert "4 of 5 files are no pictures" in said
    assert all(name in said for name in ("cut.png", "empty.png", "phone.heic", "real.tiff"))


def test_a_folder_without_a_readable_picture_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        pictures.load_pictures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no readable picture.*put files such as"):
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


def test_a_folder_of_pictures_is_judged_under_the_names_of_its_files(tmp_path):
    for name, value in (("bright.png", 255), ("dark.png", 0)):
        Image.fromarray(greys(value)[0]).save(tmp_path / name)
    rows = pictures.judge_pictures(Brightness(), tmp_path, tmp_path / "out")
    assert [row["picture"] for row in rows] == ["dark.png", "bright.png"]
    with pytest.raises(ValueError, match="holds the pictures: give the results a folder of their"):
        pictures.judge_pictures(Brightness(), str(tmp_path), tmp_path)


def test_the_contact_sheet_shows_the_pictures_in_their_order(tmp_path):
    pictures.judge_pictures(Brightness(), greys(255, 0, 102), tmp_path)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        grey = np.asarray(sheet.convert("L")) / 255
    height, width = grey.shape
    shades = [grey[int(height * 0.7), int((i + 0.5) * width / 3)] for i in range(3)]
    assert shades == pytest.approx([0, 0.4, 1], abs=0.02)


@pytest.mark.parametrize("n, rows", [(16, 1), (17, 2), (300, 15)])
def test_a_contact_sheet_has_sixteen_in_a_row_and_at_most_240(tmp_path, n, rows):
    images = np.zeros((n, 28, 28), np.uint8)
    assert len(pictures.judge_pictures(Brightness(), images, tmp_path)) == n
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        width, height = sheet.size
    assert height / width == pytest.approx(rows * 40 / (16 * 32), abs=0.01)


@pytest.mark.parametrize(
    "model, given, message",
    [
        (Brightness(), greys(0)[:0], "there are no pictures: give at least one"),
        (lambda x: torch.full((len(x),), 3), greys(0), r"must return \(N, 11\) finite scores"),
        (lambda x: torch.full((len(x), 11), -torch.inf), greys(0), "finite scores"),
        (lambda x: torch.zeros(len(x), 10), greys(0), "add an eleventh score"),
        (Brightness(), greys(0) / 255, "expected uint8 images"),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_writes_nothing(tmp_path, model, given, message):
    with pytest.raises(ValueError, match=message):
        pictures.judge_pictures(model, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
