"""Reconstruction costs by loops and by hand, against SciPy; sums of costs worked by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy, gmean, zscore
from torch import nn

from helpers import other_defaults
from osr import costs


@pytest.fixture(scope="module")
def pair():
    x, r = torch.rand(2, 3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return x.double(), (x.double() + r) / 2


def by_loop(cost, pair):
    return [cost(a, b) for a, b in zip(*(part[:, 0].numpy() for part in pair), strict=True)]


def ssim_of_windows(x, r):
    found = []
    for i in range(22):
        for j in range(22):
            a, b = x[i : i + 7, j : j + 7], r[i : i + 7, j : j + 7]
            cov = ((a - a.mean()) * (b - b.mean())).mean()
            means = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
            found.append(means * (2 * cov + 9e-4) / (a.var() + b.var() + 9e-4))
    return 1 - np.mean(found)


def outline_by_steps(x, _=None):
    right = [(x[i, j + 1] - x[i, j]) ** 2 for i in range(28) for j in range(27)]
    down = [(x[i + 1, j] - x[i, j]) ** 2 for i in range(27) for j in range(28)]
    return (np.mean(right) + np.mean(down)) / 2


PIXELS = [(i, j) for i in range(28) for j in range(28)]
LOOPS = {
    "mse": lambda x, r: np.mean([(x[p] - r[p]) ** 2 for p in PIXELS]),
    "mae": lambda x, r: np.mean([abs(x[p] - r[p]) for p in PIXELS]),
    "ssim": ssim_of_windows,
    "detail": lambda x, r: np.mean([(x[p] - r[p]) ** 2 for p in PIXELS]) / outline_by_steps(x),
}


@pytest.mark.parametrize("name", costs.PIXEL_COSTS)
def test_costs_of_pixels_agree_with_loops(pair, name):
    expected = by_loop(LOOPS[name], pair)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        found = costs.PIXEL_COSTS[name](*(part.to(dtype) for part in pair))
        assert found.shape == (3,) and found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_the_outline_agrees_with_a_loop_and_is_never_0(pair):
    np.testing.assert_allclose(costs.outline(pair[0]), by_loop(outline_by_steps, pair), rtol=1e-12)
    assert costs.outline(torch.ones(2, 1, 28, 28)).tolist() == pytest.approx([1e-4] * 2)


def test_detail_of_a_bar_by_hand():
    bar, black = torch.zeros(2, 1, 1, 28, 28)
    bar[..., 10:18] = 1
    for x in (bar, bar.mT):  # two of the 27 steps to the right, or down, are steps of 1
        assert costs.outline(x).item() == pytest.approx((2 / 27) / 2)
        assert costs.detail(x, black).item() == pytest.approx((8 / 28) / ((2 / 27) / 2))
    assert costs.detail(black, bar).item() == pytest.approx((8 / 28) / 1e-4)


def test_semantic_agrees_with_scipy():
    z, other = torch.randn(2, 20, 10, generator=torch.Generator().manual_seed(0)).double() * 4
    expected = entropy(z.softmax(1), other.softmax(1), axis=1)  # with two: Kullback-Leibler
    np.testing.assert_allclose(costs.semantic(z, other), expected, rtol=1e-9)
    assert costs.semantic(z, z + 3).abs().max() < 1e-12


# --- of a network ---------------------------------------------------------------------------------

MASK = np.random.default_rng(1).random((28, 28)).astype(np.float32)
SHIFTS = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]  # down, up, right, left


class Masked(nn.Module):
    """Draw a picture through a mask that stays where it is: every look costs something else."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.from_numpy(MASK))
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return x * self.mask


def pixels(x):
    """Stand in for a classifier: read ten logits from ten pixels."""
    return 6 * x[:, 0, 3:13, 5]


class Conditional:
    def encode(self, x):
        return x, pixels(x)


@pytest.fixture(scope="module")
def images():
    return torch.rand(253, 1, 28, 28, generator=torch.Generator().manual_seed(2))  # two batches


def looks_of(images, looks):
    return [np.roll(images.numpy()[:, 0], shift, (1, 2)) for shift in SHIFTS[:looks]]


@pytest.mark.parametrize("looks", range(1, 6))
def test_reconstruction_costs_are_geometric_means_over_the_looks(images, looks):
    model, names = Masked(), ["semantic", "mae", "mse"]
    found = costs.reconstruction_costs(model, images, names, looks, pixels)
    assert list(found) == names and model.seen == [250] * looks + [3] * looks
    assert all(v.shape == (253,) and v.dtype == np.float64 for v in found.values())
    seen = np.array(looks_of(images, looks), float)
    errors, z = seen - seen * MASK, 6 * seen[:, :, 3:13, 5]
    other = 6 * (seen * MASK)[:, :, 3:13, 5]
    expected = {
        "mse": (errors**2).mean((2, 3)),
        "mae": np.abs(errors).mean((2, 3)),
        "semantic": entropy(np.exp(z), np.exp(other), axis=2),
    }
    for name in names:
        np.testing.assert_allclose(found[name], gmean(expected[name]), rtol=1e-4, err_msg=name)


def test_a_cost_of_0_counts_as_a_millionth(images):
    found = costs.reconstruction_costs(nn.Identity(), images[:4], ["mse", "detail"], 5)
    assert [*found["mse"], *found["detail"]] == pytest.approx([1e-6] * 8)


@pytest.mark.parametrize("network", [pixels, Conditional()])
@pytest.mark.parametrize("looks", [1, 5])
def test_max_logits_are_minus_the_largest_the_mean_over_the_looks(images, network, looks):
    found = costs.max_logits(network, images, looks)
    expected = np.mean([-6 * seen[:, 3:13, 5].max(1) for seen in looks_of(images, looks)], 0)
    assert found.shape == (253,) and found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_torchs_defaults_do_not_change_the_costs(images):
    def call():
        found = costs.reconstruction_costs(masked, images[:6], names, 2, pixels)
        return [*found.values(), costs.max_logits(pixels, images[:6], 2)]

    masked, names = Masked(), [*costs.PIXEL_COSTS, "semantic"]
    expected = call()
    with other_defaults():
        np.testing.assert_array_equal(call(), expected)


# --- sums of costs --------------------------------------------------------------------------------


def test_standardise_by_hand():
    parts = {"calibration": np.exp([1.0, 3, 9]), "test": np.array([np.exp(4.0), 0])}
    found = costs.standardise(parts, [0, 1])  # mean 2, deviation 1 of the logarithms
    assert found["calibration"] == pytest.approx([-1, 1, 7])
    assert found["test"] == pytest.approx([2, np.log(1e-6) - 2])
    assert parts["test"][1] == 0
    plain = costs.standardise({"calibration": np.array([-4.0, -2]), "test": np.ones(1)}, log=False)
    assert plain["calibration"] == pytest.approx([-1, 1]) and plain["test"] == pytest.approx([4])


# Ten pictures are taken for a 3, their logarithms 0 and 2 (mean 1, deviation 1); nine for a 7.
TAKEN = {"calibration": np.repeat([3, 7], [10, 9]), "test": np.array([3, 7, 5])}
LOGS = {"calibration": np.array([0.0, 2] * 5 + [4.0] * 9), "test": np.array([3.0, 3, 3])}
OTHER = {"calibration": np.array([1.0, 7] * 5 + [-2.0] * 9), "test": np.array([10.0, 5, 5])}


@pytest.mark.parametrize("log", [True, False])
def test_a_class_of_too_few_calibration_images_is_standardised_by_all(log):
    parts = {part: np.exp(values) if log else values for part, values in LOGS.items()}
    every = (3 - 46 / 19) / ((10 + 10 * (46 / 19 - 1) ** 2 + 9 * (4 - 46 / 19) ** 2) / 19) ** 0.5
    found = costs.standardise_by_class(parts, TAKEN, log=log)
    assert found["test"] == pytest.approx([2, every, every])
    assert found["calibration"][:10] == pytest.approx([-1, 1] * 5)
    assert found["calibration"][10:] == pytest.approx(zscore(LOGS["calibration"])[10:])


@pytest.mark.parametrize("chosen", [np.r_[2:30], np.arange(40) % 4 < 2], ids=["places", "mask"])
def test_only_the_chosen_images_count_in_each_class(chosen):
    rng = np.random.default_rng(0)
    digit = {"calibration": np.arange(40) % 2, "test": np.arange(6) % 2}
    parts = {part: rng.random(len(values)) + 0.1 for part, values in digit.items()}
    found = costs.standardise_by_class(parts, digit, chosen)
    kept = np.zeros(40, bool)
    kept[chosen] = True
    for part, values in parts.items():
        for k, value in enumerate(values):
            own = digit["calibration"] == digit[part][k]
            own = np.log(parts["calibration"][own & kept])
            expected = (np.log(value) - own.mean()) / own.std()
            assert found[part][k] == pytest.approx(expected)


def test_combine_by_hand():
    logits = {"calibration": -np.array([1.0, 3] * 5 + [2.0] * 9), "test": -np.array([4.0, 2, 2])}
    costs_of = {"max_logit": logits, "digit": TAKEN}
    costs_of["a"] = {part: np.exp(values) for part, values in LOGS.items()}
    costs_of["b"] = {part: np.exp(values) for part, values in OTHER.items()}
    a = (3 - LOGS["calibration"].mean()) / LOGS["calibration"].std()
    b = (5 - OTHER["calibration"].mean()) / OTHER["calibration"].std()
    z = -np.array([2, 0, 0]) / (10 / 19) ** 0.5  # logits as they are: mean -2
    for names, expected in (
        ("a", [a, a, a]),
        ("a|class", [2, a, a]),
        ("max_logit", z),
        ("max_logit|class", [-2, 0, 0]),
        ("a + max_logit", (a + z) / 2),
        ("a + a|class", [(a + 2) / 2, a, a]),
        ("a|class + max_logit|class + a", [(2 - 2 + a) / 3, 2 * a / 3, 2 * a / 3]),
        ("b|class + a|class", [(2 + 2) / 2, (b + a) / 2, (b + a) / 2]),
    ):
        assert costs.combine(costs_of, names)["test"] == pytest.approx(expected), names
    every = costs.combine(costs_of, "a")["calibration"]
    assert every == pytest.approx(zscore(LOGS["calibration"]))
    some = costs.combine(costs_of, "a + max_logit", chosen=[0, 1])  # means 1, -2; deviations 1, 1
    assert some["test"] == pytest.approx([0, 1, 1])
