"""What a sweep leaves in the record: the scores of the chosen setting, the Pareto front, every setting tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...defenses.selection import Trial, Value, pareto_front
from ...reports.record import Chart, Line, Metric, Table
from ..checks.metrics import percent, rate


def metrics(found: Sequence[Trial], best: Trial, ball: str) -> Iterator[Metric]:
    score = best.score
    yield Metric(name="trials", value=len(found), label="Settings tried")
    yield rate(
        "validation_accuracy", score.clean, score.n, label="Held-out clean accuracy when chosen", higher_is_better=True
    )
    yield rate(
        "validation_robust_accuracy",
        score.robust,
        score.n,
        label=f"Held-out robust accuracy when chosen ({ball})",
        higher_is_better=True,
    )


def front_chart(found: Sequence[Trial], best: Trial, ball: str) -> Chart:
    front = pareto_front(found)
    others = [trial for trial in found if not trial.score.error and trial not in front]
    lines = (_points("other settings", others), _points("Pareto front", front), _points("chosen", [best]))
    return Chart(
        id="pareto",
        title="Settings tried: clean against robust accuracy",
        caption="Each point is one setting on held-out training data; no other setting beats those on the Pareto front "
        "in both. The bars are 95 % intervals.",
        style="scatter",
        x_label="held-out clean accuracy (%)",
        y_label=f"held-out robust accuracy (%), {ball}",
        lines=tuple(line for line in lines if line.x),
    )


def _points(name: str, trials: Sequence[Trial]) -> Line:
    clean = [rate("", t.score.clean, t.score.n, label="", higher_is_better=True) for t in trials]
    robust = [rate("", t.score.robust, t.score.n, label="", higher_is_better=True) for t in trials]

    def column(metrics: Sequence[Metric], field: str) -> tuple[float, ...]:
        return tuple(100 * float(getattr(metric, field)) for metric in metrics)

    return Line(
        name=name,
        x=column(clean, "value"),
        y=column(robust, "value"),
        low=column(robust, "ci_low"),
        high=column(robust, "ci_high"),
        x_low=column(clean, "ci_low"),
        x_high=column(clean, "ci_high"),
    )


def trials_table(found: Sequence[Trial], best: Trial) -> Table:
    """Every setting tried, with its scores."""
    names, front = list(best.parameters), pareto_front(found)

    def row(trial: Trial) -> tuple[str | int | float | None, ...]:
        score = trial.score
        shares = ("–", "–") if score.error else (percent(score.clean_accuracy), percent(score.robust_accuracy))
        role = "chosen" if trial == best else "on the front" if trial in front else score.error and "failed"
        return (trial.number, *(value_text(trial.parameters[name]) for name in names), *shares, role, score.error)

    return Table(
        id="trials",
        title="Every setting tried",
        caption="Accuracy on held-out training data.",
        columns=("trial", *names, "clean", "robust", "", "error"),
        rows=tuple(row(trial) for trial in found),
    )


def value_text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def failures(found: Sequence[Trial]) -> Iterator[str]:
    failed = [trial for trial in found if trial.score.error]
    if failed:
        yield f"{len(failed)} of {len(found)} settings failed, the first with: {failed[0].score.error}"
