"""Search and choice on a problem whose trade-off is known."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.defenses.selection import Rule, Sampler, Score, Span, Trial, Value, choose, folds, pareto_front, search

N = 1000


def trade(number: int, parameters: Mapping[str, Value]) -> Score:
    """Clean accuracy falls with x, robust accuracy rises; y is best at 3 and only costs elsewhere."""
    x, y = float(parameters["x"]), float(parameters.get("y", 3))
    loss = 0.1 * abs(y - 3)
    return Score(N, round(N * (0.9 - 0.3 * x - loss)), round(N * (0.2 + 0.5 * x - loss)))


def test_grid_tries_every_combination_once() -> None:
    trials = search({"x": [0.0, 0.5, 1.0], "y": [2, 3]}, trade, sampler="grid")
    assert sorted((trial.parameters["x"], trial.parameters["y"]) for trial in trials) == [
        (0.0, 2), (0.0, 3), (0.5, 2), (0.5, 3), (1.0, 2), (1.0, 3)
    ]  # fmt: skip
    assert [trial.number for trial in trials] == list(range(6))


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_samplers_are_repeatable_and_stay_in_the_space(sampler: Sampler) -> None:
    space = {"x": Span(0.0, 1.0), "y": Span(1, 5), "lr": Span(1e-4, 1e-1, log=True)}
    trials = search(space, trade, sampler=sampler, trials=12, seed=3)
    assert trials == search(space, trade, sampler=sampler, trials=12, seed=3)
    assert trials != search(space, trade, sampler=sampler, trials=12, seed=4)
    assert len(trials) == 12
    for trial in trials:
        assert 0 <= float(trial.parameters["x"]) <= 1
        assert trial.parameters["y"] in range(1, 6)
        assert 1e-4 <= float(trial.parameters["lr"]) <= 1e-1


def test_tpe_learns_what_the_space_rewards() -> None:
    """At random a fifth of the trials has y = 3."""
    trials = search({"x": [0.0, 1.0], "y": [1, 2, 3, 4, 5]}, trade, sampler="tpe", trials=40, seed=0)
    late = [trial.parameters["y"] for trial in trials[20:]]
    assert late.count(3) > 10


def test_the_front_is_what_nothing_dominates() -> None:
    trials = search({"x": [0.0, 0.5, 1.0], "y": [2, 3]}, trade, sampler="grid")
    front = pareto_front(trials)
    assert [(trial.parameters["x"], trial.parameters["y"]) for trial in front] == [(1.0, 3), (0.5, 3), (0.0, 3)]


@pytest.mark.parametrize(
    ("rule", "floor", "x"),
    [
        ("balanced", 0.0, 1.0),
        ("robust_accuracy", 0.0, 1.0),
        ("clean_accuracy", 0.0, 0.0),
        ("robust_accuracy", 0.7, 0.5),
    ],
)
def test_choice_follows_the_rule(rule: Rule, floor: float, x: float) -> None:
    trials = search({"x": [0.0, 0.5, 1.0]}, trade, sampler="grid")
    assert choose(trials, rule, floor).parameters["x"] == x


def test_failed_trials_are_kept_out_and_told() -> None:
    def breaks(number: int, parameters: Mapping[str, Value]) -> Score:
        return Score(error="diverged") if parameters["x"] == 1.0 else trade(number, parameters)

    trials = search({"x": [0.0, 1.0]}, breaks, sampler="grid")
    assert {trial.score.error for trial in trials} == {"", "diverged"}
    assert choose(trials, "robust_accuracy").parameters["x"] == 0.0
    assert len(pareto_front(trials)) == 1
    with pytest.raises(UnsupportedError, match="no trial finished: diverged"):
        choose([trial for trial in trials if trial.score.error])
    with pytest.raises(UnsupportedError, match=r"clean accuracy of 0\.95 or more \(best: 0\.900\)"):
        choose(trials, clean_at_least=0.95)


def test_folds_add_up() -> None:
    assert Score(10, 8, 5) + Score(10, 6, 1) == Score(20, 14, 6)
    assert (Score(10, 8, 5) + Score(error="broke")).error == "broke"


def test_equal_merit_goes_to_the_first() -> None:
    trials = [Trial(0, {"x": 0}, Score(10, 8, 4)), Trial(1, {"x": 1}, Score(10, 8, 4))]
    assert choose(trials).number == 0


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "at least one parameter"),
        ({"x": []}, "at least one value"),
        ({"x": Span(0.0, 1.0)}, "x is a span"),
        ({"x": list(range(40)), "y": list(range(40))}, "1600 points"),
    ],
)
def test_spaces_that_make_no_grid_are_refused(space: dict[str, list[Value] | Span], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        search(space, trade, sampler="grid")


@pytest.mark.parametrize(("low", "high", "log"), [(1.0, 1.0, False), (2.0, 1.0, False), (0.0, 1.0, True)])
def test_spans_must_make_sense(low: float, high: float, log: bool) -> None:
    with pytest.raises(UnsupportedError):
        Span(low, high, log)


def test_folds_hold_out_each_sample_once_and_keep_the_classes_even() -> None:
    y = torch.tensor([0] * 9 + [1] * 6)
    parts = folds(y, 3, seed=1)
    held = torch.cat([held for _, held in parts])
    assert sorted(held.tolist()) == list(range(15))
    for train, out in parts:
        assert set(train.tolist()).isdisjoint(out.tolist())
        assert len(train) + len(out) == 15
        assert (y[out] == 0).sum() == 3
    assert not torch.equal(parts[0][1], folds(y, 3, seed=2)[0][1])
    with pytest.raises(UnsupportedError, match="1 folds"):
        folds(y, 1, seed=0)
