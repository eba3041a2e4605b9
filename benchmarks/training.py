"""Measures what the defenses that train buy on Fashion-MNIST, and what they cost.

    python benchmarks/training.py --sections robust beta mixup effects scopes fast overfitting cost

Each section prints one Markdown table. Data are the demo's 6,000 training and 1,000 test images unless ``--idx`` names
the full set. Robust accuracy is that of ``auto``; times are processor times of one thread.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import truediv
from pathlib import Path
from typing import TypeVar

import torch
from auditorch.attacks.attack import Attack
from auditorch.attacks.engine import evaluate
from auditorch.attacks.evasion.auto import Auto
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.models import attacking
from auditorch.attacks.threat import Threat
from auditorch.defenses.adversarial_training import AdversarialLoss, OnAdversarial, RobustLoss, fast, training_pgd
from auditorch.defenses.augmentation import Augment, RandomFlip
from auditorch.defenses.augmentations.colour import RandomColour
from auditorch.defenses.augmentations.crop import RandomCrop
from auditorch.defenses.augmentations.randaugment import RandAugment
from auditorch.defenses.augmentations.spatial import RandomSpatial
from auditorch.defenses.awp import WeightPerturbation
from auditorch.defenses.catastrophic import OverfittingGuard
from auditorch.defenses.distillation import Distillation
from auditorch.defenses.dropout import dropout
from auditorch.defenses.free import FreeLoss
from auditorch.defenses.lora import LoRA
from auditorch.defenses.mart import MART
from auditorch.defenses.mixing import CutMix, Mixup
from auditorch.defenses.objectives import CrossEntropy, Objective
from auditorch.defenses.penalties import InputGradient, Jacobian
from auditorch.defenses.regularization import Regularized
from auditorch.defenses.scope import HeadScheme, Scope, reset_head
from auditorch.defenses.spectral_norm import largest_singular_value, spectral_norm
from auditorch.defenses.trades import TRADES, DivergenceAscent
from auditorch.defenses.training import TrainingConfig, fit
from auditorch.defenses.validation import Accuracy, hold_out
from models import DEMO, fashion_mnist, small_cnn
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(DEMO))
from model import build as demo_network

T = TypeVar("T")
THREAT = Threat("linf", 0.1)
WARMUP = 0.3


@dataclass(frozen=True, slots=True)
class Data:
    """Training and test images and labels, and how many of the test images ``auto`` gets."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    attacked: int


def main() -> None:
    """Prints the tables asked for."""
    options = arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    x, y = fashion_mnist("train", options.idx)
    test_x, test_y = fashion_mnist("test")
    rows = torch.randperm(len(test_y), generator=torch.Generator().manual_seed(0))
    data = Data(x[: options.train], y[: options.train], test_x[rows], test_y[rows], options.samples)
    print(f"{len(data.y)} training and {len(data.test_y)} test images, {data.attacked} of them attacked with auto, "
          f"torch {torch.__version__}, one thread\n")  # fmt: skip
    for name in options.sections:
        began = time.process_time()
        SECTIONS[name](data, options)
        print(f"\n({time.process_time() - began:.0f} s)\n", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--samples", type=int, default=400, help="test images that auto attacks")
    parser.add_argument("--train", type=int, help="training images; default: all there are")
    parser.add_argument("--epochs", type=int, default=8, help="of adversarial training")
    parser.add_argument("--rows", type=int, nargs="+", help="only these rows of each table, counted from 0")
    parser.add_argument("--network", choices=["demo", "cnn"], default="demo", help="106,122 or 426,154 parameters")
    parser.add_argument("--idx", type=Path, help="folder with Fashion-MNIST as gzipped idx files; default: demo data")
    return parser.parse_args()


# Robust training


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adversarial training."""

    name: str
    loss: RobustLoss | None = None
    attack: Callable[[int], Attack] = training_pgd
    awp: float = 0.0
    steps: int = 3

    def objective(self) -> Objective:
        awp = WeightPerturbation(self.awp, WARMUP) if self.awp else None
        return AdversarialLoss(THREAT, self.attack(self.steps), WARMUP, self.loss or OnAdversarial(), awp)


def robust(data: Data, options: argparse.Namespace) -> None:
    """Every method of adversarial training from the same start."""
    header("robust", "method", "clean", "robust (auto)", "training", "epochs")
    start, seconds = timed(lambda: pretrained(data, options))
    line("none", *accuracies(start, data), f"{seconds:.0f} s", 3)
    recipes = [
        Recipe("PGD-AT, 3 steps"),
        Recipe("PGD-AT + AWP 0.005", awp=0.005),
        Recipe("TRADES, beta 6", TRADES(6), DivergenceAscent),
        Recipe("TRADES + AWP 0.005", TRADES(6), DivergenceAscent, awp=0.005),
        Recipe("MART, beta 5", MART(5)),
        Recipe("MART + AWP 0.005", MART(5), awp=0.005),
        Recipe("Fast-AT", attack=lambda _: fast(THREAT)),
    ]
    objectives = [(recipe.name, recipe.objective()) for recipe in recipes]
    for name, objective in chosen([*objectives, ("Free-AT, 4 replays", FreeLoss(THREAT, 4, WARMUP))], options):
        row(name, start, data, objective, options.epochs)


def row(name: str, start: nn.Module, data: Data, objective: Objective, epochs: int) -> None:
    """Trains on and prints clean and robust accuracy."""
    module = copy.deepcopy(start)
    config = TrainingConfig(epochs=epochs, batch_size=batch(data), lr=2e-3, ema=0.99, weight_decay=0.05, warmup=0.1)
    _, seconds = timed(lambda: fit(module, data.x, data.y, config=config, objective=objective, augment=RandomFlip()))
    line(name, *accuracies(module, data), f"{seconds:.0f} s", epochs)


def beta(data: Data, options: argparse.Namespace) -> None:
    """TRADES trades: what beta does."""
    header("beta", "TRADES beta", "clean", "robust (auto)", "training", "epochs")
    start = pretrained(data, options)
    for value in chosen((1, 3, 6, 12), options):
        recipe = Recipe(f"{value:g}", TRADES(value), DivergenceAscent)
        row(recipe.name, start, data, recipe.objective(), options.epochs)


def overfitting(data: Data, options: argparse.Namespace) -> None:
    """Robust overfitting on a sixth of the data: the last epoch, the best on held-out data, and AWP."""
    header(
        "overfitting", "1,000 images, constant rate, 40 epochs", "robust, training", "clean", "robust (auto)", "epoch"
    )
    few = replace(data, x=data.x[:1000], y=data.y[:1000])
    start = pretrained(data, options)
    rows, held = hold_out(few.y, 0.2, 0)
    validate = Accuracy(few.x[held], few.y[held], PGD(steps=10, early_stop=False), THREAT)
    config = TrainingConfig(epochs=40, lr=1e-3, schedule="constant")
    cases = [
        ("last epoch", 0.0, False),
        ("best epoch held out", 0.0, True),
        ("last epoch, AWP 0.01", 0.01, False),
    ]
    for name, awp, best in chosen(cases, options):
        module = copy.deepcopy(start)
        objective = Recipe("", awp=awp).objective()
        history = fit(
            module, few.x[rows], few.y[rows], config=config, objective=objective, validate=validate if best else None
        )
        known = Accuracy(few.x[rows], few.y[rows], PGD(steps=10, early_stop=False), THREAT)(module.eval())
        line(name, percent(known), *accuracies(module, data), history.kept + 1)


def fast_overfitting(data: Data, options: argparse.Namespace) -> None:
    """Catastrophic overfitting of single-step training, and the guard."""
    header("fast", "Fast-AT at linf 0.2, 15 epochs", "one step (train)", "PGD-10 (test)", "clean", "ended")
    threat = Threat("linf", 0.2)
    single = PGD(steps=1, step_size=2 * threat.eps, early_stop=False)
    guard = OverfittingGuard(data.x[:100], data.y[:100], threat, single)
    strong = PGD(steps=10, early_stop=False)
    for name, watched in chosen((("without guard", None), ("with guard", guard)), options):
        module = fresh()
        objective = AdversarialLoss(threat, single)
        config = TrainingConfig(epochs=15, lr=3e-3, schedule="constant")
        history = fit(module, data.x, data.y, config=config, objective=objective, guard=watched)
        scores = [Accuracy(data.test_x, data.test_y, strong, threat), Accuracy(data.test_x, data.test_y)]
        trained = Accuracy(data.x[:500], data.y[:500], single, threat)(module.eval())
        ended = history.stopped.partition(":")[0] or "after the last epoch"
        line(name, percent(trained), *(percent(score(module)) for score in scores), ended)


# Regularisation


def mixup(data: Data, options: argparse.Namespace) -> None:
    """What alpha does, with true labels and with two in five of them wrong (sections 3.3 and 3.4 of the paper)."""
    header(
        "mixup", "alpha", "wrong labels", "train, as labelled", "train, truly", "test", "test loss", "PGD-10, linf 0.02"
    )
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.where(torch.rand(len(data.y), generator=generator) < 0.4,
                           torch.randint(10, data.y.shape, generator=generator), data.y)  # fmt: skip
    cases = itertools.product((("none", data.y), ("40 % drawn at random", shuffled)), (0.0, 0.2, 1.0, 8.0))
    for (name, labels), alpha in chosen(list(cases), options):
        module = fresh()
        config = TrainingConfig(epochs=25, lr=2e-3)
        fit(module, data.x, labels, config=config, objective=Regularized(mixing=Mixup(alpha)))
        known, true = Accuracy(data.x, labels)(module.eval()), Accuracy(data.x, data.y)(module)
        test = Accuracy(data.test_x, data.test_y)(module)
        near = Accuracy(data.test_x, data.test_y, PGD(steps=10, early_stop=False), Threat("linf", 0.02))(module)
        loss = cross_entropy(module(data.test_x), data.test_y).item()
        line(f"{alpha:g}", name, *map(percent, (known, true, test)), f"{loss:.2f}", percent(near))


@dataclass(frozen=True, slots=True)
class Effect:
    """One regulariser against the same training without it."""

    name: str
    objective: Objective | None = None
    augment: Augment | None = None
    around: Callable[[nn.Module], AbstractContextManager[None]] = lambda _: nullcontext()
    weight_decay: float = 0.0
    ema: float | None = None


def effects(data: Data, options: argparse.Namespace) -> None:
    """One regulariser at a time, 20 epochs from the same fresh weights."""
    header(
        "effects",
        "with",
        "train",
        "test",
        "gap",
        "ECE",
        "moved and turned",
        "PGD-10, linf 0.02",
        "mean |J|^2",
        "largest singular values",
    )
    rows = [
        Effect("nothing"),
        Effect("weight decay 0.5", weight_decay=0.5),
        Effect("dropout 0.5", around=lambda module: dropout(module, 0.5)),
        Effect("label smoothing 0.1", CrossEntropy(0.1)),
        Effect("mixup 0.4", Regularized(mixing=Mixup(0.4))),
        Effect("CutMix 1", Regularized(mixing=CutMix(1.0))),
        Effect("flip, crop 2", augment=Both(RandomFlip(), RandomCrop(2))),
        Effect("rotation 20, translation 0.1, scale 0.1", augment=RandomSpatial(20, 0.1, 0.1)),
        Effect("colour 0.3", augment=RandomColour(0.3)),
        Effect("RandAugment 2 x 7", augment=RandAugment(2, 7)),
        Effect("input gradient 0.1", Regularized(penalties=(InputGradient(0.1),))),
        Effect("Jacobian 0.01", Regularized(penalties=(Jacobian(0.01),))),
        Effect("spectral norm 1.5", around=lambda module: spectral_norm(module, 1.5)),
        Effect("average of weights 0.999", ema=0.999),
    ]
    shifted = RandomSpatial(20, 0.1, 0.1)(data.test_x, torch.Generator().manual_seed(0))
    for effect in chosen(rows, options):
        module = fresh()
        config = TrainingConfig(epochs=20, lr=2e-3, weight_decay=effect.weight_decay, ema=effect.ema)
        with effect.around(module):
            fit(module, data.x, data.y, config=config, objective=effect.objective, augment=effect.augment)
        train, test = Accuracy(data.x, data.y)(module.eval()), Accuracy(data.test_x, data.test_y)(module)
        near = Accuracy(data.test_x, data.test_y, PGD(steps=10, early_stop=False), Threat("linf", 0.02))(module)
        line(
            effect.name,
            percent(train),
            percent(test),
            f"{100 * (train - test):.1f}",
            f"{100 * calibration_error(module, data):.1f} %",
            percent(Accuracy(shifted, data.test_y)(module)),
            percent(near),
            f"{jacobian(module, data.test_x[:100]):.3g}",
            ", ".join(f"{largest_singular_value(w):.2g}" for w in module.parameters() if w.dim() > 1),
        )


@dataclass(frozen=True, slots=True)
class Both:
    """Two augmentations in a row."""

    first: Augment
    second: Augment

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.second(self.first(x, generator), generator)


def students(data: Data, options: argparse.Namespace) -> None:
    """Soft targets as regularisers (section 6 of arXiv 1503.02531): a student of the teacher's size on few images."""
    del options
    header("students", "student", "images", "training", "test", "agrees with the teacher")
    teacher = small_cnn()
    fit(teacher, data.x, data.y, config=TrainingConfig(epochs=15, lr=2e-3), augment=RandomFlip())
    answers = teacher.eval()(data.test_x).argmax(1)
    line("the teacher", len(data.y), "", percent(Accuracy(data.test_x, data.test_y)(teacher)), "")
    for share in (0.03, 0.1):
        count = round(share * len(data.y))
        x, y = data.x[:count], data.y[:count]
        for name, objective in (
            ("labels alone", CrossEntropy()),
            ("teacher, T 1", Distillation(teacher, 1.0, 1.0)),
            ("teacher, T 4", Distillation(teacher, 4.0, 1.0)),
        ):
            results = []
            for seed in range(3):
                torch.manual_seed(seed)
                student = small_cnn()
                config = TrainingConfig(epochs=round(5 / share), lr=1e-3, seed=seed)
                fit(student, x, y, config=config, objective=objective)
                student.eval()
                results.append(
                    [Accuracy(*pair)(student) for pair in ((x, y), (data.test_x, data.test_y), (data.test_x, answers))]
                )
            line(name, count, *(percent(statistics.mean(column)) for column in zip(*results, strict=True)))


def scopes(data: Data, options: argparse.Namespace) -> None:
    """What is trained: from digits to clothes with all weights, fewer, or adapters; and how the head begins."""
    header("scopes", "trained", "head begins", "trained weights", "test", "time")
    cases: list[tuple[str, Scope, HeadScheme]] = [
        ("all", "all", "default"),
        ("all", "all", "zeros"),
        ("all", "all", "orthogonal"),
        ("last 2 blocks", 2, "default"),
        ("head", "head", "default"),
        ("LoRA, rank 8", LoRA(8, 16.0), "default"),
        ("LoRA, rank 2", LoRA(2, 4.0), "default"),
    ]
    for name, scope, scheme in chosen(cases, options):
        module = fresh()
        module.load_state_dict(load_file(DEMO / "pretrained.safetensors"))
        reset_head(module, 0, scheme)
        count = Counted()
        config = TrainingConfig(epochs=10, lr=2e-3, scope=scope)
        _, seconds = timed(partial(fit, module, data.x, data.y, config=config, objective=count))
        test = percent(Accuracy(data.test_x, data.test_y)(module.eval()))
        line(name, scheme, f"{count.parameters:,}", test, f"{seconds:.0f} s")


@dataclass(slots=True)
class Counted:
    """Cross-entropy that notes how many parameters take gradients."""

    parameters: int = 0

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: object):  # noqa: ANN204
        self.parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return CrossEntropy()(module, x, y, moment)  # pyright: ignore


# Cost


def cost(data: Data, options: argparse.Namespace) -> None:
    """Processor time of an epoch against (steps + 1) bare training epochs and against the bare passes, in turns.

    A training pass needs no gradient of its input, an attack's needs no gradient of the weights; which costs more
    depends on the network. The bare passes are ``steps`` with input gradients and one with weight gradients.
    """
    del options
    steps = 7
    x, y = data.x[:768], data.y[:768]
    header("cost", f"{steps} steps, batch 128", *("seconds", "to training epochs", "to bare passes") * 2)
    cells: dict[str, list[str]] = {}
    for make in (fresh, small_cnn):
        runs: dict[str, list[float]] = {}
        for _ in range(3):
            plain = timed(lambda make=make: bare_epoch(make(), x, y))[1]
            passes = plain + steps * timed(lambda make=make: bare_attack(make(), x, y))[1]
            runs.setdefault("(steps + 1) bare training epochs", []).append((steps + 1) * plain)
            runs.setdefault("bare passes", []).append(passes)
            for name, objective in costed(steps).items():
                config = TrainingConfig(epochs=1, batch_size=128)
                work = partial(fit, make(), x, y, config=config, objective=objective)
                runs.setdefault(name, []).append(timed(work)[1])
            runs.setdefault("ART's AdversarialTrainerMadryPGD", []).append(art_epoch(make(), x, y, steps))
        plains, passes = list(runs.values())[:2]
        for name, times in runs.items():
            ratios = [statistics.median(map(truediv, times, floor)) for floor in (plains, passes)]
            cells.setdefault(name, []).extend([f"{statistics.median(times):.2f}", *(f"{r:.2f}" for r in ratios)])
    for name, values in cells.items():
        line(name, *values)


def costed(steps: int) -> dict[str, Objective]:
    """What is timed against the floor."""
    pgd = training_pgd(steps)
    return {
        "ours, PGD-AT": AdversarialLoss(THREAT, pgd),
        "ours, TRADES": AdversarialLoss(THREAT, DivergenceAscent(steps), loss=TRADES()),
        "ours, MART": AdversarialLoss(THREAT, pgd, loss=MART()),
        "ours, PGD-AT + AWP": AdversarialLoss(THREAT, pgd, awp=WeightPerturbation()),
    }


def bare_epoch(module: nn.Module, x: Tensor, y: Tensor) -> None:
    """Forward, backward and step of Adam on every batch, and nothing else."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, fused=True)
    for rows in torch.randperm(len(x)).split(128):
        optimizer.zero_grad()
        cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()


def bare_attack(module: nn.Module, x: Tensor, y: Tensor) -> None:
    """Forward and backward to the input of every batch, and nothing else."""
    with attacking(module):
        for rows in torch.randperm(len(x)).split(128):
            leaf = x[rows].requires_grad_()
            torch.autograd.grad(cross_entropy(module(leaf), y[rows], reduction="sum"), leaf)


def art_epoch(module: nn.Module, x: Tensor, y: Tensor, steps: int) -> float:
    """Seconds of one epoch of ART's trainer."""
    os.environ["TQDM_DISABLE"] = "1"
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        module, nn.CrossEntropyLoss(), (1, 28, 28), 10, torch.optim.AdamW(module.parameters(), 1e-3), clip_values=(0, 1)
    )
    trainer = AdversarialTrainerMadryPGD(
        classifier, nb_epochs=1, batch_size=128, eps=THREAT.eps, eps_step=THREAT.eps / 3, max_iter=steps
    )
    return timed(lambda: trainer.fit(x.numpy(), y.numpy()))[1]


# Shared


def chosen(rows: Sequence[T], options: argparse.Namespace) -> list[T]:
    """The rows asked for."""
    return [row for number, row in enumerate(rows) if options.rows is None or number in options.rows]


def fresh() -> nn.Sequential:
    """The demo's network with its own fresh weights, always the same."""
    torch.manual_seed(0)
    return demo_network()


def pretrained(data: Data, options: argparse.Namespace) -> nn.Module:
    """The network after three plain epochs."""
    torch.manual_seed(0)
    module = demo_network() if options.network == "demo" else small_cnn()
    fit(module, data.x, data.y, config=TrainingConfig(epochs=3, lr=2e-3), augment=RandomFlip())
    return module.eval()


def batch(data: Data) -> int:
    """Larger for the full data set."""
    return 64 if len(data.y) <= 6000 else 128


def accuracies(module: nn.Module, data: Data) -> tuple[str, str]:
    """Accuracy on all clean test images, and under ``auto`` on some."""
    outcome = evaluate(Auto(), module.eval(), data.test_x[: data.attacked], data.test_y[: data.attacked], THREAT)
    return percent(Accuracy(data.test_x, data.test_y)(module)), percent(outcome.robust_accuracy)


def calibration_error(module: nn.Module, data: Data) -> float:
    """Expected calibration error over ten bins of equal width."""
    with torch.no_grad():
        confidence, predicted = module(data.test_x).softmax(1).max(1)
    right = (predicted == data.test_y).float()
    bins = (confidence * 10).long().clamp(0, 9)
    parts = [(bins == b, float((bins == b).float().mean())) for b in range(10) if bool((bins == b).any())]
    return sum(share * abs(float(right[rows].mean() - confidence[rows].mean())) for rows, share in parts)


def jacobian(module: nn.Module, x: Tensor) -> float:
    """Mean squared Frobenius norm of the Jacobian of the logits."""
    leaf = x.clone().requires_grad_()
    logits = module(leaf)
    rows = [torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] for k in range(logits.shape[1])]
    return float(torch.stack(rows).pow(2).sum() / len(x))


def timed(work: Callable[[], object]) -> tuple:  # pyright: ignore[reportMissingTypeArgument]
    """What ``work`` gives, and its processor time."""
    gc.collect()
    began = time.process_time()
    value = work()
    return value, time.process_time() - began


def size(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def header(section: str, *columns: str) -> None:
    print(f"### {section}\n\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def line(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


SECTIONS: dict[str, Callable[[Data, argparse.Namespace], None]] = {
    "robust": robust,
    "beta": beta,
    "mixup": mixup,
    "effects": effects,
    "students": students,
    "scopes": scopes,
    "fast": fast_overfitting,
    "overfitting": overfitting,
    "cost": cost,
}

if __name__ == "__main__":
    main()
