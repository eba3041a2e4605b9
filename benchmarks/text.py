"""Compares text attacks with TextAttack's recipes: success at an equal budget of queries, and examples per second.

    python benchmarks/text.py --data build/sentiment --peers path/to/textattack --wordnet path/to/dict

Both get the same model, texts, stopwords, synonyms, constraints, budget and thread; ours verifies every success again
from the raw string, which its time contains. Time is processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from auditorch.attacks.statistics import rate_interval
from auditorch.attacks.text.engine import attack_texts
from auditorch.attacks.text.recipes import Resources, build
from auditorch.attacks.text.resources.places import wordnet_folder
from auditorch.attacks.text.resources.wordnet import wordnet
from text_peers import attacked, load_textattack, plain_wrapper, published_wrapper
from text_subjects import Subject, cnn, minilm, snippets


def main() -> None:
    """Prints one Markdown table."""
    options = arguments()
    torch.set_num_threads(1)
    peers = load_textattack(options.peers) if options.peers else None
    texts, y = snippets(options.data / "test.csv")
    print("| model | attack | by | texts | success (95 % interval) | queries | examples per second | ratio |")
    print("|---|---|---|---:|---|---:|---:|---:|")
    makers = {"cnn": cnn, "minilm": minilm}
    for name in options.models:
        subject = makers[name](options.data)
        for recipe in options.attacks:
            compare(subject, recipe, texts, y, options, peers=peers is not None)


def compare(
    subject: Subject, recipe: str, texts: list[str], y: torch.Tensor, options: argparse.Namespace, *, peers: bool
) -> None:
    """Ours, theirs with our batching, and theirs as published, in turn."""
    resources = Resources(wordnet=options.wordnet)
    n = options.samples if subject.name != "MiniLM" else options.samples_transformer
    attack = build(recipe, resources)
    attack_texts(attack, subject.deduplicated, texts[-4:], y[-4:], budget=options.budget)  # warm
    began = time.process_time()
    outcome = attack_texts(
        attack, subject.deduplicated, texts[:n], y[:n], budget=options.budget, seed=options.seed, batch_size=512
    )
    ours = n / (time.process_time() - began)
    tried, won = int(outcome.tried.sum()), int(outcome.success.sum())
    line(subject, recipe, "auditorch", n, won, tried, float(outcome.queries[outcome.tried].float().mean()), ours, 1.0)
    if not peers:
        return
    wrappers = [("TextAttack, padded to the batch", plain_wrapper(subject.logits), n)]
    if subject.name == "MiniLM":
        own = published_wrapper(subject.module.body, subject.tokenizer)
        wrappers.append(("TextAttack, as published", own, options.samples_published))
    known = wordnet(wordnet_folder(options.wordnet)) if recipe == "pwws" else None
    for label, wrapper, count in wrappers:
        attacked(recipe, wrapper, texts[-1:], y[-1:].tolist(), options.budget, options.seed, known)  # warm
        began = time.process_time()
        results = attacked(recipe, wrapper, texts[:count], y[:count].tolist(), options.budget, options.seed, known)
        speed = count / (time.process_time() - began)
        tried, won = sum(one.tried for one in results), sum(one.success for one in results)
        queries = sum(one.queries for one in results if one.tried) / max(tried, 1)
        line(subject, recipe, label, count, won, tried, queries, speed, ours / speed)


def line(
    subject: Subject, recipe: str, by: str, n: int, won: int, tried: int, queries: float, speed: float, ratio: float
) -> None:
    """One row of the table."""
    low, high = rate_interval(won, tried) if tried else (0.0, 1.0)
    share = f"{won} of {tried}: {100 * won / max(tried, 1):.1f} % ({100 * low:.1f}–{100 * high:.1f})"
    print(
        f"| {subject.name} | {recipe} | {by} | {n} | {share} | {queries:.1f} | {speed:.2f} | {ratio:.1f} |", flush=True
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/sentiment"), help="made by examples/sentiment")
    parser.add_argument("--peers", type=Path, help="folder that TextAttack was unpacked into")
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet's files")
    parser.add_argument("--models", nargs="+", default=["cnn", "minilm"], choices=["cnn", "minilm"])
    parser.add_argument("--attacks", nargs="+", default=["deepwordbug", "pwws"])
    parser.add_argument("--samples", type=int, default=400, help="texts for the CNN")
    parser.add_argument("--samples-transformer", type=int, default=64, help="texts for MiniLM")
    parser.add_argument("--samples-published", type=int, default=8, help="texts for TextAttack's own wrapper")
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
