"""The contract of the course: eval_model, ood_score, predict, and the modes of a module."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from helpers import LABELS, VERDICTS, one_batch, other_defaults
from osr import contract
from osr.contract import CombinedDataset, eval_model


def scores(verdicts):
    return F.one_hot(torch.tensor(verdicts), 11).float()


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
@pytest.mark.parametrize(
    "output",
    [
        scores(VERDICTS),
        scores(VERDICTS).double() * 100 - 1000,
        scores(VERDICTS).bfloat16(),
        scores(VERDICTS).long(),
        torch.tensor(VERDICTS),
        torch.tensor(VERDICTS, dtype=torch.int32),
        torch.tensor(VERDICTS, dtype=torch.uint8),
        torch.tensor(VERDICTS, dtype=torch.uint16),
        torch.tensor(VERDICTS, dtype=torch.uint64),
        scores(VERDICTS).to(torch.uint32),
    ],
)
def test_accuracies_by_hand(output, device):
    found = eval_model(lambda x: output, one_batch(LABELS), device)
    assert found == pytest.approx((2 / 3, 1 / 2, 3 / 5), abs=1e-12)
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize("kind", ["scores", "verdicts"])
def test_the_published_numbers(kind):
    labels = torch.cat([torch.arange(10_000) % 10, torch.full((10_000,), 10)])
    verdicts = labels.clone()
    verdicts[9_496:9_750] = 10  # 254 known images called unknown,
    verdicts[9_750:10_000] = (labels[9_750:10_000] + 1) % 10  # 250 given another digit
    verdicts[19_614:] = 4  # 386 unknown images called a four
    index = torch.arange(20_000.0)[:, None]
    loader = DataLoader(TensorDataset(index, labels), batch_size=512, shuffle=True)

    def model(x):
        found = verdicts[x[:, 0].long()]
        return F.one_hot(found, 11) * 2.0 if kind == "scores" else found

    found = eval_model(model, loader, "cpu")
    assert found == pytest.approx((0.9496, 0.9614, 0.9555), abs=1e-12)


@pytest.mark.parametrize(
    "labels, verdicts, expected",
    [
        ([1, 2, 3, 4], [1, 2, 3, 10], (0.75, math.nan, 0.75)),
        ([10, 10], [10, 0], (math.nan, 0.5, 0.5)),
        ([0], [0], (1, math.nan, 1)),
        ([10], [9], (math.nan, 0, 0)),
    ],
)
def test_a_side_without_samples_is_nan(labels, verdicts, expected):
    found = eval_model(lambda x: torch.tensor(verdicts), one_batch(labels), "cpu")
    assert found == pytest.approx(expected, nan_ok=True)


def test_the_total_weighs_images_and_not_batches_or_sides():
    loader = one_batch([1] * 9) + one_batch([10])
    found = eval_model(lambda x: torch.full((len(x),), 1), loader, "cpu")
    assert found == pytest.approx((1, 0, 0.9))


def test_an_infinite_score_is_a_score():
    output = torch.full((1, 11), -math.inf)
    output[0, 10] = 0
    assert eval_model(lambda x: output, one_batch([10]), "cpu")[1] == 1


def test_one_call_a_batch_in_the_loaders_order():
    seen = []

    def model(x):
        seen.append(x.flatten().tolist())
        return torch.zeros(len(x), 11)

    images = torch.arange(7.0)[:, None]
    loader = DataLoader(TensorDataset(images, torch.arange(7)), batch_size=3)
    eval_model(model, loader, "cpu")
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


def test_any_iterable_of_pairs_is_a_loader():
    pairs = ([torch.zeros(1, 3), np.array([label])] for label in (0, 10))
    assert eval_model(lambda x: torch.tensor([0]), pairs, "cpu") == (1, 0, 0.5)


LABELS_OF_ANY_KIND = [
    LABELS,
    tuple(LABELS),
    [torch.tensor(label) for label in LABELS],
    np.array(LABELS, np.uint16),
    np.array(LABELS, object),
    np.array(LABELS, ">i4"),
    np.array(LABELS[::-1], np.int8)[::-1],
    torch.tensor(LABELS, dtype=torch.int16),
    torch.tensor(LABELS, dtype=torch.uint16),
    torch.tensor(LABELS, dtype=torch.uint32),
    torch.tensor(LABELS, dtype=torch.uint64),
]


@pytest.mark.parametrize("labels", LABELS_OF_ANY_KIND)
def test_labels_are_integers_of_any_kind(labels):
    batch = [torch.zeros(5, 1), labels]
    found = eval_model(lambda x: torch.tensor(VERDICTS), [batch], "cpu")
    assert found == pytest.approx((2 / 3, 1 / 2, 3 / 5))


def test_torchs_defaults_change_nothing():
    images, output = torch.zeros(5, 1, 28, 28), scores(VERDICTS)
    with other_defaults():
        for labels in (torch.tensor(LABELS, device="cpu"), LABELS, np.array(LABELS)):
            found = eval_model(lambda x: output, [(images, labels)], "cpu")
            assert found == pytest.approx((2 / 3, 1 / 2, 3 / 5))
        joined = contract.predict(lambda x: x.flatten(1), images, 2)
    assert joined.shape == (5, 784) and joined.dtype == torch.float32


def test_no_gradient_is_recorded():
    layer = nn.Linear(2, 11)
    outputs = []

    def model(x):
        outputs.append(layer(x))
        return outputs[-1]

    eval_model(model, [(torch.zeros(1, 2), torch.tensor([0]))], "cpu")
    assert not outputs[0].requires_grad


class Caching(nn.Module):
    """Keep a tensor, ask for a gradient, and have a layer that learns its width when it is used."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.LazyLinear(11), None

    def forward(self, x):
        self.kept = x.flatten(1) + 1
        with torch.enable_grad():
            asked = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(asked.square().sum(), asked)
        return self.layer((x + slope).flatten(1))


def assert_trains(model, x):
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    (model(x) * model(x)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # "cpu:0" moves the parameters
def test_a_model_that_was_evaluated_can_be_trained(device):
    model, x = Caching(), torch.rand(3, 1, 2, 2)
    eval_model(model, one_batch([1, 2, 10], x), device)
    assert_trains(model, x)
    weight = torch.ones(4, 1, requires_grad=True)
    (model.kept @ weight).sum().backward()  # what a forward keeps can be used in a training
    assert weight.grad.sum() > 0


def test_what_a_data_set_keeps_can_be_trained_on():
    kept = []

    def loader():
        for _ in range(2):
            kept.append(torch.rand(2, 3) * 2)
            yield kept[-1], torch.tensor([1, 10])

    model = nn.Linear(3, 11)
    eval_model(model, loader(), "cpu")
    model(kept[0]).sum().backward()
    assert model.weight.grad.abs().sum() > 0


def test_what_predict_returns_can_be_trained_on():
    features = contract.predict(nn.Linear(2, 3), torch.rand(5, 2))
    head = nn.Linear(3, 1)
    head(features).sum().backward()
    assert head.weight.grad.abs().sum() > 0


# --- modes ----------------------------------------------------------------------------------------


class Network(nn.Sequential):
    """Note the modes of all modules at each call; fail on demand."""

    def __init__(self, error=None):
        super().__init__(nn.Linear(2, 11), nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(11)))
        self.error, self.seen = error, []

    def forward(self, x):
        self.seen.append(modes(self))
        if self.error:
            raise self.error
        return super().forward(x)


def modes(model):
    return [module.training for module in model.modules()]


# Classes: an exception itself would keep notes and frames, for the tests that come after it.
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("training", [True, False])
def test_every_module_is_in_eval_mode_and_gets_its_own_back(training, error):
    model = Network(error and error("boom")).train(training)
    model[1][0].train(not training)
    before = modes(model)
    statistics = model[1][1].running_mean.clone()
    loader = one_batch([1, 10], torch.rand(2, 2))
    if error:
        with pytest.raises(error):
            eval_model(model, loader, "cpu")
    else:
        eval_model(model, loader, "cpu")
    assert model.seen == [[False] * 5]
    assert modes(model) == before and len(set(before)) == 2
    assert torch.equal(model[1][1].running_mean, statistics)


def test_modes_come_back_after_a_broken_contract():
    model = Network().train()
    with pytest.raises(ValueError, match="labels run"):
        eval_model(model, one_batch([11], torch.rand(1, 2)), "cpu")
    assert all(modes(model)) and model.seen == []


def test_a_loader_that_is_none_says_so():
    network = Network()
    for batch, expected in (
        ((torch.zeros(2, 2), torch.tensor([1])), "2 images with 1 labels"),
        ((torch.zeros(2, 2).numpy(), torch.tensor([1, 2])), "images are a ndarray.*ToTensor"),
        ((torch.zeros(1, 28, 28), 3), "wrap the data set in a DataLoader"),
        (torch.zeros(2, 2), r"the loader gives a Tensor, not \(images, labels\)"),
        ({"images": 1, "labels": 2}, "the loader gives a dict"),
        ([torch.zeros(2, 2)], "the loader gives a list"),
    ):
        with pytest.raises(ValueError, match=expected):
            eval_model(network, [batch], "cpu")
    with pytest.raises(ValueError, match="the model is a str"):
        eval_model("osr_detector", one_batch([1]), "cpu")
    with pytest.raises(ValueError, match=r"Network is a class: give a model, Network\(\)"):
        eval_model(Network, one_batch([1]), "cpu")


def test_a_module_goes_to_the_device():
    class Elsewhere(nn.Linear):
        def to(self, device):
            self.device = device

    model = Elsewhere(2, 11)
    eval_model(model, one_batch([1], torch.zeros(1, 2)), "cpu:0")
    assert model.device == "cpu:0"


def test_float_verdicts_are_told_to_become_integers():
    with pytest.raises(ValueError, match=r"end with .long\(\)"):
        eval_model(lambda x: torch.zeros(len(x)), one_batch([1, 2]), "cpu")


# --- what a model raises --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, ValueError])
def test_what_a_model_raises_comes_back_with_what_it_was_given(kind):
    error = kind("boom")
    images = torch.rand(2, 2, dtype=torch.float64)
    with pytest.raises(kind) as caught:
        eval_model(Network(error), one_batch([1, 10], images), "cpu")
    assert caught.value is error
    (note,) = error.__notes__
    assert "torch.float64 images of shape (2, 2)" in note


def test_a_broken_contract_is_no_exception_of_the_model():
    with pytest.raises(ValueError) as caught:
        eval_model(lambda x: x, one_batch([1]), "cpu")
    assert not hasattr(caught.value, "__notes__")


def test_what_the_loader_raises_is_no_exception_of_the_model():
    def loader():
        yield from one_batch([1])
        raise OSError("disk")

    with pytest.raises(OSError, match="disk") as caught:
        eval_model(lambda x: torch.zeros(len(x), 11), loader(), "cpu")
    assert not hasattr(caught.value, "__notes__")


# --- broken contracts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output, message",
    [
        (torch.zeros(4, 10), r"torch.float32 \(4, 10\) for 4 images.*\(4, 11\).*eleventh score"),
        (torch.zeros(4, 10), r"for digits alone end with .argmax\(1\)"),
        (torch.zeros(4, 12, dtype=torch.int32), r"torch.int32 \(4, 12\) for 4 images"),
        (torch.zeros(4, 12), r"\(4, 12\) for 4 images: return \(4, 11\) scores"),
        (torch.zeros(3, 11), r"\(3, 11\) for 4 images"),
        (torch.zeros(4, 11, 1), r"\(4, 11, 1\)"),
        ((torch.zeros(4, 11), torch.zeros(4)), "returned a tuple: return one tensor"),
        (np.zeros((4, 11)), "returned a ndarray: return one tensor"),
        (None, "returned a NoneType"),
        (torch.zeros(4), r"torch.float32 \(4,\) for 4 images.*integer verdicts"),
        (torch.zeros(4, dtype=torch.bool), r"torch.bool \(4,\)"),
        (torch.zeros(4, 11, dtype=torch.bool), r"torch.bool \(4, 11\)"),
        (torch.zeros(4, 11, dtype=torch.complex64), r"torch.complex64 \(4, 11\)"),
        (torch.zeros(4, 1, dtype=torch.long), r"torch.int64 \(4, 1\)"),
        (torch.tensor([0, 1, 2]), r"\(3,\) for 4 images"),
        (torch.tensor([0, 1, 2, 11]), r"verdicts run from 0 to 11: use 0\.\.9.*10 for unknown"),
        (torch.tensor([0, 1, 2, -1]), "verdicts run from -1 to 2"),
        (torch.zeros(()), r"torch.float32 \(\)"),
    ],
)
def test_other_outputs_are_refused_with_what_was_found(output, message):
    with pytest.raises(ValueError, match=message):
        eval_model(lambda x: output, one_batch([1, 2, 3, 10]), "cpu")


@pytest.mark.parametrize("column", [0, 10])
def test_nan_scores_are_refused_wherever_they_stand(column):
    output = torch.zeros(4, 11)
    output[1, column] = output[3, column] = math.nan
    with pytest.raises(ValueError, match="2 of 4 score rows hold NaN"):
        eval_model(lambda x: output, one_batch([1, 2, 3, 10]), "cpu")


@pytest.mark.parametrize(
    "labels, message",
    [
        ([1, 11], r"labels run from 1 to 11: use 0\.\.9 for digits, 10 for unknown"),
        ([-1, 10], "labels run from -1 to 10"),
        ([1.0, 10.0], r"\(N,\) integer labels, found torch.float32 \(2,\)"),
        ([True, False], r"found torch.bool \(2,\)"),
        ([[1], [10]], r"found torch.int64 \(2, 1\)"),
        (scores([1, 10]).long(), r"found torch.int64 \(2, 11\)"),
        (torch.tensor([1, 2**64 - 1], dtype=torch.uint64), "labels run from"),
        (["three", "cat"], "labels are .*'three'.*, no numbers: use 0..9"),
        (("three", "cat"), "'three'"),
        (np.array(["three", "cat"]), "'three'"),
        (np.array([1, None]), "None"),
        ([1, None], r"labels are \[1, None\]"),
        ([[1], [2, 3]], "labels are"),
        ([2**70, 1], "labels are"),
        (None, "labels are None"),
        ({"digit": 3}, "labels are {'digit': 3}"),
    ],
)
def test_other_labels_are_refused_with_what_was_found(labels, message):
    with pytest.raises(ValueError, match=message):
        eval_model(lambda x: torch.zeros(2, 11), [(torch.zeros(2, 1), labels)], "cpu")


@pytest.mark.parametrize("labels", [[0, 1, 1], [0, 2, -1, 1], [3]])
def test_classes_that_are_missing_or_unexpected_are_named(labels):
    contract.check_classes(torch.tensor([2, 0, 1, 0]), 3)
    wrong = {str(k) for k in set(labels) ^ {0, 1, 2}}
    for kind in (torch.tensor, np.array):
        with pytest.raises(ValueError, match=r"classes \[.*of each of 0..2") as caught:
            contract.check_classes(kind(labels), 3)
        assert set(str(caught.value).split("[")[1].split("]")[0].split(", ")) == wrong


@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(torch.zeros(0, 1)))])
def test_an_empty_loader_is_refused(loader):
    with pytest.raises(ValueError, match="data loader is empty"):
        eval_model(lambda x: torch.zeros(len(x), 11), loader, "cpu")


# --- ood_score ------------------------------------------------------------------------------------


def test_the_garbage_margin_by_hand():
    logits = torch.zeros(3, 11)
    logits[0, 10], logits[0, 4] = 2, 5  # 2 - 5
    logits[1, :10], logits[1, 10] = -3, 1  # 1 + 3
    logits[2, 0], logits[2, 9], logits[2, 10] = 1, 7, 7  # a tie
    assert contract.ood_score(logits).tolist() == [-3, 4, 0]


@pytest.mark.parametrize("shape", [(3, 10), (3, 12), (11,), (3, 11, 1)])
def test_the_garbage_margin_needs_eleven_logits(shape):
    with pytest.raises(ValueError, match=r"expected \(N, 11\) logits, found \("):
        contract.ood_score(torch.zeros(shape))


def test_a_positive_margin_is_the_verdict_unknown():
    logits = torch.randn(200, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(contract.ood_score(logits) > 0, logits.argmax(1) == 10)


# --- predict --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_predict_joins_the_batches(batch_size):
    x = torch.arange(7.0)[:, None]
    weight = torch.ones(1, requires_grad=True)
    found = contract.predict(lambda x: x * weight * 2, x, batch_size)
    assert found.flatten().tolist() == [0, 2, 4, 6, 8, 10, 12] and not found.requires_grad
    double, total = contract.predict(lambda x: (x * 2, x.sum(1)), x, batch_size)
    assert double.shape == (7, 1) and total.tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: x[x[:, 0] > 1], r"a Tensor \(1, 1\) for images \(3, 1\)"),
        (lambda x: (x, x[:2]), r"a Tensor \(2, 1\) for images \(3, 1\)"),
        (lambda x: x.mean(), r"a Tensor \(\) for images"),
        (lambda x: x.numpy(), r"a ndarray \(3, 1\)"),
        (lambda x: [x], r"a list \(\) .*return tensors of one row an image"),
        (lambda x: None, "a NoneType"),
    ],
)
def test_predict_refuses_another_number_of_rows(function, message):
    with pytest.raises(ValueError, match=message):
        contract.predict(function, torch.arange(7.0)[:, None], 3)


def test_predict_refuses_batches_that_make_up_for_each_other():
    rows = iter([2, 4])
    with pytest.raises(ValueError, match=r"\(2, 11\) for images \(3, 1\)"):
        contract.predict(lambda x: torch.zeros(next(rows), 11), torch.zeros(6, 1), 3)


# --- CombinedDataset ------------------------------------------------------------------------------


def combined(**transforms):
    mnist = TensorDataset(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([7, 0, 9]))
    ood = TensorDataset(torch.tensor([[4.0], [5.0]]), torch.tensor([3, 3]))
    return CombinedDataset(mnist, ood, **transforms)


def items(dataset):
    return list(itertools.islice(dataset, 100))  # one that never ends would fill the memory


def test_combined_dataset_is_known_then_unknown():
    dataset = combined()
    assert len(dataset) == 5
    assert [(x.item(), y) for x, y in items(dataset)] == [(1, 7), (2, 0), (3, 9), (4, 10), (5, 10)]
    assert all(type(label) is int for _, label in items(dataset))


def test_combined_dataset_transforms_each_side_by_its_own():
    dataset = combined(transform_mnist=lambda x: x * 10, transform_ood=lambda x: -x)
    assert [x.item() for x, _ in items(dataset)] == [10, 20, 30, -4, -5]
    only_ood = combined(transform_ood=lambda x: -x)
    assert [x.item() for x, _ in items(only_ood)] == [1, 2, 3, -4, -5]


@pytest.mark.parametrize("index, value", [(-1, 5), (-2, 4), (-5, 1), (2, 3), (3, 4)])
def test_combined_dataset_counts_from_either_end(index, value):
    assert combined()[index][0].item() == value


@pytest.mark.parametrize("index", [5, -6, 100])
def test_combined_dataset_ends(index):
    with pytest.raises(IndexError, match=f"index {index} in a data set of 5"):
        combined()[index]


def test_combined_dataset_works_in_a_data_loader():
    (x, y), last = DataLoader(combined(), batch_size=4)
    assert x.shape == (4, 1) and y.tolist() == [7, 0, 9, 10] and y.dtype == torch.int64
    assert last[1].tolist() == [10]
    shuffled = DataLoader(combined(), batch_size=2, shuffle=True)
    assert sorted(label for _, y in shuffled for label in y.tolist()) == [0, 7, 9, 10, 10]


def test_combined_dataset_takes_integer_labels_of_any_kind():
    dataset = CombinedDataset([(0, np.int64(4)), (1, 5)], [(2, "cat")])
    assert [label for _, label in items(dataset)] == [4, 5, 10]


IMAGES = torch.rand(4, 1, 2, 2)
PAIRS = TensorDataset(IMAGES, torch.tensor([1, 2, 3, 4]))


@pytest.mark.parametrize(
    "side",
    [IMAGES, IMAGES.numpy(), {"image": IMAGES}, "mnist", None, DataLoader(PAIRS), iter(PAIRS)],
    ids=lambda side: type(side).__name__,
)
def test_a_side_that_is_no_data_set_is_refused_at_once(side):
    for name, sides in (("mnist", (side, PAIRS)), ("ood", (PAIRS, side))):
        expected = (
            rf"{name} is a .*{type(side).__name__}, no data set: .*TensorDataset\(images, lab"
        )
        with pytest.raises(ValueError, match=expected):
            CombinedDataset(*sides)


@pytest.mark.parametrize(
    "item, kind",
    [
        (torch.rand(2, 28, 28), "Tensor"),  # two channels, or rows, are no image and label
        (np.zeros((2, 28)), "ndarray"),
        ({"image": 0, "label": 1}, "dict"),
        ("33", "str"),
        ((), "tuple"),
        (7, "int"),
    ],
)
def test_an_item_that_is_no_pair_is_refused(item, kind):
    for dataset in (CombinedDataset([item], PAIRS), CombinedDataset([], [item])):
        with pytest.raises(
            ValueError, match=rf"item 0 is a {kind}, no \(image, label\).*TensorDat"
        ):
            dataset[0]


@pytest.mark.parametrize("item", [(1,), (1, 2, 3)])
def test_a_known_image_has_one_label_and_an_unknown_one_any(item):
    with pytest.raises(ValueError, match=r"item 0 is a tuple, no \(image, label\)"):
        CombinedDataset([item], [])[0]
    assert CombinedDataset([], [item])[0] == (1, 10)
    assert CombinedDataset([], TensorDataset(IMAGES))[3][1] == 10


@pytest.mark.parametrize("label", ["cat", "3", b"3", None, 2.5, math.nan, math.inf, [1, 2], IMAGES])
def test_a_known_label_that_is_no_whole_number_is_shown(label):
    shown = str(label)[:5].replace("[", r"\[").replace("(", r"\(")
    with pytest.raises(ValueError, match=f"the label .*{shown}.* is no whole number: use 0..9"):
        CombinedDataset([(0, label)], [])[0]


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.uint64, torch.float32])
def test_known_labels_may_be_tensors_of_any_kind(kind):
    dataset = CombinedDataset(TensorDataset(IMAGES, torch.arange(4).to(kind)), [])
    assert [label for _, label in items(dataset)] == [0, 1, 2, 3]
    assert [type(label) for _, label in items(dataset)] == [int] * 4
