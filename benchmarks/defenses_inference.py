"""What defenses at inference and compression buy on the demo's Fashion-MNIST: an audit per part, printed as tables.

``python benchmarks/defenses_inference.py --out build/inference`` fine-tunes the demo's network and audits its variants;
run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from auditorch.audit.demo.run import FINE_TUNING, copy_assets, fine_tune
from auditorch.audit.progress import Silent
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec
from auditorch.reports.record import AuditRecord, Metric, VariantRecord

EPS = 0.03
HEAD = """version: 1
name: inference
model: {factory: model.py:build, weights: model.safetensors}
data: {source: test.npz}
"""
ADVERSARIAL = (
    "adversarial_training: {id: adversarial, train: train.npz, method: fast, norm: linf, eps: 0.1, epochs: 10}"
)
PARTS = {
    "compression": f"""checks:
  - performance
  - evasion: {{id: linf, norm: linf, eps: {EPS}, attack: auto, diagnostics: false, limit: LIMIT}}
  - transfer: {{norm: linf, eps: {EPS}, limit: LIMIT}}
variants:
  - pruning: {{id: weights-80, amount: 0.8}}
  - pruning: {{id: weights-80-trained, amount: 0.8, train: train.npz}}
  - pruning: {{id: channels-50-trained, structure: channels, amount: 0.5, train: train.npz}}
  - quantization: {{id: int8-static, train: train.npz}}
  - quantization: {{id: int8-dynamic, mode: dynamic, train: train.npz}}
  - low_rank: {{id: low-rank-50, keep: 0.5}}
  - low_rank: {{id: low-rank-25-trained, keep: 0.25, train: train.npz}}
  - student: {{id: student-50, train: train.npz, epochs: 10}}
""",
    "inference": f"""checks:
  - performance
  - evasion: {{id: linf, norm: linf, eps: {EPS}, attack: apgd, steps: 50, diagnostics: false, limit: LIMIT}}
  - transfer: {{norm: linf, eps: {EPS}, limit: LIMIT}}
variants:
  - preprocessing: {{id: jpeg-50, jpeg: 50}}
  - preprocessing: {{id: bits-3, bit_depth: 3}}
  - preprocessing: {{id: median-3, median: 3}}
  - preprocessing: {{id: tv-01, total_variation: 0.1}}
  - ensemble: {{id: ensemble-logits, count: 2, train: train.npz}}
  - ensemble: {{id: ensemble-majority, count: 2, train: train.npz, combine: majority}}
  - randomized_smoothing: {{id: smoothed, sigma: 0.25, draws: 16, train: train.npz}}
""",
    "bounds": f"""checks:
  - certification: {{id: ibp, method: ibp, norm: linf, eps: 0.02, curve: [0.005, 0.01, 0.05], limit: LIMIT}}
  - certification: {{id: crown_ibp, method: crown_ibp, norm: linf, eps: 0.02, curve: [0.005, 0.01, 0.05], limit: LIMIT}}
  - certification: {{id: crown, method: crown, norm: linf, eps: 0.02, curve: [0.005, 0.01, 0.05], limit: LIMIT}}
variants:
  - {ADVERSARIAL}
""",
    "smoothing": """checks:
  - certification:
      {id: smoothing, norm: l2, eps: 0.5, curve: [0.25, 0.75, 1.0], n: 1000, limit: LIMIT, variants: [VARIANTS]}
variants:
  - randomized_smoothing: {id: plain-025, sigma: 0.25}
  - randomized_smoothing: {id: noise-025, sigma: 0.25, train: train.npz}
  - randomized_smoothing: {id: noise-05, sigma: 0.5, train: train.npz}
""".replace("VARIANTS", "plain-025, noise-025, noise-05"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/inference"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--samples", type=int, default=200, help="samples attacked or certified")
    parser.add_argument("--epochs", type=int, default=FINE_TUNING.epochs, help="of the base's fine-tuning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    copy_assets(options.out, Silent())
    fine_tune(options.out, replace(FINE_TUNING, epochs=options.epochs), Silent())
    for part in options.parts:
        path = options.out / f"{part}.yaml"
        path.write_text(HEAD + PARTS[part].replace("LIMIT", str(options.samples)))
        record = run_audit(load_spec(path), options.out / part)
        print(f"\n### {part}\n\n{table(part, record)}", flush=True)


def table(part: str, record: AuditRecord) -> str:
    """A Markdown table of the part's figures, one variant (or check) a row."""
    match part:
        case "bounds":
            return bounds_table(record)
        case "smoothing":
            names = ("clean_accuracy", *(f"certified_accuracy{at}" for at in ("_at_0.25", "", "_at_0.75", "_at_1")))
            names = (*names, "empirical_robust_accuracy", "mean_certified_radius", "contradicted")
            header = (
                "variant",
                "clean",
                "cert. 0.25",
                "0.5",
                "0.75",
                "1.0",
                "attacked at 0.5",
                "mean radius",
                "contra.",
            )
            rows = [
                (variant.id, *(shown(result.metric(name)) for name in names))
                for variant in record.variants
                for result in variant.results
            ]
            return markdown(header, rows)
    header = ("variant", "clean", f"linf {EPS} adaptive", "transfer", "ECE", "parameters", "bytes", "ms", "peak kB")
    return markdown(header, [variant_row(variant) for variant in record.variants])


def variant_row(variant: VariantRecord) -> tuple[str, ...]:
    found = {metric.name: metric for metric in variant.metrics}
    measured = [
        ("performance", "accuracy"),
        ("linf", "robust_accuracy"),
        ("transfer", "transfer_robust_accuracy"),
        ("performance", "ece"),
    ]
    results = [variant.result(check) for check, _ in measured]
    cells = [
        shown(result.metric(name)) if result is not None else "–"
        for result, (_, name) in zip(results, measured, strict=True)
    ]
    latency, peak = (found.get(f"integer_{name}", found.get(name)) for name in ("latency_ms", "peak_memory_bytes"))
    return (
        variant.id,
        *cells,
        number(found.get("parameters"), 1, "d"),
        number(found.get("size_bytes"), 1, "d"),
        number(latency, 1, ".2f"),
        number(peak, 1e-3, ".0f"),
    )


def bounds_table(record: AuditRecord) -> str:
    names = [f"certified_accuracy{at}" for at in ("_at_0.005", "_at_0.01", "", "_at_0.05")]
    header = ("model", "bounds", "clean", "cert. 0.005", "0.01", "0.02", "0.05", "attacked at 0.02", "seconds")
    rows = []
    for variant in record.variants:
        for result in variant.results:
            cells = [shown(result.metric(name)) for name in ("clean_accuracy", *names, "empirical_robust_accuracy")]
            rows.append((variant.id, result.id, *cells, f"{result.seconds:.0f}"))
    return markdown(header, rows)


def shown(metric: Metric | None) -> str:
    """``81.0 (75–86)`` for rates, plain numbers otherwise."""
    if metric is None or metric.value is None:
        return "–"
    if metric.unit != "rate":
        return f"{metric.value:.3f}"
    low, high = metric.ci_low, metric.ci_high
    return f"{100 * metric.value:.1f}" + ("" if low is None or high is None else f" ({100 * low:.0f}–{100 * high:.0f})")


def number(metric: Metric | None, factor: float, form: str) -> str:
    if metric is None or metric.value is None:
        return "–"
    value = metric.value * factor
    return format(round(value) if form == "d" else value, form)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
