"""Seeds, device, and one training loop."""

import math
import random

import numpy as np
import torch

from osr.paths import progress


def seed_everything(seed):
    """Seed Python, NumPy and torch; make float32 exact (TF32 off) and CUDA deterministic."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def pick_device():
    """Return the best device here: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def train(
    model, images, labels, loss, *, epochs, seed, batch_size=512, lr=1e-3, augmentation=None,
    one_cycle=False, device="cpu",
):  # fmt: skip
    """Train a model with Adam, the whole data set on the device; in bfloat16 where that is native.

    Parameters
    ----------
    model : nn.Module
        Trained in place; ends in eval mode, its parameters rounded to the half precision in
        which `fit_or_load` stores them (a tensor beyond its range, 65504, stays as it is).
    images : float tensor, (N, 1, 28, 28) in [0, 1]
    labels : int tensor, (N,)
    loss : callable
        ``loss(model, x, y)`` -> scalar tensor.
    epochs, batch_size : int
    lr : float
        Adam's learning rate; the peak of the schedule with `one_cycle`.
    seed : int
        Draws the order of the images and the augmentation.
    augmentation : callable, optional
        ``augmentation(x, generator)`` -> x, for a batch.
    one_cycle : bool
        Follow the one-cycle schedule (Smith & Topin 2019) instead of a constant rate.
    device : str or torch.device

    Returns
    -------
    list of float
        Mean training loss of each epoch.

    Raises
    ------
    ValueError
        If there are no images, or not one label for each.
    FloatingPointError
        If the loss is no longer finite.
    """
    if not len(images) or len(images) != len(labels):
        raise ValueError(f"{len(images)} images, {len(labels)} labels: give images, a label each")
    device = torch.device(device)
    images, labels = images.to(device), labels.to(device)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=device.type != "mps")
    steps = math.ceil(len(images) / batch_size)
    schedule = None
    if one_cycle:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps)
    generator = torch.Generator("cpu").manual_seed(seed)
    history = []
    for epoch in progress(range(epochs), type(model).__name__):
        total = torch.zeros((), dtype=torch.float32, device=device)
        order = torch.randperm(len(images), generator=generator, device="cpu").to(device)
        for index in order.split(batch_size):
            x, y = images[index], labels[index]
            if augmentation:
                x = augmentation(x, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
                value = loss(model, x, y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += value.detach() * len(index)
        history.append(float(total) / len(images))
        if not math.isfinite(history[-1]):
            raise FloatingPointError(f"the loss is {history[-1]} in epoch {epoch}; lower lr ({lr})")
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(to_half(parameter))
    return history


def to_half(value):
    """Return a tensor in half precision; as it is where a number would not be finite there."""
    half = value.half()
    return half if half.isfinite().all() else value


def has_bf16(device):
    """Return whether the processor has bfloat16 instructions (emulated ones cost time)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
