"""Pictures as tensors: model input and augmentation."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def to_model_input(images, device="cpu"):
    """Turn decoded images into model input, the same way for every data set.

    Grey = .299 R + .587 G + .114 B (ITU-R BT.601), bilinear resize with antialias, clip to [0, 1].

    Parameters
    ----------
    images : uint8 array, (N, H, W), (N, H, W, 1) or (N, H, W, 3)
    device : str or torch.device

    Returns
    -------
    float32 tensor, (N, 1, 28, 28) in [0, 1]

    Raises
    ------
    ValueError
        If the dtype or the shape is another one, or it may be one picture, channels first.
    """
    images = decoded(images)
    grey = images.ndim == 3
    out = torch.empty(len(images), 1, 28, 28, dtype=torch.float32, device=device)
    for start in range(0, len(images), 4096):  # bounds the memory of the float copies
        x = torch.tensor(images[start : start + 4096], device=device).float() / 255
        x = x[:, None] if grey else (x @ x.new_tensor([0.299, 0.587, 0.114]))[:, None]
        if x.shape[2:] != (28, 28):
            x = F.interpolate(x, (28, 28), mode="bilinear", antialias=True, align_corners=False)
        out[start : start + 4096] = x.clamp(0, 1)
    return out


def decoded(images):
    """Return pictures as a uint8 array, (N, H, W) or (N, H, W, 3); a ValueError says what else.

    Three pictures that may be the channels of one are refused, but for those of MNIST's size.
    """
    if hasattr(images, "images"):
        raise ValueError("a whole data set: give its images, such as load_images(...).images")
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    elif images.ndim == 3 and len(images) == 3 and images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images.shape} may be three grey pictures or one in colour: give those as "
            "pictures[..., None], this one as picture.transpose(1, 2, 0)[None]"
        )
    if problem := shape_problem(images):
        raise ValueError(problem)
    return images


def shape_problem(images):
    """Return what is wrong with an array as decoded images, "" if nothing is."""
    hints = ["scale to 0..255 and end with .astype('uint8')"] * (images.dtype != np.uint8)
    if images.ndim == 2 or (images.ndim == 3 and images.shape[2] <= 4):  # (H, W, 3), not H of 1x3
        hints.append("give one picture as picture[None]")
    elif images.ndim == 4 and images.shape[3] == 4:
        hints.append("leave the alpha channel out, [..., :3]")
    elif images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        hints.append("put the colour channel last")
    elif 0 in images.shape[1:3]:
        hints.append("give pictures that have pixels")
    if not hints:
        return ""
    return (
        f"expected uint8 images of shape (N, H, W) or (N, H, W, 3), found {images.dtype} "
        f"{images.shape}; {', '.join(hints)}"
    )


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
        Of the images' dtype, on their device.

    Raises
    ------
    ValueError
        If an amount is not finite, or `warp` refuses the images.
    """
    amounts = {"degrees": degrees, "translate": translate, "scale": scale, "shear": shear}
    for name, amount in amounts.items():
        if not math.isfinite(amount):
            raise ValueError(f"{name} is {amount}: give a finite number")
    n = len(images)

    def draw_three():
        drawn = torch.rand(3, n, generator=generator, dtype=torch.float32, device="cpu")
        return drawn.to(images.device) * 2 - 1

    draw = draw_three()
    angle = draw[0] * math.radians(degrees)
    cos, sin = angle.cos(), angle.sin()
    shift = draw[1:] * 2 * translate  # the grid runs from -1 to 1
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).view(n, 2, 3)
    if scale or shear:
        draw = draw_three()
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
        Of the images' dtype; computed in single precision at least.

    Raises
    ------
    ValueError
        If the images are not square or not float, or `theta` is of another shape.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3] or not images.is_floating_point():
        raise ValueError(
            f"expected float images (N, C, S, S), found {images.dtype} {tuple(images.shape)}: "
            "give those of `to_model_input`"
        )
    if theta.shape != (len(images), 2, 3):
        raise ValueError(f"expected theta ({len(images)}, 2, 3), found {tuple(theta.shape)}")
    side, dtype = images.shape[3], torch.promote_types(images.dtype, torch.float32)
    line = (2 * torch.arange(side, dtype=dtype, device=images.device) + 1) / side - 1
    points = torch.stack(
        [line.repeat(side), line.repeat_interleave(side), torch.ones_like(line).repeat(side)]
    )
    grid = (theta.to(points).reshape(-1, 3) @ points).view(len(images), 2, side, side)
    warped = F.grid_sample(images.to(dtype), grid.permute(0, 2, 3, 1), align_corners=False)
    return warped.to(images.dtype)


def on_ground(x, level):
    """Return images on a brighter ground: black becomes `level` (in [0, 1]), white stays white."""
    return level + (1 - level) * x


def ground_matched(x, share):
    """Make the ground of each image black, as MNIST's is, whatever it was.

    Parameters
    ----------
    x : float tensor, (N, C, H, W) in [0, 1]
    share : float or float tensor (N,)
        In [0, 1]: the quantile of an image's own values that becomes black, with all below it.

    Returns
    -------
    float tensor, (N, C, H, W) in [0, 1]
    """
    ordered = x.flatten(1).sort(1).values
    share = torch.as_tensor(share, device=x.device).expand(len(x))
    rank = (share * (ordered.shape[1] - 1)).long()[:, None]
    ground = ordered.gather(1, rank).view(-1, 1, 1, 1)
    return ((x - ground) / (1 - ground).clamp_min(1e-3)).clamp(0, 1)
