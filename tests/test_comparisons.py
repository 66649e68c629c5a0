"""Resampled AUROCs against scikit-learn, intervals against SciPy."""

import math

import numpy as np
import pytest
from scipy.stats import norm, ttest_ind
from sklearn.metrics import roc_auc_score

from helpers import row, store_rows
from osr import comparisons
from osr.results import name_of

RNG = np.random.default_rng(7)
SCORES = {
    "no ties": (RNG.normal(size=40), RNG.normal(0.7, 1, size=23)),
    "ties": (RNG.integers(4, size=40) / 2, RNG.integers(1, 6, size=23) / 2),
    "all equal": (np.ones(5), np.ones(7)),
    "apart": (np.arange(6.0), np.arange(6.0) + 10),
    "single precision": tuple(RNG.random(n).round(1).astype(np.float32) for n in (9, 30)),
    "one each": (np.array([2.0]), np.array([1.0])),
}


class Recorder:
    """A generator that remembers what it has drawn."""

    def __init__(self, seed):
        self.rng, self.drawn = np.random.Generator(np.random.PCG64(seed)), []

    def integers(self, *args, **options):
        self.drawn.append(self.rng.integers(*args, **options))
        return self.drawn[-1]


@pytest.fixture
def recorders(monkeypatch):
    """Return the list of generators that the room makes from now on."""
    made = []

    def make(seed):
        made.append(Recorder(seed))
        return made[-1]

    monkeypatch.setattr(comparisons.np.random, "default_rng", make)
    return made


@pytest.mark.parametrize("name", SCORES)
def test_resampled_aurocs_are_those_of_scikit_learn_on_the_images_drawn(name, recorders):
    known, unknown = SCORES[name]
    before = known.copy(), unknown.copy()
    found = comparisons.bootstrap_aurocs(known, unknown, 30)
    drawn = recorders[0].drawn
    assert found.shape == (30,) and len(drawn) == 60
    labels = np.repeat([0, 1], [len(known), len(unknown)])
    for auroc, a, b in zip(found, drawn[::2], drawn[1::2], strict=True):
        assert len(a) == len(known) and len(b) == len(unknown)
        expected = roc_auc_score(labels, np.concatenate([known[a], unknown[b]]))
        assert auroc == pytest.approx(expected, abs=1e-12)
    assert np.array_equal(known, before[0]) and np.array_equal(unknown, before[1])


def test_the_same_images_are_drawn_for_every_score(recorders):
    known, unknown = SCORES["no ties"]
    first = comparisons.bootstrap_aurocs(known, unknown, 20)
    np.random.seed(3)  # what happens elsewhere does not matter
    comparisons.bootstrap_aurocs(-known, unknown**2, 20)
    one, two = (recorder.drawn for recorder in recorders)
    assert len(one) == len(two) == 40
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert len({a.tobytes() for a in one}) == 40  # but others each time
    assert np.array_equal(comparisons.bootstrap_aurocs(np.exp(known), np.exp(unknown), 20), first)


def test_every_image_may_be_drawn(recorders):
    comparisons.bootstrap_aurocs(np.arange(5.0), np.arange(9.0))
    drawn = recorders[0].drawn
    assert len(drawn) == 2 * comparisons.RESAMPLES == 400
    assert set(np.concatenate(drawn[::2])) == set(range(5))
    assert set(np.concatenate(drawn[1::2])) == set(range(9))


# --- differences of designs -----------------------------------------------------------------------

OURS = np.array([0.971, 0.975, 0.969, 0.980, 0.977])
THEIRS = np.array([0.962, 0.968, 0.941])
SPREAD = RNG.normal(0.004, 0.003, size=200)


@pytest.mark.parametrize("ours, theirs", [(OURS, THEIRS), (THEIRS, OURS), (OURS[:2], OURS[3:])])
@pytest.mark.parametrize("comparisons_made", [1, 4, 10])
def test_without_luck_of_the_images_it_is_welchs_interval(ours, theirs, comparisons_made):
    difference, half = comparisons.difference_of_designs(
        ours, theirs, np.full(200, 0.25), comparisons_made
    )
    test = ttest_ind(ours, theirs, equal_var=False)
    low, high = test.confidence_interval(1 - 0.05 / comparisons_made)
    assert [difference - half, difference + half] == pytest.approx([low, high], rel=1e-6)
    if comparisons_made == 1:
        assert comparisons.difference_of_designs(ours, theirs, np.zeros(9))[1] == half


@pytest.mark.parametrize("comparisons_made", [1, 3])
def test_without_luck_of_the_seeds_it_is_a_normal_interval(comparisons_made):
    difference, half = comparisons.difference_of_designs(
        np.full(3, 0.75), np.full(2, 0.5), SPREAD, comparisons_made
    )
    deviation = math.sqrt(sum((SPREAD - SPREAD.mean()) ** 2) / 199)
    low, high = norm.interval(1 - 0.05 / comparisons_made, 0.25, deviation)
    assert [difference - half, difference + half] == pytest.approx([low, high], rel=1e-5)


def test_both_kinds_of_luck_by_hand():
    """Variances 1/2 and 3/2 of two seeds each, 2 of the draws: 1/4 + 3/4 + 2 = 3."""
    ours, theirs = np.array([0.0, 1]), np.array([0.0, 3**0.5])
    difference, half = comparisons.difference_of_designs(ours, theirs, np.array([5.0, 7]))
    freedom = 3**2 / ((1 / 4) ** 2 + (3 / 4) ** 2)  # 14.4
    assert freedom == pytest.approx(14.4)
    assert difference == pytest.approx(0.5 - 3**0.5 / 2)
    assert 2.131 < half / 3**0.5 < 2.145  # a table's t of 15 and of 14 degrees of freedom


def test_the_luck_of_the_images_stays_with_many_seeds():
    many = [np.tile(seeds, 10_000) for seeds in (OURS, THEIRS)]
    half = comparisons.difference_of_designs(*many, SPREAD)[1]
    assert half == pytest.approx(1.96 * SPREAD.std(ddof=1), rel=0.01)
    shifted = comparisons.difference_of_designs(*many, SPREAD + 1)  # only their spread counts
    assert shifted[1] == pytest.approx(half)
    assert shifted[0] == pytest.approx(OURS.mean() - THEIRS.mean())


@pytest.mark.parametrize("ours, theirs", [(OURS[:1], THEIRS), (OURS, THEIRS[:1]), ([], OURS)])
def test_one_seed_is_an_error_that_says_what_to_do(ours, theirs):
    with pytest.raises(ValueError, match="two seeds or more of each: train more"):
        comparisons.difference_of_designs(ours, theirs, SPREAD)


# --- seeds ----------------------------------------------------------------------------------------


def test_rows_of_seeds_that_were_not_computed_are_the_repositorys(repository, monkeypatch):
    kept = [row(seed=seed, value=seed / 10 + 0.5) for seed in (0, 1, 2)]
    store_rows(repository, [*kept, row(seed=1, method="msp")], "02_test")
    store_rows(repository, [row(seed=3)], "03_test")
    computed = [row(seed=0, value=0.5000001), row(seed=2, value=0.25), row(seed=5, value=0.75)]
    expected = [kept[0], computed[1], computed[2], kept[1], row(seed=1, method="msp")]
    found = comparisons.all_seeds(computed, "02_test")
    assert [one.pop("stored", False) for one in found] == [False] * 3 + [True] * 2
    assert found == expected
    assert comparisons.all_seeds(dict(enumerate(computed[2:])), "04_none") == [computed[2]]
    for name, value in (("OSR_PROFILE", "demo"), ("OSR_RETRAIN", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            found = comparisons.all_seeds(computed, "02_test")
            assert [one["seed"] for one in found] == [0, 2, 5]
            assert found[0]["value"] == pytest.approx(0.5, abs=1e-6)


def test_rows_that_only_a_retraining_computes_are_added(repository, monkeypatch, capsys):
    kept = [row(seed=seed, value=seed / 10 + 0.5) for seed in (0, 1)] + [row(method="msp")]
    store_rows(repository, kept, "02_test", config={"epochs": 2})

    def added(config, notebook="02_test"):
        mine = row(seed=0, value=0.25)
        rows = {name_of(mine): mine}
        comparisons.add_stored(rows, notebook, config)
        return [*rows.values()]

    mine, other, only = added({"epochs": 2})
    assert mine == row(seed=0, value=0.25), "what this run computed stays"
    assert other == kept[1], "another seed's, which no run without a retraining computes"
    assert only == kept[2] | {"stored": True}
    assert not capsys.readouterr().out
    assert len(added({"epochs": 3})) == 1
    assert "another configuration" in capsys.readouterr().out
    assert len(added({"epochs": 2}, "04_none")) == 1
    for name, value in (("OSR_PROFILE", "demo"), ("OSR_RETRAIN", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert len(added({"epochs": 2})) == 1
