"""Is one design better than another? Seeds of the training and draws of the test images, joined."""

import json

import numpy as np
from scipy.stats import t as student_t

from osr.paths import profile, retraining, seeds
from osr.results import as_stored, name_of, read_file, stored_path, stored_rows

RESAMPLES = 200


def bootstrap_aurocs(known, unknown, resamples=RESAMPLES):
    """Return the AUROC of resampled images; the same images are drawn for every score.

    Parameters
    ----------
    known, unknown : float array, (N,) and (M,)
        Scores, higher for what is more likely unknown.
    resamples : int

    Returns
    -------
    float array, (resamples,)
    """
    rng, aurocs = np.random.default_rng(0), []
    ranks = known.argsort().argsort()  # the place of each known image among the sorted
    below, upto = (np.searchsorted(np.sort(known), unknown, side) for side in ("left", "right"))
    for _ in range(resamples):
        drawn, drawn_unknown = (rng.integers(0, len(s), len(s)) for s in (known, unknown))
        cheaper = np.bincount(ranks[drawn] + 1, minlength=len(known) + 1).cumsum()
        wins = (cheaper[below] + cheaper[upto]) / 2  # known images that each unknown one exceeds
        aurocs.append(wins[drawn_unknown].mean() / len(known))
    return np.array(aurocs)


def difference_of_designs(ours, theirs, draws, comparisons=1):
    """Return the mean difference of two designs, and half the width of its 95 % interval.

    Two kinds of luck are joined. That of the training: Welch's variance of a difference of means
    over seeds. That of the test images, which are the same for every seed, so more seeds do not
    lessen it: the variance of the difference over resampled images. The sum of both has the degrees
    of freedom of Welch and Satterthwaite, the part of the images counting as known exactly.

    Parameters
    ----------
    ours, theirs : float array
        One AUROC a seed, at least two each.
    draws : float array
        Differences of one seed's AUROC over resampled images (see `bootstrap_aurocs`).
    comparisons : int
        How many are made: 95 % hold for all of them together (Bonferroni).

    Raises
    ------
    ValueError
        If a design has fewer than two seeds.
    """
    if min(len(ours), len(theirs)) < 2:
        raise ValueError("a difference of designs needs two seeds or more of each: train more")
    parts = np.array([np.var(a, ddof=1) / len(a) for a in (ours, theirs)])
    counts = np.array([len(ours) - 1, len(theirs) - 1])
    variance = parts.sum() + np.var(draws, ddof=1)
    freedom = variance**2 / max((parts**2 / counts).sum(), 1e-30)
    half = student_t.ppf(1 - 0.025 / comparisons, freedom) * variance**0.5
    return np.mean(ours) - np.mean(theirs), half


def all_seeds(rows, notebook):
    """Return a notebook's rows as they are stored, then the repository's rows of other seeds.

    A demo and a retraining know their own alone.
    """
    own = as_stored(rows)
    if profile() == "demo" or retraining():
        return own
    computed = {row["seed"] for row in own}
    return own + [row for row in stored_rows(notebook) if row["seed"] not in computed]


def add_stored(rows, notebook, config):
    """Add the repository's rows that only a retraining computes to the rows of this run.

    Those of this run's seeds are marked as "stored". A demo and a retraining know their own alone;
    rows of another configuration are left out, which is said.
    """
    path = stored_path(notebook)
    if profile() == "demo" or retraining() or not path.is_file():
        return
    stored = read_file(path)
    if stored["config"] != json.loads(json.dumps(config)):
        print("what only a retraining computes is left out: it belongs to another configuration")
        return
    own = seeds()
    for row in stored["rows"]:
        mark = {"stored": True} if row["seed"] in own else {}
        rows.setdefault(name_of(row), row | mark)
