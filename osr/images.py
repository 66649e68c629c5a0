"""Pictures as tensors: model input, augmentation, and reading a picture file."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def to_model_input(images, device="cpu"):
    """Turn decoded images into model input, the same way for every data set.

    Grey = .299 R + .587 G + .114 B (ITU-R BT.601), bilinear resize with antialias, clip to [0, 1].

    Parameters
    ----------
    images : uint8 array, (N, H, W) or (N, H, W, 3)
    device : str or torch.device

    Returns
    -------
    float32 tensor, (N, 1, 28, 28) in [0, 1]

    Raises
    ------
    ValueError
        If the dtype or the shape is another one.
    """
    images = np.asarray(images)
    grey = images.ndim == 3 and images.shape[2] != 3  # (H, W, 3) is one picture, not H of them
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
        raise ValueError(
            f"expected uint8 images of shape (N, H, W) or (N, H, W, 3), found {images.dtype} "
            f"{images.shape}; scale to 0..255, put the colour channel last, give one picture as "
            "picture[None]"
        )
    out = torch.empty(len(images), 1, 28, 28, device=device)
    for start in range(0, len(images), 4096):  # bounds the memory of the float copies
        x = torch.tensor(images[start : start + 4096], device=device).float() / 255
        x = x[:, None] if grey else (x @ x.new_tensor([0.299, 0.587, 0.114]))[:, None]
        if x.shape[2:] != (28, 28):
            x = F.interpolate(x, (28, 28), mode="bilinear", antialias=True, align_corners=False)
        out[start : start + 4096] = x.clamp(0, 1)
    return out


def augment(images, generator, degrees=15.0, translate=0.1, scale=0.0, shear=0.0):
    """Rotate, shift, scale and shear every image of a batch by its own amount, in one call.

    Parameters
    ----------
    images : float tensor, (N, C, S, S)
        Black (0) is the background that fills in.
    generator : torch.Generator
        On the CPU, so that one seed draws the same numbers on every device.
    degrees : float
        Largest rotation either way.
    translate : float
        Largest shift either way, as a share of the side.
    scale : float
        Each side is divided by a factor of its own between exp(-scale) and exp(scale).
    shear : float
        Largest horizontal shear either way, as a share of the height.

    Returns
    -------
    float tensor, (N, C, S, S)
    """
    n = len(images)
    draw = torch.rand(3, n, generator=generator).to(images.device) * 2 - 1
    angle = draw[0] * math.radians(degrees)
    cos, sin = angle.cos(), angle.sin()
    shift = draw[1:] * 2 * translate  # the grid runs from -1 to 1
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).view(n, 2, 3)
    if scale or shear:
        draw = torch.rand(3, n, generator=generator).to(images.device) * 2 - 1
        wide, high = (draw[:2] * scale).exp()
        stretch = torch.stack([wide, draw[2] * shear, torch.zeros_like(wide), high], 1)
        theta = torch.cat([theta[:, :, :2] @ stretch.view(n, 2, 2), theta[:, :, 2:]], 2)
    return warp(images, theta)


def warp(images, theta):
    """Resample each image on its own affine grid, bilinearly; black (0) fills in.

    Parameters
    ----------
    images : float tensor, (N, C, S, S)
    theta : float tensor, (N, 2, 3)
        Maps the output's coordinates (x, y, 1), from -1 to 1, to the input's, as for
        ``torch.nn.functional.affine_grid``, which is slower on small images.

    Returns
    -------
    float tensor, (N, C, S, S)
    """
    side = images.shape[-1]
    line = (2 * torch.arange(side, device=images.device) + 1) / side - 1
    points = torch.stack(
        [line.repeat(side), line.repeat_interleave(side), torch.ones_like(line).repeat(side)]
    )
    grid = (theta.reshape(-1, 3) @ points).view(-1, 2, side, side).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


def read_picture(path):
    """Return a picture file as a PIL image in RGB, upright; what is transparent becomes black.

    Raises
    ------
    OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError
        What Pillow raises for a file that it cannot read, and for real numbers.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture)  # as the camera was held
        if picture.mode == "F":
            raise ValueError("real numbers: save it with 8 or 16 bits")
        if picture.mode.startswith("I"):  # 16 bits
            picture = picture.point(lambda value: value / 256).convert("L")
        picture = picture.convert("RGBA")
    black = Image.new("RGBA", picture.size, "black")
    return Image.alpha_composite(black, picture).convert("RGB")
