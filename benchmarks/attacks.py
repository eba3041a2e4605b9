"""Compares attacks with other libraries': strength, passes, time as a ratio to the bare passes.

    python benchmarks/attacks.py --tasks pgd-linf apgd-linf --samples 256 --repeats 3 --peers path/to/unpacked/libraries

Everybody gets the same model, inputs, batch size and thread count, in one process, in turns, so that a machine whose
speed drifts is unfair to nobody. ``floor`` is the same number of bare forward and backward passes over all samples
with parameter gradients off. The time of our own attacks contains screening and float32 verification.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path

import torch
from auditorch.attacks.models import attacking
from auditorch.attacks.search import fooled
from auditorch.attacks.threat import Norm, Threat
from contestants import TASKS, Contestant, Problem, Task, add_peers
from measuring import Clock, Counter, timed
from models import SUBJECTS, samples, trained
from torch import Tensor, nn

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 1.5, "l1": 12.0, "l0": 20.0}
FLOOR_SHARE = 4
"""The floor is timed on one in so many of its passes, each time round."""


def main() -> None:
    """Prints one Markdown table a task."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peers:
        add_peers(options.peers)
    warnings.simplefilter("ignore")
    model, x, y = setting(options)
    print(f"{options.model}, {len(x)} samples, batches of {options.batch}, {torch.get_num_threads()} threads, "
          f"{x.device.type}, torch {torch.__version__}, {options.repeats} repeats\n")  # fmt: skip
    for name in options.tasks:
        task = TASKS[name]
        eps = EPS[task.norm] if options.eps is None else options.eps
        clock = time.process_time if options.cpu_time else time.perf_counter
        compare(task, model, x, y, Threat(task.norm, eps), options.batch, options.repeats, clock)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=[task for task in TASKS if not task.startswith("auto") and "long" not in task],
    )
    parser.add_argument("--model", choices=SUBJECTS, default="cnn")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--eps", type=float, help="radius; default by norm")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: for a machine busy with other work")
    parser.add_argument("--peers", type=Path, help="folder with other libraries, unpacked")
    parser.add_argument("--idx", type=Path, help="folder with Fashion-MNIST as gzipped idx files; default: demo data")
    parser.add_argument("--cache", type=Path, help="folder to keep trained weights in")
    return parser.parse_args()


def setting(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained model and the samples."""
    model = trained(options.model, epochs=options.epochs, device=options.device, idx=options.idx, cache=options.cache)
    x, y = samples(options.model, "test", options.idx)
    return model, x[: options.samples].to(options.device), y[: options.samples].to(options.device)


def compare(
    task: Task, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, batch_size: int, repeats: int, clock: Clock
) -> None:
    """Runs everybody in turns and prints the table."""
    contestants = list(task.contestants())
    times: dict[str, list[float]] = {contestant.library: [] for contestant in contestants}
    floors: list[float] = []
    rows: dict[str, str] = {}
    broken: set[str] = set()
    for repeat in range(repeats):
        floors.append(timed(lambda: bare(task, model, x, y, batch_size), x.device, clock) * FLOOR_SHARE)
        for contestant in contestants:
            if contestant.library in broken:
                continue
            problem = Problem(model, x, y, threat, batch_size, repeat)
            try:
                if repeat == 0:
                    rows[contestant.library] = strength(task, contestant, problem)
                times[contestant.library].append(timed(lambda c=contestant, p=problem: c.run(p), x.device, clock))
            except Exception as error:  # a peer that fails is reported, and the others go on
                broken.add(contestant.library)
                rows[contestant.library] = f"failed: {type(error).__name__}: {str(error)[:80]} | | | "
    floor = statistics.median(floors)
    print(f"### {task.name}, {threat.norm} {threat.eps:g}; floor {task.passes} {task.unit}: {floor:.2f} s\n")
    print("| library | robust accuracy | median distortion | forwards | backwards | seconds | ratio to floor |")
    print("|---|---|---|---|---|---|---|")
    for contestant in contestants:
        seconds = times[contestant.library]
        ratios = sorted(t / f for t, f in zip(seconds, floors, strict=False))
        spent = f"{statistics.median(seconds):.2f} | {statistics.median(ratios):.2f}" if seconds else " | "
        print(f"| {contestant.library} | {rows[contestant.library]} | {spent} |", flush=True)
    print()


def strength(task: Task, contestant: Contestant, problem: Problem) -> str:
    """Table cells of one counted run: robust accuracy, median distortion, passes per sample.

    Over the samples classified correctly; of an attack in a ball only over those fooled.
    """
    counter = Counter(problem.model).eval()
    counted = Problem(counter, problem.x, problem.y, problem.threat, problem.batch_size, problem.seed)
    x_adv = contestant.run(counted)
    with torch.no_grad():
        clean = fooled(problem.model(problem.x), problem.y, targeted=False)
        hit = fooled(problem.model(x_adv), problem.y, targeted=False)
    tolerance = Threat(problem.threat.norm, problem.threat.eps * 1.0001, bounds=problem.threat.bounds)
    valid = problem.threat.in_bounds(x_adv) if task.minimal else tolerance.contains(x_adv, problem.x)
    distance = problem.threat.distance(x_adv, problem.x)
    success = clean | (hit & valid & (distance <= tolerance.eps))
    # A peer that finds only the easiest samples must not look strong: what it misses counts as infinitely far.
    far = distance.masked_fill(~(hit & valid), float("inf"))[~clean]
    found = far if task.minimal else far[far.isfinite()]
    median = float(found.median()) if len(found) else float("nan")
    n = len(problem.x)
    robust = 100 * float((~success).double().mean())
    return f"{robust:.1f} % | {median:.4g} | {counter.forwards / n:.1f} | {counter.backwards / n:.1f}"


def bare(task: Task, model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> None:
    """A share of the passes that the task entitles to, and nothing else."""
    with attacking(model):
        for batch, label in zip(x.split(batch_size), y.split(batch_size), strict=True):
            for _ in range(max(task.passes // FLOOR_SHARE, 1)):
                if task.unit == "forward":
                    with torch.no_grad():
                        model(batch)
                else:
                    leaf = batch.detach().requires_grad_()
                    loss = nn.functional.cross_entropy(model(leaf), label, reduction="sum")
                    torch.autograd.grad(loss, leaf)


if __name__ == "__main__":
    main()
