"""The runner: one failing part never takes the others with it, and a resumed run equals an uninterrupted one."""

import errno
import io
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit import runner as runner_module
from auditorch.audit.checks.performance import Performance
from auditorch.audit.errors import DataError, OutputError, SpecError, UnsupportedError
from auditorch.audit.guard import as_found, is_out_of_memory, seeded
from auditorch.audit.progress import Forecast, Lines, RichBars, Silent, Step, display_for
from auditorch.audit.runner import InterruptedAuditError, run_audit
from auditorch.audit.spec import Spec
from auditorch.audit.target import Target
from auditorch.reports.record import AuditRecord, Result
from auditorch.reports.schema import read_record
from safetensors.torch import load_file, save_file
from torch import nn

from .runs import Breaks, Draws, Hungry, Killed, NeedsGradients, Shifted, toy_spec, without_times, write_project


def found(record: AuditRecord, check: str, variant: str = "base") -> Result:
    one = record.variant(variant)
    assert one is not None
    result = one.result(check)
    assert result is not None
    return result


def ran(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_a_run_writes_record_reports_and_evidence(tmp_path: Path) -> None:
    spec = toy_spec(tmp_path, Performance(id="performance"), gates=("performance.accuracy >= 0.8",))
    record = run_audit(spec, tmp_path / "out")
    assert record.verdict == "pass"
    assert found(record, "performance").status == "ok"
    assert read_record(tmp_path / "out") == record
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"audit.json", "audit.json.sha256", "report.html", "junit.xml", "report.sarif", "summary.md"}
    assert (tmp_path / "out/evidence/base/performance.safetensors").is_file()
    assert record.data.n == 40
    assert record.data.shape == (1, 8, 8)


def test_the_record_names_no_machine_and_no_person(tmp_path: Path) -> None:
    run_audit(toy_spec(tmp_path, Breaks(id="b"), Draws(id="d")), tmp_path / "out")
    text = (tmp_path / "out/audit.json").read_text()
    assert str(tmp_path) not in text
    assert socket.gethostname() not in read_record(tmp_path / "out").environment.values()


@pytest.mark.parametrize(
    ("error", "message"),
    [("audit", "the model said no"), ("plain", "ZeroDivisionError: by nothing"), ("exit", "SystemExit: 4")],
)
def test_a_check_that_fails_leaves_the_others_alone(tmp_path: Path, error: str, message: str) -> None:
    alone = run_audit(toy_spec(tmp_path, Draws(id="d")), tmp_path / "alone")
    both = run_audit(
        toy_spec(tmp_path, Breaks(id="b", error=error), Draws(id="d"), gates=("d.share >= 0", "b.x >= 1")),
        tmp_path / "both",
    )
    assert found(both, "b").status == "error"
    assert found(both, "b").error.startswith(message)
    assert found(both, "d").metrics == found(alone, "d").metrics
    assert both.verdict == "error"
    assert [gate.verdict for gate in both.gates] == ["pass", "error"]
    assert any(text.startswith("Breaks (b) on base:") for text in both.not_covered)


def test_an_unexpected_error_leaves_its_traceback_in_the_log_that_the_message_names(tmp_path: Path) -> None:
    record = run_audit(toy_spec(tmp_path, Breaks(id="b")), tmp_path / "out")
    assert found(record, "b").error.endswith("(traceback: results/base.b.log)")
    assert 'raise ZeroDivisionError("by nothing")' in (tmp_path / "out/results/base.b.log").read_text()


def test_a_check_that_was_mended_is_run_again(tmp_path: Path) -> None:
    spec = toy_spec(tmp_path, Breaks(id="b"))
    run_audit(spec, tmp_path / "out")
    mended = toy_spec(tmp_path, Draws(id="b"))
    assert found(run_audit(mended, tmp_path / "out"), "b").status == "ok"


def test_a_check_that_cannot_examine_the_target_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = runner_module.load

    def black_box(*arguments: Any) -> tuple[Target, Any]:
        target, samples = load(*arguments)
        return replace(target, access=frozenset({"scores", "labels"})), samples

    monkeypatch.setattr(runner_module, "load", black_box)
    record = run_audit(
        toy_spec(tmp_path, NeedsGradients(id="g"), Draws(id="d"), gates=("g.share >= 0", "d.share >= 0")),
        tmp_path / "out",
    )
    assert found(record, "g").status == "skipped"
    assert found(record, "g").error == "it needs gradients of the model; this target gives labels, scores"
    assert [gate.verdict for gate in record.gates] == ["error", "pass"]
    assert any("Draws (g) on base: it needs gradients" in text for text in record.not_covered)


def test_each_variant_gets_every_check_unless_narrowed(tmp_path: Path) -> None:
    spec = toy_spec(
        tmp_path, Draws(id="d"), Draws(id="n", variants=("v",)), variants=(Shifted(id="v"), Shifted(id="w", by=2))
    )
    record = run_audit(spec, tmp_path / "out")
    assert {v.id: [r.id for r in v.results] for v in record.variants} == {"base": ["d"], "v": ["d", "n"], "w": ["d"]}
    assert "Draws (n) was not asked for on base, w." in record.not_covered
    logits = {v.id: found(record, "d", v.id).evidence[0].sha256 for v in record.variants}
    assert len(set(logits.values())) == 3  # each variant answered for itself
    base, w = (found(record, "d", name).metrics for name in ("base", "w"))
    assert base == w  # the same seed on every variant: comparisons are paired


def test_a_variant_that_cannot_be_built_is_told_and_its_checks_do_not_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = toy_spec(
        tmp_path,
        Draws(id="d", log=str(log)),
        variants=(Shifted(id="v", fails=True), Shifted(id="w")),
        gates=("v:d.share >= 0", "w:d.share >= 0"),
    )
    record = run_audit(spec, tmp_path / "out")
    broken = record.variant("v")
    assert broken is not None
    assert broken.status == "error"
    assert broken.error.startswith("RuntimeError: diverged (traceback: results/v.model.log)")
    assert found(record, "d", "v").status == "skipped"
    assert found(record, "d", "w").status == "ok"
    assert ran(log) == ["base:d", "w:d"]
    assert [gate.verdict for gate in record.gates] == ["error", "pass"]
    assert record.verdict == "error"


def test_a_variant_is_reloaded_from_its_weights_into_its_own_structure(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = toy_spec(tmp_path, Draws(id="d"), variants=(Shifted(id="v", by=3, log=str(log)),))
    first = run_audit(spec, tmp_path / "out")
    again = run_audit(spec, tmp_path / "out")
    assert ran(log) == ["build", "v"]
    assert without_times(first) == without_times(again)
    other = run_audit(toy_spec(tmp_path, Draws(id="d"), variants=(Shifted(id="v", by=4),)), tmp_path / "other")
    assert found(other, "d", "v").evidence != found(first, "d", "v").evidence


def test_a_second_run_computes_nothing_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = toy_spec(tmp_path, Draws(id="a", log=str(log)), Draws(id="b", log=str(log)))
    first = run_audit(spec, tmp_path / "out")
    again = run_audit(spec, tmp_path / "out")
    assert ran(log) == ["base:a", "base:b"]
    assert without_times(first) == without_times(again)
    run_audit(spec, tmp_path / "out", fresh=True)
    assert ran(log) == ["base:a", "base:b"] * 2


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("nothing", []),
        ("config", ["base:a"]),
        ("file", ["base:b"]),
        ("data", ["base:a", "base:b"]),
        ("weights", ["base:a", "base:b"]),
        ("seed", ["base:a", "base:b"]),
        ("version", ["base:a", "base:b"]),
        ("surroundings", ["base:a", "base:b"]),
        ("narrowed", []),
        ("evidence", ["base:b"]),
    ],
)
def test_a_changed_input_recomputes_what_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, again: list[str]
) -> None:
    log, train = tmp_path / "log", tmp_path / "train.npz"
    write_project(tmp_path)
    np.savez(train, x=np.zeros(3))
    spec = toy_spec(tmp_path, Draws(id="a", log=str(log)), Draws(id="b", log=str(log), train="train.npz"))
    run_audit(spec, tmp_path / "out")
    log.unlink()
    a, b = spec.checks
    match change:
        case "config":
            spec = replace(spec, checks=(a.model_copy(update={"scale": 2.0}), b))
        case "file":
            np.savez(train, x=np.ones(3))
        case "data":
            with np.load(tmp_path / "test.npz") as data:
                np.savez(tmp_path / "test.npz", x=data["x"][:39], y=data["y"][:39])
        case "weights":
            state = load_file(tmp_path / "model.safetensors")
            save_file({key: value * 2 for key, value in state.items()}, tmp_path / "model.safetensors")
        case "seed":
            spec = replace(spec, seed=1)
        case "version":
            monkeypatch.setattr(Draws, "version", 2)
        case "surroundings":
            monkeypatch.setattr(Draws, "surroundings", lambda _: {"wordnet": 1})
        case "narrowed":
            spec = replace(spec, checks=(a.model_copy(update={"variants": ("base",)}), b))
        case "evidence":
            (tmp_path / "out/evidence/base/b.safetensors").write_bytes(b"changed")
    assert found(run_audit(spec, tmp_path / "out"), "a").status == "ok"
    assert ran(log) == again


def test_results_depend_neither_on_order_nor_on_what_ran_before(tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    one = run_audit(toy_spec(tmp_path, Draws(id="a"), Draws(id="b")), tmp_path / "one")
    torch.manual_seed(2)
    np.random.seed(2)
    two = run_audit(toy_spec(tmp_path, Draws(id="b"), Draws(id="a")), tmp_path / "two")
    for check in ("a", "b"):
        assert found(one, check).metrics == found(two, check).metrics
    assert found(one, "a").metrics != found(one, "b").metrics


def test_global_random_states_are_given_back() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    with seeded(9):
        torch.rand(3)
        np.random.rand(3)
        random.random()
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_module_is_given_back_as_found() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    module[1].train()
    module[0].bias.requires_grad_(False)
    with as_found(module):
        module.train()
        module.requires_grad_(True)
        module(torch.ones(1, 2)).sum().backward()
    assert [part.training for part in module.modules()] == [False, False, True]
    assert [parameter.requires_grad for parameter in module.parameters()] == [True, False]
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("how", ["cuda", "cpu", "python"])
def test_when_memory_runs_out_the_batch_is_halved(tmp_path: Path, how: str) -> None:
    result = found(run_audit(toy_spec(tmp_path, Hungry(id="h", how=how, fits=40)), tmp_path / "out"), "h")
    assert result.status == "ok"
    assert result.warnings == ("Memory ran out; finished with a batch size of 32.",)
    assert [item.path for item in result.evidence].count("evidence/base/h-partial.safetensors") == 1


def test_when_one_sample_is_too_much_the_check_fails_and_the_others_run(tmp_path: Path) -> None:
    record = run_audit(toy_spec(tmp_path, Hungry(id="h", fits=0), Draws(id="d")), tmp_path / "out")
    assert found(record, "h").error == "memory ran out even with one sample at a time"
    assert found(record, "d").status == "ok"


def test_lack_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def killed_spec(folder: Path) -> Spec:
    """The kill strikes on the variant, in the second check, after half of its evidence is written."""
    log = str(folder / "log")
    return toy_spec(
        folder,
        Draws(id="a", log=log),
        Killed(id="k", log=log, once=str(folder / "once"), variants=("v",)),
        variants=(Shifted(id="v", log=log),),
        gates=("a.share >= 0.1", "v:k.share >= 0.1"),
    )


def test_after_kill_9_the_next_run_goes_on_and_gives_the_same_record(tmp_path: Path) -> None:
    write_project(tmp_path)
    script = (
        f"import sys; from pathlib import Path; from {__package__}.test_runner import killed_spec, run_audit; "
        "run_audit(killed_spec(Path(sys.argv[1])), Path(sys.argv[1], 'out'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out/audit.json").exists()
    before = ran(tmp_path / "log")
    assert before == ["base:a", "build", "v", "v:a"]
    resumed = run_audit(killed_spec(tmp_path), tmp_path / "out")
    assert ran(tmp_path / "log") == [*before, "v:k"]  # nothing that was finished ran again
    undisturbed = run_audit(killed_spec(tmp_path), tmp_path / "undisturbed")
    assert without_times(resumed) == without_times(undisturbed)
    evidence = [item for variant in resumed.variants for result in variant.results for item in result.evidence]
    for item in evidence:
        assert (tmp_path / "out" / item.path).read_bytes() == (tmp_path / "undisturbed" / item.path).read_bytes()


def test_ctrl_c_keeps_what_is_finished_and_marks_the_record(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = toy_spec(
        tmp_path,
        Draws(id="a", log=str(log)),
        Breaks(id="b", error="interrupt"),
        Draws(id="c", log=str(log)),
        variants=(Shifted(id="v"),),
        gates=("a.share >= 0", "c.share >= 0"),
    )
    with pytest.raises(InterruptedAuditError, match="run again to go on") as caught:
        run_audit(spec, tmp_path / "out")
    assert caught.value.exit_code == 130
    record = read_record(tmp_path / "out")
    assert record.verdict == "error"
    assert found(record, "a").status == "ok"
    assert found(record, "c").status == "skipped"
    assert found(record, "c").error == "not run: the audit was interrupted"
    assert [gate.verdict for gate in record.gates] == ["pass", "error"]
    assert record.not_covered[0] == "The audit was interrupted before it finished."
    assert "interrupted" in (tmp_path / "out/report.html").read_text()
    rest = toy_spec(tmp_path, *(check for check in spec.checks if check.id != "b"))
    run_audit(rest, tmp_path / "out")
    assert ran(log) == ["base:a", "base:c"]


def test_only_and_skip_narrow_a_run(tmp_path: Path) -> None:
    spec = toy_spec(
        tmp_path,
        Draws(id="a"),
        Draws(id="b"),
        variants=(Shifted(id="v"), Shifted(id="w")),
        gates=("a.share >= 0", "b.share >= 0", "v:a.share >= 0"),
    )

    def done(only: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> tuple[dict[str, list[str]], list[str]]:
        record = run_audit(spec, tmp_path / "out", only=only, skip=skip)
        return {v.id: [r.id for r in v.results] for v in record.variants}, [gate.expression for gate in record.gates]

    assert done(only=("a",))[0] == {"base": ["a"], "v": ["a"], "w": ["a"]}
    assert done(only=("v",)) == ({"base": [], "v": ["a", "b"]}, ["v:a.share >= 0"])
    assert done(only=("base", "b")) == ({"base": ["b"]}, ["b.share >= 0"])
    assert done(skip=("b", "w")) == ({"base": ["a"], "v": ["a"]}, ["a.share >= 0", "v:a.share >= 0"])
    left = run_audit(spec, tmp_path / "out", skip=("b",)).not_covered
    assert "The gate b.share >= 0 was not judged: what it needs was left out on the command line." in left
    with pytest.raises(SpecError, match="Did you mean 'base'"):
        done(only=("bsae",))
    with pytest.raises(SpecError, match="no check"):
        done(skip=("a", "b"))


def test_a_missing_file_ends_the_run_before_any_check(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = toy_spec(tmp_path, Draws(id="a", log=str(log)), Draws(id="b", train="trian.npz"))
    with pytest.raises(DataError, match=r"^b: trian\.npz: no such file"):
        run_audit(spec, tmp_path / "out")
    assert not log.exists()


def test_a_disk_that_fills_up_ends_the_run_cleanly_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    spec = toy_spec(tmp_path, Draws(id="a", log=str(log)), Draws(id="b", log=str(log)))
    write = os.fsync

    def full_at_b(handle: int) -> None:
        if "base:b" in ran(log):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(handle)

    monkeypatch.setattr(os, "fsync", full_at_b)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        run_audit(spec, tmp_path / "out")
    assert caught.value.exit_code == 2
    monkeypatch.undo()
    run_audit(spec, tmp_path / "out")
    assert ran(log) == ["base:a", "base:b", "base:b"]


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="this machine has 0 of its kind"):
        run_audit(toy_spec(tmp_path), tmp_path / "out", device="mps:7" if torch.backends.mps.is_available() else "mps")
    with pytest.raises(UnsupportedError, match="does not exist"):
        run_audit(toy_spec(tmp_path), tmp_path / "out", device="gpu")


def test_what_the_spec_does_not_ask_for_is_named(tmp_path: Path) -> None:
    record = run_audit(toy_spec(tmp_path, Draws(id="d")), tmp_path / "out")
    text = next(text for text in record.not_covered if text.startswith("Checks that the spec does not ask for:"))
    assert all(name in text for name in ("performance", "evasion", "attribution", "membership"))


def clock_of(times: list[float]) -> Callable[[], float]:
    return lambda: times[0]


def test_the_forecast_learns_from_earlier_variants() -> None:
    now = [0.0]
    forecast = Forecast(clock_of(now))
    a, b, again = Step("base: a", "a"), Step("base: b", "b"), Step("v: a", "a")
    forecast.plan([a, b, again])
    forecast.begin(a)
    assert forecast.left(a) is None
    forecast.start(10)
    now[0] = 4.0
    forecast.advance(4)
    assert forecast.task_left() == pytest.approx(6.0)
    now[0] = 10.0
    forecast.end(a, ran=True)
    forecast.begin(b)
    assert forecast.left(b) == pytest.approx(20.0)  # b as long as the mean, a as it took
    now[0] = 14.0
    forecast.end(b, ran=True)
    forecast.begin(again)
    forecast.start(2)
    now[0] = 16.0
    forecast.advance(1)
    assert forecast.left(again) == pytest.approx(2.0)


def test_lines_tell_the_time_left_every_ten_seconds() -> None:
    now, out = [0.0], io.StringIO()
    lines = Lines(out, clock_of(now))
    step = Step("base: a", "a")
    lines.plan([step])
    lines.begin(step)
    lines.start("attack", 100)
    for second in range(1, 26):
        now[0] = float(second)
        lines.advance(2)
    lines.end(step, "ok")
    assert out.getvalue().splitlines() == [
        "[1/1] base: a",
        "    attack: 20%, 40 s left, 40 s for the whole run",
        "    attack: 40%, 30 s left, 30 s for the whole run",
        "    ok after 25 s",
    ]


def test_bars_show_two_plans_one_after_the_other() -> None:
    out = io.StringIO()
    with RichBars(out) as bars:
        for name in ("fine-tuning", "base: a"):
            step = Step(name, name)
            bars.plan([step])
            bars.begin(step)
            bars.start("[bold]task", 2)
            bars.advance(2)
            bars.end(step, "ok")
        bars.note("[red]not markup")
    lines = [line.strip() for line in out.getvalue().splitlines() if line.strip()]
    assert [line.partition(" after")[0] for line in lines if " after" in line] == ["fine-tuning: ok", "base: a: ok"]
    assert "[red]not markup" in lines


def test_bars_are_for_terminals_and_lines_for_the_rest() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(display_for(Terminal()), RichBars)
    assert isinstance(display_for(io.StringIO()), Lines)
    assert isinstance(display_for(Terminal(), quiet=True), Silent)
