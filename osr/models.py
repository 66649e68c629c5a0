"""The networks whose weights ship; one vocabulary for x, float (N, 1, 28, 28) in [0, 1].

``forward(x)`` gives the contract's (N, 11) outputs (`DigitClassifier`: ten), ``features(x)`` (N, D)
for the detectors of `osr.scores`, ``class_logits(x)`` the (N, 10) logits as training left them,
``last_layer`` the linear layer that reads the last columns of the features, or None.
"""

import warnings
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from osr.contract import check_classes, predict
from osr.modes import evaluation_mode


class MultitaskAutoencoder(nn.Module):
    """System A: one encoder, a decoder and a classifier; the error is the eleventh logit.

    ``forward`` takes (N, 1, 28, 28) in [0, 1] and returns (N, 11): ten class logits z and
    alpha * e, where e is the mean squared reconstruction error over the 784 pixels, both images
    in [-1, 1]. So x is unknown iff alpha > max z / e.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.to_latent = nn.Linear(64 * 7 * 7, 128)
        self.from_latent = nn.Linear(128, 64 * 7 * 7)
        self.deconv1 = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.deconv2 = nn.ConvTranspose2d(32, 1, 2, stride=2)
        self.classifier = nn.Linear(128, 10)
        self.register_buffer("alpha", torch.ones(()))

    @property
    def last_layer(self):
        return self.classifier

    def encode(self, x):
        """Return the (N, 128) latent vectors."""
        x = x * 2 - 1  # [0, 1] => [-1, 1]
        # ReLU after the pooling gives the same result as before it, on a quarter of the pixels.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # 28x28 => 14x14
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # 14x14 => 7x7
        return self.to_latent(x.flatten(1))

    def decode(self, latent):
        """Return (N, 1, 28, 28) reconstructions in [-1, 1]."""
        x = self.from_latent(latent).view(-1, 64, 7, 7)
        x = F.relu(self.deconv1(x))  # 7x7 => 14x14
        return torch.tanh(self.deconv2(x))  # 14x14 => 28x28

    def features(self, x):
        """Return the (N, 128) features for detectors: the latent vectors."""
        return self.encode(x)

    def class_logits(self, x):
        """Return the (N, 10) logits of the digits."""
        return self.classifier(self.encode(x))

    def reconstruct(self, x):
        """Return (N, 1, 28, 28) reconstructions in [0, 1], for pictures."""
        return (self.decode(self.encode(x)) + 1) / 2

    def logits_and_error(self, x):
        """Return the (N, 10) class logits and the (N,) reconstruction errors."""
        latent = self.encode(x)
        error = (self.decode(latent) - (x * 2 - 1)).square().flatten(1).mean(1)
        return self.classifier(latent), error

    def forward(self, x):
        _warn_of_range(x)
        logits, error = self.logits_and_error(x)
        return torch.cat([logits, self.alpha * error[:, None]], 1)


def stage(before, width, kernel, norm=nn.BatchNorm2d):
    """Two convolutions that halve the side, each with a normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, width, kernel, 2, kernel // 2, bias=False),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(),
    )


class OpenSetDetector(nn.Module):
    """System A's detector: a classifier whose eleventh logit is a distance between features.

    ``forward`` takes (N, 1, 28, 28) in [0, 1] and returns (N, 11): the evidence z for each digit,
    which is its logit plus its log-odds against the outliers of the training, and alpha * e, where
    e is the squared Mahalanobis distance (Lee et al. 2018), divided by the number of features, of
    the pooled features of all stages to their mean over the training digits of the most likely
    class. So x is unknown iff alpha > max z / e.
    """

    WIDTHS = (32, 64, 96)  # channels of the stages

    def __init__(self):
        super().__init__()
        first, second, third = self.WIDTHS
        self.stage1 = stage(1, first, 5)  # 28x28 => 14x14
        self.stage2 = stage(first, second, 3)  # 14x14 => 7x7
        self.stage3 = stage(second, third, 3)  # 7x7 => 4x4
        self.head = nn.Linear(third, 11)  # ten digits, and the outliers of the training
        self.register_buffer("mean", torch.zeros(10, sum(self.WIDTHS)))
        self.register_buffer("whiten", torch.eye(sum(self.WIDTHS)))
        self.register_buffer("alpha", torch.ones(()))

    @property
    def last_layer(self):
        return self.head

    def features(self, x):
        """Return the (N, 192) features: the mean of each channel of each stage."""
        one = self.stage1(x * 2 - 1)
        two = self.stage2(one)
        return torch.cat([stage.mean((2, 3)) for stage in (one, two, self.stage3(two))], 1)

    def classify(self, features):
        """Return the (N, 11) logits that training works on: ten digits and its outliers."""
        return self.head(features[:, -self.WIDTHS[-1] :])

    def class_logits(self, x):
        """Return the (N, 10) logits of the digits, before the outliers' odds are added."""
        return self.classify(self.features(x))[:, :10]

    def fit_distance(self, images, labels):
        """Set the class means and the shared covariance of the features, from known images."""
        labels = labels.cpu()
        check_classes(labels, 10)
        with evaluation_mode(self):
            features = predict(self.features, images).double()
        mean = torch.stack([features[labels == digit].mean(0) for digit in range(10)])
        within = features - mean[labels]
        covariance = within.T @ within / len(within)
        covariance += torch.diag(1e-3 * covariance.diagonal() + 1e-8)  # dead channels
        self.mean.copy_(mean)
        self.whiten.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance)).T)

    def distance(self, features, digit):
        """Return squared distances (N,), per feature, to the mean of a digit (N,) each."""
        return ((features - self.mean[digit]) @ self.whiten).square().mean(1)

    def logits_and_error(self, x):
        """Return the (N, 10) evidence for each digit and the (N,) feature distances."""
        features = self.features(x)
        logits = self.classify(features)
        evidence = 2 * logits[:, :10] - logits[:, 10:]
        return evidence, self.distance(features, evidence.argmax(1))

    def forward(self, x):
        _warn_of_range(x)
        logits, error = self.logits_and_error(x)
        return torch.cat([logits, self.alpha * error[:, None]], 1)


class GarbageClassifier(nn.Module):
    """Systems D and E: a classifier whose eleventh output is a class, trained on garbage.

    ``forward`` takes (N, channels, S, S) in [0, 1] and returns (N, 11) logits.
    """

    def __init__(self, channels=1, widths=(16, 32, 64)):
        super().__init__()
        first, second, third = widths  # channels of the stages
        self.stages = nn.Sequential(  # 28x28 => 14x14 => 7x7 => 4x4
            stage(channels, first, 5), stage(first, second, 3), stage(second, third, 3)
        )
        self.head = nn.Linear(third, 11)

    @property
    def last_layer(self):
        return self.head

    def penultimate(self, x):
        """Return (N, 64), or as wide as the last stage: its channel means, which `head` reads."""
        return self.stages(x * 2 - 1).mean((2, 3))

    def features(self, x):
        """Return (N, 112), or wider: the mean of each channel of every stage, for detectors."""
        x, means = x * 2 - 1, []
        for part in self.stages:
            x = part(x)
            means.append(x.mean((2, 3)))
        return torch.cat(means, 1)

    def class_logits(self, x):
        """Return the (N, 10) logits of the known classes."""
        return self.head(self.penultimate(x))[:, :10]

    def forward(self, x):
        _warn_of_range(x)
        return self.head(self.penultimate(x))


class DigitClassifier(nn.Module):
    """System B: ten digits, (N, 1, 28, 28) in [0, 1] -> (N, 10) logits; `norm`: width -> layer."""

    WIDTHS = (24, 48, 96)  # channels of the stages
    last_layer = None  # `head` reads the whole maps of the last stage, not their means

    def __init__(self, norm=None):
        super().__init__()
        norm = norm or partial(nn.GroupNorm, 1)  # over the whole picture, all channels together
        first, second, third = self.WIDTHS
        self.stages = nn.Sequential(  # 28x28 => 14x14 => 7x7 => 4x4
            *stage(1, first, 5, norm),
            *stage(first, second, 3, norm),
            *stage(second, third, 3, norm),
        )
        self.head = nn.Linear(16 * third, 10)

    def features(self, x):
        """Return the (N, 96) features for detectors: the channel means of the last stage."""
        return self.stages(x).mean((2, 3))

    def class_logits(self, x):
        """Return the (N, 10) logits."""
        return self.head(self.stages(x).flatten(1))

    def forward(self, x):
        return self.class_logits(x)


def _warn_of_range(x):
    """Warn of images that were scaled otherwise: nothing else would show it."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    with suppress(RuntimeError, ValueError):  # torch.vmap and torch.fx have no numbers either
        if not recorded and x.numel() and (x.amin() < -0.01 or x.amax() > 1.01):
            warnings.warn(
                f"images run from {x.amin():.2f} to {x.amax():.2f}, but the model was trained on "
                "[0, 1]: leave out Normalize, divide bytes by 255",
                stacklevel=3,
            )


SHIPPED = {
    "multitask_autoencoder": MultitaskAutoencoder,
    "plain_cnn": OpenSetDetector,  # trained without outliers
    "osr_detector_9k": OpenSetDetector,  # trained on 9,000 digits
    "osr_detector": OpenSetDetector,
    "network_inversion": partial(GarbageClassifier, widths=(24, 48, 96)),
}
