"""Where the random generators of a training stand, as tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def random_state(generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """States of ``generator``, of torch's own and, on a GPU, of the device's (dropout draws from these)."""
    states = {"generator": generator.get_state(), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random_state(states: Mapping[str, Tensor], generator: torch.Generator, device: torch.device) -> None:
    """Sets the generators to what :func:`random_state` gave."""
    generator.set_state(states["generator"])
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
