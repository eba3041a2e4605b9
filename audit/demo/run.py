"""The demo: fine-tunes a small network on real images, then audits it like any user's model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...defenses.augmentation import RandomFlip
from ...defenses.scope import reset_head
from ...defenses.training import TrainingConfig, fit
from ...reports.record import AuditRecord
from ..context import Sources, choose_device
from ..loading.model import inner, load
from ..progress import Display, Silent, Step
from ..runner import run_audit
from ..spec import load_spec
from ..storage import write_atomic
from ..variants.training import EncodedInputs

SPEC, TRAIN, PRETRAINED, WEIGHTS = "audit.yaml", "train.npz", "pretrained.safetensors", "model.safetensors"
ASSETS = (SPEC, "model.py", TRAIN, "test.npz", PRETRAINED, "LICENSE-fashion-mnist.txt")

ASSET_FOLDER = Path(__file__).parent

FINE_TUNING = TrainingConfig(epochs=20, batch_size=64, lr=2e-3, weight_decay=0.05, warmup=0.1, ema=0.995)
QUICK_FINE_TUNING = TrainingConfig(epochs=5, batch_size=64, lr=2e-3, weight_decay=0.05, warmup=0.1, ema=0.98)
QUICK = (
    "data.limit=150",
    "linf.steps=10",
    "linf.curve=[0.05, 0.1]",
    "l2.steps=10",
    "l2.diagnostics=false",
    "blackbox.limit=5",
    "corruption.limit=20",
    "adversarial_training.epochs=3",
    "adversarial_training.steps=3",
    "regularization.epochs=2",
    "dp_sgd.epochs=3",
)
"""What ``--quick`` sets in the spec, as ``auditorch run --set`` would."""


def run_demo(output: Path, *, quick: bool = False, display: Display | None = None) -> tuple[AuditRecord, Path]:
    """Leaves spec, model and data in ``output``, audits them, and returns the record and the report's folder.

    Run again, it goes on where it stopped: the fine-tuned weights and every finished result are kept. A file of
    ``output`` that was changed is used as it is.

    Raises:
        AuditError: when ``output`` cannot be written, or a changed file cannot be used.
    """
    display = display or Silent()
    copy_assets(output, display)
    report = output / "report"
    with one_thread():
        fine_tune(output, QUICK_FINE_TUNING if quick else FINE_TUNING, display)
        spec = load_spec(output / SPEC, QUICK if quick else ())
        return run_audit(spec, report, display=display), report


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch on one thread: the demo's network is so small that more of them cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def copy_assets(output: Path, display: Display) -> None:
    """Puts the demo's files into ``output``; what is there and differs stays."""
    for name in ASSETS:
        content = (ASSET_FOLDER / name).read_bytes()
        path = output / name
        if not path.exists():
            write_atomic(path, content)
        elif path.read_bytes() != content:
            display.note(f"{path} was changed since it was made; it is used as it is")


def fine_tune(output: Path, config: TrainingConfig, display: Display) -> None:
    """Trains the pre-trained network on the demo's training data and writes its weights, unless that is done."""
    recipe = _recipe(output, config)
    if _recipe_of(output / WEIGHTS) == recipe:
        display.note(f"{output / WEIGHTS} is there already: fine-tuning is skipped")
        return
    spec = load_spec(output / SPEC, [f"model.weights={PRETRAINED}"])
    target, _ = load(spec, choose_device("auto"))
    train = Sources(spec, target.classes)(TRAIN)
    module = target.module
    reset_head(module, config.seed)
    with display:
        step = Step("fine-tuning", "fine-tuning")
        display.plan([step])
        display.begin(step)
        display.start("fine-tuning", config.epochs * len(train))
        history = fit(
            module,
            EncodedInputs(train.inputs, target.encode),
            torch.from_numpy(train.labels),
            config=config,
            augment=RandomFlip(),
            on_samples=display.advance,
        )
        display.end(step, "ok")
    display.note(f"fine-tuned for {len(history.epochs)} epochs; training accuracy {history.epochs[-1].accuracy:.1%}")
    state = {name: tensor.cpu().contiguous() for name, tensor in inner(module).state_dict().items()}
    write_atomic(output / WEIGHTS, save(state, metadata={"recipe": recipe}))


def _recipe(output: Path, config: TrainingConfig) -> str:
    """Hash of everything that the fine-tuned weights depend on."""
    contents: Sequence[bytes] = [(output / name).read_bytes() for name in ("model.py", TRAIN, PRETRAINED)]
    parts = [hashlib.sha256(content).hexdigest() for content in contents]
    return hashlib.sha256(repr((parts, asdict(config), torch.__version__)).encode()).hexdigest()


def _recipe_of(weights: Path) -> str | None:
    """The recipe noted in a weights file; None when there is no such file or note."""
    try:
        with safe_open(weights, "pt") as file:
            return (file.metadata() or {}).get("recipe")
    except (OSError, SafetensorError):
        return None
