"""How often the detectors of leaks speak up: on models with a planted leak, where they should, and on clean ones.

Membership: small networks that know half of a pool of digits by heart (planted), or were trained on other digits
(clean). Budgets: private trainings that keep their promise (clean), and such that leave out the noise, do not clip, or
draw every record in every step while they account for a tenth of that (planted).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from auditorch.attacks.statistics import auc_interval, rate_interval
from auditorch.privacy import clipping
from auditorch.privacy.accounting import Budget, epsilon
from auditorch.privacy.auditing.audit import audit_in_one_run
from auditorch.privacy.auditing.canaries import PlantedInputs
from auditorch.privacy.dp_sgd import DPConfig, dp_fine_tune
from auditorch.privacy.membership.lira import LiRA
from auditorch.privacy.membership.rmia import RMIA
from auditorch.privacy.membership.statistics import References, label_log_probability, scaled_confidence
from auditorch.privacy.shadow.fresh import fresh
from auditorch.privacy.shadow.training import ShadowConfig, fit, halves, train_shadows
from sklearn.datasets import load_digits
from torch import Tensor, nn


def row(name: str, planted: tuple[int, int], clean: tuple[int, int]) -> None:
    cells = []
    for count, n in (planted, clean):
        low, high = rate_interval(count, n, method="exact")
        cells.append(f"{count} of {n} ({100 * low:.0f} to {100 * high:.0f} %)")
    print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def membership(models: int, seed: int) -> None:
    """A model is accused when the interval of the attack's AUC lies above one half."""
    pictures, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = torch.from_numpy(pictures[order]).float() / 16, torch.from_numpy(labels[order])
    rng = torch.Generator().manual_seed(seed)
    noisy = torch.rand(len(y), generator=rng) < 0.2  # mistaken labels have to be learned by heart
    y = torch.where(noisy, torch.randint(0, 10, (len(y),), generator=rng), y)
    pool, rest = slice(0, 600), torch.arange(600, len(x))
    config = ShadowConfig(models=16, epochs=60, batch_size=32, lr=5e-3, seed=seed)
    shadows = train_shadows(network(), x[pool], y[pool], config)
    logits, member = shadows.logits(x[pool]).numpy(), shadows.member.numpy()
    labels = y[pool].numpy()
    own = halves(600, models, seed + 1)
    index = {"planted": [half.nonzero().squeeze(1) for half in own]}
    index["clean"] = [rest[torch.randperm(len(rest), generator=rng)[:300]] for _ in own]
    flagged = {kind: dict.fromkeys(("loss", "lira", "rmia"), 0) for kind in index}
    for kind, records in index.items():
        targets = [fresh(network(), 1000 * seed + k) for k in range(models)]
        told = fit(targets, x, y, records, replace(config, seed=seed + 7)).models()
        for k, model in enumerate(told):
            with torch.no_grad():
                answer = model(x[pool]).numpy()
            inside = own[k].numpy()
            log_p, scaled = label_log_probability(answer, labels), scaled_confidence(answer, labels)
            theirs = [f(logits, labels)[:, :, None] for f in (label_log_probability, scaled_confidence)]
            scores = {
                "loss": log_p,
                "lira": LiRA()(scaled[:, None], References(theirs[1], member)),
                "rmia": RMIA()(log_p[:, None], References(theirs[0], member), ~inside),
            }
            for name, found in scores.items():
                flagged[kind][name] += auc_interval(found[inside], found[~inside])[0] > 0.5
    for name in ("loss", "lira", "rmia"):
        row(f"membership, {name}", (flagged["planted"][name], models), (flagged["clean"][name], models))


CONFIG = DPConfig(noise_multiplier=3.0, delta=1e-5, epochs=8, batch_size=60, lr=0.1, seed=1)


def _unclipped() -> AbstractContextManager[Any]:
    weights = clipping.Clipping.weights

    def ones(self: clipping.Clipping, squared_norms: Tensor) -> Any:
        given, rest = weights(self, squared_norms)
        return [torch.ones_like(weight) for weight in given], rest

    return patch.object(clipping.Clipping, "weights", ones)


def budgets(trainings: int) -> None:
    """A training is accused when the lower bound of one run with 1200 canaries lies above the claimed epsilon."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def accused(actual: DPConfig, within: Callable[[], AbstractContextManager[Any]]) -> tuple[int, float, float]:
        count, bounds, claim = 0, [], 0.0
        for seed in range(trainings):

            def train(network: nn.Module, inputs: PlantedInputs, labels: Tensor, seed: int = seed) -> Any:
                rate = CONFIG.batch_size / len(labels)
                budget: Budget = epsilon(3.0, rate, math.ceil(CONFIG.epochs / rate), 1e-5)
                config = replace(actual, seed=seed)
                return dp_fine_tune(network, inputs, labels, config=config).module, budget

            with within():
                found = audit_in_one_run(train, module, x, y, classes=3, canaries=1200, seed=100 + seed)
            count, claim = count + found.broken, found.epsilon
            bounds.append(found.bound.epsilon)
        return count, float(np.median(bounds)), claim

    honest, bound, claim = accused(CONFIG, nullcontext)
    defects: dict[str, tuple[DPConfig, Callable[[], AbstractContextManager[Any]]]] = {
        "noise left out": (replace(CONFIG, noise_multiplier=0.0), nullcontext),
        "clipping left out": (CONFIG, _unclipped),
        "sampling rate wrong": (replace(CONFIG, batch_size=700, epochs=100), nullcontext),
    }
    notes = [f"claimed epsilon {claim:.2f}; median lower bound of honest trainings {bound:.2f}"]
    for name, (actual, within) in defects.items():
        count, bound, _ = accused(actual, within)
        row(f"budget, {name}", (count, trainings), (honest, trainings))
        notes.append(f"{name}: {bound:.2f}")
    print("\n" + "; ".join(notes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    print("| detector | speaks up on planted | on clean |")
    print("|---|---|---|")
    membership(options.models, options.seed)
    budgets(options.trainings)
    print(f"\n{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
