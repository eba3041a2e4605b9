"""The documentation is complete, up to date, and says only what works."""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from auditorch.attacks.threat import Threat
from auditorch.audit import catalog, reference, registry
from auditorch.audit.cli import main
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec, parse_spec
from auditorch.audit.verify import verify
from auditorch.reports.render import FILES
from click.testing import CliRunner

from .audit.runs import write_project

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("examples/**/*.md")])
EXAMPLE = ROOT / "examples/third_party_check"


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and content of each fenced block in a language."""
    for page in PAGES:
        for found in re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            yield page.relative_to(ROOT).as_posix(), found


def ids(found: list[tuple[str, str]]) -> list[str]:
    return [f"{page}-{i}" for i, (page, _) in enumerate(found)]


@pytest.mark.parametrize("name", reference.pages())
def test_reference_is_up_to_date(name: str) -> None:
    written = (ROOT / "docs/reference" / name).read_text("utf-8")
    assert written == reference.pages()[name], "run `make docs`"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in catalog.KINDS for name in registry.BUILTIN[kind]])
def test_everything_registered_is_documented(kind: registry.Kind, name: str) -> None:
    cls = registry.load(kind, name)
    _, documentation, options, metrics, *_ = catalog.sections(kind, name)
    assert len(" ".join(documentation.lines)) > 30
    if kind == "checks":
        assert cls.title
        assert cls.question
        assert metrics.lines
        assert all(line.partition(": ")[2] for line in metrics.lines)
    if kind != "attacks":
        undescribed = [
            line for line in options.lines if "): " not in line and not line.startswith(("id ", "variants "))
        ]
        assert undescribed == []
    assert f"## {name}\n" in (ROOT / f"docs/reference/{kind}.md").read_text("utf-8")


def test_every_command_and_option_has_a_description() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        assert [option.name for option in options if not option.help] == [], name
        assert f"## {name}\n" in (ROOT / "docs/reference/commands.md").read_text("utf-8")


def test_every_file_of_the_output_folder_is_named() -> None:
    page = (ROOT / "docs/quick-start.md").read_text("utf-8")
    assert [name for name in FILES.values() if f"`{name}`" not in page] == []


SPECS = [(page, block) for page, block in blocks("yaml") if block.startswith("version: 1")]


@pytest.mark.parametrize(("page", "block"), SPECS, ids=ids(SPECS))
def test_specs_in_pages_are_valid(page: str, block: str) -> None:
    assert parse_spec(block, ROOT).checks


COMMANDS = [
    (page, line.strip())
    for page, block in blocks("sh")
    for line in block.splitlines()
    if line.strip().startswith("auditorch ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_commands_in_pages_exist(page: str, line: str) -> None:
    check_command(line)


def check_command(line: str) -> None:
    """That a command line names a command, options that it has, and as many arguments as it takes."""
    _, name, *arguments = shlex.split(line.partition("#")[0])
    command = main.commands[name]
    command.make_context(name, [argument for argument in arguments if argument != "..."], resilient_parsing=False)


PYTHON = list(blocks("python"))


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=ids(PYTHON))
def test_python_in_pages_compiles_and_imports(page: str, block: str) -> None:
    tree = ast.parse(block)
    imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), page, "exec"), {})


def test_the_attack_of_the_page_is_one() -> None:
    [block] = [block for page, block in PYTHON if "class Brighter" in block]
    space: dict[str, Any] = {"__name__": "page"}
    module = type(sys)("page")
    sys.modules["page"] = module
    exec(block, space)
    del sys.modules["page"]
    x, threat = torch.full((2, 1, 2, 2), 0.5), Threat("linf", 0.1)
    found = space["Brighter"]()(torch.nn.Flatten(), x, torch.zeros(2).long(), threat)
    assert torch.allclose(found, x + 0.1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_pipelines_use_what_exists(name: str) -> None:
    text = (ROOT / "examples/ci" / name).read_text("utf-8")
    assert yaml.safe_load(text)
    lines = re.findall(r"^\s*(?:- (?:run: )?|run: )(auditorch .*)$", text, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        check_command(line)
    for file in re.findall(r"audit-report/([\w.-]+\.\w+)", text):
        assert file in FILES.values()


def test_hooks_call_commands_and_match_their_files() -> None:
    hooks = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))}
    for hook in hooks.values():
        check_command(f"{hook['entry']} file")
    scanned = re.compile(hooks["auditorch-scan"]["files"])
    assert all(scanned.search(name) for name in ("a/model.safetensors", "m.pt", "data.npz", "x.pkl"))
    assert not scanned.search("model.py")
    specs = re.compile(hooks["auditorch-validate"]["files"])
    assert all(specs.search(name) for name in ("audit.yaml", "a/audit.yml", "small.audit.yaml"))
    assert not specs.search("laudit.yaml")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package, as installing it would leave it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    info = tmp_path / "site" / f"auditorch_mirror-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("installed")
def test_the_third_party_check_works_like_a_built_in_one(tmp_path: Path) -> None:
    assert "mirror" in registry.names("checks")
    assert "consistency: Share of samples" in CliRunner().invoke(main, ["show", "mirror"]).stdout
    path = write_project(tmp_path)
    text = path.read_text("utf-8").replace("[performance]", "[performance, mirror: {upside_down: true}]")
    text = text.replace("[performance, mirror: {upside_down: true}]", "[performance, {mirror: {upside_down: true}}]")
    path.write_text(text + "  - mirror.consistency <= 1\n  - mirror.consistencey >= 0\n", encoding="utf-8")
    assert "Did you mean 'consistency'" in CliRunner().invoke(main, ["validate", str(path)]).stderr
    path.write_text(text + "  - mirror.consistency <= 1\n", encoding="utf-8")
    record = run_audit(load_spec(path), tmp_path / "out")
    result = record.variants[0].result("mirror")
    assert result is not None
    assert result.status == "ok", result.error
    assert record.gates[-1].verdict == "pass"
    assert [claim.what for claim in verify(tmp_path / "out") if not claim.ok] == []
    assert "Does it survive wear?" in (tmp_path / "out/report.html").read_text("utf-8")


@pytest.mark.slow
def test_the_third_party_package_installs(tmp_path: Path) -> None:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path), str(EXAMPLE)], check=True, timeout=300)
    assert (tmp_path / "auditorch_mirror.py").is_file()
    [entries] = tmp_path.glob("*.dist-info/entry_points.txt")
    assert "mirror = auditorch_mirror:Mirror" in entries.read_text("utf-8")
