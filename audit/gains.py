"""Whether a defense's gain in robustness is real: inputs made for the base tried on it, and weaker attacks compared.

A defense that only breaks the attack looks robust to inputs made for the base and to attacks that its gradients
mislead, and falls to one that fits it (arXiv 1802.00420, 2002.08347).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..reports.record import Finding, Metric, Result, VariantRecord
from .checks import standards
from .checks.evasion_measures import ball_text
from .checks.evasion_search import module_logits
from .checks.metrics import percent, rate
from .context import read_evidence
from .paired import Paired, paired_change
from .target import Target

_NOTABLE = 0.02
"""Share of the samples that inputs made for the base must break beyond the attacks on the variant itself."""
_FEWEST = 3
"""And at least so many of them."""

Standing = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Trial:
    """One evasion check on the base and on the variant, sample by sample.

    Attributes:
        base, own: bool ``(n,)``, samples right and not broken within eps, on the base and on the variant, each under
            the attack made for it.
        transferred: bool ``(n,)``, samples that the variant gets right on the clean input and on the base's
            adversarial input.
        ids: which samples.
    """

    before: Result
    after: Result
    base: Standing
    own: Standing
    transferred: Standing
    ids: bytes

    @property
    def ball(self) -> str:
        return ball_text(self.after.parameters["norm"], float(self.after.parameters["eps"]))

    @property
    def threat(self) -> tuple[str, float, bytes]:
        """Norm, radius and samples."""
        return self.after.parameters["norm"], float(self.after.parameters["eps"]), self.ids

    @property
    def metric(self) -> Metric:
        """Robust accuracy of the variant against the base's adversarial inputs alone."""
        return rate(
            f"transfer_robust_accuracy_{self.after.id}",
            int(self.transferred.sum()),
            len(self.transferred),
            label=f"Accuracy on inputs made to fool the base ({self.after.id})",
            higher_is_better=None,  # high may be robustness, or no more than another decision boundary
        )


def trials(
    base: VariantRecord, variant: VariantRecord, target: Target, directory: Path, batch_size: int | None = None
) -> list[Trial]:
    """Every untargeted evasion check that ran on the same samples of both.

    Raises:
        OutputError: when evidence is missing or was changed.
    """
    found = (_trial(base.result(result.id), result, target, directory, batch_size) for result in variant.results)
    return [trial for trial in found if trial is not None]


def findings(found: Sequence[Trial]) -> Iterator[Finding]:
    """Gains that vanish when the attack fits the defense, and attacks on the variant that miss what transfers.

    Checks of one threat on the same samples are judged together: a weak attack beside a strong one raises no alarm.
    """
    for threat in dict.fromkeys(trial.threat for trial in found):
        group = [trial for trial in found if trial.threat == threat]
        yield from _missed(group)
        yield from _vanished(group)


def _trial(
    before: Result | None, after: Result, target: Target, directory: Path, batch_size: int | None
) -> Trial | None:
    if after.check != "evasion" or before is None or {before.status, after.status} != {"ok"}:
        return None
    if after.parameters.get("targeted", False):
        return None
    first, second = (_recorded(result, directory) for result in (before, after))
    if not torch.equal(first["ids"], second["ids"]):
        return None
    eps = float(after.parameters["eps"])
    clean = second["clean_logits"].argmax(1) == second["labels"]
    within = first["radius"].double() <= eps
    rows, x_adv = first["rows"][within], first["x_adv"][within]
    transferred = clean.clone()
    if len(rows):
        transferred[rows] &= module_logits(target, x_adv, batch_size).argmax(1) == second["labels"][rows]
    standing = _standing(first, eps), _standing(second, eps), transferred.numpy()
    return Trial(before, after, *standing, first["ids"].numpy().tobytes())


def _recorded(result: Result, directory: Path) -> dict[str, Tensor]:
    return read_evidence(directory, next(item for item in result.evidence if item.kind == "adversarial"))


def _standing(tensors: dict[str, Tensor], eps: float) -> Standing:
    correct = tensors["clean_logits"].argmax(1) == tensors["labels"]
    radius = torch.full((len(correct),), float("inf"), dtype=torch.float64)
    radius[tensors["rows"]] = tensors["radius"].double()
    return (correct & ~(radius <= eps)).numpy()


def _missed(group: Sequence[Trial]) -> Iterator[Finding]:
    """Samples that no attack on the variant broke, although inputs at hand do."""
    own = np.logical_and.reduce([trial.own for trial in group])
    both = np.logical_and.reduce([trial.own & trial.transferred for trial in group])
    missed, n = int((own & ~both).sum()), len(own)
    if missed / n < _NOTABLE or missed < _FEWEST:
        return
    attacks = ", ".join(trial.after.id for trial in group)
    yield Finding(
        severity="high",
        title=f"Inputs made for the base break what attacks on the variant missed ({group[0].ball})",
        detail=f"{missed} of {n} samples withstood {attacks} on this variant, but fall to the input that was "
        "made for the base: the attack was too weak here, or masked gradients misled it. Robust accuracy is at most "
        f"{percent(float(both.mean()))}.",
        remedy="Attack the variant with more steps, through the base's gradients, or without gradients "
        "(attack: transfer, square).",
        standards=standards.EVASION,
    )


def _vanished(group: Sequence[Trial]) -> Iterator[Finding]:
    """The largest gain that some evaluation in this ball shows, held against the worst case over all of them."""
    before = np.logical_and.reduce([trial.base for trial in group])
    after = np.logical_and.reduce([trial.own & trial.transferred for trial in group])
    real = _change(before, after)
    seen = [(_change(trial.base, trial.transferred), "inputs made for the base") for trial in group]
    seen += [(_change(trial.base, trial.own), f"the attack {trial.after.id}") for trial in group]
    apparent, source = max(seen, key=lambda pair: pair[0].difference)
    if apparent.low <= 0 or apparent.p >= 0.05 or real.high >= apparent.low / 2:
        return
    left = "nothing of it is left" if real.low <= 0 else f"{_points(real)} of it are left"
    yield Finding(
        severity="high" if real.low <= 0 else "medium",
        title=f"The gain in robustness vanishes when the attack fits the defense ({group[0].ball})",
        detail=f"Judged by {source}, this variant beats the base by {_points(apparent)}. "
        f"Under the strongest attack on each, {left}: robust accuracy is {percent(float(after.mean()))}, and "
        f"{percent(float(before.mean()))} on the base (paired difference {_points(real)}).",
        remedy="Do not count this defense as a gain. Quote its robust accuracy under the attack that fits it.",
        standards=standards.EVASION,
    )


def _change(before: Standing, after: Standing) -> Paired:
    return paired_change(before.astype(np.float64), after.astype(np.float64))


def _points(change: Paired) -> str:
    return f"{100 * change.difference:+.1f} points (95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f})"
