"""Picture files: read whatever they are, and brought into the form of MNIST's digits."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from sklearn.datasets import load_digits

import osr_utils
from osr.drawings import MOST_PIXELS, open_picture, prepare_drawing, read_picture

RAMP = np.linspace(0, 1, 64).reshape(8, 8)  # from black to white


def saved(picture, tmp_path, name, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def grey(path):
    return np.asarray(read_picture(path).convert("L")) / 255


# --- read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [255, 4095, 65535])
@pytest.mark.parametrize("kind", ["<u2.png", "<u2.tif", ">u2.tif", "<i4.tif"])
def test_sixteen_and_thirty_two_bits_are_read_over_the_range_that_they_use(tmp_path, full, kind):
    dtype, suffix = kind.split(".")
    values = (RAMP * full).round().astype(dtype)
    picture = Image.fromarray(values) if dtype[0] == "<" else big_endian(values)
    found = grey(saved(picture, tmp_path, f"a.{suffix}"))
    np.testing.assert_allclose(found, RAMP, atol=1 / 255)


def big_endian(values):
    return Image.frombytes("I;16B", values.shape[::-1], values.tobytes())


def test_more_than_sixteen_bits_are_read_up_to_the_largest_number(tmp_path):
    values = (RAMP * 1_000_000).astype(np.int32)
    np.testing.assert_allclose(
        grey(saved(Image.fromarray(values), tmp_path, "a.tif")), RAMP, atol=0.01
    )


@pytest.mark.parametrize(
    "picture, name, message",
    [
        (Image.fromarray(RAMP.astype(np.float32)), "a.tif", "real numbers: save it with 8"),
        (Image.fromarray(-np.ones((4, 4), np.int32)), "a.tif", "negative numbers"),
    ],
)
def test_other_numbers_are_refused_with_the_way_out(tmp_path, picture, name, message):
    with pytest.raises(ValueError, match=message):
        open_picture(saved(picture, tmp_path, name))


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_of_several_pages_none_is_chosen_silently(tmp_path, name):
    pages = [Image.new("L", (9, 9), level) for level in (0, 100, 200)]
    path = saved(pages[0], tmp_path, name, save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="3 pages or frames: save each as a picture"):
        open_picture(path)


def test_the_two_pictures_in_a_phones_file_are_one(tmp_path):
    first, second = Image.new("L", (9, 9), 200), Image.new("L", (3, 3), 0)
    path = saved(first, tmp_path, "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert open_picture(path).size == (9, 9)


def test_a_picture_is_read_as_the_camera_was_held(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise
    values = np.zeros((20, 30), np.uint8)
    values[:, :10] = 255  # the left becomes the top
    found = grey(saved(Image.fromarray(values), tmp_path, "a.png", exif=turned))
    assert found.shape == (30, 20) and found[:10].min() == 1 and found[10:].max() == 0


def test_a_file_that_would_fill_the_memory_is_not_decoded(tmp_path, monkeypatch):
    from osr import drawings

    path = saved(Image.new("1", (7100, 7100)), tmp_path, "a.png")  # 7 kB
    assert 7100 * 7100 > MOST_PIXELS and path.stat().st_size < 50_000
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with warnings.catch_warnings(action="error"):
        with pytest.raises(ValueError, match="7100 x 7100 pixels: save it smaller"):
            open_picture(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
        with pytest.raises(ValueError, match="DecompressionBombError"):
            open_picture(path)
    monkeypatch.undo()
    monkeypatch.setattr(drawings, "MOST_PIXELS", 400_000)
    large = saved(Image.new("RGB", (2400, 2400), "teal"), tmp_path, "photo.jpg")
    assert open_picture(large).size == (600, 600)  # a photograph is decoded smaller


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("x"), ZeroDivisionError(), NotImplementedError(), MemoryError(),
        PermissionError(13, "denied"), SyntaxError("broken PNG"),
    ],
)  # fmt: skip
def test_whatever_pillow_raises_is_one_error(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    path = saved(Image.new("L", (5, 5)), tmp_path, "a.png")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ValueError, match=type(error).__name__):
        open_picture(path)


def test_a_file_that_is_no_picture_says_so_without_its_path(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="^no picture, or of a format") as caught:
        open_picture(tmp_path / "a.png")
    assert str(tmp_path) not in str(caught.value)


def test_dark_colours_of_sixteen_bits_are_named(tmp_path):
    """Pillow keeps the upper eight of them, in which there is nothing."""
    import struct
    import zlib

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    for value, message in ((200, "16 bits a channel, all dark"), (40_000, "")):
        row = b"\0" + struct.pack(">H", value) * 3 * 5
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 16, 2, 0, 0, 0))
        data += chunk(b"IDAT", zlib.compress(row * 5)) + chunk(b"IEND", b"")
        if message:
            with pytest.raises(ValueError, match=message):
                open_picture(io.BytesIO(data))
        else:
            assert np.asarray(open_picture(io.BytesIO(data)))[0, 0, 0] == value // 256


# --- prepared -------------------------------------------------------------------------------------


def seven(side=140, width=14):
    """Return a seven, as ink from 0 to 1."""
    picture = Image.new("L", (side, side))
    corners = [(side * 0.25, side * 0.2), (side * 0.75, side * 0.2), (side * 0.4, side * 0.85)]
    ImageDraw.Draw(picture).line(corners, fill=255, width=width, joint="curve")
    return np.asarray(picture) / 255


def painted(ink, colour=(0, 0, 0), paper=(255, 255, 255), canvas=None, corner=(0, 0)):
    """Paint ink on paper, on a larger canvas (height, width) where one is given."""
    whole = np.zeros(canvas or ink.shape)
    whole[corner[0] : corner[0] + len(ink), corner[1] : corner[1] + len(ink[0])] = ink
    values = np.array(paper) + (np.array(colour) - np.array(paper)) * whole[..., None]
    return Image.fromarray(values.round().astype(np.uint8))


def transparent(ink, colour):
    values = np.zeros((*ink.shape, 4), np.uint8)
    values[..., :3], values[..., 3] = colour, (255 * ink).round()
    return Image.fromarray(values)


def worse(picture, seed=0):
    """Return a picture as a cheap camera gives it: unevenly lit, noisy, compressed."""
    values, rng = np.asarray(picture).astype(float), np.random.default_rng(seed)
    height, width = values.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = (0.8 + 0.15 * x - 0.1 * y * y)[..., None]
    values = values * light + rng.normal(0, 5, values.shape)
    file = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=60)
    return Image.open(file)


WAYS = {
    "black on white": lambda ink: painted(ink),
    "white on black": lambda ink: painted(ink, (255, 255, 255), (0, 0, 0)),
    "pencil": lambda ink: painted(ink, (190, 190, 190), (235, 235, 235)),
    "red pen": lambda ink: painted(ink, (235, 10, 10), (235, 235, 235)),
    "yellow pen": lambda ink: painted(ink, (250, 220, 0)),
    "blackboard": lambda ink: painted(ink, (230, 230, 225), (30, 80, 50)),
    "corner": lambda ink: painted(ink, canvas=(400, 600), corner=(10, 450)),
    "a stamp on a large sheet": lambda ink: painted(ink, canvas=(1500, 2000), corner=(900, 200)),
    "photograph": lambda ink: worse(
        painted(ink, (50, 50, 70), (215, 205, 190), (300, 400), (90, 60))
    ),
    "black on nothing": lambda ink: transparent(ink, (0, 0, 0)),
    "white on nothing": lambda ink: transparent(ink, (255, 255, 255)),
    "bilevel": lambda ink: painted(ink > 0.5).convert("1"),
    "a card on nothing": lambda ink: on_nothing(painted(ink)),
    "dusty": lambda ink: with_dust(painted(ink)),
}  # fmt: skip


def on_nothing(picture):
    whole = Image.new("RGBA", (picture.width + 60, picture.height + 80))
    whole.paste(picture, (30, 20))
    return whole


def with_dust(picture):
    for place in ((5, 5), (130, 20), (20, 120)):
        ImageDraw.Draw(picture).ellipse((*place, place[0] + 2, place[1] + 2), fill=(60, 60, 60))
    return picture


@pytest.mark.parametrize("way", WAYS)
def test_one_drawing_looks_the_same_however_it_was_made(way):
    expected = prepare_drawing(painted(seven(), (255, 255, 255), (0, 0, 0)))[0] / 255
    found = prepare_drawing(WAYS[way](seven()))[0] / 255
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97
    assert abs(found - expected).mean() < 0.025


def test_a_prepared_drawing_has_the_form_of_mnists_makers():
    """The longer side has 20 pixels; the centre of mass is (14, 14), within half a pixel."""
    for ink in (seven(), seven()[:, 30:110], seven(500, 60), seven(60, 6)):
        image = prepare_drawing(painted(ink))[0].astype(float)
        assert image.shape == (28, 28) and image.max() == 255
        rows, columns = (np.flatnonzero((image > 25).any(axis)) for axis in (1, 0))
        longest = max(np.ptp(rows), np.ptp(columns)) + 1
        assert longest in (19, 20)
        assert ndimage.center_of_mass(image) == pytest.approx((14, 14), abs=0.51)


def test_mnist_stays_what_it_is():
    digits = osr_utils.load_images("mnist", "test").images[:100]
    found = [prepare_drawing(Image.fromarray(digit)) for digit in digits]
    assert not any("blank" in done or "inverted" in done for _, done in found)
    pairs = [
        np.corrcoef(image.ravel(), digit.ravel())[0, 1]
        for (image, _), digit in zip(found, digits, strict=True)
    ]
    assert np.median(pairs) > 0.99 and np.quantile(pairs, 0.2) > 0.9


@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_thin_stroke_becomes_as_thick_as_mnists(width):
    image = prepare_drawing(painted(seven(280, width)))[0] / 255
    row = image[20]  # across the lower stroke
    assert 1.5 < row.sum() < 4 and row.max() > 0.7


def test_small_parts_of_a_drawing_are_no_dust():
    smiley = Image.new("L", (200, 200), 255)
    draw = ImageDraw.Draw(smiley)
    draw.ellipse((30, 30, 170, 170), outline=0, width=8)
    for x in (70, 118):
        draw.ellipse((x, 75, x + 12, 87), fill=0)
    image = prepare_drawing(smiley)[0]
    assert ndimage.label(image > 128, np.ones((3, 3)))[1] == 3


@pytest.mark.parametrize(
    "picture, expected",
    [
        (painted(seven()), ["inverted"]),
        (painted(seven(), (255, 255, 255), (0, 0, 0)), []),
        (painted(seven(), canvas=(300, 300), corner=(150, 0)), ["inverted", "cropped"]),
        (painted(np.roll(seven(), -20, 0)), ["inverted", "cropped"]),  # near the upper edge
        (transparent(seven(), (0, 0, 0)), ["inverted"]),
        (Image.new("L", (50, 40), 255), ["blank"]),
        (Image.new("RGBA", (50, 40)), ["blank"]),
        (Image.new("L", (1, 1)), ["blank"]),
        (worse(Image.new("RGB", (300, 200), (220, 215, 205))), ["blank"]),
        (Image.fromarray(np.uint8(np.random.default_rng(0).normal(190, 15, (60, 60)))), ["blank"]),
    ],
)
def test_what_was_done_is_said(picture, expected):
    image, done = prepare_drawing(picture)
    assert done == expected and (image.max() == 0) == (done == ["blank"])


def test_digits_drawn_in_many_ways_are_read_and_other_drawings_stay_unknown():
    """With the shipped detector, on digits and letters that took no part in the preparation."""
    model, wrong = osr_utils.load_model("osr_detector"), {}
    found = {name: osr_utils.load_images(name, "test") for name in ("uci_digits", "letters")}
    digits = found["uci_digits"].images[:20] / 255
    hardest = ("red pen", "corner", "photograph", "black on nothing", "bilevel", "dusty")
    for way, paint in ((way, WAYS[way]) for way in hardest):
        pictures = [paint(ndimage.zoom(digit, 5, order=1).clip(0, 1)) for digit in digits]
        x = osr_utils.to_model_input(np.stack([prepare_drawing(p)[0] for p in pictures]))
        said = osr_utils.predict(model, x).argmax(1)
        wrong[way] = int((said != torch.tensor(found["uci_digits"].labels[:20])).sum())
    assert max(wrong.values()) <= 5 and sum(wrong.values()) <= 2.5 * len(wrong), wrong
    letters = [Image.fromarray(255 - letter) for letter in found["letters"].images[:100]]
    plain = osr_utils.to_model_input(found["letters"].images[:100])
    x = osr_utils.to_model_input(np.stack([prepare_drawing(p)[0] for p in letters]))
    before, after = (osr_utils.ood_score(osr_utils.predict(model, y)) > 0 for y in (plain, x))
    assert after.float().mean() > before.float().mean() - 0.05


def test_neither_noise_nor_ink_that_fills_the_picture_hides_a_drawing():
    rng, pencil = np.random.default_rng(0), painted(seven(), (190, 190, 190), (235, 235, 235))
    noisy = np.asarray(pencil) + rng.normal(0, 5, (140, 140, 3))
    tight = Image.new("L", (40, 100), 255)
    ImageDraw.Draw(tight).rectangle((4, 0, 36, 100), fill=0)  # of a one, cut out closely
    for picture in (Image.fromarray(noisy.round().astype(np.uint8)), tight):
        assert prepare_drawing(picture)[1][0] == "inverted"
    for digit in load_digits().images[:30]:  # 8 x 8, and cut out closely
        assert prepare_drawing(Image.fromarray(np.uint8(digit * 15)))[1] != ["blank"]
