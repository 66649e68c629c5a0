"""Network inversion: pictures that a classifier answers as asked, which then join its garbage.

The method of Suhail et al. (2024, arXiv 2411.17777; 2025, arXiv 2505.23448). A classifier here has
``penultimate(x)``, the features (N, D), and ``head(features)``, the (N, 11) logits; the eleventh
class is the garbage. Notebook 06 shows and explains this room.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

from osr.contract import OOD_LABEL, predict
from osr.paths import progress
from osr.scores import uncertainty_estimate
from osr.training import has_bf16, train

RANDOM_INPUTS = 100  # normal numbers that a generated picture starts from
EPOCH_COLUMNS = ("garbage", "hit_rate", "uncertainty", "cosine",
                 "classifier_seconds", "inversion_seconds")  # fmt: skip


def soft_vectors(n, targets, draws):
    """Draw n distributions over eleven outputs whose largest entry is below `targets`, (n, 11)."""
    z = torch.randn(n, 11, generator=draws)
    while len(wrong := (z.argmax(1) >= targets).nonzero()[:, 0]):
        z[wrong] = torch.randn(len(wrong), 11, generator=draws)
    return z.softmax(1)


def matrices(target, side):
    """Return the (n, 1, side, side) matrices of targets (n,): ones in row k and in column k."""
    chosen = F.one_hot(target, side).float()
    return torch.maximum(chosen[:, None, :, None], chosen[:, None, None, :])


def grow(before, width, kernel, stride=1, padding=0):
    """One transposed convolution with its normalisation; dropout takes whole channels."""
    return nn.Sequential(
        nn.ConvTranspose2d(before, width, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout2d(0.1),
    )


class Generator(nn.Module):
    """(N, 11) soft vectors and (N, 100) normal numbers -> (N, channels, side, side) pictures.

    The matrix of the target enters where it fits: at `targets` pixels a side, 10, or 11 where the
    garbage may be asked for, too. ``scale`` brings the last layer's output to pixels.
    """

    def __init__(self, channels=1, side=28, targets=10, scale=torch.sigmoid):
        super().__init__()
        self.targets, self.scale = targets, scale
        self.embed = nn.Linear(11, 28)
        self.small = nn.Sequential(  # 1 => 4 => 7 => 10 (or 11) pixels a side
            grow(RANDOM_INPUTS + 28, 48, 4), grow(48, 32, 4), grow(32, 24, targets - 6)
        )
        self.large = nn.Sequential(  # => side / 2 => side
            grow(25, 12, side // 2 - targets + 1),
            grow(12, 8, 4, 2, 1),
            nn.Conv2d(8, channels, 3, padding=1),
        )

    def forward(self, soft, latent):
        x = torch.cat([latent, self.embed(soft)], 1)[:, :, None, None]
        x = self.small(x)
        x = torch.cat([x, matrices(soft.argmax(1), self.targets).to(x)], 1)
        return self.scale(self.large(x).float())


def cosine(features):
    """Return the mean cosine over all pairs of different rows of (N, D) features."""
    unit, n = F.normalize(features), len(features)
    return (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))


def orthogonality(features):
    """Return the mean squared entry of G - I, for the Gram matrix G of the rows."""
    gram = features @ features.T
    return (gram - torch.eye(len(gram), device=gram.device)).square().mean()


def inversion_loss(classifier, pictures, soft, weights, gram):
    """Return alpha KL + beta CE + gamma cosine + delta orthogonality, a scalar tensor.

    Parameters
    ----------
    classifier : nn.Module
    pictures : float tensor, (N, channels, S, S)
    soft : float tensor, (N, 11)
        The distributions that were asked for.
    weights : sequence of float
        (alpha, beta, gamma, delta).
    gram : str
        "raw", or "normalised": whether the Gram matrix is that of the features as they are, or of
        the features at length 1.
    """
    features = classifier.penultimate(pictures).float()
    logits = classifier.head(features).float()
    kl = F.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
    ce = F.cross_entropy(logits, soft.argmax(1))
    rows = F.normalize(features) if gram == "normalised" else features
    alpha, beta, gamma, delta = weights
    return alpha * kl + beta * ce + gamma * cosine(features) + delta * orthogonality(rows)


def train_generator(generator, optimizer, classifier, config, draws):
    """Take `steps` steps against a classifier that stands still."""
    device = next(classifier.parameters()).device
    classifier.eval().requires_grad_(False)
    generator.train()
    for _ in range(config["steps"]):
        n = config["generator_batch"]
        soft = soft_vectors(n, generator.targets, draws).to(device)
        latent = torch.randn(n, RANDOM_INPUTS, generator=draws).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
            pictures = generator(soft, latent)
            loss = inversion_loss(classifier, pictures, soft, config["weights"], config["gram"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classifier.requires_grad_(True)


@torch.no_grad()
def invert(generator, n, draws):
    """Return n inverted pictures, and the soft vectors (n, 11) that were asked for."""
    generator.eval()
    device = next(generator.parameters()).device
    soft = soft_vectors(n, generator.targets, draws).to(device)
    latent = torch.randn(n, RANDOM_INPUTS, generator=draws).to(device)
    parts = zip(soft.split(250), latent.split(250), strict=True)
    return torch.cat([generator(s, z) for s, z in parts]), soft


def train_classifier(model, x, y, garbage, config, epoch, augmentation=None):
    """Pass once over the known images and the garbage, which weighs as some known classes do."""
    weight = torch.ones(11, device=x.device)
    weight[OOD_LABEL] = config["garbage_weight"] * len(x) / 10 / len(garbage)
    labels = torch.cat([y, y.new_full((len(garbage),), OOD_LABEL)])

    seed = 1000 * config["seed"] + epoch
    draws = torch.Generator().manual_seed(seed)

    def loss(model, x, y):
        if augmentation:
            with torch.autocast(x.device.type, enabled=False):
                x = augmentation(x, y, draws)
        return F.cross_entropy(model(x), y, weight)

    train(model, torch.cat([x, garbage]), labels, loss, epochs=1, seed=seed,
          batch_size=config["batch_size"], device=x.device,
          lr=config["lr"] * (1 - config["decay"] * epoch / config["epochs"]))  # fmt: skip


def inversion_loop(
    model, x, y, config, *, generator=Generator, augmentation=None, outliers=None, watch=None,
    after=None,
):  # fmt: skip
    """Train a classifier and a generator in turn; inverted pictures join the garbage.

    One epoch: the classifier passes once over the known images and all garbage; it stands still
    while the generator trains against it; new inverted pictures join the garbage.

    Parameters
    ----------
    model : nn.Module
        Trained in place. Its dict ``log`` receives "history", a line an epoch with the columns
        `EPOCH_COLUMNS` and what `watch` adds; "gallery", uint8, the first inverted picture of each
        digit; "gallery_uncertainty", that of the answers to them.
    x : float tensor, (N, channels, S, S) in [0, 1]
    y : int tensor, (N,)
    config : dict
        "seed", "epochs"; the classifier's "lr", "decay" (of the rate, 1: to zero), "batch_size",
        "garbage_weight" (of all garbage, in known classes); the first garbage, "noise" pictures
        of normal numbers with "noise_mean" and "noise_sd", clipped to [0, 1]; the generator's
        "restart" (a new one each epoch), "steps", "generator_batch", "generator_lr", "weights",
        "gram" (see `inversion_loss`); "added" inverted pictures an epoch.
    generator : callable
        ``generator()`` -> Generator.
    augmentation : callable, optional
        ``augmentation(x, y, draws)`` -> x, for a batch of known images and garbage.
    outliers : callable, optional
        ``outliers(epoch, draws)`` -> pictures that are garbage in this epoch alone.
    watch : callable, optional
        ``watch(model)`` -> list of float, at the end of each epoch.
    after : callable, optional
        ``after(epoch)``, from 1 on, when an epoch is over.
    """
    model.log, inverter = {}, None
    draws = torch.Generator().manual_seed(config["seed"])
    noise = torch.randn(config["noise"], *x.shape[1:], generator=draws)
    garbage = (config["noise_mean"] + config["noise_sd"] * noise).clamp(0, 1).to(x.device)
    for epoch in progress(range(config["epochs"]), "epochs"):
        times = [time.perf_counter()]
        fresh = garbage[:0] if outliers is None else outliers(epoch, draws)
        train_classifier(model, x, y, torch.cat([garbage, fresh]), config, epoch, augmentation)
        times.append(time.perf_counter())
        if inverter is None or config["restart"]:
            inverter = generator().to(x.device)
            optimizer = torch.optim.Adam(inverter.parameters(), config["generator_lr"])
        if config["steps"]:
            train_generator(inverter, optimizer, model, config, draws)
        shown = max(config["added"], 250)  # enough that each digit is among them
        pictures, soft = invert(inverter, shown, draws)
        times.append(time.perf_counter())
        line = [len(garbage), *_remember(model, pictures, soft),
                times[1] - times[0], times[2] - times[1]]  # fmt: skip
        _append(model.log, "history", torch.tensor(line + (watch(model) if watch else [])))
        garbage = torch.cat([garbage, pictures[: config["added"]]])
        if after:
            after(epoch + 1)


def _remember(model, pictures, soft):
    """Keep a picture of each digit; return share of hits, mean uncertainty, mean cosine."""
    answers, target = predict(model, pictures), soft.argmax(1).cpu()
    uncertainty = uncertainty_estimate(answers)
    first = [int((target == digit).nonzero()[0]) for digit in range(10)]
    _append(model.log, "gallery", (255 * pictures[first].clamp(0, 1)).byte().cpu())
    _append(model.log, "gallery_uncertainty", uncertainty[first])
    hits = (answers.argmax(1) == target).double().mean().item()
    return hits, uncertainty.mean().item(), cosine(predict(model.penultimate, pictures)).item()


def _append(log, key, entry):
    """Add an epoch's entry to a tensor of the log."""
    log[key] = torch.stack([*log.get(key, ()), entry])
