"""How well a score separates known from unknown."""

import numpy as np
import torch


def ood_metrics(id_scores, ood_scores):
    """Compare the OOD scores of known and unknown samples; exact with ties.

    Parameters
    ----------
    id_scores, ood_scores : array or tensor of finite numbers, (N,) or (N, 1)
        Higher = more OOD.

    Returns
    -------
    dict of str to float
        ``auroc``; ``aupr_in`` and ``aupr_out``, the average precision with the known (score
        negated) or the unknown as the positive class, summed as in scikit-learn's
        ``average_precision_score``; ``fpr95``, the share of known samples flagged at the first
        threshold that flags at least 95 % of the unknown ones.

    Raises
    ------
    ValueError
        If a side is empty, not finite, of another shape or of no real numbers.
    """
    sides = []
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if isinstance(scores, torch.Tensor):
            scores = scores.detach().cpu()
            scores = (scores if scores.is_complex() else scores.double()).numpy()
        scores = np.asarray(scores)
        column = scores.ndim == 1 or scores.shape[1:] == (1,)
        if not column or scores.dtype.kind not in "biuf":
            raise ValueError(
                f"{name} are {scores.dtype} {scores.shape}: give one real number a sample, (N,), "
                "such as ood_score(logits)"
            )
        scores = scores.astype(np.float64).ravel()
        if not scores.size or not np.isfinite(scores).all():
            what = "is empty" if not scores.size else "holds NaN or infinite values"
            raise ValueError(f"{name} {what}: give at least one finite score a side")
        sides.append(np.sort(scores)[::-1])
    known, unknown = sides
    # After merging, ends marks the last sample of each group of equal scores, highest first.
    scores = np.concatenate(sides)
    order = np.argsort(-scores, kind="stable")  # two sorted runs: a merge
    ends = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    hits = np.cumsum(order >= known.size)[ends]  # unknown samples flagged at each threshold
    alarms = ends + 1 - hits  # known samples flagged
    n_id, n_ood = known.size, unknown.size
    new_hits, new_alarms = np.diff(hits, prepend=0), np.diff(alarms, prepend=0)
    area = np.dot(new_alarms.astype(float), hits - new_hits / 2)
    kept, missed = n_id - alarms + new_alarms, n_ood - hits + new_hits  # from the low end
    return {
        "auroc": float(area / n_id / n_ood),
        "aupr_in": float(np.dot(new_alarms / n_id, kept / (kept + missed))),
        "aupr_out": float(np.dot(new_hits / n_ood, hits / (hits + alarms))),
        "fpr95": float(alarms[np.searchsorted(hits / n_ood, 0.95)] / n_id),
    }
