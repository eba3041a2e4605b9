"""Masking diagnostics: every broken defense of the zoo is flagged for what is broken, no healthy model at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.masking import Diagnosis, diagnose
from auditorch.attacks.probes.flag import FlagName
from auditorch.attacks.threat import Norm, Threat
from torch import Tensor, nn

from .zoo import BROKEN, CLASSES, EPS, HEALTHY, GradientOf, Wrapped, blobs, classifier, cnn, trained

THREAT = Threat("linf", EPS)
CONSEQUENCES: frozenset[FlagName] = frozenset(
    {
        "single_step_wins",
        "random_wins",
        "black_box_wins",
        "steps_matter",
        "eps_does_not_matter",
        "unbounded_fails",
    }
)
"""What comparing attacks shows; any mask can bring them about."""


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    return blobs(100, seed=1)


def examine(model: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor], threat: Threat = THREAT) -> Diagnosis:
    return diagnose(model, *data, threat, samples=30)


@lru_cache
def of_broken(name: str) -> Diagnosis:
    return examine(BROKEN[name].build(), blobs(100, seed=1))


def names(diagnosis: Diagnosis) -> set[FlagName]:
    return {flag.name for flag in diagnosis.flags}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_defense_is_flagged_for_its_defect_and_for_no_other(name: str) -> None:
    diagnosis = of_broken(name)
    assert diagnosis.masked
    assert names(diagnosis) - CONSEQUENCES == BROKEN[name].expected
    assert diagnosis.forwards <= 600 * diagnosis.samples
    assert diagnosis.backwards <= 150 * diagnosis.samples


@pytest.mark.parametrize("build", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_model_is_not_flagged(build: Callable[[], nn.Module], data: tuple[Tensor, Tensor]) -> None:
    diagnosis = examine(build(), data)
    assert diagnosis.flags == ()
    assert not diagnosis.masked
    assert diagnosis.samples == 30
    assert diagnosis.forwards <= 600 * 30
    assert diagnosis.backwards <= 150 * 30


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 0.4), ("l1", 2.0), ("l0", 4)])
def test_norm_and_radius_do_not_matter(norm: Norm, eps: float, data: tuple[Tensor, Tensor]) -> None:
    threat = Threat(norm, eps)
    assert diagnose(classifier(), *data, threat, samples=12).flags == ()
    flipped = diagnose(BROKEN["flipped gradient"].build(), *data, threat, samples=8)
    assert names(flipped) - CONSEQUENCES == {"misleading_gradient"}


def test_scale_and_shift_of_inputs_do_not_matter(data: tuple[Tensor, Tensor]) -> None:
    """The same model on inputs in -100..100."""
    x, y = data
    threat = Threat("linf", 200 * EPS, bounds=(-100, 100))
    scaled = 200 * x - 100
    assert names(diagnose(Wrapped(lambda x: (x + 100) / 200), scaled, y, threat, samples=40)) == set()
    rippled = Wrapped(lambda x: (x + 100) / 200 + 2e-3 * torch.sin(15 * x))
    assert "rough_surface" in names(diagnose(rippled, scaled, y, threat, samples=40))


@pytest.mark.parametrize(
    ("broken", "consequence"),
    [
        ("input rounding", "black_box_wins"),
        ("decoy gradient", "black_box_wins"),
        ("sign activation", "unbounded_fails"),
    ],
)
def test_comparing_attacks_shows_what_a_mask_does(broken: str, consequence: FlagName) -> None:
    assert consequence in names(of_broken(broken))


def test_noise_that_beats_gradients_is_seen(data: tuple[Tensor, Tensor]) -> None:
    assert "random_wins" in names(examine(BROKEN["input rounding"].build(), data, Threat("linf", 0.3)))


def test_a_single_step_that_beats_many_is_seen(data: tuple[Tensor, Tensor]) -> None:
    """Gradients are right on the data and flipped everywhere else."""
    known = data[0].flatten(1)

    def away_from_data_flipped(x: Tensor) -> Tensor:
        on = (torch.cdist(x.detach().flatten(1), known, compute_mode="donot_use_mm_for_euclid_dist").amin(1) == 0).view(
            -1, 1, 1, 1
        )
        return torch.where(on, x, GradientOf.apply(x, torch.neg))

    found = names(examine(Wrapped(away_from_data_flipped), data))
    assert "single_step_wins" in found
    assert "misleading_gradient" not in found


def test_steps_that_matter_are_seen(data: tuple[Tensor, Tensor]) -> None:
    """The gradient is drowned in noise, which more steps average."""
    generator = torch.Generator().manual_seed(0)

    def drowned(g: Tensor) -> Tensor:
        return g + 6 * g.abs().mean() * torch.randn(g.shape, generator=generator)

    model = Wrapped(lambda x: GradientOf.apply(x, drowned))
    assert "steps_matter" in names(diagnose(model, *data, Threat("linf", 0.14), samples=80))


def test_two_kinds_of_samples_far_apart_give_a_doubt_but_no_mask() -> None:
    """Half the samples lie next to the boundary, half beyond four times eps."""
    x = torch.tensor([0.495, 0.505, 0.1, 0.9]).repeat(10)[:, None].expand(-1, 4).contiguous()
    model = lambda x: torch.stack([-x.mean(1), x.mean(1) - 1], dim=1)  # noqa: E731
    diagnosis = diagnose(model, x, (x[:, 0] > 0.5).long(), Threat("linf", 0.05))
    assert names(diagnosis) == {"eps_does_not_matter"}
    assert not diagnosis.masked


def test_the_model_and_torchs_generator_are_given_back_as_found(data: tuple[Tensor, Tensor]) -> None:
    model = trained(lambda: cnn(norm=True), epochs=5).train()
    model.zero_grad()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    examine(model, data)
    examine(BROKEN["input noise"].build(), data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_train_mode_is_reported_but_is_no_mask(data: tuple[Tensor, Tensor]) -> None:
    diagnosis = examine(trained(lambda: cnn(norm=True)).train(), data)
    assert names(diagnosis) == {"train_mode"}
    assert not diagnosis.masked


def test_train_mode_without_effect_is_not_reported(data: tuple[Tensor, Tensor]) -> None:
    assert examine(trained(cnn).train(), data).flags == ()


@pytest.mark.parametrize("broken", ["input noise", "input rounding"])
def test_the_same_seed_gives_the_same_diagnosis(broken: str, data: tuple[Tensor, Tensor]) -> None:
    assert examine(BROKEN[broken].build(), data) == of_broken(broken)


def test_batch_size_does_not_change_what_is_found(data: tuple[Tensor, Tensor]) -> None:
    for model in (classifier(), BROKEN["batch statistics"].build()):
        whole, parts = (diagnose(model, *data, THREAT, samples=20, batch_size=size) for size in (None, 16))
        assert whole.samples == parts.samples == 20
        assert names(whole) == names(parts)


def test_only_correctly_classified_samples_are_looked_at(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    wrong = (y + 1) % CLASSES
    assert diagnose(classifier(), x, wrong, THREAT) == Diagnosis((), samples=0, forwards=100, backwards=0)
    some = torch.where(torch.arange(len(y)) < 12, y, wrong)
    assert diagnose(classifier(), x, some, THREAT).samples == 12


def test_a_single_sample_is_enough_for_what_it_can_show(data: tuple[Tensor, Tensor]) -> None:
    x, y = data[0][:1], data[1][:1]
    assert diagnose(classifier(), x, y, THREAT).flags == ()
    assert diagnose(BROKEN["flipped gradient"].build(), x, y, THREAT).samples == 1
    assert names(diagnose(BROKEN["input rounding"].build(), x, y, THREAT)) == {"zero_gradient"}
    assert "batch_dependent" in names(diagnose(BROKEN["batch statistics"].build(), x[:1], y[:1], THREAT))


def test_vectors_and_two_classes(data: tuple[Tensor, Tensor]) -> None:
    x = data[0].flatten(1)
    layer = nn.Linear(64, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))
        y = layer(x).argmax(1)
    assert diagnose(layer, x, y, THREAT, samples=30).flags == ()
    assert names(diagnose(lambda x: layer((x * 4).round() / 4), x, layer((x * 4).round() / 4).argmax(1), THREAT)) >= {
        "zero_gradient"
    }


def test_a_targeted_threat_is_examined_as_untargeted(data: tuple[Tensor, Tensor]) -> None:
    assert diagnose(classifier(), *data, replace(THREAT, targeted=True), samples=9) == diagnose(
        classifier(), *data, THREAT, samples=9
    )


def test_each_flag_says_what_it_measured_what_it_means_and_what_to_do() -> None:
    for broken in ("input rounding", "ripples", "softmax output", "thermometer encoding"):
        for flag in of_broken(broken).flags:
            assert "flagged" in flag.detail or flag.name == "no_gradient"
            assert len(flag.detail.split(". ")) >= 2
            assert flag.remedy.endswith((".", ")."))
            assert flag.title[0].islower() or flag.title.startswith("NaN")


def test_bad_arguments_are_refused(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UnsupportedError, match="samples is 0"):
        diagnose(classifier(), *data, THREAT, samples=0)
    with pytest.raises(UnsupportedError, match="leave the bounds"):
        diagnose(classifier(), data[0] + 1, data[1], THREAT)
