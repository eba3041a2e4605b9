"""Fixed-budget attacks against the exact optimum of linear models, in every norm they know."""

from __future__ import annotations

import itertools

import pytest
import torch
from auditorch.attacks.attack import Attack
from auditorch.attacks.engine import evaluate
from auditorch.attacks.evasion.apgd import APGD, APGDT
from auditorch.attacks.evasion.fgsm import FGSM
from auditorch.attacks.evasion.mifgsm import MIFGSM
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import NORMS, Norm, Threat
from auditorch.audit import registry

from . import test_minimum_norm
from .oracles import linear_problem, smallest

ATTACKS: dict[str, Attack] = {
    "fgsm": FGSM(),
    "pgd-ce": PGD(),
    "pgd-margin": PGD(loss="margin"),
    "pgd-from-x": PGD(random_start=False, loss="margin"),
    "mifgsm": MIFGSM(steps=20),
    "apgd-ce": APGD(),
    "apgd-margin": APGD(loss="margin"),
    "apgd-dlr": APGD(loss="dlr"),
    "apgd-large-radius": APGD(loss="margin", large_radius=True),
    "apgdt": APGDT(steps=60),
}
SHAPES = [(1, 6, 6), (3, 5, 5), (12,)]
CASES = [
    (name, norm)
    for name, attack in ATTACKS.items()
    for norm in getattr(attack, "norms", NORMS)
    if norm == "l1" or "large" not in name
]
DECOYS = {"apgd-dlr": 2, "apgdt": 2}
# Steps of eps / steps add up to less than eps once features meet a bound on the way.
RATIO = {("mifgsm", "l2"): 1.3}
SIZES = list(itertools.product([1, 3, 8], SHAPES))


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_within_five_percent_of_the_optimum(name: str, norm: Norm) -> None:
    """Over batch sizes and shapes. Two classes, so that the loss leads to the nearest boundary."""
    for n, shape in SIZES if name in ("fgsm", "pgd-ce") else SIZES[::4]:
        problem = linear_problem(n, shape, 2, decoys=DECOYS.get(name, 0), seed=n)
        optimum = problem.distance(norm)
        ratio = RATIO.get((name, norm), 1.05)
        for eps in (ratio * float(optimum.max()), ratio * float(optimum.min())):
            outcome = evaluate(ATTACKS[name], problem.model, problem.x, problem.y, Threat(norm, eps))
            assert outcome.success[ratio * optimum <= eps * (1 + 1e-9)].all(), (n, shape)
            assert not outcome.success[optimum > eps * (1 + 1e-5)].any(), (n, shape)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_targeted_within_five_percent_of_the_optimum(name: str, norm: Norm) -> None:
    problem = linear_problem(6, (1, 6, 6), 2, decoys=DECOYS.get(name, 0))
    target, optimum = 1 - problem.y, problem.distance(norm)
    threat = Threat(norm, RATIO.get((name, norm), 1.05) * float(optimum.max()), targeted=True)
    assert evaluate(ATTACKS[name], problem.model, problem.x, target, threat).success.all()
    short = Threat(norm, 0.95 * float(optimum.min()), targeted=True)
    assert not evaluate(ATTACKS[name], problem.model, problem.x, target, short).success.any()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_targeted_reaches_the_class_it_is_given(name: str, norm: Norm) -> None:
    problem = linear_problem(6, (1, 6, 6), classes=4)
    target = (problem.y + 1) % 4
    optimum = problem.distance_to_each(norm)[torch.arange(6), target]
    threat = Threat(norm, 1.5 * float(optimum.max()), targeted=True)
    outcome = evaluate(ATTACKS[name], problem.model, problem.x, target, threat)
    assert outcome.success.double().mean() >= 5 / 6
    assert (problem.model(outcome.x_adv).argmax(1) == target)[outcome.success].all()


def test_no_registered_gradient_attack_is_left_out() -> None:
    """Here, among the smallest-perturbation attacks, or in a file of its own."""
    kinds = {type(attack) for attack in (*ATTACKS.values(), *test_minimum_norm.ATTACKS.values())}
    elsewhere = {"auto", "autoattack"}
    for name in registry.names("attacks"):
        kind = registry.load("attacks", name)
        if kind.access == "gradients" and not name.endswith("_art") and name not in elsewhere:
            assert kind in kinds, name
            table = test_minimum_norm.ATTACKS if getattr(kind, "minimal", False) else ATTACKS
            assert any(type(attack) is kind for attack in table.values()), name


@pytest.mark.parametrize("norm", NORMS)
def test_the_oracle_itself_is_a_lower_bound_and_reached(norm: Norm) -> None:
    """Two features, by hand: gains 3 and 1, rooms .1 and 1, gap .5."""
    expected = {"linf": 0.2, "l2": (0.1**2 + 0.2**2) ** 0.5, "l1": 0.3, "l0": 1.0}
    found = smallest(torch.tensor([3.0, 1.0]).double(), torch.tensor([0.1, 1.0]).double(), 0.5, norm)
    assert found == pytest.approx(expected[norm], abs=1e-6)
