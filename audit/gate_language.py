"""The language of gates: what must hold of a metric, read from one line of text.

linf.robust_accuracy >= 40%                         a metric of the base
dp_sgd:membership.tpr_at_fpr_0.01 <= 0.05           of a variant; *: stands for every variant
performance.recall["T-shirt"] >= 0.6                of one class
0.4 <= linf.robust_accuracy <= 0.6                  a range
dp_sgd:performance.accuracy >= base - 0.02          against the same metric of the base
dp.epsilon_lower_bound <= dp.epsilon                against another metric
linf.robust_accuracy >= 0.4 and l2.robust_accuracy >= 0.5
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .errors import SpecError

BASE = "base"
EVERY = "*"
"""The variant that stands for all of them."""
OWN = "variant"
"""In place of a check's id: the variant's own metrics, as in ``dp_sgd:variant.epsilon <= 8``."""

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_MIRRORED = {">=": "<=", "<=": ">=", ">": "<", "<": ">", "==": "=="}
_DIGITS = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TOKEN = re.compile(
    rf"""\s*(?:
    (?P<number>{_DIGITS}(?:\s*/\s*{_DIGITS})?(?:\s*%)?(?![\w.]))
    |(?P<address>(?:(?:\*|[A-Za-z0-9][\w-]*)\s*:\s*)?[A-Za-z0-9][\w-]*\.[A-Za-z_][\w.-]*
        (?:\[(?:"[^"\n]*"|[^\]\n"]+)\])?)
    |(?P<word>and|base)(?![\w.:])
    |(?P<operator>>=|<=|==|>|<)
    |(?P<sign>[-+*])
    )""",
    re.ASCII | re.VERBOSE,
)
_ADDRESS = re.compile(
    r"(?:(?P<variant>\*|[A-Za-z0-9][\w-]*)\s*:\s*)?(?P<check>[A-Za-z0-9][\w-]*)\.(?P<metric>[A-Za-z_][\w.-]*)"
    r'(?:\["?(?P<label>[^"\]\n]+|[^"\n]*(?="))"?\])?',
    re.ASCII,
)
_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class Address:
    """``[variant:]check.metric[class]``; ``variant`` is None where none is named (the base)."""

    variant: str | None
    check: str
    metric: str
    label: str | None = None

    @property
    def on(self) -> str:
        """The id of the variant whose metric is meant."""
        return self.variant or BASE

    def __str__(self) -> str:
        variant = "" if self.variant is None else f"{self.variant}:"
        label = "" if self.label is None else f'["{self.label}"]'
        return f"{variant}{self.check}.{self.metric}{label}"


@dataclass(frozen=True, slots=True)
class Clause:
    """``subject operator threshold``, or ``subject operator factor * reference + threshold``."""

    subject: Address
    operator: str
    threshold: float
    reference: Address | None = None
    factor: float = 1.0

    def holds(self, value: float) -> bool:
        """Whether a value (with a reference: a difference) known exactly would satisfy the clause."""
        return _HOLDS[self.operator](value, self.threshold)

    def on(self, variant: str) -> Clause:
        """The clause on one variant in place of every one."""
        return replace(self, subject=replace(self.subject, variant=variant))

    def __str__(self) -> str:
        if self.reference is None:
            return f"{self.subject} {self.operator} {self.threshold:.6g}"
        factor = "" if self.factor == 1 else f"{self.factor:.6g} * "
        offset = f" {'-' if self.threshold < 0 else '+'} {abs(self.threshold):.6g}" if self.threshold else ""
        return f"{self.subject} {self.operator} {factor}{self.reference}{offset}"


@dataclass(frozen=True, slots=True)
class ParsedGate:
    """One gate: clauses of which all must hold."""

    expression: str
    clauses: tuple[Clause, ...]

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Every metric that the gate speaks of."""
        both = (address for clause in self.clauses for address in (clause.subject, clause.reference))
        return tuple(dict.fromkeys(address for address in both if address is not None))


def parse_gate(expression: str) -> ParsedGate:
    """Reads a gate. Thresholds are numbers, fractions (``8/255``) or percentages.

    Raises:
        SpecError: when it is none of the forms above.
    """
    clauses = tuple(_Reader(expression).clauses())
    return ParsedGate(expression.strip(), clauses)


@dataclass(frozen=True, slots=True)
class _Side:
    """``factor * reference + offset``; a plain number where there is no reference (``base`` is an address to come)."""

    offset: float = 0.0
    reference: Address | str | None = None
    factor: float = 1.0


class _Reader:
    """Reads tokens from the left."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = list(self._split(expression))

    def clauses(self) -> Iterator[Clause]:
        yield from self._comparison()
        while self._tokens:
            self._take("word", "and")
            yield from self._comparison()

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        if len(text) > _LONGEST:
            raise SpecError(f"gate {text[:40]!r}…: longer than {_LONGEST} characters")
        place, end = 0, len(text.rstrip())
        while place < end:
            found = _TOKEN.match(text, place)
            if found is None:
                raise self._refused(f"cannot read {text[place:].strip()[:40]!r}")
            yield found.lastgroup or "", found[found.lastgroup or 0]
            place = found.end()

    def _comparison(self) -> Iterator[Clause]:
        """One comparison, or the two of a range: ``0.4 <= metric <= 0.6``."""
        sides, operators = [self._side()], [self._take("operator")]
        sides.append(self._side())
        if self._peek() == "operator":
            operators.append(self._take("operator"))
            sides.append(self._side())
        if len(sides) == 2 and not _is_metric(sides[0]):
            sides.reverse()
            operators = [_MIRRORED[operators[0]]]
        if len(sides) == 2:
            yield self._clause(sides[0], operators[0], sides[1])
            return
        if {operators[0][0], operators[1][0]} not in ({"<"}, {">"}):
            raise self._refused("a range reads 0.4 <= check.metric <= 0.6")
        yield self._clause(sides[1], _MIRRORED[operators[0]], sides[0])
        yield self._clause(sides[1], operators[1], sides[2])

    def _side(self) -> _Side:
        sign = self._sign()
        kind, text = self._next("a number or a metric")
        if kind == "number":
            number = sign * self._number(text)
            if self._peek() == "sign" and self._tokens[0][1] == "*":
                self._tokens.pop(0)
                kind, text = self._next("a metric")
                return self._with_offset(self._reference(kind, text), number)
            return _Side(number)
        if sign < 0:
            raise self._refused("a metric cannot be negated")
        return self._with_offset(self._reference(kind, text), 1.0)

    def _with_offset(self, reference: Address | str, factor: float) -> _Side:
        if self._peek() != "sign":
            return _Side(0.0, reference, factor)
        sign = self._sign()
        kind, text = self._next("a number")
        if kind != "number":
            raise self._refused(f"expected a number in place of {text!r}")
        return _Side(sign * self._number(text), reference, factor)

    def _clause(self, left: _Side, operator: str, right: _Side) -> Clause:
        subject = left.reference
        if not _is_metric(left) or not isinstance(subject, Address):
            raise self._refused("one side of each comparison is a metric, <check id>.<metric>")
        reference = right.reference
        if reference == BASE:
            if subject.on == BASE:
                raise self._refused(f"it compares {subject} with itself; name a variant in front: dp_sgd:{subject}")
            reference = replace(subject, variant=None)
        assert not isinstance(reference, str)
        return Clause(subject, operator, right.offset, reference, right.factor)

    def _reference(self, kind: str, text: str) -> Address | str:
        if (kind, text) == ("word", BASE):
            return BASE
        found = _ADDRESS.fullmatch(text) if kind == "address" else None
        if found is None:
            raise self._refused(f"expected a metric in place of {text!r}")
        return Address(found["variant"], found["check"], found["metric"], found["label"])

    def _number(self, text: str) -> float:
        percent = text.endswith("%")
        number, _, divisor = text.rstrip("%").replace(" ", "").partition("/")
        by = float(divisor or 1)
        value = float(number) / by / (100 if percent else 1) if by else math.nan
        if not math.isfinite(value):
            raise self._refused(f"{text[:40]!r} is no number; write 0.4, 40% or 8/255")
        return value

    def _sign(self) -> float:
        """Takes a plus or minus, if one comes next."""
        if self._peek() != "sign":
            return 1.0
        text = self._tokens.pop(0)[1]
        if text == "*":
            raise self._refused("a factor is a number in front: 0.9 * base")
        return -1.0 if text == "-" else 1.0

    def _peek(self) -> str:
        return self._tokens[0][0] if self._tokens else ""

    def _next(self, wanted: str) -> tuple[str, str]:
        if not self._tokens:
            raise self._refused(f"{wanted} is missing at the end")
        return self._tokens.pop(0)

    def _take(self, kind: str, text: str = "") -> str:
        wanted = text or {"operator": "a comparison (>=, >, <=, < or ==)"}.get(kind, kind)
        found, value = self._next(wanted)
        if found != kind or (text and value != text):
            raise self._refused(f"expected {wanted} in place of {value[:40]!r}")
        return value

    def _refused(self, why: str) -> SpecError:
        return SpecError(
            f"gate {self._expression[:200]!r}: {why}. Write <check id>.<metric> >= <number>, such as "
            "linf.robust_accuracy >= 0.40; a variant goes in front: dp_sgd:performance.accuracy >= 0.8"
        )


def _is_metric(side: _Side) -> bool:
    """Whether the side is a metric and nothing else, which a clause can be about."""
    return isinstance(side.reference, Address) and side.offset == 0 and side.factor == 1
