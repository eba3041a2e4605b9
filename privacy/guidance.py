"""Advice before a private training starts: is the batch large enough, is the learning rate within reason?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .accounting import rdp_noise

_GAIN = 0.1
_DOMINATED = 3.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What the advice depends on.

    Args:
        records: size of the data.
        numbers: trained parameters, as numbers.
        length: l2 norm of the weights at the start, over the trained parameters.
    """

    epsilon: float | None
    delta: float
    noise_multiplier: float
    batch_size: int
    epochs: int
    steps: int
    records: int
    numbers: int
    length: float
    max_grad_norm: float
    lr: float
    sgd: bool


def advice(setting: Setting) -> Iterator[str]:
    """Sentences, each with a value to try; none when the setting is within good practice (arXiv 2303.00654)."""
    larger = _better_batch(setting)
    if larger is not None:
        batch, gain = larger
        yield (
            f"batch_size {setting.batch_size} is small for DP-SGD: at the same epsilon and epochs, batches of {batch} "
            f"would carry {gain:.0%} less noise over the whole training; try batch_size: {batch} with a learning rate "
            f"{batch / setting.batch_size:.3g} times as high"
        )
    walked = _noise_walk(setting)
    if setting.sgd and setting.length > 0 and walked > _DOMINATED * setting.length:
        lr = setting.lr * setting.length / walked
        yield (
            f"at lr {setting.lr:g} the noise alone moves the weights {walked / setting.length:.1f} times their own "
            f"length ({setting.length:.3g}) over the training, so little of the start will be left; try lr: {lr:.2g}"
        )


def _noise_walk(setting: Setting) -> float:
    """Expected length of the sum of all noise that the weights take in (random walk, sgd without momentum)."""
    step = setting.lr * setting.max_grad_norm * setting.noise_multiplier / setting.batch_size
    return step * math.sqrt(setting.steps * setting.numbers)


def _better_batch(setting: Setting) -> tuple[int, float] | None:
    """The smallest doubling of the batch after which another gains little, and how much less noise it means.

    At a fixed number of epochs and a learning rate in proportion to the batch, the noise that the weights take in is in
    proportion to ``noise multiplier / sqrt(batch)``.
    """
    if setting.noise_multiplier == 0 or setting.epsilon is None:
        return None

    def noise(batch: int) -> float:
        rate = batch / setting.records
        multiplier = rdp_noise(setting.epsilon or 1.0, rate, math.ceil(setting.epochs / rate), setting.delta)
        return multiplier / math.sqrt(batch)

    batch, present = setting.batch_size, noise(setting.batch_size)
    best = present
    while 2 * batch <= setting.records // 2:
        doubled = noise(2 * batch)
        if doubled > (1 - _GAIN) * best:
            break
        batch, best = 2 * batch, doubled
    return None if batch == setting.batch_size else (batch, 1 - best / present)
