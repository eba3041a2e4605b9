"""From texts to the tensors that a text model reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class HuggingFaceEncode:
    """Texts, or pairs of texts, as int64 ``(n, 3, t)``: token ids, attention mask, token types.

    Attributes:
        tokenizer: of the ``transformers`` library.
        max_length: longer texts are cut to so many tokens.
    """

    tokenizer: Any = field(repr=False)
    max_length: int

    def __call__(self, raw: Any, /) -> Tensor:
        texts = as_texts(raw)
        if not texts:
            return torch.zeros(0, 3, 1, dtype=torch.int64)
        found = self._tokens(texts)
        ids = found["input_ids"]
        mask = found.get("attention_mask", torch.ones_like(ids))
        return torch.stack([ids, mask, found.get("token_type_ids", torch.zeros_like(ids))], 1)

    def _tokens(self, texts: Sequence[Any], **options: Any) -> Any:
        columns = ([a for a, _ in texts], [b for _, b in texts]) if isinstance(texts[0], tuple) else (list(texts),)
        return self.tokenizer(
            *columns, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt", **options
        )

    def trimmed(self, x: Tensor) -> Tensor:
        """Encoded texts without the places that are padding for all of them."""
        used = x[:, 1].bool().any(0)
        return x if bool(used.all()) else x[:, :, used]

    def filled(self, x: Tensor) -> Tensor:
        """Which places of each encoded text are no padding, bool ``(n, t)``."""
        return x[:, 1].bool()

    def padded(self, x: Tensor, places: int) -> Tensor:
        """Encoded texts with so many places, or with as many as the longest needs if that is more."""
        x = self.trimmed(x)
        missing = min(places, self.max_length) - x.shape[2]
        if missing <= 0:
            return x
        filler = x.new_tensor([self.tokenizer.pad_token_id, 0, 0])[None, :, None].expand(len(x), 3, missing)
        return torch.cat([filler, x] if self.tokenizer.padding_side == "left" else [x, filler], 2)

    def too_long(self, texts: Sequence[Any]) -> int:
        """How many of the texts are cut."""
        columns = ([a for a, _ in texts], [b for _, b in texts]) if isinstance(texts[0], tuple) else (list(texts),)
        ids = self.tokenizer(*columns, truncation=False, verbose=False)["input_ids"]
        return sum(len(one) > self.max_length for one in ids)

    def offsets(self, texts: Sequence[Any], column: int) -> list[list[Span]] | None:
        """For each token of each text the characters of the given column that it stands for; (0, 0) for none.

        None where the tokenizer does not say.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            return None
        found = self._tokens(texts, return_offsets_mapping=True)
        spans = found["offset_mapping"].tolist()
        if not isinstance(texts[0], tuple):
            return [[(a, b) for a, b in one] for one in spans]
        owners = [found.sequence_ids(i) for i in range(len(texts))]
        return [
            [(a, b) if owner == column else (0, 0) for (a, b), owner in zip(one, own, strict=True)]
            for one, own in zip(spans, owners, strict=True)
        ]

    def words(self) -> dict[str, int]:
        """Tokens that are whole words when they stand after a blank, with their ids."""
        vocabulary = self.tokenizer.get_vocab()
        marked = any(token.startswith("Ġ") for token in vocabulary), any(token.startswith("▁") for token in vocabulary)
        mark = "Ġ" if marked[0] else "▁" if marked[1] else ""
        found = {token.removeprefix(mark): i for token, i in vocabulary.items() if token.startswith(mark)}
        return {word: i for word, i in sorted(found.items(), key=lambda item: item[1]) if word.isalpha()}


@dataclass(frozen=True, slots=True)
class TokenEncode:
    """What a factory's own tokenizer makes of texts: int64 ``(n, t)``, padded within the batch.

    Attributes:
        tokenizer: callable on a list of texts (or pairs); it may have ``offsets(texts)``, the characters that each
            token stands for, and ``vocabulary``, ids of words, which gradient attacks need. With ``filled`` and
            ``padded`` it says what is padding: :class:`PaddedTokenEncode`.
    """

    tokenizer: Callable[[list[Any]], Any] = field(repr=False)

    def __call__(self, raw: Any, /) -> Tensor:
        ids = self.tokenizer(as_texts(raw))
        ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
        ids = torch.as_tensor(ids)
        if ids.dim() < 2 or len(ids) != len(raw) or ids.is_floating_point():
            raise ModelError(
                f"the tokenizer returns {ids.dtype} of shape {tuple(ids.shape)} for {len(raw)} texts: it must return "
                "token ids, int64 (n, t)"
            )
        return ids.long()

    def offsets(self, texts: Sequence[Any], column: int) -> list[list[Span]] | None:
        """As of the tokenizer; None where it has none, or texts are pairs."""
        del column  # of a single text
        offsets = getattr(self.tokenizer, "offsets", None)
        return None if offsets is None or isinstance(texts[0], tuple) else offsets(list(texts))

    def words(self) -> dict[str, int]:
        return dict(getattr(self.tokenizer, "vocabulary", {}))


@dataclass(frozen=True, slots=True)
class PaddedTokenEncode(TokenEncode):
    """The same of a tokenizer that says what is padding, so that texts of similar length can be computed together.

    By having both methods a tokenizer promises that the model's answer does not depend on how much padding a text has.
    Nothing else is taken for that promise: an id for padding alone does not say that the model leaves it out.

    Attributes:
        tokenizer: has ``filled(x)``, bool ``(n, t)``, the places of encoded texts that are no padding, and
            ``padded(x, places)``, the same texts with room for so many of these, or for those of the longest.
    """

    def filled(self, x: Tensor) -> Tensor:
        """Which places of each encoded text are no padding, bool ``(n, t)``."""
        found = torch.as_tensor(self.tokenizer.filled(x))  # type: ignore[attr-defined]
        if found.dtype != torch.bool or found.shape != (len(x), x.shape[-1]):
            raise ModelError(
                f"the tokenizer's filled() returns {found.dtype} of shape {tuple(found.shape)} for ids of shape "
                f"{tuple(x.shape)}: it must return bool (n, t)"
            )
        return found

    def padded(self, x: Tensor, places: int) -> Tensor:
        """Encoded texts with room for so many places, or for those of the longest."""
        found = torch.as_tensor(self.tokenizer.padded(x, places))  # type: ignore[attr-defined]
        if not torch.equal(found[self.filled(found)], x[self.filled(x)]):
            raise ModelError("the tokenizer's padded() changes the tokens of texts: it may only add and remove padding")
        return found


def token_encode(tokenizer: Callable[[list[Any]], Any]) -> TokenEncode:
    """The encoder of a factory's tokenizer, which tells padding where the tokenizer does."""
    tells = all(callable(getattr(tokenizer, name, None)) for name in ("filled", "padded"))
    return (PaddedTokenEncode if tells else TokenEncode)(tokenizer)


class HuggingFaceClassifier(nn.Module):
    """A ``transformers`` sequence classifier as a module from ``(n, 3, t)`` to logits ``(n, k)``."""

    def __init__(self, body: nn.Module, *, token_types: bool) -> None:
        super().__init__()
        self.body = body
        self.token_types = token_types

    def forward(self, x: Tensor) -> Tensor:
        types = {"token_type_ids": x[:, 2]} if self.token_types else {}
        return self.body(input_ids=x[:, 0], attention_mask=x[:, 1], **types).logits


def as_texts(raw: Any) -> list[Any]:
    """A batch of raw inputs as a list of strings, or of pairs of strings."""
    items = raw.tolist() if hasattr(raw, "tolist") else list(raw)
    return [item if isinstance(item, str) else tuple(item) for item in items]
