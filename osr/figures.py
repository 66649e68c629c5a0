"""Figures: one style, one colour a thing, rows of pictures, saving; the start of a notebook."""

import torch

from osr.paths import ROOT, atomic_path, output_dir, profile, safe_name, seeds
from osr.records import COLORS
from osr.training import pick_device, seed_everything

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.8  # inches
# Okabe & Ito's palette, which colour-blind readers tell apart: one colour a data set or method.
COLORS |= {  # beside those of the data sets
    "reference": "#777777",
    "mnist-rest": "#0072B2", "mnist-8": "#D55E00", "mnist-4": "#009E73",
    "unlabelled": "#777777", "reconstruction": "#CC79A7", "best": "#0072B2",
    "plain_cnn": "#56B4E9", "plain_cnn/openmax": "#E69F00",
    "plain_cnn/distance/max_logit": "#009E73", "autoencoder_10": "#CC79A7",
    "multitask_autoencoder": "#D55E00", "osr_detector_9k": "#777777", "osr_detector": "#0072B2",
    "base": "#777777", "sp": "#D55E00", "pixmix": "#0072B2",
}  # fmt: skip


def start_notebook(seed):
    """Seed everything, set the style of figures, print what runs where; return the device."""
    seed_everything(seed)
    use_report_style()
    device = pick_device()
    print(f"profile {profile()}, device {device}, torch {torch.__version__}, seeds {seeds()}")
    output = output_dir()
    print("figures and results go to",
          output.relative_to(ROOT) if output.is_relative_to(ROOT) else output)  # fmt: skip
    if profile() == "demo":
        print("Small models on few images: the text describes the real run, not this one.")
    return device


def use_report_style():
    """Set matplotlib to the report's style: 8 pt, thin lines, no top and right spines."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "lines.linewidth": 1.2, "figure.figsize": (COLUMN_WIDTH, 2.4), "figure.dpi": 120,
        "figure.constrained_layout.use": True, "savefig.dpi": 200, "image.cmap": "gray",
        "pdf.fonttype": 42,
    })  # fmt: skip


def save_figure(fig, name):
    """Write a figure to figures/<name>.png and .pdf, atomically and without a date.

    A ValueError says that the name is none for a file.
    """
    safe_name(name)
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # the layout is found: once is enough
    for suffix, dates in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
        with atomic_path(output_dir() / "figures" / f"{name}{suffix}") as temporary:
            fig.savefig(temporary, format=suffix[1:], metadata=dates)


def show_strips(strips, name="", *, captions=None, axis=None, size=5.5):
    """Show rows of pictures, each row with its label on the left.

    Parameters
    ----------
    strips : dict of str to tensor
        Label -> pictures (n, H, W), (n, 1, H, W) or (n, 3, H, W) in [0, 1], all of one size; a
        row may be shorter than the others. Spaces around a label make it a key of its own.
    name : str
        Save the figure under this name; "" for a figure that is only shown.
    captions : dict of str to list of str, optional
        Label -> a text above each picture of that row; its lines are split by newlines.
    axis : matplotlib axis, optional
        Draw there, and neither save nor show; by default a figure of its own, a page wide.
    size : float
        Of the captions, in points.
    """
    import matplotlib.pyplot as plt

    captions = captions or {}
    rows = {label: _in_colour(pictures) for label, pictures in strips.items()}
    across = max(1, *map(len, rows.values()))
    height, width = (side + 2 for side in next(iter(rows.values())).shape[2:])
    inches = (PAGE_WIDTH - 1.1 if axis is None else _width_of(axis)) / (across * width)  # a pixel
    line = size * 1.25 / 72 / inches  # the height of a line of text, in pixels
    sheet, centres, texts, top = [], [], [], 0
    for label, pictures in rows.items():
        said = captions.get(label, [])
        lines = max((text.count("\n") + 1 for text in said), default=0)
        room = round(line * (lines + 0.6)) if lines else 0  # apart from the row above
        sheet.append(pictures.new_ones(3, room, across * width))
        top += room
        row = pictures.new_ones(3, height, across * width)
        for i, picture in enumerate(pictures):
            row[:, 1:-1, i * width + 1 : (i + 1) * width - 1] = picture
            if i < len(said):
                texts.append((i * width + width / 2 - 0.5, top, said[i]))
        sheet.append(row)
        centres.append(top + height / 2 - 0.5)
        top += height
    own = axis is None
    if own:
        _, axis = plt.subplots(figsize=(PAGE_WIDTH, inches * top + 0.1))
    axis.imshow(torch.cat(sheet, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    for x, y, text in texts:
        axis.text(x, y - 0.2 * line, text, fontsize=size, ha="center", va="bottom")
    axis.set(xticks=[], yticks=centres, yticklabels=[str(label).strip() for label in rows])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_anchor("W")  # next to the labels, for which the layout makes room
    if own and name:
        save_figure(axis.figure, name)
    if own:
        plt.show()


def _in_colour(pictures):
    """Return pictures as (n, 3, H, W) on the CPU."""
    pictures = torch.as_tensor(pictures, device="cpu").detach().float()
    if pictures.ndim == 3:
        pictures = pictures[:, None]
    return pictures.clamp(0, 1).expand(-1, 3, -1, -1)


def _width_of(axis):
    """Return the width of an axis in inches, before its figure has been laid out."""
    return axis.get_position().width * axis.figure.get_size_inches()[0]
