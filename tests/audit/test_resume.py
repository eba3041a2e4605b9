"""An audit killed while it trains a variant goes on from the training's checkpoint."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from auditorch.audit.progress import Silent
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec

from .fakes import toy_samples
from .runs import write_project

CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
from auditorch.audit.progress import Silent
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec
from auditorch.audit.variants import training
from auditorch.defenses.checkpoint import Checkpoint

training.Checkpoint = lambda path, key: Checkpoint(path, 0, key)

class Kills(Silent):
    done = 0
    def advance(self, amount=1.0):
        self.done += amount
        if self.done >= 500:
            os.kill(os.getpid(), signal.SIGKILL)

run_audit(load_spec(Path(sys.argv[1])), Path(sys.argv[2]), display=Kills())
"""


class Counts(Silent):
    """Counts the steps, each of which reports its samples."""

    def __init__(self) -> None:
        self.reports: list[float] = []

    def advance(self, amount: float = 1.0) -> None:
        self.reports.append(amount)


def weights(output: Path) -> bytes:
    return (output / "evidence" / "fine_tuning" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_audit_trains_on_to_the_same_weights(tmp_path: Path) -> None:
    spec = write_project(tmp_path)
    samples = toy_samples(192, seed=1)
    np.savez(tmp_path / "train.npz", x=samples.inputs[np.arange(192)], y=samples.labels)
    text = spec.read_text()
    spec.write_text(text + "variants:\n  - fine_tuning: {train: train.npz, epochs: 4, ema: 0.9, lr: 0.01}\n")
    output, whole = tmp_path / "killed", tmp_path / "whole"

    arguments = [str(spec), str(output), str(torch.get_num_threads())]
    killed = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    checkpoint = output / "results" / "fine_tuning.model.training.safetensors"
    assert checkpoint.exists()

    display = Counts()
    run_audit(load_spec(spec), output, display=display)
    run_audit(load_spec(spec), whole)
    assert weights(output) == weights(whole)
    assert not checkpoint.exists()
    assert display.reports[:2] == [448, 64], "seven steps of 64 were saved and are not made again"
