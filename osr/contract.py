"""The contract: eleven outputs, labels 0..9 for digits and 10 for unknown."""

import math
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.data import Dataset

OOD_LABEL = 10  # the label, and the index of the logit, that means "unknown"


class CombinedDataset(Dataset):
    """Known images followed by OOD images, as in the course's ``project_utils``.

    Parameters
    ----------
    mnist, ood : map-style dataset of (image, label)
        The labels of `ood` are replaced by 10.
    transform_mnist, transform_ood : callable, optional
        Applied to the image on access.
    """

    def __init__(self, mnist, ood, transform_mnist=None, transform_ood=None):
        self.mnist, self.ood = mnist, ood
        self.transform_mnist, self.transform_ood = transform_mnist, transform_ood

    def __len__(self):
        return len(self.mnist) + len(self.ood)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} in a data set of {len(self)}")
        index %= len(self)
        if index < len(self.mnist):
            image, label = self.mnist[index]
            transform = self.transform_mnist
        else:
            image, label = self.ood[index - len(self.mnist)][0], OOD_LABEL
            transform = self.transform_ood
        return (transform(image) if transform else image), int(label)


@torch.inference_mode()
def eval_model(model, data_loader, device):
    """Return a model's accuracy on known digits, on unknowns, and on all of them together.

    Parameters
    ----------
    model : callable
        ``model(images)`` returns (N, 11) scores whose argmax is the verdict, or (N,) integer
        verdicts in 0..10; 10 means unknown. Called exactly once a batch. A module is moved to
        `device`, put into eval mode, and given its own mode back; any other callable is called
        as it is.
    data_loader : iterable of (images, labels)
        Labels 0..9 are known digits, 10 is unknown.
    device : str or torch.device

    Returns
    -------
    (acc_mnist, acc_ood, acc_total) : tuple of float
        Fractions in [0, 1]; nan for a side that has no samples.

    Raises
    ------
    ValueError
        If outputs or labels break the contract, or the loader is empty.
    Exception
        What the model itself raises, with a note that says what it was given.
    """
    if isinstance(model, type):
        raise ValueError(f"{model.__name__} is a class: give a model, {model.__name__}()")
    if not callable(model):
        raise ValueError(f"the model is a {type(model).__name__}: give one that can be called")
    with evaluation_mode(model):
        if isinstance(model, nn.Module):
            model.to(device)
        hits, counts = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
        for batch in data_loader:
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise ValueError(f"the loader gives a {type(batch).__name__}, not (images, labels)")
            images, labels = _check_images(batch[0]).to(device), _check_labels(batch[1])
            if len(images) != len(labels):
                raise ValueError(f"the loader gives {len(images)} images with {len(labels)} labels")
            try:
                output = model(images)
            except Exception as error:
                error.add_note(
                    f"[the model was given {images.dtype} images of shape {tuple(images.shape)}]"
                )
                raise
            hit = verdicts(output, len(labels)).cpu() == labels
            unknown = labels == OOD_LABEL
            hits += torch.stack([(hit & ~unknown).sum(), (hit & unknown).sum()])
            counts += torch.stack([(~unknown).sum(), unknown.sum()])
    if counts.sum() == 0:
        raise ValueError("the data loader is empty: give it at least one batch")
    hits, counts = hits.tolist(), counts.tolist()
    known, ood = (h / n if n else math.nan for h, n in zip(hits, counts, strict=True))
    return known, ood, sum(hits) / sum(counts)


def ood_score(logits):
    """Return the garbage margin z[10] - max z[0..9] of (N, 11) logits, (N,): higher = more OOD."""
    return logits[:, OOD_LABEL] - logits[:, :OOD_LABEL].max(1).values


@torch.inference_mode()
def predict(function, images, batch_size=250):
    """Apply a function to a tensor of images in batches.

    Parameters
    ----------
    function : callable
        A model, or one of its methods: x -> tensor, or a tuple of tensors. Its mode and device stay
        as they are.
    images : float tensor, (N, 1, 28, 28)
        On the model's device.
    batch_size : int

    Returns
    -------
    tensor or tuple of tensor
        The results of all batches, on the CPU.
    """
    parts = [function(x) for x in images.split(batch_size)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return torch.cat(parts).cpu()


@contextmanager
def evaluation_mode(model):
    """Put a module into eval mode, and give every submodule its own mode back afterwards."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_images(images):
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"images are a {type(images).__name__}, not a tensor: give them through "
            "`to_model_input`, or torchvision's ToTensor"
        )
    return images


def _check_labels(labels):
    labels = torch.as_tensor(labels).cpu()
    if labels.ndim == 0:
        raise ValueError("a label, not a batch of them: wrap the data set in a DataLoader")
    integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not integer:
        raise ValueError(
            f"expected (N,) integer labels, found {labels.dtype} {tuple(labels.shape)}; use 0..9 "
            "for digits, 10 for unknown"
        )
    if len(labels) and (labels.min() < 0 or labels.max() > OOD_LABEL):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}: use 0..9 for digits, 10 for unknown"
        )
    return labels.long()


def verdicts(output, n):
    """Return the verdicts (n,) of a model's output; a ValueError says what breaks the contract."""
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"the model returned a {type(output).__name__}: return one tensor, (N, 11) scores or "
            "(N,) verdicts"
        )
    numeric = not (output.is_complex() or output.dtype == torch.bool)
    if output.shape == (n,) and numeric and not output.is_floating_point():
        if n and (output.min() < 0 or output.max() > OOD_LABEL):
            raise ValueError(
                f"verdicts run from {output.min()} to {output.max()}: use 0..9 for digits, 10 for "
                "unknown"
            )
        return output
    if output.shape != (n, OOD_LABEL + 1) or not numeric:
        hint = "; add an eleventh score for 'unknown'" if output.shape == (n, OOD_LABEL) else ""
        if output.shape == (n,):
            hint = "; end with .long() if these are verdicts"
        raise ValueError(
            f"the model returned {output.dtype} {tuple(output.shape)} for {n} images: return "
            f"({n}, 11) scores or ({n},) integer verdicts{hint}"
        )
    if output.isnan().any():
        raise ValueError(
            f"{int(output.isnan().any(1).sum())} of {n} score rows hold NaN: check the model for "
            "divisions by zero, logarithms of zero, or weights that diverged"
        )
    return output.argmax(1)
