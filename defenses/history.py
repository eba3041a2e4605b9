"""What a training went through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..attacks.errors import AuditError


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass gave: mean loss, share of its training inputs classified correctly, last learning rate,
    validation score (None without validation), seconds."""

    loss: float
    accuracy: float
    lr: float
    validation: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class History:
    """All epochs of a training, which one (0-based) the final weights are from (-1: those before the training), and
    why it ended before its time (empty when it did not)."""

    epochs: tuple[Epoch, ...]
    kept: int
    stopped: str = ""

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)


class DivergedError(AuditError):
    """Loss or weights became infinite or NaN; the module holds the last good weights, ``history`` the good epochs."""

    def __init__(self, history: History, lr: float, file: Path | None = None) -> None:
        done = len(history.epochs)
        kept = history.kept + 1
        super().__init__(
            f"training diverged in epoch {done + 1} (loss or weights not finite, learning rate {lr:g}); the weights "
            f"from {f'the end of epoch {kept}' if kept else 'before the training'} were kept"
            f"{f' in {file}' if file else ''}. Lower lr, or set clip_norm."
        )
        self.history = history
        self.file = file
