"""Picture files: read as they are, or prepared as MNIST's makers prepared their digits."""

import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MOST_PIXELS = 50_000_000  # of a picture that is decoded: 200 MB
SIDE = 256  # pixels of the longer side at which ink is looked for
FAINTEST = 0.06  # contrast of ink to paper, as a share of white, below which a picture is blank
NOISE = 3  # standard deviations of the paper that ink must be away from it, else it is blank
SPECK = 0.015  # a part of the ink smaller than this share of the largest is dust
THIN = 2.0  # pixels: a stroke thinner than this, once the ink is 20 pixels long, is thickened


def open_picture(source):
    """Return a picture file, or a PIL image, as a PIL image in RGBA, upright.

    Integers of more than 8 bits count as 8, 12 or 16 bits, whichever holds the largest of them.

    Raises
    ------
    ValueError
        If it cannot be read: damaged, of a rare format, of several pages, of real numbers, too
        large. The message says which, but not the file's name.
    """
    try:
        if isinstance(source, Image.Image):
            return _in_rgba(source)
        with warnings.catch_warnings(category=Image.DecompressionBombWarning, action="ignore"):
            picture = Image.open(source)  # its size is looked at below
        with picture:
            return _in_rgba(picture)
    except UnidentifiedImageError:
        raise ValueError("no picture, or of a format that Pillow does not know") from None
    except Exception as error:  # Pillow's readers raise a dozen kinds
        if type(error) is ValueError:
            raise
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _in_rgba(picture):
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:  # MPO: a phone's, with more
        raise ValueError(f"{picture.n_frames} pages or frames: save each as a picture")
    if picture.width * picture.height > MOST_PIXELS:
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG can be decoded smaller
    if picture.width * picture.height > MOST_PIXELS:
        size = f"{picture.width} x {picture.height}"
        raise ValueError(f"{size} pixels: save it smaller, 500 x 500 is plenty")
    deep = any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
    picture = ImageOps.exif_transpose(picture)  # as the camera was held
    if picture.mode == "F":
        raise ValueError("real numbers: save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    elif deep and np.asarray(picture.convert("RGB")).max() < 16:  # Pillow has cut off the low 8
        raise ValueError("16 bits a channel, all dark: save it with 8 bits")
    return picture.convert("RGBA")


def _eight_bits(values):
    values = values.astype(np.float64)
    if values.min() < 0:
        raise ValueError("negative numbers: save it with 8 or 16 bits")
    full = next((top for top in (255, 4095, 65535) if values.max() <= top), values.max())
    return np.uint8(values / full * 255)


def read_picture(path):
    """Return a picture file as a PIL image in RGB; what is transparent becomes black.

    A ValueError says what is wrong with it, see `open_picture`.
    """
    return on_black(open_picture(path))


def on_black(picture):
    """Return a PIL image in RGBA as one in RGB; what is transparent becomes black."""
    return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB")


def prepare_drawing(picture):
    """Bring a drawing, or a photograph of one, into the form of MNIST's digits.

    The paper is what the border shows, ink is what differs from it; what is transparent is paper.
    Contrast is stretched; the ink is cropped, scaled until its longer side has 20 pixels, and put
    into 28 x 28 with its centre of mass in the middle, as MNIST's makers did (LeCun et al. 1998,
    "Gradient-based learning applied to document recognition"). Strokes that would be thinner than
    theirs are thickened. Everything that is inked counts: one digit a picture, no frame around it.

    Parameters
    ----------
    picture : PIL image

    Returns
    -------
    image : uint8 array, (28, 28)
        White on black; all black where there is no ink.
    done : list of str
        Of "inverted" (the ink was darker than the paper), "cropped" (it filled another part of the
        picture than a digit of MNIST does) and "blank" (there was no ink).
    """
    ink, dark = _ink(picture)
    box = _box(ink)
    if box is None:
        return np.zeros((28, 28), np.uint8), ["blank"]
    height, width = ink.shape
    left, top, right, bottom = box
    share = max((right - left) / width, (bottom - top) / height)
    off = max(abs(left + right - width) / width, abs(top + bottom - height) / height)
    elsewhere = bool(abs(share - 20 / 28) > 0.15 or off > 0.2)
    shrunk = max(picture.size) / SIDE
    if shrunk > 1.5 and share < 0.5:  # a second look, from nearby
        margin = 0.3 * max(right - left, bottom - top) + 4
        place = np.array([left - margin, top - margin, right + margin, bottom + margin])
        place = (shrunk * place.clip(0, [width, height] * 2)).astype(int).tolist()
        nearer, _ = _ink(picture.crop(place))
        ink, box = (nearer, _box(nearer)) if _box(nearer) else (ink, box)
        left, top, right, bottom = box
    image = _in_the_middle(_fit(ink[top:bottom, left:right]))
    return image, ["inverted"] * dark + ["cropped"] * elsewhere


def _ink(picture):
    """Return how much ink there is, (H, W), 0 for paper to 1, dust removed; and if it is dark."""
    from scipy import ndimage

    picture = picture.convert("RGBA")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    rgba = np.asarray(picture) / 255
    colour, seen = rgba[..., :3], rgba[..., 3]
    if seen.min() < 0.5 and _is_stroke(seen > 0.5, colour):
        ink, dark, noise = seen, (seen[..., None] * (colour - 0.5)).sum() < 0, 0
    else:
        paper = np.median(colour[seen > 0.5], 0)
        colour = paper + (colour - paper) * seen[..., None]
        away = colour - _paper(colour)
        light, shade = away.max(2).clip(0, 1), (-away).max(2).clip(0, 1)
        dark = (shade**3).sum() > (light**3).sum()  # the stronger of the two is the ink
        ink = shade if dark else light
        noise = _noise(away.mean(2))
    border = _border(ink, max(FAINTEST, NOISE * noise))
    if border is None:
        return np.zeros_like(ink), bool(dark)
    strong = ink > border
    full, none = np.percentile(ink[strong], 90), np.median(ink[~strong])
    none += 0.35 * (border - none)
    parts, n = ndimage.label(strong, np.ones((3, 3)))
    sizes = ndimage.sum_labels(ink, parts, range(n + 1)) * (np.arange(n + 1) > 0)
    kept = (sizes >= SPECK * sizes.max())[parts]
    kept = ndimage.binary_dilation(kept, iterations=2)  # with their soft edges
    return ((ink - none) / (full - none)).clip(0, 1) * kept, bool(dark)


def _is_stroke(seen, colour):
    """Return whether the opaque part of a picture is ink itself, and not a card with ink on it."""
    box = _box(seen)
    if box is None:
        return True
    left, top, right, bottom = box
    return seen[top:bottom, left:right].mean() < 0.6 or colour[seen].std(0).max() < 0.15


def _paper(colour):
    """Return the colour of the paper everywhere: a quadratic surface through what is no ink."""
    height, width = colour.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 2)
    step = max(1, max(height, width) // 64)  # every fourth point of a large picture is enough
    points, values = (part[::step, ::step].reshape(-1, part.shape[2]) for part in (basis, colour))
    rim = abs(points[:, 1:3]).max(1) > 0.85
    start = np.median(values[rim], 0)
    away = abs(values - start).max(1)
    use = rim & (away <= max(2.5 * np.median(away[rim]), 0.02))
    for _ in range(3):  # each time without what lies far off
        weights = np.linalg.lstsq(points[use], values[use])[0]
        away = abs(values - points @ weights).max(1)
        use = away <= max(2.5 * np.median(away[use]), 0.02)
        if use.sum() < 9:
            return start
    return basis @ weights


def _noise(away):
    """Return the spread of noise, if it is normal: the smaller of two guesses, as ink raises both.

    From the points nearest to the paper's colour, and from neighbours.
    """
    apart = np.median(abs(np.diff(away, axis=1))) if away.shape[1] > 1 else 0
    return min(np.quantile(abs(away), 0.1) / 0.126, apart / 0.954)


def _border(ink, least):
    """Return the value that parts ink from paper best (Otsu 1979), or None: too little contrast."""
    counts, edges = np.histogram(ink, 128, (0, 1))
    total = counts * (edges[1:] + edges[:-1]) / 2
    n, mass = np.cumsum(counts)[:-1], np.cumsum(total)[:-1]  # of the paper, for each border
    share = n / ink.size
    between = (mass - share * total.sum()) ** 2 / (share * (1 - share)).clip(1e-9)
    border = edges[1:-1][between.argmax()]
    paper, inked = ink[ink < border], ink[ink >= border]
    if len(paper) and len(inked) and inked.mean() - paper.mean() > least:
        return border
    return None


def _box(ink):
    """Return (left, top, right, bottom) of the ink, or None."""
    rows, columns = np.flatnonzero((ink > 0.15).any(1)), np.flatnonzero((ink > 0.15).any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else None


def _fit(ink):
    """Scale ink until its longer side has 20 pixels; thicken thin strokes."""
    from scipy.ndimage import distance_transform_edt

    ink = np.pad(ink, 1)
    body = ink > 0.5
    width = 4 * distance_transform_edt(body)[body].mean() - 1  # of a bar: 4 times its mean depth
    lacking = (THIN * (max(ink.shape) - 2) / 20 - width) / 2
    if lacking > 0 and max(ink.shape) > 22:
        around = int(lacking) + 1
        ink, body = np.pad(ink, around), np.pad(body, around)
        ink = np.maximum(ink, (lacking + 0.5 - distance_transform_edt(~body)).clip(0, 1))
    left, top, right, bottom = _box(ink)
    ink = Image.fromarray(ink[top:bottom, left:right].astype(np.float32))
    size = [max(1, round(side * 20 / max(ink.size))) for side in ink.size]
    ink = np.asarray(ink.resize(size, Image.Resampling.BILINEAR))
    return (ink / max(np.percentile(ink[ink > 0.1], 97), 0.1)).clip(0, 1)


def _in_the_middle(ink):
    """Put ink into 28 x 28, its centre of mass in the point (14, 14), as MNIST has it."""
    image, place = np.zeros((28, 28)), []
    for axis, side in enumerate(ink.shape):
        mass = ink.sum(1 - axis)
        centre = (mass * (np.arange(side) + 0.5)).sum() / mass.sum()
        start = int(np.clip(round(14.5 - centre), 0, 28 - side))
        place.append(slice(start, start + side))
    image[tuple(place)] = ink
    return np.uint8(np.round(255 * image))
