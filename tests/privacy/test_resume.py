"""A private training survives SIGKILL: no step uncounted, no noise reused."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from auditorch.attacks.errors import UnsupportedError
from auditorch.privacy import dp_sgd
from auditorch.privacy.accounting import Budget
from auditorch.privacy.checkpoint import delete_state
from auditorch.privacy.dp_sgd import DPConfig, DPResult, dp_fine_tune
from auditorch.privacy.private_run import PrivateRun
from auditorch.privacy.randomness import Streams
from torch import Tensor, nn

CONFIG = DPConfig(noise_multiplier=0.5, delta=1e-3, epochs=4, batch_size=8, momentum=0.9, ema=0.9, clipping="adaptive")
STEPS = 16


@pytest.fixture(autouse=True)
def instant_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    def account(noise: float, rate: float, steps: int, delta: float) -> Budget:
        return Budget(1.0, delta, "prv", 1.0, 1.0, 1.1, noise, rate, steps)

    monkeypatch.setattr(dp_sgd, "epsilon", account)


def task() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module, torch.randn(32, 5, generator=generator), torch.randint(3, (32,), generator=generator)


def train(config: DPConfig, checkpoint: Path | None = None, every: int | None = None) -> DPResult:
    module, x, y = task()
    return dp_fine_tune(module, x, y, config=config, checkpoint=checkpoint, every=every)


def weights(result: DPResult) -> Tensor:
    return torch.cat([value.flatten() for value in result.module.state_dict().values()])


def killed(path: Path, config: DPConfig, at: int, every: int) -> None:
    """The same training in another process, which is killed in the middle of a step."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_resume
from auditorch.privacy.private_run import PrivateRun
from auditorch.privacy.dp_sgd import DPConfig
finish = PrivateRun._finish_sums
def dying(self):
    if self.state.steps == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self)
PrivateRun._finish_sums = dying
test_resume.train({config!r}, test_resume.Path({str(path)!r}), {every})
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_resume_is_exact_to_the_bit(tmp_path: Path) -> None:
    """Momentum, moving average, adaptive bound, dropout, history: all go on as if nothing had happened."""
    path = tmp_path / "run.safetensors"
    killed(path, CONFIG, at=10, every=3)
    assert path.exists()
    resumed, whole = train(CONFIG, path, 3), train(CONFIG)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.history == whole.history
    assert (resumed.clip_norm, resumed.clipped) == (whole.clip_norm, whole.clipped)
    assert resumed.clip_norm != CONFIG.max_grad_norm
    assert resumed.budget.steps == STEPS
    assert resumed.lost_steps == 0
    delete_state(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [0, None])
def test_steps_before_the_first_state_count_too(
    seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = tmp_path / "run.safetensors", replace(CONFIG, seed=seed)
    finish = PrivateRun._finish_sums

    def interrupted(run: PrivateRun) -> None:
        if run.state.steps == 2:
            raise KeyboardInterrupt
        finish(run)

    with monkeypatch.context() as patch:
        patch.setattr(PrivateRun, "_finish_sums", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, path, 8)
    assert not path.exists()
    resumed = train(config, path, 8)
    assert resumed.lost_steps == (3 if seed is None else 0)
    assert resumed.budget.steps == STEPS
    assert seed is None or torch.equal(weights(resumed), weights(train(config)))


def test_with_a_secret_seed_lost_steps_count_and_noise_is_fresh(tmp_path: Path) -> None:
    """Killed in step 11 with the last state after step 9: two steps touched the data and left nothing."""
    path, secret = tmp_path / "run.safetensors", replace(CONFIG, seed=None)
    killed(path, secret, 10, 3)
    saved = path.read_bytes()
    resumed = train(secret, path, 3)
    assert resumed.lost_steps == 2
    assert resumed.budget.steps == STEPS, "the budget is not exceeded: two steps fewer shape the weights"
    assert any("2 steps were undone by a crash" in text for text in resumed.warnings)
    path.write_bytes(saved)
    path.with_name(path.name + ".steps").write_text("11")
    assert not torch.equal(weights(train(secret, path, 3)), weights(resumed)), "the same noise came twice"


def test_a_finished_training_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.safetensors"
    first = train(CONFIG, path)
    monkeypatch.setattr(PrivateRun, "step", lambda self: pytest.fail("a step after the budget was spent"))
    assert torch.equal(weights(train(CONFIG, path)), weights(first))


def test_short_memory_may_go_on_in_smaller_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After memory ran out, the same training goes on with fewer rows at a time."""
    path = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        accumulate = PrivateRun._accumulate
        patch.setattr(
            PrivateRun, "_accumulate", lambda run, part: _full(run) if run.state.steps == 9 else accumulate(run, part)
        )
        with pytest.raises(MemoryError):
            train(CONFIG, path, 4)
    small = train(replace(CONFIG, physical_batch=2), path, 4)
    torch.testing.assert_close(weights(small), weights(train(CONFIG)), rtol=1e-4, atol=1e-5)


def _full(run: PrivateRun) -> None:
    raise MemoryError


def test_states_of_other_trainings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    train(CONFIG, path)
    with pytest.raises(UnsupportedError, match="other data, model or settings, whose steps have been spent"):
        train(replace(CONFIG, lr=0.1), path)
    path.write_bytes(b"not a state")
    with pytest.raises(UnsupportedError, match="no state of a private training"):
        train(CONFIG, path)


def test_streams() -> None:
    """Repeatable, distinct by step, purpose and key, and standard normal."""
    one, other = Streams.of(1), Streams.of(2)

    def numbers(streams: Streams, purpose: str, step: int, n: int = 20_000) -> Tensor:
        return torch.randn(n, generator=streams.generator(purpose, step))  # pyright: ignore[reportArgumentType]

    draws = [
        numbers(one, "noise", 0),
        numbers(one, "noise", 1),
        numbers(one, "sampling", 0),
        numbers(other, "noise", 0),
    ]
    assert torch.equal(numbers(one, "noise", 0), draws[0])
    for i, a in enumerate(draws):
        assert abs(float(a.mean())) < 0.03
        assert abs(float(a.std()) - 1) < 0.03
        for b in draws[i + 1 :]:
            assert abs(float((a * b).mean())) < 0.03
    assert Streams.of(None).key != Streams.of(None).key


def test_the_whole_state_comes_from_the_key() -> None:
    """torch seeds its CPU generator with 32 bits; ours differ from every state that a seed can give."""
    generator = Streams.of(0).generator("noise", 0)
    state = generator.get_state()
    seeded = torch.Generator().manual_seed(0).get_state()
    words = slice(24, 24 + 8 * 624)
    assert float((state[words] != seeded[words]).float().mean()) > 0.45, "all words, of which half the bytes are 0"
    assert torch.equal(state[:24], seeded[:24])
    low = torch.Generator().manual_seed(5)
    high = torch.Generator().manual_seed(5 + 2**32)
    assert torch.equal(torch.rand(4, generator=low), torch.rand(4, generator=high)), "why a seed is not enough"
