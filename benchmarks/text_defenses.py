"""What defenses of texts buy on the example's MiniLM: accuracy, and accuracy under attack at an equal query budget.

    python benchmarks/text_defenses.py --data build/sentiment --wordnet path/to/dict --defenses plain freelb

Each defense trains the example's model further on the same texts, for the same epochs, with the same seed and learning
rate; `plain` does so without any defense. Results are kept in `--out`: a later call adds what it names.
"""

from __future__ import annotations

import argparse
import csv
import time
from itertools import islice
from pathlib import Path
from typing import Any

from auditorch.audit.runner import run_audit
from auditorch.audit.spec import parse_spec
from auditorch.reports.record import Metric, VariantRecord

DEFENSES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("fine_tuning", {}),
    "freelb": ("freelb", {}),
    "text_augmentation": ("text_augmentation", {"limit": 150, "queries": 60}),
    "random_mask": ("random_mask", {}),
}


def main() -> None:
    """Prints one Markdown table."""
    options = arguments()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    shorten(options.data / "train.csv", out / "train.csv", options.texts)
    began = time.process_time()
    record = run_audit(parse_spec(spec(options), Path.cwd()), out, device="cpu", only=options.defenses)
    print("| defense | accuracy | under deepwordbug | under pwws | certified, one word | training (s) |")
    print("|---|---:|---:|---:|---:|---:|")
    for variant in record.variants[1:]:
        print(line(variant), flush=True)
    print(f"\n{time.process_time() - began:.0f} s of processor time")


def spec(options: argparse.Namespace) -> dict[str, Any]:
    """The audit of the example's model and its variants."""
    common = {
        "train": str((options.out / "train.csv").resolve()),
        "epochs": options.epochs,
        "batch_size": 32,
        "lr": 1e-4,
    }
    attack = {"queries": options.queries, "limit": options.samples, "gallery": 0}
    attacked = [name for name in options.defenses if name != "random_mask"]
    checks: list[dict[str, Any]] = [{"performance": {}}]
    if attacked:
        resources = {"deepwordbug": {}, "pwws": {"wordnet": options.wordnet}}
        checks += [
            {"text_evasion": {"id": name, "attack": name, **attack, **resources[name], "variants": attacked}}
            for name in options.attacks
        ]
    if "random_mask" in options.defenses:
        certified = {"draws": 100, "alpha": 0.01, "limit": options.samples, "variants": ["random_mask"]}
        checks.append({"text_certification": certified})
    return {
        "version": 1,
        "model": {
            "source": str((options.data / "model").resolve()),
            "modality": "text",
            "preprocessing": {"max_length": 48},
        },
        "data": {"source": str((options.data / "test.csv").resolve()), "limit": options.test},
        "checks": checks,
        "variants": [{DEFENSES[name][0]: {**common, **DEFENSES[name][1], "id": name}} for name in options.defenses],
        "seed": options.seed,
    }


def shorten(source: Path, to: Path, rows: int) -> None:
    """The first rows of a csv, which the example has shuffled."""
    with source.open(newline="", encoding="utf-8") as file:
        taken = list(islice(csv.reader(file), rows + 1))
    with to.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(taken)


def line(variant: VariantRecord) -> str:
    """One row of the table."""
    cells = [variant.id]
    for check, name in (
        ("performance", "accuracy"),
        ("deepwordbug", "robust_accuracy"),
        ("pwws", "robust_accuracy"),
        ("text_certification", "certified_accuracy"),
    ):
        found = [result.metric(name) for result in variant.results if result.id == check]
        cells.append(shown(found[0]) if found else "")
    seconds = [metric.value for metric in variant.metrics if metric.name == "training_seconds"]
    return f"| {' | '.join(cells)} | {seconds[0] or 0:.0f} |" if seconds else f"| {' | '.join(cells)} | |"


def shown(metric: Metric | None) -> str:
    if metric is None or metric.value is None or metric.ci_low is None or metric.ci_high is None:
        return "failed"
    return f"{100 * metric.value:.1f} ({100 * metric.ci_low:.1f}–{100 * metric.ci_high:.1f}), n {metric.n}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/sentiment"), help="made by examples/sentiment")
    parser.add_argument("--out", type=Path, default=Path("build/text-defenses"))
    parser.add_argument("--wordnet", help="folder of WordNet's files")
    parser.add_argument("--defenses", nargs="+", default=list(DEFENSES), choices=list(DEFENSES))
    parser.add_argument("--attacks", nargs="+", default=["deepwordbug", "pwws"], choices=["deepwordbug", "pwws"])
    parser.add_argument("--texts", type=int, default=1280, help="training texts")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--test", type=int, default=1000, help="texts for the accuracy")
    parser.add_argument("--samples", type=int, default=200, help="texts that are attacked or certified")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
