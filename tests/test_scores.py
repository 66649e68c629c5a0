"""OOD scores against SciPy and plain formulas; alpha by hand."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from torch import nn

from helpers import other_defaults
from osr import models, scores
from osr.scores import calibrate_alpha_percentile

# --- of outputs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logits():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(50, 11)) * 4)


def test_scores_of_outputs_agree_with_scipy(logits):
    for k in (10, 11):
        z = logits[:, :k].numpy()
        p = softmax(z, 1)
        y, u = np.eye(k)[p.argmax(1)], 1 / k
        for score, expected in (
            (scores.msp, -p.max(1)),
            (scores.max_logit, -z.max(1)),
            (scores.energy, -logsumexp(z, 1)),
            (
                scores.uncertainty_estimate,
                1 - ((p - u) ** 2).sum(1) / ((y - u) ** 2).sum(1),
            ),
        ):
            np.testing.assert_allclose(score(logits[:, :k]), expected, rtol=1e-12, atol=1e-12)
    p = softmax(logits.numpy(), 1)
    np.testing.assert_allclose(scores.garbage_probability(logits), p[:, 10], rtol=1e-12)


def test_the_uncertainty_estimate_is_1_where_all_are_equal_and_0_where_one_has_all():
    equal, sure = torch.full((1, 10), 3.0), 1000 * torch.eye(10)[:1]
    assert scores.uncertainty_estimate(equal).item() == pytest.approx(1)
    assert scores.uncertainty_estimate(sure).item() == pytest.approx(0, abs=1e-6)


def test_every_score_of_the_outputs_is_there_and_higher_for_the_unlike(logits):
    found = scores.output_scores(logits.float())
    assert list(found) == list(scores.OUTPUT_SCORES)
    for name, score in found.items():
        outputs, function = scores.OUTPUT_SCORES[name]
        assert score.shape == (50,) and score.dtype == torch.float64
        assert torch.equal(score, function(logits.float().double()[:, :outputs]))
    known, unknown = 10 * torch.eye(11)[3:4], torch.zeros(1, 11)
    unknown[0, 10] = 5
    pairs = zip(*(scores.output_scores(x).values() for x in (known, unknown)), strict=True)
    higher = [name for name, (a, b) in zip(found, pairs, strict=True) if b > a]
    assert higher == list(found)


def test_what_needs_eleven_outputs_is_left_out_for_ten(logits):
    ten, eleven = (scores.output_scores(logits[:, :k]) for k in (10, 11))
    assert set(ten) >= {"msp", "max_logit", "energy", "ue_k"}
    assert set(eleven) - set(ten) >= {"ue_k1", "garbage_probability", "garbage_margin"}
    assert all(torch.equal(ten[name], eleven[name]) for name in ten)


@pytest.mark.parametrize(
    "logits, found",
    [
        (torch.zeros(3, 9), r"torch.float32 \(3, 9\)"),
        (torch.zeros(3, 12), r"torch.float32 \(3, 12\)"),
        (torch.zeros(11), r"torch.float32 \(11,\)"),
        (torch.zeros(3, 11, 1), r"torch.float32 \(3, 11, 1\)"),
        (torch.zeros(3, 11, dtype=torch.complex64), r"torch.complex64 \(3, 11\)"),
    ],
)
def test_logits_of_other_widths_and_complex_ones_are_refused(logits, found):
    with pytest.raises(ValueError, match=rf"expected real \(N, 10\) or \(N, 11\) .*found {found}"):
        scores.output_scores(logits)


# --- of features ----------------------------------------------------------------------------------


def test_sums_measure_each_part_in_deviations_of_the_validation_images():
    rng = np.random.default_rng(0)
    found = {
        name: {key: torch.tensor(rng.normal(3, 7, n)) for key in ("energy", "mahalanobis", "knn")}
        for name, n in (("validation", 20), ("x", 5))
    }
    expected = 0
    for key in ("energy", "mahalanobis"):
        known = found["validation"][key].numpy()
        expected += (found["x"][key].numpy() - known.mean()) / known.std(ddof=1)
    scores.add_sums(found)
    assert found["x"]["energy+mahalanobis"].numpy() == pytest.approx(expected)
    assert "garbage_margin+knn" not in found["x"]  # a network of ten outputs has no garbage


def test_sums_with_the_garbage_margin_by_hand():
    found = {
        "validation": {"garbage_margin": torch.tensor([0.0, 2.0, 4.0])},
        "x": {"garbage_margin": torch.tensor([6.0])},
    }
    for values in found.values():
        for other in ("mahalanobis", "knn", "vim", "energy"):
            values[other] = 10 * values["garbage_margin"]
    scores.add_sums(found)
    assert found["x"]["garbage_margin+knn"].item() == pytest.approx(2 * (6 - 2) / 2)


class Distance:
    """A detector that a student might add: the distance to the mean of all features."""

    def fit_features(self, features, labels):
        self.mean, self.seen = features.mean(0), len(labels)
        return self

    def predict_features(self, features):
        return (features - self.mean).norm(dim=1)


@pytest.fixture(scope="module")
def known():
    labels = torch.arange(60) % 10
    x = torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0)) / 4
    x[torch.arange(60), 0, 2 * labels + 4] += 0.5
    return x, labels


@torch.no_grad()
def scores_of(model, known):
    for module in model.modules():
        module.momentum = None  # for batch normalisation: the mean over all that it saw
    model(known[0])
    model.eval()
    inputs = {"known": known[0][:7], "far": 1 - known[0][:5]}
    outputs = {name: model(x) for name, x in inputs.items()}
    return scores.all_scores(model, outputs, known, inputs), inputs


def test_every_score_of_a_network_is_there_for_every_set(known):
    torch.manual_seed(0)
    found, inputs = scores_of(models.GarbageClassifier(widths=(2, 3, 4)), known)
    assert list(found) == ["known", "far"]
    for name, x in inputs.items():
        assert list(found[name]) == [*scores.OUTPUT_SCORES, *scores.FEATURE_DETECTORS]
        assert all(s.shape == (len(x),) and s.isfinite().all() for s in found[name].values())
    for name in scores.FEATURE_DETECTORS:  # higher for what is far
        assert found["far"][name].mean() > found["known"][name].mean()


def test_a_network_of_ten_outputs_without_a_last_layer_has_the_others(known):
    torch.manual_seed(0)
    found, _ = scores_of(models.DigitClassifier(), known)
    ten = [name for name, (outputs, _) in scores.OUTPUT_SCORES.items() if outputs == 10]
    detectors = [name for name in scores.FEATURE_DETECTORS if name != "vim"]
    assert list(found["far"]) == [*ten, *detectors]


def test_a_score_that_is_added_to_a_registry_is_there_everywhere(known, logits, monkeypatch):
    monkeypatch.setitem(scores.OUTPUT_SCORES, "spread", (10, lambda z: -z.std(1)))
    monkeypatch.setitem(scores.OUTPUT_SCORES, "eleventh", (11, lambda z: z[:, 10]))
    built = []

    def build(features, layer):
        built.append((features.shape, layer))
        return Distance()

    monkeypatch.setitem(scores.FEATURE_DETECTORS, "distance", build)
    monkeypatch.setitem(scores.FEATURE_DETECTORS, "cannot", lambda features, layer: None)
    for name in ("mahalanobis", "rmd", "knn", "vim"):
        monkeypatch.delitem(scores.FEATURE_DETECTORS, name)
    assert torch.equal(scores.output_scores(logits)["eleventh"], logits[:, 10])
    ten = scores.output_scores(logits[:, :10])
    assert torch.equal(ten["spread"], -logits[:, :10].std(1)) and "eleventh" not in ten
    model = models.GarbageClassifier(widths=(2, 3, 4))
    found, inputs = scores_of(model, known)
    assert built == [((60, 9), model.head)]
    for name, x in inputs.items():
        assert {"spread", "eleventh", "distance"} <= set(found[name]) and "cannot" not in found[
            name
        ]
        with torch.no_grad():
            features, memory = model.features(x), model.features(known[0])
        torch.testing.assert_close(
            found[name]["distance"], (features - memory.mean(0)).norm(dim=1), rtol=1e-4, atol=1e-5
        )
    found, _ = scores_of(models.DigitClassifier(), known)
    assert "spread" in found["far"] and "distance" in found["far"]
    assert "eleventh" not in found["far"]
    assert built[1:] == [((60, 96), None)]


def test_vim_is_given_the_logits_of_the_ten_digits(known):
    torch.manual_seed(0)
    model = models.GarbageClassifier(widths=(2, 3, 4))
    with torch.no_grad():
        model(known[0])
        model.eval()
        features, expected = model.features(known[0]), model.class_logits(known[0])
    detector = scores.FEATURE_DETECTORS["vim"](features, model.last_layer)
    weight, bias = (torch.as_tensor(part) for part in (detector.w, detector.b))
    assert weight.shape == (10, 9) and bias.shape == (10,)
    torch.testing.assert_close((features @ weight.T + bias).float(), expected)


def test_vim_agrees_with_the_paper(known):
    """Half of the dimensions are principal; the layer reads the last columns of the features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 9)) * [5, 4, 3, 2, 1, 0.5, 1, 2, 3] + 1
    seen = rng.normal(size=(20, 9)) * 3
    layer = nn.Linear(4, 11)
    labels = torch.arange(200) % 10
    detectors = scores.fit_detectors(torch.tensor(features).float(), labels, layer)
    weight = np.concatenate([np.zeros((10, 5)), layer.weight[:10].detach().numpy()], 1)
    bias = layer.bias[:10].detach().numpy().astype(float)
    origin = -np.linalg.lstsq(weight, bias)[0]
    axes = np.linalg.svd(features - origin)[2]  # of falling variance

    def residual(x):
        return np.linalg.norm((x - origin) @ axes[4:].T, axis=1)

    scale = (features @ weight.T + bias).max(1).mean() / residual(features).mean()
    expected = scale * residual(seen) - logsumexp(seen @ weight.T + bias, 1)
    found = detectors["vim"].predict_features(torch.tensor(seen).float())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("missing", [0, 4])
def test_detectors_need_features_of_every_class(missing):
    labels = torch.arange(60) % 10
    kept = labels != missing
    with pytest.raises(ValueError, match=rf"classes \[{missing}\] are missing .*of 0..9"):
        scores.fit_detectors(torch.rand(60, 4)[kept], labels[kept])
    assert set(scores.fit_detectors(torch.rand(60, 4)[labels < 9], labels[labels < 9])) >= {"knn"}


def test_torchs_defaults_do_not_change_the_scores(known):
    torch.manual_seed(0)
    model = models.GarbageClassifier(widths=(2, 3, 4))
    expected, inputs = scores_of(model, known)
    with torch.no_grad():
        outputs = {name: model(x) for name, x in inputs.items()}
    alpha = calibrate_alpha_percentile(Fixed(), FIVE, "cpu", 0.6)
    with other_defaults():
        found = scores.all_scores(model, outputs, known, inputs)
        assert calibrate_alpha_percentile(Fixed(), FIVE, "cpu", 0.6) == alpha
    for name, values in expected.items():
        assert all(torch.equal(found[name][key], value) for key, value in values.items())


# --- alpha ----------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Read the largest logit and the error of an image from the image itself."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()
        self.modes = []

    def logits_and_error(self, x):
        self.modes += [self.training, self.dropout.training]
        logits = (x[:, :1] - 1).repeat(1, 10)
        logits[:, 6] = x[:, 0]
        return logits, x[:, 1]


def loader_of(largest, error, batch_size=3):
    pairs = torch.stack([torch.tensor(largest), torch.tensor(error)], 1)
    return [(part, torch.zeros(len(part))) for part in pairs.split(batch_size)]


FIVE = loader_of([5.0, 1.0, 3.0, 2.0, 4.0], [0.5] * 5)  # r = 2, 4, 6, 8, 10


@pytest.mark.parametrize(
    "percentile, alpha",
    [(1, 2), (0, 10), (0.75, 4), (0.5, 6), (0.6, 5.2), (0.9, 2.8)],
)  # 0.6 keeps r above the 0.4 quantile: place 1.6 of 0..4, so 4 + 0.6 * 2
def test_alpha_by_hand(percentile, alpha):
    found = calibrate_alpha_percentile(Fixed(), FIVE, "cpu", percentile)
    assert type(found) is float and found == pytest.approx(alpha, rel=1e-12)


def test_alpha_of_one_image_is_its_ratio():
    assert calibrate_alpha_percentile(Fixed(), loader_of([3.0], [0.25]), "cpu", 0.3) == 12


@pytest.mark.parametrize("error", [0.0, 1e-20])
def test_a_perfect_reconstruction_counts_as_1e_12(error):
    found = calibrate_alpha_percentile(Fixed(), loader_of([2.0], [error]), "cpu", 0.5)
    assert found == pytest.approx(2e12, rel=1e-6)


@pytest.mark.parametrize("percentile", [0, 0.01, 0.3, 0.5, 0.75, 0.959, 0.99, 1])
@pytest.mark.parametrize("n", [2, 10, 97])
def test_the_share_kept_is_the_percentile(percentile, n):
    generator = torch.Generator().manual_seed(n)
    largest, error = torch.rand(2, n, generator=generator) + 0.1
    loader = loader_of(largest.tolist(), error.tolist(), batch_size=8)
    alpha = calibrate_alpha_percentile(Fixed(), loader, "cpu", percentile)
    kept = (alpha <= (largest / error).double()).double().mean()  # unknown iff alpha > r
    assert abs(kept - percentile) <= 1 / n + 1e-9


@pytest.mark.parametrize("percentile", [-0.01, 1.01, 75, math.nan])
def test_a_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(ValueError, match=f"percentile is {percentile}: .*0..1"):
        calibrate_alpha_percentile(Fixed(), FIVE, "cpu", percentile)


def test_calibration_without_images_is_refused():
    with pytest.raises(ValueError, match="calibration loader is empty"):
        calibrate_alpha_percentile(Fixed(), [], "cpu", 0.5)


@pytest.mark.parametrize(
    "change", [lambda x: x, lambda x: [x], lambda x: (x, None, 3)], ids=["images", "list", "tuple"]
)
def test_a_batch_is_the_images_or_begins_with_them(change):
    largest, error = torch.tensor([5.0, 1, 3, 2, 4]), torch.full((5,), 0.5)
    images = torch.stack([largest, error], 1)
    found = calibrate_alpha_percentile(Fixed(), [*map(change, images.split(2))], "cpu", 0.5)
    assert found == pytest.approx(6)


@pytest.mark.parametrize("batch, kind", [({"image": 1}, "dict"), ([np.zeros((2, 2))], "ndarray")])
def test_a_batch_without_images_is_refused(batch, kind):
    with pytest.raises(ValueError, match=f"images are a {kind}, not a tensor"):
        calibrate_alpha_percentile(Fixed(), [batch], "cpu", 0.5)


@pytest.mark.parametrize("logits, error", [((3, 10), (3, 1)), ((3, 11), (3,)), ((2, 10), (2,))])
def test_logits_and_errors_of_other_shapes_are_refused(logits, error):
    model = Fixed()
    model.logits_and_error = lambda x: (torch.ones(logits), torch.ones(error))
    found = f"gives {[logits, error]}: return (3, 10) and (3,)"
    with pytest.raises(ValueError, match=re.escape(found)):
        calibrate_alpha_percentile(model, [torch.zeros(3, 2)], "cpu", 0.5)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy interpolates between infinities
def test_an_alpha_that_is_no_positive_number_is_refused(value):
    loader = loader_of([value] * 4 + [1.0], [0.5] * 5)
    with pytest.raises(ValueError, match="alpha is .* at percentile 0.75"):
        calibrate_alpha_percentile(Fixed(), loader, "cpu", 0.75)


@pytest.mark.parametrize("training", [True, False])
def test_calibration_runs_in_eval_mode_and_restores_the_modes(training):
    model = Fixed().train(training)
    model.dropout.train(not training)
    calibrate_alpha_percentile(model, FIVE, "cpu", 0.5)
    assert not any(model.modes)
    assert (model.training, model.dropout.training) == (training, not training)


def test_calibration_restores_the_modes_after_an_error():
    model = Fixed().train()
    with pytest.raises(IndexError):
        calibrate_alpha_percentile(model, [(torch.zeros(3),)], "cpu", 0.5)
    assert model.training and model.dropout.training
