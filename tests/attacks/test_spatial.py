"""Worst of a grid: known geometry, planted models that break and that cannot, brute force, batch sizes."""

import itertools

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.shifts.blur import BlurShift
from auditorch.attacks.shifts.colour import ColourShift
from auditorch.attacks.shifts.grid import Shift, evaluate_shift
from auditorch.attacks.shifts.spatial import SpatialGrid
from torch import Tensor, nn

SHIFTS = [SpatialGrid(), ColourShift(), BlurShift()]


def dots(*places: tuple[int, int], side: int = 21) -> Tensor:
    """Images with one bright 3x3 dot each, at (row, column)."""
    x = torch.zeros(len(places), 1, side, side)
    for i, (row, column) in enumerate(places):
        x[i, 0, row - 1 : row + 2, column - 1 : column + 2] = 1
    return x


class LeftOrRight(nn.Module):
    """Class 0 when the dot is in the left half."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        return torch.stack([x[..., :half].sum((1, 2, 3)), x[..., half + 1 :].sum((1, 2, 3))], 1)


class Mass(nn.Module):
    """Class 0 when there is something to see; the same wherever it lies."""

    def forward(self, x: Tensor) -> Tensor:
        mass = x.sum((1, 2, 3))
        return torch.stack([mass, torch.full_like(mass, 3.0)], 1)


class Linear(nn.Module):
    def __init__(self, features: int, k: int = 3) -> None:
        super().__init__()
        weight = torch.randn(features, k, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight - weight.mean(0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight


def test_a_model_of_position_breaks_under_translation_where_it_must() -> None:
    # 21 pixels, 10 % are 2.1: dots up to two pixels left of the middle column can be moved across it.
    x, y = dots((10, 3), (10, 6), (10, 9), (10, 17)), torch.tensor([0, 0, 0, 1])
    grid = SpatialGrid(rotations=(0.0,), translations=(-3 / 21, 0.0, 3 / 21), scales=(1.0,))
    outcome = evaluate_shift(grid, LeftOrRight(), x, y)
    assert outcome.correct.all()
    assert outcome.success.tolist() == [False, False, True, False]
    assert outcome.robust_accuracy == 0.75
    assert outcome.points[outcome.worst[2]][1] == pytest.approx(3 / 21)
    assert float(outcome.x_worst[2, 0, :, 11:14].sum()) == pytest.approx(9, abs=1e-3)
    assert outcome.worst_logits[2].argmax() == 1


def test_a_rotation_invariant_model_stands_and_one_of_position_falls_under_rotation() -> None:
    x = dots((4, 9), (16, 9), (10, 10))
    grid = SpatialGrid(rotations=(-60.0, -30.0, 0.0, 30.0, 60.0), translations=(0.0,), scales=(1.0,))
    assert evaluate_shift(grid, Mass(), x, torch.zeros(3, dtype=torch.int64)).robust_accuracy == 1
    fallen = evaluate_shift(grid, LeftOrRight(), x[:2], torch.zeros(2, dtype=torch.int64))
    assert fallen.success.tolist() == [True, True]
    # Counter-clockwise moves a dot above the centre to the left, so only clockwise pushes it right, and vice versa.
    assert fallen.points[fallen.worst[0]][0] < 0
    assert fallen.points[fallen.worst[1]][0] > 0


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((90.0, 0.0, 0.0, 1.0), lambda x: x.rot90(1, (2, 3))),
        ((180.0, 0.0, 0.0, 1.0), lambda x: x.flip(2, 3)),
        ((0.0, 2 / 9, 0.0, 1.0), lambda x: nn.functional.pad(x, (2, -2, 0, 0))),
        ((0.0, 0.0, -1 / 9, 1.0), lambda x: nn.functional.pad(x, (0, 0, -1, 1))),
        ((0.0, 0.0, 0.0, 3.0), lambda x: x[:, :, 3:6, 3:6]),
    ],
)
def test_geometry_is_what_the_words_say(point: tuple[float, ...], expected: object) -> None:
    x = torch.rand(1, 2, 9, 9, generator=torch.Generator().manual_seed(1))
    moved = SpatialGrid().apply(x, torch.tensor([point]))
    if point[3] == 3.0:
        moved = moved[:, :, 1::3, 1::3]
    assert torch.allclose(moved, expected(x), atol=1e-5)  # pyright: ignore[reportCallIssue]


def test_rotation_keeps_shapes_on_oblong_images() -> None:
    x = torch.zeros(1, 1, 20, 40)
    x[0, 0, 9:11, 14:26] = 1
    turned = SpatialGrid().apply(x, torch.tensor([[90.0, 0.0, 0.0, 1.0]]))
    assert torch.allclose(turned[0, 0, 4:16, 19:21], torch.ones(12, 2), atol=1e-4)
    assert float(turned.sum()) == pytest.approx(24, rel=1e-3)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_point_changes_nothing_and_all_stay_images(shift: Shift, channels: int) -> None:
    x = torch.rand(2, channels, 12, 10, generator=torch.Generator().manual_seed(2))
    points = torch.tensor(shift.points(channels))
    assert torch.allclose(shift.apply(x, points[:1].expand(2, -1)), x, atol=1e-5)
    assert shift.describe(points[0].tolist()) == "unchanged"
    assert len({tuple(point) for point in points.tolist()}) == len(points)
    for point in points[1:]:
        changed = shift.apply(x, point.expand(2, -1))
        assert changed.shape == x.shape
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert not torch.allclose(changed, x, atol=1e-4)
        assert shift.describe(point.tolist()) != "unchanged"


@pytest.mark.parametrize("shift", [SpatialGrid((-2.0, 0.0, 2.0), (-0.02, 0.0, 0.02), (1.0, 1.02)), *SHIFTS[1:]])
def test_the_active_set_finds_what_brute_force_finds(shift: Shift) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(30, 3, 8, 8, generator=generator)
    model = Linear(192)
    with torch.no_grad():
        y = model(x).argmax(1)
        y[:4] = (y[:4] + 1) % 3
        points = torch.tensor(shift.points(3))
        right = torch.stack([model(shift.apply(x, p.expand(30, -1))).argmax(1) == y for p in points])
    right[0, 4:] = True
    outcomes = [evaluate_shift(shift, model, x, y, batch_size=size) for size in (7, 64, 4096)]
    for outcome in outcomes:
        assert torch.equal(outcome.success, ~right.all(0))
        assert torch.equal(outcome.correct, right[0])
        assert torch.equal(outcome.worst, outcomes[0].worst)
        assert torch.equal(outcome.worst_logits.argmax(1) != y, outcome.success)
    assert 0 < float(outcomes[0].success.double().mean()) < 1
    assert outcomes[0].forwards < 30 * (len(points) + 1)


def test_colour_does_what_it_says() -> None:
    shift = ColourShift()
    grey = torch.full((1, 3, 4, 4), 0.4)
    for point in ((0.0, 1.0, 1.0, 0.0, 0.0), (0.0, 1.0, 1.0, 1.0, 90.0), (0.0, 0.2, 1.0, 1.0, 0.0)):
        assert torch.allclose(shift.apply(grey, torch.tensor([point])), grey, atol=1e-4)
    assert shift.apply(grey, torch.tensor([[0.1, 1.0, 1.0, 1.0, 0.0]])).mean() == pytest.approx(0.5)
    assert shift.apply(grey, torch.tensor([[0.0, 1.0, 2.0, 1.0, 0.0]])).mean() == pytest.approx(0.16)
    red = torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    turned = shift.apply(red, torch.tensor([[0.0, 1.0, 1.0, 1.0, 120.0]]))[0, :, 0, 0]
    assert int(turned.argmax()) != 0
    assert len(shift.points(1)) == 27
    assert len(shift.points(3)) == 243


def test_blur_spreads_but_keeps_the_sum() -> None:
    x = dots((10, 10))
    blurred = BlurShift().apply(x, torch.tensor([[1.0]]))
    assert float(blurred.sum()) == pytest.approx(9, rel=1e-3)
    rows = torch.arange(21.0)
    variance = float((blurred.sum((0, 1, 3)) / 9 * (rows - 10) ** 2).sum())
    assert variance == pytest.approx(2 / 3 + 1, rel=0.01)  # of the dot plus that of the Gaussian


def test_extremes_come_first_and_progress_ends() -> None:
    points = SpatialGrid().points(1)
    assert points[0] == (0.0, 0.0, 0.0, 1.0)
    assert set(itertools.chain(*(map(abs, point) for point in points[1:3]))) <= {30.0, 0.1, 0.9, 1.1}
    seen: list[tuple[int, int]] = []
    evaluate_shift(
        BlurShift(), Mass(), dots((5, 5)), torch.tensor([0]), progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (5, 5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SpatialGrid(scales=(0.0,)),
        lambda: SpatialGrid(rotations=()),
        lambda: ColourShift(gamma=(0.0,)),
        lambda: BlurShift(sigmas=(-1.0,)),
        lambda: evaluate_shift(BlurShift(), Mass(), torch.rand(2, 5), torch.zeros(2, dtype=torch.int64)),
        lambda: evaluate_shift(BlurShift(), Mass(), torch.rand(2, 1, 5, 5) + 1, torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(UnsupportedError):
        make()  # pyright: ignore[reportCallIssue]
