"""The networks whose weights ship, and the vocabulary that they share."""

import copy
import math
import re
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance
from torch.nn import functional as F

from helpers import one_batch, other_defaults, state_bytes
from osr import contract, models, scores, shipped


@pytest.mark.parametrize("name", models.SHIPPED)
def test_a_shipped_model_warns_of_images_of_another_range(name):
    model = models.SHIPPED[name]().eval()
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        model(x[:0])
        for other in (255 * x, (x - 0.1307) / 0.3081):
            with pytest.raises(UserWarning, match="leave out Normalize"):
                model(other)


@pytest.mark.parametrize("low, high, warns", [
    (-0.005, 1.005, False), (0, 1.02, True), (-0.02, 1, True), (0, 1.5, True), (-1, 1, True),
    (0, math.inf, True),
])  # fmt: skip
def test_the_range_is_that_of_the_training_give_or_take_a_hundredth(low, high, warns):
    model = models.GarbageClassifier(widths=(2, 3, 4)).eval()
    x = torch.full((2, 1, 28, 28), 0.5)
    x[0, 0, 0, 0], x[1, 0, 3, 5] = low, high
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(x)
    assert len(caught) == warns
    assert all(f"from {x.amin():.2f} to {x.amax():.2f}," in str(w.message) for w in caught)


RECORDERS = {
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "compile": lambda model, x: torch.compile(model, fullgraph=True, backend="aot_eager"),
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "trace": torch.jit.trace,
    "vmap": lambda model, x: torch.vmap(lambda image: model(image[None])[0]),
}


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("name", models.SHIPPED)
@pytest.mark.filterwarnings("error", "ignore:`torch.jit.*deprecated")
@torch.no_grad()
def test_a_shipped_model_can_be_recorded_as_a_graph(built, images, name, recorder):
    torch._dynamo.reset()
    graph = RECORDERS[recorder](built(name), images)
    torch.testing.assert_close(graph(images), built(name)(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", models.SHIPPED)
def test_a_shipped_model_gives_its_shape_without_numbers(name):
    with torch.device("meta"):
        model, x = models.SHIPPED[name]().eval(), torch.empty(4, 1, 28, 28)
    assert model(x).shape == (4, 11)


@torch.no_grad()
def test_a_shipped_model_runs_in_onnx_for_any_number_of_images(tmp_path):
    model = shipped.load_model("osr_detector")
    images = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sizes = ({0: torch.export.Dim("images")},)
    torch.onnx.export(
        model, (images[:3],), tmp_path / "model.onnx", dynamic_shapes=sizes, verbose=False
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for x in (images[:1], images):
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, model(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", models.SHIPPED)
@torch.no_grad()
def test_torchs_defaults_do_not_change_what_a_network_answers(built, images, name):
    model = built(name)
    expected = model(images), model.features(images), model.class_logits(images)
    with other_defaults():
        found = model(images), model.features(images), model.class_logits(images)
    assert all(map(torch.equal, expected, found))


# --- the vocabulary that all share ----------------------------------------------------------------

WIDTHS = {  # of the features, as the docstrings promise them
    "multitask_autoencoder": 128,
    "plain_cnn": 32 + 64 + 96,
    "osr_detector_9k": 32 + 64 + 96,
    "osr_detector": 32 + 64 + 96,
    "network_inversion": 24 + 48 + 96,
    "digit_classifier": 96,
    "garbage_classifier": 16 + 32 + 64,
    "garbage_classifier, wide": 2 + 3 + 4,
}
BUILDERS = models.SHIPPED | {
    "digit_classifier": models.DigitClassifier,
    "garbage_classifier": models.GarbageClassifier,
    "garbage_classifier, wide": lambda: models.GarbageClassifier(widths=(2, 3, 4)),
}


@pytest.fixture(scope="module")
def built():
    """Return a function that builds a network whose batch normalisation has seen images."""
    made = {}

    @torch.no_grad()
    def build(name):
        if name not in made:
            torch.manual_seed(0)
            model = BUILDERS[name]()
            for module in model.modules():
                module.momentum = None  # for batch normalisation: the mean over all that it saw
            model(torch.rand(20, 1, 28, 28))
            made[name] = model.eval()
        return made[name]

    return build


def test_every_shipped_model_has_its_vocabulary_tested():
    assert set(models.SHIPPED) <= set(WIDTHS) == set(BUILDERS)


@pytest.mark.parametrize("name", WIDTHS)
@torch.no_grad()
def test_features_and_class_logits_have_the_shapes_that_are_promised(built, images, name):
    model = built(name)
    assert model.features(images).shape == (5, WIDTHS[name])
    assert model.class_logits(images).shape == (5, 10)
    assert model(images).shape == (5, 10 if name == "digit_classifier" else 11)
    for function in (model.features, model.class_logits):
        found = function(images)
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert torch.equal(function(images), found) and found.std(0).max() > 0.01
        assert function(images[:0]).shape == (0, found.shape[1])
        torch.testing.assert_close(function(images[2:3]), found[2:3])


@pytest.mark.parametrize("name", WIDTHS)
@torch.no_grad()
def test_the_last_layer_reads_the_last_columns_of_the_features(built, images, name):
    model = built(name)
    layer, features = model.last_layer, model.features(images)
    if name == "digit_classifier":
        assert layer is None
        return
    found = layer(features[:, -layer.in_features :])[:, :10]
    torch.testing.assert_close(found, model.class_logits(images))


@pytest.mark.parametrize(
    "name", ["multitask_autoencoder", "network_inversion", "digit_classifier", "garbage_classifier"]
)
@torch.no_grad()
def test_where_no_odds_are_added_the_outputs_begin_with_the_class_logits(built, images, name):
    model = built(name)
    torch.testing.assert_close(model(images)[:, :10], model.class_logits(images))


@torch.no_grad()
def test_the_features_are_the_channel_means_of_the_stages(built, images):
    garbage, digit = built("garbage_classifier"), built("digit_classifier")
    x, means = images * 2 - 1, []
    for part in garbage.stages:
        x = part(x)
        means.append(x.flatten(2).mean(2))
    torch.testing.assert_close(garbage.features(images), torch.cat(means, 1))
    torch.testing.assert_close(garbage.penultimate(images), means[-1])
    torch.testing.assert_close(digit.features(images), digit.stages(images).flatten(2).mean(2))


@torch.no_grad()
def test_a_garbage_classifier_takes_pictures_of_another_size_in_colour():
    model = models.GarbageClassifier(channels=3, widths=(4, 5, 6)).eval()
    x = torch.rand(2, 3, 32, 32)
    assert model(x).shape == (2, 11) and model.features(x).shape == (2, 15)


@torch.no_grad()
def test_a_digit_classifier_takes_another_normalisation(images):
    model = models.DigitClassifier(norm=torch.nn.BatchNorm2d)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "BatchNorm2d" in kinds and "GroupNorm" not in kinds
    assert model(images).shape == (5, 10)


# --- MultitaskAutoencoder -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return models.MultitaskAutoencoder().eval()


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
    model = models.MultitaskAutoencoder().eval()
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
    model = models.OpenSetDetector()
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
    features = contract.predict(detector.features, digits[0]).detach().double().numpy()
    labels = digits[1].numpy()
    means = np.stack([features[labels == digit].mean(0) for digit in range(10)])
    within = EmpiricalCovariance(assume_centered=True).fit(features - means[labels]).covariance_
    return means, within + np.diag(1e-3 * np.diag(within) + 1e-8)


def test_the_detectors_parameters_are_those_of_its_layers():
    model = models.OpenSetDetector()
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
    before = state_bytes(model)
    model.fit_distance(*digits)
    changed = {name for name, content in state_bytes(model).items() if content != before[name]}
    assert changed == {"mean", "whiten"}


def test_torchs_defaults_do_not_change_the_distance(digits):
    model, other = unfitted(digits[0]), unfitted(digits[0])
    model.fit_distance(*digits)
    with other_defaults():
        other.fit_distance(*digits)
    assert state_bytes(model) == state_bytes(other)


@pytest.mark.parametrize("labels, wrong", [([7], "[7]"), ([0, 3], "[0, 3]"), ([9], "[9]")])
def test_the_distance_needs_images_of_every_digit(digits, labels, wrong):
    model = unfitted(digits[0])
    kept = ~torch.isin(digits[1], torch.tensor(labels))
    before = state_bytes(model)
    with pytest.raises(ValueError, match=f"classes {re.escape(wrong)} are missing.*of 0..9"):
        model.fit_distance(digits[0][kept], digits[1][kept])
    assert state_bytes(model) == before


def test_a_detector_whose_distance_was_fitted_and_that_was_judged_can_be_trained(digits):
    model = unfitted(digits[0])
    model.fit_distance(*digits)
    model.alpha.fill_(scores.calibrate_alpha_percentile(model, [digits], "cpu:0", 0.9))
    contract.eval_model(model, one_batch(digits[1][:50], digits[0][:50]), "cpu:0")
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    model(digits[0][:4]).sum().backward()
    assert model.head.weight.grad.isfinite().all() and model.head.weight.grad.abs().sum() > 0


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
    alpha = scores.calibrate_alpha_percentile(detector, loader, "cpu", percentile)
    with torch.no_grad():
        verdicts = contract.predict(with_alpha(detector, alpha), digits[0]).argmax(1)
    assert abs((verdicts != 10).sum() - kept) <= (percentile == 1)
