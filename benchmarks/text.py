"""Compares text attacks with TextAttack's recipes: success at an equal budget of queries, and examples per second.

    python benchmarks/text.py --data build/sentiment --peers path/to/textattack --wordnet path/to/dict

Both get the same model, texts, stopwords, synonyms, constraints, budget and thread. Ours verifies every success again
from the raw string, which its time contains. Time is processor time of one thread, ours and theirs in turn, part of
the texts by part. The texts are those that no setting was chosen on.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from auditorch.attacks.statistics import rate_interval
from auditorch.attacks.text.encoded import Precision
from auditorch.attacks.text.engine import attack_texts
from auditorch.attacks.text.recipes import Limits, Resources, build
from auditorch.attacks.text.resources.places import wordnet_folder
from auditorch.attacks.text.resources.wordnet import wordnet
from text_peers import PeerResult, attacked, load_textattack, plain_wrapper, published_wrapper
from text_subjects import Subject, cnn, minilm, snippets

SEEN = 400
"""Texts at the beginning of the test set that were looked at while the attacks were written."""

_AT_A_TIME, _AT_A_TIME_PUBLISHED = 8, 4
"""Texts of one turn with MiniLM; fewer where there are fewer texts, so that there are turns to compare."""

_PUBLISHED = {"deepwordbug": 20, "pwws": 12}
"""Texts for MiniLM in TextAttack's own wrapper, which takes 4 and 20 seconds a text."""

Attacker = Callable[[Sequence[int]], list[PeerResult]]


@dataclass
class Contestant:
    """One row: what it found, and processor seconds and texts of each turn."""

    name: str
    attack: Attacker
    found: dict[int, PeerResult] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)

    def turn(self, rows: Sequence[int]) -> None:
        began = time.process_time()
        results = self.attack(rows)
        self.seconds.append(time.process_time() - began)
        self.texts.append(len(rows))
        self.found.update(zip(rows, results, strict=True))

    def speed(self, turns: Sequence[int]) -> float:
        """Examples per second over some of the turns."""
        return sum(self.texts[i] for i in turns) / sum(self.seconds[i] for i in turns)


def main() -> None:
    """Prints one Markdown table for each model and attack."""
    options = arguments()
    torch.set_num_threads(1)
    if options.peers:
        load_textattack(options.peers)
    texts, y = snippets(options.data / "test.csv")
    makers = {"cnn": cnn, "minilm": minilm}
    for name in options.models:
        subject = makers[name](options.data)
        for recipe in options.attacks:
            compare(subject, recipe, texts[SEEN:], y[SEEN:], options)


def compare(subject: Subject, recipe: str, texts: list[str], y: torch.Tensor, options: argparse.Namespace) -> None:
    """Ours in both precisions; beside theirs padded as we do, and beside theirs as published."""
    large = subject.name == "MiniLM"
    n = options.samples_transformer if large else options.samples
    wrappers: list[tuple[str, Any, int, int]] = []
    if options.peers and "padded" in options.by:
        wrappers.append(("TextAttack, padded to the batch", plain_wrapper(subject.logits), n, _AT_A_TIME))
    if options.peers and "published" in options.by:
        label = f"TextAttack, its own wrapper (pads to {512 if large else 128})"
        few = min(n, options.samples_published or _PUBLISHED.get(recipe, n))
        wrappers.append((label, published_wrapper(subject), few if large else n, _AT_A_TIME_PUBLISHED))
    for label, wrapper, count, at_a_time in wrappers or [("", None, n, _AT_A_TIME)]:
        ours = [Contestant("auditorch", our_attack(subject, recipe, texts, y, options, "float32"))]
        if large:  # a small one gains nothing
            half = our_attack(subject, recipe, texts, y, options, "bfloat16")
            ours.append(Contestant("auditorch, bfloat16 search", half))
        theirs = [Contestant(label, their_attack(wrapper, recipe, texts, y, options))] if label else []
        for one in (*ours, *theirs):
            one.attack([len(texts) - 1])  # warm
        for part in torch.arange(count).split(at_a_time) if large else torch.arange(count).chunk(options.rounds):
            # What ours finds does not depend on the company; a small model is quick in large company.
            for one in ours:
                one.turn(part.tolist() if large else range(count))
            for one in theirs:
                one.turn(part.tolist())
        print(f"\n{subject.name}, {recipe}: {count} texts, {len(ours[0].seconds)} turns\n")
        table(ours, theirs[0] if theirs else None)


def our_attack(
    subject: Subject,
    recipe: str,
    texts: Sequence[str],
    y: torch.Tensor,
    options: argparse.Namespace,
    precision: Precision,
) -> Attacker:
    """Ours on some of the texts."""
    # Equal constraints: theirs has no guard of labels.
    attack = build(recipe, Resources(wordnet=options.wordnet), Limits(label_preserving=False))

    def run(rows: Sequence[int]) -> list[PeerResult]:
        outcome = attack_texts(
            attack,
            subject.model,
            [texts[row] for row in rows],
            y[torch.tensor(rows)],
            budget=options.budget,
            seed=options.seed,
            ids=rows,
            batch_size=512,
            quick=subject.quick(precision),
        )
        columns = (outcome.tried.tolist(), outcome.success.tolist(), outcome.queries.tolist())
        return [PeerResult(*values) for values in zip(*columns, strict=True)]

    return run


def their_attack(
    wrapper: Any, recipe: str, texts: Sequence[str], y: torch.Tensor, options: argparse.Namespace
) -> Attacker:
    """Theirs on some of the texts."""
    known = wordnet(wordnet_folder(options.wordnet)) if recipe == "pwws" else None

    def run(rows: Sequence[int]) -> list[PeerResult]:
        labels = y[torch.tensor(rows)].tolist()
        return attacked(
            recipe, wrapper, [texts[row] for row in rows], labels, options.budget, options.seed + rows[0], known
        )

    return run


def table(ours: Sequence[Contestant], theirs: Contestant | None) -> None:
    """Ours beside one form of theirs."""
    print("| by | success (95 % interval) | queries | examples per second | faster than TextAttack by (95 %) |")
    print("|---|---|---:|---:|---:|")
    for one in (*ours, *((theirs,) if theirs else ())):
        tried = [result for result in one.found.values() if result.tried]
        won = sum(result.success for result in tried)
        low, high = rate_interval(won, len(tried)) if tried else (0.0, 1.0)
        share = f"{won} of {len(tried)}: {100 * won / max(len(tried), 1):.1f} % ({100 * low:.1f}–{100 * high:.1f})"
        queries = sum(result.queries for result in tried) / max(len(tried), 1)
        ratio = "" if theirs is None or one is theirs else faster(one, theirs)
        speed = one.speed(range(len(one.seconds)))
        print(f"| {one.name} | {share} | {queries:.1f} | {speed:.2f} | {ratio} |", flush=True)


def faster(one: Contestant, theirs: Contestant, draws: int = 2000) -> str:
    """Ratio of the speeds, with an interval over turns drawn with replacement."""
    turns = range(len(theirs.seconds))
    rng = random.Random(0)
    drawn = [rng.choices(turns, k=len(turns)) for _ in range(draws)]
    ratios = sorted(one.speed(some) / theirs.speed(some) for some in drawn)
    low, high = ratios[int(0.025 * draws)], ratios[int(0.975 * draws)]
    return f"{one.speed(turns) / theirs.speed(turns):.1f} ({low:.1f}–{high:.1f})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/sentiment"), help="made by examples/sentiment")
    parser.add_argument("--peers", type=Path, help="folder that TextAttack was unpacked into")
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet's files")
    parser.add_argument("--models", nargs="+", default=["cnn", "minilm"], choices=["cnn", "minilm"])
    parser.add_argument("--attacks", nargs="+", default=["deepwordbug", "pwws"])
    parser.add_argument("--by", nargs="+", default=["padded", "published"], choices=["padded", "published"])
    parser.add_argument("--samples", type=int, default=200, help="texts for the CNN")
    parser.add_argument("--samples-transformer", type=int, default=48, help="texts for MiniLM")
    parser.add_argument(
        "--samples-published", type=int, help="texts for MiniLM in TextAttack's own wrapper: 20, for pwws 12"
    )
    parser.add_argument("--rounds", type=int, default=20, help="turns of ours and theirs with the CNN")
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
