"""Noise from a cipher is normal in its middle and its tails, and never the same twice."""

import hashlib
import math

import numpy as np
import pytest
import torch
from auditorch.privacy.gaussian import Gaussian
from auditorch.privacy.randomness import Streams
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from scipy import stats

KEY = bytes(range(32))


def draw(
    n: int,
    size: float = 1.0,
    key: bytes = KEY,
    stream: int = 0,
    dtype: type[np.float32] | type[np.float64] = np.float32,
) -> NDArray[np.floating]:
    out = np.full(n, np.nan, dtype)
    Gaussian(key, dtype).fill(out, size, stream)
    return out


@pytest.mark.parametrize(("dtype", "n"), [(np.float32, 2_000_000), (np.float64, 300_000)])
def test_the_distribution_is_normal_in_middle_and_tails(dtype: type[np.float32] | type[np.float64], n: int) -> None:
    """Every statistic lies within four standard errors; the seed is fixed, so this is a known answer."""
    z = draw(n, dtype=dtype).astype(np.float64)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    for power, expected, variance in ((2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - expected) < 4 * math.sqrt(variance / n), power
    for tail in (2.0, 3.0, 4.0, 4.5):
        expected = 2 * n * stats.norm.sf(tail)
        assert abs((np.abs(z) > tail).sum() - expected) < 4 * math.sqrt(expected) + 1, tail
    assert stats.kstest(z[:200_000], "norm").pvalue > 0.01
    for lag in (1, 2**14, 2**15):  # neighbours, partners of a pair, the next chunk
        assert abs((z[lag:] * z[:-lag]).mean()) < 4 / math.sqrt(n - lag), lag
        assert abs((z[lag:] ** 2 * z[:-lag] ** 2).mean() - 1) < 4 * math.sqrt(8 / (n - lag)), lag


@pytest.mark.parametrize("n", [1, 2, 7, 2**15 + 1])
def test_two_words_make_two_numbers(n: int) -> None:
    """The transform, written out in double precision on the words of the cipher."""
    encryptor = Cipher(algorithms.AES256(KEY), modes.CTR(bytes(7) + b"\x05" + bytes(8))).encryptor()
    expected: list[float] = []
    while len(expected) < n:
        words = np.frombuffer(encryptor.update(bytes(4 * 2**15)), "<u4").reshape(2, -1)
        half = min(2**14, (n - len(expected) + 1) // 2)
        radius = np.sqrt(-2 * np.log((words[0, :half] | 1) / 2.0**32))
        angle = 2 * np.pi * words[1, :half] / 2.0**32
        expected += [*(radius * np.cos(angle)), *(radius * np.sin(angle))][: n - len(expected)]
    found = draw(n, size=3.0, stream=5)
    np.testing.assert_allclose(found, 3 * np.array(expected), rtol=1e-4, atol=2e-5)


def test_noise_of_a_step_is_repeatable_and_nothing_else_is_like_it() -> None:
    def noise(seed: int, step: int, *, secure: bool = False) -> torch.Tensor:
        out = torch.empty(40_000)
        Streams.of(seed).noise(out, secure=secure)(out, 1.0, step)
        return out

    draws = [noise(1, 0), noise(1, 1), noise(2, 0), noise(1, 0, secure=True)]
    assert torch.equal(noise(1, 0), draws[0])
    for i, a in enumerate(draws):
        assert abs(float(a.std()) - 1) < 0.015
        for b in draws[i + 1 :]:
            limit = 0.03 if i or b is not draws[3] else 0.53  # the sum holds half of the first number
            assert abs(float((a * b).mean())) < limit


def test_secure_noise_is_half_the_sum_of_four() -> None:
    streams, total = Streams.of(3), torch.zeros(5000, dtype=torch.float64)
    key = hashlib.shake_256(streams.key + b"/noise/0").digest(32)
    for stream in (28, 29, 30, 31):
        total += torch.from_numpy(draw(5000, key=key, stream=stream)).double() / 2
    found = torch.empty(5000)
    streams.noise(found, secure=True)(found, 1.5, 7)
    torch.testing.assert_close(found.double(), 1.5 * total, rtol=1e-5, atol=1e-5)


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    """A training that goes on after a crash begins in the middle."""
    source, out, later = Gaussian(KEY, np.float32), np.empty(40_000, np.float32), np.empty(9, np.float32)
    source.fill(out, 1.0, 3)
    source.fill(later, 1.0, 2**63)
    np.testing.assert_array_equal(later, draw(9, stream=2**63))
    assert not np.isin(later, out).any()
