"""What a text attack needs besides the model: word lists, a sentence encoder, language models, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...attacks.text.gbda import RelaxedService
from ...attacks.text.gradients import Gradients, token_embedding
from ...attacks.text.requests import Service
from ...attacks.text.services import Batched
from ...attacks.text.transformations.masked import MaskedService
from ...attacks.text.victim import Victim
from ..errors import MissingExtraError, ModelError
from ..loading.huggingface import offline
from ..loading.tokens import HuggingFaceEncode, TokenEncode
from ..target import Target


def vocabulary(target: Target) -> tuple[tuple[str, ...], Tensor]:
    """Whole words of the model's vocabulary, and their embeddings ``(n, d)`` on the CPU; empty where it has none."""
    if not isinstance(target.encode, HuggingFaceEncode | TokenEncode):
        return (), torch.empty(0, 0)
    words = {word: i for word, i in target.encode.words().items() if word.isalpha()}
    if not words:
        return (), torch.empty(0, 0)
    layer = token_embedding(target.module)
    return tuple(words), layer.weight.detach()[list(words.values())].float().cpu()


def gradient_service(target: Target, victim: Victim) -> Gradients | None:
    """Gradients of words, where model and tokenizer give them."""
    encode = target.encode
    if "gradients" not in target.access or not isinstance(encode, HuggingFaceEncode | TokenEncode):
        return None
    return Gradients(target.module, victim, encode, encode.offsets, target.device)


def relaxed_service(
    target: Target, victim: Victim, seed: int, ids: Sequence[int], fits: Callable[[str, str], bool] | None = None
) -> RelaxedService | None:
    """Relaxed word choices by gradient descent, where model and tokenizer allow it, among words that fit."""
    encode, (words, vectors) = target.encode, vocabulary(target)
    if "gradients" not in target.access or not isinstance(encode, HuggingFaceEncode | TokenEncode) or not words:
        return None
    return RelaxedService(
        target.module, victim, encode, encode.offsets, words, vectors, seed=seed, ids=ids, device=target.device,
        fits=fits,
    )  # fmt: skip


def sentence_encoder(folder: Path, device: torch.device, batch_size: int = 64) -> Batched:
    """Mean of the last layer's token vectors, as sentence-transformers models are used; from a Hugging Face folder.

    Raises:
        ModelError, MissingExtraError: when it cannot be read.
    """
    model, tokenizer = _read(folder, "AutoModel", device)

    @torch.no_grad()
    def embed(texts: list[str]) -> Sequence[Tensor]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=_longest(model), return_tensors="pt")
        batch = batch.to(device)
        states, mask = model(**batch).last_hidden_state.float(), batch["attention_mask"][:, :, None].float()
        return list(((states * mask).sum(1) / mask.sum(1).clamp_min(1)).cpu())

    return Batched(embed, batch_size)


def language_model(folder: Path, device: torch.device, batch_size: int = 32) -> Batched:
    """Mean negative log likelihood (nats per token) of texts under a causal language model; 0 without a second token.

    Raises:
        ModelError, MissingExtraError: when it cannot be read.
    """
    model, tokenizer = _read(folder, "AutoModelForCausalLM", device)

    @torch.no_grad()
    def losses(texts: list[str]) -> Sequence[float]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=_longest(model), return_tensors="pt")
        batch = batch.to(device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if ids.shape[1] < 2:  # models refuse a batch of empty texts
            return [0.0] * len(texts)
        log_p = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        own = functional.nll_loss(log_p.transpose(1, 2), ids[:, 1:], reduction="none")
        own = own.where(mask[:, 1:].bool(), 0)
        # In steps, so that rounding in batches of another size changes no decision.
        return ((own.sum(1) / mask[:, 1:].sum(1).clamp_min(1)).double() * 1e4).round().div(1e4).cpu().tolist()

    return Batched(losses, batch_size)


def masked_model(folder: Path, device: torch.device, most: int = 20) -> MaskedService:
    """Proposals of a masked language model from a Hugging Face folder.

    Raises:
        ModelError, MissingExtraError: when it cannot be read, or has no mask token.
    """
    model, tokenizer = _read(folder, "AutoModelForMaskedLM", device)
    if tokenizer.mask_token is None:
        raise ModelError(f"{folder}: the tokenizer has no mask token; give a masked language model")

    @torch.no_grad()
    def at_mask(texts: list[str]) -> Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=_longest(model), return_tensors="pt")
        batch = batch.to(device)
        # Where a cut text has lost its mask, argmax gives place 0: a proposal as good as none.
        place = (batch["input_ids"] == tokenizer.mask_token_id).int().argmax(1)
        logits = model(**batch).logits
        return logits[torch.arange(len(texts), device=device), place].float().cpu()

    words = HuggingFaceEncode(tokenizer, 512).words()
    return MaskedService(at_mask, tokenizer.mask_token, words, most)


def needed(services: frozenset[str], builders: Mapping[str, Callable[[], Service | None]]) -> dict[str, Service]:
    """The services that an attack asks for, built only then."""
    built = {name: builders[name]() for name in sorted(services) if name in builders}
    return {name: service for name, service in built.items() if service is not None}


def _read(folder: Path, kind: str, device: torch.device) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("Hugging Face models", "text") from error
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no Hugging Face folder (no config.json)")
    with offline(transformers):
        try:
            model, info = getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many kinds on damaged folders
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"{folder}: cannot be read ({type(error).__name__}: {reason})") from error
    lacking = [key for key in info["missing_keys"] if "pooler" not in key]
    if lacking:
        raise ModelError(f"{folder}: has no weights for {', '.join(sorted(lacking)[:3])}: not a model for this purpose")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{folder}: the tokenizer has no padding token, and no end token to take its place")
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def _longest(model: Any) -> int:
    return min(int(getattr(model.config, "max_position_embeddings", 0) or 512), 512)
