"""The examples run as a user would run them, and say what they should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def ran(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of this Python, run to its end."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_attack_function_breaks_the_model_within_the_ball(tmp_path: Path) -> None:
    done = ran(str(EXAMPLES / "attack_function.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = dict(re.findall(r"^(.+?) {2,}([\d.]+)$", done.stdout, re.MULTILINE))
    assert float(said["largest change"]) <= 0.1
    assert float(said["clean accuracy"]) > 0.9
    assert float(said["under attack"]) < float(said["clean accuracy"]) - 0.2


def test_gate_passes_and_fails_when_more_is_asked(tmp_path: Path) -> None:
    gate = (EXAMPLES / "gate_test.py").read_text(encoding="utf-8")
    stricter = gate.replace("eps=0.03", "eps=0.1")
    assert stricter != gate
    (tmp_path / "gate_test.py").write_text(gate, encoding="utf-8")
    (tmp_path / "strict_test.py").write_text(stricter, encoding="utf-8")
    done = ran("-m", "pytest", "-rA", "gate_test.py", "strict_test.py", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert set(re.findall(r"^(PASSED|FAILED) (\w+)\.py::(\w+)", done.stdout, re.MULTILINE)) == {
        ("PASSED", "gate_test", "test_digits_are_read"),
        ("PASSED", "gate_test", "test_small_changes_of_the_pixels_do_not_matter"),
        ("PASSED", "strict_test", "test_digits_are_read"),
        ("FAILED", "strict_test", "test_small_changes_of_the_pixels_do_not_matter"),
    }
    assert "robust accuracy is" in done.stdout
