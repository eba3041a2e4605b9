"""Transfer attacks and the students that serve as surrogates."""

from __future__ import annotations

import pytest
import torch
from auditorch.attacks.engine import evaluate
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.input_diversity import diverse_inputs
from auditorch.attacks.evasion.transfer import Transfer
from auditorch.attacks.evasion.translation_invariance import smoothed
from auditorch.attacks.models import CountingModel
from auditorch.attacks.streams import Streams
from auditorch.attacks.surrogate import extract_surrogate
from auditorch.attacks.threat import Norm, Threat
from torch import Tensor, nn

from .oracles import LinearProblem, linear_problem
from .syncs import Syncs

PROBLEM = linear_problem(12, (1, 8, 8), 2)


def perturbed_twin(problem: LinearProblem, share: float) -> nn.Module:
    """The same model with noise on its weights."""
    twin = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    state = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    noise = torch.randn(state["1.weight"].shape, generator=torch.Generator().manual_seed(0))
    state["1.weight"] += share * state["1.weight"].std() * noise
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("norm", Transfer.norms)
def test_success_follows_how_like_the_surrogate_is(norm: Norm) -> None:
    threat = Threat(norm, 1.2 * float(PROBLEM.distance(norm).max()))
    rates = []
    for share in (0.0, 0.6, 30.0):
        attack = Transfer(surrogate=perturbed_twin(PROBLEM, share), diversity=0.0, kernel=1)
        outcome = evaluate(attack, PROBLEM.model, PROBLEM.x, PROBLEM.y, threat)
        rates.append(float(outcome.success.double().mean()))
        assert outcome.backwards == 0
        assert outcome.forwards <= 5 * 12
    assert rates[0] == 1.0
    assert rates[2] < 0.6
    assert rates[1] > rates[2]


def test_never_beats_the_optimum() -> None:
    threat = Threat("l2", 0.99 * float(PROBLEM.distance("l2").min()))
    attack = Transfer(surrogate=PROBLEM.model)
    assert not evaluate(attack, PROBLEM.model, PROBLEM.x, PROBLEM.y, threat).success.any()


def test_queries_are_what_it_says_and_the_surrogate_comes_back_as_found() -> None:
    surrogate = perturbed_twin(PROBLEM, 30.0).train()
    counting = CountingModel(PROBLEM.model, screened=True)
    attack = Transfer(surrogate=surrogate, queries=3)
    _, spent = attack.trace(counting, PROBLEM.x, PROBLEM.y, Threat("linf", 0.01))
    assert spent.tolist() == [3] * 12
    assert counting.forwards == 36
    assert surrogate.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in surrogate.parameters())
    generous = Threat("linf", 3 * float(PROBLEM.distance("linf").max()))
    _, early = Transfer(surrogate=PROBLEM.model, queries=10).trace(PROBLEM.model, PROBLEM.x, PROBLEM.y, generous)
    assert (early < 10).all()


def test_without_a_surrogate_it_says_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match="extract_surrogate"):
        evaluate(Transfer(), PROBLEM.model, PROBLEM.x, PROBLEM.y, Threat("linf", 0.1))


def test_a_surrogate_without_gradients_is_refused() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return PROBLEM.model(x.detach()).detach()

    with pytest.raises(UnsupportedError, match="no gradient"):
        evaluate(Transfer(surrogate=Detached()), PROBLEM.model, PROBLEM.x, PROBLEM.y, Threat("linf", 0.1))


def test_an_image_shrunk_to_a_half_keeps_its_mass_and_depends_on_its_own_stream() -> None:
    x = torch.zeros(6, 1, 16, 16)
    x[:, :, 4:12, 4:12] = 1
    ids = torch.arange(6)
    moved = diverse_inputs(x, Streams.from_seed(0, ids), 1.0, 0.5)
    assert (moved.sum((1, 2, 3)) < 64).all()
    assert (moved.sum((1, 2, 3)) >= 0.9 * 16).all()  # a quarter of the area at the smallest
    assert (moved - moved[:1]).abs().amax((1, 2, 3))[1:].min() > 0.1
    alone = diverse_inputs(x[3:4], Streams.from_seed(0, ids[3:4]), 1.0, 0.5)
    torch.testing.assert_close(alone[0], moved[3])
    assert torch.equal(diverse_inputs(x, Streams.from_seed(0, ids), 0.0, 0.5), x)


def test_smoothing_is_the_mean_over_shifts() -> None:
    """Of a single pixel it leaves the kernel, whose weights add up to one and fall off evenly."""
    gradient = torch.zeros(1, 2, 9, 9)
    gradient[0, 1, 4, 4] = 1
    kernel = smoothed(gradient, 5)
    assert not kernel[0, 0].any()
    torch.testing.assert_close(kernel.sum(), torch.tensor(1.0))
    torch.testing.assert_close(kernel, kernel.transpose(2, 3))
    row = kernel[0, 1, 4, 2:7] / kernel[0, 1, 4, 4]
    torch.testing.assert_close(row, torch.exp(-((torch.arange(-2.0, 3) * 6 / 5) ** 2) / 2))
    assert torch.equal(smoothed(gradient, 1), gradient)


@pytest.mark.parametrize("labels_only", [False, True])
def test_a_student_learns_what_a_linear_model_says(labels_only: bool) -> None:
    problem = linear_problem(4, (12,), 3)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 12, generator=generator)
    counting = CountingModel(problem.model)
    found = extract_surrogate(counting, x, queries=1500, labels_only=labels_only, steps=300)
    assert found.queries == counting.forwards == 1500
    assert counting.backwards == 0
    fresh = torch.rand(500, 12, generator=generator)
    agree = (found.module(fresh).argmax(1) == problem.model(fresh).argmax(1)).double().mean()
    assert agree > 0.85
    assert found.agreement > 0.9


def test_a_student_of_the_users_is_trained_in_place_and_must_fit() -> None:
    student = nn.Linear(12, 3)
    problem, x = linear_problem(4, (12,), 3), torch.rand(30, 12, generator=torch.Generator().manual_seed(0))
    assert extract_surrogate(problem.model, x, queries=20, student=student, steps=5).module is student
    with pytest.raises(UnsupportedError, match="student gives"):
        extract_surrogate(problem.model, x, queries=20, student=nn.Linear(12, 5), steps=5)


def test_images_are_varied_within_the_bounds_and_repeatably() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1)], dim=1)

    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first = extract_surrogate(model, x, queries=40, steps=3).module
    asked = torch.cat(seen)
    assert len(asked) == 40
    assert 0 <= asked.min() <= asked.max() <= 1
    assert len(asked.flatten(1).unique(dim=0)) == 40
    again = extract_surrogate(model, x, queries=40, steps=3).module
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "options", [{"queries": 0}, {"queries": 21}, {"diversity": 2.0}, {"shrink": 0.0}, {"kernel": 4}, {"decay": -1.0}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UnsupportedError):
        Transfer(**options)  # pyright: ignore[reportArgumentType]


def test_on_a_device_the_host_waits_once_in_four_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that a GPU takes, walked on the CPU: a step waits for nothing, a query of the model nearly so."""
    monkeypatch.setattr("auditorch.attacks.search.deferred", lambda tensor: True)
    model, threat = CountingModel(PROBLEM.model, screened=True), Threat("linf", 1e-4)
    counts = []
    for steps, queries in ((8, 8), (40, 8), (40, 40)):
        with Syncs() as syncs:
            Transfer(surrogate=PROBLEM.model, steps=steps, queries=queries)(model, PROBLEM.x, PROBLEM.y, threat)
        counts.append(syncs.count)
    assert counts[1] == counts[0]
    assert counts[2] - counts[1] == 32 / 4
