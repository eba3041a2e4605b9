"""The engine: what it counts, what it refuses to count, and how it copes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from auditorch.attacks.attack import AttackOutcome, Model, Randomness
from auditorch.attacks.engine import evaluate, evaluate_stream
from auditorch.attacks.errors import UnsupportedError
from auditorch.attacks.evasion.apgd import APGD
from auditorch.attacks.evasion.fgsm import FGSM
from auditorch.attacks.evasion.mifgsm import MIFGSM
from auditorch.attacks.evasion.pgd import PGD
from auditorch.attacks.evasion.square import Square
from auditorch.attacks.models import Compiled, CountingModel
from auditorch.attacks.search import ActiveSet, fooled, input_gradient
from auditorch.attacks.shards import ShardStore
from auditorch.attacks.streams import Streams
from auditorch.attacks.threat import Norm, Threat
from torch import Tensor, nn

from .oracles import linear_problem
from .syncs import Syncs

PROBLEM = linear_problem(12, (1, 6, 6), 4)
THREAT = Threat("linf", float(PROBLEM.distance("linf").median()))


@dataclass(frozen=True)
class Claim:
    """Not an attack: hands back the inputs plus a constant."""

    shift: float
    minimal: bool = False

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        return x + self.shift


class Constant(nn.Module):
    """Class 0 for inputs whose mean is below .5, else class 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([0.5 - x.flatten(1).mean(1), x.flatten(1).mean(1) - 0.5], dim=1)


def test_misclassified_inputs_count_at_distance_zero_and_cost_nothing() -> None:
    y = PROBLEM.y.clone()
    y[:5] = (y[:5] + 1) % 4
    outcome = evaluate(FGSM(), PROBLEM.model, PROBLEM.x, y, THREAT)
    assert outcome.success[:5].all()
    assert not outcome.correct[:5].any()
    assert outcome.correct[5:].all()
    assert (outcome.distance[:5] == 0).all()
    assert torch.equal(outcome.x_adv[:5], PROBLEM.x[:5])
    assert outcome.forwards == 2 * 7
    assert outcome.backwards == 7
    assert outcome.verification_forwards == 12 + 7


def test_a_claim_outside_ball_or_bounds_does_not_count() -> None:
    x, y = torch.full((2, 1, 2, 2), 0.45), torch.zeros(2, dtype=torch.int64)
    assert evaluate(Claim(0.1), Constant(), x, y, Threat("linf", 0.1)).success.all()
    outside = evaluate(Claim(0.1), Constant(), x, y, Threat("linf", 0.09))
    assert not outside.success.any()
    assert torch.equal(outside.x_adv, x)
    assert (outside.distance == float("inf")).all()
    assert not evaluate(Claim(0.1), Constant(), x, y, Threat("linf", 0.1, bounds=(0.0, 0.5))).success.any()
    assert not evaluate(Claim(0.01), Constant(), x, y, Threat("linf", 0.1)).success.any()  # prediction unchanged


def test_a_smallest_perturbation_beyond_the_ball_is_a_distance_not_a_success() -> None:
    x, y = torch.full((2, 1, 2, 2), 0.45), torch.zeros(2, dtype=torch.int64)
    outcome = evaluate(Claim(0.1, minimal=True), Constant(), x, y, Threat("linf", 0.05))
    assert not outcome.success.any()
    torch.testing.assert_close(outcome.distance, torch.full((2,), 0.1))
    assert outcome.robust_accuracy == 1.0
    assert outcome.robust_accuracy_at(0.09) == 1.0
    assert outcome.robust_accuracy_at(0.11) == 0.0


@pytest.mark.parametrize("attack", [PGD(steps=7), APGD(steps=15)], ids=["pgd", "apgd"])
def test_result_depends_neither_on_batch_size_nor_on_order(attack: PGD | APGD) -> None:
    model, x = PROBLEM.model.double(), PROBLEM.x.double()
    ids = torch.arange(12) + 100
    whole = evaluate(attack, model, x, PROBLEM.y, THREAT, seed=3, ids=ids)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    parts = evaluate(attack, model, x[order], PROBLEM.y[order], THREAT, seed=3, ids=ids[order], batch_size=5)
    model.float()
    assert torch.equal(parts.success, whole.success[order])
    torch.testing.assert_close(parts.x_adv, whole.x_adv[order], atol=1e-7, rtol=0)
    assert parts.forwards == whole.forwards
    assert parts.backwards == whole.backwards


def test_another_seed_starts_elsewhere() -> None:
    tiny = Threat("linf", 1e-3)
    outcomes = [evaluate(Start(), PROBLEM.model, PROBLEM.x, PROBLEM.y, tiny, seed=seed) for seed in (0, 1)]
    assert not torch.equal(*(outcome.x_adv for outcome in outcomes))


@dataclass(frozen=True)
class Start:
    """A random point, called smallest so that the engine keeps it; the model is made to err on it."""

    minimal: bool = True

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, generator: Randomness = None) -> Tensor:
        return (0.5 + 0.5 * Streams.of(generator, len(x), x.device).uniform(x.shape[1:])).to(x)


def test_memory_running_out_halves_the_batch_and_changes_nothing_else() -> None:
    class Small(nn.Module):
        """Fits three samples."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = PROBLEM.model
            self.sizes: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            if len(x) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return self.inner(x)

    small = Small()
    outcome = evaluate(PGD(steps=5), small, PROBLEM.x, PROBLEM.y, THREAT)
    expected = evaluate(PGD(steps=5), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    assert torch.equal(outcome.success, expected.success)
    assert outcome.forwards == expected.forwards
    assert outcome.backwards == expected.backwards
    assert [size for size in small.sizes if size > 3] == [12, 6]  # tried once each, then kept small


def test_memory_too_small_for_one_sample_is_said() -> None:
    def greedy(x: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(UnsupportedError, match="single sample"):
        evaluate(FGSM(), greedy, PROBLEM.x, PROBLEM.y, THREAT)


def test_other_runtime_errors_pass_through() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        evaluate(FGSM(), broken, PROBLEM.x, PROBLEM.y, THREAT)


def test_budgets_leave_samples_unexamined() -> None:
    outcome = evaluate(FGSM(), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT, batch_size=4, max_forwards=10)
    assert outcome.examined.tolist() == [True] * 8 + [False] * 4
    assert outcome.forwards == 16
    assert not outcome.success[8:].any()
    full = evaluate(FGSM(), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    assert outcome.robust_accuracy == pytest.approx(float((~full.success[:8]).double().mean()))
    assert not evaluate(FGSM(), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT, max_seconds=0).examined.any()


def test_progress_counts_up_to_all_samples() -> None:
    y = PROBLEM.y.clone()
    y[0] = (y[0] + 1) % 4
    seen: list[tuple[int, int]] = []
    evaluate(FGSM(), PROBLEM.model, PROBLEM.x, y, THREAT, batch_size=5, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(6, 12), (11, 12), (12, 12)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": PROBLEM.x * 255}, "leave the bounds"),
        ({"x": PROBLEM.x.masked_fill(PROBLEM.x > 0.8, torch.nan)}, "NaN"),
        ({"x": (PROBLEM.x * 255).to(torch.uint8)}, "floats"),
        ({"y": PROBLEM.y[:5]}, "shape"),
        ({"y": PROBLEM.y.float()}, "int64"),
        ({"y": PROBLEM.y + 3}, "labels span"),
        ({"y": PROBLEM.y - 1}, "labels span"),
        ({"x": PROBLEM.x[:0], "y": PROBLEM.y[:0]}, "no samples"),
        ({"model": lambda x: (x, x)}, "tuple"),
        ({"model": lambda x: x.flatten(1).sum(1)}, "binary models: two columns"),
        ({"model": lambda x: PROBLEM.model(x).argmax(1, keepdim=True).repeat(1, 2)}, "not labels"),
        ({"model": lambda x: PROBLEM.model(x) * torch.where(torch.arange(len(x)) < 2, torch.nan, 1.0)[:, None]}, "NaN"),
        ({"threat": Threat("l0", 3)}, "linf, l2, l1"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_nonsense_is_refused_with_a_reason(change: dict[str, object], message: str) -> None:
    arguments = {"model": PROBLEM.model, "x": PROBLEM.x, "y": PROBLEM.y, "threat": THREAT} | change
    with pytest.raises(UnsupportedError, match=message):
        evaluate(PGD(steps=2), **arguments)  # pyright: ignore[reportArgumentType]


def test_nan_on_clean_inputs_says_how_many() -> None:
    def broken(x: Tensor) -> Tensor:
        return PROBLEM.model(x).masked_fill((x.flatten(1)[:, :1] == PROBLEM.x.flatten(1)[3, 0]), torch.nan)

    with pytest.raises(UnsupportedError, match="on 1 of 12 clean inputs"):
        evaluate(FGSM(), broken, PROBLEM.x, PROBLEM.y, THREAT)


def test_half_precision_search_is_verified_in_full_precision() -> None:
    outcome = evaluate(PGD(steps=10), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT, precision="bfloat16")
    assert torch.equal(PROBLEM.model(outcome.x_adv).argmax(1) != PROBLEM.y, outcome.success)
    assert THREAT.contains(outcome.x_adv, PROBLEM.x).all()
    exact = evaluate(PGD(steps=10), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    assert abs(int(outcome.success.sum()) - int(exact.success.sum())) <= 2
    torch.testing.assert_close(outcome.clean_logits, exact.clean_logits)


def test_verification_ignores_an_autocast_around_the_call() -> None:
    plain = evaluate(FGSM(), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    with torch.autocast("cpu", torch.bfloat16):
        cast = evaluate(FGSM(), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    assert torch.equal(cast.clean_logits, plain.clean_logits)


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 3)).requires_grad_(False)
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    layouts: list[bool] = []

    def watched(batch: Tensor) -> Tensor:
        layouts.append(batch.is_contiguous(memory_format=torch.channels_last))
        return model(batch)

    logits = [CountingModel(watched, channels_last=flag)(x) for flag in (True, False)]
    assert layouts == [True, False]
    torch.testing.assert_close(*logits)


def test_evaluate_works_under_no_grad_and_restores_train_mode_after_an_error() -> None:
    model = PROBLEM.model.train()
    with torch.no_grad():
        outcome = evaluate(FGSM(), model, PROBLEM.x, PROBLEM.y, THREAT)
    assert outcome.backwards > 0
    with pytest.raises(UnsupportedError):
        evaluate(FGSM(loss="dlr"), nn.Sequential(model, nn.Linear(4, 2)).train(), PROBLEM.x, PROBLEM.y % 2, THREAT)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def shards(cuts: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(PROBLEM.x.split(cuts), PROBLEM.y.split(cuts), strict=True))


def test_a_stream_of_shards_gives_what_the_whole_gives_however_it_is_cut() -> None:
    whole = evaluate(PGD(steps=7), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT, seed=3)
    for cuts in ([12], [5, 7], [1, 4, 4, 3]):
        parts = list(evaluate_stream(PGD(steps=7), PROBLEM.model, shards(cuts), THREAT, seed=3))
        assert [len(part.success) for part in parts] == cuts
        merged = AttackOutcome.merge(parts)
        assert torch.equal(merged.success, whole.success)
        assert torch.equal(merged.spent, whole.spent)
        torch.testing.assert_close(merged.x_adv, whole.x_adv, atol=1e-5, rtol=0)
        assert (merged.forwards, merged.backwards) == (whole.forwards, whole.backwards)
        assert merged.robust_accuracy == whole.robust_accuracy
    assert AttackOutcome.merge(parts, inputs=False).x_adv.numel() == 0


def test_a_stream_holds_one_shard_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def source() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in shards([4, 4, 4]):
            fresh = x.clone()
            assert sum(old() is not None for old in alive) <= 1
            alive.append(weakref.ref(fresh))
            yield fresh, y
            del fresh
            gc.collect()

    for outcome in evaluate_stream(FGSM(), PROBLEM.model, source(), THREAT):
        del outcome
    assert len(alive) == 3


def test_the_budget_is_for_all_shards_together() -> None:
    found = list(evaluate_stream(FGSM(), PROBLEM.model, shards([4, 4, 4]), THREAT, max_forwards=10))
    assert [part.forwards for part in found] == [8, 8]
    late = list(evaluate_stream(FGSM(), PROBLEM.model, shards([4, 4, 4]), THREAT, max_seconds=0))
    assert [bool(part.examined.any()) for part in late] == [False]


def test_finished_shards_are_read_and_not_run_again(tmp_path: Path) -> None:
    calls: list[int] = []
    inner = PROBLEM.model

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return self.inner(x)

    store = ShardStore(tmp_path / "shards")

    def run(attack: PGD, cuts: list[int], seed: int = 0) -> AttackOutcome:
        calls.clear()
        return AttackOutcome.merge(
            list(evaluate_stream(attack, Watched(), shards(cuts), THREAT, seed=seed, store=store))
        )

    stream = evaluate_stream(PGD(steps=5), Watched(), shards([4, 8]), THREAT, store=store)
    next(stream)
    stream.close()  # cut off after the first shard
    first = run(PGD(steps=5), [4, 8])
    assert calls[0] == 8  # the clean predictions of the second shard come first
    again = run(PGD(steps=5), [4, 8])
    assert calls == []
    for name in ("x_adv", "success", "distance", "adv_logits", "spent"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert (again.forwards, again.unit) == (first.forwards, "steps")
    for change in ({"attack": PGD(steps=6)}, {"seed": 1}, {"cuts": [6, 6]}):
        run(**({"attack": PGD(steps=5), "cuts": [4, 8]} | change))  # pyright: ignore[reportArgumentType]
        assert calls
    damaged = next((tmp_path / "shards").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert torch.equal(run(PGD(steps=5), [4, 8]).success, first.success)


def test_a_store_needs_to_know_the_model(tmp_path: Path) -> None:
    call = lambda x: PROBLEM.model(x)  # noqa: E731
    with pytest.raises(UnsupportedError, match="name it"):
        list(evaluate_stream(FGSM(), call, shards([12]), THREAT, store=ShardStore(tmp_path)))
    named = ShardStore(tmp_path, model="linear")
    assert len(list(evaluate_stream(FGSM(), call, shards([12]), THREAT, store=named))) == 1


@pytest.mark.parametrize(
    "attack", [PGD(steps=9), APGD(steps=15), MIFGSM(), Square(queries=60)], ids=lambda a: type(a).__name__
)
def test_one_run_draws_robust_accuracy_against_what_was_spent(attack: PGD | APGD | MIFGSM | Square) -> None:
    """A sample's own count is that of the points that the model saw of it."""
    model, x = PROBLEM.model, PROBLEM.x
    threat = Threat("linf", THREAT.eps * (2.5 if isinstance(attack, Square) else 1))  # which sees no gradients
    whole = evaluate(attack, model, x, PROBLEM.y, threat)
    assert whole.unit == attack.unit
    assert 0 < int(whole.success.sum()) < 12
    assert int(whole.spent.sum()) == whole.forwards
    assert whole.robust_accuracy_after(0) == 1.0
    assert whole.robust_accuracy_after(int(whole.spent.max())) == whole.robust_accuracy
    middle = int(whole.spent[whole.success].median())
    assert whole.robust_accuracy < whole.robust_accuracy_after(middle - 1) <= 1.0
    for row in range(0, 12, 5):
        ids = torch.tensor([row])
        one = evaluate(attack, model, x[row : row + 1], PROBLEM.y[row : row + 1], threat, ids=ids)
        assert int(one.spent) == one.forwards == int(whole.spent[row])


def test_attacks_that_do_not_count_have_no_such_curve() -> None:
    outcome = evaluate(FGSM(), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    assert outcome.unit is None
    with pytest.raises(UnsupportedError, match="does not say what it spent"):
        outcome.robust_accuracy_after(1)


def test_compiled_search_finds_the_same_and_counts_the_same() -> None:
    plain = evaluate(PGD(steps=6), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    compiled = evaluate(PGD(steps=6), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT, compile="eager")
    assert torch.equal(compiled.success, plain.success)
    assert compiled.forwards == plain.forwards  # what fills a batch up is not counted
    assert compiled.backwards == plain.backwards


def test_a_compiled_model_is_called_with_few_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()

    def remember(model: Model, **options: object) -> Model:
        assert options == {"dynamic": False}
        return lambda x: (sizes.add(len(x)), model(x))[1]

    monkeypatch.setattr(torch, "compile", remember)
    compiled = Compiled(PROBLEM.model)
    for n in range(1, 65):
        x = PROBLEM.x[torch.arange(n) % 12]
        torch.testing.assert_close(compiled(x), PROBLEM.model(x))
    assert sizes == {8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64}


@pytest.mark.slow
def test_compiled_search_by_the_default_backend() -> None:
    plain = evaluate(PGD(steps=6), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT)
    compiled = evaluate(PGD(steps=6), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT, compile=True)
    assert torch.equal(compiled.success, plain.success)


def test_what_cannot_be_compiled_says_so() -> None:
    with pytest.raises(UnsupportedError, match="leave compile off"):
        evaluate(PGD(steps=2), PROBLEM.model, PROBLEM.x, PROBLEM.y, THREAT, compile="no_such_backend")


@pytest.mark.parametrize("norm", ["linf"])
def test_steps_on_a_device_wait_for_the_host_once_in_four(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that a GPU takes, walked on the CPU; `compact` alone asks how many are left."""
    monkeypatch.setattr("auditorch.attacks.search.deferred", lambda tensor: True)
    threat, counts = Threat(norm, 1e-4), []
    for steps in (8, 24):
        with Syncs() as syncs:
            PGD(steps=steps)(CountingModel(PROBLEM.model, screened=True), PROBLEM.x, PROBLEM.y, threat)
        counts.append(syncs.count)
    assert counts[1] - counts[0] <= 16 / 4


@pytest.mark.gpu
def test_no_synchronisation_between_two_compactions_on_a_gpu() -> None:
    model, x, y = PROBLEM.model.cuda(), PROBLEM.x.cuda(), PROBLEM.y.cuda()
    search = ActiveSet(x, torch.ones(12, dtype=torch.bool, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            logits, _, _ = input_gradient(model, x, lambda z: z.sum(1))
            search.record(x, fooled(logits, y, targeted=False))
            search.compact()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.cpu()
