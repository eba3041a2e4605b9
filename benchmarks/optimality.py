"""How close each smallest-perturbation attack comes to the best of all of them (AttackBench, arXiv 2404.19460).

    python benchmarks/optimality.py --cases slim:linf slim-l2:l2 --samples 100 --steps 200 --peers path/to/libraries

The reference of each sample is the smallest perturbation that any contestant found. An attack's optimality is the area
above its curve of robust accuracy against eps as a share of the area above the curve of the reference, up to the radius
at which the reference leaves no sample standing: 1 for the reference, 0 for an attack that finds nothing. Only points
inside the bounds that fool the model, by our own judgement, count. Everybody is given the same number of gradient
steps; what was spent is printed beside it.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from auditorch.attacks.attack import Attack
from auditorch.attacks.evasion.cw import CarliniWagner
from auditorch.attacks.evasion.ddn import DDN
from auditorch.attacks.evasion.deepfool import DeepFool, SuperDeepFool
from auditorch.attacks.evasion.fab import FABT
from auditorch.attacks.evasion.fmn import FMN
from auditorch.attacks.evasion.sigma_zero import SigmaZero
from auditorch.attacks.search import fooled
from auditorch.attacks.threat import NORMS, Norm, Threat
from contestants import Contestant, Problem, add_peers, batched, ours, peer
from measuring import Counter
from models import SUBJECTS, samples, trained
from torch import Tensor, nn

CASES = ("slim:linf", "slim-l2:l2", "slim-l1:l1", "slim-standard:l0")
_ORDER: dict[Norm, float] = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}
_LARGEST: dict[Norm, float] = {"linf": 1.0, "l2": 28.0, "l1": 784.0, "l0": 784.0}
"""Where the bisection of adv-lib's APGD begins."""


def main() -> None:
    """Prints one Markdown table a case."""
    options = arguments()
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peers:
        add_peers(options.peers)
    for text in options.cases:
        network, norm = text.split(":")
        model = trained(network, epochs=options.epochs, device=options.device, idx=options.idx, cache=options.cache)
        x, y = samples(network, "test", options.idx)
        with torch.no_grad():
            right = (model(x.to(options.device)).argmax(1).cpu() == y).nonzero().squeeze(1)[: options.samples]
        x, y = x[right].to(options.device), y[right].to(options.device)
        compare(text, norm, Problem(model, x, y, Threat(norm, 0.1), options.batch, 0), options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help=f"network:norm, of {', '.join(SUBJECTS)}")
    parser.add_argument("--only", nargs="+", help="contestants whose names contain one of these")
    parser.add_argument("--samples", type=int, default=100, help="correctly classified ones")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peers", type=Path, help="folder with other libraries, unpacked")
    parser.add_argument("--idx", type=Path, help="folder with Fashion-MNIST as gzipped idx files; default: demo data")
    parser.add_argument("--cache", type=Path, default=Path("build/bench"))
    return parser.parse_args()


def compare(title: str, norm: Norm, problem: Problem, options: argparse.Namespace) -> None:
    """Runs all contestants and prints them, the best first."""
    distances: dict[str, Tensor] = {}
    spent: dict[str, str] = {}
    for contestant in contestants(norm, options.steps):
        if options.only and not any(part in contestant.library for part in options.only):
            continue
        counter = Counter(problem.model).eval()
        began = time.process_time()
        try:
            x_adv = contestant.run(
                Problem(counter, problem.x, problem.y, problem.threat, problem.batch_size, problem.seed)
            )
        except Exception as error:  # a peer that fails is reported, and the others go on
            print(f"{contestant.library} failed: {type(error).__name__}: {str(error)[:100]}")
            continue
        n = len(problem.x)
        seconds = time.process_time() - began
        spent[contestant.library] = f"{counter.forwards / n:.0f} | {counter.backwards / n:.0f} | {seconds:.1f}"
        distances[contestant.library] = sizes(problem, x_adv)
    best = torch.stack(list(distances.values())).amin(0)
    print(
        f"### {title}: {len(problem.x)} samples, {options.steps} steps; median of the best {float(best.median()):.4g}\n"
    )
    print("| attack | optimality | median distance | found | forwards | backwards | seconds |")
    print("|---|---|---|---|---|---|---|")
    scores = {name: optimality(found, best) for name, found in distances.items()}
    for name in sorted(scores, key=lambda name: -scores[name]):
        found = distances[name]
        share = float(found.isfinite().double().mean())
        print(f"| {name} | {scores[name]:.4f} | {float(found.median()):.4g} | {100 * share:.0f} % | {spent[name]} |")
    print(flush=True)


def optimality(found: Tensor, best: Tensor) -> float:
    """Area above the curve of robust accuracy against eps, as a share of the best one's; distances ``(n,)``."""
    last = best[best.isfinite()].amax()
    return float((last - found.clamp_max(last)).sum() / (last - best.clamp_max(last)).sum())


@torch.no_grad()
def sizes(problem: Problem, x_adv: Tensor) -> Tensor:
    """Distances ``(n,)``; infinity where a point does not fool the model or leaves the bounds beyond rounding."""
    x_adv = x_adv.detach()
    low, high = problem.threat.bounds
    inside = ((x_adv >= low - 1e-6) & (x_adv <= high + 1e-6)).flatten(1).all(1)
    hit = fooled(problem.model(x_adv.clamp(low, high)), problem.y, targeted=False)
    distance = problem.threat.distance(x_adv.clamp(low, high), problem.x)
    return distance.masked_fill(~(hit & inside), float("inf"))


def contestants(norm: Norm, steps: int) -> Iterator[Contestant]:
    """Everybody who knows the norm."""
    if norm not in NORMS:
        raise SystemExit(f"norm is {norm}: choose one of {', '.join(NORMS)}")
    for name, attack in own(steps).items():
        if norm in getattr(attack, "norms", NORMS):
            yield Contestant(f"auditorch {name}", ours(attack).run)
    if lib := peer("adv_lib.attacks"):
        yield from adv_lib(lib, norm, steps)
    if lib := peer("foolbox"):
        yield from foolbox(lib, norm, steps)
    if norm == "l2" and (lib := peer("torchattacks")):
        yield batched("torchattacks CW", lambda p: lib.CW(p.model, c=1, steps=steps))
        yield batched("torchattacks DeepFool", lambda p: lib.DeepFool(p.model, steps=min(steps // 10, 50)))


def own(steps: int) -> dict[str, Attack]:
    """Our attacks with about ``steps`` gradients each; those that take nine a step make fewer steps."""
    return {
        "fmn": FMN(steps),
        "ddn": DDN(steps),
        "cw": CarliniWagner(steps // 5, 5),
        "fab_t": FABT(max(steps // 9, 1)),
        "superdeepfool": SuperDeepFool(max(steps // 9, 1)),
        "deepfool": DeepFool(max(steps // 9, 1)),
        "sigma_zero": SigmaZero(steps),
    }


def adv_lib(lib: Any, norm: Norm, steps: int) -> Iterator[Contestant]:
    """adv-lib's smallest-perturbation attacks."""
    p = _ORDER[norm]
    few = max(steps // 9, 1)
    runs: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
        "FMN": lambda m, x, y: lib.fmn(m, x, y, norm=p, steps=steps),
    }
    if norm != "l0":
        part = importable("adv_lib.attacks.auto_pgd")
        rounds = max(steps // 25, 1)
        most = _LARGEST[norm]
        runs["APGD, bisected"] = lambda m, x, y: part.minimal_apgd(
            m, x, y, norm=p, max_eps=most, binary_search_steps=rounds, n_iter=25
        )
        runs["FAB"] = lambda m, x, y: lib.fab(m, x, y, norm=p, n_iter=few)
    if norm in ("linf", "l1", "l0"):
        runs["PDPGD"] = lambda m, x, y: lib.pdpgd(m, x, y, norm=p, num_steps=steps)
    if norm == "l2":
        runs["DDN"] = lambda m, x, y: lib.ddn(m, x, y, steps=steps, levels=None)
        runs["PDGD"] = lambda m, x, y: lib.pdgd(m, x, y, num_steps=steps)
        runs["ALMA"] = lambda m, x, y: lib.alma(m, x, y, distance="l2", num_steps=steps)
        runs["SuperDeepFool"] = lambda m, x, y: lib.sdf(m, x, y, steps=few)
        runs["C&W"] = lambda m, x, y: lib.carlini_wagner_l2(
            m, x, y, max_iterations=steps // 5, binary_search_steps=5, initial_const=1.0
        )
    if norm in ("l2", "linf"):
        runs["DeepFool"] = lambda m, x, y: lib.df(m, x, y, steps=few, norm=p)
        runs["TR"] = lambda m, x, y: lib.tr(m, x, y, p=p, iter=steps)
    if norm == "l1":
        runs["ALMA"] = lambda m, x, y: lib.alma(m, x, y, distance="l1", num_steps=steps)
    if norm == "l0":
        runs["sigma-zero"] = lambda m, x, y: lib.sigma_zero(m, x, y, num_steps=steps)
        runs["VFGA"] = lambda m, x, y: lib.vfga(m, x, y, targeted=False)
    for name, run in runs.items():
        yield batched(f"adv-lib {name}", lambda problem, run=run: lambda x, y: run(problem.model, x, y))


def foolbox(lib: Any, norm: Norm, steps: int) -> Iterator[Contestant]:
    """Foolbox's smallest-perturbation attacks."""
    kinds: dict[str, Any] = {
        "FMN": {
            "linf": lib.attacks.LInfFMNAttack,
            "l2": lib.attacks.L2FMNAttack,
            "l1": lib.attacks.L1FMNAttack,
            "l0": lib.attacks.L0FMNAttack,
        }[norm](steps=steps)
    }
    if norm == "l2":
        kinds["DDN"] = lib.attacks.DDNAttack(steps=steps)
        kinds["C&W"] = lib.attacks.L2CarliniWagnerAttack(steps=steps // 5, binary_search_steps=5, initial_const=1.0)
        kinds["DeepFool"] = lib.attacks.L2DeepFoolAttack(steps=max(steps // 9, 1))
    if norm == "linf":
        kinds["DeepFool"] = lib.attacks.LinfDeepFoolAttack(steps=max(steps // 9, 1))
    if norm == "l1":
        kinds["EAD"] = lib.attacks.EADAttack(steps=steps // 5, binary_search_steps=5, initial_const=1.0)
    for name, attack in kinds.items():

        def make(problem: Problem, attack: Any = attack) -> Callable[[Tensor, Tensor], Tensor]:
            model = lib.PyTorchModel(problem.model, bounds=problem.threat.bounds)
            return lambda x, y: attack(model, x, y, epsilons=None)[1]

        yield batched(f"foolbox {name}", make)


def importable(name: str) -> Any:
    """The module."""
    found = peer(name)
    if found is None:
        raise SystemExit(f"{name} is not installed")
    return found


if __name__ == "__main__":
    main()
