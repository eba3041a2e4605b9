"""What the explanations are examined on: samples as they are, attacked, and under noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...attacks.attack import Attack, check_norm
from ...attacks.models import attacking
from ...attacks.streams import Streams
from ...attacks.threat import Threat
from .metrics import randomized

View = Literal["clean", "attacked", "noisy"]
VIEWS: tuple[View, ...] = ("clean", "attacked", "noisy")


@dataclass(frozen=True, slots=True)
class Scene:
    """The samples under three views, and the model with and without what it learned.

    Attributes:
        module: the model; ``twin`` the same with randomized weights.
        x: inputs ``(n, c, h, w)`` by view.
        classes: int64 ``(n,)`` by view, the class predicted there, which is the one explained.
        confidence: float ``(n,)`` by view, its probability.
        ids: int64 ``(n,)``, stable numbers of the samples.
    """

    module: nn.Module
    twin: nn.Module
    x: Mapping[View, Tensor]
    classes: Mapping[View, Tensor]
    confidence: Mapping[View, Tensor]
    ids: Tensor

    @property
    def moved(self) -> Tensor:
        """Bool ``(n,)``, whether the attack changed the input at all."""
        return (self.x["attacked"] != self.x["clean"]).flatten(1).any(1)


def make_scene(
    module: nn.Module, x: Tensor, ids: Tensor, attack: Attack, threat: Threat, seed: int, rows: int
) -> Scene:
    """Attacks ``x`` ``(n, c, h, w)`` away from what the model predicts, and adds noise of the same size.

    Raises:
        UnsupportedError: when the attack does not know the threat's norm.
    """
    check_norm(attack, threat)
    clean = predictions(module, x, rows)
    attacked = [
        attack(module, x[i], clean[0][i], threat, generator=Streams.from_seed(seed, ids[i]))
        for i in torch.arange(len(x), device=x.device).split(rows)
    ]
    # A smallest-perturbation attack may leave the ball.
    adv = threat.project(torch.cat(attacked), x) if getattr(attack, "minimal", False) else torch.cat(attacked)
    noisy = noise_of_size(x, threat, seed, ids)
    said = {"clean": clean, "attacked": predictions(module, adv, rows), "noisy": predictions(module, noisy, rows)}
    return Scene(
        module=module,
        twin=randomized(module, seed),
        x={"clean": x, "attacked": adv, "noisy": noisy},
        classes={view: said[view][0] for view in VIEWS},
        confidence={view: said[view][1] for view in VIEWS},
        ids=ids,
    )


def predictions(module: nn.Module, x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Predicted class int64 ``(n,)`` and its probability ``(n,)``."""
    with attacking(module), torch.no_grad():
        logits = torch.cat([module(part).float() for part in x.split(rows)])
    confidence, classes = logits.softmax(1).max(1)
    return classes, confidence


def noise_of_size(x: Tensor, threat: Threat, seed: int, ids: Tensor) -> Tensor:
    """``x`` with random noise as large as the threat allows: what any change of that size does to an explanation.

    For linf every value moves by eps one way or the other; otherwise a random point of the ball.
    """
    streams = Streams.from_seed(seed, ids).fork(2)
    if threat.norm == "linf":
        return threat.project(x + threat.eps * streams.signs(x.shape[1:]).to(x), x)
    return threat.random_start(x, streams)
