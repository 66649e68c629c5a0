"""Reconstruction costs: how far a picture is from what a network makes of it; sums of costs.

Pictures x and reconstructions r are float (N, 1, 28, 28) in [0, 1]; a cost is (N,), higher for what
is more likely unknown.
"""

import numpy as np
import torch

from osr.contract import predict

LOOKS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))  # by how many pixels a picture is moved
FEWEST = 10  # calibration images that a class needs for a mean and a deviation of its own
SMALLEST = 1e-6  # at which costs are cut before their logarithm is taken


def mse(x, r):
    """Return the mean over the pixels of (x - r)^2."""
    return (x - r).square().flatten(1).mean(1)


def mae(x, r):
    """Return the mean over the pixels of |x - r|."""
    return (x - r).abs().flatten(1).mean(1)


def ssim(x, r, window=7):
    """Return 1 - mean structural similarity (Wang et al. 2004; 7x7 windows, range 1)."""
    places = 28 - window + 1
    eye = torch.eye(28, dtype=x.dtype, device=x.device)
    band = sum(eye[:, k : k + places] for k in range(window)) / window  # (28, places)
    maps = torch.cat([x, r, x * x, r * r, x * r], 1)
    mx, mr, xx, rr, xr = (band.T @ (maps @ band)).unbind(1)  # means over all windows
    vx, vr, cov = xx - mx**2, rr - mr**2, xr - mx * mr
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mx * mr + c1) * (2 * cov + c2) / ((mx**2 + mr**2 + c1) * (vx + vr + c2))
    return 1 - similarity.flatten(1).mean(1)


def outline(x):
    """Return the mean squared step from a pixel to the next one, to the right and downwards."""
    right, down = (x.diff(dim=axis).square().flatten(1).mean(1) for axis in (3, 2))
    return ((right + down) / 2).clamp_min(1e-4)


def detail(x, r):
    """Return the squared error relative to how much outline x has: mse / outline."""
    return mse(x, r) / outline(x)


def semantic(logits, other):
    """Return the Kullback-Leibler divergence KL(p || q), p and q the softmax of two logits.

    With a classifier's logits of x and of r: how much of its opinion of x the reconstruction loses.
    """
    p, q = logits.log_softmax(1), other.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


PIXEL_COSTS = {"mse": mse, "mae": mae, "ssim": ssim, "detail": detail}


def reconstruction_costs(model, images, costs, looks=1, classifier=None):
    """Return costs of images by one autoencoder.

    Parameters
    ----------
    model : Autoencoder
        A conditional one draws the class that it names itself.
    images : float tensor, (N, 1, 28, 28) in [0, 1]
    costs : sequence of str
        Keys of `PIXEL_COSTS`, and "semantic", which asks the `classifier`.
    looks : int
        1, or up to 5: the image, and the same moved by one pixel each way. MNIST's border is
        black: what leaves on one side comes back the same on the other.
    classifier : DigitClassifier, optional

    Returns
    -------
    dict of str to float64 array, (N,)
        The geometric mean over the looks.
    """

    def look(x):
        found = []
        for shift in LOOKS[:looks]:
            seen = x.roll(shift, (2, 3))
            drawn = model(seen)
            for name in costs:
                if name == "semantic":
                    cost = semantic(classifier(seen), classifier(drawn))
                else:
                    cost = PIXEL_COSTS[name](seen, drawn)
                found.append(cost.clamp_min(SMALLEST).log())
        return torch.stack(found, 1)

    logs = predict(look, images).double().reshape(len(images), looks, len(costs))
    return dict(zip(costs, logs.mean(1).exp().T.numpy(), strict=True))


def max_logits(network, images, looks=1):
    """Return minus the largest class logit of each image, (N,) float64, the mean over the looks.

    The network is a classifier or a conditional autoencoder; `looks` as in `reconstruction_costs`.
    """

    def look(x):
        found = []
        for shift in LOOKS[:looks]:
            seen = x.roll(shift, (2, 3))
            logits = network.encode(seen)[1] if hasattr(network, "encode") else network(seen)
            found.append(-logits.amax(1))
        return torch.stack(found, 1).mean(1)

    return predict(look, images).double().numpy()


def standardise(parts, chosen=slice(None), log=True):
    """Take off the mean, and divide by the deviation, that a cost has on calibration images.

    Parameters
    ----------
    parts : dict of str to array
        A cost by parts of the pictures, "calibration" among them.
    chosen : index
        Of the calibration images; all by default.
    log : bool
        Of the logarithm of the cost, since costs are skewed (not for a logit).

    Returns
    -------
    dict of str to array
        The same parts. Of a single cost this changes no ranking; several can be added.
    """
    if log:
        parts = {part: np.log(np.maximum(values, SMALLEST)) for part, values in parts.items()}
    reference = parts["calibration"][chosen]
    return {part: (values - reference.mean()) / reference.std() for part, values in parts.items()}


def standardise_by_class(parts, digits, chosen=slice(None), log=True):
    """Standardise each picture among the calibration images that are taken for the same digit.

    `digits` holds the digit that each picture is taken for, by parts. Of a digit with fewer than
    `FEWEST` calibration images the mean and the deviation of all serve.
    """
    result = standardise(parts, chosen, log)
    positions = np.arange(len(digits["calibration"]))[chosen]
    taken_for = digits["calibration"][positions]
    found, counts = np.unique(taken_for, return_counts=True)
    for digit in found[counts >= FEWEST]:
        own = standardise(parts, positions[taken_for == digit], log)
        for part, values in own.items():
            same = digits[part] == digit
            result[part][same] = values[same]
    return result


def combine(costs, names, chosen=slice(None)):
    """Return the mean of several standardised costs, {part: array}.

    Parameters
    ----------
    costs : dict of str to dict
        Cost -> part -> array; "digit" holds the digits that pictures are taken for.
    names : str
        Such as "detail|class + semantic": costs joined by " + "; "|class" behind one says that it
        is standardised by class. What has "logit" in its name is taken as it is, else its log.
    chosen : index
        Of the calibration images.
    """
    scores = []
    for name in names.split(" + "):
        cost, log = costs[name.removesuffix("|class")], "logit" not in name
        if name.endswith("|class"):
            scores.append(standardise_by_class(cost, costs["digit"], chosen, log))
        else:
            scores.append(standardise(cost, chosen, log))
    return {part: np.mean([score[part] for score in scores], axis=0) for part in scores[0]}
