"""The contract: eleven outputs, labels 0..9 for digits and 10 for unknown."""

import math
import reprlib

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from osr.modes import evaluation_mode

OOD_LABEL = 10  # the label, and the index of the logit, that means "unknown"


class CombinedDataset(Dataset):
    """Known images followed by OOD images, as in the course's ``project_utils``.

    Parameters
    ----------
    mnist, ood : map-style dataset of (image, label)
        The labels of `mnist` are whole numbers; those of `ood`, if any, are replaced by 10.
    transform_mnist, transform_ood : callable, optional
        Applied to the image on access.

    Raises
    ------
    ValueError
        If a side is no data set, here, or an item of it is no (image, label), on access.
    """

    def __init__(self, mnist, ood, transform_mnist=None, transform_ood=None):
        for side, data in (("mnist", mnist), ("ood", ood)):
            bare = isinstance(data, torch.Tensor | np.ndarray | dict | str)
            if bare or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
                raise ValueError(
                    f"{side} is a {type(data).__name__}, no data set: give one of (image, label) "
                    "pairs, such as TensorDataset(images, labels)"
                )
        self.mnist, self.ood = mnist, ood
        self.transform_mnist, self.transform_ood = transform_mnist, transform_ood

    def __len__(self):
        return len(self.mnist) + len(self.ood)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} in a data set of {len(self)}")
        index %= len(self)
        known = index < len(self.mnist)
        item = self.mnist[index] if known else self.ood[index - len(self.mnist)]
        if not isinstance(item, tuple | list) or not (len(item) == 2 if known else item):
            raise ValueError(
                f"item {index} is a {type(item).__name__}, no (image, label): give pairs, such as "
                "those of TensorDataset(images, labels)"
            )
        transform = self.transform_mnist if known else self.transform_ood
        image = transform(item[0]) if transform else item[0]
        return image, _whole_number(item[1]) if known else OOD_LABEL


def eval_model(model, data_loader, device):
    """Return a model's accuracy on known digits, on unknowns, and on all of them together.

    Parameters
    ----------
    model : callable
        ``model(images)`` returns (N, 11) scores whose argmax is the verdict, or (N,) integer
        verdicts in 0..10; 10 means unknown. Called exactly once a batch, and no gradient is
        recorded. A module is moved to `device`, put into eval mode, and given its own mode back;
        any other callable is called as it is.
    data_loader : iterable of (images, labels)
        Labels 0..9 are known digits, 10 is unknown; integers of any kind.
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
    if isinstance(model, nn.Module):
        model.to(device)
    hits, counts = torch.zeros(2, 2, dtype=torch.long, device="cpu")
    with evaluation_mode(model), torch.no_grad():  # inference mode would leave its marks
        for batch in data_loader:
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise ValueError(f"the loader gives a {type(batch).__name__}, not (images, labels)")
            images, labels = check_tensor(batch[0]).to(device), _check_labels(batch[1])
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
    if logits.ndim != 2 or logits.shape[1] != OOD_LABEL + 1:
        raise ValueError(f"expected (N, 11) logits, found {tuple(logits.shape)}")
    return logits[:, OOD_LABEL] - logits[:, :OOD_LABEL].max(1).values


@torch.no_grad()
def predict(function, images, batch_size=250):
    """Apply a function to a tensor of images in batches; no gradient is recorded.

    Parameters
    ----------
    function : callable
        A model, or one of its methods: x -> tensor, or a tuple of tensors, of one row an image.
        Its mode and device stay as they are.
    images : float tensor, (N, 1, 28, 28)
        On the model's device.
    batch_size : int

    Returns
    -------
    tensor or tuple of tensor
        The results of all batches, on the CPU.

    Raises
    ------
    ValueError
        If the function returns something else, or another number of rows.
    """
    parts = []
    for x in check_tensor(images).split(batch_size):
        output = function(x)
        parts.append(output if isinstance(output, tuple) else (output,))
        for value in parts[-1]:
            if not isinstance(value, torch.Tensor) or value.shape[:1] != x.shape[:1]:
                shape = tuple(getattr(value, "shape", ()))
                raise ValueError(
                    f"the function returned a {type(value).__name__} {shape} for images "
                    f"{tuple(x.shape)}: return tensors of one row an image"
                )
    joined = tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return joined if isinstance(output, tuple) else joined[0]


def check_tensor(images):
    """Return images; a ValueError says so if they are no tensor."""
    if not isinstance(images, torch.Tensor):
        raise ValueError(
            f"images are a {type(images).__name__}, not a tensor: give them through "
            "`to_model_input`, or torchvision's ToTensor"
        )
    return images


def check_classes(labels, number):
    """Raise a ValueError unless the labels are the classes 0 to number - 1, each at least once."""
    wrong = sorted(set(labels.tolist()) ^ set(range(number)))
    if wrong:
        raise ValueError(
            f"classes {wrong} are missing or unexpected: give images of each of 0..{number - 1}, "
            "and of no other"
        )


def _whole_number(label):
    """Return a label as an int; a ValueError shows one that is none."""
    try:
        if not isinstance(label, str | bytes) and int(label) == float(label):
            return int(label)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ValueError(f"the label {reprlib.repr(label)} is no whole number: use 0..9 for digits")


def _check_labels(labels):
    try:
        if isinstance(labels, np.ndarray):  # torch refuses other byte orders, and strides
            labels = labels.tolist()
        labels = torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"labels are {reprlib.repr(labels)}, no numbers: use 0..9 for digits, 10 for unknown"
        ) from None
    if labels.ndim == 0:
        raise ValueError("a label, not a batch of them: wrap the data set in a DataLoader")
    integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not integer:
        raise ValueError(
            f"expected (N,) integer labels, found {labels.dtype} {tuple(labels.shape)}; use 0..9 "
            "for digits, 10 for unknown"
        )
    return _in_range("labels", labels.long())


def _in_range(name, numbers):
    if len(numbers) and (numbers.min() < 0 or numbers.max() > OOD_LABEL):
        raise ValueError(
            f"{name} run from {numbers.min()} to {numbers.max()}: use 0..9 for digits, 10 for "
            "unknown"
        )
    return numbers


def verdicts(output, n):
    """Return a model's verdicts, int64 (n,); a ValueError says what breaks the contract."""
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"the model returned a {type(output).__name__}: return one tensor, (N, 11) scores or "
            "(N,) verdicts"
        )
    numeric = not (output.is_complex() or output.dtype == torch.bool)
    integer = numeric and not output.is_floating_point()
    if integer and output.shape == (n,):
        return _in_range("verdicts", output.long())
    if output.shape != (n, OOD_LABEL + 1) or not numeric:
        hint = "; end with .long() if these are verdicts" if output.shape == (n,) else ""
        if output.shape == (n, OOD_LABEL):
            hint = "; add an eleventh score for 'unknown'; for digits alone end with .argmax(1)"
        raise ValueError(
            f"the model returned {output.dtype} {tuple(output.shape)} for {n} images: return "
            f"({n}, 11) scores or ({n},) integer verdicts{hint}"
        )
    if integer:
        return output.long().argmax(1)
    if output.isnan().any():
        raise ValueError(
            f"{int(output.isnan().any(1).sum())} of {n} score rows hold NaN: check the model for "
            "divisions by zero, logarithms of zero, or weights that diverged"
        )
    return output.argmax(1)
