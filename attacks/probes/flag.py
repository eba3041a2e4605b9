"""What a probe of gradient masking can report, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FlagName = Literal[
    "randomised",
    "batch_dependent",
    "train_mode",
    "probabilities",
    "quantised_logits",
    "gradient_inside",
    "no_gradient",
    "non_finite_gradient",
    "zero_gradient",
    "saturated_softmax",
    "misleading_gradient",
    "rough_surface",
    "single_step_wins",
    "random_wins",
    "black_box_wins",
    "steps_matter",
    "eps_does_not_matter",
    "unbounded_fails",
]

FlagSeverity = Literal["high", "medium"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One reason to doubt a robust accuracy found with gradients.

    Attributes:
        name: stays the same across versions.
        title: what a person reads first.
        detail: what was measured, the threshold, and what it means.
        remedy: what to do.
        severity: ``high`` where gradients cannot be trusted, ``medium`` where something else deserves a look.
        value: what was measured.
        threshold: from where on (for ``unbounded_fails``: below which) it is flagged.
    """

    name: FlagName
    title: str
    detail: str
    remedy: str
    severity: FlagSeverity
    value: float
    threshold: float


def flag(name: FlagName, value: float, threshold: float, measured: str) -> Flag:
    """The flag ``name``; ``measured`` is a sentence with the numbers, the flag adds what they mean."""
    severity, title, meaning, remedy = _WORDS[name]
    return Flag(name, title, f"{measured} {meaning}", remedy, severity, value, threshold)


def least_count(n: int, share: float, least: int = 2) -> int:
    """How many of ``n`` samples it takes: ``share`` of them, and never fewer than ``least``."""
    return max(round(share * n), least)


_STRONGER = "Use `autoattack`, and a black-box attack such as `square` with thousands of queries."

_WORDS: dict[FlagName, tuple[FlagSeverity, str, str, str]] = {
    "randomised": (
        "high",
        "randomised outputs",
        "A gradient of one draw says little about the next, and a single draw decides whether an attack counts.",
        "Average gradients over draws: `autoattack` with version `rand`, or EOT around another attack.",
    ),
    "batch_dependent": (
        "high",
        "outputs depend on the rest of the batch",
        "An attack on several inputs at once then perturbs each through the others, and its result changes with the "
        "batch size. The usual cause is batch normalisation with the statistics of the batch.",
        "Use running statistics at test time (`track_running_stats=True`, eval mode).",
    ),
    "train_mode": (
        "medium",
        "outputs change in eval mode",
        "Attacks run in eval mode, so what they find holds for that mode only.",
        "Call `model.eval()` before deployment; mend submodules that override `train()`.",
    ),
    "probabilities": (
        "high",
        "probabilities instead of logits",
        "A softmax on top of them flattens cross-entropy and its gradient, and rounding to 1 hides the rest.",
        "Let the model return logits: remove the final softmax.",
    ),
    "quantised_logits": (
        "high",
        "quantised outputs",
        "Outputs on a coarse grid hide small progress from attacks that read scores, and have no gradient.",
        "Give the attacks the scores before rounding, or use a decision-based attack.",
    ),
    "gradient_inside": (
        "high",
        "the model takes gradients itself",
        "It optimises at test time, and an attack's gradient may stop at that: what it then shows is the gradient of "
        "another function (arXiv 2003.01690, 2202.13711).",
        "Let gradients flow through the inner steps (`create_graph=True`) or put BPDA around them. " + _STRONGER,
    ),
    "no_gradient": (
        "high",
        "no gradient",
        "The model detaches its input, runs under no_grad, or has a step without a derivative: gradient attacks cannot "
        "run, which is no robustness.",
        "Put BPDA around the step without a derivative, or use `square` or `hopskipjump_art`.",
    ),
    "non_finite_gradient": (
        "high",
        "NaN or infinite gradients",
        "Attacks take such entries for zero and walk without them.",
        "Find the operation (a root or logarithm at 0, a division by 0) and bound it away, or use BPDA around it.",
    ),
    "zero_gradient": (
        "high",
        "zero gradients",
        "Gradient attacks do not move there. Rounding, steps and saturated units do this.",
        "Put BPDA around the step without a derivative. " + _STRONGER,
    ),
    "saturated_softmax": (
        "high",
        "cross-entropy without a gradient",
        "Logits so far apart that the softmax rounds to 1: attacks on cross-entropy stand still where others do not. "
        "Large weights and defensive distillation do this.",
        "Attack with loss `margin` or `dlr` (`auto` does).",
    ),
    "misleading_gradient": (
        "high",
        "gradients point the wrong way",
        "A step along the gradient does not do what the gradient says, neither a small nor a large one.",
        "Look for custom backward passes and detached branches; put BPDA around them. " + _STRONGER,
    ),
    "rough_surface": (
        "high",
        "a rough loss surface",
        "A smooth model is all but straight over so short a way: jumps and ripples hide which way the loss goes.",
        "Average gradients over nearby points (EOT), or smooth the step with BPDA. " + _STRONGER,
    ),
    "single_step_wins": (
        "high",
        "a single step beats iterative attacks",
        "An iterative attack includes what one step can do; where it fails, its gradients mislead (arXiv 1802.00420).",
        _STRONGER,
    ),
    "random_wins": (
        "high",
        "random noise beats gradient attacks",
        "Gradients that find less than chance does are worth nothing (arXiv 1902.06705).",
        _STRONGER,
    ),
    "black_box_wins": (
        "high",
        "a black-box attack beats gradient attacks",
        "Gradients that find less than a search without them are masked (arXiv 1802.00420, 2003.01690).",
        _STRONGER,
    ),
    "steps_matter": (
        "medium",
        "attacks have not converged",
        "Robust accuracy still falls with the number of steps (arXiv 1902.06705).",
        "Attack with more steps and restarts, until doubling them changes nothing.",
    ),
    "eps_does_not_matter": (
        "medium",
        "success does not grow with eps",
        "A larger ball contains the smaller one (arXiv 1902.06705): either the samples fall into two kinds far apart, "
        "or the attack stands still.",
        _STRONGER,
    ),
    "unbounded_fails": (
        "high",
        "a boundless attack fails",
        "With no limit but the input's range there are adversarial inputs, other samples of the data among them "
        "(arXiv 1902.06705); gradients do not lead there.",
        _STRONGER,
    ),
}
