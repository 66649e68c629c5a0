"""The multi-task autoencoder, the open-set detector, seeds, and the training loop."""

import copy
import math
import random
import warnings

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance
from torch import nn
from torch.nn import functional as F

import osr_utils


@pytest.mark.parametrize("name", osr_utils.SHIPPED)
def test_a_shipped_model_warns_of_images_of_another_range(name):
    model = osr_utils.SHIPPED[name]().eval()
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        model(x[:0])
        for other in (255 * x, (x - 0.1307) / 0.3081):
            with pytest.raises(UserWarning, match="leave out Normalize"):
                model(other)


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


# --- OpenSetDetector ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Return random images with a bright bar per class, and their labels."""
    numbers = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 10
    x = torch.rand(300, 1, 28, 28, generator=numbers) * torch.rand(300, 1, 1, 1, generator=numbers)
    x[torch.arange(300), 0, 2 * labels + 4] += 0.5
    return x.clamp(0, 1), labels


def unfitted(x):
    """Return a random network, not trained, whose batch normalisation has seen images."""
    torch.manual_seed(0)
    model = osr_utils.OpenSetDetector()
    with torch.no_grad():
        model(x)
        logits = model.eval().classify(model.features(x))
        model.head.bias += 2 - logits.mean(0)  # any class may win, by a positive logit
    return model


@pytest.fixture(scope="module")
def detector(digits):
    model = unfitted(digits[0])
    model.fit_distance(*digits)
    return model


def with_alpha(model, alpha):
    model = copy.deepcopy(model)
    model.alpha.fill_(alpha)
    return model


@pytest.fixture(scope="module")
def gaussian(detector, digits):
    """Return means and covariance of the features as scikit-learn has them, ridge included."""
    features = osr_utils.predict(detector.features, digits[0]).detach().double().numpy()
    labels = digits[1].numpy()
    means = np.stack([features[labels == digit].mean(0) for digit in range(10)])
    within = EmpiricalCovariance(assume_centered=True).fit(features - means[labels]).covariance_
    return means, within + np.diag(1e-3 * np.diag(within) + 1e-8)


def test_the_detectors_parameters_are_those_of_its_layers():
    model = osr_utils.OpenSetDetector()
    stages = [
        (5 * 5 * 1 + 3 * 3 * 32) * 32 + 4 * 32,
        (3 * 3 * 32 + 3 * 3 * 64) * 64 + 4 * 64,
        (3 * 3 * 64 + 3 * 3 * 96) * 96 + 4 * 96,
        96 * 11 + 11,
    ]
    parts = (model.stage1, model.stage2, model.stage3, model.head)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == stages
    assert sum(p.numel() for p in model.parameters()) == sum(stages) <= 300_000


def test_what_the_detector_has_fitted_is_saved_and_not_trained(detector):
    fitted = {"mean": (10, 192), "whiten": (192, 192), "alpha": ()}
    saved, trained = detector.state_dict(), dict(detector.named_parameters())
    assert {name: tuple(saved[name].shape) for name in fitted} == fitted
    assert not set(fitted) & set(trained)
    assert all(parameter.requires_grad for parameter in trained.values())


@torch.no_grad()
def test_the_features_are_the_channel_means_of_three_stages(detector, digits):
    x = digits[0][:6]
    one = detector.stage1(2 * x - 1)
    two = detector.stage2(one)
    stages = [stage.numpy() for stage in (one, two, detector.stage3(two))]
    assert [s.shape for s in stages] == [(6, 32, 14, 14), (6, 64, 7, 7), (6, 96, 4, 4)]
    means = [s.reshape(*s.shape[:2], -1).astype(np.float64).mean(2) for s in stages]
    np.testing.assert_allclose(detector.features(x), np.concatenate(means, 1), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_head_sees_the_features_of_the_last_stage_alone(detector, digits):
    features = detector.features(digits[0][:6])
    logits = detector.classify(features)
    last = features[:, 96:].double() @ detector.head.weight.double().T
    torch.testing.assert_close(logits.double(), last + detector.head.bias, rtol=1e-4, atol=1e-4)
    assert torch.equal(detector.classify(features * (torch.arange(192) >= 96)), logits)


@torch.no_grad()
def test_the_distance_is_the_mahalanobis_distance_to_the_asked_mean(detector, digits, gaussian):
    means, covariance = gaussian
    features = detector.features(torch.cat([digits[0][:20], digits[0][:20].flip(3) * 0.5]))
    asked = torch.arange(40) * 7 % 10
    found = detector.distance(features, asked)
    inverse = np.linalg.inv(covariance)
    expected = [
        mahalanobis(feature, means[digit], inverse) ** 2 / 192
        for feature, digit in zip(features.double().numpy(), asked.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@torch.no_grad()
def test_the_mean_of_a_class_is_at_distance_zero_from_itself_alone(detector, gaussian):
    means = torch.tensor(gaussian[0]).float()
    for digit in range(10):
        distances = detector.distance(means, torch.full((10,), digit))
        assert distances.argmin() == digit
        assert distances[digit] < 1e-4 * distances.sum()


@torch.no_grad()
def test_a_dead_channel_leaves_the_distance_finite(digits):
    model = unfitted(digits[0])
    for stage in (model.stage1, model.stage3):
        stage[4].weight[3] = stage[4].bias[3] = 0
    model.fit_distance(*digits)
    features = model.features(digits[0][:50])
    assert (features[:, [3, 99]] == 0).all()
    distances = model.distance(features, digits[1][:50])
    assert distances.isfinite().all() and distances.max() < 10


def test_fitting_the_distance_changes_the_distance_and_nothing_else(digits):
    model = unfitted(digits[0])
    before = weights(model)
    model.fit_distance(*digits)
    changed = {name for name, content in weights(model).items() if content != before[name]}
    assert changed == {"mean", "whiten"}


def test_a_fitted_detector_can_still_be_trained(detector, digits):
    loss = detector(digits[0][:4]).sum()
    gradients = torch.autograd.grad(loss, list(detector.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("alpha", [1.0, 0.037])
@torch.no_grad()
def test_the_detectors_eleventh_logit_is_alpha_times_the_distance(
    detector, digits, gaussian, alpha
):
    detector = with_alpha(detector, alpha)
    x = digits[0][:60].flip(2)
    output, features = detector(x), detector.features(x)
    assert output.shape == (60, 11) and output.dtype == torch.float32 and output.isfinite().all()
    logits = detector.classify(features).double()
    evidence = logits[:, :10] + (logits[:, :10] - logits[:, 10:])  # logit + log-odds
    torch.testing.assert_close(output[:, :10].double(), evidence, rtol=1e-5, atol=1e-5)
    means, covariance = gaussian
    likely = output[:, :10].argmax(1)
    assert len(set(likely.tolist())) > 5
    away = features.double().numpy() - means[likely]
    distance = (away * np.linalg.solve(covariance, away.T).T).sum(1) / 192
    np.testing.assert_allclose(output[:, 10], alpha * distance, rtol=1e-4)


@torch.no_grad()
def test_the_detector_says_unknown_iff_alpha_exceeds_the_ratio(detector, digits):
    x = torch.cat([digits[0][:100], digits[0][:100].flip(2) ** 2])
    logits, error = detector.logits_and_error(x)
    ratio = logits.max(1).values / error
    assert (ratio > 0).all()
    alpha = (ratio.sort().values[79] + ratio.sort().values[80]) / 2
    unknown = with_alpha(detector, alpha)(x).argmax(1) == 10
    assert torch.equal(unknown, alpha > ratio) and unknown.sum() == 80


@pytest.mark.parametrize("percentile, kept", [(0.955, 286), (0.985, 295), (0.5, 150), (1, 300)])
def test_the_detector_keeps_the_share_of_calibration_images_that_is_asked_for(
    detector, digits, percentile, kept
):
    loader = [(x, None) for x in digits[0].split(150)]
    alpha = osr_utils.calibrate_alpha_percentile(detector, loader, "cpu", percentile)
    with torch.no_grad():
        verdicts = osr_utils.predict(with_alpha(detector, alpha), digits[0]).argmax(1)
    assert abs((verdicts != 10).sum() - kept) <= (percentile == 1)


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
