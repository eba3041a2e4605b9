"""Certification by randomised smoothing, beside an attack on the smoothed classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...attacks.evasion.pgd import PGD
from ...attacks.streams import Streams
from ...defenses.smoothing import ABSTAIN, Certificates, Smoothed, certificates, certify, decided, vote_counts
from .base import Claim, Context
from .certification_case import Case, in_ball, some_rows
from .certification_measures import Measured

_ATTACK_DRAWS = 16
_AGAIN = 8
"""Samples whose votes ``verify`` counts again, at most."""

_ROUNDING = 0.005
"""Share of votes that may fall otherwise on other hardware, where an input lies on a border."""


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Certifies the smoothed form of ``body`` and attacks it by the gradient of its mean probability.

    Args:
        sigma: standard deviation of the noise.
        n0, n, alpha: see :func:`~auditorch.defenses.smoothing.certify`; ``n`` draws also decide what the smoothed
            classifier says of an adversarial input.
        steps: of the attack.
    """

    body: nn.Module
    sigma: float
    n0: int
    n: int
    alpha: float
    steps: int
    batch_size: int | None

    @property
    def title(self) -> str:
        return f"randomised smoothing, sigma {self.sigma:g}"

    @property
    def caveats(self) -> tuple[str, ...]:
        return (
            f"Each radius holds with probability {1 - self.alpha:g}, over the draws of the certification; it is that "
            "of the classifier with infinitely many draws, which one with fewer draws only approaches.",
            "The certificate is for l2; within linf it implies the radius over the root of the input's size.",
            "The attack at eps must win a vote that chance does not explain; smaller damage is not counted.",
        )

    def examine(self, case: Case, context: Context) -> dict[str, Tensor]:
        device, streams = case.target.device, case.streams(context.seed)
        context.progress.start(self.title, 2 * len(case))
        candidate, votes = [], []
        for rows in torch.arange(len(case)).split(8):
            found = self._certified(case, rows, streams)
            candidate.append(found.candidate)
            votes.append(found.votes)
            context.progress.advance(len(rows))
        evidence = {"ids": case.ids, "labels": case.y, "candidate": torch.cat(candidate), "votes": torch.cat(votes)}
        right = self._certificates(evidence).prediction == case.y
        rows = right.nonzero().squeeze(1)
        surrogate = Smoothed(self.body, self.sigma, _ATTACK_DRAWS, seed=context.seed)
        attack, x_adv, counts = PGD(steps=self.steps, early_stop=False), [case.x[:0]], []
        for part in rows.split(32):
            x, y = case.x[part].to(device), case.y[part].to(device)
            own = streams.select(part).to(device).fork(4)
            x_adv.append(attack(surrogate, x, y, case.threat(case.eps), generator=own).detach().cpu())
            counts.append(self._votes(x_adv[-1].to(device), streams.select(part)))
            context.progress.advance(len(part))
        k = len(case.target.classes)
        return {
            **evidence,
            "rows": rows,
            "x_adv": torch.cat(x_adv),
            "adv_votes": torch.cat([torch.zeros(0, k, dtype=torch.int64), *counts]),
        }

    def measured(self, case: Case, evidence: Mapping[str, Tensor]) -> Measured:
        found, y = self._certificates(evidence), evidence["labels"]
        said = decided(evidence["adv_votes"], self.alpha)
        rows = evidence["rows"]
        broken = torch.zeros(len(case), dtype=torch.bool)
        broken[rows] = (said != y[rows]) & (said != ABSTAIN)
        correct = found.prediction == y
        return Measured(
            correct=correct.numpy(),
            proven=torch.stack([found.holds(y, eps) for eps in case.radii]).numpy(),
            broken=broken.numpy(),
            norm=case.norm,
            eps=case.eps,
            radii=case.radii,
            radius=torch.where(correct, found.radius, 0.0).numpy(),
            abstained=(found.prediction == ABSTAIN).numpy(),
        )

    def claims(self, case: Case, evidence: Mapping[str, Tensor], context: Context) -> Iterator[Claim]:
        streams = case.streams(context.seed)
        some = some_rows(len(case), _AGAIN)
        found = self._certified(case, some, streams)
        near = (found.votes - evidence["votes"][some]).abs() <= max(2, _ROUNDING * self.n)
        same = int((near & (found.candidate == evidence["candidate"][some])).sum())
        yield Claim("votes are counted again as recorded", same == len(some), f"{same} of {len(some)} looked at again")
        rows, x_adv, recorded = evidence["rows"], evidence["x_adv"], evidence["adv_votes"]
        yield in_ball(case, x_adv, rows)
        some = some_rows(len(rows), _AGAIN)
        same = 0
        if len(some):
            again = self._votes(x_adv[some].to(case.target.device), streams.select(rows[some]))
            same = int(((again - recorded[some]).abs().amax(1) <= max(2, _ROUNDING * self.n)).sum())
        what = "votes on adversarial inputs are counted again as recorded"
        yield Claim(what, same == len(some), f"{same} of {len(some)} looked at again")

    def _certified(self, case: Case, rows: Tensor, streams: Streams) -> Certificates:
        x = case.x[rows].to(case.target.device)
        own = streams.select(rows)
        return certify(
            self.body, x, self.sigma, n0=self.n0, n=self.n, alpha=self.alpha, streams=own, batch_size=self.batch_size
        )

    def _votes(self, x: Tensor, streams: Streams) -> Tensor:
        return vote_counts(self.body, x, self.sigma, self.n, streams=streams.fork(3), batch_size=self.batch_size)

    def _certificates(self, evidence: Mapping[str, Tensor]) -> Certificates:
        return certificates(evidence["candidate"], evidence["votes"], self.n, self.sigma, self.alpha)
