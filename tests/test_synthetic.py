"""Generated pictures: the families, the pool, the attractors against a plain loop."""

import runpy

import pytest
import torch

from helpers import other_defaults
from osr import synthetic

FAMILIES = [*synthetic.FAMILIES]
CHANGES = [
    lambda x, y, generator: synthetic.cut_up(x, y, generator),
    lambda x, y, generator: synthetic.photographed(x, generator),
    lambda x, y, generator: synthetic.draw_again(x, generator),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    """Return pictures that stand for digits: ink in the middle, and labels."""
    x = torch.zeros(60, 1, 28, 28)
    x[:, :, 6:22, 8:20] = torch.rand(60, 1, 16, 12, generator=seeded())
    return x, torch.arange(60) % 10


def assert_pictures(images, n):
    assert images.shape == (n, 1, 28, 28) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert len({image.numpy().tobytes() for image in images}) > 0.9 * n


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_family_gives_the_pictures_of_its_seed(family):
    found = family(60, seeded())
    assert_pictures(found, 60)
    assert found.mean() > 0.02 and found.flatten(1).std(1).mean() > 0.05
    assert torch.equal(family(60, seeded()), found)
    assert not torch.equal(family(60, seeded(1)), found)


def test_the_pool_holds_every_family_in_its_share_and_some_in_negative():
    assert sum(synthetic.FAMILIES.values()) == pytest.approx(1)
    pool = synthetic.outlier_pool(200, seed=3)
    assert_pictures(pool, 200)
    assert torch.equal(synthetic.outlier_pool(200, seed=3), pool)
    generator = seeded(3)
    plain = torch.cat([f(round(200 * s), generator) for f, s in synthetic.FAMILIES.items()])
    kept, turned = ((pool == x).flatten(1).all(1) for x in (plain, 1 - plain))
    assert (kept | turned).all() and 4 <= turned.sum() <= 30


@pytest.mark.parametrize("change", CHANGES, ids=["cut_up", "photographed", "draw_again"])
def test_changed_digits_are_pictures_of_the_seed_and_leave_the_digits_alone(digits, change):
    x, y = digits
    before = x.clone()
    found = change(x, y, seeded())
    assert_pictures(found, 60)
    assert torch.equal(x, before) and not (found == x).flatten(1).all(1).any()
    assert torch.equal(change(x, y, seeded()), found)


def test_the_tables_of_the_pictures_do_not_follow_torchs_defaults():
    with other_defaults():
        other = runpy.run_path(synthetic.__file__)
    for name in ("PIXEL", "GRID", "MIRROR", "TURN"):
        assert torch.equal(other[name], getattr(synthetic, name))


def test_no_cut_up_digit_is_a_digit_turned_into_another(digits):
    """A mirrored 0, 1 or 8 would be one still, a mirrored 2 nearly a 5, a turned 0 a 0."""
    assert synthetic.MIRROR.nonzero().flatten().tolist() == [3, 4, 6, 7, 9]
    assert synthetic.TURN.nonzero().flatten().tolist() == list(range(1, 10))
    x = digits[0]
    for digit in (0, 1, 2, 5, 8):
        labels = torch.full((60,), digit)
        for seed in range(5):
            found = synthetic.cut_up(x, labels, seeded(seed))
            assert not (found == x.flip(3)).flatten(1).all(1).any()
            if digit == 0:
                for k in (1, -1):
                    assert not (found == x.rot90(k, (2, 3))).flatten(1).all(1).any()


def test_photographs_have_no_black_ground(digits):
    corner = synthetic.photographed(digits[0], seeded())[:, 0, :3, :3]
    assert corner.mean() > 0.02 and digits[0][:, 0, :3, :3].max() == 0


# --- chaos_game -----------------------------------------------------------------------------------


def test_the_chaos_game_agrees_with_a_plain_loop():
    m, k, points, jumps, skipped = 3, 4, 5, 9, 2
    maps = torch.rand(m, k, 2, 2, generator=seeded()) - 0.5
    shift = torch.rand(m, k, 2, generator=seeded(1))
    choices = torch.randint(k, (jumps, m, points), generator=seeded(2))
    calls = iter(choices)
    found = synthetic.chaos_game(
        maps, shift, lambda: next(calls), points=points, jumps=jumps, skipped=skipped
    )
    expected = []
    for i in range(m):
        trail, places = [], [[0.0, 0.0] for _ in range(points)]
        for jump in range(jumps):
            for p in range(points):
                a, b = maps[i, choices[jump, i, p]].tolist(), shift[i, choices[jump, i, p]].tolist()
                x, y = places[p]
                places[p] = [a[0][0] * x + a[0][1] * y + b[0], a[1][0] * x + a[1][1] * y + b[1]]
                if jump >= skipped:
                    trail.append(places[p])
        expected.append(trail)
    assert found.shape == (m, (jumps - skipped) * points, 2) and next(calls, None) is None
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_chaos_game_of_three_halves_is_the_sierpinski_triangle():
    maps = (torch.eye(2) / 2).expand(1, 3, 2, 2)
    corners = torch.tensor([[[0.0, 0], [0.5, 0], [0, 0.5]]])
    generator = seeded()
    found = synthetic.chaos_game(
        maps, corners, lambda: torch.randint(3, (1, 100), generator=generator),
        points=100, jumps=40, skipped=20,
    )  # fmt: skip
    x, y = (found[0] * 2**10).long().unbind(1)  # no binary digit is 1 in both
    assert (x & y == 0).all() and found.min() >= 0 and found.sum(2).max() <= 1 + 1e-6
