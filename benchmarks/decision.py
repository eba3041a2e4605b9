"""Decision-based attacks at equal queries: ours, batched, against the HopSkipJump of ART, sample by sample.

    python benchmarks/decision.py --samples 32 --queries 1000 3000
    python benchmarks/decision.py --idx DIR --subject slim-standard   # images that no setting was chosen on

Prints the median distortion of the points found (the search for smallest perturbations ends where the queries do),
the queries a sample, and processor time as a ratio to ours.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from auditorch.attacks.attack import Attack, AttackOutcome
from auditorch.attacks.engine import evaluate
from auditorch.attacks.evasion.art_adapter import HopSkipJumpART
from auditorch.attacks.evasion.hopskipjump import HopSkipJump
from auditorch.attacks.threat import Norm, Threat
from models import SUBJECTS, fashion_mnist, small_cnn, train, trained
from torch import Tensor, nn

NORMS: tuple[Norm, ...] = ("l2", "linf")


def main() -> None:
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 3000])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--robust", action="store_true", help="train the network adversarially")
    parser.add_argument("--subject", choices=list(SUBJECTS), help="a network of the other benchmarks instead")
    parser.add_argument("--idx", type=Path, help="full Fashion-MNIST; its test images, without those of the demo")
    parser.add_argument("--cache", type=Path, help="folder to keep trained weights in")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model, x, y = setting(options)
    name = options.subject or ("robust CNN" if options.robust else "standard CNN")
    print(f"{name}, {len(x)} samples, {torch.get_num_threads()} threads\n")
    print("| norm | queries | median: ours | ART | queries a sample: ours | ART | time: ART / ours |")
    print("|---|---|---|---|---|---|---|")
    for norm in NORMS:
        for queries in options.queries:
            ours, own_time = run(HopSkipJump(queries=queries), model, x, y, norm)
            peer, peer_time = run(HopSkipJumpART(max_iter=1000, max_queries=queries), model, x, y, norm)
            cells = [norm, str(queries), median(ours), median(peer)]
            cells += [f"{outcome.forwards / len(x):.0f}" for outcome in (ours, peer)]
            print(f"| {' | '.join(cells)} | {peer_time / own_time:.1f} |", flush=True)


def setting(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network and inputs that it gets right."""
    model = trained(options.subject, epochs=options.epochs, cache=options.cache) if options.subject else _own(options)
    x, y = fashion_mnist("test", options.idx)
    if options.idx:
        known = {image.numpy().tobytes() for image in fashion_mnist("test")[0]}
        unseen = torch.tensor([image.numpy().tobytes() not in known for image in x])
        x, y = x[unseen], y[unseen]
    with torch.no_grad():
        some = x[: 4 * options.samples]
        right = (model.eval()(some).argmax(1) == y[: len(some)]).nonzero().squeeze(1)[: options.samples]
    return model, x[right], y[right]


def _own(options: argparse.Namespace) -> nn.Module:
    """A network trained on the demo's images."""
    torch.manual_seed(0)
    model = small_cnn()
    kept = options.cache and options.cache / f"decision-{options.robust}-{options.epochs}.pt"
    if kept and kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
    else:
        threat = Threat("linf", 0.1) if options.robust else None
        train(model, *fashion_mnist("train"), epochs=options.epochs, threat=threat)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), kept)
    return model


def run(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> tuple[AttackOutcome, float]:
    """What the attack finds, and the processor time that it takes."""
    began = time.process_time()
    outcome = evaluate(attack, model, x, y, Threat(norm, 0.1))
    return outcome, time.process_time() - began


def median(outcome: AttackOutcome) -> str:
    """Median distortion, infinity where nothing was found."""
    return f"{float(outcome.distance.median()):.4g}"


if __name__ == "__main__":
    main()
