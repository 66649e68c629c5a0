"""OOD scores, higher = more OOD: of outputs, of features, and the weight alpha of an error."""

import math
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F

from osr.contract import OOD_LABEL, check_classes, check_tensor, ood_score, predict
from osr.modes import evaluation_mode, plain_defaults


def uncertainty_estimate(logits):
    """Return the uncertainty estimate UE of (N, K) logits, (N,) in [0, 1].

    With p the softmax, u = 1 / K and y the one-hot vector of the largest p, UE = 1 - |p - u|^2 /
    |y - u|^2: 0 where one output has all the probability, 1 where all are equal (Suhail et al.
    2025, arXiv 2505.23448).
    """
    k = logits.shape[1]
    distance = (logits.softmax(1) - 1 / k).square().sum(1)
    return (1 - distance / (1 - 1 / k)).clamp(0, 1)  # rounding errs to both sides


def msp(logits):
    """Return minus the largest softmax probability (Hendrycks & Gimpel 2017)."""
    return -logits.softmax(1).max(1).values


def max_logit(logits):
    """Return minus the largest logit."""
    return -logits.max(1).values


def energy(logits):
    """Return the free energy, -logsumexp(z) (Liu et al. 2020)."""
    return -logits.logsumexp(1)


def garbage_probability(logits):
    """Return the softmax probability of the eleventh output."""
    return logits.softmax(1)[:, OOD_LABEL]


# name -> (the number of outputs that it reads, (N, outputs) logits -> (N,) scores)
OUTPUT_SCORES = {
    "msp": (10, msp),
    "max_logit": (10, max_logit),
    "energy": (10, energy),
    "ue_k": (10, uncertainty_estimate),
    "ue_k1": (11, uncertainty_estimate),
    "garbage_probability": (11, garbage_probability),
    "garbage_margin": (11, ood_score),
}


def output_scores(logits):
    """Return every score of `OUTPUT_SCORES` that (N, 10) or (N, 11) logits have outputs for.

    Returns
    -------
    dict of str to float64 tensor, (N,)
        Higher = more OOD.

    Raises
    ------
    ValueError
        If the logits are of another shape, or complex.
    """
    if logits.ndim != 2 or logits.shape[1] not in (10, 11) or logits.is_complex():
        raise ValueError(
            f"expected real (N, 10) or (N, 11) logits, found {logits.dtype} {tuple(logits.shape)}"
        )
    logits, scores = logits.double(), {}
    for name, (outputs, score) in OUTPUT_SCORES.items():
        if outputs <= logits.shape[1]:
            scores[name] = score(logits[:, :outputs])
    return scores


def _pytorch_ood(kind, **options):
    """Return a detector of pytorch-ood, whose import takes seconds."""
    return getattr(import_module("pytorch_ood.detector"), kind)(None, **options)


def _knn(features, layer):
    return _pytorch_ood("KNN", k=min(50, len(features)))


def _vim(features, layer):
    if layer is None:
        return None
    d = features.shape[1]
    weight = F.pad(layer.weight[:OOD_LABEL].detach().cpu(), (d - layer.in_features, 0))
    return _pytorch_ood("ViM", d=d // 2, w=weight, b=layer.bias[:OOD_LABEL].detach().cpu())


# name -> (features, last layer or None) -> a detector with fit_features(features, labels) and
# predict_features(features) -> (N,) scores; or None where it cannot be had.
FEATURE_DETECTORS = {
    "mahalanobis": lambda features, layer: _pytorch_ood("Mahalanobis"),  # Lee et al. 2018
    "rmd": lambda features, layer: _pytorch_ood("RMD"),  # Ren et al. 2021
    "knn": _knn,  # Sun et al. 2022
    "vim": _vim,  # Wang et al. 2022
}


def fit_detectors(features, labels, last_layer=None):
    """Fit every detector of `FEATURE_DETECTORS`, each with ``predict_features`` -> (N,) scores.

    Parameters
    ----------
    features : float32 tensor, (N, D)
        Of training images.
    labels : int tensor, (N,)
        The classes, 0 to K - 1, each at least once.
    last_layer : nn.Linear, optional
        The classifier's last layer, if it reads the last columns of the features: ViM needs its
        first ten outputs.

    Returns
    -------
    dict of str to detector

    Raises
    ------
    ValueError
        If a class is missing.
    """
    check_classes(labels, int(labels.max()) + 1)
    detectors = {}
    with plain_defaults():
        for name, build in FEATURE_DETECTORS.items():
            detector = build(features, last_layer)
            if detector is not None:
                detectors[name] = detector.fit_features(features, labels)
    return detectors


def all_scores(model, outputs, known, inputs):
    """Return every score of a network on some sets of images, {set: {score: (N,) tensor}}.

    Parameters
    ----------
    model : nn.Module
        With ``features`` and ``last_layer``, see `osr.models`.
    outputs : dict of str to tensor
        Its (N, 10) or (N, 11) logits of each set.
    known : (tensor, tensor)
        Training images and labels, to fit the detectors to.
    inputs : dict of str to tensor
        Images of each set.
    """
    images, labels = known
    detectors = fit_detectors(predict(model.features, images), labels, model.last_layer)
    scores = {}
    for name, x in inputs.items():
        scores[name] = output_scores(outputs[name])
        seen = predict(model.features, x)
        for key, detector in detectors.items():
            scores[name][key] = detector.predict_features(seen)
    return scores


# name -> the two scores whose sum it is
SCORE_SUMS = {
    "garbage_margin+mahalanobis": ("garbage_margin", "mahalanobis"),
    "garbage_margin+knn": ("garbage_margin", "knn"),
    "garbage_margin+vim": ("garbage_margin", "vim"),
    "energy+mahalanobis": ("energy", "mahalanobis"),
}


def add_sums(scores):
    """Add the `SCORE_SUMS` whose parts are there to the scores of each set, in place.

    Each part is measured in standard deviations from its mean on the known images of the set that
    is called "validation".
    """
    reference = {
        key: (values.mean(), values.std() + 1e-12) for key, values in scores["validation"].items()
    }
    for found in scores.values():
        for name, parts in SCORE_SUMS.items():
            if {*parts} <= {*found}:  # a network of ten outputs has no garbage
                found[name] = sum((found[k] - reference[k][0]) / reference[k][1] for k in parts)


def calibrate_alpha_percentile(model, loader, device, percentile):
    """Choose alpha so that a given share of known calibration images stays known.

    An image x is unknown iff alpha > r(x) = max z(x) / max(e(x), 1e-12), with the class logits z
    and the reconstruction error e; so alpha = quantile_{1-p}(r), linearly interpolated.

    Parameters
    ----------
    model : nn.Module
        With ``logits_and_error(x)`` -> (N, 10), (N,); used in eval mode, without gradients.
    loader : iterable of (images, ...) or of images
        Known images only, without augmentation.
    device : str or torch.device
    percentile : float in [0, 1]
        Share p of the images to keep known.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the loader is empty or gives no images, `percentile` is not in 0..1, `logits_and_error`
        returns other shapes, or alpha is not finite and positive.
    """
    if not 0 <= percentile <= 1:
        raise ValueError(f"percentile is {percentile}: give the share to keep known, 0..1")
    model.to(device)
    ratios = []
    with evaluation_mode(model), torch.no_grad():
        for batch in loader:
            images = check_tensor(batch[0] if isinstance(batch, list | tuple) else batch)
            logits, error = model.logits_and_error(images.to(device))
            n, found = len(images), [tuple(part.shape) for part in (logits, error)]
            if found != [(n, 10), (n,)]:
                raise ValueError(f"logits_and_error gives {found}: return ({n}, 10) and ({n},)")
            ratios.append((logits.max(1).values / error.clamp_min(1e-12)).cpu().double())
    if not sum(map(len, ratios)):
        raise ValueError("the calibration loader is empty: give it known images")
    alpha = float(np.quantile(torch.cat(ratios).numpy(), 1 - percentile))
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha is {alpha} at percentile {percentile}: the class logits of that share of the "
            "images are not positive. Train longer, or keep a smaller share"
        )
    return alpha
