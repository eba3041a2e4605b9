"""SARIF 2.1.0: findings as results that code scanners show, with help, standards and the audited file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from .escaping import one_line, slug, visible
from .findings import FoundOn, collect
from .record import AuditRecord, Result
from .writing import utc

_LEVELS = {"critical": "error", "high": "error", "medium": "warning", "low": "note", "info": "note"}
_SECURITY_SEVERITY = {"critical": "9.5", "high": "8.0", "medium": "5.5", "low": "3.0", "info": "0.0"}
"""The scale (CVSS bands) by which GitHub sorts code scanning alerts."""


def render_sarif(record: AuditRecord) -> str:
    """The record's findings as a SARIF log with one run."""
    found = collect(record)
    rules = list({rule_id(entry): _rule(record, entry) for entry in reversed(found)}.values())[::-1]
    index = {rule["id"]: place for place, rule in enumerate(rules)}
    run = {
        "tool": {
            "driver": {
                "name": "auditorch",
                "semanticVersion": _version(record),
                "rules": rules,
            }
        },
        "invocations": [_invocation(record)],
        "artifacts": [_artifact(record)],
        "results": [_result(record, entry, index) for entry in found],
        "columnKind": "unicodeCodePoints",
        "properties": {"verdict": record.verdict, "seed": record.seed, "modelSha256": visible(record.model.sha256)},
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def rule_id(entry: FoundOn) -> str:
    """Stable across runs: the check and the finding's title without its numbers."""
    return f"{slug(entry.check_kind)}/{slug(re.sub(r'[0-9]+([.,][0-9]+)*', '', entry.finding.title))}"


def _rule(record: AuditRecord, entry: FoundOn) -> dict[str, Any]:
    finding = entry.finding
    result = _source(record, entry)
    summary, references, standards = (result.summary, result.references, result.standards) if result else ("", (), ())
    lines = [finding.remedy or "See the report for method and evidence.", *references]
    return {
        "id": rule_id(entry),
        "name": _pascal(finding.title),
        "shortDescription": {"text": one_line(finding.title) or "Finding"},
        "fullDescription": {"text": visible(summary or finding.detail) or "Finding"},
        "help": {"text": visible("\n".join(lines)), "markdown": _markdown(lines)},
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
        "properties": {
            "tags": list(dict.fromkeys(["security", *map(one_line, (*finding.standards, *standards))])),
            "security-severity": _SECURITY_SEVERITY[finding.severity],
            "precision": "high",
        },
    }


def _result(record: AuditRecord, entry: FoundOn, index: dict[str, int]) -> dict[str, Any]:
    finding, rule = entry.finding, rule_id(entry)
    names = ", ".join(entry.variants)
    key = "\n".join((rule, entry.check, names))
    return {
        "ruleId": rule,
        "ruleIndex": index[rule],
        "level": _LEVELS[finding.severity],
        "message": {"text": visible(f"{finding.title}: {finding.detail} (on {names})")},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(record), "index": 0}},
                "logicalLocations": [
                    {"fullyQualifiedName": visible(f"{variant}:{entry.check}"), "kind": "module"}
                    for variant in entry.variants
                ],
            }
        ],
        "partialFingerprints": {"auditorch/v1": hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()},
        "properties": {"severity": finding.severity, "standards": [one_line(text) for text in finding.standards]},
    }


def _invocation(record: AuditRecord) -> dict[str, Any]:
    broken = [
        (f"{variant.id}:{result.id}", result.error)
        for variant in record.variants
        for result in variant.results
        if result.status == "error"
    ]
    broken += [(variant.id, variant.error) for variant in record.variants if variant.status == "error"]
    notes = [
        {"level": "error", "message": {"text": visible(f"{where} did not finish: {reason or 'no reason recorded'}")}}
        for where, reason in broken
    ]
    return {
        "executionSuccessful": not broken,
        **_began(record),
        "endTimeUtc": utc(record.created),
        "toolExecutionNotifications": notes,
    }


def _began(record: AuditRecord) -> dict[str, Any]:
    """Nothing where a changed record tells a time before all calendars, or none."""
    try:
        return {"startTimeUtc": utc(record.created - timedelta(seconds=record.seconds))}
    except (OverflowError, ValueError):
        return {}


def _artifact(record: AuditRecord) -> dict[str, Any]:
    artifact: dict[str, Any] = {"location": {"uri": _uri(record)}, "description": {"text": "The audited model"}}
    if re.fullmatch(r"[0-9a-f]{64}", record.model.sha256):
        artifact["hashes"] = {"sha-256": record.model.sha256}
    return artifact


def _uri(record: AuditRecord) -> str:
    """The model's file as a relative reference: a colon is quoted, so that no name becomes a scheme."""
    path = (record.model.weights or record.model.source).replace("\\", "/").lstrip("/")
    return quote(path.encode("utf-8", "replace"), safe="/") or "model"


def _source(record: AuditRecord, entry: FoundOn) -> Result | None:
    """The result that holds the finding; None for a finding of the variant itself."""
    results = (variant.result(entry.check) for variant in record.variants if variant.id in entry.variants)
    return next((result for result in results if result and entry.finding in result.findings), None)


def _version(record: AuditRecord) -> str:
    return one_line(record.tool.get("version", "")) or "0"


def _pascal(title: str) -> str:
    return "".join(word.capitalize() for word in slug(title).split("-"))


def _markdown(lines: Sequence[str]) -> str:
    escaped = (re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", visible(line)) for line in lines)
    return "\n\n".join(escaped)
