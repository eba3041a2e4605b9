"""Where the time of a private step goes, part by part, beside the step without privacy."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from auditorch.privacy.gradients import rules
from auditorch.privacy.gradients.tape import RecordGradients, Tape
from auditorch.privacy.private_run import PrivateRun
from private_steps import LR, NETWORKS, ours
from torch.nn.functional import cross_entropy

Clock = Callable[[], float]


def account(name: str, batch: int, rounds: int, clock: Clock) -> dict[str, float]:
    """Median milliseconds of each part; parts of ours contain those that are named behind ``of which``."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    module, x, y = network.build(), network.inputs(batch), torch.randint(10, (batch,))
    taken: dict[str, list[float]] = defaultdict(list)
    _time_rules(taken, clock)
    places = [(PrivateRun, "_begin_sums", "noise"), (PrivateRun, "_gradients", "passes and norms"),
              (Tape, "gradients", "of which backward and norms"), (RecordGradients, "add_to", "weighted sums"),
              (PrivateRun, "_count", "counts"), (PrivateRun, "_update", "update"),
              (PrivateRun, "step", "all")]  # fmt: skip
    for owner, attribute, label in places:
        setattr(owner, attribute, _timed(getattr(owner, attribute), taken, f"ours: {label}", clock))
    step, plain = ours(copy.deepcopy(module), x, y), _plain(module, x, y, taken, clock)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        taken.clear()
        plain()
        plain_parts = dict(taken)
        taken.clear()
        step()
        for label, times in (plain_parts | taken).items():
            if label.startswith("plain") == (label in plain_parts):
                found[label].append(sum(times))
    return {label: 1000 * statistics.median(times) for label, times in found.items()}


def _plain(
    module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, taken: dict[str, list[float]], clock: Clock
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)

    def step() -> None:
        times = [clock()]
        optimizer.zero_grad()
        loss = cross_entropy(module(x), y)
        times.append(clock())
        loss.backward()
        times.append(clock())
        optimizer.step()
        times.append(clock())
        for label, start, end in zip(("forward", "backward", "update"), times, times[1:], strict=False):
            taken[f"plain: {label}"].append(end - start)
        taken["plain: all"].append(times[-1] - times[0])

    return step


def _time_rules(taken: dict[str, list[float]], clock: Clock) -> None:
    for kind, rule in list(rules._RULES.items()):
        rules._RULES[kind] = _timed(rule, taken, "ours: of which gradients by record", clock)


def _timed(function: Callable[..., Any], taken: dict[str, list[float]], label: str, clock: Clock) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        result = function(*args, **kwargs)
        taken[label].append(clock() - start)
        return result

    return timed
