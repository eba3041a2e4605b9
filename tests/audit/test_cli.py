"""The command line: exit codes, what goes where, precedence, and no traceback for bad input."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from auditorch.audit.cli import main
from auditorch.reports.record import AuditRecord
from auditorch.reports.schema import read_record
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .runs import write_project

SCRIPT = "from auditorch.audit.cli import main; main()"


def call(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, arguments, env=environment, catch_exceptions=False)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished audit in ``out``."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    assert call("run", str(folder / "audit.yaml"), "-o", str(folder / "out"), "--quiet").exit_code == 0
    return folder


@pytest.fixture
def folder(audited: Path, tmp_path: Path) -> Path:
    shutil.copytree(audited, tmp_path / "project")
    return tmp_path / "project"


def run(folder: Path, *arguments: str, **environment: str) -> Result:
    return call("run", str(folder / "audit.yaml"), "-o", str(folder / "out"), *arguments, environment=environment)


def gated(folder: Path, gate: str) -> None:
    text = (folder / "audit.yaml").read_text()
    (folder / "audit.yaml").write_text(text[: text.index("gates:")] + f"gates:\n  - {gate}\n")


@pytest.mark.parametrize(
    ("gate", "code", "word"),
    [
        ("performance.accuracy >= 0.5", 0, "PASS"),
        ("performance.accuracy <= 0.5", 1, "FAIL"),
        ("performance.accuracy > 0.99", 1, "INCONCLUSIVE"),
        ("performance.top_9_accuracy >= 0", 3, "ERROR"),
    ],
)
def test_exit_code_and_table_tell_the_verdict(folder: Path, gate: str, code: int, word: str) -> None:
    gated(folder, gate)
    done = run(folder)
    assert done.exit_code == code, done.output
    [line] = [line for line in done.stdout.splitlines() if gate in line]
    assert line.startswith(word)
    assert f"Report: {folder / 'out/report.html'}" in done.stdout


def test_results_go_to_stdout_and_progress_to_stderr(folder: Path) -> None:
    (folder / "model.py").write_text((folder / "model.py").read_text() + "\nprint('chatter of the model')\n")
    done = run(folder, "--json", "--fresh")
    record = AuditRecord.model_validate_json(done.stdout)
    assert record.verdict == "pass"
    assert "[1/1] base: Performance on clean data" in done.stderr
    assert "chatter of the model" in done.stderr
    quiet = run(folder, "--quiet")
    assert quiet.stdout == ""
    assert "[1/1]" not in quiet.stderr


def test_a_second_run_takes_results_over(folder: Path) -> None:
    assert "taken over from an earlier run" in run(folder).stderr
    assert "taken over" not in run(folder, "--fresh").stderr


def test_flag_beats_environment_beats_spec(folder: Path) -> None:
    (folder / "audit.yaml").write_text((folder / "audit.yaml").read_text() + "seed: 5\n")

    def seed(*flags: str, **environment: str) -> int:
        return json.loads(run(folder, "--json", *flags, **environment).stdout)["seed"]

    assert seed() == 5
    assert seed(AUDITORCH_SEED="6") == 6
    assert seed("--seed", "7", AUDITORCH_SEED="6") == 7
    assert seed("--set", "seed=8") == 8


def test_output_and_device_come_from_the_environment(folder: Path) -> None:
    wished = {"AUDITORCH_OUTPUT": str(folder / "elsewhere"), "AUDITORCH_DEVICE": "cpu"}
    assert call("run", str(folder / "audit.yaml"), "--quiet", environment=wished).exit_code == 0
    assert (folder / "elsewhere/report.html").is_file()
    refused = call("run", str(folder / "audit.yaml"), environment={**wished, "AUDITORCH_DEVICE": "cuda:99"})
    assert refused.exit_code == 2
    assert "cuda:99" in refused.stderr


def test_limit_only_and_set_reach_the_audit(folder: Path) -> None:
    record = json.loads(run(folder, "--json", "--limit", "10", "--set", "performance.bins=7").stdout)
    assert record["data"]["n"] == 10
    assert record["spec"]["data"]["limit"] == 10
    assert record["variants"][0]["results"][0]["parameters"]["bins"] == 7
    assert "Did you mean 'performance'" in run(folder, "--only", "perfomance").stderr


def damage(folder: Path, what: str) -> None:
    spec = folder / "audit.yaml"
    match what:
        case "no spec":
            spec.unlink()
        case "not yaml":
            spec.write_text("version: [1")
        case "unknown check":
            spec.write_text(spec.read_text().replace("[performance]", "[perfomance]"))
        case "wrong type":
            spec.write_text(spec.read_text() + "seed: many\n")
        case "no model":
            (folder / "model.py").unlink()
        case "no data":
            (folder / "test.npz").unlink()
        case "broken model":
            (folder / "model.py").write_text("def build():\n    return 1 / 0\n")
        case "no python":
            (folder / "model.py").write_text("def build(:\n")
        case "broken weights":
            (folder / "model.safetensors").write_bytes(b"\0" * 100)
        case "bad gate":
            gated(folder, "performance.accuracy => 1")
        case "folder":
            spec.unlink()
            spec.mkdir()
        case "output is a file":
            shutil.rmtree(folder / "out")
            (folder / "out").write_text("")


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("no spec", 2, "no such file"),
        ("not yaml", 2, "audit.yaml:1"),
        ("unknown check", 2, "Did you mean 'performance'?"),
        ("wrong type", 2, "seed"),
        ("no model", 2, "model.py: no such file"),
        ("no data", 2, "test.npz: no such file"),
        ("broken model", 2, "division by zero"),
        ("no python", 2, "model.py cannot be imported"),
        ("broken weights", 3, "model.safetensors"),
        ("bad gate", 2, "Write <check id>.<metric>"),
        ("folder", 2, "this is a folder"),
        ("output is a file", 2, "cannot be written"),
    ],
)
def test_bad_input_ends_in_a_message_and_never_in_a_traceback(folder: Path, what: str, code: int, message: str) -> None:
    damage(folder, what)
    done = run(folder)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.output
    assert done.stdout == ""


def test_a_broken_check_gives_exit_3_and_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from auditorch.audit.checks.performance import Performance

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Performance, "run", fail)
    done = run(folder, "--fresh")
    assert done.exit_code == 3
    assert "ERROR  base:performance: RuntimeError: broken (traceback: results/base.performance.log)" in done.stdout
    assert read_record(folder / "out").verdict == "error"


def test_an_internal_error_is_one_line_and_a_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from auditorch.audit import runner

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(runner, "make_plan", fail)
    done = run(folder)
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1
    log = Path(done.stderr.rpartition("Traceback: ")[2].strip())
    assert "KeyError: 'surprise'" in log.read_text()
    log.unlink()


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    write_project(tmp_path)
    (tmp_path / "model.py").write_text(
        "import time\nfrom torch import nn\n\nclass Slow(nn.Sequential):\n    def forward(self, x):\n"
        "        if len(x) > 8:\n            print('at work', flush=True)\n            time.sleep(60)\n"
        "        return super().forward(x)\n\ndef build():\n    return Slow(nn.Flatten(), nn.Linear(64, 4))\n"
    )
    command = [sys.executable, "-c", SCRIPT, "run", "audit.yaml", "-o", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while "at work" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "finished results are kept" in rest
    assert "Traceback" not in rest
    record = read_record(tmp_path / "out")
    assert record.variants[0].results[0].error == "not run: the audit was interrupted"


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, "schema", "record"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_validate_names_every_missing_file(folder: Path) -> None:
    done = call("validate", str(folder / "audit.yaml"))
    assert done.exit_code == 0
    assert "valid; 1 checks (performance), 0 variants, 1 gates" in done.stdout
    (folder / "model.safetensors").unlink()
    (folder / "test.npz").unlink()
    done = call("validate", str(folder / "audit.yaml"))
    assert done.exit_code == 2
    assert "model.weights: model.safetensors: no such file" in done.stderr
    assert "data.source: test.npz: no such file" in done.stderr


def test_the_first_spec_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "specs dir").mkdir()
    monkeypatch.chdir(folder)
    spec = "specs dir/audit.yaml"
    arguments = ["--model", "model.py:build", "--weights", "model.safetensors", "--data", "test.npz"]
    done = call("init", *arguments, "--train", "test.npz", "-o", spec)
    assert done.exit_code == 0, done.output
    text = Path(spec).read_text()
    assert "factory: ../model.py:build" in text
    assert "membership: {train: ../test.npz}" in text
    done = call("run", spec, "-o", "first", "--only", "performance", "--only", "linf", "--set", "linf.attack=fgsm")
    assert done.exit_code == 0, done.output
    assert call("init", *arguments, "-o", spec).exit_code == 2
    assert call("init", *arguments, "-o", spec, "--force").exit_code == 0
    assert Path(spec).read_text() != text
    for wrong in (["--model", "model.py", "--data", "test.npz"], ["--model", "model.py:build", "--data", "no.npz"]):
        done = call("init", *wrong, "-o", "new.yaml")
        assert done.exit_code == 2
        assert not Path("new.yaml").exists()


def test_the_first_spec_uncommented_is_still_a_spec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from auditorch.audit.first_spec import Wishes, first_spec
    from auditorch.audit.spec import parse_spec

    monkeypatch.chdir(folder)
    text = first_spec(Wishes("model.py:build", "test.npz", "model.safetensors", "test.npz"), folder)
    opened = text.replace("# variants:", "variants:").replace("# gates:", "gates:").replace("#   - ", "  - ")
    spec = parse_spec(opened.replace("  # preprocessing", "  preprocessing"), folder)
    assert [variant.id for variant in spec.variants] == ["adversarial_training", "dp_sgd"]
    assert len(spec.gates) == 2


@pytest.mark.parametrize("name", ["null", "true", "1e5", "a: b", "x #y", '"quoted"', "- dash", "ünï", "*star", "@at"])
def test_odd_file_names_survive_in_the_first_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from auditorch.audit.first_spec import Wishes, first_spec
    from auditorch.audit.spec import parse_spec

    write_project(tmp_path)
    shutil.move(tmp_path / "test.npz", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    spec = parse_spec(first_spec(Wishes("model.py:build", name, train=name), tmp_path), tmp_path)
    assert spec.data.source == name
    assert spec.checks[-1].files() == (name,)


def test_list_and_show(folder: Path) -> None:
    assert "evasion" in call("list", "checks").stdout
    assert "performance.accuracy" in call("list", "metrics").stdout
    everything = call("list").stdout
    assert everything.index("checks:") < everything.index("attacks:") < everything.index("defenses:")
    assert "bins (int, default 15)" in call("show", "performance").stdout
    unknown = call("show", "performnce")
    assert unknown.exit_code == 2
    assert "Did you mean 'performance'?" in unknown.stderr


def test_scan_tells_clean_from_dangerous(folder: Path) -> None:
    done = call("scan", str(folder / "model.safetensors"))
    assert done.exit_code == 0
    assert done.stdout.startswith("clean")
    # A protocol 0 pickle, written out, that would call os.system.
    (folder / "evil.bin").write_bytes(b"cos\nsystem\n(S'echo hacked'\ntR.")
    done = call("scan", str(folder / "evil.bin"), "--json")
    assert done.exit_code == 3
    [report] = json.loads(done.stdout)
    assert report["status"] == "dangerous"
    assert call("scan", str(folder / "missing.bin")).exit_code == 2


def test_verify_says_what_fails(folder: Path) -> None:
    done = call("verify", str(folder / "out"))
    assert done.exit_code == 0
    assert "ok      base:performance: the model predicts as recorded" in done.stdout
    (folder / "out/evidence/base/performance.safetensors").write_bytes(b"forged")
    done = call("verify", str(folder / "out"), "--no-model", "--quiet")
    assert done.exit_code == 1
    assert done.stdout.startswith("FAILED  evidence/base/performance.safetensors is the recorded file")


def test_report_writes_the_formats_asked_for(folder: Path) -> None:
    (folder / "out/report.html").unlink()
    (folder / "out/summary.md").unlink()
    done = call("report", str(folder / "out"), "--format", "html")
    assert done.stdout.splitlines() == [str(folder / "out/report.html")]
    assert (folder / "out/report.html").is_file()
    assert not (folder / "out/summary.md").exists()
    printed = call("report", str(folder / "out"), "--format", "json").stdout
    assert AuditRecord.model_validate_json(printed) == read_record(folder / "out")


def test_spec_and_record_obey_the_printed_schemas(folder: Path) -> None:
    record = json.loads((folder / "out/audit.json").read_text())
    jsonschema.validate(record, json.loads(call("schema", "record").stdout))
    jsonschema.validate(record["spec"], json.loads(call("schema", "spec").stdout))


@pytest.mark.parametrize("name", ["x" * 900, "a\\0b.npz"], ids=["too long", "zero byte"])
def test_a_file_name_that_no_system_takes_is_a_clean_error(folder: Path, name: str) -> None:
    text = (folder / "audit.yaml").read_text()
    (folder / "audit.yaml").write_text(text.replace("source: test.npz", f'source: "{name}"'))
    done = call("validate", str(folder / "audit.yaml"))
    assert done.exit_code == 2
    assert "no such file" in done.stderr


def test_names_cannot_steer_the_terminal(folder: Path) -> None:
    from auditorch.audit.verdict import verdict_table

    record = read_record(folder / "out")
    gate = record.gates[0].model_copy(update={"reason": "\x1b[2Jgone\r\u202e"})
    text = verdict_table(record.model_copy(update={"gates": (gate,)}))
    assert "\\x1b[2Jgone\\r\\u202e" in text
    assert all(char == "\n" or char.isprintable() for char in text)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 200), insert=st.text(max_size=8), length=st.integers(0, 12))
def test_mutated_specs_never_end_in_a_traceback(folder: Path, cut: int, insert: str, length: int) -> None:
    text = (folder / "audit.yaml").read_text()
    mutated = folder / "mutated.yaml"
    mutated.write_bytes((text[:cut] + insert + text[cut + length :]).encode("utf-8", "surrogatepass"))
    done = call("validate", str(mutated))
    assert done.exit_code in (0, 2), done.output
    assert "Internal error" not in done.stderr
