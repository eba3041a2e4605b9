"""The folders are the architecture: imports point one way, and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "attacks": set(),
    "defenses": {"attacks"},
    "privacy": {"attacks"},
    "reports": {"attacks"},
    "audit": {"attacks", "defenses", "privacy", "reports"},
}
HEAVY = ("torch", "numpy", "scipy", "sklearn", "pydantic", "captum", "opacus", "art", "yaml", "jinja2", "rich")


def sources(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / folder).rglob("*.py"))


def folders_of(path: Path) -> set[str]:
    """The other folders that a file imports from, read from its syntax."""
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.module):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        if level == 0 or level > len(package):  # absolute, or up to where the folders lie side by side
            found |= {name.partition(".")[0] for name in names}
    return found & {*MAY_IMPORT, "auditorch"} - {package[0]}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    files = list(sources(folder))
    assert files
    wrong = {str(path.relative_to(ROOT)): names for path in files if (names := folders_of(path) - MAY_IMPORT[folder])}
    assert wrong == {}


def test_the_test_sees_imports_across_folders() -> None:
    assert "attacks" in folders_of(ROOT / "audit/assertions.py")
    assert "privacy" in folders_of(ROOT / "audit/assertions.py")
    assert folders_of(ROOT / "attacks/threat.py") == set()
    assert "reports" in folders_of(ROOT / "audit/checks/base.py")


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``code``."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_package_by_itself_imports_nothing_heavy(folder: str) -> None:
    assert imported_by(f"import auditorch.{folder}") & set(HEAVY) == set()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "from click.testing import CliRunner; from auditorch.audit.cli import main\n"
        "for arguments in ['--help'], ['run', '--help'], ['--version']:\n"
        "    done = CliRunner().invoke(main, arguments); assert done.exit_code == 0, done.output"
    )
    assert imported_by(code) & set(HEAVY) == set()


def test_the_pytest_plugin_imports_nothing_heavy() -> None:
    assert imported_by("import auditorch.audit.pytest_plugin") & set(HEAVY) == set()


def test_the_names_of_the_registry_come_without_their_modules() -> None:
    assert imported_by("from auditorch.audit.registry import names; names('attacks')") & set(HEAVY) == set()
