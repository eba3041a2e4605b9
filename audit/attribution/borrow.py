"""A module lent to Captum and given back as found."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ...attacks.models import attacking

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_NOTES = ("input", "output")  # what Captum's DeepLift leaves on activations when a pass is broken off


@contextmanager
def explaining(module: nn.Module) -> Iterator[None]:
    """Eval mode, frozen parameters, in-place activations switched to copies; all undone, also after an exception.

    In-place activations overwrite the layer outputs that Grad-CAM and DeepLift read. Hooks that a library added
    and did not take away again are removed.
    """
    inplace = [part for part in module.modules() if part.__dict__.get("inplace") is True]
    tables = [(table, set(table)) for part in module.modules() for table in _tables(part)]
    noted = {(id(part), note) for part in module.modules() for note in _NOTES if note in part.__dict__}
    with attacking(module):
        try:
            for part in inplace:
                part.__dict__["inplace"] = False
            yield
        finally:
            for part in inplace:
                part.__dict__["inplace"] = True
            for table, before in tables:
                for key in set(table) - before:
                    del table[key]
            for part in module.modules():
                for note in _NOTES:
                    if note in part.__dict__ and (id(part), note) not in noted:
                        delattr(part, note)


def _tables(part: nn.Module) -> Iterator[MutableMapping[int, Any]]:
    for name in _HOOKS:
        table = part.__dict__.get(name)
        if table is not None:
            yield table
