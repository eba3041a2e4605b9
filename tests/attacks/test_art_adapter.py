"""The adapter of the Adversarial Robustness Toolbox."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.art.black_box import ZOOART, BoundaryART, SignOPTART, SimBAART
from auditorch.attacks.evasion.art.refused import REFUSED
from auditorch.attacks.evasion.art.white_box import EADART, JSMAART, NewtonFoolART
from auditorch.attacks.evasion.art_adapter import ARTAttack, HopSkipJumpART
from auditorch.attacks.models import CountingModel
from auditorch.attacks.threat import Norm, Threat
from auditorch.audit import registry
from torch import Tensor, nn

from .oracles import linear_problem

HOP = HopSkipJumpART(max_iter=15, max_eval=400, init_eval=50)


@pytest.mark.parametrize("norm", HopSkipJumpART.norms)
@pytest.mark.parametrize(("n", "shape", "classes"), [(1, (12,), 2), (3, (1, 5, 5), 3)], ids=str)
def test_hopskipjump_comes_within_a_quarter_of_the_optimum(
    norm: Norm, n: int, shape: tuple[int, ...], classes: int
) -> None:
    problem = linear_problem(n, shape, classes, seed=n)
    outcome = evaluate(HOP, problem.model, problem.x, problem.y, Threat(norm, 0.1))
    ratio = outcome.distance / problem.distance(norm)
    assert (ratio <= 1.25).all()
    assert (ratio >= 1 - 1e-5).all()
    assert outcome.backwards == 0
    assert outcome.forwards <= n * 2800


def test_counts_every_query() -> None:
    problem = linear_problem(2, (8,), 2)
    seen = 0

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal seen
            seen += len(x)
            return problem.model(x)

    counting = CountingModel(Model())
    replace(HOP, max_iter=2)(counting, problem.x, problem.y, Threat("l2", 0.1))
    assert counting.forwards == seen > 300


def test_a_query_limit_keeps_the_best_point_so_far() -> None:
    problem = linear_problem(3, (12,), 2)
    outcome = evaluate(replace(HOP, max_queries=400), problem.model, problem.x, problem.y, Threat("l2", 0.1))
    assert outcome.distance.isfinite().all()
    assert outcome.forwards <= 3 * (400 + 64 + 300)


def test_gives_global_generators_back_as_found_and_does_not_depend_on_them() -> None:
    problem = linear_problem(2, (12,), 2)
    attack, threat = replace(HOP, max_iter=3), Threat("l2", 0.1)
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # pyright: ignore
        results.append(attack(problem.model, problem.x, problem.y, threat, generator=torch.Generator().manual_seed(5)))
        found = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # pyright: ignore
        assert found == expected
    assert torch.equal(*results)
    assert not torch.equal(results[0], attack(problem.model, problem.x, problem.y, threat))


def test_a_sample_is_attacked_alike_alone_and_in_a_batch() -> None:
    problem = linear_problem(3, (12,), 2)
    attack, threat = replace(HOP, max_iter=3), Threat("linf", 0.1)
    together = evaluate(attack, problem.model, problem.x, problem.y, threat)
    alone = evaluate(attack, problem.model, problem.x[2:], problem.y[2:], threat, ids=torch.tensor([2]))
    torch.testing.assert_close(alone.x_adv, together.x_adv[2:])


def test_leaves_what_it_cannot_fool_and_what_is_already_wrong() -> None:
    problem = linear_problem(2, (6,), 2)
    constant = nn.Linear(6, 2)
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias.copy_(torch.tensor([1.0, 0.0]))
    for y in (torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)):
        assert torch.equal(HOP(constant, problem.x, y, Threat("l2", 0.1)), problem.x)


def test_hopskipjump_reaches_the_target() -> None:
    problem = linear_problem(3, (10,), 3, seed=3)
    target = (problem.y + 1) % 3
    outcome = evaluate(HOP, problem.model, problem.x, target, Threat("l2", 1.0, targeted=True))
    assert (problem.model(outcome.x_adv).argmax(1) == target).all()
    optimum = problem.distance_to_each("l2")[torch.arange(3), target]
    assert (outcome.distance <= 1.25 * optimum).all()


def test_works_on_a_float64_model_without_gradients_and_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    problem = linear_problem(2, (12,), 2)
    model = problem.model.double()
    model.train()

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    frozen = Frozen()
    x_adv = replace(HOP, max_iter=3)(frozen, problem.x.double(), problem.y, Threat("l2", 0.1))
    assert x_adv.dtype == torch.float64
    assert (model(x_adv).argmax(1) != problem.y).all()
    assert model.training
    assert frozen.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert capfd.readouterr() == ("", "")


BLACK_BOX = {
    "boundary": (BoundaryART(max_queries=2000), 1.25),
    "signopt": (SignOPTART(max_queries=1500, directions=20, samples=50), 1.25),
    # Not made to be minimal, as their docstrings say: all features move at one pace.
    "simba": (SimBAART(), 1.9),
    "simba-small-steps": (SimBAART(step_size=0.1), 1.55),
    "zoo": (ZOOART(adam_steps=60), 1.55),
}
WHITE_BOX = {
    ("ead", "l2"): (EADART(binary_search_steps=5), 1.05),
    ("ead", "l1"): (EADART(binary_search_steps=5), 1.05),
    ("newtonfool", "l2"): (NewtonFoolART(), 1.05),
    # Features only rise, two at a time.
    ("jsma", "l0"): (JSMAART(), 6.0),
}
SIZES: list[tuple[int, tuple[int, ...]]] = [(1, (1, 6, 6)), (3, (12,)), (1, (3, 5, 5))]


def ratios(attack: ARTAttack, norm: Norm, n: int, shape: tuple[int, ...], seed: int = 3) -> Tensor:
    """Distances found ``(n,)`` over the smallest there are, by an attack that asks for what it says it does."""
    problem = linear_problem(n, shape, 2, seed=seed)
    outcome = evaluate(attack, problem.model, problem.x, problem.y, Threat(norm, 0.1))
    assert outcome.forwards > 0
    assert (outcome.backwards > 0) == (attack.access == "gradients")
    return outcome.distance / problem.distance(norm)


@pytest.mark.parametrize("name", BLACK_BOX)
def test_black_box_attacks_come_near_the_optimum(name: str) -> None:
    attack, allowed = BLACK_BOX[name]
    for n, shape in SIZES:
        if len(shape) == 3 or not attack.images:
            ratio = ratios(attack, "l2", n, shape)
            assert (ratio <= allowed).all(), (shape, ratio)
            assert (ratio >= 1 - 1e-5).all(), (shape, ratio)


@pytest.mark.parametrize(("name", "norm"), WHITE_BOX)
def test_white_box_attacks_come_near_the_optimum(name: str, norm: Norm) -> None:
    attack, allowed = WHITE_BOX[name, norm]
    for n, shape in SIZES:
        ratio = ratios(attack, norm, n, shape)
        assert (ratio <= allowed).all(), (shape, ratio)
        assert (ratio >= 1 - 1e-5).all(), (shape, ratio)


def test_every_attack_of_the_toolbox_that_is_offered_is_held_against_the_optimum() -> None:
    held = {type(attack) for attack, _ in (*BLACK_BOX.values(), *WHITE_BOX.values())} | {HopSkipJumpART}
    assert held == {registry.load("attacks", name) for name in registry.names("attacks") if name.endswith("_art")}


def test_zoo_lowers_features_too() -> None:
    """Which the toolbox prevents by clipping steps to the bounds of the inputs."""
    problem = linear_problem(1, (12,), 2, seed=3)
    outcome = evaluate(ZOOART(adam_steps=60), problem.model, problem.x, problem.y, Threat("l2", 0.1))
    change = (outcome.x_adv - problem.x).flatten()
    assert change.min() < -0.02
    assert change.max() > 0.02


def test_refusals_say_why() -> None:
    problem = linear_problem(2, (6,), 3)
    for attack in (SignOPTART(), NewtonFoolART()):
        with pytest.raises(UnsupportedError, match="cannot be targeted"):
            attack(problem.model, problem.x, problem.y, Threat("l2", 0.1, targeted=True))
    with pytest.raises(UnsupportedError, match="needs images"):
        SimBAART()(problem.model, problem.x, problem.y, Threat("l2", 0.1))
    with pytest.raises(UnsupportedError, match="no gradient"):
        EADART()(torch.no_grad()(problem.model), problem.x, problem.y, Threat("l2", 0.1))
    for name in REFUSED:
        with pytest.raises(UnsupportedError, match=REFUSED[name][:20]):
            registry.load("attacks", name)


def test_numpy_still_lacks_what_geoda_calls() -> None:
    """When this fails, geoda_art can be offered."""
    assert not hasattr(np, "mat")
