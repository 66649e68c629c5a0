"""Notebook 05: fractals, augmentations, losses and calibration, against independent oracles."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pytorch_ood.loss import OutlierExposureLoss

import run_notebooks

nb = run_notebooks.definitions(run_notebooks.ROOT / "notebooks/05_pixmix_outlier_exposure.ipynb")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch():
    """Blobs, noise, and two pictures of one grey value."""
    x = torch.rand(30, 1, 28, 28, generator=seeded())
    x[:10] = torch.nn.functional.avg_pool2d(x[:10], 5, 1, 2) * 1.5
    x[10:20] *= x[10:20] > 0.7
    x[28], x[29] = 0.0, 0.4
    return (x.clamp(0, 1) * 255).round() / 255


def pictures_of(batch):
    return [Image.fromarray((image[0] * 255).byte().numpy()) for image in batch]


def bytes_of(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize(
    ("ours", "pillow"),
    [
        (lambda x: nb["autocontrast"](x), ImageOps.autocontrast),
        (lambda x: nb["equalize"](x), ImageOps.equalize),
        (lambda x: nb["posterize"](x, torch.tensor(3.0)), lambda x: ImageOps.posterize(x, 3)),
        (lambda x: nb["solarize"](x, 200 / 255), lambda x: ImageOps.solarize(x, 200)),
    ],
    ids=["autocontrast", "equalize", "posterize", "solarize"],
)
def test_grey_operations_agree_with_pillow(ours, pillow, batch):
    found = (ours(batch)[:, 0] * 255).numpy()
    expected = bytes_of(pillow(picture) for picture in pictures_of(batch))
    assert np.abs(found - expected).max() < 1.001  # Pillow cuts the fraction of a byte off


def test_movements_agree_with_pillow(batch):
    """Rotation and shear as PixMix asks Pillow for them, away from the border."""
    x = batch[:10]
    for kind, level, pillow in (
        (0, 0.3, lambda p: p.rotate(9, Image.Resampling.BILINEAR)),
        (1, 0.3, lambda p: affine(p, (1, 0.09, 0, 0, 1, 0))),
        (2, 0.3, lambda p: affine(p, (1, 0, 0, 0.09, 1, 0))),
        (3, 0.25, lambda p: affine(p, (1, 0, 2, 0, 1, 0))),
        (4, -0.25, lambda p: affine(p, (1, 0, 0, 0, 1, -2))),
    ):
        levels = torch.full((10,), level)
        found = nb["move"](x, torch.full((10,), kind), levels)[:, 0, 6:22, 6:22] * 255
        expected = bytes_of(map(pillow, pictures_of(x)))[:, 6:22, 6:22]
        assert np.abs(found.numpy() - expected).mean() < 1.5, kind


def affine(picture, matrix):
    """Pillow's affine transform, turned about the centre instead of the corner."""
    a, b, c, d, e, f = matrix
    c, f = c + 14 - 14 * (a + b), f + 14 - 14 * (d + e)
    return picture.transform((28, 28), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.BILINEAR)


def test_mix_follows_its_formula_image_by_image(batch):
    other = batch.flip(0)
    found = nb["mix"](batch, other, seeded(1))
    draw = seeded(1)
    u, v = (torch.rand(30, 1, 1, 1, generator=draw).flatten().tolist() for _ in range(2))
    minus, product = (torch.rand(30, 1, 1, 1, generator=draw).flatten() < 0.5 for _ in range(2))
    for i in range(30):
        beta_b1, beta_1b = u[i] ** (1 / 3), 1 - v[i] ** (1 / 3)
        a, b = (2 - beta_b1, -beta_1b) if minus[i] else (beta_b1, beta_1b)
        x, y = batch[i].double(), other[i].double()
        if product[i]:
            expected = (2 * x) ** a * (2 * y).clamp_min(1e-37) ** b / 2
        else:
            expected = (a * (2 * x - 1) + b * (2 * y - 1) + 1) / 2
        assert torch.allclose(found[i].double(), expected.clamp(0, 1), atol=1e-5)


def test_mixing_weights_have_the_published_distribution():
    """Beta(3, 1) has mean 3/4, and Beta(1, 3) has 1/4; half of the weights go beyond."""
    x = torch.ones(20_000, 1, 1, 1)
    added = nb["mix"](x * 0.75, x * 0.5, seeded(2))  # b drops out: 0.5 + a / 4, or 0.75 ** a...
    u = torch.rand(20_000, 1, 1, 1, generator=seeded(2)) ** (1 / 3)
    assert math.isclose(u.mean(), 0.75, abs_tol=0.01)
    assert 0.5 < added.mean() < 1


def test_augmentations_keep_shape_and_range_and_follow_their_seed(batch):
    pictures, before = batch.flip(0), batch.clone()
    for augment in (
        lambda g: nb["salt_and_pepper"](batch, g),
        lambda g: nb["augment_once"](batch, g),
        lambda g: nb["pixmix"](batch, pictures, g),
    ):
        once, again, other = augment(seeded()), augment(seeded()), augment(seeded(1))
        assert once.shape == batch.shape and once.dtype == torch.float32
        assert once.isfinite().all() and 0 <= once.min() and once.max() <= 1
        assert torch.equal(once, again) and not torch.equal(once, other)
        assert torch.equal(batch, before), "the input was changed"


def test_pixmix_leaves_some_images_alone_and_changes_most(batch):
    """No augmentation (1/2) and no round (1/5): a tenth stays as it is."""
    many = batch[:1].repeat(4_000, 1, 1, 1)
    mixed = nb["pixmix"](many, batch, seeded())
    same = (mixed == many).all((1, 2, 3)).float().mean()
    assert 0.08 < same < 0.16  # an augmentation may change nothing as well


def test_salt_and_pepper_hits_as_many_pixels_as_it_says():
    grey = torch.full((2_000, 1, 28, 28), 0.5)
    noisy = nb["salt_and_pepper"](grey, seeded())
    assert set(noisy.unique().tolist()) == {0.0, 0.5, 1.0}
    share = (noisy != 0.5).double().mean((1, 2, 3))
    assert math.isclose(share.mean(), nb["MOST"] / 2, abs_tol=0.01) and share.max() < 0.38
    assert math.isclose((noisy == 1).double().mean(), nb["MOST"] / 4, abs_tol=0.01)


def test_fractals_are_seeded_pictures_of_their_own():
    once, again = nb["fractal_figures"](300, seeded()), nb["fractal_figures"](300, seeded())
    assert once.shape == (300, 1, 28, 28) and torch.equal(once, again)
    assert 0 <= once.min() and once.max() <= 1
    assert len(once.flatten(1).unique(dim=0)) == 300
    grounded = nb["on_ground"](once, seeded())
    assert grounded.shape == once.shape and 0 <= grounded.min() <= grounded.max() <= 1


def test_the_chaos_game_finds_a_known_attractor():
    """Two maps that shrink to a third give Cantor's set: its middle third stays empty."""
    maps = (torch.eye(2) / 3).expand(1, 2, 2, 2)
    shift = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    picture = nb["draw_attractors"](maps, shift, torch.ones(1, 2), seeded())[0, 0]
    assert (picture > 0).any(1).sum() == 1, "a line"
    lit = (picture > 0).any(0)
    assert lit[:9].any() and lit[-9:].any() and not lit[10:18].any()
    assert not lit[4:6].any(), "the middle of the first third is empty, too"


def test_exposure_loss_is_that_of_pytorch_ood():
    logits = torch.randn(50, 10, generator=seeded())
    theirs = OutlierExposureLoss(alpha=1.0)(logits, torch.full((50,), -1))
    assert torch.allclose(nb["exposure_loss"](logits).mean(), theirs)


def test_calibration_errors_against_a_loop_over_the_bins():
    rng = np.random.default_rng(0)
    confidence = rng.random(1_234)
    hits = rng.random((3, 1_234)) < confidence**2
    order, n = np.argsort(confidence), 1_234
    for draw, found in zip(hits, zip(*nb["rms_calibration_errors"](confidence, hits), strict=True),
                           strict=True):  # fmt: skip
        parts = [order[i * 100 : (i + 1) * 100] for i in range(11)] + [order[1_100:]]
        gaps = [len(p) / n * (confidence[p].mean() - draw[p].mean()) ** 2 for p in parts]
        assert np.allclose(found, (sum(gaps[:-1]) ** 0.5, sum(gaps) ** 0.5))


def test_a_calibrated_network_reaches_the_noise_floor_and_a_boaster_does_not():
    logits = torch.randn(5_000, 10, generator=seeded()).double() * 3
    labels = torch.distributions.Categorical(logits=logits).sample()
    without, every, *floors = nb["calibration"](logits, logits.argmax(1) == labels)
    assert np.allclose((without, every), floors, rtol=0.35)
    without, every, *floors = nb["calibration"](3 * logits, logits.argmax(1) == labels)
    assert without > 2 * floors[0]
