"""System C's networks: an autoencoder, with the class or without, and a classifier."""

from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from osr.images import augment, to_model_input
from osr.models import DigitClassifier
from osr.paths import profile
from osr.training import train
from osr.weights import fit_or_load

AUGMENTATIONS = {  # how far a picture is turned, shifted, scaled and sheared
    "none": None,
    "slight": {"degrees": 8, "translate": 0.05, "scale": 0.08, "shear": 0.1},
    "strong": {"degrees": 15, "translate": 0.1, "scale": 0.15, "shear": 0.15},
}
HEAD = 0.005  # weight of the cross entropy, where an autoencoder has a classifier


class Autoencoder(nn.Module):
    """Down to a latent vector and back; conditional on the class if there are classes.

    Parameters
    ----------
    latent_dim : int
        Numbers in the latent vector.
    widths : sequence of int
        Channels after each stage, which halves the picture (units of each layer if `dense`).
    dense : bool
        Fully connected layers instead of convolutions.
    classes : int
        Of a *conditional* network, whose classifier names the class that its decoder is told;
        0 for one without labels.
    """

    def __init__(self, latent_dim, widths, dense=False, classes=0):
        super().__init__()
        down, up, side = [], [], 28
        for before, after in pairwise((784 if dense else 1, *widths)):
            if dense:
                down += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
                up = [nn.BatchNorm1d(after), nn.ReLU(), nn.Linear(after, before), *up]
            else:  # 28 => 14 => 7 => 4 => 2 pixels a side
                down += [nn.Conv2d(before, after, 3, 2, 1, bias=False)]
                down += [nn.BatchNorm2d(after), nn.ReLU()]
                back = nn.ConvTranspose2d(after, before, 4 - side % 2, 2, 1)
                up = [nn.BatchNorm2d(after), nn.ReLU(), back, *up]
                side = (side + 1) // 2
        shape = (widths[-1],) if dense else (widths[-1], side, side)
        features = int(np.prod(shape))
        self.encoder = nn.Sequential(*([nn.Flatten()] if dense else []), *down)
        self.to_latent = nn.Linear(features, latent_dim)
        self.classifier = nn.Linear(features, classes) if classes else None
        self.from_latent = nn.Linear(latent_dim + classes, features)
        self.decoder = nn.Sequential(nn.Unflatten(1, shape), *up, nn.Sigmoid())
        self.n_classes = classes

    def encode(self, x):
        """Return the latent vectors (N, latent_dim) and class logits (N, classes), or None."""
        features = self.encoder(x * 2 - 1).flatten(1)
        return self.to_latent(features), self.classifier(features) if self.n_classes else None

    def decode(self, latent, digit=None):
        """Return reconstructions (N, 1, 28, 28) in [0, 1], of the classes (N,) if conditional."""
        if self.n_classes:
            latent = torch.cat([latent, F.one_hot(digit, self.n_classes).float()], 1)
        return self.decoder(self.from_latent(latent)).view(-1, 1, 28, 28)

    def forward(self, x):
        """Return reconstructions (N, 1, 28, 28); of the predicted class, if conditional."""
        latent, logits = self.encode(x)
        return self.decode(latent, logits.argmax(1) if self.n_classes else None)


def _schedule():
    """Return what all trainings share: batch size and the peak of Adam's one-cycle schedule."""
    small = profile() == "demo"  # few images: smaller batches, larger steps
    return {"batch_size": 32 if small else 128, "lr": 1.5e-2 if small else 3e-3}


def _fit(name, config, build, loss, images, labels):
    """Train a network on the digits that its configuration names, or load its weights."""
    chosen = np.isin(labels, config["digits"])
    images, labels = images[chosen], labels[chosen]
    ranges, schedule = AUGMENTATIONS[config["augmentation"]], _schedule()

    def fit(model):
        train(model, to_model_input(images), torch.from_numpy(labels), loss, one_cycle=True,
              epochs=config["epochs"], seed=config["seed"], **schedule,
              augmentation=partial(augment, **ranges) if ranges else None)  # fmt: skip

    return fit_or_load(name, config | schedule | {"ranges": ranges}, fit, build=build,
                       data={"images": images, "labels": labels})  # fmt: skip


def fit_autoencoder(config, images, labels):
    """Return the autoencoder of a configuration, trained by the squared error, or loaded.

    Parameters
    ----------
    config : dict
        "latent_dim", "widths", "dense" (see `Autoencoder`), "conditional" (told the class, with
        the labels' help), "augmentation" (a key of `AUGMENTATIONS`), "epochs", "digits" (a sorted
        list: which to learn from) and "seed".
    images : uint8 array, (N, 28, 28)
    labels : int array, (N,)

    Returns
    -------
    Autoencoder
        As `fit_or_load` returns it.
    """

    def loss(model, x, y):
        latent, logits = model.encode(x)
        if logits is None:
            return (model.decode(latent) - x).square().mean()
        y = place[y]
        error = (model.decode(latent, y) - x).square().mean()
        return error + HEAD * F.cross_entropy(logits, y)

    place = torch.zeros(10, dtype=torch.long, device="cpu")  # of each digit among those to learn
    place[config["digits"]] = torch.arange(len(config["digits"]), device="cpu")
    classes = len(config["digits"]) if config["conditional"] else 0
    build = partial(Autoencoder, config["latent_dim"], config["widths"], config["dense"], classes)
    return _fit("autoencoder", config, build, loss, images, labels)


def fit_classifier(config, images, labels):
    """Return a `DigitClassifier` of the configuration's digits, trained or loaded.

    As `fit_autoencoder`, with "augmentation", "epochs", "digits" and "seed" alone. The outputs of
    the digits that it does not see are never right, and stay low.
    """

    def loss(model, x, y):
        return F.cross_entropy(model(x), y)

    return _fit("rest_classifier", config, DigitClassifier, loss, images, labels)
