"""The examples run as a user would run them, and say what they should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def ran(*arguments: str, cwd: Path) -> str:
    """What a command of this Python printed; fails when it did."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_attack_function_breaks_the_model_within_the_ball(tmp_path: Path) -> None:
    said = dict(
        re.findall(r"^(.+?) {2,}([\d.]+)$", ran(str(EXAMPLES / "attack_function.py"), cwd=tmp_path), re.MULTILINE)
    )
    assert float(said["largest change"]) <= 0.1
    assert float(said["clean accuracy"]) > 0.9
    assert float(said["under attack"]) < float(said["clean accuracy"]) - 0.2
