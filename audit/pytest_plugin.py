"""The pytest plugin: gates of a spec as test items, and a fixture for audits of tensors.

Loaded in every pytest run, so it imports nothing heavy until it is used.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from _pytest._code.code import ExceptionInfo, TerminalRepr
    from _pytest.terminal import TerminalReporter

    from ..attacks.threat import Threat
    from ..reports.record import AuditRecord, Gate
    from .remembered import Audits
    from .spec import Spec

_NAME = re.compile(r"(?:.+\.)?audit\.ya?ml")
_VERSION = re.compile(rb"^version\s*:", re.MULTILINE)
_CHECKS = re.compile(rb"^checks\s*:", re.MULTILINE)
_REPORT = "auditorch_report"
_VERDICT = "auditorch_verdict"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("auditorch", "auditorch (model audits)")
    group.addoption(
        "--auditorch-output",
        metavar="DIR",
        help="Folder for audit reports, one sub-folder per spec; pytest's cache folder when left out.",
    )
    group.addoption("--auditorch-device", metavar="DEVICE", help="auto, cpu, mps, cuda or cuda:N; else the spec's.")
    group.addoption(
        "--auditorch-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Overrides a value of the specs, such as data.limit=100. Repeatable.",
    )
    parser.addini(
        "auditorch_collect",
        "Collect every audit.yaml and *.audit.yaml that pytest comes across, not only those named on the command line.",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "audit: a gate of an audit spec (auditorch).")
    config.addinivalue_line(
        "markers",
        'threats("linf 8/255", "l2 0.5"): runs the test once for each threat model, given as `threat` (auditorch).',
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("threats")
    if marker is None or "threat" not in metafunc.fixturenames:
        return
    written = [(" ".join(map(str, one)) if isinstance(one, list | tuple) else str(one)) for one in marker.args]
    wrong = [one for one in written if len(one.split()) != 2]
    if wrong or not written:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: threats are written as norm and radius, "
            f'@pytest.mark.threats("linf 8/255", "l2 0.5"); not {wrong[0] if wrong else "none at all"!r}'
        )
    # The radius keeps its slash in the value only: in an id it would read as a path.
    ids = [one.replace("/", ":").replace(" ", "-") for one in written]
    metafunc.parametrize("threat", written, ids=ids, indirect=True)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> AuditFile | None:
    if not _NAME.fullmatch(file_path.name):
        return None
    if not (parent.session.isinitpath(file_path) or parent.config.getini("auditorch_collect")):
        return None
    head = file_path.read_bytes()
    if not (_VERSION.search(head) and _CHECKS.search(head)):
        return None
    return AuditFile.from_parent(parent, path=file_path)


class AuditFile(pytest.File):
    """A spec: one item per gate, and one for the audit's completeness. The audit runs once, with the first item."""

    _spec: Spec
    _record: AuditRecord | None = None

    def collect(self) -> Iterator[pytest.Item]:
        from .errors import AuditError
        from .spec import load_spec

        try:
            self._spec = load_spec(self.path, self.config.getoption("--auditorch-set") or ())
        except AuditError as error:
            raise self.CollectError(str(error)) from None
        yield CompletenessItem.from_parent(self, name="complete")
        for gate in self._spec.gates:
            # The brackets keep pytest from showing the dots of the expression as "::".
            yield GateItem.from_parent(
                self, name=f"gate[{gate.expression.strip()}]", expression=gate.expression.strip()
            )

    @property
    def output(self) -> Path:
        """Where this spec's report goes."""
        place = self.path.relative_to(self.config.rootpath) if self._below_root() else self.path
        digest = hashlib.sha256(place.as_posix().encode()).hexdigest()[:8]
        chosen = self.config.getoption("--auditorch-output")
        if chosen:
            return Path(self.config.invocation_params.dir, chosen, f"{self.path.stem}-{digest}")
        cache = getattr(self.config, "cache", None)
        folder = Path(cache.mkdir("auditorch")) if cache else self.config.rootpath / "auditorch-report"
        return folder / f"{self.path.stem}-{digest}"

    def record(self) -> AuditRecord:
        """The audit's record; the first call runs the audit."""
        if self._record is None:
            self._record = self._run()
        return self._record

    def _run(self) -> AuditRecord:
        from .progress import Silent, display_for
        from .runner import InterruptedAuditError, run_audit

        device = self.config.getoption("--auditorch-device") or self._spec.device or "auto"
        try:
            with self._uncaptured():
                display = display_for(sys.stderr) if self.config.get_verbosity() > 0 else Silent()
                # Another worker of pytest-xdist may be at it: wait, then take its results over.
                return run_audit(self._spec, self.output, device=device, display=display, wait=True)
        except InterruptedAuditError as error:
            raise KeyboardInterrupt from error

    def _uncaptured(self) -> AbstractContextManager[None]:
        """Lets progress reach the terminal while the audit runs."""
        capture: Any = self.config.pluginmanager.getplugin("capturemanager")
        return capture.global_and_fixture_disabled() if capture else nullcontext()

    def _below_root(self) -> bool:
        return self.path.is_relative_to(self.config.rootpath)


class AuditItem(pytest.Item):
    """What the items of a spec share."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_marker("audit")
        if self.config.pluginmanager.hasplugin("xdist"):
            self.add_marker(pytest.mark.xdist_group(f"auditorch-{self.path.name}"))

    def record(self) -> AuditRecord:
        assert isinstance(self.parent, AuditFile)
        record = self.parent.record()
        self.user_properties.append((_REPORT, str(self.parent.output / "report.html")))
        self.user_properties.append((_VERDICT, f"{record.name}: {record.verdict}"))
        return record

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], style: Any = None) -> str | TerminalRepr:
        from .errors import AuditError

        if isinstance(excinfo.value, AuditFailedError | AuditError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


class GateItem(AuditItem):
    """One gate; passes when the gate does."""

    def __init__(self, expression: str, **options: Any) -> None:
        super().__init__(**options)
        self._expression = expression

    def runtest(self) -> None:
        from .verdict import gate_text

        record = self.record()
        gate = next(gate for gate in record.gates if gate.expression == self._expression)
        self.user_properties += [(f"auditorch_{name}", value) for name, value in _properties(gate)]
        if gate.verdict != "pass":
            report = dict(self.user_properties)[_REPORT]
            raise AuditFailedError(f"{gate_text(gate)}\nReport: {report}")


class CompletenessItem(AuditItem):
    """Passes when every check and variant finished."""

    def runtest(self) -> None:
        from .verdict import problems

        lines = problems(self.record())
        if lines:
            raise AuditFailedError("\n".join(lines))


class AuditFailedError(Exception):
    """A gate did not pass, or the audit did not finish; the message is all that a reader needs."""


@pytest.fixture
def audit(request: pytest.FixtureRequest) -> Audits:
    """Audits of tensors: ``audit.evasion(model, x, y, norm="linf", eps=8/255)``, ``accuracy``, ``calibration_error``,
    ``membership``, ``invariance``, and ``assert_robust``, ``assert_accurate``, ``assert_calibrated``,
    ``assert_private``, ``assert_invariant``. What was measured on the same model and data is taken over from earlier
    runs (pytest --cache-clear forgets it).
    """
    from .remembered import Audits

    cache = getattr(request.config, "cache", None)
    return Audits(Path(cache.mkdir("auditorch"), "measured") if cache else None)


@pytest.fixture
def threat(request: pytest.FixtureRequest) -> Threat:
    """The threat model of this run of a test that ``@pytest.mark.threats("linf 8/255", …)`` marks."""
    from ..attacks.threat import Threat

    given = getattr(request, "param", None)
    if given is None:
        pytest.fail('mark the test with its threat models: @pytest.mark.threats("linf 8/255", "l2 0.5")', pytrace=False)
    norm, eps = given.split()
    return Threat(norm, eps)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    found: dict[str, str] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            properties = dict(getattr(report, "user_properties", ()))
            if _REPORT in properties:
                found[properties[_REPORT]] = properties[_VERDICT]
    if found:
        terminalreporter.section("audits")
        for path, verdict in found.items():
            terminalreporter.line(f"{verdict}  {path}")


def _properties(gate: Gate) -> list[tuple[str, str]]:
    numbers = {"value": gate.value, "ci_low": gate.ci_low, "ci_high": gate.ci_high, "n": gate.n}
    known = [(name, str(value)) for name, value in numbers.items() if value is not None]
    return [("gate", gate.expression), ("gate_verdict", gate.verdict), *known]
