"""Variants at inference and of compression: built, saved, reloaded, and audited from end to end."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auditorch.audit.checks.base import encoded
from auditorch.audit.errors import UnsupportedError
from auditorch.audit.registry import load
from auditorch.audit.runner import run_audit
from auditorch.audit.spec import load_spec
from auditorch.audit.variants.base import Built, Variant
from auditorch.audit.variants.ensemble import EnsembleVariant
from auditorch.audit.variants.footprint import footprint, parameter_count, state_bytes
from auditorch.audit.variants.low_rank import LowRankVariant
from auditorch.audit.variants.preprocessing import PreprocessingVariant
from auditorch.audit.variants.pruning import PruningVariant
from auditorch.audit.variants.quantization import QuantizationVariant
from auditorch.audit.variants.randomized_smoothing import RandomizedSmoothingVariant
from auditorch.audit.variants.student import StudentVariant
from auditorch.audit.verify import verify
from auditorch.defenses.training import TrainingConfig, fit
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from .fakes import FakeContext, small_cnn, toy_samples, toy_target
from .runs import write_project

TRAIN = toy_samples(120, seed=1)
VARIANTS: list[Variant] = [
    RandomizedSmoothingVariant(sigma=0.1, draws=4),
    RandomizedSmoothingVariant(id="trained", sigma=0.1, draws=4, train="train", epochs=1),
    PreprocessingVariant(jpeg=50, bit_depth=3),
    PreprocessingVariant(id="filters", median=3, total_variation=0.1),
    EnsembleVariant(count=2, train="train", epochs=1),
    EnsembleVariant(id="majority", members=("other.safetensors",), combine="majority"),
    EnsembleVariant(id="weighted", members=("other.safetensors",), combine="weighted", held_out="train"),
    PruningVariant(amount=0.6),
    PruningVariant(id="pruned_trained", amount=0.6, train="train", epochs=2, lr=0.02),
    PruningVariant(id="channels", structure="channels", train="train", epochs=1),
    QuantizationVariant(train="train"),
    QuantizationVariant(id="dynamic", mode="dynamic", train="train"),
    LowRankVariant(keep=0.6),
    StudentVariant(train="train", epochs=1),
]


@pytest.fixture(scope="module")
def base() -> nn.Module:
    module = small_cnn()
    fit(module, *encoded(toy_target(), TRAIN), config=TrainingConfig(epochs=12, lr=0.02))
    return module.eval()


def build(variant: Variant, module: nn.Module, root: Path, seed: int = 0) -> Built:
    save_file(small_cnn(seed=3).state_dict(), root / "other.safetensors")
    context = FakeContext(root, variant=variant.id or variant.name, seed=seed, sources={"train": TRAIN})
    return variant.build(toy_target(module), toy_samples(8), context)


def value(built: Built, name: str) -> float:
    found = next(metric.value for metric in built.metrics if metric.name == name)
    assert found is not None
    return found


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.id or variant.name)
def test_builds_a_copy_that_reloads_and_repeats(variant: Variant, base: nn.Module, tmp_path: Path) -> None:
    before = copy.deepcopy(base.state_dict())
    built = build(variant, base, tmp_path)
    assert all(torch.equal(base.state_dict()[name], before[name]) for name in before), "the base was changed"
    assert not built.module.training
    x, _ = encoded(toy_target(), toy_samples(8))
    reloaded = variant.wrap(copy.deepcopy(base))
    reloaded.load_state_dict(built.module.state_dict())
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(x), built.module(x))
        assert not torch.allclose(built.module(x), base(x), atol=1e-5)
    again = build(variant, base, tmp_path)
    pairs = zip(built.module.state_dict().values(), again.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    names = [metric.name for metric in built.metrics]
    assert len(set(names)) == len(names)
    assert load("defenses", variant.name) is type(variant)


def test_what_the_metrics_say_is_so(base: nn.Module, tmp_path: Path) -> None:
    pruned = build(VARIANTS[7], base, tmp_path)
    assert value(pruned, "sparsity") == pytest.approx(0.6, abs=0.01)
    trained = build(VARIANTS[8], base, tmp_path)
    assert value(trained, "sparsity") == pytest.approx(0.6, abs=0.01)
    assert value(trained, "agreement") > 0.8
    narrow = build(VARIANTS[9], base, tmp_path)
    assert parameter_count(narrow.module) < 0.6 * parameter_count(base)
    assert narrow.parameters["channels"] == {"0": [8, 4]}
    quantized = build(VARIANTS[10], base, tmp_path)
    assert value(quantized, "integer_agreement") > 0.99
    assert value(quantized, "agreement") > 0.95
    assert value(quantized, "integer_latency_ms") > 0
    assert state_bytes(quantized.module) < 0.5 * state_bytes(base)
    assert parameter_count(quantized.module) == parameter_count(base)
    weighted = build(VARIANTS[6], base, tmp_path)
    assert value(weighted, "weight_0") > 0.8, "the second member was never trained"
    student = build(VARIANTS[13], base, tmp_path)
    assert parameter_count(student.module) < 0.6 * parameter_count(base)


def test_fresh_members_differ_by_seed(base: nn.Module, tmp_path: Path) -> None:
    module = build(VARIANTS[4], base, tmp_path).module
    weights = [module.get_parameter(f"members.{i}.0.weight") for i in range(3)]
    assert torch.equal(weights[0], base.get_parameter("0.weight"))
    assert not torch.allclose(weights[1], weights[2], atol=1e-3)


def test_silenced_heads(tmp_path: Path) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
            self.head = nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1, 2)
            return self.head(self.attention(x, x, x, need_weights=False)[0].flatten(1))

    torch.manual_seed(0)
    built = build(PruningVariant(structure="heads", amount=0.5), Attends().eval(), tmp_path)
    assert len(built.parameters["heads"]["attention"]) == 2
    assert built.summary.startswith("The 2 attention heads")


def test_a_footprint_is_what_is_held() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 10)).eval()
    found = footprint(module, torch.rand(1, 1, 8, 8), repeats=7)
    assert found.parameters == 64 * 1000 + 1000 + 1000 * 10 + 10
    assert found.size == 4 * found.parameters
    assert len(found.seconds) == 7
    assert found.peak == 2 * 4000, "before and after the rectifier, and no more"
    inplace = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000), nn.ReLU(inplace=True), nn.Linear(1000, 10)).eval()
    assert footprint(inplace, torch.rand(1, 1, 8, 8), repeats=1).peak == 4000 + 40


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (PreprocessingVariant, {}),
        (PreprocessingVariant, {"jpeg": 0}),
        (EnsembleVariant, {}),
        (EnsembleVariant, {"count": 2}),
        (EnsembleVariant, {"members": ["a"], "combine": "weighted"}),
        (PruningVariant, {"amount": 1.0}),
        (QuantizationVariant, {"mode": "static"}),
        (RandomizedSmoothingVariant, {"sigma": 0}),
    ],
)
def test_bad_options(cls: type[Variant], options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate(options)


def test_filters_need_images(tmp_path: Path) -> None:
    target = toy_target()
    with pytest.raises(UnsupportedError, match="not for text"):
        RandomizedSmoothingVariant().build(replace(target, modality="text"), toy_samples(8), FakeContext(tmp_path))
    with pytest.raises(UnsupportedError, match="this model takes tabular"):
        PreprocessingVariant(jpeg=50).build(replace(target, modality="tabular"), toy_samples(8), FakeContext(tmp_path))


MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4)
    )
"""
SPEC = """version: 1
model: {factory: model.py:build, weights: model.safetensors}
data: {source: test.npz}
checks:
  - performance: {variants: [pruning, quantization]}
  - evasion: {id: linf, norm: linf, eps: 0.05, attack: pgd, steps: 3, diagnostics: false}
  - transfer: {norm: linf, eps: 0.05, steps: 3, variants: [base, channels]}
  - certification: {norm: linf, eps: 0.01, method: crown_ibp, steps: 5, variants: [base, channels], limit: 6}
  - certification: {id: smooth, norm: l2, eps: 0.1, steps: 5, variants: [smoothed], n: 100, limit: 6}
variants:
  - pruning: {amount: 0.5, train: train.npz, epochs: 1}
  - pruning: {id: channels, structure: channels, amount: 0.5}
  - quantization: {train: train.npz}
  - randomized_smoothing: {id: smoothed, sigma: 0.1, draws: 8}
gates:
  - quantization:linf.robust_accuracy >= 0.1
"""


@pytest.fixture(scope="module")
def audited(base: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    (folder / "model.py").write_text(MODEL)
    save_file(base.state_dict(), folder / "model.safetensors")
    np.savez(folder / "train.npz", x=TRAIN.inputs[np.arange(120)], y=TRAIN.labels)
    (folder / "audit.yaml").write_text(SPEC)
    run_audit(load_spec(folder / "audit.yaml"), folder / "out")
    return folder


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/audit.json").read_text())


def test_a_whole_audit_of_compressed_models_runs_and_verifies(audited: Path) -> None:
    found = record(audited)
    assert [variant["status"] for variant in found["variants"]] == ["ok"] * 5
    problems = [
        (variant["id"], result["id"], result["error"])
        for variant in found["variants"]
        for result in variant["results"]
        if result["status"] != "ok"
    ]
    assert problems == []
    claims = list(verify(audited / "out"))
    assert [claim for claim in claims if not claim.ok] == []
    said = " ".join(claim.what for claim in claims)
    for part in ("quantization:linf:", "channels:transfer:", "smoothed:smooth:", "pruning:performance:"):
        assert part in said


def test_running_again_takes_everything_over(audited: Path) -> None:
    before = record(audited)
    kept = [path for path in (audited / "out/results").iterdir() if len(path.stem) == 64]
    files = {path: path.stat().st_mtime_ns for path in kept}
    assert len(files) > 10
    run_audit(load_spec(audited / "audit.yaml"), audited / "out")
    after = record(audited)
    assert {path: path.stat().st_mtime_ns for path in kept} == files
    assert after["variants"] == before["variants"]
    for variant in after["variants"]:
        names = {metric["name"] for metric in variant["metrics"]}
        assert {"parameters", "size_bytes", "latency_ms", "peak_memory_bytes"} <= names


def test_a_forged_quantised_model_is_caught(audited: Path) -> None:
    path = audited / "out/evidence/quantization/model.safetensors"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        failed = [claim.what for claim in verify(audited / "out") if not claim.ok]
        assert any("quantization" in what for what in failed)
    finally:
        path.write_bytes(content)
