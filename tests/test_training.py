"""Seeds, devices, and the training loop."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import other_defaults, state_bytes
from osr import training
from osr.images import augment


def test_seed_everything_repeats_every_generator():
    def draw(seed):
        training.seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first, again, other = draw(0), draw(0), draw(1)
    assert first == again and not set(first) & set(other)
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.deterministic


def test_pick_device_is_one_that_works():
    assert (torch.ones(2, device=training.pick_device()) + 1).sum() == 4


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
    history = training.train(model, *tiny_data(), seed=seed, **options)
    return model, history


@pytest.mark.parametrize(
    "options", [{}, {"one_cycle": True, "lr": 0.01}, {"augmentation": augment}]
)
def test_one_seed_gives_the_same_bits_and_another_does_not(options):
    first, again, other = (fit(seed, **options) for seed in (0, 0, 1))
    assert first[1] == again[1] and state_bytes(first[0]) == state_bytes(again[0])
    assert state_bytes(first[0]) != state_bytes(other[0])


def test_the_options_have_an_effect():
    models = [fit(), fit(one_cycle=True), fit(augmentation=augment), fit(lr=0.01)]
    assert len({state_bytes(model)["0.weight"] for model, _ in models}) == 4


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
    training.train(
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
    training.train(nn.Linear(1, 1), x, torch.arange(10), loss, epochs=2, seed=0, batch_size=4)
    assert [len(y) for _, y in seen] == [4, 4, 2] * 2
    assert all(x == y for x, y in seen)
    epochs = [[i for _, y in part for i in y] for part in (seen[:3], seen[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_the_history_is_the_mean_over_images_and_not_over_batches():
    def loss(model, x, y):
        return model(x).sum() * 0 + x.mean()

    x = torch.arange(10.0).view(10, 1)  # in batches of 4, 4 and 2
    history = training.train(
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


@pytest.mark.parametrize("images, labels", [(4, 5), (5, 4), (0, 0), (3, 0)])
def test_training_needs_a_label_for_each_image(images, labels):
    with pytest.raises(ValueError, match=f"{images} images, {labels} labels: give"):
        training.train(
            nn.Linear(1, 1), torch.zeros(images, 1), torch.zeros(labels), None, epochs=1, seed=0
        )


@pytest.mark.parametrize("options", [{}, {"one_cycle": True, "augmentation": augment}])
def test_torchs_defaults_do_not_change_the_training(options):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(784, 11)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    data, options = tiny_data(), {"epochs": 2, "seed": 0, "batch_size": 16} | options
    history = training.train(models[0], *data, cross_entropy, **options)
    with other_defaults():
        assert training.train(models[1], *data, cross_entropy, **options) == history
    assert state_bytes(models[0]) == state_bytes(models[1])


LARGEST = 65504  # of the numbers in half precision


@pytest.mark.parametrize(
    "values", [[1e5, 0.1], [-7e4, 0.1], [65520.0, 0.1], [math.inf, 0.1], [math.nan, 0.1]]
)
def test_what_does_not_fit_into_half_precision_stays_as_it_is(values):
    found = training.to_half(torch.tensor(values))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, np.array(values, np.float32))


@pytest.mark.parametrize("values", [[LARGEST, -LARGEST], [65519.0, 1e-9], [0.1], []])
def test_what_fits_into_half_precision_is_rounded_to_it(values):
    found = training.to_half(torch.tensor(values))
    assert found.dtype == torch.float16
    np.testing.assert_array_equal(found, np.array(values, np.float32).astype(np.float16))


def test_a_trained_weight_beyond_half_precision_stays_finite():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.fill_(1e5)
        model[1].weight.fill_(0.1)
    training.train(
        model, torch.zeros(4, 1), torch.zeros(4), lambda model, x, y: model(x).sum() * 0,
        epochs=1, seed=0,
    )  # fmt: skip
    assert model[0].weight.item() == 1e5
    assert model[1].weight.item() == np.float16(0.1)


def test_training_without_a_bar_prints_nothing(capfd):
    fit(epochs=1)
    assert capfd.readouterr() == ("", "")
