"""Gates: reading them, the four verdicts, and what would decide an inconclusive one."""

import contextlib
import math

import pytest
from auditorch.attacks.statistics import rate_interval
from auditorch.audit.errors import SpecError
from auditorch.audit.gates import evaluate_gate, overall, parse_gate, samples_needed
from auditorch.reports.record import Gate, GateVerdict, Metric, Result, Status, VariantRecord
from hypothesis import example, given
from hypothesis import strategies as st


def rate(hits: int, n: int, method: str = "wilson") -> Metric:
    low, high = rate_interval(hits, n, method="wilson" if method == "wilson" else "exact")
    return Metric(name="share", value=hits / n, ci_low=low, ci_high=high, n=n, unit="rate", method=method)


def variants(*metrics: Metric, status: Status = "ok", error: str = "") -> list[VariantRecord]:
    result = Result(check="c", id="c", title="C", status=status, error=error, metrics=metrics, warnings=("share: why",))
    return [VariantRecord(id="base", kind="base", results=(result,))]


def judge(expression: str, *metrics: Metric) -> Gate:
    return evaluate_gate(parse_gate(expression), variants(*metrics))


@pytest.mark.parametrize(
    ("written", "threshold"),
    [
        ("0.4", 0.4),
        ("40%", 0.4),
        ("40 %", 0.4),
        ("8/255", 8 / 255),
        ("1e-5", 1e-5),
        (".5", 0.5),
        ("-2", -2.0),
        ("3", 3),
    ],
)
def test_thresholds_are_numbers_fractions_or_percentages(written: str, threshold: float) -> None:
    assert parse_gate(f"c.share >= {written}").threshold == pytest.approx(threshold, rel=1e-12)


def test_a_gate_is_read_into_its_parts() -> None:
    gate = parse_gate("  dp_sgd : membership.tpr_at_fpr_0.01<=5%  ")
    assert (gate.variant, gate.check_id, gate.metric, gate.operator) == (
        "dp_sgd",
        "membership",
        "tpr_at_fpr_0.01",
        "<=",
    )
    assert gate.expression == "dp_sgd : membership.tpr_at_fpr_0.01<=5%"
    assert parse_gate("c.share > 1").on == "base"


@pytest.mark.parametrize(
    "written",
    ["", "c", "c.share", "c.share >=", "c >= 1", "c.share = 1", "c.share != 1", "c.share >= x", "c.share >= nan",
     "c.share >= inf", "c.share >= 1e999", "c.share >= 1/0", "c.share >= 1 2", "c.share >= 1_0", "c.share >= 0.4 <= 1",
     "c.share >= 8//255", "c.share >= %", "c.share => 1", "a:b:c.share >= 1", "c.share >= 1e-400/1e-400", "c.share\n"],
)  # fmt: skip
def test_what_is_no_gate_is_refused(written: str) -> None:
    with pytest.raises(SpecError, match="gate"):
        parse_gate(written)


@given(st.text(max_size=60) | st.from_regex(r"[a-c:]{0,4}\.[a-c.]{1,3} ?[<>=]{1,2} ?[0-9/%.e+-]{1,12}"))
@example("c.share >= 1e-999999999")
@example("c.share >= " + "9" * 5000)
@example("c.share >= 1/1e999999999")
def test_any_text_is_read_or_refused_at_once(text: str) -> None:
    # Read naively, the examples take hours and all memory.
    with contextlib.suppress(SpecError):
        assert math.isfinite(parse_gate(text).threshold)


@pytest.mark.parametrize(
    ("expression", "hits", "verdict"),
    [
        ("c.share >= 0.5", 80, "pass"),
        ("c.share >= 0.5", 20, "fail"),
        ("c.share >= 0.5", 55, "inconclusive"),
        ("c.share <= 0.5", 20, "pass"),
        ("c.share <= 0.5", 80, "fail"),
        ("c.share <= 0.5", 45, "inconclusive"),
        ("c.share > 0", 1, "pass"),
        ("c.share >= 0", 0, "pass"),
        ("c.share > 0", 0, "inconclusive"),
        ("c.share < 0", 0, "fail"),
        ("c.share == 0.5", 80, "fail"),
        ("c.share == 0.5", 50, "inconclusive"),
    ],
)
def test_the_interval_decides(expression: str, hits: int, verdict: GateVerdict) -> None:
    gate = judge(expression, rate(hits, 100))
    assert gate.verdict == verdict
    assert (gate.value, gate.n, gate.threshold) == (hits / 100, 100, parse_gate(expression).threshold)


def test_an_end_of_the_interval_on_the_threshold_is_good_for_at_least_but_not_for_more_than() -> None:
    metric = Metric(name="share", value=0.6, ci_low=0.5, ci_high=0.7, n=10)
    assert judge("c.share >= 0.5", metric).verdict == "pass"
    assert judge("c.share > 0.5", metric).verdict == "inconclusive"
    assert judge("c.share < 0.5", metric).verdict == "fail"
    assert judge("c.share <= 0.7", metric).verdict == "pass"
    assert judge("c.share < 0.7", metric).verdict == "inconclusive"


def test_without_confidence_the_value_decides() -> None:
    gate = evaluate_gate(parse_gate("c.share >= 0.5"), variants(rate(55, 100)), "none")
    assert gate.verdict == "pass"
    assert "point estimate" in gate.reason
    assert evaluate_gate(parse_gate("c.share == 0.55"), variants(rate(55, 100)), "none").verdict == "pass"


def test_a_metric_without_interval_is_judged_by_its_value_and_says_so() -> None:
    gate = judge("c.share <= 3", Metric(name="share", value=3.0))
    assert gate.verdict == "pass"
    assert gate.reason == "compared by the point estimate: the metric has no interval"


@pytest.mark.parametrize(
    ("expression", "metric", "reason"),
    [
        ("c.shared >= 1", rate(1, 2), "Did you mean 'share'?"),
        ("c.share >= 1", Metric(name="share", value=None), "undefined; share: why"),
        ("c.share >= 1", Metric(name="share", value=float("nan"), ci_low=0, ci_high=1), "undefined"),
        ("d.share >= 1", rate(1, 2), "unknown check 'd'"),
        ("other:c.share >= 1", rate(1, 2), "unknown variant 'other'"),
    ],
)
def test_what_cannot_be_judged_is_an_error(expression: str, metric: Metric, reason: str) -> None:
    gate = judge(expression, metric)
    assert gate.verdict == "error"
    assert reason in gate.reason


def test_a_check_that_did_not_finish_is_an_error_with_its_reason() -> None:
    words: dict[Status, str] = {"error": "did not finish: boom", "skipped": "was skipped: boom"}
    for status, word in words.items():
        gate = evaluate_gate(parse_gate("c.share >= 0"), variants(status=status, error="boom"))
        assert gate.verdict == "error"
        assert word in gate.reason


def test_a_check_that_ran_elsewhere_is_told_where() -> None:
    other = variants(rate(1, 2))[0].model_copy(update={"id": "dp"})
    base = VariantRecord(id="base", kind="base")
    gate = evaluate_gate(parse_gate("c.share >= 0"), [base, other])
    assert gate.reason == "the check 'c' ran on dp, not on base"


@pytest.mark.parametrize("method", ["wilson", "clopper-pearson"])
@pytest.mark.parametrize(("hits", "n", "threshold"), [(45, 100, 0.4), (3, 100, 0.05), (99, 100, 0.95), (0, 10, 0.05)])
def test_the_number_of_samples_named_is_the_smallest_that_decides(
    method: str, hits: int, n: int, threshold: float
) -> None:
    exact = "wilson" if method == "wilson" else "exact"
    needed = samples_needed(hits / n, threshold, exact)
    assert needed is not None

    def holds_threshold(size: int) -> bool:
        from auditorch.attacks.statistics import rate_intervals

        low, high = rate_intervals(hits / n * size, size, method=exact)
        return bool(low <= threshold <= high)

    assert holds_threshold(needed - 1)
    assert not holds_threshold(needed)
    gate = judge(f"c.share >= {threshold}", rate(hits, n, method))
    if gate.verdict == "inconclusive":
        assert f"about {needed:,} samples (now {n})" in gate.reason


def test_the_sample_size_follows_wilsons_closed_form() -> None:
    # The Wilson interval holds t exactly while |p - t| <= z sqrt(t (1 - t) / n).
    assert samples_needed(0.45, 0.4) == math.ceil(1.959964**2 * 0.4 * 0.6 / 0.05**2)


def test_at_the_threshold_no_number_of_samples_decides() -> None:
    assert samples_needed(0.4, 0.4) is None
    assert "no number of samples decides" in judge("c.share >= 0.4", rate(40, 100)).reason
    assert "no practical number" in judge("c.share >= 0.400001", rate(40, 100)).reason


def test_other_intervals_are_taken_to_narrow_with_the_root_of_n() -> None:
    metric = Metric(name="share", value=2.0, ci_low=1.0, ci_high=2.5, n=100, method="bootstrap")
    assert (
        "about 400 samples (now 100) at the present estimate would mean pass" in judge("c.share >= 1.5", metric).reason
    )
    assert (
        "about 157 samples (now 100) at the present estimate would mean fail" in judge("c.share >= 2.4", metric).reason
    )


def test_the_overall_verdict_is_the_worst() -> None:
    def gate(verdict: GateVerdict) -> Gate:
        return Gate(expression="c.share >= 0", verdict=verdict)

    fine = variants(rate(1, 2))
    order: list[GateVerdict] = ["pass", "inconclusive", "fail", "error"]
    for i, worst in enumerate(order):
        assert overall([gate(verdict) for verdict in reversed(order[: i + 1])], fine) == worst
    assert overall([], fine) == "none"
    assert overall([gate("pass")], variants(status="error", error="boom")) == "error"
    assert overall([], [VariantRecord(id="dp", kind="dp", status="error")]) == "error"
    assert overall([gate("pass")], variants(status="skipped")) == "pass"
