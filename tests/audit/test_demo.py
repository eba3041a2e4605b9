import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from auditorch.audit.demo import run as demo
from auditorch.audit.demo.make_assets import CLASSES, balanced
from auditorch.audit.demo.model import build
from auditorch.audit.errors import AuditError
from auditorch.audit.progress import Silent
from auditorch.audit.spec import load_spec
from auditorch.defenses.training import TrainingConfig
from safetensors import safe_open
from safetensors.torch import load_file

FOLDER = Path(demo.__file__).parent
BRIEF = TrainingConfig(epochs=1, batch_size=128, lr=3e-3)


class Notes(Silent):
    """A display that remembers its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.planned = 0.0
        self.done = 0.0

    def start(self, label: str, total: float) -> None:
        self.planned += total

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(("name", "per_class"), [("train", 600), ("test", 100)])
def test_data(name: str, per_class: int) -> None:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as data:
        x, y, classes = data["x"], data["y"], data["classes"]
    assert (x.dtype, x.shape) == (np.uint8, (10 * per_class, 28, 28))
    assert (y.dtype, np.bincount(y).tolist()) == (np.int64, [per_class] * 10)
    assert tuple(classes) == CLASSES
    assert x.min() == 0
    assert x.max() == 255
    assert len({image.tobytes() for image in x}) > 0.99 * len(x)


def test_no_training_image_is_in_the_test_data() -> None:
    with np.load(FOLDER / "train.npz") as train, np.load(FOLDER / "test.npz") as test:
        seen = {image.tobytes() for image in train["x"]}
        assert sum(image.tobytes() in seen for image in test["x"]) == 0


def test_balanced_takes_as_many_of_each_class_in_file_order() -> None:
    labels = np.random.default_rng(3).integers(0, 10, 500).astype(np.uint8)
    index = balanced(labels, 7)
    assert np.bincount(labels[index]).tolist() == [7] * 10
    assert (np.diff(index) > 0).all()
    assert np.array_equal(index, balanced(labels, 7))


def test_weights_fit_the_network_and_are_small() -> None:
    build().load_state_dict(load_file(FOLDER / "pretrained.safetensors"))
    assert (FOLDER / "pretrained.safetensors").stat().st_size < 1e6
    assert sum((FOLDER / name).stat().st_size for name in demo.ASSETS) < 5e6


def test_licence_names_owner_source_and_change() -> None:
    text = (FOLDER / "LICENSE-fashion-mnist.txt").read_text()
    for part in ("Copyright © 2017 Zalando SE", "The MIT License", "github.com/zalandoresearch", "6,000 of the 60,000"):
        assert part in text


def test_quick_changes_only_amounts(tmp_path: Path) -> None:
    demo.copy_assets(tmp_path, Silent())
    full, quick = load_spec(tmp_path / demo.SPEC), load_spec(tmp_path / demo.SPEC, demo.QUICK)
    assert [check.id for check in quick.checks] == [check.id for check in full.checks]
    assert [variant.id for variant in quick.variants] == [variant.id for variant in full.variants]
    assert quick.gates == full.gates
    assert len(demo.QUICK) == len({text.partition("=")[0] for text in demo.QUICK})
    assert quick.raw != full.raw


def test_audits_what_lies_in_the_folder_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec that the user has shortened is used as it is; the second run trains and examines nothing anew."""
    monkeypatch.setattr(demo, "FINE_TUNING", BRIEF)
    spec = yaml.safe_load((FOLDER / demo.SPEC).read_text())
    spec |= {"data": {"source": "test.npz", "limit": 200}, "checks": ["performance"], "variants": []}
    spec["gates"] = ["performance.accuracy >= 0.5"]
    (tmp_path / demo.SPEC).write_text(yaml.safe_dump(spec))
    display = Notes()
    record, report = demo.run_demo(tmp_path, display=display)
    assert record.verdict == "pass"
    assert any("audit.yaml was changed" in note for note in display.notes)
    assert display.done >= display.planned > 0
    assert json.loads((report / "audit.json").read_text())["verdict"] == "pass"
    assert (report / "report.html").stat().st_size > 1000
    assert record.model.weights == "model.safetensors"
    weights = (tmp_path / demo.WEIGHTS).read_bytes()

    again = Notes()
    second, _ = demo.run_demo(tmp_path, display=again)
    assert any("fine-tuning is skipped" in note for note in again.notes)
    assert second.variants[0].results == record.variants[0].results
    assert (tmp_path / demo.WEIGHTS).read_bytes() == weights


def test_fine_tuning_repeats_and_notices_a_changed_recipe(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        demo.copy_assets(folder, Silent())
        demo.fine_tune(folder, BRIEF, Silent())
    weights = (first / demo.WEIGHTS).read_bytes()
    assert weights == (second / demo.WEIGHTS).read_bytes()
    with safe_open(first / demo.WEIGHTS, "pt") as file:
        assert (file.metadata() or {})["recipe"]
    (first / demo.WEIGHTS).write_bytes(weights[:100])
    demo.fine_tune(first, BRIEF, Silent())
    assert (first / demo.WEIGHTS).read_bytes() == weights, "a damaged file is made again"
    demo.fine_tune(first, TrainingConfig(epochs=1, batch_size=128, lr=1e-3), Silent())
    assert (first / demo.WEIGHTS).read_bytes() != weights


def test_a_folder_that_cannot_be_made_is_a_clean_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot write"):
        demo.run_demo(tmp_path / "file" / "demo")


@pytest.mark.slow
def test_quick_demo(tmp_path: Path) -> None:
    record, report = demo.run_demo(tmp_path, quick=True)
    assert all(variant.status == "ok" for variant in record.variants)
    assert all(result.status == "ok" for variant in record.variants for result in variant.results)
    verdicts = [gate.verdict for gate in record.gates]
    assert "fail" in verdicts
    assert "pass" in verdicts
    robust = {}
    for variant in record.variants:
        linf = variant.result("linf")
        metric = linf.metric("robust_accuracy") if linf else None
        assert metric is not None
        robust[variant.id] = metric.value or 0.0
    assert robust["adversarial_training"] > robust["base"] + 0.2
    assert (report / "report.html").exists()
