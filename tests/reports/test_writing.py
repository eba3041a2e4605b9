"""Numbers in words: decimals, intervals, units, edges."""

from __future__ import annotations

import pytest
from auditorch.reports.escaping import Anchors, slug, visible
from auditorch.reports.record import AuditRecord, Metric, Result, VariantRecord
from auditorch.reports.writing import bounds_text, duration, interval, metric_text, number, verdict_sentence

from .example import empty

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.713, "rate", "71.3 %"),
        (0.0, "rate", "0.0 %"),
        (1.0, "rate", "100.0 %"),
        (0.9996, "rate", "99.96 %"),
        (0.99996, "rate", "99.996 %"),
        (0.004, "rate", "0.40 %"),
        (0.0002, "rate", "0.02 %"),
        (0.00002, "rate", "0.002 %"),
        (-0.05, "rate", "−5.0 %"),
        (0.03137, "", "0.0314"),
        (0.8, "mJ", "0.8 mJ"),
        (0.509, "auc", "0.509"),
        (12345, "", "12,345"),
        (1234.5, "s", "1,234 s"),
        (0.00021, "", "2.10 × 10⁻⁴"),
        (3.2e9, "", "3,200,000,000"),
        (-2.5, "", "−2.5"),
        (0, "bits", "0 bits"),
        (None, "rate", "–"),
        (NAN, "rate", "NaN"),
        (INF, "", "∞"),
        (-INF, "", "−∞"),
    ],
)
def test_numbers(value: float | None, unit: str, text: str) -> None:
    assert number(value, unit) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "text"),
    [
        (0.713, 0.684, 0.74, "rate", "71.3 % (68.4–74.0)"),
        (0.004, 0.0011, 0.0102, "rate", "0.40 % (0.11–1.02)"),
        (0.0, 0.0, 0.0037, "rate", "0.0 % (0.00–0.37)"),
        (1.5, -0.2, 3.25, "nats", "1.5 nats (−0.2 to 3.25)"),
        (0.5, None, 0.7, "rate", "50.0 %"),
        (0.5, NAN, NAN, "rate", "50.0 %"),
        (None, 0.1, 0.2, "rate", "– (10.0–20.0)"),
    ],
)
def test_intervals(value: float | None, low: float | None, high: float | None, unit: str, text: str) -> None:
    assert interval(value, low, high, unit) == text


def test_metric_text_uses_the_unit() -> None:
    assert metric_text(Metric(name="a", value=0.5, ci_low=0.4, ci_high=0.6, unit="rate")) == "50.0 % (40.0–60.0)"
    assert bounds_text(None, None, None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12.4, "12 s"), (252, "4 min 12 s"), (7500, "2 h 05 min"), (NAN, "–"), (59.7, "1 min 00 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_verdict_sentence_counts_and_owns_up(record: AuditRecord) -> None:
    assert verdict_sentence(record) == (
        "Of 4 gates, 1 failed, 1 is inconclusive, 1 could not be judged and 1 passed. "
        "The audit is incomplete: 1 check did not finish."
    )
    passed = record.model_copy(update={"verdict": "pass", "gates": record.gates[:1], "variants": ()})
    assert verdict_sentence(passed) == "The one gate passed."
    assert verdict_sentence(empty()) == "No gates were set: this report measures and does not judge."


def test_verdict_sentence_without_gates_still_tells_of_errors() -> None:
    broken = Result(check="c", id="c", title="c", status="error", error="x")
    variant = VariantRecord(id="v", kind="base", status="error", results=(broken,))
    told = verdict_sentence(empty().model_copy(update={"variants": (variant,)}))
    assert told.endswith("The audit is incomplete: 1 check did not finish and 1 variant did not finish.")


def test_visible_replaces_what_acts_and_keeps_what_reads() -> None:
    assert visible("a\x00\x1b[0m\x85\u202e\ud800 é\n日本") == "a␀␛[0m\ufffd[U+202E]\ufffd é\n日本"


def test_slugs_are_safe_and_anchors_unique() -> None:
    assert slug('Robust "accuracy" ≤ 8/255 <b>') == "robust-accuracy-8-255-b"
    assert slug("日本") == "x"
    anchors = Anchors()
    assert [anchors.new("a", "b"), anchors.new("a b"), anchors.new("A/B")] == ["a-b", "a-b-2", "a-b-3"]
