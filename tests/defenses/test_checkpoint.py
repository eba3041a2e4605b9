import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from auditorch.attacks.errors import AuditError
from auditorch.attacks.threat import Threat
from auditorch.defenses import checkpoint as checkpoints
from auditorch.defenses.augmentations.features import GaussianNoise
from auditorch.defenses.checkpoint import Checkpoint, fingerprint
from auditorch.defenses.config import TrainingConfig
from auditorch.defenses.distillation import Distillation
from auditorch.defenses.free import FreeLoss
from auditorch.defenses.history import DivergedError, History
from auditorch.defenses.mixing import Mixup
from auditorch.defenses.objectives import BatchLoss, CrossEntropy, Moment, Objective
from auditorch.defenses.regularization import Regularized
from auditorch.defenses.training import fit
from auditorch.defenses.validation import Accuracy
from safetensors.torch import load_file
from torch import Tensor, nn

from .toys import network, ring, state

X, Y = ring()
FULL = TrainingConfig(epochs=3, batch_size=32, lr=0.02, ema=0.9, clip_norm=1.0, warmup=0.2, seed=5)
FREE = "free"


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


def objective(kind: str) -> Objective:
    return FreeLoss(Threat("linf", 0.05), replays=3) if kind == FREE else Regularized(0.1, mixing=Mixup(0.5))


def train(
    config: TrainingConfig, kind: str = "", file: Path | None = None, kill_after: int | None = None
) -> tuple[nn.Module, History]:
    """Trains with everything that has a state; raises Killed in the given step, before that step is saved."""
    module = network()
    seen: list[int] = []

    def on_samples(count: int) -> None:
        seen.append(count)
        if len(seen) == kill_after:
            raise Killed

    history = fit(
        module,
        X,
        Y,
        config=config,
        objective=objective(kind),
        augment=GaussianNoise(0.02),
        validate=Accuracy(X[:40], Y[:40]),
        on_samples=on_samples,
        checkpoint=Checkpoint(file, every=0) if file else None,
    )
    return module, history


def same(a: History, b: History) -> bool:
    """Equal but for the times."""
    rows = [[(e.loss, e.accuracy, e.lr, e.validation) for e in history.epochs] for history in (a, b)]
    return rows[0] == rows[1] and (a.kept, a.stopped) == (b.kept, b.stopped)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, ""),
        ({}, FREE),
        ({"optimizer": "sgd", "nesterov": True, "ema": None}, ""),
        ({"optimizer": "sgd", "momentum": 0.0, "ema": None, "weight_decay": 0.1}, ""),
        ({"optimizer": "adam", "patience": 3}, ""),
        ({"optimizer": "rmsprop"}, FREE),
        ({"optimizer": "adagrad", "physical_batch": 10}, ""),
        ({"precision": "float16"}, ""),
        ({"precision": "bfloat16", "scope": 2}, ""),
    ],
    ids=str,
)
def test_goes_on_to_the_very_same_weights_wherever_it_was_killed(
    settings: dict[str, object], kind: str, tmp_path: Path
) -> None:

    config = replace(FULL, **settings)  # pyright: ignore[reportArgumentType]
    whole, history = train(config, kind)
    for place in (1, 2, 3, 5, 9):
        file = tmp_path / f"{place}.safetensors"
        with pytest.raises(Killed):
            train(config, kind, file, kill_after=place)
        with pytest.raises(Killed):  # and killed again one step after it was resumed
            train(config, kind, file, kill_after=2)
        resumed, again = train(config, kind, file)
        assert torch.equal(state(resumed), state(whole)), f"killed in step {place}"
        assert same(history, again)
        assert not file.exists(), "a finished training leaves no checkpoint"


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
from auditorch.defenses.checkpoint import Checkpoint
from auditorch.defenses.config import TrainingConfig
from auditorch.defenses.training import fit
from toys import network, ring
seen = []
def on_samples(count):
    seen.append(count)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
fit(network(), *ring(), config=TrainingConfig(epochs=3, batch_size=32, lr=0.02, ema=0.9), on_samples=on_samples,
    checkpoint=Checkpoint(Path(sys.argv[1]), every=0))
"""


def test_a_process_killed_in_mid_epoch_leaves_a_checkpoint_that_another_goes_on_from(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    arguments = [str(file), str(torch.get_num_threads()), str(Path(__file__).parent)]
    killed = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    config = TrainingConfig(epochs=3, batch_size=32, lr=0.02, ema=0.9)
    whole, resumed = network(), network()
    fit(whole, X, Y, config=config)
    seen: list[int] = []
    fit(resumed, X, Y, config=config, on_samples=seen.append, checkpoint=Checkpoint(file, every=0))
    assert torch.equal(state(resumed), state(whole))
    assert seen == [128, 32, 32, 32, 32, 32], "four of nine steps were saved and are not made again"


def test_killed_while_writing_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(FULL, "", file, kill_after=5)
    before = file.read_bytes()

    def die(handle: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(Killed):
            train(FULL, "", file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file], "an unfinished file was left"
    resumed, _ = train(FULL, "", file)
    assert torch.equal(state(resumed), state(train(FULL)[0]))


def test_files_of_other_trainings_and_damaged_ones_are_not_used(tmp_path: Path) -> None:

    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(FULL, "", file, kill_after=6)
    before = file.read_bytes()
    for key in ("", "other data"):
        seen: list[int] = []
        file.write_bytes(before)
        settings = {"config": FULL, "objective": objective(""), "augment": GaussianNoise(0.02)}
        fit(network(), X, Y, **settings, on_samples=seen.append, checkpoint=Checkpoint(file, 0, key))  # pyright: ignore
        assert (seen[0] > 32) == (key == ""), "the key decides whose file it is"
    file.write_bytes(before)
    other = replace(FULL, lr=0.01)
    assert torch.equal(state(train(other, "", file)[0]), state(train(other)[0]))
    for content in (b"", b"nonsense" * 100):
        file.write_bytes(content)
        assert torch.equal(state(train(FULL, "", file)[0]), state(train(FULL)[0]))


def test_saves_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: float(next(clock)))
    written: list[Path] = []
    monkeypatch.setattr(checkpoints, "write_tensors", lambda path, *rest: written.append(path))
    fit(network(), X, Y, config=FULL, checkpoint=Checkpoint(tmp_path / "a", every=4))
    # The clock ticks whenever it is read: after each of nine steps and three epochs, and at each save.
    assert len(written) == 3


def test_a_training_that_diverges_leaves_its_last_good_weights(tmp_path: Path) -> None:
    class BlowsUp:
        def __call__(self, module: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> BatchLoss:
            loss, correct = CrossEntropy()(module, x, y, moment)
            return BatchLoss(loss * (float("nan") if moment.progress >= 0.5 else 1.0), correct)

    file = tmp_path / "run.safetensors"
    module = network()
    config = TrainingConfig(epochs=3, batch_size=32)
    with pytest.raises(DivergedError, match=r"diverged in epoch 2.*end of epoch 1 were kept in .*last-good") as caught:
        fit(module, X, Y, config=config, objective=BlowsUp(), checkpoint=Checkpoint(file, every=0))
    assert caught.value.file == tmp_path / "run.last-good.safetensors"
    kept = load_file(tmp_path / "run.last-good.safetensors")
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in kept.items())
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())
    assert not file.exists()


def test_a_checkpoint_that_cannot_be_written_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AuditError, match="cannot be written"):
        fit(network(), X, Y, config=FULL, checkpoint=Checkpoint(tmp_path / "file" / "run.safetensors", every=0))


def test_fingerprint_sees_values_and_settings_but_no_addresses() -> None:
    class Thing:
        pass

    x = torch.arange(6.0)
    assert fingerprint(x, 1) == fingerprint(x.clone(), 1)
    assert len({fingerprint(x, 1), fingerprint(x + 1, 1), fingerprint(x, 2), fingerprint(x.view(2, 3), 1)}) == 4
    assert fingerprint(Thing()) == fingerprint(Thing())
    teachers = [Distillation(network()), Distillation(network()), Distillation(network().requires_grad_(False))]
    with torch.no_grad():
        teachers[2].teacher.get_parameter("0.weight").add_(1)
    assert fingerprint(teachers[0]) == fingerprint(teachers[1])
    assert fingerprint(teachers[0]) != fingerprint(teachers[2]), "another teacher, another training"
    assert fingerprint(FreeLoss(Threat("linf", 0.1))) != fingerprint(FreeLoss(Threat("linf", 0.2)))
