"""Your own pictures: a folder or an array, judged; a table and a contact sheet."""

import csv
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from osr.contract import OOD_LABEL, evaluation_mode, ood_score, predict, verdicts
from osr.figures import COLORS, PAGE_WIDTH
from osr.images import read_picture, to_model_input
from osr.paths import atomic_path, progress


def load_pictures(folder):
    """Load a folder of pictures, of any size, colour mode and format, as model input.

    Parameters
    ----------
    folder : str or Path
        What is transparent in a picture becomes black.

    Returns
    -------
    images : float32 tensor, (N, 1, 28, 28) in [0, 1]
        Prepared as by `to_model_input`; a picture that is not square is squeezed into one.
    names : list of str
        The files, in alphabetical order. Those that cannot be read are printed and left out.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If no file in it is a readable picture.
    """
    from PIL import Image

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the one that holds the pictures")
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    images, names, broken = [], [], []
    for path in progress(paths, folder.name):
        try:
            picture = read_picture(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"{path.name} ({error})")
            continue
        images.append(to_model_input(np.asarray(picture)[None]))
        names.append(path.name)
    if broken:
        print(f"{folder}: {len(broken)} of {len(paths)} files are no pictures: {', '.join(broken)}")
    if not images:
        raise ValueError(
            f"no readable picture in {folder}: put files such as .png or .jpg there (not in "
            "folders below it)"
        )
    return torch.cat(images), names


def judge_pictures(model, pictures, output, device="cpu"):
    """Say of each picture which digit it is, or that it is unknown; write a table and a sheet.

    Parameters
    ----------
    model : callable
        (N, 1, 28, 28) in [0, 1] -> (N, 11) scores, such as `load_model` gives.
    pictures : str or Path, or uint8 array (N, H, W) or (N, H, W, 3)
        A folder, see `load_pictures`, or decoded pictures, see `to_model_input`. White on black, as
        MNIST has it.
    output : str or Path
        The folder that receives ``scores.csv`` and ``contact_sheet.png`` (of more than 240 pictures
        an even selection); not the folder of the pictures.
    device : str or torch.device

    Returns
    -------
    list of dict
        One a picture, the most digit-like first: "picture" (file name or index), "verdict" ("0"
        to "9" or "unknown"), "ood_score" (the garbage margin: unknown above 0) and "digit" (the
        likeliest one, whatever the verdict).

    Raises
    ------
    ValueError
        If there is no picture, the output would lie among the pictures, or the model does not
        return (N, 11) finite scores.
    """
    if isinstance(pictures, str | Path):
        if Path(output).resolve() == Path(pictures).resolve():
            raise ValueError(f"{output} holds the pictures: give the results a folder of their own")
        images, names = load_pictures(pictures)
    else:
        images = to_model_input(pictures)
        names = [str(i) for i in range(len(images))]
    if not len(images):
        raise ValueError("there are no pictures: give at least one")
    if isinstance(model, nn.Module):
        model.to(device)
    with evaluation_mode(model):
        scores = predict(model, images.to(device))
    said = verdicts(scores, len(images))
    if scores.ndim != 2 or not scores.isfinite().all():
        raise ValueError("the model must return (N, 11) finite scores, no verdicts and no infinity")
    margins, digits = ood_score(scores), scores[:, :OOD_LABEL].argmax(1)
    order = margins.argsort().tolist()
    rows = [
        {
            "picture": names[i],
            "verdict": "unknown" if said[i] == OOD_LABEL else str(int(said[i])),
            "ood_score": round(float(margins[i]), 4),
            "digit": int(digits[i]),
        }
        for i in order
    ]
    with atomic_path(Path(output) / "scores.csv") as temporary:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    _contact_sheet(images[order], rows, Path(output) / "contact_sheet.png")
    return rows


def _contact_sheet(images, rows, path, most=240, across=16):
    """Draw pictures with their verdict and score; of more than `most` an even selection."""
    from matplotlib.figure import Figure
    from torchvision.utils import make_grid

    pick = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    tiles = F.pad(images[pick].cpu(), (1, 1, 1, 1), value=0.5)  # a frame
    tiles = F.pad(tiles, (1, 1, 10, 0), value=1)  # white, with room for a line above
    sheet = make_grid(tiles, across, padding=0, pad_value=1).permute(1, 2, 0).numpy()
    height, width = tiles.shape[2:]
    inches = PAGE_WIDTH / (across * width)  # of a pixel
    size = inches * sheet.shape[1], inches * len(sheet)
    fig = Figure(size, dpi=150, layout="none")
    axis = fig.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.imshow(sheet)
    for place, i in enumerate(pick):
        line, column = divmod(place, across)
        unknown = rows[i]["verdict"] == "unknown"
        said = "unk." if unknown else rows[i]["verdict"]
        score = rows[i]["ood_score"]
        text = f"{said} {score:.1f}" if abs(score) < 100 else f"{said} {score:.0f}"
        axis.text((column + 0.5) * width, line * height + 9, text, ha="center", fontsize=6,
                  color=COLORS["fashionmnist" if unknown else "mnist"])  # fmt: skip
    with atomic_path(path) as temporary:
        fig.savefig(temporary, format="png", metadata={"Software": None})
