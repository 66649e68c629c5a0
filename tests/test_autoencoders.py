"""System C's networks: sizes counted by hand, losses by SciPy, trainings on a few bars."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from helpers import files, other_defaults, random_images, state_bytes
from osr import autoencoders, paths
from osr.autoencoders import Autoencoder, fit_autoencoder, fit_classifier
from osr.contract import predict
from osr.models import DigitClassifier

X = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))


# --- the network ----------------------------------------------------------------------------------

# Parameters down (kernels of 3 x 3 without bias, a scale and a shift a channel), features at the
# narrowest place, parameters up (4 x 4 to 28, 14 and 4 pixels a side, 3 x 3 from 4 to 7, a bias).
CONVOLUTIONAL = {
    (2, 4): (9 * 10 + 2 * 6, 4 * 7 * 7, 2 * 6 + (16 * 10 + 3)),
    (2, 4, 6): (9 * 34 + 2 * 12, 6 * 4 * 4, 2 * 12 + (16 * 10 + 3) + (9 * 24 + 4)),
    (2, 4, 6, 5): (9 * 64 + 2 * 17, 5 * 2 * 2, 2 * 17 + (16 * 40 + 9) + (9 * 24 + 4)),
}
DENSE = {(6, 4): (784 * 6 + 6 * 4 + 2 * 10, 4, 2 * 10 + (4 * 6 + 6) + (6 * 784 + 784))}
NETWORKS = [(widths, False) for widths in CONVOLUTIONAL] + [(widths, True) for widths in DENSE]


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("classes", [0, 8])
@pytest.mark.parametrize("widths, dense", NETWORKS)
def test_sizes_and_shapes(widths, dense, classes):
    model = Autoencoder(3, widths, dense, classes)
    down, features, up = (DENSE if dense else CONVOLUTIONAL)[widths]
    assert size(model.encoder) == down and size(model.decoder) == up
    heads = (features + 1) * (3 + classes) + (3 + classes + 1) * features
    assert size(model) == down + up + heads
    latent, logits = model.encode(X)
    assert latent.shape == (5, 3)
    assert logits.shape == (5, classes) if classes else logits is None
    for drawn in (model(X), model.decode(latent, torch.arange(5) if classes else None)):
        assert drawn.shape == (5, 1, 28, 28) and 0 <= drawn.min() < drawn.max() <= 1


@pytest.mark.parametrize("dense", [False, True])
def test_a_conditional_network_draws_the_digit_that_it_is_told(dense):
    torch.manual_seed(0)
    model = Autoencoder(3, (6, 4), dense, 4).eval()
    latent, logits = model.encode(X)
    drawn = [model.decode(latent, torch.full((5,), digit)) for digit in range(4)]
    for digit in range(4):
        assert all(not torch.equal(drawn[digit], other) for other in drawn[:digit])
    with torch.no_grad():  # it names the third, whatever it sees
        model.classifier.bias[2] = 100
    assert torch.equal(model(X), drawn[2])
    part = model.from_latent  # the columns behind the latent vector are those of the classes
    expected = latent @ part.weight[:, :3].T + part.weight[:, 4] + part.bias
    torch.testing.assert_close(drawn[1], model.decoder(expected).view(5, 1, 28, 28))


# --- trainings ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small(sandbox, demo):
    """Train in the demo profile, into a folder of this test."""


LABELS = np.arange(60) % 5  # digit d: a bar that begins in column 4 d + 2
IMAGES = random_images(60, 28, 28) // 8
for column in range(5):
    IMAGES[np.arange(60), :, 4 * LABELS + 2 + column] += 220
NET = {"latent_dim": 3, "widths": [3, 4], "dense": False, "conditional": False}
BASE = {"augmentation": "none", "epochs": 1, "digits": [1, 4], "seed": 0}
KINDS = {
    "autoencoder": (fit_autoencoder, NET | BASE),
    "conditional": (fit_autoencoder, NET | BASE | {"conditional": True}),
    "dense": (fit_autoencoder, NET | BASE | {"dense": True}),
    "classifier": (fit_classifier, BASE),
}


def refit(fit, config, images):
    """Train where nothing is stored."""
    for path in paths.checkpoint_dir().glob("*"):
        path.unlink()
    return state_bytes(fit(config, images, LABELS))


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_call_loads_and_other_digits_are_not_learned_from(kind, capsys):
    fit, config = KINDS[kind]
    first = fit(config, IMAGES, LABELS)
    assert "training, seed 0" in capsys.readouterr().out
    second = fit(config, IMAGES, LABELS)
    assert capsys.readouterr().out == f"loaded {first.checkpoint}\n"
    assert files(paths.checkpoint_dir()) == [f"{first.checkpoint}.safetensors"]
    expected = state_bytes(first)
    assert state_bytes(second) == expected and not second.training
    with other_defaults():
        assert refit(fit, config, IMAGES) == expected
    for digit in range(5):
        changed = IMAGES.copy()
        changed[LABELS == digit] = 255 - changed[LABELS == digit]
        same = digit not in config["digits"]
        assert (fit(config, changed, LABELS).checkpoint == first.checkpoint) == same
        assert (refit(fit, config, changed) == expected) == same


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"epochs": 2}, {"augmentation": "slight"}, {"digits": [1, 3, 4]}]
)
@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_another_configuration_is_another_network(kind, change):
    fit, config = KINDS[kind]
    one, two = (fit(given, IMAGES, LABELS) for given in (config, config | change))
    assert one.checkpoint != two.checkpoint and state_bytes(one) != state_bytes(two)


@pytest.fixture
def trainings(monkeypatch):
    """Return the list of what `train` is given from now on; nothing is trained."""
    given = []
    monkeypatch.setattr(autoencoders, "train", lambda *a, **options: given.append((a, options)))
    return given


@pytest.mark.parametrize("profile, batch_size, lr", [("demo", 32, 1.5e-2), ("full", 128, 3e-3)])
def test_what_a_training_is_given(trainings, monkeypatch, profile, batch_size, lr):
    monkeypatch.setenv("OSR_PROFILE", profile)
    monkeypatch.setenv("OSR_RETRAIN", "1")
    for fit, config in KINDS.values():
        fit(config | {"epochs": 7, "seed": 3}, IMAGES, LABELS)
        (_, x, y, _), options = trainings.pop()
        kept = np.isin(LABELS, [1, 4])
        assert np.array_equal(y, LABELS[kept])
        np.testing.assert_allclose(x[:, 0], IMAGES[kept] / 255, rtol=1e-6)
        assert options == {
            "one_cycle": True, "epochs": 7, "seed": 3, "batch_size": batch_size, "lr": lr,
            "augmentation": None,
        }  # fmt: skip


def test_augmentations_are_drawn_within_their_ranges(trainings, monkeypatch):
    names = set()
    for fit, config in KINDS.values():
        for name in ("none", "slight", "strong"):
            names.add(fit(config | {"augmentation": name}, IMAGES, LABELS).checkpoint)
            found = trainings.pop()[1]["augmentation"]
            assert (found.keywords if found else None) == autoencoders.AUGMENTATIONS[name]
            if found:
                moved = found(X, torch.Generator().manual_seed(0))
                assert moved.shape == X.shape and not torch.equal(moved, X)
    monkeypatch.setitem(autoencoders.AUGMENTATIONS, "slight", {"degrees": 9})
    names.add(fit(config | {"augmentation": "slight"}, IMAGES, LABELS).checkpoint)
    assert len(names) == 3 * len(KINDS) + 1  # other ranges under an old name are others, too


def test_the_losses_agree_with_scipy(trainings):
    y = torch.tensor([9, 2, 5, 2, 9])
    place = np.array([2, 0, 1, 0, 2])  # among the digits 2, 5, 9
    labels = np.array([2, 5, 9] * 20)

    def loss_of(kind):
        fit, config = KINDS[kind]
        fit(config | {"digits": [2, 5, 9]}, IMAGES, labels)
        (model, _, _, loss), _ = trainings.pop()
        return model.eval(), loss

    def entropy_of(logits, right):
        return -log_softmax(logits.detach().double().numpy(), 1)[np.arange(5), right].mean()

    for kind in ("autoencoder", "dense"):
        model, loss = loss_of(kind)
        error = (model(X) - X).detach().double().numpy() ** 2
        assert loss(model, X, y).item() == pytest.approx(error.mean(), rel=1e-5)
    model, loss = loss_of("conditional")
    latent, logits = model.encode(X)
    error = (model.decode(latent, torch.from_numpy(place)) - X).detach().double().numpy() ** 2
    expected = error.mean() + 0.005 * entropy_of(logits, place)
    assert loss(model, X, y).item() == pytest.approx(expected, rel=1e-6)
    model, loss = loss_of("classifier")
    assert loss(model, X, y).item() == pytest.approx(entropy_of(model(X), y.numpy()), rel=1e-5)


def test_a_trained_autoencoder_is_closer_to_its_digits_than_their_mean_and_tells_them_apart():
    config = KINDS["conditional"][1] | {"epochs": 60, "widths": [8, 16]}
    model = fit_autoencoder(config, IMAGES, LABELS)
    known, x = np.isin(LABELS, [1, 4]), torch.from_numpy(IMAGES)[:, None] / 255
    errors = (predict(model, x) - x).square().mean((1, 2, 3))
    assert errors[known].mean() < (x[known].mean(0) - x[known]).square().mean() / 2
    assert errors[known].max() < errors[~known].min() / 2
    assert np.array_equal(predict(model.encode, x[known])[1].argmax(1), LABELS[known] == 4)


def test_a_classifier_keeps_the_outputs_of_digits_never_shown_below_the_others():
    model = fit_classifier(BASE | {"epochs": 10}, IMAGES, LABELS)
    assert isinstance(model, DigitClassifier) and model.checkpoint.startswith("rest_classifier-")
    kept = np.isin(LABELS, [1, 4])
    logits = predict(model, torch.from_numpy(IMAGES[kept])[:, None] / 255).numpy()
    shown, never = logits[:, [1, 4]], np.delete(logits, [1, 4], 1)
    assert np.array_equal(logits.argmax(1), LABELS[kept])
    assert never.max() < shown.max(1).min() and never.mean() < shown.mean()
