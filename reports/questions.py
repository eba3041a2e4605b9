"""The seven questions that a report answers, and which of them a check belongs to."""

from __future__ import annotations

from .record import AuditRecord, Result

ACCURATE = "Is it accurate?"
FOOLED = "Can it be fooled?"
WEAR = "Does it survive wear?"
WHY = "Why does it decide so?"
LEAK = "What does it leak?"
DEFENSES = "What do the defenses buy?"
FILE = "Can the file be trusted?"
ELSE = "What else was examined?"

ORDER = (ACCURATE, FOOLED, WEAR, WHY, LEAK, DEFENSES, FILE, ELSE)

_KINDS = {
    "performance": ACCURATE,
    "calibration": ACCURATE,
    "evasion": FOOLED,
    "patch": FOOLED,
    "universal": FOOLED,
    "corruption": WEAR,
    "shift": WEAR,
    "attribution": WHY,
    "membership": LEAK,
    "model_file": FILE,
    "backdoor": FILE,
}
"""By the name of the check, or an end of it: ``text_evasion`` is an evasion check."""

_STANDARDS = {
    "NISTAML.022": FOOLED,
    "NISTAML.025": FOOLED,
    "NISTAML.031": LEAK,
    "NISTAML.032": LEAK,
    "NISTAML.033": LEAK,
    "NISTAML.05": FILE,
    "NISTAML.013": FILE,
    "NISTAML.023": FILE,
    "EU AI Act Art. 15(3)": ACCURATE,
    "EU AI Act Art. 15(4)": WEAR,
}
"""Where the name says nothing, the first standard that does."""


def chapter_of(result: Result) -> str:
    """The question that a check's result belongs under."""
    if result.question in ORDER:
        return result.question
    named = [question for kind, question in _KINDS.items() if result.check == kind or result.check.endswith(f"_{kind}")]
    tagged = [_STANDARDS[tag] for tag in result.standards if tag in _STANDARDS]
    return next(iter((*named, *tagged)), ELSE)


def unanswered(record: AuditRecord) -> list[str]:
    """Questions that no check of the record belongs to; a report says so, since silence would read as safety."""
    asked = {chapter_of(result) for variant in record.variants for result in variant.results}
    return [question for question in ORDER if question not in (*asked, DEFENSES, ELSE)]
