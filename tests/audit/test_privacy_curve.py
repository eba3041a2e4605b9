from auditorch.audit.privacy_curve import with_privacy_curve
from auditorch.reports.record import Chart, Metric, Result, VariantRecord


def rate(name: str, value: float, label: str) -> Metric:
    low, high = value - 0.02, value + 0.02
    return Metric(name=name, value=value, ci_low=low, ci_high=high, n=100, unit="rate", method="wilson", label=label)


def result(check: str, name: str, metric: Metric) -> Result:
    return Result(check=check, id=name, title=check, status="ok", metrics=(metric,))


def variant(name: str, epsilon: float | None, accuracy: float, tpr: float) -> VariantRecord:
    results = (
        result("performance", "performance", rate("accuracy", accuracy, "Accuracy")),
        result("membership", "leak", rate("tpr_at_fpr_0.01", tpr, "TPR at 1 % FPR")),
    )
    metrics = () if epsilon is None else (Metric(name="epsilon", value=epsilon),)
    return VariantRecord(id=name, kind="base" if epsilon is None else "dp_sgd", metrics=metrics, results=results)


BASE = variant("base", None, 0.9, 0.3)


def test_curve_over_budgets_in_order() -> None:
    made = with_privacy_curve((BASE, variant("b", 8.0, 0.8, 0.05), variant("a", 1.0, 0.7, 0.02)))
    assert [one.id for one in made] == ["base", "b", "a"]
    assert not made[0].figures
    assert not made[2].figures
    (chart,) = made[1].figures
    assert isinstance(chart, Chart)
    assert chart.x_scale == "log"
    found = {line.name: (line.x, line.y, line.low) for line in chart.lines}
    assert found["Accuracy"] == ((1.0, 8.0), (0.7, 0.8), (0.7 - 0.02, 0.8 - 0.02))
    assert found["TPR at 1 % FPR"][:2] == ((1.0, 8.0), (0.02, 0.05))
    assert found["Accuracy, not private"][:2] == ((1.0, 8.0), (0.9, 0.9))


def test_no_curve_without_two_budgets() -> None:
    failed = variant("b", 8.0, 0.8, 0.05).model_copy(update={"status": "error"})
    for variants in ((BASE,), (BASE, variant("a", 1.0, 0.7, 0.02)), (variant("a", 1.0, 0.7, 0.02), failed)):
        assert with_privacy_curve(variants) == variants
