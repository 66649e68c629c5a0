"""Preprocessing and augmentation, against torchvision, Pillow and SciPy."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from helpers import other_defaults, random_images
from osr.images import augment, ground_matched, on_ground, to_model_input, warp

# --- preprocessing --------------------------------------------------------------------------------


def test_grey_is_the_weighted_sum_of_the_channels():
    images = np.zeros((5, 28, 28, 3), np.uint8)
    images[0, :, :, 0] = images[1, :, :, 1] = images[2, :, :, 2] = 255
    images[3] = 255
    images[4] = (10, 100, 200)  # (2.99 + 58.7 + 22.8) / 255
    expected = [0.299, 0.587, 0.114, 1, 84.49 / 255]
    x = to_model_input(images)
    assert x.shape == (5, 1, 28, 28) and x.dtype == torch.float32
    assert x.amax((1, 2, 3)).tolist() == pytest.approx(expected, abs=1e-6)
    assert x.amin((1, 2, 3)).tolist() == pytest.approx(expected, abs=1e-6)
    assert x.max() <= 1


def test_grey_images_of_the_right_size_are_only_scaled():
    images = random_images(3, 28, 28)
    x = to_model_input(images)
    np.testing.assert_allclose(x[:, 0].numpy(), images / 255, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 64, 48), (1, 14, 20), (1, 32, 32, 3)])
def test_resizing_agrees_with_torchvision_and_pillow(shape):
    images = random_images(*shape)
    grey = images[0] / 255 @ [0.299, 0.587, 0.114] if len(shape) == 4 else images[0] / 255
    x = to_model_input(images)[0, 0].numpy()
    torch_x = tvf.resize(torch.tensor(grey)[None], [28, 28], antialias=True)[0]
    np.testing.assert_allclose(x, torch_x.numpy(), atol=2e-6)
    pillow = Image.fromarray(grey.astype(np.float32)).resize((28, 28), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(x, np.asarray(pillow), atol=2e-6)
    assert 0 <= x.min() and x.max() <= 1


def test_many_images_are_treated_as_each_alone():
    images = random_images(4100, 6, 5)
    x = to_model_input(images)
    assert x.shape == (4100, 1, 28, 28)
    for index in (0, 4095, 4096, 4099):
        assert torch.equal(x[index], to_model_input(images[index : index + 1])[0])


def test_no_images_give_no_input():
    assert to_model_input(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 1, 28, 28)


@pytest.mark.parametrize(
    "images, hint",
    [
        (np.zeros((2, 28, 28), np.float32), "scale to 0..255 and end with .astype"),
        (np.zeros((2, 28, 28), np.int64), "scale to 0..255 and end with .astype"),
        (np.zeros((2, 3, 32, 32), np.uint8), "put the colour channel last"),
        (np.zeros((2, 3, 32, 32), np.float32), "scale.*put the colour channel last"),
        (np.zeros((2, 32, 32, 4), np.uint8), "leave the alpha channel out"),
        (np.zeros((2, 0, 28), np.uint8), "give pictures that have pixels"),
    ],
)
def test_other_arrays_are_refused_with_their_dtype_and_shape(images, hint):
    found = f"{images.dtype} {images.shape}".replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"found {found}; {hint}"):
        to_model_input(images)


@pytest.mark.parametrize(
    "shape", [(28, 28), (28, 28, 3), (28, 28, 1), (40, 30, 2), (40, 30, 4), (5, 28, 3)]
)
def test_one_picture_is_not_read_as_many(shape):
    with pytest.raises(ValueError, match=r"picture\[None\]"):
        to_model_input(np.zeros(shape, np.uint8))


def test_three_grey_pictures_and_one_in_colour_are_told_apart():
    picture = np.random.default_rng(0).integers(256, size=(40, 30, 3), dtype=np.uint8)
    channels_first = picture.transpose(2, 0, 1)
    with pytest.raises(ValueError, match=r"may be three grey pictures or one in colour"):
        to_model_input(channels_first)
    # Both ways out that the message names:
    assert to_model_input(channels_first[..., None]).shape == (3, 1, 28, 28)
    again = to_model_input(channels_first.transpose(1, 2, 0)[None])
    assert torch.equal(again, to_model_input(picture[None]))
    assert to_model_input(np.zeros((3, 28, 28), np.uint8)).shape == (3, 1, 28, 28)  # of MNIST


def test_a_whole_data_set_is_refused_with_what_is_meant():
    from osr.caches import ImageSet

    found = ImageSet(np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.int64), "mine")
    with pytest.raises(ValueError, match="give its images, such as load_images"):
        to_model_input(found)
    assert to_model_input(found.images).shape == (2, 1, 28, 28)


def test_a_last_axis_of_one_channel_is_grey():
    images = np.random.default_rng(0).integers(256, size=(2, 32, 32), dtype=np.uint8)
    assert torch.equal(to_model_input(images[..., None]), to_model_input(images))


def test_the_dtype_of_model_input_is_not_the_default_one():
    torch.set_default_dtype(torch.float64)
    try:
        assert to_model_input(np.zeros((2, 32, 32, 3), np.uint8)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# --- augmentation ---------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def first_draw():
    """Return what the first image of a batch of one draws, in [-1, 1]: angle, x and y shift."""
    return (torch.rand(3, 1, generator=generator()) * 2 - 1)[:, 0].tolist()


def test_no_rotation_and_no_shift_change_nothing():
    x = torch.rand(4, 1, 28, 28)
    y = augment(x, generator(), degrees=0, translate=0)
    torch.testing.assert_close(y, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(6, 1, 28, 28), (6, 3, 32, 32)])
def test_augmented_images_keep_shape_and_range(shape):
    x = torch.ones(shape)
    y = augment(x, generator(), degrees=45, translate=0.3)
    assert y.shape == shape and y.dtype == torch.float32
    assert y.min() == 0 and y.max() <= 1 + 1e-6
    assert y[:, :, 13:15, 13:15].min() > 0.999  # the middle stays, the background fills in


def test_augmentation_is_seeded_and_differs_from_image_to_image():
    x = torch.rand(1, 1, 28, 28).repeat(5, 1, 1, 1)
    first, again, other = (augment(x, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) == 5


def test_a_rotation_by_90_degrees_turns_the_image():
    x = torch.rand(1, 1, 28, 28)
    y = augment(x, generator(), degrees=90 / first_draw()[0], translate=0)
    turned = [torch.rot90(x, k, (2, 3)) for k in (1, -1)]
    assert any(torch.allclose(y, t, atol=1e-4) for t in turned)


def centroid(x):
    places = torch.arange(28.0)
    return [float((x.sum(axis).flatten() * places).sum() / x.sum()) for axis in (2, 3)]


def test_a_shift_moves_the_image_by_that_many_pixels():
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 12:16, 12:16] = torch.rand(4, 4)
    _, right, down = first_draw()
    y = augment(x, generator(), degrees=0, translate=3 / 28 / abs(right))
    moved = [b - a for a, b in zip(centroid(x), centroid(y), strict=True)]
    assert abs(moved[0]) == pytest.approx(3, abs=1e-3)
    assert abs(moved[1]) == pytest.approx(3 * abs(down / right), abs=1e-3)
    assert y.sum() == pytest.approx(float(x.sum()), rel=1e-4)


def test_a_shift_of_whole_pixels_copies_them():
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, :, 12:16] = torch.rand(4)  # the same in every row
    translate = 3 / 28 / abs(first_draw()[1])
    y = augment(x, generator(), degrees=0, translate=translate)[:, :, 14]
    moved = [x[:, :, 14].roll(shift, 2) for shift in (3, -3)]
    assert any(torch.allclose(y, m, atol=1e-4) for m in moved)


def test_shifts_stay_within_their_bound_and_use_it():
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, 13:15, 13:15] = 1
    y = augment(x, generator(), degrees=0, translate=0.1)
    moved = [math.hypot(*(c - 13.5 for c in centroid(image[None]))) for image in y]
    axis = [abs(c - 13.5) for image in y for c in centroid(image[None])]
    assert max(axis) <= 2.8 + 1e-3 and max(axis) > 2.6 and max(moved) > 2.8


def test_rotations_stay_within_their_bound_and_use_it():
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, 13:15, 22:24] = 1  # to the right of the centre
    y = augment(x, generator(), degrees=15, translate=0)
    angles = [
        math.degrees(math.atan2(down - 13.5, right - 13.5))
        for right, down in (centroid(image[None]) for image in y)
    ]
    assert max(map(abs, angles)) <= 15.5 and max(angles) > 14 and min(angles) < -14


def second_draw():
    """Return what the first image of a batch of one draws next: width, height and shear."""
    numbers = generator()
    torch.rand(3, 1, generator=numbers)
    return (torch.rand(3, 1, generator=numbers) * 2 - 1)[:, 0].tolist()


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("options", [{}, {"scale": 0.0, "shear": 0.0}])
def test_without_scale_and_shear_the_draws_are_the_old_ones(n, options):
    x = torch.rand(n, 1, 28, 28, generator=generator(1))
    numbers, reference = generator(2), generator(2)
    y = augment(x, numbers, degrees=20, translate=0.2, **options)
    angle, right, down = torch.rand(3, n, generator=reference) * 2 - 1
    angle = angle * math.radians(20)
    rows = [angle.cos(), -angle.sin(), right * 2 * 0.2, angle.sin(), angle.cos(), down * 2 * 0.2]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), x.shape, align_corners=False)
    expected = F.grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)
    assert torch.equal(numbers.get_state(), reference.get_state())


@pytest.mark.parametrize("options", [{"scale": 0.3}, {"shear": 0.3}])
def test_scale_or_shear_draw_three_more_numbers_an_image(options):
    numbers, reference = generator(), generator()
    augment(torch.rand(5, 1, 28, 28), numbers, **options)
    torch.rand(3, 5, generator=reference)
    torch.rand(3, 5, generator=reference)
    assert torch.equal(numbers.get_state(), reference.get_state())


@pytest.mark.parametrize("degrees, translate", [(0, 0), (25, 0.15)])
@pytest.mark.parametrize("scale, shear", [(0.3, 0), (0, 0.4), (0.3, 0.4)])
def test_augmentation_agrees_with_scipys_affine_transform(degrees, translate, scale, shear):
    x = torch.rand(1, 1, 28, 28, generator=generator(1))
    y = augment(x, generator(), degrees, translate, scale, shear)
    angle, right, down = first_draw()
    wide, high, slant = second_draw()
    cos, sin = (f(angle * math.radians(degrees)) for f in (math.cos, math.sin))
    turn = np.array([[cos, sin], [-sin, cos]])  # of (row, column), as in scipy
    stretch = np.array([[math.exp(high * scale), 0], [slant * shear, math.exp(wide * scale)]])
    matrix, centre = turn @ stretch, np.full(2, 13.5)
    offset = centre - matrix @ centre + 28 * translate * np.array([down, right])
    image = x[0, 0].numpy().astype(np.float64)
    expected = ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(y[0, 0].numpy(), expected, atol=1e-4)


def test_warp_is_torchs_affine_grid_and_grid_sample():
    x, theta = torch.rand(5, 3, 12, 12), torch.randn(5, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, x.shape, align_corners=False)
    expected = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(warp(x, theta), expected, rtol=0, atol=1e-4)


def test_scale_changes_each_side_within_its_bound_and_uses_it():
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, 9:19, 9:19] = 1
    y = augment(x, generator(), degrees=0, translate=0, scale=0.3)[:, 0]
    wide, high = y[:, 13:15].mean(1).sum(1) / 10, y[:, :, 13:15].mean(2).sum(1) / 10
    torch.testing.assert_close(y.sum((1, 2)), wide * high * 100, rtol=1e-4, atol=0)
    for side in (wide, high):
        assert side.min() >= math.exp(-0.3) - 0.01 and side.max() <= math.exp(0.3) + 0.01
        assert side.min() < math.exp(-0.28) and side.max() > math.exp(0.28)
        assert side.log().mean().abs() < 0.03
    assert np.corrcoef(wide, high)[0, 1] == pytest.approx(0, abs=0.2)
    for image in y[:20]:
        assert centroid(image[None, None]) == pytest.approx([13.5, 13.5], abs=1e-3)


def test_shear_shifts_each_row_in_proportion_to_its_height():
    x = torch.zeros(300, 1, 28, 28)
    x[:, :, :, 13:15] = 1
    y = augment(x, generator(), degrees=0, translate=0, shear=0.3)[:, 0]
    torch.testing.assert_close(y.sum(2), torch.full((300, 28), 2.0), rtol=1e-4, atol=0)
    shift = (y * (torch.arange(28) - 13.5)).sum(2) / 2
    height = torch.arange(28) - 13.5
    slope = (shift[:, -1] - shift[:, 0]) / 27
    torch.testing.assert_close(shift, slope[:, None] * height, rtol=0, atol=1e-3)
    assert slope.abs().max() <= 0.3 + 1e-4 and slope.min() < -0.28 and slope.max() > 0.28


def test_torchs_defaults_do_not_change_the_augmentation():
    x = torch.rand(4, 1, 28, 28, generator=generator(1))
    numbers = generator(), generator()
    expected = augment(x, numbers[0], scale=0.3, shear=0.1)
    with other_defaults():
        found = augment(x, numbers[1], scale=0.3, shear=0.1)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float64, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2),
])  # fmt: skip
def test_images_keep_their_dtype_and_draw_the_same(dtype, tolerance):
    x = torch.rand(4, 1, 28, 28, generator=generator(1)).to(dtype)
    found, expected = augment(x, generator(), scale=0.3), augment(x.float(), generator(), scale=0.3)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)
    theta = torch.eye(2, 3).expand(4, 2, 3)
    assert warp(x, theta.double()).dtype == warp(x, theta).dtype == dtype


def test_no_images_are_augmented_to_none():
    assert augment(torch.zeros(0, 1, 28, 28), generator()).shape == (0, 1, 28, 28)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 28, 32),
        torch.zeros(2, 28, 28),
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 1, 28, 28, dtype=torch.complex64),
    ],
)
def test_images_that_are_not_square_or_not_float_are_not_warped(images):
    found = re.escape(f"found {images.dtype} {tuple(images.shape)}")
    with pytest.raises(ValueError, match=rf"expected float images \(N, C, S, S\), {found}"):
        augment(images, generator())
    with pytest.raises(ValueError, match=found):
        warp(images, torch.eye(2, 3).expand(2, 2, 3))


@pytest.mark.parametrize("shape", [(4, 3, 2), (3, 2, 3), (1, 2, 3), (2, 3), (4, 6)])
def test_theta_of_another_shape_is_refused(shape):
    found = re.escape(f"expected theta (4, 2, 3), found {shape}")
    with pytest.raises(ValueError, match=found):
        warp(torch.zeros(4, 1, 28, 28), torch.zeros(shape))


@pytest.mark.parametrize("name", ["degrees", "translate", "scale", "shear"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_amount_that_is_not_finite_is_refused(name, value):
    numbers = generator()
    with pytest.raises(ValueError, match=f"{name} is {value}: give a finite number"):
        augment(torch.zeros(2, 1, 28, 28), numbers, **{name: value})
    assert torch.equal(numbers.get_state(), generator().get_state())


# --- grounds --------------------------------------------------------------------------------------


def test_a_ground_lifts_black_and_leaves_white():
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert on_ground(x, 0.2).flatten().tolist() == pytest.approx([0.2, 0.6, 1.0])
    assert torch.equal(on_ground(x, 0), x)


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.75, 1])
def test_ground_matching_blackens_the_quantile_of_each_image(share):
    x = torch.rand(5, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    found = ground_matched(x, share)
    for before, after in zip(x.numpy(), found.numpy(), strict=True):
        ground = np.quantile(before, share, method="lower")
        expected = np.clip((before - ground) / (1 - ground), 0, 1)
        np.testing.assert_allclose(after, expected, atol=1e-5)
        assert (after == 0).mean() >= share


def test_ground_matching_takes_a_share_for_each_image():
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2
    found = ground_matched(x, torch.tensor([0.0, 0.5]))
    assert (found[0] == 0).sum() == 1 and (found[1] == 0).sum() == 8
    assert torch.equal(found[:1], ground_matched(x[:1], 0.0))


def test_a_flat_image_becomes_black():
    assert not ground_matched(torch.full((1, 1, 5, 5), 0.7), 0.5).any()
