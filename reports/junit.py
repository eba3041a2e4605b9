"""JUnit XML for CI: one test case per gate, and one for every check or variant that did not finish."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from .escaping import visible
from .gates import gate_value
from .record import AuditRecord, Gate
from .writing import verdict_sentence


def render_junit(record: AuditRecord) -> str:
    """The record as JUnit XML. Inconclusive gates count as failures: anything but a pass is not a pass."""
    cases = [*(_gate_case(record, gate) for gate in record.gates), *_broken_cases(record)]
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "time": f"{record.seconds:.3f}",
    }
    name = _clean(f"auditorch: {record.name}")
    root = ElementTree.Element("testsuites", {"name": name, **counts})
    own = {"skipped": "0", "timestamp": record.created.isoformat()}
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, **own})
    _properties(suite, record)
    suite.extend(cases)
    ElementTree.SubElement(suite, "system-out").text = _clean(verdict_sentence(record))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _gate_case(record: AuditRecord, gate: Gate) -> ElementTree.Element:
    case = _case(f"{record.name}.{gate.variant}", gate.expression)
    if gate.verdict == "pass":
        return case
    tag = "error" if gate.verdict == "error" else "failure"
    count = f", n = {gate.n:,}" if gate.n is not None else ""
    problem = ElementTree.SubElement(case, tag, {"message": _clean(gate.reason or gate.verdict), "type": gate.verdict})
    lines = [f"{gate.expression} on {gate.variant}", f"value {gate_value(gate)}{count}", gate.reason]
    lines += [f"{part.verdict}: {part.expression}, value {gate_value(part)}" for part in gate.parts]
    problem.text = _clean("\n".join(lines))
    return case


def _broken_cases(record: AuditRecord) -> Iterator[ElementTree.Element]:
    for variant in record.variants:
        if variant.status == "error":
            yield _broken(_case(f"{record.name}.variants", variant.id), variant.error)
        for result in variant.results:
            if result.status == "error":
                yield _broken(_case(f"{record.name}.{variant.id}.checks", result.id), result.error)


def _broken(case: ElementTree.Element, reason: str) -> ElementTree.Element:
    reason = _clean(reason or "No reason was recorded.")
    ElementTree.SubElement(case, "error", {"message": reason, "type": "error"}).text = reason
    return case


def _case(classname: str, name: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", {"classname": _clean(classname), "name": _clean(name), "time": "0"})


def _properties(suite: ElementTree.Element, record: AuditRecord) -> None:
    properties = ElementTree.SubElement(suite, "properties")
    values = {
        "verdict": record.verdict,
        "model": record.model.source,
        "model.sha256": record.model.sha256,
        "data": record.data.source,
        "data.sha256": record.data.sha256,
        "seed": str(record.seed),
    }
    for name, value in values.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _clean(value)})


def _clean(text: str) -> str:
    """XML 1.0 has no place for control characters; ElementTree escapes the rest."""
    return visible(text)
