"""The gradient of each record with respect to one parameter, in the form in which it is cheapest.

A share answers two questions: how long is each record's gradient, and what is the weighted sum over the records. Both
can often be had without ever forming a record's gradient: for a matrix it is a sum of outer products of what came in
and what came back (arXiv 1510.01799, 2110.05679).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ...attacks.memory import LARGEST_KEPT

_TOUCH = 12
"""Products that a core can make in the time in which it writes one number to memory and reads it twice."""

KEPT_NUMBERS = LARGEST_KEPT // 4 - 2**10
"""Most numbers that one parameter's gradients per record may take up: in float32 what the C library keeps."""


def lengths(values: Tensor) -> Tensor:
    """l2 norm ``(b,)`` of each row of ``(b, …)``; no copy of the values is made."""
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


class Share(ABC):
    """What the records of a batch contribute to the gradient of one parameter."""

    @abstractmethod
    def norms(self) -> Tensor:
        """l2 norm ``(b,)`` of each record's gradient."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Sum over the records, each times its weight; ``weights`` is ``(b,)``."""

    @abstractmethod
    def per_record(self) -> Tensor:
        """Every record's gradient, ``(b, *shape)``."""

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        """Adds the weighted sum to ``total``, which is contiguous."""
        total.add_(self.weighted_sum(weights))


Shares = dict[str, Share]
"""By the layer's own parameter names, for those that take gradients."""


@dataclass(slots=True)
class Formed(Share):
    """Gradients that are already there: ``gradients`` is ``(b, *shape)``."""

    gradients: Tensor

    def norms(self) -> Tensor:
        return lengths(self.gradients)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        shape = self.gradients.shape[1:]
        return (weights @ self.gradients.flatten(1)).view(shape)

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        gradients = self.gradients
        if gradients.ndim > 2:
            total, gradients = total.view(-1), gradients.flatten(1)
        total.addmv_(gradients.T, weights)

    def per_record(self) -> Tensor:
        return self.gradients


@dataclass(slots=True)
class Outer(Share):
    """A matrix ``(o, i)`` that met each record once: the gradient is the outer product of ``back`` and ``seen``.

    Args:
        seen: ``(b, i)``, what came into the layer.
        back: ``(b, o)``, what came back to its output.
    """

    seen: Tensor
    back: Tensor

    def norms(self) -> Tensor:
        return lengths(self.seen) * lengths(self.back)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return (self.back * weights.unsqueeze(1)).T @ self.seen

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        total.addmm_((self.back * weights.unsqueeze(1)).T, self.seen)

    def per_record(self) -> Tensor:
        return self.back.unsqueeze(2) * self.seen.unsqueeze(1)


@dataclass(slots=True)
class Outers(Share):
    """A matrix ``(o, i)`` that met each record ``t`` times: the sum of ``t`` outer products, by Gram matrices.

    Args:
        seen: ``(b, t, i)``.
        back: ``(b, t, o)``.
    """

    seen: Tensor
    back: Tensor

    def norms(self) -> Tensor:
        inside = torch.bmm(self.seen, self.seen.transpose(1, 2)).flatten(1)
        outside = torch.bmm(self.back, self.back.transpose(1, 2)).flatten(1)
        return torch.linalg.vecdot(inside, outside).clamp_min_(0).sqrt_()  # rounding may leave a tiny negative number

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return (self.back * weights.view(-1, 1, 1)).flatten(0, 1).T @ self.seen.flatten(0, 1)

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        total.addmm_((self.back * weights.view(-1, 1, 1)).flatten(0, 1).T, self.seen.flatten(0, 1))

    def per_record(self) -> Tensor:
        return torch.bmm(self.back.transpose(1, 2), self.seen)


@dataclass(slots=True)
class Lookup(Share):
    """An embedding table ``(rows, d)``: record by record, ``back`` lands on the rows that ``index`` names.

    Args:
        index: int64 ``(b, t)``.
        back: ``(b, t, d)``.
        ignored: the row that is never trained (padding), or None.
    """

    index: Tensor
    back: Tensor
    rows: int
    ignored: int | None = None

    def _kept(self) -> Tensor:
        return self.back if self.ignored is None else self.back * (self.index != self.ignored).unsqueeze(2)

    def norms(self) -> Tensor:
        b = len(self.index)
        keys = self.index + torch.arange(b, device=self.index.device).unsqueeze(1) * self.rows
        places, place = keys.flatten().unique(return_inverse=True)
        back = self._kept().flatten(0, 1)
        sums = back.new_zeros(len(places), back.shape[1]).index_add_(0, place, back)
        return back.new_zeros(b).index_add_(0, places // self.rows, lengths(sums).square_()).sqrt_()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        back = (self._kept() * weights.view(-1, 1, 1)).flatten(0, 1)
        return back.new_zeros(self.rows, back.shape[1]).index_add_(0, self.index.flatten(), back)

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        total.index_add_(0, self.index.flatten(), (self._kept() * weights.view(-1, 1, 1)).flatten(0, 1))

    def per_record(self) -> Tensor:
        b, _, d = self.back.shape
        keys = self.index + torch.arange(b, device=self.index.device).unsqueeze(1) * self.rows
        flat = self.back.new_zeros(b * self.rows, d).index_add_(0, keys.flatten(), self._kept().flatten(0, 1))
        return flat.view(b, self.rows, d)


@dataclass(slots=True)
class Arranged(Share):
    """A share whose numbers lie in another order than the parameter's.

    Args:
        arrange: from ``(b, …)`` in the order of the share to ``(b, *shape)``.
    """

    share: Share
    arrange: Callable[[Tensor], Tensor]

    def norms(self) -> Tensor:
        return self.share.norms()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return self.arrange(self.share.weighted_sum(weights).unsqueeze(0)).squeeze(0)

    def per_record(self) -> Tensor:
        return self.arrange(self.share.per_record())


@dataclass(slots=True)
class Deferred(Share):
    """Gradients too large to keep: their norms were taken some records at a time, the sum comes from one more pass of
    the layer alone."""

    measured: Tensor
    total: Callable[[Tensor], Tensor]
    form: Callable[[], Tensor]

    def norms(self) -> Tensor:
        return self.measured

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return self.total(weights)

    def per_record(self) -> Tensor:
        return self.form()


@dataclass(slots=True)
class Stacked(Share):
    """A parameter whose rows are several matrices one above the other, such as the projections of an attention."""

    parts: tuple[Share, ...]

    def norms(self) -> Tensor:
        return torch.linalg.vector_norm(torch.stack([part.norms() for part in self.parts]), dim=0)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return torch.cat([part.weighted_sum(weights) for part in self.parts])

    def per_record(self) -> Tensor:
        return torch.cat([part.per_record() for part in self.parts], 1)


def forming_pays(t: int, i: int, o: int) -> bool:
    """Whether the sum of ``t`` outer products ``(o, i)`` is sooner formed, once for norm and sum, than its norm found
    through Gram matrices and the sum by another product."""
    return _TOUCH * i * o <= t * t * (i + o)


def matrix_share(seen: Tensor, back: Tensor) -> Share:
    """The share of a matrix ``(o, i)`` from ``seen (b, t, i)`` and ``back (b, t, o)``, in the cheapest form."""
    b, t, i = seen.shape
    o = back.shape[2]
    if t == 1:
        return Outer(seen.squeeze(1), back.squeeze(1))
    if b * i * o <= KEPT_NUMBERS and forming_pays(t, i, o):
        return Formed(torch.bmm(back.transpose(1, 2), seen))
    return Outers(seen, back)


def wanted(layer: nn.Module, name: str) -> bool:
    """Whether a layer's parameter takes gradients. Rules run while the layer's switches are as the user set them."""
    parameter = layer._parameters.get(name)
    return parameter is not None and parameter.requires_grad


def by_channel(values: Tensor, records: int) -> Formed:
    """``(rows, channels, …)`` to ``(records, channels)``."""
    sums = values.flatten(2).sum(2) if values.ndim > 2 else values
    return Formed(sums if sums.shape[0] == records else sums.view(records, -1, sums.shape[1]).sum(1))


def merged(shares: Sequence[Share]) -> Share:
    """One share for a parameter that was used several times: its gradients add up before they are measured."""
    if len(shares) == 1:
        return shares[0]
    if all(isinstance(share, Outer | Outers) for share in shares):
        pairs = [_as_sequence(share) for share in shares]
        return matrix_share(torch.cat([seen for seen, _ in pairs], 1), torch.cat([back for _, back in pairs], 1))
    total = shares[0].per_record()
    for share in shares[1:]:
        total = total + share.per_record()
    return Formed(total)


def _as_sequence(share: Share) -> tuple[Tensor, Tensor]:
    assert isinstance(share, Outer | Outers)
    if isinstance(share, Outers):
        return share.seen, share.back
    return share.seen.unsqueeze(1), share.back.unsqueeze(1)


def numbers(share: Share) -> int:
    """How many numbers a share keeps in memory."""
    total = 0
    for item in fields(share):  # pyright: ignore[reportArgumentType]
        value = getattr(share, item.name)
        if isinstance(value, Tensor):
            total += value.numel()
        elif isinstance(value, Share):
            total += numbers(value)
        elif isinstance(value, tuple):
            total += sum(numbers(part) for part in value)
    return total
