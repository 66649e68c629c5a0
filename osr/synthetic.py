"""Generated pictures that are no digits: synthetic outliers, in place of collected unknowns.

Each of `FAMILIES` takes a number and a generator on the CPU, and returns float images
(n, 1, 28, 28) in [0, 1], whole batches at a time; `cut_up`, `photographed` and `draw_again` change
images that they are given. Notebooks 03b and 06 show and explain them.
"""

import math

import torch
import torch.nn.functional as F

from osr.images import augment

PIXEL = (torch.arange(28, dtype=torch.float32, device="cpu") + 0.5) / 28  # in the unit square
GRID = torch.stack(torch.meshgrid(PIXEL, PIXEL, indexing="xy"), -1).view(1, 784, 2)


def ink(points, generator):
    """Draw curves, given as (n, P, 2) points in the unit square, with pens of random width."""
    images = []
    for part in points.split(500):  # bounds the memory of the distances
        n, p, _ = part.shape
        width, brush, phase, softness = torch.rand(4, n, 1, 1, generator=generator)
        along = torch.linspace(0, 6 * math.pi, p) + 6.3 * phase
        radius = 0.7 + 1.8 * width * (1 + 0.6 * (brush < 0.5) * along.sin())
        outside = (torch.cdist(GRID.expand(n, -1, -1), part) * 28 - radius).amin(2)
        images.append((0.5 - outside / (0.5 + softness[..., 0])).clamp(0, 1).view(n, 1, 28, 28))
    return torch.cat(images)


def bezier(control, used):
    """Points on quadratic Bezier curves: (n, K, 3, 2) control points, of which `used` (n, K)."""
    t = torch.linspace(0, 1, 20).view(-1, 1)
    a, b, c = control[:, :, None].unbind(3)
    curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    return torch.where(used[:, :, None, None], curve, 9.0).flatten(1, 2)  # 9: far outside


def strokes(n, generator):
    """Two to five bent or straight strokes."""
    size = 0.5 + 0.6 * torch.rand(n, 1, 1, 1, generator=generator)  # of the drawing
    control = 0.5 + size * (torch.rand(n, 5, 3, 2, generator=generator) - 0.5)
    linked, straight = torch.rand(2, n, 5, 1, generator=generator) < torch.tensor([0.6, 0.4]).view(
        2, 1, 1, 1
    )
    for k in range(1, 5):
        control[:, k, 0] = torch.where(linked[:, k], control[:, k - 1, 2], control[:, k, 0])
    middle = control[:, :, [0, 2]].mean(2)
    control[:, :, 1] = torch.where(straight, middle, control[:, :, 1])
    used = torch.arange(5) < torch.randint(2, 6, (n, 1), generator=generator)
    return ink(bezier(control, used), generator)


def signs(n, generator):
    """Two to four lines or arcs between the points of a 3 x 4 grid, half of them mirrored."""
    start, end = (
        torch.stack([torch.randint(m, (n, 4), generator=generator) / (m - 1) for m in (3, 4)], -1)
        for _ in range(2)
    )
    linked, straight, mirrored = torch.rand(3, n, 4, 1, generator=generator) < 0.55
    for k in range(1, 4):
        start[:, k] = torch.where(linked[:, k], end[:, k - 1], start[:, k])
    end = torch.where((start == end).all(-1, keepdim=True), (start + 0.5) % 1.25, end)
    across = (end - start).flip(-1) * torch.tensor([-1.0, 1.0])
    bend = torch.empty(n, 4, 1).uniform_(-1.2, 1.2, generator=generator)
    middle = (start + end) / 2 + across * torch.where(straight, 0.0, bend)
    control = torch.stack([start, middle, end], 2)
    used = torch.arange(4) < torch.randint(2, 5, (n, 1), generator=generator)
    control = torch.cat([control, control * torch.tensor([-1, 1]) + torch.tensor([1, 0])], 1)
    used = torch.cat([used, used & mirrored[:, :1, 0]], 1)
    size = torch.tensor([0.4, 0.55]) + torch.rand(n, 1, 1, 2, generator=generator) * 0.25
    return ink(bezier((control - 0.5) * size + 0.5, used), generator)


def clouds(n, generator):
    """Random values on grids of 2 to 28 points a side, enlarged, at random contrast."""
    images = []
    for start in range(0, n, 50):  # each group has its own coarseness
        m = min(50, n - start)
        side = int(2 * 14 ** torch.rand((), generator=generator))
        coarse = torch.randn(m, 1, side, side, generator=generator)
        fine = F.interpolate(coarse, (28, 28), mode="bicubic", align_corners=False)
        contrast, level = torch.rand(2, m, 1, 1, 1, generator=generator)
        images.append((3 * contrast - 1).exp() * (fine / 2 + 0.8 * (2 * level - 1)) + 0.5)
    return torch.cat(images).clamp(0, 1)


def shapes(n, generator):
    """Filled silhouettes: a random radius by angle, half of the waves left-right symmetric."""

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    x, y = (2 * PIXEL - 1)[None, None, :], (2 * PIXEL - 1)[None, :, None]
    u = (x - uniform(-0.2, 0.2)) / uniform(0.25, 0.85)
    v = (y - uniform(-0.2, 0.2)) / uniform(0.3, 0.9)
    angle, power = torch.atan2(v, u), uniform(2, 6)  # power 2: ellipse, 6: nearly a rectangle
    edge = torch.ones(n, 28, 28)
    for k in range(1, 7):
        phase = torch.where(uniform(0, 1) < 0.5, math.pi / 2 * (1 - k), uniform(0, 6.3))
        height = torch.randn(n, 1, 1, generator=generator) * 0.35 / k**0.7
        edge += height * (k * angle + phase).sin()
    radius = (u.abs() ** power + v.abs() ** power) ** (1 / power)
    turn, wave = uniform(0, 6.3), uniform(3, 20)
    stripes = 0.7 + 0.3 * ((x * turn.cos() + y * turn.sin()) * wave).sin()
    texture = torch.where(uniform(0, 1) < 0.5, 0.4 + 0.6 * clouds(n, generator)[:, 0], stripes)
    fill = uniform(0.3, 1) * torch.where(uniform(0, 1) < 0.4, 1.0, texture)
    return (((edge - radius) * 8 + 0.5).clamp(0, 1) * fill)[:, None]


def chaos_game(maps, shift, choose, points, jumps, skipped):
    """Let points jump by random contractions, p -> map p + shift; return where they land.

    Parameters
    ----------
    maps : float tensor, (m, K, 2, 2)
    shift : float tensor, (m, K, 2)
    choose : callable
        ``choose()`` -> (m, points) int tensor: the map that each point takes next.
    points, jumps, skipped : int
        The first `skipped` jumps only lead to the attractor.

    Returns
    -------
    float tensor, (m, (jumps - skipped) * points, 2)
    """
    row, where, trail = torch.arange(len(maps))[:, None], torch.zeros(len(maps), points, 2), []
    for _ in range(jumps):
        pick = choose()
        where = (maps[row, pick] @ where[..., None])[..., 0] + shift[row, pick]
        trail.append(where)
    return torch.cat(trail[skipped:], 1)


def fractals(n, generator):
    """Attractors of iterated function systems, drawn by 128 points that jump 40 times."""
    images = []
    for start in range(0, n, 500):  # bounds the memory
        m = min(500, n - start)
        maps = 2 * torch.rand(m, 4, 2, 2, generator=generator) - 1
        shrink = 0.4 + 0.5 * torch.rand(m, 4, 1, 1, generator=generator)
        maps = maps / torch.linalg.matrix_norm(maps, 2, keepdim=True) * shrink
        shift = 2 * torch.rand(m, 4, 1, 2, generator=generator)[:, :, 0] - 1
        number = torch.randint(2, 5, (m, 1), generator=generator)  # of maps

        def choose(number=number, m=m):
            return (torch.rand(m, 128, generator=generator) * number).long()

        trail = chaos_game(maps, shift, choose, points=128, jumps=40, skipped=8)
        low, high = trail.amin(1, keepdim=True), trail.amax(1, keepdim=True)
        pixel = ((trail - low) / (high - low).clamp_min(1e-6) * 21.99 + 3).long()
        count = torch.zeros(m, 784).scatter_add_(
            1, pixel[..., 1] * 28 + pixel[..., 0], torch.ones(m, trail.shape[1])
        )
        ease = (3 * torch.rand(m, 1, generator=generator)).exp()
        images.append((count / ease / 2).clamp(0, 1).view(m, 1, 28, 28))
    return torch.cat(images)


# Not 0, 1, 8, which a mirror leaves alone, nor 2 and 5, which it turns into each other.
MIRROR = torch.tensor([k in (3, 4, 6, 7, 9) for k in range(10)], device="cpu")
TURN = torch.tensor([k != 0 for k in range(10)], device="cpu")


def cut_up(images, labels, generator):
    """Digits that are digits no more: overlaid, recombined, shuffled, mirrored or turned."""
    n = len(images)
    other = images[torch.randperm(n, generator=generator)]
    shift = torch.randint(-8, 9, (2,), generator=generator).tolist()
    slide = int(torch.randint(5, 10, (), generator=generator))
    overlaid = torch.maximum(images, other.roll(shift, (2, 3)))
    stacked = torch.cat([images[:, :, :14], other.roll(slide, 3)[:, :, 14:]], 2)
    joined = torch.cat([images[..., :14], other.roll(-slide, 2)[..., 14:]], 3)
    tiles = F.unfold(images, 7, stride=7)
    order = torch.rand(n, 1, 16, generator=generator).argsort(2).to(images.device)
    shuffled = F.fold(tiles.gather(2, order.expand_as(tiles)), (28, 28), 7, stride=7)
    mirror, turn = (table.to(labels.device)[labels].view(-1, 1, 1, 1) for table in (MIRROR, TURN))
    mirrored = torch.where(mirror, images.flip(3), stacked)
    turned = torch.where(turn, images.rot90(1 if slide % 2 else -1, (2, 3)), joined)
    kinds = torch.stack([overlaid, stacked, joined, shuffled, mirrored, turned])
    return kinds[torch.randint(6, (n,), generator=generator), torch.arange(n)]


def photographed(images, generator):
    """Digits as a camera sees them: blurred, at any contrast, on grounds that are never black."""
    shown = []
    for part in images.split(250):  # each group has its own blur
        n, side = len(part), int(torch.randint(14, 29, (), generator=generator))
        small = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
        soft = F.interpolate(small, (28, 28), mode="bilinear")
        level, depth, ink_level, grain = torch.rand(4, n, 1, 1, 1, generator=generator)
        cloud = clouds(n, generator)[torch.randperm(n, generator=generator)]
        noise = (0.005 + 0.03 * grain) * torch.randn(n, 1, 28, 28, generator=generator)
        ground = 0.01 + 0.5 * level**2 * (1 - depth * cloud) + noise
        ink_level, ground = (0.2 + 0.8 * ink_level).to(part.device), ground.to(part.device)
        shown.append((ground + soft * (ink_level - ground)).clamp(0, 1))
    return torch.cat(shown)


FAMILIES = {strokes: 0.25, signs: 0.25, shapes: 0.2, clouds: 0.15, fractals: 0.15}


def outlier_pool(n, seed):
    """Pictures of all families; about one in fourteen is shown in negative."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.cat([family(round(n * share), generator) for family, share in FAMILIES.items()])
    negative = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.07
    return torch.where(negative, 1 - images, images)


def draw_again(images, generator):
    """Every image turned, shifted, scaled, sheared; some blurred, thick, thin, pale or bold."""
    x = augment(images, generator, scale=0.3, shear=0.15)
    kind, much = torch.rand(2, len(x), 1, 1, 1, generator=generator).to(x.device)
    side = 8 + 2 * int(torch.randint(6, (), generator=generator))
    small = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
    blurred = F.interpolate(small, (28, 28), mode="bilinear", align_corners=False)
    thicker = x.lerp(F.max_pool2d(x, 3, 1, 1), much)
    thinner = x.lerp(-F.max_pool2d(-x, 3, 1, 1), 0.5 * much)
    paler = x ** (0.4 + 1.2 * much)
    # Of all pictures 12 % are blurred, 8 % thicker, 4 % thinner, 6 % paler.
    for limit, changed in ((0.3, paler), (0.24, thinner), (0.2, thicker), (0.12, blurred)):
        x = torch.where(kind < limit, changed, x)
    return x
