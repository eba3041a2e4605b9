"""The model under attack: borrowed and given back as found, counted, and checked for nonsense."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from .attack import Model
from .batching import bucket
from .errors import UnsupportedError

Precision = Literal["float32", "bfloat16"]
_NOTHING = nullcontext()


@contextmanager
def attacking(model: Model) -> Iterator[None]:
    """Puts a module into eval mode with frozen parameters, and gives it back as found, also after an exception.

    Parameter gradients left on would cost a quarter of every backward pass, and would add to ``.grad``. Each
    submodule's train flag and each parameter's ``requires_grad`` is restored. Callables that are not modules are
    left alone.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


class CountingModel:
    """A model that counts the samples passed through it, forwards and backwards.

    Args:
        model: what to call. Wrap a module with :func:`attacking` around the whole attack.
        screened: promise that every input given to the attack is still worth attacking, so that the attack
            need not spend a forward pass to find out (:func:`~auditorch.attacks.search.attackable` reads it).
        precision: ``bfloat16`` runs the model under autocast; logits come back in float32 either way.
        channels_last: hands 4-d inputs over in channels-last memory layout.
    """

    def __init__(
        self,
        model: Model,
        *,
        screened: bool = False,
        precision: Precision = "float32",
        channels_last: bool = False,
    ) -> None:
        self.model = model
        self.screened = screened
        self.precision = precision
        self.channels_last = channels_last
        self.forwards = 0
        self.backwards = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        device, half = x.device.type, self.precision == "bfloat16"
        # Entering a context that changes nothing costs more than a small layer.
        with torch.autocast(device, torch.bfloat16, half) if half or torch.is_autocast_enabled(device) else _NOTHING:
            logits = self.model(x)
        if isinstance(logits, Tensor):
            if logits.dtype not in (torch.float32, torch.float64):
                logits = logits.float()
            if logits.requires_grad:
                logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Compiled:
    """A model behind ``torch.compile``. Batches are filled up to a few sizes, so that few graphs are compiled.

    Args:
        model: as given; called eagerly for verification.
        backend: of ``torch.compile``; None: its default.
    """

    def __init__(self, model: Model, backend: str | None = None) -> None:
        options = {} if backend is None else {"backend": backend}
        with _explained():
            self._call: Model = torch.compile(model, dynamic=False, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def __call__(self, x: Tensor) -> Tensor:
        missing = bucket(len(x)) - len(x)
        if missing:
            x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        with _explained():
            logits = self._call(x)
        return logits[: len(x) - missing] if missing and isinstance(logits, Tensor) else logits

    @contextmanager
    def caching(self) -> Iterator[None]:
        """Allows as many graphs as there are batch sizes, with and without gradients; torch gives up after eight."""
        with torch._dynamo.config.patch(recompile_limit=64), warnings.catch_warnings():
            # The compiler looks at the gradient of batches that were filled up, which have none and need none.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor", category=UserWarning)
            yield


@contextmanager
def _explained() -> Iterator[None]:
    """Turns the compiler's own errors into ours."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedError(f"torch.compile cannot compile the model ({reason}): leave compile off") from error


def check_logits(logits: object, n: int) -> Tensor:
    """``logits`` when they are ``(n, k)`` floats with k >= 2.

    Raises:
        UnsupportedError: saying what the model returned instead, and what to return.
    """
    wanted = f"return one row of class logits per input, shape ({n}, k) with k >= 2"
    if not isinstance(logits, Tensor):
        raise UnsupportedError(f"the model returned a {type(logits).__name__}, not a tensor: {wanted}")
    if logits.dim() != 2 or len(logits) != n or logits.shape[1] < 2:
        shape = tuple(logits.shape)
        raise UnsupportedError(
            f"the model returned shape {shape} for {n} inputs: {wanted} (binary models: two columns)"
        )
    if not logits.is_floating_point():
        raise UnsupportedError(f"the model returned {logits.dtype}: {wanted}, not labels")
    return logits
