"""Broken defenses around a small classifier, and healthy models, on images that take a second to learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.probes.flag import FlagName
from auditorch.attacks.threat import Threat
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 5
EPS = 0.08


def blobs(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images ``(n, 1, 8, 8)`` in 0..1 with a blob, whose place (jittered) is the class, on a noisy ground."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    centres = torch.tensor([[1.5, 1.5], [1.5, 5.5], [5.5, 1.5], [5.5, 5.5], [3.5, 3.5]])
    centre = centres[y] + 0.4 * torch.randn(n, 2, generator=generator)
    grid = torch.arange(8.0)
    rows = (grid - centre[:, :1]).square()[:, :, None]
    columns = (grid - centre[:, 1:]).square()[:, None, :]
    height = 0.25 + 0.35 * torch.rand(n, 1, 1, generator=generator)
    x = 0.25 + height * torch.exp(-(rows + columns) / 3) + 0.05 * torch.randn(n, 8, 8, generator=generator)
    return x.clamp(0, 1)[:, None], y


def cnn(*, norm: bool = False, width: int = 8) -> nn.Sequential:
    """Two convolutions and a linear layer, with batch norm or without."""
    between = [nn.BatchNorm2d(width)] if norm else []
    layers = [nn.Conv2d(1, width, 3, padding=1), *between, nn.ReLU(), nn.Conv2d(width, width, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * width, CLASSES))


def mlp(activation: Callable[[], nn.Module], width: int = 48) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), activation(), nn.Linear(width, CLASSES))


def trained(
    build: Callable[[], nn.Module], *, epochs: int = 40, temperature: float = 1.0, adversarial: bool = False
) -> nn.Module:
    """A network trained on all of 200 images at once, in eval mode."""
    x, y = blobs(200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for epoch in range(epochs):
            seen = x
            if adversarial:
                attack = PGD(3, early_stop=False)
                seen = attack(model, x, y, Threat("linf", EPS), generator=torch.Generator().manual_seed(epoch))
            optimizer.zero_grad()
            functional.cross_entropy(model.train()(seen) / temperature, y).backward()
            optimizer.step()
    return model.eval()


@lru_cache(maxsize=1)
def classifier() -> nn.Module:
    """The CNN inside most broken defenses."""
    return trained(cnn)


class Wrapped(nn.Module):
    """A model made of the classifier and a function before and after it."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] | None = None, after: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.inner, self.before, self.after = classifier(), before, after

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits)


class GradientOf(torch.autograd.Function):
    """Passes its input through, and its gradient through a function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grads[0]), None


class Sign(nn.Module):
    """An activation that is -1 or 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


class SoftSign(nn.Module):
    """The same to train with."""

    def forward(self, x: Tensor) -> Tensor:
        return (4 * x).tanh()


class WinnersTakeAll(nn.Module):
    """Keeps the largest of a layer's activations, zero elsewhere (arXiv 1905.10510)."""

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(int(self.share * flat.shape[1]), 1), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


def winners_cnn() -> nn.Sequential:
    """A convolution whose channels compete."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), WinnersTakeAll(), nn.Flatten(), nn.Linear(1024, CLASSES))


class Thermometer(nn.Module):
    """Classifies the thermometer code of its input (Buckman et al., 2018), which is made of steps."""

    def __init__(self, levels: int = 8) -> None:
        super().__init__()
        self.thresholds = torch.arange(1, levels) / levels
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64 * (levels - 1), CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x[..., None] > self.thresholds).float())


class Detour(nn.Module):
    """The classifier on a detached input, and a linear decoy for the gradient, too small to change a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()
        self.register_buffer("decoy", torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach()) + 1e-3 * x.flatten(1) @ self.get_buffer("decoy")


class Purified(nn.Module):
    """Moves its input to where the classifier is surest, without letting gradients through (test-time optimisation)."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (uphill,) = torch.autograd.grad(classifier()(leaf).amax(1).sum(), leaf)
        return classifier()(x + 0.02 * uphill.sign())


class PurifiedByFunction(nn.Module):
    """The same in the functional style."""

    def forward(self, x: Tensor) -> Tensor:
        uphill = torch.func.grad(lambda z: classifier()(z).amax(1).sum())(x.detach())
        return classifier()(x + 0.02 * uphill.sign())


class InNumPy(nn.Module):
    """Works in NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        return classifier()(torch.from_numpy(x.detach().numpy()))


def batch_statistics() -> nn.Module:
    """A CNN whose batch norm uses the statistics of the batch in eval mode too."""
    model = trained(lambda: cnn(norm=True))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
    return model


def random_resize(x: Tensor) -> Tensor:
    """Shrinks to 6 or 7 pixels and pads back to 8 at a random place (arXiv 1711.01991)."""
    side = int(torch.randint(6, 8, (1,)))
    left, top = (int(v) for v in torch.randint(0, 9 - side, (2,)))
    small = functional.interpolate(x, size=side, mode="bilinear")
    return functional.pad(small, (left, 8 - side - left, top, 8 - side - top), value=0.25)


def hidden_sign() -> nn.Module:
    """Trained with a steep tanh, served with the sign."""
    model = trained(lambda: mlp(SoftSign, 256))
    assert isinstance(model, nn.Sequential)
    model[2] = Sign()
    return model


@torch.no_grad()
def without_grad(x: Tensor) -> Tensor:
    return x * 1.0


@dataclass(frozen=True, slots=True)
class Specimen:
    """A model of the zoo.

    Attributes:
        build: makes it.
        expected: flags that name its defect; none for healthy models.
    """

    build: Callable[[], nn.Module]
    expected: frozenset[FlagName]


def broken(build: Callable[[], nn.Module], *expected: FlagName) -> Specimen:
    return Specimen(build, frozenset(expected))


BROKEN: dict[str, Specimen] = {
    "input rounding": broken(lambda: Wrapped(lambda x: (x * 8).round() / 8), "zero_gradient"),
    "sign activation": broken(hidden_sign, "zero_gradient"),
    "thermometer encoding": broken(lambda: trained(Thermometer), "no_gradient"),
    "no_grad inside": broken(lambda: Wrapped(without_grad), "no_gradient"),
    "detached into NumPy": broken(InNumPy, "no_gradient"),
    "one-hot output": broken(
        lambda: Wrapped(after=lambda z: functional.one_hot(z.argmax(1), CLASSES).float()),
        "no_gradient",
        "quantised_logits",
        "probabilities",
    ),
    "quantised logits": broken(
        lambda: Wrapped(after=lambda z: 2 * (z / 2).round()), "quantised_logits", "zero_gradient"
    ),
    "logits x 1000": broken(lambda: Wrapped(after=lambda z: 1000 * z), "saturated_softmax"),
    "distilled at temperature 100": broken(lambda: trained(cnn, temperature=100, epochs=80), "saturated_softmax"),
    "softmax output": broken(lambda: Wrapped(after=lambda z: z.softmax(1)), "probabilities"),
    "input noise": broken(lambda: Wrapped(lambda x: x + 0.1 * torch.randn_like(x)), "randomised"),
    "random resizing": broken(lambda: Wrapped(random_resize), "randomised"),
    "dropout at test time": broken(lambda: Wrapped(lambda x: functional.dropout(x, 0.1)), "randomised"),
    "batch statistics": broken(batch_statistics, "batch_dependent"),
    "NaN gradient": broken(lambda: Wrapped(lambda x: x + (x - x.detach()).square().sqrt()), "non_finite_gradient"),
    "flipped gradient": broken(lambda: Wrapped(lambda x: GradientOf.apply(x, torch.neg)), "misleading_gradient"),
    "shuffled gradient": broken(
        lambda: Wrapped(lambda x: GradientOf.apply(x, lambda g: g.roll(4, -1))), "misleading_gradient"
    ),
    "decoy gradient": broken(Detour, "misleading_gradient"),
    "ripples": broken(
        lambda: Wrapped(lambda x: x + 2e-3 * torch.sin(3000 * x)), "rough_surface", "misleading_gradient"
    ),
    "purification at test time": broken(Purified, "gradient_inside"),
    "purification by torch.func": broken(PurifiedByFunction, "gradient_inside"),
    "winners take all": broken(lambda: trained(winners_cnn), "rough_surface"),
}

HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: trained(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))),
    "CNN": classifier,
    "wide CNN": lambda: trained(lambda: cnn(width=16)),
    "tanh MLP": lambda: trained(lambda: mlp(nn.Tanh)),
    "sigmoid MLP": lambda: trained(lambda: mlp(nn.Sigmoid)),
    "CNN with batch norm": lambda: trained(lambda: cnn(norm=True)),
    "adversarially trained CNN": lambda: trained(cnn, epochs=25, adversarial=True),
    "overconfident CNN": lambda: trained(cnn, epochs=160),
    "CNN with large logits": lambda: Wrapped(after=lambda z: 3 * z + 100),
}
