"""Shadow models side by side against in turn, and what they find that a loss threshold does not.

The target is a small network that overfits half of some thousand Fashion-MNIST pictures; the others are non-members.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.statistics import auc_interval, rate_interval
from auditorch.privacy.membership.augment import Augmentations
from auditorch.privacy.membership.label_only import LabelOnly
from auditorch.privacy.membership.lira import LiRA
from auditorch.privacy.membership.rmia import RMIA
from auditorch.privacy.membership.roc import tpr_at_fpr
from auditorch.privacy.membership.statistics import References, label_log_probability, scaled_confidence
from auditorch.privacy.shadow.fresh import fresh
from auditorch.privacy.shadow.training import ShadowConfig, fit, halves, train_shadows
from models import fashion_mnist
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def digits() -> tuple[Tensor, Tensor]:
    pictures, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pictures).float().div(16).view(-1, 1, 8, 8), torch.from_numpy(labels)


def networks() -> dict[str, tuple[nn.Module, int]]:
    """Each with the side of its pictures."""
    return {
        "MLP 64-64-64-10": (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
            8,
        ),
        "CNN 8-16, 8 x 8": (
            nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(64, 10),
            ),
            8,
        ),
        "CNN with BatchNorm, 8 x 8": (
            nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(128, 10),
            ),
            8,
        ),
        "small CNN, 28 x 28": (cnn(), 28),
    }


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(784, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def speed(wanted: list[str], rounds: int, models: int, batch_size: int, epochs: int) -> None:
    """Every way trains the same models on the same batches, one way after the other, ``rounds`` times."""
    print(f"\nprocessor time for {models} models, batch {batch_size}, {epochs} epoch of 898 records, one thread; "
          f"{rounds} rounds in alternation, medians (quartiles of the ratios by round)\n")  # fmt: skip
    print("| network | a plain loop | in turn | vmap | batched products | gain on the loop | gain on in turn | GFLOP/s "
          "of loop, products | largest difference of logits |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    x_digits, y = digits()
    x_large = nn.functional.interpolate(x_digits, 28)
    for name in wanted:
        network, side = networks()[name]
        x = x_digits if side == 8 else x_large
        config = ShadowConfig(models=models, epochs=epochs, batch_size=batch_size)
        ways: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {"loop": partial(plain_loop, network, x, y, config)}
        for how in ("turn", "vmap", "products"):
            ways[how] = partial(shadow_logits, network, x, y, replace(config, how=how))
        taken: dict[str, list[float]] = {way: [] for way in ways}
        answers: dict[str, Tensor] = {}
        for number in range(rounds):
            for way, run in ways.items():
                if way == "vmap" and number >= 5:
                    continue
                began = time.process_time()
                try:
                    logits = run()
                    taken[way].append(time.process_time() - began)
                    answers[way] = logits(x[:200])
                except UnsupportedError:
                    taken[way].append(float("nan"))
        seconds = {way: statistics.median(times) for way, times in taken.items()}
        gains = [gain(taken[way], taken["products"]) for way in ("loop", "turn")]
        work = models * epochs * -(-(len(x) // 2) // batch_size) * step_flops(network, x[:batch_size], y[:batch_size])
        rates = ", ".join(f"{work / seconds[way] / 1e9:.1f}" for way in ("loop", "products"))
        apart = (answers["products"] - answers["turn"]).abs().max()
        cells = [f"{seconds[way]:.2f} s" for way in ways]
        print("|", " | ".join([name, *cells, *gains, rates, f"{apart:.0e}"]), "|", flush=True)


def gain(slow: list[float], fast: list[float]) -> str:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(slow, fast, strict=True)], n=4)
    return f"**{middle:.1f}** ({low:.1f} to {high:.1f})"


def shadow_logits(network: nn.Module, x: Tensor, y: Tensor, config: ShadowConfig) -> Callable[[Tensor], Tensor]:
    return train_shadows(network, x, y, config).logits


def plain_loop(network: nn.Module, x: Tensor, y: Tensor, config: ShadowConfig) -> Callable[[Tensor], Tensor]:
    """Shadow models as one writes them down: one after the other, with torch's optimiser as it comes."""
    trained = []
    for k, row in enumerate(halves(len(x), config.models, config.seed)):
        model, own = fresh(network, k), row.nonzero().squeeze(1)
        optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay)
        for _ in range(config.epochs):
            for batch in own[torch.randperm(len(own))].split(config.batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
        trained.append(model)
    return lambda x: torch.stack([model(x).detach() for model in trained])


def step_flops(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """Of one model's forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(network(x), y).backward()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Target:
    """A model, the records ``x``, ``y``, and which of them it was trained on: half."""

    model: nn.Module
    x: Tensor
    y: Tensor
    member: Tensor

    def right(self) -> str:
        with torch.no_grad():
            right = (_logits(self.model, self.x).argmax(1) == self.y).float()
        return (
            f"{100 * right[self.member].mean():.1f} % on members, {100 * right[~self.member].mean():.1f} % on "
            f"{int((~self.member).sum())} non-members"
        )


def attacked(idx: Path | None, n: int, config: ShadowConfig, network: nn.Module, seed: int) -> Target:
    parts = [fashion_mnist(part, idx) for part in ("train", "test")]
    x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]
    x, y = x[chosen], y[chosen]
    member = torch.zeros(len(x), dtype=torch.bool)
    member[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + 2))[: len(x) // 2]] = True
    model = fresh(network, 4711 + seed)
    fit([model], x, y, [member.nonzero().squeeze(1)], replace(config, seed=seed + 3))
    return Target(model.eval(), x, y, member)


def labels(idx: Path | None, n: int, config: ShadowConfig, network: nn.Module, queries: int, seed: int) -> None:
    """The label-only attack by HopSkipJump against the shortest of random directions, at the same number of queries."""
    target = attacked(idx, n, config, network, seed)
    x, y, inside = target.x, target.y, target.member.numpy()
    print(f"\n{n} records, {queries} queries of each; target: {target.right()}\n")
    with torch.no_grad():
        found = {"right or wrong": (_logits(target.model, x).argmax(1) == y).double().numpy()}
        for name, bounds in (("random directions", (-math.inf, math.inf)), ("HopSkipJump", (0.0, 1.0))):
            asked = Asked(target.model)
            scores = [
                LabelOnly(queries)(asked, x[part], y[part], bounds=bounds, ids=part)
                for part in torch.arange(n).split(1000)
            ]
            found[f"{name}, {asked.rows / n:.0f} queries"] = np.concatenate(scores)
        found["loss threshold"] = label_log_probability(_logits(target.model, x).numpy(), y.numpy())
    print("| attack | AUC | TPR at 1 % FPR | TPR at 0.1 % FPR |\n|---|---|---|---|")
    for name, scores in found.items():
        low, high = auc_interval(scores[inside], scores[~inside])
        rates = [tpr_at_fpr(scores[inside], scores[~inside], fpr) for fpr in (0.01, 0.001)]
        cells = [f"{100 * f.value:.2f} % ({100 * f.low:.2f} to {100 * f.high:.2f})" for f in rates]
        print(f"| {name} | {low:.3f} to {high:.3f} | {' | '.join(cells)} |", flush=True)


class Asked:
    """Predicts classes, and counts of how many inputs."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.rows = model, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return _logits(self.model, x).argmax(1)


def leak(idx: Path | None, n: int, config: ShadowConfig, network: nn.Module, seed: int) -> None:
    """Attacks a model trained on half of ``n`` records; the other half are non-members."""
    target = attacked(idx, n, config, network, seed)
    x, y, member = target.x, target.y, target.member
    began = time.process_time()
    references = train_shadows(network, x, y, config)
    seconds = time.process_time() - began
    views = Augmentations(shifts=1)(x)
    with torch.no_grad():
        own = torch.stack([_logits(target.model, view) for view in views])
    theirs = torch.stack([references.logits(view) for view in views])
    classes, seen = y.numpy(), references.member.numpy()
    print(
        f"\n{len(x)} records, {config.models} shadows x {config.epochs} epochs ({references.how}, {seconds:.0f} s of "
        f"processor time); target: {target.right()}\n"
    )
    scaled = [scaled_confidence(z.numpy(), classes) for z in (own, theirs)]
    log_p = [label_log_probability(z.numpy(), classes) for z in (own, theirs)]

    def compared(pair: list[NDArray[np.float64]], queries: int) -> tuple[NDArray[np.float64], References]:
        return pair[0][:queries].T, References(np.moveaxis(pair[1][:queries], 0, 2), seen)

    out = ~member.numpy()
    results = {
        "loss threshold": log_p[0][0],
        "LiRA online": LiRA()(*compared(scaled, 1)),
        "LiRA online, record variance": LiRA(variance="record")(*compared(scaled, 1)),
        f"LiRA online, {len(views)} queries": LiRA()(*compared(scaled, len(views))),
        "LiRA offline": LiRA(online=False)(*compared(scaled, 1)),
        "RMIA online": RMIA()(*compared(log_p, 1), out),
        f"RMIA online, {len(views)} queries": RMIA()(*compared(log_p, len(views)), out),
        "RMIA offline": RMIA(online=False)(*compared(log_p, 1), out),
    }
    inside = member.numpy()
    negatives = int((~inside).sum())
    low, high = (100 * end for end in rate_interval(negatives // 1000, negatives, method="exact"))
    print(f"At 0.1 % a threshold rests on {negatives // 1000} of {negatives} non-members: its true rate is {low:.2f} "
          f"to {high:.2f} %. The ratio that is sure allows for that on both sides, and for the members that happened "
          "to be found.\n")  # fmt: skip
    print("| attack | AUC | TPR at 1 % FPR | TPR at 0.1 % FPR | ratio to loss at 0.1 % | sure |")
    print("|---|---|---|---|---|---|")
    base = tpr_at_fpr(log_p[0][0][inside], log_p[0][0][~inside], 0.001).value
    for name, scores in results.items():
        low, high = auc_interval(scores[inside], scores[~inside])
        found = [tpr_at_fpr(scores[inside], scores[~inside], fpr) for fpr in (0.01, 0.001)]
        cells = [f"{100 * f.value:.2f} % ({100 * f.low:.2f} to {100 * f.high:.2f})" for f in found]
        ratio = found[1].value / base if base else float("inf")
        sure = sure_ratio(scores, log_p[0][0], inside)
        print(f"| {name} | {low:.3f} to {high:.3f} | {cells[0]} | {cells[1]} | {ratio:.1f} | {sure:.1f} |", flush=True)


def sure_ratio(
    scores: NDArray[np.floating], base: NDArray[np.floating], inside: NDArray[np.bool_], fpr: float = 0.001
) -> float:
    """A lower bound on the ratio of true positive rates at ``fpr``: four exact bounds, each missed once in forty.

    The attack has a threshold whose rate is surely at most ``fpr``, the base one whose rate is surely at least that.
    """
    n = int((~inside).sum())
    ends = [rate_interval(k, n, method="exact") for k in range(int(5 * fpr * n) + 30)]
    most = max((k for k, (_, high) in enumerate(ends) if high <= fpr), default=0)
    least = min(k for k, (low, _) in enumerate(ends) if low >= fpr)
    own = tpr_at_fpr(scores[inside], scores[~inside], most / n).low
    return own / tpr_at_fpr(base[inside], base[~inside], least / n).high


def _logits(module: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([module(part) for part in x.split(512)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tasks = ["speed", "leak", "labels"]
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    parser.add_argument(
        "--idx", type=Path, help="folder of the gzipped Fashion-MNIST files; the demo's subset if left out"
    )
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--shadows", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--network", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--networks", nargs="+", choices=networks(), default=list(networks()), help="of the task speed")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--queries", type=int, default=100, help="of each record, of the task labels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "speed" in options.tasks:
        speed(options.networks, options.rounds, models=16, batch_size=32, epochs=1)
    config = ShadowConfig(options.shadows, options.epochs, batch_size=32, lr=options.lr, seed=options.seed + 1)
    network = {"mlp": mlp, "cnn": cnn}[options.network]()
    if "leak" in options.tasks:
        leak(options.idx, options.records, config, network, options.seed)
    if "labels" in options.tasks:
        labels(options.idx, options.records, config, network, options.queries, options.seed)


if __name__ == "__main__":
    main()
