"""The generator, its four losses, and the loop of classifier and generator."""

import math

import pytest
import torch
import torch.nn.functional as F

from helpers import state_bytes
from osr import inversion
from osr.models import GarbageClassifier

LOOP = {
    "seed": 0, "epochs": 2, "lr": 1e-3, "decay": 0, "batch_size": 32, "garbage_weight": 1.0,
    "noise": 40, "noise_mean": 0.5, "noise_sd": 0.5, "restart": True, "steps": 2,
    "generator_batch": 8, "generator_lr": 1e-3, "weights": (1, 1, 1, 1), "gram": "raw", "added": 30,
}  # fmt: skip


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_digits(n=60, channels=1, side=28):
    return torch.rand(n, channels, side, side, generator=draws()), torch.arange(n) % 10


def run(model=None, **changes):
    torch.manual_seed(0)
    model = model or GarbageClassifier(widths=(2, 3, 4))
    hooks = {k: changes.pop(k) for k in ("augmentation", "outliers", "watch", "after", "generator")
             if k in changes}  # fmt: skip
    inversion.inversion_loop(model, *tiny_digits(), LOOP | changes, **hooks)
    return model


@pytest.mark.parametrize("targets", [10, 11])
def test_soft_vectors_are_distributions_whose_target_may_be_asked_for(targets):
    soft = inversion.soft_vectors(3_000, targets, draws())
    assert torch.allclose(soft.sum(1), torch.ones(3_000)) and (soft > 0).all()
    assert set(soft.argmax(1).tolist()) == set(range(targets))
    assert soft.amax(1).mean() < 0.9  # never one-hot


def test_matrices_have_a_row_and_a_column_of_ones():
    found = inversion.matrices(torch.tensor([0, 3]), 10)
    for image, k in zip(found[:, 0], (0, 3), strict=True):
        for i in range(10):
            for j in range(10):
                assert image[i, j] == (k in (i, j))


@pytest.mark.parametrize("channels, side, targets", [(1, 28, 10), (1, 28, 11), (3, 32, 10)])
def test_generator_makes_pictures_of_the_shape_asked_for(channels, side, targets):
    generator = inversion.Generator(channels, side, targets)
    pictures, soft = inversion.invert(generator, 7, draws())
    assert pictures.shape == (7, channels, side, side) and soft.shape == (7, 11)
    assert 0 <= pictures.min() and pictures.max() <= 1


def test_generator_reads_the_matrix_of_the_target():
    generator = inversion.Generator().eval()
    soft, latent = inversion.soft_vectors(1, 10, draws()), torch.zeros(1, 100)
    with torch.no_grad():
        generator.embed.weight.zero_()  # then only the matrix tells the target
        first, other = generator(soft, latent), generator(soft.roll(1, 1), latent)
    assert not torch.equal(first, other)


def test_losses_are_the_formulas_pair_by_pair():
    features, n = torch.randn(5, 3, generator=draws()), 5
    cosines = [
        F.cosine_similarity(features[i], features[j], dim=0)
        for i in range(n) for j in range(n) if i != j
    ]  # fmt: skip
    assert math.isclose(inversion.cosine(features), sum(cosines) / (n * (n - 1)), abs_tol=1e-6)
    squares = [(features[i] @ features[j] - int(i == j)) ** 2 for i in range(n) for j in range(n)]
    assert math.isclose(inversion.orthogonality(features), sum(squares) / n**2, rel_tol=1e-5)


class Fixed(torch.nn.Module):
    """Features are the first four pixels; logits a known linear map of them."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 11)

    def penultimate(self, x):
        return x.flatten(1)[:, :4]


@pytest.mark.parametrize("gram", ["raw", "normalised"])
def test_inversion_loss_is_the_weighted_sum_of_its_parts(gram):
    model, pictures = Fixed(), torch.rand(6, 1, 28, 28, generator=draws())
    soft = inversion.soft_vectors(6, 10, draws())
    features = model.penultimate(pictures)
    q = model.head(features).softmax(1)
    target = soft.argmax(1)
    kl = (soft * (soft / q).log()).sum(1).mean()
    ce = -q[torch.arange(6), target].log().mean()
    rows = features / features.norm(dim=1, keepdim=True) if gram == "normalised" else features
    parts = (kl, ce, inversion.cosine(features), inversion.orthogonality(rows))
    for k, part in enumerate(parts):
        weights = [float(i == k) for i in range(4)]
        found = inversion.inversion_loss(model, pictures, soft, weights, gram)
        assert torch.isclose(found, part, rtol=1e-5), k
    total = inversion.inversion_loss(model, pictures, soft, (2, 3, 5, 7), gram)
    assert torch.isclose(total, 2 * parts[0] + 3 * parts[1] + 5 * parts[2] + 7 * parts[3])


def test_the_generator_learns_while_the_classifier_stands_still():
    torch.manual_seed(0)
    model, generator = GarbageClassifier(widths=(4, 4, 4)), inversion.Generator()
    before = state_bytes(model)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-2)
    config = LOOP | {"steps": 40, "generator_batch": 32, "weights": (1, 1, 0, 0)}
    soft, latent = inversion.soft_vectors(64, 10, draws(1)), torch.randn(64, 100, generator=draws())

    def loss():
        with torch.no_grad():
            pictures = generator.eval()(soft, latent)
            return inversion.inversion_loss(model.eval(), pictures, soft, (1, 1, 0, 0), "raw")

    first = loss()
    inversion.train_generator(generator, optimizer, model, config, draws())
    assert loss() < first and state_bytes(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_one_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = run(), run(), run(seed=1)
    assert state_bytes(first) == state_bytes(again) != state_bytes(other)
    assert torch.equal(first.log["gallery"], again.log["gallery"])


def test_the_log_has_a_line_an_epoch_and_garbage_grows_by_what_is_added():
    told = []
    model = run(epochs=3, watch=lambda model: [1.0, 2.0], after=told.append)
    history = model.log["history"]
    assert history.shape == (3, len(inversion.EPOCH_COLUMNS) + 2)
    assert history[:, 0].tolist() == [40, 70, 100] and history[:, -2:].tolist() == [[1, 2]] * 3
    assert model.log["gallery"].shape == (3, 10, 1, 28, 28) and told == [1, 2, 3]
    assert model.log["gallery"].dtype == torch.uint8
    assert ((history[:, 1:3] >= 0) & (history[:, 1:3] <= 1)).all()


def test_without_steps_and_added_pictures_there_is_noise_alone():
    history = run(epochs=3, steps=0, added=0).log["history"]
    assert history[:, 0].tolist() == [40] * 3


def test_augmentation_sees_labels_and_outliers_are_garbage_of_one_epoch(monkeypatch):
    seen, sizes = [], []

    def augmentation(x, y, generator):
        seen.append(y)
        return x

    def outliers(epoch, generator):
        sizes.append(epoch)
        return torch.zeros(5, 1, 28, 28)

    run(augmentation=augmentation, outliers=outliers)
    garbage = (torch.cat(seen) == 10).sum().item()
    assert sizes == [0, 1] and garbage == (40 + 5) + (40 + 30 + 5)


def test_garbage_weighs_as_one_class_however_much_there_is(monkeypatch):
    weights = []

    def train(model, images, labels, loss, **options):
        monkeypatch.setattr(F, "cross_entropy", lambda *arguments: weights.append(arguments[2]))
        loss(model, images[:4], labels[:4])
        monkeypatch.undo()

    model, (x, y) = GarbageClassifier(widths=(2, 2, 2)), tiny_digits()
    for n in (3, 30):
        monkeypatch.setattr(inversion, "train", train)
        inversion.train_classifier(model, x, y, torch.zeros(n, 1, 28, 28), LOOP, 0)
    for n, weight in zip((3, 30), weights, strict=True):
        assert weight[:10].tolist() == [1] * 10 and math.isclose(weight[10] * n, 6, rel_tol=1e-6)


def test_pictures_in_colour_have_a_loop_of_their_own():
    torch.manual_seed(0)
    model = GarbageClassifier(3, (2, 3, 4))
    inversion.inversion_loop(model, *tiny_digits(30, 3, 32), LOOP,
                             generator=lambda: inversion.Generator(3, 32))  # fmt: skip
    assert model.log["gallery"].shape == (2, 10, 3, 32, 32)
