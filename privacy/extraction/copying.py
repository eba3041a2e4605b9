"""Knockoff (arXiv 1812.02766) and Copycat (arXiv 1806.05476): a copy trained on the answers to a budget of queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

from ...attacks.errors import UnsupportedError

Extraction = Literal["knockoff", "knockoff_adaptive", "copycat"]
EXTRACTIONS: tuple[Extraction, ...] = get_args(Extraction)

Ask = Callable[[Tensor], Tensor]
"""The victim's logits ``(b, k)`` for inputs ``(b, ...)``."""


@dataclass(frozen=True, slots=True)
class CopyConfig:
    """How a model is copied.

    Args:
        attack: ``knockoff`` learns from the probabilities of randomly chosen inputs; ``knockoff_adaptive`` asks in
            rounds, each time where the copy is least sure; ``copycat`` learns from labels alone.
        budget: queries to the victim.
        epochs: passes of the copy over the answers (of each round, over all so far).
        batch_size, lr: of its training with Adam and a cosine schedule.
        rounds: of the adaptive attack.
        seed: of the choice of queries and of batches.
    """

    attack: Extraction = "knockoff"
    budget: int = 1000
    epochs: int = 30
    batch_size: int = 64
    lr: float = 1e-3
    rounds: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attack not in EXTRACTIONS:
            raise UnsupportedError(f"attack is {self.attack!r}: choose one of {', '.join(EXTRACTIONS)}")
        if min(self.budget, self.epochs, self.rounds) < 1 or self.batch_size < 2 or not self.lr > 0:
            raise UnsupportedError("budget, epochs and rounds must be at least 1, batch_size at least 2, lr above 0")


@dataclass(frozen=True, slots=True)
class Stolen:
    """A copy and what it cost. Attributes: the trained module, rows of the pool that were asked ``(q,)``."""

    module: nn.Module
    asked: Tensor


def steal(
    ask: Ask,
    copy: nn.Module,
    pool: Tensor,
    config: CopyConfig,
    *,
    on_samples: Callable[[float], None] | None = None,
) -> Stolen:
    """Trains ``copy``, in place, to answer like the victim.

    Args:
        ask: called with at most ``budget`` inputs in all, each once.
        copy: a module of any architecture with the victim's classes, from whatever weights it has.
        pool: inputs ``(n, ...)`` that the attacker has; no labels are used.
        on_samples: told after each training step how many samples it used.

    Raises:
        UnsupportedError: when the pool is smaller than the budget.
    """
    if len(pool) < config.budget:
        raise UnsupportedError(f"the budget is {config.budget} queries, but the attacker's pool has {len(pool)} inputs")
    generator = torch.Generator().manual_seed(config.seed)
    rounds = config.rounds if config.attack == "knockoff_adaptive" else 1
    shares = torch.linspace(0, config.budget, rounds + 1).round().long().diff().tolist()
    asked = torch.empty(0, dtype=torch.int64)
    answers: list[Tensor] = []
    for share in shares:
        chosen = _choose(copy, pool, asked, share, generator, informed=len(answers) > 0)
        with torch.no_grad():
            answers += [ask(pool[part]).float().cpu() for part in chosen.split(512)]
        asked = torch.cat([asked, chosen])
        _learn(copy, pool[asked], torch.cat(answers), config, generator, on_samples)
    return Stolen(copy.eval(), asked)


def _choose(
    copy: nn.Module, pool: Tensor, asked: Tensor, share: int, generator: torch.Generator, *, informed: bool
) -> Tensor:
    """``share`` rows that were not asked yet: at random, or those whose two likeliest classes are closest."""
    free = torch.ones(len(pool), dtype=torch.bool)
    free[asked] = False
    rows = free.nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    if informed:
        top = softmax(_answers(copy, pool[rows]), 1).topk(2).values
        rows = rows[(top[:, 0] - top[:, 1]).argsort(stable=True)]
    return rows[:share]


def _learn(
    copy: nn.Module,
    x: Tensor,
    logits: Tensor,
    config: CopyConfig,
    generator: torch.Generator,
    on_samples: Callable[[float], None] | None,
) -> None:
    target = softmax(logits, 1)
    if config.attack == "copycat":
        target = one_hot(logits.argmax(1), logits.shape[1]).float()
    device = _device(copy)
    optimizer = torch.optim.Adam(copy.parameters(), config.lr)
    steps = config.epochs * max(1, -(-len(x) // config.batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    copy.train()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # dropout
        for _ in range(config.epochs):
            for batch in torch.randperm(len(x), generator=generator).split(config.batch_size):
                if len(batch) == 1 and len(x) > 1:
                    continue  # BatchNorm cannot train on one
                out, wanted = copy(x[batch].to(device)), target[batch].to(device)
                loss = kl_div(log_softmax(out, 1), wanted, reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if on_samples is not None:
                    on_samples(len(batch))
    copy.eval()


@torch.no_grad()
def _answers(module: nn.Module, x: Tensor) -> Tensor:
    module.eval()
    return torch.cat([module(part.to(_device(module))).float().cpu() for part in x.split(512)])


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def surprise(logits: Tensor, copied: Tensor) -> Tensor:
    """Divergence ``(n,)`` of the copy's probabilities from the victim's, in nats: 0 for a perfect copy."""
    return cross_entropy(copied, softmax(logits, 1), reduction="none") - cross_entropy(
        logits, softmax(logits, 1), reduction="none"
    )
