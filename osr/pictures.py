"""Your own pictures: files or arrays, judged; a table and a contact sheet."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from osr.contract import OOD_LABEL, ood_score, predict, verdicts
from osr.drawings import on_black, open_picture, prepare_drawing
from osr.figures import COLORS, PAGE_WIDTH
from osr.images import decoded, to_model_input
from osr.modes import evaluation_mode
from osr.paths import atomic_path, expanded, one_line, progress
from osr.shipped import load_model
from osr.tables import write_csv

SHOWN = 10  # names at most in a line that is printed


def load_pictures(pictures, prepare=True):
    """Load pictures of any size, colour mode and format as model input; print what was done.

    Parameters
    ----------
    pictures : str, Path or PIL image, or a list of these
        A folder, a file or an image; or several of the latter two.
    prepare : bool
        Bring drawings and photographs of them into MNIST's form, see
        `osr.drawings.prepare_drawing`: ink on paper becomes white on black, cropped and centred.
        False: as they are, squeezed into a square; what is transparent becomes black.

    Returns
    -------
    images : float32 tensor, (N, 1, 28, 28) in [0, 1]
        A prepared picture without ink ("blank") is all 0.
    names : list of str
        The files, of a folder in alphabetical order; of PIL images, their places in the list. Those
        that cannot be read are printed and left out.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or file.
    ValueError
        If none is a readable picture.
    """
    sources, images, names, broken = _sources(pictures), [], [], []
    seen = {"inverted": [], "cropped": [], "blank": []}
    for name, source in progress(sources, "pictures"):
        try:
            picture = open_picture(source)
        except ValueError as error:
            broken.append(one_line(f"{name} ({error})"))
            continue
        if prepare:
            image, done = prepare_drawing(picture)
            for what in done:
                seen[what].append(name)
        else:
            image = np.asarray(on_black(picture))
        images.append(to_model_input(image[None]))
        names.append(name)
    if broken:
        print(f"{len(broken)} of {len(sources)} cannot be read: {_first(broken)}")
    if not images:
        where = f" in {pictures}" if isinstance(pictures, str | Path) else ""
        raise ValueError(
            f"no readable picture{where}: give files such as .png or .jpg, no folders below"
        )
    if prepare:
        blank = f" ({_first(seen['blank'])})" if seen["blank"] else ""
        print(
            f"{len(images)} pictures in MNIST's form: {len(seen['inverted'])} inverted, "
            f"{len(seen['cropped'])} cropped, {len(seen['blank'])} blank{blank}; prepare=False "
            "takes them as they are"
        )
    return torch.cat(images), names


def _sources(pictures):
    """Return [(name, path or PIL image)]."""
    if isinstance(pictures, str | Path) and str(pictures) and Path(pictures).is_dir():
        paths = sorted(Path(pictures).iterdir())
        pictures = [p for p in paths if p.is_file() and not p.name.startswith(".")]
        if below := [p.name for p in paths if p.is_dir() and not p.name.startswith(".")]:
            print(f"folders below are left out: {_first(below)}")
    elif isinstance(pictures, str | Path | Image.Image):
        pictures = [pictures]
    sources = []
    for i, picture in enumerate(pictures):
        if isinstance(picture, Image.Image):
            sources.append((str(i), picture))
        elif not isinstance(picture, str | Path):
            raise ValueError(
                f"picture {i} is a {type(picture).__name__}: give files or PIL images, or one "
                "array of pictures (N, H, W)"
            )
        elif not str(picture) or not Path(picture).exists():
            raise FileNotFoundError(
                f"{str(picture)!r} is not a folder, nor a file: give what holds the pictures"
            )
        else:
            name = Path(picture).name.encode("utf-8", "replace").decode()  # of any bytes
            sources.append((name, Path(picture)))
    return sources


def _first(names):
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def judge_pictures(model, pictures, output, device="cpu", prepare=None):
    """Say of each picture which digit it is, or that it is unknown; write a table and a sheet.

    Parameters
    ----------
    model : callable or str
        (N, 1, 28, 28) in [0, 1] -> (N, 11) scores, or the name of a shipped model.
    pictures : str, Path or PIL image, a list of these, or uint8 array (N, H, W) or (N, H, W, 3)
        A folder, files or images, see `load_pictures`, or decoded pictures, see `to_model_input`.
    output : str or Path
        The folder that receives ``scores.csv`` and ``contact_sheet.png``, which shows what the
        model saw (of more than 240 pictures an even selection); not a folder of the pictures.
    device : str or torch.device
    prepare : bool, optional
        Whether to bring the pictures into MNIST's form, see `load_pictures`. Left out: files and
        images yes; arrays no, they are taken as white on black.

    Returns
    -------
    list of dict
        One a picture, the most digit-like first: "picture" (file name or index), "verdict" ("0"
        to "9", "unknown", or "blank": no ink, hence unknown), "ood_score" (the garbage margin:
        unknown above 0, infinite where blank) and "digit" (the likeliest one, whatever the
        verdict).

    Raises
    ------
    ValueError
        If there is no picture, `output` holds the pictures, or the model does not return (N, 11)
        finite scores.
    FileNotFoundError
        If there is no such folder or file.
    """
    output = expanded(output)
    if isinstance(model, str):
        model = load_model(model, device)
    if isinstance(model, type):
        raise ValueError(f"{model.__name__} is a class: give a model, {model.__name__}()")
    array = isinstance(pictures, np.ndarray | torch.Tensor)
    if prepare is None:
        prepare = not array
    if array and not prepare:
        images = to_model_input(pictures)
        names = [str(i) for i in range(len(images))]
    else:
        if array:
            pictures = [Image.fromarray(picture) for picture in decoded(pictures)]
        elif not isinstance(pictures, str | Path | Image.Image):
            pictures = list(pictures)
        _refuse_their_folder(output, pictures)
        images, names = load_pictures(pictures, prepare)
    if not len(images):
        raise ValueError("there are no pictures: give at least one")
    if isinstance(model, nn.Module):
        model.to(device)
    with evaluation_mode(model):
        scores = predict(model, images.to(device))
    said = verdicts(scores, len(images))
    if scores.ndim != 2:
        raise ValueError(
            "the model returned verdicts: pictures are sorted by a score, so return (N, 11) scores"
        )
    if not scores.isfinite().all():
        raise ValueError("the model returned infinite scores: return (N, 11) finite ones")
    margins, digits = ood_score(scores.double()), scores[:, :OOD_LABEL].argmax(1)
    if prepare:
        margins[images.flatten(1).amax(1) == 0] = math.inf  # blank
    order = margins.argsort().tolist()
    rows = [
        {
            "picture": names[i],
            "verdict": _word(int(said[i]), float(margins[i])),
            "ood_score": round(float(margins[i]), 4),
            "digit": int(digits[i]),
        }
        for i in order
    ]
    write_csv(output / "scores.csv", rows)
    _contact_sheet(images[order], rows, output / "contact_sheet.png")
    return rows


def _refuse_their_folder(output, pictures):
    given = [pictures] if isinstance(pictures, str | Path | Image.Image) else pictures
    paths = [Path(path).resolve() for path in given if isinstance(path, str | Path)]
    if output.resolve() in {path if path.is_dir() else path.parent for path in paths}:
        raise ValueError(f"{output} holds the pictures: give the results a folder of their own")


def _word(verdict, margin):
    if math.isinf(margin):
        return "blank"
    return "unknown" if verdict == OOD_LABEL else str(verdict)


def _contact_sheet(images, rows, path, most=240, across=12):
    """Draw what the model saw under name, verdict and score; of more than `most` an even choice."""
    from matplotlib.figure import Figure
    from torchvision.utils import make_grid

    pick = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    tiles = F.pad(images[pick].cpu(), (1, 1, 1, 1), value=0.5)  # a frame
    tiles = F.pad(tiles, (1, 1, 12, 1), value=1)  # white, with room for two lines above
    sheet = make_grid(tiles, across, padding=0, pad_value=1).permute(1, 2, 0).numpy()
    height, width = tiles.shape[2:]
    inches = PAGE_WIDTH / (across * width)  # of a pixel
    fig = Figure((inches * sheet.shape[1], inches * len(sheet)), dpi=200, layout="none")
    axis = fig.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.imshow(sheet)
    for place, i in enumerate(pick):
        line, column = divmod(place, across)
        row = rows[i]
        unknown = row["verdict"] in ("unknown", "blank")
        said = row["verdict"].replace("unknown", "unk.")
        said += f" {row['ood_score']:.1f}" if math.isfinite(row["ood_score"]) else ""
        x, y = (column + 0.5) * width, line * height
        axis.text(x, y + 5.5, _short(row["picture"]), ha="center", fontsize=4.5, color="#444444",
                  parse_math=False)  # fmt: skip  # a name may hold dollars
        axis.text(x, y + 11, said, ha="center", fontsize=6,
                  color=COLORS["fashionmnist" if unknown else "mnist"])  # fmt: skip
    with atomic_path(path) as temporary:
        fig.savefig(temporary, format="png", metadata={"Software": None})


def _short(name, most=13):
    """Return a name that fits above a picture: its begin and its end."""
    return name if len(name) <= most else f"{name[: most - 7]}\u2026{name[-6:]}"
