"""Every record's gradient from one backward pass (book-keeping, arXiv 2210.00038).

While the tape records, the layers' parameters take no gradients: backward only goes through the activations, and what
passes each layer's output is kept beside what came into it. From these two follow the records' gradient norms and any
weighted sum of their gradients, without a second backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...attacks.errors import UnsupportedError
from .attention import attend
from .rules import NORMS, Rule, rule_for, widened
from .shares import Share, Shares, merged
from .vmapped import vmapped_shares


@dataclass(frozen=True, slots=True)
class RecordGradients:
    """The gradients of a batch's records, parameter by parameter.

    Attributes:
        parameters: those that are trained, in the module's order.
        shares: one for each of them.
        squared_norms: ``(parameters, records)``, squared l2 norms.
    """

    parameters: tuple[nn.Parameter, ...]
    shares: tuple[Share, ...]
    squared_norms: Tensor

    def norms(self) -> Tensor:
        """l2 norm ``(records,)`` of each record's whole gradient."""
        return self.squared_norms.sum(0).sqrt()

    def add_to(self, totals: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Adds to each total the parameter's sum over the records, each times its weight ``(records,)``."""
        with exact(self.squared_norms.device.type):
            for share, total, one in zip(self.shares, totals, weights, strict=True):
                share.add_to(total, one)

    def weighted_sums(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """For each parameter the sum over the records, each times its weight ``(records,)`` for that parameter."""
        with exact(self.squared_norms.device.type):
            return [share.weighted_sum(one) for share, one in zip(self.shares, weights, strict=True)]


def exact(device: str) -> AbstractContextManager[Any]:
    """A context without autocast, which would round the products from which norms and sums follow."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class Tape:
    """Watches the layers of ``module``; :meth:`remove` gives it back as it was.

    Layers with a rule (``rules.py``) and attention are handled in closed form; any other layer that holds parameters
    itself is run again, record by record side by side (``torch.func``), which is slower; :attr:`slow` names them.

    Args:
        module: its trained parameters are those that take gradients now; the switches must stay.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.slow: tuple[str, ...] = ()
        self._parameters = tuple(parameter for parameter in module.parameters() if parameter.requires_grad)
        if not self._parameters:
            raise UnsupportedError("no parameter takes gradients: there is nothing to train")
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        self._anchor = torch.zeros((), device=self._parameters[0].device, requires_grad=True)
        self._rows = self._records = 0
        self._places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        self._shares: list[list[Share]] = []
        self._norms: list[Tensor | None] = []
        self._shared_index: set[nn.Module] = set()
        self._taken: list[tuple[nn.Module, Any]] = []
        try:
            for name, layer in module.named_modules():
                self._watch_layer(name, layer)
        except UnsupportedError:
            self.remove()
            raise

    def remove(self) -> None:
        """Takes everything off the module."""
        for layer, own in reversed(self._taken):
            del layer.forward
            if own is not None:
                layer.forward = own
        self._taken = []

    @contextmanager
    def recording(self, records: int, views: int = 1) -> Iterator[None]:
        """Records the passes of a batch with ``records * views`` rows, the views of a record one after the other."""
        self._rows, self._records = records * views, records
        self._shares = [[] for _ in self._parameters]
        self._norms = [None] * len(self._parameters)
        try:
            yield
        finally:
            self._rows, self._shares, self._norms = 0, [], []

    def gradients(self, loss: Tensor) -> RecordGradients:
        """Goes back from ``loss``, the sum of the records' losses, once. Call it while recording; ``grad`` is cleared.

        Raises:
            UnsupportedError: when a trained parameter takes no part, or is used outside its layer's forward pass.
        """
        for parameter in self._parameters:
            parameter.grad = None
        with exact(loss.device.type):  # also in what is called on the way back
            loss.backward()
            self._check_complete()
            shares = tuple(merged(found) for found in self._shares)
            norms = [
                share.norms() if known is None else known for share, known in zip(shares, self._norms, strict=True)
            ]
            squared = torch.stack(norms).square_()
        return RecordGradients(self._parameters, shares, squared)

    def _check_complete(self) -> None:
        for parameter, found in zip(self._parameters, self._shares, strict=True):
            if parameter.grad is not None:
                parameter.grad = None
                raise UnsupportedError(
                    f"DP-SGD cannot train {self._names[parameter]}: it is used outside the forward pass of its layer, "
                    "where its gradients by record cannot be seen; freeze it or call the layer"
                )
            if not found:
                raise UnsupportedError(
                    f"{self._names[parameter]} gives no gradient per record: it takes no part in the output; freeze it"
                )

    def watch(self, out: Tensor, then: Callable[[Tensor], None]) -> Tensor:
        """``out``, with ``then`` called on what backward brings to it."""
        if not out.requires_grad:
            out = _Anchored.apply(out, self._anchor)  # pyright: ignore[reportAssignmentType]
        out.register_hook(then)
        return out

    def add(self, layer: nn.Module, shares: Mapping[str, Share]) -> None:
        """Notes the shares of a layer's parameters and measures them while they are in the processor's cache."""
        own = layer._parameters
        for name, share in shares.items():
            place = self._places[id(own[name])]
            found = self._shares[place]
            found.append(share)
            self._norms[place] = share.norms() if len(found) == 1 else None  # what is used again is measured as a sum

    @property
    def records(self) -> int:
        return self._records

    def checked(self, layer: nn.Module, back: Tensor) -> Tensor:
        """``back`` in at least float32.

        Raises:
            UnsupportedError: when its first dimension is not the batch.
        """
        if back.ndim == 0 or back.shape[0] != self._rows:
            raise UnsupportedError(
                f"{self._name(layer)} gives {0 if back.ndim == 0 else len(back)} gradients for {self._rows} records: "
                "its layer must get the batch in its first dimension, once per record"
            )
        return widened(back.detach())

    def unchanged(self, layer: nn.Module, *inputs: Tensor) -> Callable[[], None]:
        """A function that refuses once one of ``inputs`` was changed in place, which would falsify the gradients."""
        versions = [value._version for value in inputs]

        def check() -> None:
            if [value._version for value in inputs] != versions:
                raise UnsupportedError(
                    f"DP-SGD cannot train {self._name(layer)}: its input is changed in place after it was used; "
                    "use operations that are not in place"
                )

        return check

    # What happens at each layer

    def _watch_layer(self, name: str, layer: nn.Module) -> None:
        # Some layers list the parameters of the layers inside them as their own (Opacus' recurrent ones).
        inside = {parameter for child in layer.children() for parameter in child.parameters()}
        own = [
            key for key, one in layer._parameters.items() if one is not None and one.requires_grad and one not in inside
        ]
        if isinstance(layer, nn.MultiheadAttention):
            if any(parameter.requires_grad for parameter in layer.parameters()):
                self._take_over(name, layer)
            return
        if not own:
            return
        rule = rule_for(layer)
        if rule is None:
            self.slow = (*self.slow, f"{name or 'the model'} ({type(layer).__name__})")
        self._replace(layer, self._recorded(layer, rule, own))

    def _replace(self, layer: nn.Module, forward: Callable[..., Any]) -> None:
        self._taken.append((layer, layer.__dict__.get("forward")))
        layer.forward = forward

    def _take_over(self, name: str, layer: nn.MultiheadAttention) -> None:
        if layer.bias_k is not None or layer.add_zero_attn:
            raise UnsupportedError(f"DP-SGD cannot train {name}: attention with add_bias_kv or add_zero_attn")
        native = layer.forward

        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            return attend(self, layer, *args, **kwargs) if self._active() else native(*args, **kwargs)

        self._replace(layer, forward)

    def _active(self) -> bool:
        return self._rows > 0 and torch.is_grad_enabled()

    def _recorded(self, layer: nn.Module, rule: Rule | None, names: list[str]) -> Callable[..., Any]:
        """The layer's forward pass, in which its parameters take no gradients and after which its output is watched.

        In place of hooks, which cost as much as a small layer, and inside of the layer's own hooks.
        """
        native, values = layer.forward, layer._parameters
        norm = None if rule is None else next((of for kind, of in NORMS.items() if isinstance(layer, kind)), None)
        trained = {name: values[name] for name in names}

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._active():
                return native(*args, **kwargs)
            if args and isinstance(args[0], Tensor):
                args = (self._spread(layer, args[0]), *args[1:])
            kept: Sequence[Tensor] = ()
            for name, parameter in trained.items():
                values[name] = parameter.detach()  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess]
            try:
                if norm is not None and len(args) == 1 and not torch.is_autocast_enabled(args[0].device.type):
                    out, *kept = norm(layer, args[0])
                else:
                    out = native(*args, **kwargs)
            finally:
                values.update(trained)
            return self._watched(layer, rule, args, kwargs, out, kept)

        return forward

    def _watched(
        self,
        layer: nn.Module,
        rule: Rule | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        kept: Sequence[Tensor],
    ) -> Tensor:
        if not isinstance(out, Tensor):
            raise UnsupportedError(
                f"DP-SGD cannot train {self._name(layer)} ({type(layer).__name__}): it holds parameters itself and "
                f"returns a {type(out).__name__}, not a tensor; freeze it"
            )
        if rule is None:
            return self.watch(out, self._run_again(layer, args, kwargs))
        if kwargs or len(args) != 1:
            raise UnsupportedError(f"{self._name(layer)} must be called with its input and nothing else")
        return self.watch(out, self._apply(rule, layer, args[0], kept))

    def _apply(self, rule: Rule, layer: nn.Module, seen: Tensor, kept: Sequence[Tensor]) -> Callable[[Tensor], None]:
        seen = seen.detach()
        check = self.unchanged(layer, seen)

        def then(back: Tensor) -> None:
            check()
            self.add(layer, rule(layer, widened(seen), self.checked(layer, back), self._records, *kept))

        return then

    def _run_again(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], None]:
        check = self.unchanged(layer, *(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

        def then(back: Tensor) -> None:
            check()
            back, rows = self.checked(layer, back), self._rows
            self._rows = 0  # the layers inside are not to be recorded again
            try:
                shares: Shares = vmapped_shares(layer, args, kwargs, back, self._records, self._name(layer))
            finally:
                self._rows = rows
            self.add(layer, shares)

        return then

    def _spread(self, layer: nn.Module, seen: Tensor) -> Tensor:
        """One input for all records (positions, say) once per record, so that each record has its own gradient."""
        if self._rows > 1 and seen.ndim > 0 and seen.shape[0] == 1:
            return seen.expand(self._rows, *seen.shape[1:])
        if isinstance(layer, nn.Embedding) and seen.ndim == 1:
            if seen.shape[0] != self._rows:
                self._shared_index.add(layer)
            if layer in self._shared_index:
                return seen.expand(self._rows, -1)
        return seen

    def _name(self, layer: nn.Module) -> str:
        """The name of a layer's first trained parameter, for messages."""
        for name, parameter in layer.named_parameters():
            if parameter in self._names and name:
                return self._names[parameter]
        return type(layer).__name__


class _Anchored(torch.autograd.Function):
    """Makes a tensor part of the graph although nothing before it takes gradients; later in-place work is allowed."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, _: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(_: Any, *back: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return back[0], None
