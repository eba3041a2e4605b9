"""Gates: reading them, the four verdicts, and what would decide an inconclusive one."""

import contextlib
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.attacks.statistics import rate_interval
from auditorch.audit.errors import SpecError
from auditorch.audit.gates import Address, Clause, evaluate_gate, overall, parse_gate, samples_needed
from auditorch.reports.record import Evidence, Gate, GateVerdict, Metric, Result, Status, VariantRecord
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save
from scipy.stats import binom, binomtest
from torch import Tensor


def rate(hits: int, n: int, method: str = "wilson") -> Metric:
    low, high = rate_interval(hits, n, method="wilson" if method == "wilson" else "exact")
    return Metric(name="share", value=hits / n, ci_low=low, ci_high=high, n=n, unit="rate", method=method)


def variants(*metrics: Metric, status: Status = "ok", error: str = "") -> list[VariantRecord]:
    result = Result(check="c", id="c", title="C", status=status, error=error, metrics=metrics, warnings=("share: why",))
    return [VariantRecord(id="base", kind="base", results=(result,))]


def judge(expression: str, *metrics: Metric) -> Gate:
    return evaluate_gate(parse_gate(expression), variants(*metrics))


def clause(expression: str) -> Clause:
    [only] = parse_gate(expression).clauses
    return only


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
        ("1.e5", 1e5),
    ],
)
def test_thresholds_are_numbers_fractions_or_percentages(written: str, threshold: float) -> None:
    assert clause(f"c.share >= {written}").threshold == pytest.approx(threshold, rel=1e-12)


def test_a_gate_is_read_into_its_parts() -> None:
    written = "  dp_sgd : membership.tpr_at_fpr_0.01<=5%  "
    assert clause(written) == Clause(Address("dp_sgd", "membership", "tpr_at_fpr_0.01"), "<=", 0.05)
    assert parse_gate(written).expression == written.strip()
    assert clause("c.share > 1").subject.on == "base"


@pytest.mark.parametrize(
    ("written", "clauses"),
    [
        ("0.4 <= c.share", ["c.share >= 0.4"]),
        ("0.4 <= c.share <= 60%", ["c.share >= 0.4", "c.share <= 0.6"]),
        ("0.6 > c.share > 0.4", ["c.share < 0.6", "c.share > 0.4"]),
        ("c.share >= 0.4 and d.rate < 1", ["c.share >= 0.4", "d.rate < 1"]),
        ("v:c.share >= base - 0.02", ["v:c.share >= c.share - 0.02"]),
        ("v:c.share >= 0.9 * base + 1%", ["v:c.share >= 0.9 * c.share + 0.01"]),
        ("dp.epsilon_lower_bound <= dp.epsilon", ["dp.epsilon_lower_bound <= dp.epsilon"]),
        ("c.share - 0.1 <= d.share", ["d.share >= c.share - 0.1"]),
        ('*:c.recall[T-shirt/top] >= 0.5', ['*:c.recall["T-shirt/top"] >= 0.5']),
        ('c.a["x ] and y"] >= 0.5 and c.b[x and y] > 0', ['c.a["x ] and y"] >= 0.5', 'c.b["x and y"] > 0']),
    ],
)  # fmt: skip
def test_forms_of_the_language(written: str, clauses: list[str]) -> None:
    assert [str(one) for one in parse_gate(written).clauses] == clauses
    again = parse_gate(" and ".join(clauses))
    assert again.clauses == parse_gate(written).clauses


@pytest.mark.parametrize(
    "written",
    ["", "c", "c.share", "c.share >=", "c >= 1", "c.share = 1", "c.share != 1", "c.share >= x", "c.share >= nan",
     "c.share >= inf", "c.share >= 1e999", "c.share >= 1/0", "c.share >= 1 2", "c.share >= 1_0", "c.share >= 0.4 <= 1",
     "c.share >= 8//255", "c.share >= %", "c.share => 1", "a:b:c.share >= 1", "c.share >= 1e-400/1e-400", "c.share\n",
     "c.share >= base", "base >= c.share", "0.4 <= c.share >= 0.2", "1 <= 2", "-c.share >= 0",
     "c.share >= 1 and", "and c.share >= 1", "c.share >= 1 c.share >= 2", "c.share >= d.share - d.share", "c.a[] >= 1",
     "c.share >= d.share * 2", "0.4 == c.share <= 0.5", "c.share >= 1 or d.share >= 1", "c.share >= " + "1" * 3000],
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
        assert all(math.isfinite(one.threshold + one.factor) for one in parse_gate(text).clauses)


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
    assert (gate.value, gate.n, gate.threshold) == (hits / 100, 100, clause(expression).threshold)


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
    if gate.verdict == "inconclusive" and exact == "exact":
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


def with_scores(
    directory: Path, variant: str, logits: Tensor, labels: Tensor, ids: Tensor | None = None
) -> VariantRecord:
    """A variant whose performance check left its scores as evidence."""
    ids = torch.arange(len(labels)) if ids is None else ids
    tensors = {"ids": ids, "labels": labels, "logits": logits}
    data, path = save(tensors), f"evidence/{variant}/c.safetensors"
    (directory / path).parent.mkdir(parents=True, exist_ok=True)
    (directory / path).write_bytes(data)
    evidence = Evidence(path=path, sha256=hashlib.sha256(data).hexdigest(), kind="scores")
    hits = int((logits.argmax(1) == labels).sum())
    metric = rate(hits, len(labels)).model_copy(update={"name": "accuracy"})
    result = Result(check="c", id="c", title="C", status="ok", metrics=(metric,), evidence=(evidence,))
    return VariantRecord(id=variant, kind="test", results=(result,))


def one_hot(predicted: Tensor, k: int = 3) -> Tensor:
    return torch.nn.functional.one_hot(predicted, k).float()


def test_one_class_is_judged_on_its_own_samples(tmp_path: Path) -> None:
    labels = torch.tensor([0] * 50 + [1] * 40 + [2] * 10)
    predicted = labels.clone()
    predicted[:20] = 1
    found = [with_scores(tmp_path, "base", one_hot(predicted), labels)]
    ground = {"directory": tmp_path, "classes": ("cat", "dog", "a ] b")}

    def of(expression: str) -> Gate:
        return evaluate_gate(parse_gate(expression), found, **ground)

    recall, precision = of("c.recall[cat] >= 0.4"), of("c.precision[dog] >= 0.9")
    assert (recall.value, recall.n, recall.verdict) == (0.6, 50, "pass")
    assert (recall.ci_low, recall.ci_high) == pytest.approx(binomtest(30, 50).proportion_ci())
    assert (precision.value, precision.n, precision.verdict) == (40 / 60, 60, "fail")
    assert of("c.accuracy[cat] >= 0.4").value == 0.6
    assert of('c.recall["a ] b"] == 1').value == 1
    assert "Did you mean 'dog'" in of("c.recall[dgo] >= 0").reason
    assert "does not hold ece sample by sample" in of("c.ece[dog] >= 0").reason
    assert "needs the evidence" in evaluate_gate(parse_gate("c.recall[dog] >= 0"), found, classes=("dog",)).reason
    (tmp_path / "evidence/base/c.safetensors").write_bytes(b"changed")
    assert of("c.recall[cat] >= 0.4").verdict == "error"


def test_a_defense_is_held_against_the_base_sample_by_sample(tmp_path: Path) -> None:
    labels = torch.zeros(200, dtype=torch.int64)
    before, after = labels.clone(), labels.clone()
    before[150:] = 1
    after[141:] = 1
    base, defended = (
        with_scores(tmp_path, "base", one_hot(before), labels),
        with_scores(tmp_path, "d", one_hot(after), labels),
    )
    gate = parse_gate("d:c.accuracy >= base - 0.02")
    paired = evaluate_gate(gate, [base, defended], directory=tmp_path)
    assert (paired.value, paired.threshold, paired.n) == (pytest.approx(-0.045), -0.02, 200)
    assert "on the same 200 samples" in paired.reason
    apart = evaluate_gate(gate, [base, defended])
    assert "taken as independent" in apart.reason
    widths = [g.ci_high - g.ci_low for g in (paired, apart) if g.ci_low is not None and g.ci_high is not None]
    assert widths[0] < widths[1] / 2
    assert evaluate_gate(parse_gate("d:c.accuracy < base"), [base, defended], directory=tmp_path).verdict == "pass"
    assert evaluate_gate(parse_gate("d:c.accuracy < base"), [base, defended]).verdict == "inconclusive"
    factor = evaluate_gate(parse_gate("d:c.accuracy >= 0.9 * base"), [base, defended], directory=tmp_path)
    assert factor.value == pytest.approx(0.705 - 0.9 * 0.75)
    other = with_scores(tmp_path, "d", one_hot(after), labels, torch.arange(200) + 7)
    assert "taken as independent" in evaluate_gate(gate, [base, other], directory=tmp_path).reason


def test_every_variant_is_judged_and_the_base_not_against_itself(tmp_path: Path) -> None:
    labels = torch.zeros(50, dtype=torch.int64)
    found = [with_scores(tmp_path, name, one_hot(labels), labels) for name in ("base", "a", "b")]
    gate = evaluate_gate(parse_gate("*:c.accuracy >= 0.5"), found)
    assert [(part.variant, part.verdict) for part in gate.parts] == [("base", "pass"), ("a", "pass"), ("b", "pass")]
    gate = evaluate_gate(parse_gate("*:c.accuracy >= base - 0.1"), found, directory=tmp_path)
    assert [part.variant for part in gate.parts] == ["a", "b"]
    assert gate.verdict == "pass"


def test_metric_against_metric_without_interval() -> None:
    epsilon, bound = Metric(name="epsilon", value=2.0), Metric(name="bound", value=1.0, ci_low=0.8, ci_high=1.3, n=9)
    gate = judge("c.bound <= c.epsilon", bound, epsilon)
    assert (gate.verdict, gate.value) == ("pass", -1.0)
    assert (gate.ci_low, gate.ci_high) == (pytest.approx(-1.2), pytest.approx(-0.7))
    assert judge("c.epsilon <= c.bound", bound, epsilon).verdict == "fail"
    assert "c.epsilon: unknown metric" in judge("c.bound <= c.epsilon", bound).reason


def test_a_variants_own_metric() -> None:
    own = VariantRecord(id="dp", kind="dp_sgd", metrics=(Metric(name="epsilon", value=8.0),))
    found = [*variants(rate(1, 2)), own]
    assert evaluate_gate(parse_gate("dp:variant.epsilon <= 8"), found).verdict == "pass"
    assert "Did you mean 'epsilon'" in evaluate_gate(parse_gate("dp:variant.epsilom <= 8"), found).reason


def test_conditions_are_as_good_as_their_worst() -> None:
    metrics = rate(80, 100), rate(20, 100).model_copy(update={"name": "loss"})
    gate = judge("c.share >= 0.5 and c.loss >= 0.5", *metrics)
    assert gate.verdict == "fail"
    assert gate.value == 0.2
    assert [part.verdict for part in gate.parts] == ["pass", "fail"]
    assert gate.expression == "c.share >= 0.5 and c.loss >= 0.5"
    assert judge("0.6 <= c.share <= 0.95", *metrics).verdict == "pass"
    assert judge("0.6 <= c.share <= 0.82", *metrics).verdict == "inconclusive"
    assert judge("0.1 <= c.share <= 0.3", *metrics).verdict == "fail"
    assert judge("c.loss >= 0.5 and c.nothing >= 0", *metrics).verdict == "error"


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.4, 0.9, 0.999])
def test_a_rate_at_the_threshold_passes_or_fails_by_chance_as_rarely_as_promised(n: int, threshold: float) -> None:
    """Over all outcomes, weighted by their probability: no simulation error."""
    verdicts = [judge(f"c.share > {threshold}", rate(hits, n)).verdict for hits in range(n + 1)]
    weights = binom.pmf(range(n + 1), n, threshold)
    for verdict in ("pass", "fail"):
        assert sum(w for w, v in zip(weights, verdicts, strict=True) if v == verdict) <= 0.025


def most(runs: int, rate: float) -> int:
    """As often as chance lets an event of that rate happen, but for one time in a thousand."""
    return int(binom.ppf(0.999, runs, rate))


def test_an_audit_passes_wrongly_as_rarely_as_one_gate_however_many_it_has() -> None:
    """Simulated: one of five requirements is just missed, the others hold easily."""
    rng = np.random.default_rng(0)
    gates = [parse_gate(f"c.m{i} >= 0.8") for i in range(5)]
    passed = failed = 0
    for _ in range(200):
        hits = [rng.binomial(200, 0.7999 if i == 0 else 0.95) for i in range(5)]
        found = variants(*(rate(h, 200).model_copy(update={"name": f"m{i}"}) for i, h in enumerate(hits)))
        passed += overall([evaluate_gate(gate, found) for gate in gates], found) == "pass"
        just = [rng.binomial(200, 0.8) for _ in range(5)]
        found = variants(*(rate(h, 200).model_copy(update={"name": f"m{i}"}) for i, h in enumerate(just)))
        failed += overall([evaluate_gate(gate, found) for gate in gates], found) == "fail"
    assert passed <= most(200, 0.025)
    assert failed <= most(200, 5 * 0.025)


def test_paired_gates_err_as_rarely_as_promised(tmp_path: Path) -> None:
    """Simulated: a defense that costs exactly what is allowed."""
    rng = np.random.default_rng(0)
    labels = torch.zeros(300, dtype=torch.int64)
    gate = parse_gate("d:c.accuracy >= base - 0.05")
    passed = failed = 0
    for _ in range(60):
        u = torch.from_numpy(rng.random(300))
        base = with_scores(tmp_path, "base", one_hot((u > 0.9).long()), labels)
        defended = with_scores(tmp_path, "d", one_hot(((u > 0.8) & (u < 0.95)).long()), labels)
        verdict = evaluate_gate(gate, [base, defended], directory=tmp_path).verdict
        passed += verdict == "pass"
        failed += verdict == "fail"
    assert passed <= most(60, 0.03)
    assert failed <= most(60, 0.03)
