"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"]
ScheduleName = Literal["constant", "linear", "cosine", "exponential", "step"]


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    scaled: bool = False,
) -> Optimizer:
    """An optimizer over ``parameters``; weight decay spares biases and the scales and shifts of norm layers.

    ``momentum`` serves sgd and rmsprop, ``nesterov`` sgd. For adamw the decay is decoupled (arXiv 1711.05101).
    ``scaled`` says that a gradient scaler may leave steps out: the fused SGD of torch 2.13 would then begin with a
    momentum that nothing was written to.
    """
    groups = _decay_groups(parameters, weight_decay)
    match name:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=not scaled)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=lr, momentum=momentum)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=lr)


def _decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate_factor(schedule: ScheduleName, step: int, total: int, warmup: float = 0.0) -> float:
    """What the learning rate is multiplied by at ``step`` of ``total`` (0-based).

    Over the first ``warmup`` (a share in 0..1) of the steps it rises linearly to 1. After that: ``constant`` stays;
    ``linear`` and ``cosine`` fall to 0; ``exponential`` falls to 0.01; ``step`` is divided by 10 after one half and
    again after three quarters.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, total - rising)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "exponential":
            return 0.01**done
        case "step":
            return 0.1 ** ((done >= 0.5) + (done >= 0.75))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Gives all parameter groups the learning rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter, as ``<number>.<what>``."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}.{what}": value
        for number, held in states.items()
        for what, value in held.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Gives an optimizer of the same settings what :func:`optimizer_state` gave."""
    held: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        number, what = name.split(".", 1)
        held.setdefault(int(number), {})[what] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": held})
