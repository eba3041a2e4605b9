"""Shadow models: copies of an architecture, each trained on its own half of the records (arXiv 2112.03570)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...attacks.errors import AuditError, UnsupportedError
from ...attacks.memory import freed_memory_kept
from .fresh import fresh
from .stack import How, Stack, stack

Begin = Callable[[nn.Module, int], nn.Module]

_PROBE = 4


@dataclass(frozen=True, slots=True)
class ShadowConfig:
    """How shadow models are trained. The nearer to how the model under audit was, the stronger the attack.

    Args:
        models: how many; even, so that each record is in exactly half of them.
        epochs: passes of each model over its records.
        batch_size: records per step and model.
        optimizer: ``sgd`` (momentum 0.9) or ``adam``.
        lr: highest learning rate; it falls to 0 along a cosine.
        weight_decay: decoupled for adam, as a penalty for sgd.
        seed: of weights, halves and batches.
        how: ``auto`` trains side by side where the architecture allows.
        group: models trained at a time, to bound memory; all when left out.
    """

    models: int = 16
    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["sgd", "adam"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    seed: int = 0
    how: How = "auto"
    group: int | None = None

    def __post_init__(self) -> None:
        if self.models < 2 or self.models % 2:
            raise UnsupportedError(f"models is {self.models}: an even number, at least 2, so that halves balance")
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise UnsupportedError("epochs and batch_size must be at least 1, lr above 0")


@dataclass(frozen=True, slots=True)
class Shadows:
    """Trained shadow models and what each was trained on.

    Attributes:
        stacks: the models, in the order of the rows of ``member``.
        member: bool ``(models, n)``: whether the model was trained on the record.
        how: products, vmap or turn.
    """

    stacks: tuple[Stack, ...]
    member: Tensor
    how: str

    @torch.no_grad()
    def logits(self, x: Tensor, batch_size: int = 256, on_samples: Callable[[float], None] | None = None) -> Tensor:
        """What every model says to every record: ``(models, n, classes)`` on the CPU."""
        return torch.cat([_all_logits(part, x, batch_size, on_samples) for part in self.stacks])


def halves(n: int, models: int, seed: int) -> Tensor:
    """Bool ``(models, n)``: each record is in exactly half of the models, each model has half of the records.

    Models come in pairs that share the records out between them.
    """
    generator = torch.Generator().manual_seed(seed)
    member = torch.zeros(models, n, dtype=torch.bool)
    for k in range(0, models, 2):
        member[k, torch.randperm(n, generator=generator)[: n // 2]] = True
        member[k + 1] = ~member[k]
    return member


def train_shadows(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    config: ShadowConfig,
    *,
    begin: Begin = fresh,
    on_samples: Callable[[float], None] | None = None,
) -> Shadows:
    """Trains ``config.models`` copies of ``module``, each on half of the records.

    Args:
        module: the architecture.
        begin: ``begin(module, seed)``, a copy to train as :func:`fit` does: with fresh weights, or, where the model
            under attack was fine-tuned, with those that it began from (:func:`~.fresh.continued`). All copies have
            the same layers frozen.
        x: inputs ``(n, ...)`` as the module takes them.
        y: labels int64 ``(n,)``.
        on_samples: called after each step with the number of records, over all models, that it used.

    Raises:
        UnsupportedError: with fewer than 4 records, for a module without parameters, or when the architecture cannot be
            stacked as asked.
        AuditError: when training diverges.
    """
    if len(x) != len(y) or len(x) < 4:
        raise UnsupportedError(f"{len(x)} inputs and {len(y)} labels: shadow models need at least 4 of each")
    if next(module.parameters(), None) is None:
        raise UnsupportedError(
            f"{type(module).__name__} has no parameters to train (quantised or compiled): shadow models need the "
            "architecture; use an attack without them"
        )
    member = halves(len(x), config.models, config.seed)
    models = [begin(module, config.seed * 10_007 + k) for k in range(config.models)]
    index = [row.nonzero().squeeze(1) for row in member]
    size = config.group or config.models
    stacks = []
    for start in range(0, len(models), size):
        part = slice(start, start + size)
        stacks.append(
            fit(models[part], x, y, index[part], config, on_samples=on_samples, first=start, length=len(x) // 2)
        )
    return Shadows(tuple(stacks), member, stacks[0].how)


def fit(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    index: Sequence[Tensor],
    config: ShadowConfig,
    *,
    on_samples: Callable[[float], None] | None = None,
    first: int = 0,
    length: int | None = None,
) -> Stack:
    """Trains each model on its records ``index[k]``; side by side and in turn give the same to float tolerance.

    Parameters that take no gradients stay as they are, and so do the statistics of layers that are in eval mode.

    Args:
        first: number of the first model, which with the seed determines its batches.
        length: records of each model in an epoch; the fewest that any has when left out. A model with more leaves
            out others in each epoch.

    Raises:
        UnsupportedError: when every layer is in eval mode, so that nobody can tell what is to be trained.
    """
    if not any(layer.training for layer in models[0].modules()):
        kind = type(models[0]).__name__
        raise UnsupportedError(f"this {kind} is in eval mode: call train() on what is to be trained")
    length = min(len(own) for own in index) if length is None else length
    probe = x[index[0][: max(2, min(_PROBE, len(index[0])))]].to(_device(models[0]))
    models_stack = stack(models, probe, config.how)
    if models_stack.how == "turn" and len(models) > 1:
        for k, model in enumerate(models):
            fit([model], x, y, index[k : k + 1], config, on_samples=on_samples, first=first + k, length=length)
        models_stack.train(False)
        return models_stack
    models_stack.train()
    optimizer = _optimizer(models_stack.parameters(), config)
    epochs, device = list(_batches(index, config, first, length)), _device(models[0])
    steps, step = sum(len(epoch) for epoch in epochs), 0
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with freed_memory_kept(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + first)  # dropout
        for epoch in epochs:
            for batch in epoch:
                logits = models_stack(x[batch].to(device))
                # The sum over models of each one's mean loss: gradients as if each were alone.
                labels = y[batch].to(device).flatten()
                loss = cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / batch.shape[1]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                if on_samples is not None:
                    on_samples(batch.numel())
    if not all(bool(parameter.isfinite().all()) for parameter in models_stack.parameters()):
        raise AuditError(f"shadow training diverged (weights are not finite): lower lr (now {config.lr:g})")
    models_stack.train(False)
    return models_stack


def _batches(index: Sequence[Tensor], config: ShadowConfig, first: int, length: int) -> Iterator[list[Tensor]]:
    """For each epoch a list of ``(K, b)`` record numbers; each model has an order of its own."""
    generators = [torch.Generator().manual_seed(config.seed * 7919 + first + k) for k in range(len(index))]
    for _ in range(config.epochs):
        order = [own[torch.randperm(len(own), generator=g)][:length] for own, g in zip(index, generators, strict=True)]
        parts = torch.stack(order).split(config.batch_size, dim=1)
        yield list(parts if len(parts) == 1 or parts[-1].shape[1] > 1 else parts[:-1])


def _optimizer(parameters: list[Tensor], config: ShadowConfig) -> torch.optim.Optimizer:
    fused = parameters[0].device.type in ("cpu", "cuda")  # one pass over the weights in place of ten
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=fused)


def _all_logits(models: Stack, x: Tensor, batch_size: int, on_samples: Callable[[float], None] | None) -> Tensor:
    device, k = models.parameters()[0].device, len(models.models())
    parts = []
    for part in x.split(batch_size):
        parts.append(models(part.to(device).expand(k, *part.shape)).float().cpu())
        if on_samples is not None:
            on_samples(k * len(part))
    return torch.cat(parts, 1)


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
