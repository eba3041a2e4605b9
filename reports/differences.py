"""Two audits side by side, as numbers, Markdown and a page of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .comparison import p_text
from .markdown import table_of, text
from .record import AuditRecord, Metric
from .writing import DASH, listed, metric_label, metric_text, moment, number, plural, verdict_word

Kind = Literal["regressed", "gone", "improved", "unclear", "changed", "new", "same"]

KINDS: tuple[Kind, ...] = ("regressed", "gone", "improved", "unclear", "changed", "new", "same")
"""In the order in which a reader wants them."""

MEANING: dict[Kind, str] = {
    "regressed": "worse beyond chance",
    "gone": "measured before, not any more",
    "improved": "better beyond chance",
    "unclear": "a difference that chance alone can make",
    "changed": "another value, of which neither is the better one",
    "new": "not measured before",
    "same": "the same value",
}


@dataclass(frozen=True, slots=True)
class Test:
    """How a difference was tested.

    Attributes:
        difference: after minus before, with its 95 % interval ``low`` to ``high``.
        p: two-sided p-value of no difference, corrected for all differences tested; ``alone`` is the one before that.
    """

    method: str
    n: int | None
    difference: float
    low: float
    high: float
    p: float
    alone: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric, ``address`` as in gates, in both audits."""

    address: str
    before: Metric | None
    after: Metric | None
    kind: Kind
    test: Test | None = None

    @property
    def label(self) -> str:
        """What a person reads."""
        metric = self.after or self.before
        return metric_label(metric) if metric else self.address


@dataclass(frozen=True, slots=True)
class GateChange:
    """A gate that both audits have and judge differently."""

    expression: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of everything that two audits measured.

    Attributes:
        alpha: differences count as beyond chance when their corrected p-value is below it.
    """

    before: AuditRecord
    after: AuditRecord
    differences: tuple[Difference, ...]
    gates: tuple[GateChange, ...]
    alpha: float

    def of(self, kind: Kind) -> list[Difference]:
        """The differences of one kind, in the order of the first audit."""
        return [one for one in self.differences if one.kind == kind]

    @property
    def regressed(self) -> bool:
        """Whether a metric got worse or is gone, or a gate that passed no longer does."""
        return any(one.kind in ("regressed", "gone") for one in self.differences) or any(
            gate.before == "pass" for gate in self.gates
        )

    @property
    def same_data(self) -> bool:
        return self.before.data.sha256 == self.after.data.sha256

    @property
    def sentence(self) -> str:
        """The outcome in a sentence."""
        counts = [f"{len(self.of(kind))} {kind}" for kind in ("regressed", "improved", "gone", "new") if self.of(kind)]
        metrics = f"Of {plural(len(self.differences), 'metric')}, {listed(counts) or 'none changed beyond chance'}"
        return f"{metrics}; {plural(len(self.gates), 'gate')} changed verdict." if self.gates else f"{metrics}."

    @property
    def notes(self) -> list[str]:
        """What a reader must know of how the two were compared."""
        how = (
            f"Beyond chance means p below {self.alpha:g}, corrected for all tested metrics by Holm’s method. Metrics "
            "that rest on the same samples in both audits are compared sample by sample (exact McNemar test, paired t "
            "test), others by their intervals; a metric without interval counts as it stands, "
            "changes below a thousandth aside. A single metric that matters is judged with more power by a gate."
        )
        data = [] if self.same_data else ["The two audits used different data: a metric can change for that alone."]
        return [*data, how]


def cells(one: Difference) -> tuple[str, str, str, str, str, str]:
    """What a table shows: address, before, after, difference with interval, test and p-value, kind."""
    before, after = (metric_text(metric) if metric else DASH for metric in (one.before, one.after))
    return one.address, before, after, _difference(one), _tested(one), one.kind


def render_comparison_markdown(comparison: Comparison) -> str:
    """The comparison for a pull-request comment; what did not change is counted only."""
    sign = "❌" if comparison.regressed else "✅"
    parts = [f"## {sign} {text(comparison.after.name)} against its baseline", comparison.sentence]
    if comparison.gates:
        rows = [(gate.expression, verdict_word(gate.before), verdict_word(gate.after)) for gate in comparison.gates]
        parts.append(table_of(("Gate", "Before", "Now"), rows))
    for kind in KINDS[:-1]:
        found = comparison.of(kind)
        if found:
            body = table_of(("Metric", "Before", "Now", "Difference", "Test"), [cells(one)[:5] for one in found])
            parts.append(
                f"### {kind.capitalize()}: {MEANING[kind]}\n\n{body}" if kind in KINDS[:3] else _folded(kind, body)
            )
    parts += [*comparison.notes, _identity(comparison)]
    return "\n\n".join(parts) + "\n"


def _open(kind: Kind, body: str) -> str:
    return f"### {kind.capitalize()}: {MEANING[kind]}\n\n{body}"


def _folded(kind: Kind, body: str) -> str:
    return f"<details><summary>{kind.capitalize()}: {MEANING[kind]}</summary>\n\n{body}\n\n</details>"


def _identity(comparison: Comparison) -> str:
    models = [
        f"{word}: model {text(record.model.sha256[:12])}…, data {text(record.data.sha256[:12])}…, "
        f"{plural(record.data.n, 'sample')}, {moment(record.created)}"
        for word, record in (("Before", comparison.before), ("Now", comparison.after))
    ]
    return ". ".join(models) + "."


def _difference(one: Difference) -> str:
    if one.before is None or one.after is None or one.before.value is None or one.after.value is None:
        return DASH
    share = one.after.unit == "rate"
    values: Sequence[float] = (
        (one.test.difference, one.test.low, one.test.high) if one.test else (one.after.value - one.before.value,)
    )
    parts = [f"{100 * value:+.1f}" if share else f"{value:+.3g}" for value in values]
    points = " points" if share else ""
    return f"{parts[0]}{points}" + (f" ({parts[1]} to {parts[2]})" if one.test else "")


def _tested(one: Difference) -> str:
    if one.test is None:
        return DASH
    on = f", n = {number(one.test.n)}" if one.test.n else ""
    corrected = p_text(one.test.p).removeprefix("p ").removeprefix("= ")
    return f"{one.test.method}{on}, {p_text(one.test.alone)}, corrected {corrected}"
