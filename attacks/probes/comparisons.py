"""Probes that attack: does the stronger attack find more, as it must where gradients are of use?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..attack import Attack
from ..engine import evaluate
from ..evasion.apgd import APGD
from ..evasion.fgsm import FGSM
from ..evasion.pgd import PGD
from ..evasion.square import Square
from ..threat import Threat
from .flag import Flag, FlagName, flag, least_count
from .subject import Subject

_WINS = 0.05
_GAIN = 0.1
_UNBOUNDED = 0.95
_DRAWS = 20
_QUERIES = 300
_STEPS = 20


def comparison_flags(subject: Subject) -> Iterator[Flag]:
    """The flags of the Carlini checklist (arXiv 1902.06705) that take attacks to see."""
    runs = _Runs(subject)
    short, long = (runs.reached(_pgd(steps), runs.threat) >= 0 for steps in (_STEPS, 2 * _STEPS))
    left = ~(short | long)
    rivals: list[tuple[FlagName, str, Tensor]] = [
        ("single_step_wins", "one gradient step", runs.reached(FGSM(loss="margin"), runs.threat)),
        ("random_wins", f"{_DRAWS} random points of the ball", runs.reached_at_random()),
        ("black_box_wins", f"Square with {_QUERIES} queries", runs.reached(Square(_QUERIES), runs.threat, left)),
    ]
    hard = left & ~runs.broken_towards(torch.stack([found for _, _, found in rivals]).amax(0), left)
    for name, rival, found in rivals:
        yield from _wins(name, rival, hard & (found >= 0))
    yield from _convergence(int(short.sum()), int(long.sum()), len(subject))
    yield from _growth(runs, long)
    yield from _unbounded(runs)


def _pgd(steps: int) -> PGD:
    return PGD(steps, loss="margin")


class _Runs:
    """Attacks on the subject. A class reached is int64 ``(m,)``, -1 for samples that stand."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.threat = subject.threat
        if self.threat.norm == "l0":
            # No ascent here knows l0: an l1 ball, in which as many features can move by half the range, stands in.
            self.threat = replace(self.threat, norm="l1", eps=self.threat.eps * subject.span / 2)

    def reached(self, attack: Attack, threat: Threat, rows: Tensor | None = None, goal: Tensor | None = None) -> Tensor:
        """The class that the attack reaches from each sample (of ``rows``, a bool mask); ``goal`` are its targets."""
        s = self.subject
        at = torch.arange(len(s), device=s.x.device) if rows is None else rows.nonzero().squeeze(1)
        result = torch.full_like(s.y, -1)
        if len(at):
            y = (s.y if goal is None else goal)[at]
            outcome = evaluate(attack, s.model, s.x[at], y, threat, seed=s.seed, ids=at, batch_size=s.batch_size)
            result[at] = outcome.adv_logits.argmax(1).masked_fill(~outcome.success, -1).to(result.device)
        return result

    def reached_at_random(self) -> Tensor:
        """The class that random points of the ball reach."""
        s, streams = self.subject, self.subject.streams.fork(3)
        result = torch.full_like(s.y, -1)
        for _ in range(_DRAWS):
            predicted = s.forward(self.threat.random_start(s.x, streams)).argmax(1)
            result = torch.where(predicted != s.y, predicted, result)
        return result

    def broken_towards(self, goal: Tensor, rows: Tensor) -> Tensor:
        """Bool ``(m,)``: whether gradients, told the class ``goal`` that another attack reached, get there too."""
        told = rows & (goal >= 0)
        return self.reached(_pgd(_STEPS), replace(self.threat, targeted=True), told, goal) >= 0


def _wins(name: FlagName, rival: str, won: Tensor) -> Iterator[Flag]:
    m, count = len(won), int(won.sum())
    least = least_count(m, _WINS)
    if count >= least:
        measured = (
            f"{count} of {m} samples withstood {_STEPS} and {2 * _STEPS} steps of PGD, also towards the class reached "
            f"otherwise, but not {rival} (flagged from {least})."
        )
        yield flag(name, count / m, least / m, measured)


def _convergence(short: int, long: int, m: int) -> Iterator[Flag]:
    least = least_count(m, _GAIN, 3)
    if long - short >= least:
        measured = (
            f"{_STEPS} steps of PGD break {short} of {m} samples, twice as many steps {long} (flagged when {least} "
            "more or beyond)."
        )
        yield flag("steps_matter", (long - short) / m, least / m, measured)


def _growth(runs: _Runs, broken: Tensor) -> Iterator[Flag]:
    count, m = int(broken.sum()), len(broken)
    if not least_count(m, 0.05) <= count <= m - least_count(m, 0.05):
        return
    wide = replace(runs.threat, eps=4 * runs.threat.eps)
    if runs.threat.norm == "linf":
        wide = replace(wide, eps=min(wide.eps, runs.subject.span))
    more = int((runs.reached(_pgd(_STEPS), wide) >= 0).sum())
    if more <= count:
        measured = (
            f"PGD breaks {count} of {m} samples within eps and {more} within four times as much (flagged when no more)."
        )
        yield flag("eps_does_not_matter", (more - count) / m, 0.0, measured)


def _unbounded(runs: _Runs) -> Iterator[Flag]:
    """Anything within the bounds goes; where two classes are predicted at all, each sample has a way out."""
    s = runs.subject
    if len(s.y.unique()) < 2:
        return
    threat = Threat("linf", s.span, bounds=s.threat.bounds)
    broken = runs.reached(_pgd(_STEPS), threat) >= 0
    broken |= runs.reached(APGD(_STEPS, loss="margin"), threat, ~broken) >= 0
    value = float(broken.float().mean())
    if value < _UNBOUNDED and int((~broken).sum()) >= 2:
        measured = (
            f"PGD and APGD with no limit but the input's range break {int(broken.sum())} of {len(s)} samples "
            f"(flagged below {100 * _UNBOUNDED:.0f} %)."
        )
        yield flag("unbounded_fails", value, _UNBOUNDED, measured)
