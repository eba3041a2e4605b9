"""Who is compared: our attacks and the same attacks in other libraries, each behind one signature.

A library that is not installed is left out. To add a task, write a function like those below and list it in ``TASKS``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest.mock import MagicMock

import torch
from auditorch.attacks.attack import Attack
from auditorch.attacks.engine import evaluate
from auditorch.attacks.evasion.apgd import APGD, APGDT
from auditorch.attacks.evasion.auto import Auto
from auditorch.attacks.evasion.autoattack import AutoAttack
from auditorch.attacks.evasion.cw import CarliniWagner
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.evasion.square import Square
from auditorch.attacks.threat import Norm, Threat
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Problem:
    """A model with inputs to attack.

    Attributes:
        model: in eval mode.
        x, y: inputs ``(n, ...)`` and labels, on the model's device.
        threat: what is allowed.
        batch_size: for everybody.
        seed: another one for each repeat.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    batch_size: int
    seed: int


@dataclass(frozen=True, slots=True)
class Contestant:
    """One attack in one library: ``run(problem) -> x_adv`` over all samples."""

    library: str
    run: Callable[[Problem], Tensor]


@dataclass(frozen=True, slots=True)
class Task:
    """Attacks that do the same work.

    Attributes:
        name: as printed.
        norm: of the threat; its radius comes from the command line.
        passes: model passes per sample that the attack is entitled to; times are given as a ratio to these.
        unit: what a pass is: ``forward+backward`` or ``forward``.
        contestants: called only when the task runs, so that imports stay lazy.
        minimal: whether the attack looks for the smallest perturbation and may leave the ball.
    """

    name: str
    norm: Norm
    passes: int
    unit: Literal["forward+backward", "forward"]
    contestants: Callable[[], Iterator[Contestant]]
    minimal: bool = False


def ours(attack: Attack, **options: Any) -> Contestant:
    """Our attack through the engine, with everything that the engine adds: screening, verification, counting."""

    def run(problem: Problem) -> Tensor:
        outcome = evaluate(
            attack,
            problem.model,
            problem.x,
            problem.y,
            problem.threat,
            seed=problem.seed,
            batch_size=problem.batch_size,
            **options,
        )
        return outcome.x_adv.to(problem.x.device)

    return Contestant(" ".join(["auditorch", *(f"{key}={value}" for key, value in options.items())]), run)


def batched(library: str, make: Callable[[Problem], Callable[[Tensor, Tensor], Tensor]]) -> Contestant:
    """A peer's attack; ``make`` builds it once, then it gets one batch after the other."""

    def run(problem: Problem) -> Tensor:
        attack = make(problem)
        torch.manual_seed(problem.seed)
        batches = zip(problem.x.split(problem.batch_size), problem.y.split(problem.batch_size), strict=True)
        return torch.cat([attack(x, y).detach() for x, y in batches])

    return Contestant(library, run)


def peer(name: str) -> Any:
    """The module, or None when it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "") == name.split(".")[0]:
            return None
        raise


def add_peers(folder: Path) -> None:
    """Makes libraries unpacked below ``folder`` importable, either directly or as a source tree of their own.

    Some import torchvision and visdom for parts that are not used here; stand-ins take their place where missing.
    """
    sys.path += [str(folder), *(str(child) for child in sorted(folder.iterdir()) if child.is_dir())]
    for name in ("torchvision", "visdom"):
        if find_spec(name) is None:
            sys.modules[name] = MagicMock()
            for child in ("models", "transforms", "datasets"):
                sys.modules[f"{name}.{child}"] = MagicMock()


def pgd(steps: int, norm: Norm) -> Callable[[], Iterator[Contestant]]:
    """PGD from a random start; ours with falling steps, and with the constant ``2.5 * eps / steps`` of the others."""

    def size(problem: Problem) -> float:
        return 2.5 * problem.threat.eps / steps

    def contestants() -> Iterator[Contestant]:
        yield ours(PGD(steps=steps))
        yield Contestant("auditorch, constant step", lambda p: ours(PGD(steps, size(p))).run(p))
        yield ours(PGD(steps=steps), channels_last=True)
        if peer("art"):
            yield Contestant("ART", lambda problem: _art_pgd(problem, steps, size(problem)))
        if norm != "l1" and (lib := peer("torchattacks")):
            yield batched("torchattacks", lambda p, lib=lib: _torchattacks_pgd(lib, p, steps, size(p)))
        if lib := peer("foolbox"):
            yield batched("foolbox", lambda problem, lib=lib: _foolbox_pgd(lib, problem, steps, size(problem)))
        if norm == "linf" and (lib := peer("adv_lib.attacks")):
            yield batched("adv-lib", lambda problem, lib=lib: _adv_lib_pgd(lib, problem, steps, size(problem)))

    return contestants


def apgd(steps: int, norm: Norm) -> Callable[[], Iterator[Contestant]]:
    """APGD on cross-entropy, one run."""

    def contestants() -> Iterator[Contestant]:
        yield ours(APGD(steps=steps))
        if peer("art"):
            yield Contestant("ART", lambda problem: _art_apgd(problem, steps))
        if norm != "l1" and (lib := peer("torchattacks")):
            yield batched("torchattacks", lambda problem, lib=lib: _torchattacks_apgd(lib, problem, steps))
        if lib := peer("adv_lib.attacks"):
            yield batched("adv-lib", lambda problem, lib=lib: _adv_lib_apgd(lib, problem, steps))
        if lib := peer("autoattack.autopgd_base"):
            yield batched("AutoAttack reference", lambda p, lib=lib: _reference_apgd(lib.APGDAttack, p, steps))

    return contestants


def apgd_t(steps: int, targets: int) -> Callable[[], Iterator[Contestant]]:
    """APGD with the targeted DLR loss, one run towards each of some classes."""

    def contestants() -> Iterator[Contestant]:
        yield ours(APGDT(steps=steps, n_targets=targets))
        if lib := peer("autoattack.autopgd_base"):
            yield batched(
                "AutoAttack reference",
                lambda problem, lib=lib: _reference_apgd(
                    lib.APGDAttack_targeted, problem, steps, n_target_classes=targets
                ),
            )

    return contestants


def square(queries: int, norm: Norm) -> Callable[[], Iterator[Contestant]]:
    """Square, one run."""

    def contestants() -> Iterator[Contestant]:
        yield ours(Square(queries))
        if peer("art"):
            yield Contestant("ART", lambda problem: _art_square(problem, queries))
        if norm != "l1" and (lib := peer("torchattacks")):
            yield batched("torchattacks", lambda p, lib=lib: _torchattacks_square(lib, p, queries))
        if lib := peer("autoattack.square"):
            yield batched("AutoAttack reference", lambda p, lib=lib: _reference_square(lib, p, queries))

    return contestants


def carlini_wagner(steps: int, rounds: int, rate: float) -> Callable[[], Iterator[Contestant]]:
    """C&W l2 with the given gradient steps in all. Ours has its defaults; the peers begin with a constant of 1
    (torchattacks, which has one round, keeps 10) and get ``rate``, the best for them of .01, .05, .1 and .2."""

    def contestants() -> Iterator[Contestant]:
        each = steps // rounds
        yield ours(CarliniWagner(steps=each, binary_search_steps=rounds))
        if steps <= 100 and peer("art"):  # whose line search makes it some twenty times slower
            yield Contestant("ART", lambda problem: _art_cw(problem, each, rounds, rate))
        if lib := peer("adv_lib.attacks"):
            yield batched("adv-lib", lambda p, lib=lib: _adv_lib_cw(lib, p, each, rounds, rate))
        if lib := peer("foolbox"):
            yield batched("foolbox", lambda p, lib=lib: _foolbox_cw(lib, p, each, rounds, rate))
        if lib := peer("torchattacks"):
            yield batched("torchattacks", lambda p, lib=lib: lib.CW(p.model, c=10, steps=steps, lr=rate))

    return contestants


def ensembles() -> Iterator[Contestant]:
    """The default attack, the protocol of AutoAttack, and its reference implementation."""
    yield Contestant("auditorch auto", ours(Auto()).run)
    yield Contestant("auditorch autoattack", ours(AutoAttack()).run)
    if lib := peer("autoattack"):
        yield Contestant("AutoAttack reference", lambda problem: reference_autoattack(lib, problem))


TASKS: dict[str, Task] = {
    "auto-linf": Task("AutoAttack standard", "linf", 1400, "forward+backward", ensembles),
    "auto-l2": Task("AutoAttack standard", "l2", 1400, "forward+backward", ensembles),
    "auto-l1": Task("AutoAttack standard", "l1", 1400, "forward+backward", ensembles),
    "square-linf": Task("Square-1000", "linf", 1000, "forward", square(1000, "linf")),
    "square-l2": Task("Square-1000", "l2", 1000, "forward", square(1000, "l2")),
    "cw-l2": Task("C&W-100", "l2", 100, "forward+backward", carlini_wagner(100, 5, 0.2), minimal=True),
    "cw-long-l2": Task("C&W-900", "l2", 900, "forward+backward", carlini_wagner(900, 9, 0.1), minimal=True),
    "pgd-linf": Task("PGD-40", "linf", 40, "forward+backward", pgd(40, "linf")),
    "pgd-l2": Task("PGD-40", "l2", 40, "forward+backward", pgd(40, "l2")),
    "pgd-l1": Task("PGD-40", "l1", 40, "forward+backward", pgd(40, "l1")),
    "apgd-linf": Task("APGD-CE-100", "linf", 100, "forward+backward", apgd(100, "linf")),
    "apgd-l2": Task("APGD-CE-100", "l2", 100, "forward+backward", apgd(100, "l2")),
    "apgd-l1": Task("APGD-CE-100", "l1", 100, "forward+backward", apgd(100, "l1")),
    "apgd-t-linf": Task("APGD-T-9x100", "linf", 900, "forward+backward", apgd_t(100, 9)),
}


def _art_norm(norm: Norm) -> float:
    return {"linf": float("inf"), "l2": 2, "l1": 1}[norm]


def _art_classifier(problem: Problem) -> Any:
    from art.estimators.classification import PyTorchClassifier

    classes = problem.model(problem.x[:1]).shape[1]
    device = "gpu" if problem.x.is_cuda else "cpu"
    shape = tuple(problem.x.shape[1:])
    return PyTorchClassifier(
        problem.model, nn.CrossEntropyLoss(), shape, classes, clip_values=problem.threat.bounds, device_type=device
    )


def _art_run(attack: Any, problem: Problem) -> Tensor:
    torch.manual_seed(problem.seed)
    return torch.from_numpy(attack.generate(problem.x.cpu().numpy(), problem.y.cpu().numpy())).to(problem.x)


def _art_pgd(problem: Problem, steps: int, size: float) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    attack = ProjectedGradientDescentPyTorch(
        _art_classifier(problem),
        norm=_art_norm(problem.threat.norm),
        eps=problem.threat.eps,
        eps_step=size,
        max_iter=steps,
        num_random_init=1,
        batch_size=problem.batch_size,
        verbose=False,
    )
    return _art_run(attack, problem)


def _art_apgd(problem: Problem, steps: int) -> Tensor:
    from art.attacks.evasion import AutoProjectedGradientDescent

    attack = AutoProjectedGradientDescent(
        _art_classifier(problem),
        norm=_art_norm(problem.threat.norm),
        eps=problem.threat.eps,
        eps_step=2 * problem.threat.eps,
        max_iter=steps,
        nb_random_init=1,
        batch_size=problem.batch_size,
        loss_type="cross_entropy",
        verbose=False,
    )
    return _art_run(attack, problem)


def _torchattacks_pgd(lib: Any, problem: Problem, steps: int, size: float) -> Callable[[Tensor, Tensor], Tensor]:
    eps = problem.threat.eps
    if problem.threat.norm == "linf":
        return lib.PGD(problem.model, eps=eps, alpha=size, steps=steps, random_start=True)
    return lib.PGDL2(problem.model, eps=eps, alpha=size, steps=steps, random_start=True)


def _torchattacks_apgd(lib: Any, problem: Problem, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    norm = {"linf": "Linf", "l2": "L2"}[problem.threat.norm]
    return lib.APGD(problem.model, norm=norm, eps=problem.threat.eps, steps=steps, n_restarts=1, seed=problem.seed)


def _foolbox_pgd(lib: Any, problem: Problem, steps: int, size: float) -> Callable[[Tensor, Tensor], Tensor]:
    kind = {"linf": lib.attacks.LinfPGD, "l2": lib.attacks.L2PGD, "l1": lib.attacks.L1PGD}[problem.threat.norm]
    model = lib.PyTorchModel(problem.model, bounds=problem.threat.bounds)
    attack = kind(abs_stepsize=size, steps=steps, random_start=True)
    return lambda x, y: attack(model, x, y, epsilons=problem.threat.eps)[1]


def _adv_lib_pgd(lib: Any, problem: Problem, steps: int, size: float) -> Callable[[Tensor, Tensor], Tensor]:
    eps = problem.threat.eps
    return lambda x, y: lib.pgd_linf(problem.model, x, y, eps, steps=steps, absolute_step_size=size)


def _adv_lib_apgd(lib: Any, problem: Problem, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    norm = {"linf": float("inf"), "l2": 2, "l1": 1}[problem.threat.norm]
    eps = problem.threat.eps
    return lambda x, y: lib.apgd(problem.model, x, y, eps, norm, n_iter=steps, n_restarts=1, loss_function="ce")


def _torchattacks_square(lib: Any, problem: Problem, queries: int) -> Callable[[Tensor, Tensor], Tensor]:
    norm = {"linf": "Linf", "l2": "L2"}[problem.threat.norm]
    return lib.Square(problem.model, norm=norm, eps=problem.threat.eps, n_queries=queries, seed=problem.seed)


def _reference_square(lib: Any, problem: Problem, queries: int) -> Callable[[Tensor, Tensor], Tensor]:
    attack = lib.SquareAttack(
        problem.model,
        norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[problem.threat.norm],
        n_queries=queries,
        eps=problem.threat.eps,
        seed=problem.seed,
        device=problem.x.device,
        resc_schedule=True,
    )
    return attack.perturb


def reference_autoattack(lib: Any, problem: Problem) -> Tensor:
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[problem.threat.norm]
    attack = lib.AutoAttack(
        problem.model, norm=norm, eps=problem.threat.eps, device=problem.x.device, verbose=False, seed=problem.seed
    )
    return attack.run_standard_evaluation(problem.x, problem.y, bs=problem.batch_size)


def _adv_lib_cw(lib: Any, problem: Problem, steps: int, rounds: int, rate: float) -> Callable[[Tensor, Tensor], Tensor]:
    options = {"max_iterations": steps, "binary_search_steps": rounds, "initial_const": 1.0, "learning_rate": rate}
    return lambda x, y: lib.carlini_wagner_l2(problem.model, x, y, **options)


def _foolbox_cw(lib: Any, problem: Problem, steps: int, rounds: int, rate: float) -> Callable[[Tensor, Tensor], Tensor]:
    model = lib.PyTorchModel(problem.model, bounds=problem.threat.bounds)
    attack = lib.attacks.L2CarliniWagnerAttack(
        steps=steps, binary_search_steps=rounds, initial_const=1.0, stepsize=rate
    )
    return lambda x, y: attack(model, x, y, epsilons=None)[1]


def _art_cw(problem: Problem, steps: int, rounds: int, rate: float) -> Tensor:
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(
        _art_classifier(problem),
        max_iter=steps,
        binary_search_steps=rounds,
        initial_const=1.0,
        learning_rate=rate,
        batch_size=problem.batch_size,
        verbose=False,
    )
    return _art_run(attack, problem)


def _art_square(problem: Problem, queries: int) -> Tensor:
    from art.attacks.evasion import SquareAttack

    attack = SquareAttack(
        _art_classifier(problem),
        norm=_art_norm(problem.threat.norm),
        eps=problem.threat.eps,
        max_iter=queries,
        nb_restarts=1,
        batch_size=problem.batch_size,
        verbose=False,
    )
    return _art_run(attack, problem)


def _reference_apgd(kind: Any, problem: Problem, steps: int, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[problem.threat.norm]
    attack = kind(
        problem.model,
        n_iter=steps,
        norm=norm,
        n_restarts=1,
        eps=problem.threat.eps,
        seed=problem.seed,
        device=problem.x.device,
        **options,
    )
    return attack.perturb
