"""The multi-task autoencoder, seeds, and the training loop."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import osr_utils

# --- MultitaskAutoencoder -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return osr_utils.MultitaskAutoencoder().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_the_parameters_are_those_of_the_layers(autoencoder):
    layers = {
        "conv1": 3 * 3 * 1 * 32 + 32,
        "conv2": 3 * 3 * 32 * 64 + 64,
        "to_latent": 7 * 7 * 64 * 128 + 128,
        "from_latent": 128 * 7 * 7 * 64 + 7 * 7 * 64,
        "deconv1": 2 * 2 * 64 * 32 + 32,
        "deconv2": 2 * 2 * 32 * 1 + 1,
        "classifier": 128 * 10 + 10,
    }
    for name, count in layers.items():
        assert sum(p.numel() for p in getattr(autoencoder, name).parameters()) == count
    assert sum(p.numel() for p in autoencoder.parameters()) == sum(layers.values()) == 834_539


@torch.no_grad()
def test_shapes_and_ranges(autoencoder, images):
    assert autoencoder(images).shape == (5, 11)
    assert autoencoder.encode(images).shape == (5, 128)
    decoded = autoencoder.decode(autoencoder.encode(images))
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    shown = autoencoder.reconstruct(images)
    torch.testing.assert_close(shown, decoded / 2 + 0.5)
    assert 0 <= shown.min() and shown.max() <= 1


@torch.no_grad()
def test_the_encoder_is_conv_relu_pool_twice(autoencoder, images):
    m = autoencoder
    x = F.max_pool2d(m.conv1(2 * images - 1).relu(), 2)
    x = F.max_pool2d(m.conv2(x).relu(), 2)
    torch.testing.assert_close(m.encode(images), m.to_latent(x.flatten(1)))


@torch.no_grad()
def test_the_error_is_the_mean_square_over_the_pixels(autoencoder, images):
    logits, error = autoencoder.logits_and_error(images)
    output = autoencoder.decode(autoencoder.encode(images)).numpy().reshape(5, 784)
    target = images.numpy().reshape(5, 784) * 2 - 1
    np.testing.assert_allclose(error, ((output - target) ** 2).sum(1) / 784, rtol=1e-5)
    assert logits.shape == (5, 10)


@pytest.mark.parametrize("alpha", [1.0, 362.37])
@torch.no_grad()
def test_the_eleventh_logit_is_alpha_times_the_error(images, alpha):
    model = osr_utils.MultitaskAutoencoder().eval()
    model.alpha.fill_(alpha)
    logits, error = model.logits_and_error(images)
    output = model(images)
    assert torch.equal(output[:, :10], logits)
    np.testing.assert_allclose(output[:, 10], alpha * error.numpy(), rtol=1e-6)


def test_alpha_is_saved_and_not_trained(autoencoder):
    assert "alpha" in autoencoder.state_dict()
    assert "alpha" not in dict(autoencoder.named_parameters())


# --- seeds, devices, progress ---------------------------------------------------------------------


def test_seed_everything_repeats_every_generator():
    def draw(seed):
        osr_utils.seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first, again, other = draw(0), draw(0), draw(1)
    assert first == again and not set(first) & set(other)
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.deterministic


@pytest.mark.parametrize(
    "retrain, value, expected",
    [
        (None, "1,2", [0]),
        ("0", "1,2", [0]),
        ("1", None, [0]),
        ("1", "0", [0]),
        ("1", "2,1", [0, 1, 2]),
        ("1", "0,1,2,3,4", [0, 1, 2, 3, 4]),
    ],
)
def test_seeds(sandbox, monkeypatch, retrain, value, expected):
    for name, content in (("OSR_RETRAIN", retrain), ("SEEDS", value)):
        if content is not None:
            monkeypatch.setenv(name, content)
    assert osr_utils.seeds() == expected


def test_pick_device_is_one_that_works():
    assert (torch.ones(2, device=osr_utils.pick_device()) + 1).sum() == 4


def test_progress_passes_everything_on_in_silence(capfd):
    assert list(osr_utils.progress(range(5), "five")) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


# --- train ----------------------------------------------------------------------------------------


def cross_entropy(model, x, y):
    return F.cross_entropy(model(x).float(), y)


def tiny_data(n=60):
    x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % 3
    x[torch.arange(n), 0, y * 4] = 1  # a white row tells the class
    return x, y


def fit(seed=0, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(676, 11)
    )
    options = {"epochs": 3, "batch_size": 16, "loss": cross_entropy} | options
    history = osr_utils.train(model, *tiny_data(), seed=seed, **options)
    return model, history


def weights(model):
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "options", [{}, {"one_cycle": True, "lr": 0.01}, {"augmentation": osr_utils.augment}]
)
def test_one_seed_gives_the_same_bits_and_another_does_not(options):
    first, again, other = (fit(seed, **options) for seed in (0, 0, 1))
    assert first[1] == again[1] and weights(first[0]) == weights(again[0])
    assert weights(first[0]) != weights(other[0])


def test_the_options_have_an_effect():
    models = [fit(), fit(one_cycle=True), fit(augmentation=osr_utils.augment), fit(lr=0.01)]
    assert len({weights(model)["0.weight"] for model, _ in models}) == 4


@pytest.mark.parametrize("one_cycle", [False, True])
def test_the_loss_falls(one_cycle):
    _, history = fit(epochs=6, lr=0.01, one_cycle=one_cycle)
    assert len(history) == 6 and all(type(value) is float for value in history)
    assert history[-1] < history[0] / 2


def steps(**options):
    """Return the size of each step on a loss with a constant slope: Adam's learning rate."""
    weights = []

    def loss(model, x, y):
        weights.append(model.weight.item())
        return model.weight.sum()

    model = nn.Linear(1, 1, bias=False)
    osr_utils.train(
        model, torch.zeros(50, 1), torch.zeros(50), loss, epochs=2, seed=0, batch_size=1, **options
    )
    return -np.diff(weights)


def test_the_learning_rate_is_constant_or_follows_one_cycle():
    np.testing.assert_allclose(steps(lr=0.5), 0.5, rtol=1e-3)
    cycle = steps(lr=0.5, one_cycle=True)
    assert cycle[0] < 0.05 and cycle[-1] < 0.005  # from lr / 25 up to lr and down to nothing
    assert 0.4 < max(cycle) < 0.6 and 20 <= cycle.argmax() <= 40


def test_a_trained_model_is_in_eval_mode_and_fits_half_precision():
    model, _ = fit()
    assert not any(module.training for module in model.modules())
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32 and parameter.requires_grad
        assert torch.equal(parameter, parameter.half().float())
    statistics = model[1].running_var
    assert not torch.equal(statistics, statistics.half().float())


def test_the_model_trains_in_train_mode():
    modes = []

    def loss(model, x, y):
        modes.extend(module.training for module in model.modules())
        return cross_entropy(model, x, y)

    fit(loss=loss, epochs=1)
    assert modes and all(modes)


def test_every_epoch_sees_each_image_once_with_its_label_in_a_new_order():
    seen = []

    def loss(model, x, y):
        seen.append((x.flatten().tolist(), y.tolist()))
        return model(x).sum() * 0

    x = torch.arange(10.0).view(10, 1)
    osr_utils.train(nn.Linear(1, 1), x, torch.arange(10), loss, epochs=2, seed=0, batch_size=4)
    assert [len(y) for _, y in seen] == [4, 4, 2] * 2
    assert all(x == y for x, y in seen)
    epochs = [[i for _, y in part for i in y] for part in (seen[:3], seen[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_the_history_is_the_mean_over_images_and_not_over_batches():
    def loss(model, x, y):
        return model(x).sum() * 0 + x.mean()

    x = torch.arange(10.0).view(10, 1)  # in batches of 4, 4 and 2
    history = osr_utils.train(
        nn.Linear(1, 1), x, torch.zeros(10), loss, epochs=3, seed=0, batch_size=4
    )
    assert history == pytest.approx([4.5] * 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value):
    calls = []

    def loss(model, x, y):
        calls.append(len(x))
        last = len(calls) == 8  # of four batches an epoch
        return cross_entropy(model, x, y) * (value if last else 1)

    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 1; lower lr"):
        fit(loss=loss)
    assert len(calls) == 8


def test_training_without_a_bar_prints_nothing(capfd):
    fit(epochs=1)
    assert capfd.readouterr() == ("", "")
