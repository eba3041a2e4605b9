"""Steps that need the same buffers find them again."""

import resource
import sys

import pytest
import torch
from auditorch.attacks.memory import LARGEST_KEPT, freed_memory_kept


def new_pages() -> int:
    """How often this process is given a page while it fills and frees 240 MB, the second time."""
    held = [torch.ones(LARGEST_KEPT // 8) for _ in range(14)]
    held.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(LARGEST_KEPT // 8) for _ in range(14)]
    held.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts pages of Linux")
def test_freed_memory_stays_until_the_last_context_closes() -> None:
    outer = new_pages()
    with freed_memory_kept():
        with freed_memory_kept():
            pass
        inside = new_pages()
    after = new_pages()
    assert inside < 2_000 < min(outer, after)
