"""Projections: feasible, idempotent, and nearest; steepest corners: feasible and best."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks.ball import Ball, sparse_sign, unit
from auditorch.attacks.projections import steepest_corner
from auditorch.attacks.threat import NORMS, Norm, Threat
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

sizes = st.tuples(st.integers(1, 5), st.integers(1, 30))
radii = st.floats(0.01, 6)
seeds = st.integers(0, 2**31)


def points(seed: int, shape: tuple[int, int], spread: float) -> tuple[Tensor, Tensor]:
    """Centres in 0..1, a third of their features at a bound, and points around them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator)
    x = torch.where(torch.rand(*shape, generator=generator) < 0.33, x.round(), x)
    return x, x + spread * torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=sizes, eps=radii, spread=st.sampled_from([0.0, 0.01, 0.5, 20.0]), seed=seeds)
def test_projection_is_feasible_and_idempotent(
    norm: Norm, shape: tuple[int, int], eps: float, spread: float, seed: int
) -> None:
    threat = Threat(norm, eps)
    x, far = points(seed, shape, spread)
    near = threat.project(far, x)
    assert threat.contains(near, x).all()
    torch.testing.assert_close(threat.project(near, x), near, atol=2e-6, rtol=0)
    inside = threat.contains(far, x)
    torch.testing.assert_close(near[inside], far[inside], atol=2e-6, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(eps=radii, seed=seeds)
def test_no_other_feasible_point_is_nearer(norm: Norm, eps: float, seed: int) -> None:
    """A projection p of q onto a convex set satisfies <q - p, z - p> <= 0 for every z of the set."""
    threat = Threat(norm, eps)
    x, far = points(seed, (6, 12), 0.7)
    near = threat.project(far.double(), x.double())
    for other in (threat.project(points(seed + i, (6, 12), 1.0)[1].double(), x.double()) for i in range(1, 6)):
        angle = ((far - near) * (other - near)).sum(1)
        assert (angle <= (5e-2 if norm == "l2" else 1e-6)).all()  # l2 stops after three rounds


def test_l2_projection_uses_the_whole_radius_when_features_sit_at_a_bound() -> None:
    """Half the features cannot move: scaling, then clipping, would leave nearly a third of the radius unused."""
    x = torch.cat([torch.zeros(1, 50), torch.full((1, 50), 0.5)], dim=1)
    far = x + torch.cat([torch.full((1, 50), -1.0), torch.full((1, 50), 1.0)], dim=1)
    near = Threat("l2", 1.0).project(far, x)
    assert float((near - x).norm()) == pytest.approx(1.0, abs=1e-5)


def test_l2_projection_of_the_centre_and_of_tiny_steps() -> None:
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    threat = Threat("l2", 0.5)
    assert torch.equal(threat.project(x, x), x)
    assert torch.equal(Threat("l2", 0).project(x + 0.1, x), x)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=sizes, eps=radii, seed=seeds)
def test_steepest_corner_is_feasible_and_beats_every_projected_direction(
    norm: Norm, shape: tuple[int, int], eps: float, seed: int
) -> None:
    threat = Threat(norm, eps)
    x, _ = points(seed, shape, 0.0)
    gradient = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))
    corner = steepest_corner(x, gradient, norm, eps, threat.bounds)
    assert threat.contains(corner, x).all()
    gain = ((corner - x) * gradient).sum(1)
    for scale in (0.01, 1.0, 100.0):
        other = threat.project(x + scale * gradient, x)
        assert (gain >= ((other - x) * gradient).sum(1) - 1e-4 * (1 + gain)).all()


def test_steepest_l2_corner_agrees_with_a_solver() -> None:
    x, _ = points(3, (4, 6), 0.0)
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    corner = steepest_corner(x, gradient, "l2", 0.7, (0.0, 1.0)).double()
    for row in range(4):
        g, origin = gradient[row].double().numpy(), x[row].double().numpy()
        solved = minimize(
            lambda d, g=g: -(g @ d),
            0 * g,
            jac=lambda d, g=g: -g,
            bounds=list(zip(-origin, 1 - origin, strict=True)),
            constraints={"type": "ineq", "fun": lambda d: 0.49 - d @ d, "jac": lambda d: -2 * d},
            method="SLSQP",
        )
        assert float((corner[row] - x[row]) @ gradient[row].double()) == pytest.approx(-solved.fun, rel=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=sizes, eps=radii, seed=seeds)
def test_random_starts_are_feasible(norm: Norm, shape: tuple[int, int], eps: float, seed: int) -> None:
    threat = Threat(norm, eps)
    x, _ = points(seed, shape, 0.0)
    assert threat.contains(threat.random_start(x, torch.Generator().manual_seed(seed)), x).all()


def test_contains_is_strict_beyond_rounding() -> None:
    x = torch.full((1, 1000), 0.3)
    for norm, eps, step in [("linf", 0.1, 0.1), ("l2", 0.1, 0.1 / 1000**0.5), ("l1", 0.1, 1e-4)]:
        threat = Threat(norm, eps)
        assert threat.contains(x + step, x).all(), norm
        assert not threat.contains(x + step * 1.01, x).any(), norm
    assert not Threat("linf", 0.1).contains(x * torch.nan, x).any()
    assert not Threat("linf", 1.0).contains(x - 0.3001, x).any()
    moved = x.clone()
    moved[0, :3] += 1e-4
    assert Threat("l0", 3).contains(moved, x).all()
    assert not Threat("l0", 2).contains(moved, x).any()


def test_unit_does_not_underflow() -> None:
    gradient = torch.tensor([[3e-30, 4e-30], [0.0, 0.0]])
    torch.testing.assert_close(unit(gradient, "l2"), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_sparse_sign_moves_the_k_largest_that_can_move() -> None:
    x = torch.tensor([[1.0, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    gradient = torch.tensor([[9.0, -3.0, 2.0, 1.0], [1.0, -5.0, 2.0, 0.5]])
    step = sparse_sign(Ball.around(x, Threat("l1", 1.0)), x, gradient, torch.tensor([2, 1]))
    torch.testing.assert_close(step, torch.tensor([[0.5, -0.5, 0.5, 0.0], [0.0, -1.0, 0.0, 0.0]]))
