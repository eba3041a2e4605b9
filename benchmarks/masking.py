"""Do the masking diagnostics raise a false alarm on trained networks that mask nothing?

    python benchmarks/masking.py --samples 200 --cache build/bench

Prints what :func:`auditorch.attacks.masking.diagnose` flags, and what it costs. The broken defenses that it must flag
are in ``tests/attacks/zoo.py``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from auditorch.attacks.masking import diagnose
from auditorch.attacks.threat import Threat
from models import SUBJECTS, samples, trained

CASES = (
    "slim-standard:linf:0.02",
    "slim:linf:0.1",
    "slim-l2:l2:1.5",
    "slim-l1:l1:12",
    "resnet8-standard:linf:0.02",
    "resnet8:linf:0.1",
    "resnet8-l2:l2:1.5",
)


def main() -> None:
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help=f"network:norm:eps, of {', '.join(SUBJECTS)}")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--idx", type=Path, help="folder with Fashion-MNIST as gzipped idx files; default: demo data")
    parser.add_argument("--cache", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print("| network | samples | flags | forwards | backwards | seconds |\n|---|---|---|---|---|---|")
    for case in options.cases:
        network, norm, eps = case.split(":")
        model = trained(network, epochs=options.epochs, device=options.device, idx=options.idx, cache=options.cache)
        x, y = (part.to(options.device) for part in samples(network, "test", options.idx))
        began = time.process_time()
        found = diagnose(model, x, y, Threat(norm, eps), samples=options.samples)
        seconds = time.process_time() - began
        flags = ", ".join(f"{flag.name} ({flag.value:.3g})" for flag in found.flags) or "none"
        n = found.samples
        print(
            f"| {case} | {n} | {flags} | {found.forwards / n:.0f} | {found.backwards / n:.0f} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
