"""DP-SGD: what a private step costs beside the same step without privacy, and what accuracy it leaves.

    python benchmarks/privacy.py steps --networks cnn transformer --batches 64 512
    python benchmarks/privacy.py steps --batches 64 --methods auditorch --seconds 20 --cpu-time
    python benchmarks/privacy.py account --networks cnn --batches 64 --cpu-time
    python benchmarks/privacy.py accuracy --idx /usr/share/datasets/fashion-mnist
    python benchmarks/privacy.py accuracy --idx /usr/share/datasets/fashion-mnist --held-out 10000 --recipes silu

Steps are taken in turns and back, in one process, and every ratio is to the plain step of the same round, so that a
machine whose speed drifts is unfair to nobody; the median of the ratios is shown, with their middle half. Memory is how
far a step raises the memory of the process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from private_account import account
from private_accuracy import RECIPES, accuracy_table, split_data
from private_steps import METHODS, NETWORKS, quiet, steps


def main() -> None:
    """Prints Markdown tables."""
    options = arguments()
    torch.set_num_threads(options.threads)
    quiet()
    if options.what == "steps":
        step_tables(options)
    elif options.what == "account":
        account_tables(options)
    else:
        split = split_data(options.idx, options.held_out, options.records)
        accuracy_table(split, options.recipes, options.epsilons, options.scale, options.seeds)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "account", "accuracy"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS)[:-1])
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="beside the plain step")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each network and batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for a machine that is busy")
    parser.add_argument("--idx", type=Path, help="folder with the full Fashion-MNIST as gzipped idx files")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 3.0, 8.0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the recipes' epochs, for a quick look")
    parser.add_argument("--records", type=int, help="train on that many records, drawn at random")
    parser.add_argument("--held-out", type=int, default=0, help="training records to measure on, not the test set")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of sampling and noise in `accuracy`")
    return parser.parse_args()


def step_tables(options: argparse.Namespace) -> None:
    """Time and memory of a step by each method."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    for name in options.networks:
        for batch in options.batches:
            torch.manual_seed(0)
            network = NETWORKS[name]
            module, x, y = network.build(), network.inputs(batch), torch.randint(10, (batch,))
            methods = steps(module, x, y, options.methods)
            taken = timed(methods, options.seconds, clock)
            plain = statistics.median(taken["plain"])
            print(f"\n{name}, batch {batch}, {options.threads} thread(s), torch {torch.__version__}, "
                  f"{len(taken['plain'])} rounds, plain step {1000 * plain:.1f} ms\n")  # fmt: skip
            print("| method | time, ratio to plain | its middle half | memory, MB |\n|---|---|---|---|")
            for method, times in taken.items():
                low, ratio, high = statistics.quantiles(a / b for a, b in zip(times, taken["plain"], strict=True))
                raised = peak_megabytes(methods[method])
                print(f"| {method} | {ratio:.2f} | {low:.2f} to {high:.2f} | {raised} |", flush=True)


def account_tables(options: argparse.Namespace) -> None:
    """Parts of a step of ours and of the plain one, over a hundred rounds."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    for name in options.networks:
        for batch in options.batches:
            print(f"\n{name}, batch {batch}\n\n| part | ms |\n|---|---|")
            for label, value in account(name, batch, 100, clock).items():
                print(f"| {label} | {value:.2f} |", flush=True)


def timed(methods: dict[str, Callable[[], None]], seconds: float, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Times of each method, all of them in turn and back, for about ``seconds``, after two unmeasured rounds."""
    taken: dict[str, list[float]] = {name: [] for name in methods}
    began, rounds = clock(), 0
    while rounds < 5 or clock() - began < seconds:
        for name, step in list(methods.items())[:: -1 if rounds % 2 else 1]:
            start = clock()
            step()
            if rounds >= 2:
                taken[name].append(clock() - start)
        if rounds % 16 == 0:  # rarely: after it the next step finds nothing in the cache
            gc.collect()
        rounds += 1
    return taken


def peak_megabytes(step: Callable[[], None]) -> str:
    """How far a step raises the memory of this process (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed must not count as there already
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before = memory("VmRSS")
    step()
    return f"{(memory('VmHWM') - before) / 1024:.0f}"


def memory(field: str) -> int:
    """A line of the kernel's account of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


if __name__ == "__main__":
    main()
