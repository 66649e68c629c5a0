"""ood_metrics against scikit-learn, pytorch-ood and plain loops."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytorch_ood.metrics import OODMetrics
from sklearn.metrics import average_precision_score, roc_auc_score

from helpers import other_defaults
from osr.metrics import ood_metrics


def arrays(elements, sizes):
    return st.one_of(*(st.lists(elements, min_size=a, max_size=b) for a, b in sizes)).map(
        lambda values: np.array(values, dtype=float)
    )


SIZES = [(1, 1), (1, 30), (20, 20), (100, 100)]  # 95 % of 20 and of 100 are whole numbers


SIDES = st.one_of(
    st.tuples(*[arrays(st.integers(0, 4), SIZES)] * 2),  # heavy ties
    st.tuples(*[arrays(st.floats(-1e9, 1e9), SIZES[:2])] * 2),
)


properties = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@properties
@given(SIDES)
@example((np.array([0.0]), np.array([-0.0])))
def test_metrics_agree_with_scikit_learn(sides):
    known, unknown = sides
    found = ood_metrics(known, unknown)
    is_ood = np.repeat([0, 1], [len(known), len(unknown)])
    scores = np.concatenate(sides)
    assert found["auroc"] == pytest.approx(roc_auc_score(is_ood, scores), abs=1e-9)
    out = average_precision_score(is_ood, scores)
    into = average_precision_score(1 - is_ood, -scores)
    assert found["aupr_out"] == pytest.approx(out, abs=1e-9)
    assert found["aupr_in"] == pytest.approx(into, abs=1e-9)


@properties
@given(SIDES)
@pytest.mark.filterwarnings("ignore:AUTC is undefined")  # a metric that is not compared here
def test_metrics_agree_with_pytorch_ood(sides):
    known, unknown = map(torch.tensor, sides)
    labels = torch.cat([torch.zeros(len(known)), -torch.ones(len(unknown))]).long()
    expected = OODMetrics().update(torch.cat([known, unknown]), labels).compute()
    found = ood_metrics(known, unknown)
    assert found["auroc"] == pytest.approx(expected["AUROC"], abs=1e-9)
    assert found["fpr95"] == pytest.approx(expected["FPR95TPR"], abs=1e-9)


@properties
@given(SIDES)
def test_metrics_agree_with_plain_loops(sides):
    known, unknown = (side.tolist() for side in sides)
    wins = sum((u > k) + (u == k) / 2 for u in unknown for k in known)
    for threshold in sorted(unknown, reverse=True):
        flagged = sum(u >= threshold for u in unknown)
        if 20 * flagged >= 19 * len(unknown):  # at least 95 %, without rounding
            break
    false_alarms = sum(k >= threshold for k in known)
    found = ood_metrics(*sides)
    assert found["auroc"] == pytest.approx(wins / len(known) / len(unknown), abs=1e-12)
    assert found["fpr95"] == pytest.approx(false_alarms / len(known), abs=1e-12)


@properties
@given(SIDES)
def test_mirrored_scores_swap_the_roles(sides):
    known, unknown = sides
    found, mirrored = ood_metrics(known, unknown), ood_metrics(-unknown, -known)
    assert found["auroc"] == pytest.approx(mirrored["auroc"], abs=1e-12)
    assert found["aupr_in"] == pytest.approx(mirrored["aupr_out"], abs=1e-12)
    assert ood_metrics(unknown, known)["auroc"] == pytest.approx(1 - found["auroc"], abs=1e-12)


def test_metrics_by_hand():
    # 3 beats 1 and 2 and ties with 3, 5 beats all four: 6.5 of 8 pairs. Unknown precision is 1
    # at the 5 and 2/4 at the 3; known precision 1, 1, 3/4, 4/5 at 1, 2, 3, 4. To flag both
    # unknown samples the threshold must fall to 3, where 3 and 4 of the known are flagged.
    assert ood_metrics(np.array([1, 2, 3, 4]), np.array([3, 5])) == pytest.approx({
        "auroc": 6.5 / 8,
        "aupr_in": (1 + 1 + 3 / 4 + 4 / 5) / 4,
        "aupr_out": (1 + 1 / 2) / 2,
        "fpr95": 2 / 4,
    })  # fmt: skip


@pytest.mark.parametrize(
    "known, unknown, expected",
    [
        ([0, 1], [2, 3, 4], (1, 1, 1, 0)),
        ([2, 3], [0, 1], (0, (1 / 3 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2, 1)),
        ([5], [5], (0.5, 0.5, 0.5, 1)),
        ([5, 5, 5], [5], (0.5, 0.75, 0.25, 1)),
    ],
)
def test_metrics_at_the_extremes(known, unknown, expected):
    found = ood_metrics(np.array(known), np.array(unknown))
    assert list(found) == ["auroc", "aupr_in", "aupr_out", "fpr95"]
    assert tuple(found.values()) == pytest.approx(expected)
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("missed, expected", [(0, 0), (1, 0), (2, 1)])
def test_fpr95_may_miss_one_of_twenty(missed, expected):
    unknown = np.array([2.0] * (20 - missed) + [0.0] * missed)
    assert ood_metrics(np.array([1.0]), unknown)["fpr95"] == expected


CONTAINERS = {
    "tensor": torch.tensor,
    "tensor with gradient": lambda x: torch.tensor(x, requires_grad=True),
    "column": lambda x: torch.tensor(x)[:, None],
    "float32 tensor": lambda x: torch.tensor(x, dtype=torch.float32),
    "bfloat16 tensor": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "float32 array": lambda x: np.array(x, dtype=np.float32),
    "array that runs backwards": lambda x: np.array(x[::-1])[::-1],
    "read-only array": lambda x: np.broadcast_to(x, len(x)),
    "list": list,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.filterwarnings("error")
def test_metrics_take_arrays_and_tensors(container):
    convert = CONTAINERS[container]
    known, unknown = [1.0, 2.0, 3.0, 4.0], [3.0, 5.0]
    expected = ood_metrics(np.array(known), np.array(unknown))
    assert ood_metrics(convert(known), convert(unknown)) == expected


@pytest.mark.parametrize("convert", [np.array, torch.tensor, list])
def test_metrics_see_differences_below_single_precision(convert):
    values = [np.array([1.0]), np.array([1.0 + 1e-12])]
    known, unknown = (convert(value.tolist()) for value in values)
    if isinstance(known, torch.Tensor):
        known, unknown = map(torch.tensor, values)
    assert ood_metrics(known, unknown)["auroc"] == 1


def test_single_precision_scores_count_as_they_are():
    generator = np.random.default_rng(0)
    known, unknown = (generator.normal(m, 1, 500).astype(np.float32) for m in (0, 1))
    exact = ood_metrics(known.astype(np.float64), unknown.astype(np.float64))
    assert ood_metrics(known, unknown) == exact


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint64, torch.bool, torch.uint16])
def test_truth_values_and_integers_are_scores(kind):
    convert = torch.tensor if isinstance(kind, torch.dtype) else np.array
    found = ood_metrics(convert([0, 0, 1, 1], dtype=kind), convert([0, 1, 1], dtype=kind))
    assert found["auroc"] == pytest.approx((1 + 3 + 3) / 12)  # a tie counts one half


@pytest.mark.parametrize("side", ["id_scores", "ood_scores"])
@pytest.mark.parametrize(
    "bad, found",
    [
        (torch.zeros(5, 11), "float64 (5, 11)"),
        (np.zeros((1, 5)), "float64 (1, 5)"),
        (np.zeros((5, 1, 1)), "float64 (5, 1, 1)"),
        (torch.tensor(1.0), "float64 ()"),
        (0.5, "float64 ()"),
        (torch.ones(3, dtype=torch.complex64), "complex64 (3,)"),
        (np.ones(3, np.complex128), "complex128 (3,)"),
        (["1", "2"], "<U1 (2,)"),
        ([None, 1.0], "object (2,)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_real_number_a_sample_is_refused(side, bad, found):
    scores = {"id_scores": np.array([1.0]), "ood_scores": np.array([1.0])} | {side: bad}
    with pytest.raises(ValueError, match=re.escape(f"{side} are {found}: give one")) as caught:
        ood_metrics(**scores)
    assert "ood_score(logits)" in str(caught.value)


def test_torchs_defaults_change_nothing():
    known, unknown = torch.tensor([1.0, 2, 3, 4]), torch.tensor([3.0, 5])
    expected = ood_metrics(known, unknown)
    with other_defaults():
        assert ood_metrics(known, unknown) == expected


@pytest.mark.parametrize("side", ["id_scores", "ood_scores"])
@pytest.mark.parametrize(
    "bad, message",
    [
        ([], "is empty"),
        ([0.0, math.nan], "holds NaN or infinite"),
        ([math.inf], "holds NaN or infinite"),
        ([-math.inf, 1.0], "holds NaN or infinite"),
    ],
)
def test_metrics_refuse_what_cannot_be_ranked(side, bad, message):
    scores = {"id_scores": np.array([1.0]), "ood_scores": np.array([1.0])} | {side: np.array(bad)}
    with pytest.raises(ValueError, match=f"{side} {message}"):
        ood_metrics(**scores)
