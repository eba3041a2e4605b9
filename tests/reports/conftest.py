"""The example audit and its page, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from auditorch.reports.html import render_html
from auditorch.reports.record import AuditRecord

from .example import example, hostile


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="session")
def record(folder: Path) -> AuditRecord:
    return example(folder)


@pytest.fixture(scope="session")
def page(record: AuditRecord, folder: Path) -> str:
    return render_html(record, folder)


@pytest.fixture(scope="session")
def hostile_record(record: AuditRecord) -> AuditRecord:
    return hostile(record)


@pytest.fixture(scope="session")
def hostile_page(hostile_record: AuditRecord, folder: Path) -> str:
    return render_html(hostile_record, folder)
