"""One attack as a plain function: tensors in, tensors out, no audit around it.

Trains a small classifier of handwritten digits (8 x 8 grey levels, from scikit-learn) and attacks it with PGD.
Run it with ``python examples/attack_function.py``; it takes seconds.
"""

import torch
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.threat import Threat
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digits() -> tuple[Tensor, Tensor]:
    """Images ``(1797, 64)`` with values 0..1, labels ``(1797,)``."""
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(labels)


def train(x: Tensor, y: Tensor) -> nn.Module:
    """A network with one hidden layer, trained on the whole set at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    x, y = digits()
    model = train(x[:1200], y[:1200])
    x, y = x[1200:], y[1200:]

    # The attack: every pixel may move by a tenth of the full range, and stays in 0..1.
    threat = Threat(norm="linf", eps=0.1)
    x_adv = PGD(steps=20)(model, x, y, threat, generator=torch.Generator().manual_seed(0))

    print(f"largest change  {threat.distance(x_adv, x).max():.3f}")  # noqa: T201
    print(f"clean accuracy  {accuracy(model, x, y):.3f}")  # noqa: T201
    print(f"under attack    {accuracy(model, x_adv, y):.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
