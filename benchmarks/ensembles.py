"""Compares ``auto`` and ``autoattack`` with the reference AutoAttack, verdict by verdict.

    python benchmarks/ensembles.py --cases cnn:linf:0.1 slim-l2:l2:1.5 --peers path/to/libraries

Robust accuracy, on how many samples the verdicts differ and in which direction, passes and time, all against the
reference implementation. They take turns: each attacks a shard of the samples before the next shard begins. Verdicts
are kept in the cache by shard, so that a long run can be taken up again, and only what is named by ``--again`` is
measured anew.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from auditorch.attacks.attack import Attack
from auditorch.attacks.evasion.auto import Auto
from auditorch.attacks.evasion.autoattack import AutoAttack
from auditorch.attacks.search import fooled
from auditorch.attacks.statistics import rate_interval
from auditorch.attacks.threat import Norm, Threat
from contestants import Problem, add_peers, ours, peer, reference_autoattack
from measuring import Counter, timed
from models import SUBJECTS, samples, trained
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CASES = ("slim:linf:0.1", "slim-l2:l2:1.5", "slim-l1:l1:12", "resnet8:linf:0.1", "slim-standard:linf:0.02")
ENTRIES = ("reference", "autoattack", "auto")


@dataclass(frozen=True, slots=True)
class Case:
    """A network and a threat, written ``network:norm:eps``."""

    name: str
    network: str
    threat: Threat

    @classmethod
    def parse(cls, text: str) -> Case:
        network, norm, eps = text.split(":")
        if network not in SUBJECTS:
            raise argparse.ArgumentTypeError(f"{network} is not one of {', '.join(SUBJECTS)}")
        kind: Norm = norm  # pyright: ignore[reportAssignmentType]
        return cls(text, network, Threat(kind, eps))  # pyright: ignore[reportArgumentType]


def main() -> None:
    """Measures what is missing and prints one Markdown table a case."""
    options = arguments()
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peers:
        add_peers(options.peers)
    for case in options.cases:
        model = trained(
            case.network, epochs=options.epochs, device=options.device, idx=options.idx, cache=options.cache
        )
        x, y = samples(case.network, "test", options.idx)
        x, y = x[: options.samples].to(options.device), y[: options.samples].to(options.device)
        report(case, model, x, y, measure(case, model, x, y, options))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=Case.parse, default=[Case.parse(text) for text in CASES])
    parser.add_argument("--entries", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--again", nargs="*", choices=ENTRIES, default=[], help="measure these anew")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shard", type=int, default=250, help="samples that each attacks in its turn")
    parser.add_argument("--shards", type=int, help="stop after measuring so many shards")
    parser.add_argument("--peers", type=Path, help="folder with the reference implementation, unpacked")
    parser.add_argument("--idx", type=Path, help="folder with Fashion-MNIST as gzipped idx files; default: demo data")
    parser.add_argument("--cache", type=Path, default=Path("build/bench"))
    return parser.parse_args()


def measure(
    case: Case, model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace
) -> dict[str, dict[str, Tensor]]:
    """By entry and over all samples: ``robust`` (bool), and ``cost``: forwards, backwards, seconds (processor time on a
    CPU)."""
    runs = {entry: run for entry in options.entries if (run := runner(entry)) is not None}
    shards: dict[str, list[dict[str, Tensor]]] = {entry: [] for entry in runs}
    fresh = 0
    for start in range(0, len(x), options.shard):
        stop = min(start + options.shard, len(x))
        label = f"{case.name}-{options.epochs}-{{}}-{options.seed}-{start}-{stop}".replace(":", "_").replace("/", "_")
        paths = {entry: options.cache / "verdicts" / f"{label.format(entry)}.safetensors" for entry in runs}
        missing = [entry for entry, path in paths.items() if not path.exists() or entry in options.again]
        if missing and options.shards is not None and fresh == options.shards:
            break
        fresh += bool(missing)
        for entry in missing:
            paths[entry].parent.mkdir(parents=True, exist_ok=True)
            problem = Problem(model, x[start:stop], y[start:stop], case.threat, options.shard, options.seed)
            save_file(attack_shard(runs[entry], problem), paths[entry])
        for entry, path in paths.items():
            shards[entry].append(load_file(path))
    return {
        entry: {
            "robust": torch.cat([shard["robust"] for shard in found]),
            "cost": torch.stack([shard["cost"] for shard in found]).sum(0),
        }
        for entry, found in shards.items()
        if found
    }


def runner(entry: str) -> Callable[[Problem], Tensor] | None:
    """``run(problem) -> x_adv``; None for a reference that is not installed."""
    if entry == "reference":
        library = peer("autoattack")
        return library and (lambda problem: reference_autoattack(library, problem))
    attack: Attack = AutoAttack() if entry == "autoattack" else Auto()
    return ours(attack).run


def attack_shard(run: Callable[[Problem], Tensor], problem: Problem) -> dict[str, Tensor]:
    """The verdicts by our own judgement, whoever attacked; forwards and backwards are the attack's own."""
    counter = Counter(problem.model).eval()
    counted = Problem(counter, problem.x, problem.y, problem.threat, problem.batch_size, problem.seed)
    clock = time.perf_counter if problem.x.is_cuda else time.process_time
    found: list[Tensor] = []
    seconds = timed(lambda: found.append(run(counted)), problem.x.device, clock)
    x_adv = found[0]
    with torch.no_grad():
        clean = fooled(problem.model(problem.x), problem.y, targeted=False)
        hit = fooled(problem.model(x_adv), problem.y, targeted=False)
    threat = problem.threat
    tolerance = Threat(threat.norm, threat.eps * 1.0001, bounds=threat.bounds)
    robust = ~(clean | (hit & tolerance.contains(x_adv, problem.x)))
    cost = torch.tensor([counter.forwards, counter.backwards, seconds], dtype=torch.float64)
    return {"robust": robust.cpu(), "cost": cost}


def report(case: Case, model: nn.Module, x: Tensor, y: Tensor, entries: dict[str, dict[str, Tensor]]) -> None:
    """Prints the table of one case."""
    n = min((len(found["robust"]) for found in entries.values()), default=0)
    if n == 0:
        return
    with torch.no_grad():
        correct = ~fooled(model(x[:n]), y[:n], targeted=False).cpu()
    share = float(correct.double().mean())
    print(f"### {case.name}: {n} samples, {100 * share:.1f} % correct without attack\n")
    print("| | robust accuracy | missed | gained | forwards | backwards | time |")
    print("|---|---|---|---|---|---|---|")
    reference = entries.get("reference")
    for name, found in entries.items():
        robust = found["robust"][:n]
        forwards, backwards, seconds = (float(v) / len(found["robust"]) for v in found["cost"])
        cells = [name, f"{100 * float(robust.double().mean()):.1f} %", "", ""]
        if reference is None or name == "reference":
            cells += [f"{forwards:.0f}", f"{backwards:.0f}", f"{1000 * seconds:.1f} ms"]
        else:
            theirs = reference["robust"][:n]
            broken = int((correct & ~theirs).sum())
            missed, gained = int((robust & ~theirs).sum()), int((~robust & theirs).sum())
            low, high = rate_interval(missed, broken) if broken else (0.0, 1.0)
            cells[2:] = [f"{missed} of {broken} ({100 * low:.1f}–{100 * high:.1f} %)", str(gained)]
            f, b, s = (float(v) / len(reference["robust"]) for v in reference["cost"])
            cells += [
                f"{forwards:.0f} (1/{f / max(forwards, 1e-9):.1f})",
                f"{backwards:.0f} (1/{b / max(backwards, 1e-9):.1f})",
                f"{1000 * seconds:.1f} ms ({seconds / s:.2f})",
            ]
        print(f"| {' | '.join(cells)} |", flush=True)
    print()


if __name__ == "__main__":
    main()
