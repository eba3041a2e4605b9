"""Operations whose result the host must wait for, counted without a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = ("_local_scalar_dense", "nonzero", "equal.default", "masked_select", "unique", "is_nonzero")


class Syncs(TorchDispatchMode):
    """Counts values read by the host, ``nonzero``, and reads and writes by a mask (a ``nonzero`` for each mask)."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(("aten.index.", "aten.index_put", "aten._index_put_impl")):
            self.count += sum(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        self.count += any(word in name for word in _WAITING)
        return func(*args, **(kwargs or {}))
