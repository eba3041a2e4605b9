"""Hugging Face folders: a sequence classifier in safetensors with its tokenizer, read offline, without its own code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, ModelError, UnsafeModelError, UnsupportedError
from .tokens import HuggingFaceClassifier, HuggingFaceEncode

_LONGEST = 512
"""Tokens, where neither tokenizer nor model state a limit."""


def is_huggingface(path: Path) -> bool:
    """Whether this is a folder with ``config.json``."""
    return path.is_dir() and (path / "config.json").is_file()


def class_names(path: Path) -> tuple[str, ...]:
    """Names of the classes in ``config.json``; empty where it names none (``LABEL_0`` is no name)."""
    labels = _config(path).get("id2label")
    if not isinstance(labels, dict):
        return ()
    try:
        names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    except ValueError:
        return ()
    return () if all(name.startswith("LABEL_") for name in names) or len(set(names)) < len(names) else names


def read_huggingface(path: Path, max_length: int | None) -> tuple[HuggingFaceClassifier, HuggingFaceEncode, str]:
    """Model, tokenizer, and the hash over all files of the folder that either reads.

    Raises:
        MissingExtraError: without transformers.
        UnsafeModelError: when the folder brings code of its own, or only a pickle of weights.
        ModelError: when it cannot be read, or weights of the classifier are missing.
    """
    config = _config(path)
    _refuse_code(path, config)
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("Hugging Face models", "text") from error
    with offline(transformers):
        try:
            body, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                path, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:  # transformers raises many kinds on damaged folders
            raise ModelError(f"{path}: cannot be read ({type(error).__name__}: {_first_line(error)})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{path}: has no weights for {', '.join(missing[:4])}: this is no fine-tuned sequence classifier, but an "
            "encoder whose head would be random"
        )
    return *adapted(body, tokenizer, max_length), _folder_hash(path)


def adapted(body: Any, tokenizer: Any, max_length: int | None) -> tuple[HuggingFaceClassifier, HuggingFaceEncode]:
    """A ``transformers`` model and tokenizer as the audit uses them."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UnsupportedError("the tokenizer has neither a padding nor an end token: set tokenizer.pad_token")
        tokenizer.pad_token = tokenizer.eos_token
        body.config.pad_token_id = tokenizer.pad_token_id
    limits = (max_length, tokenizer.model_max_length, _positions(body.config))
    longest = (
        min(int(limit) for limit in limits if limit is not None and limit < 10**9)
        if any(limit is not None and limit < 10**9 for limit in limits)
        else _LONGEST
    )
    types = "token_type_ids" in tokenizer.model_input_names and getattr(body.config, "type_vocab_size", 0) > 1
    return HuggingFaceClassifier(body, token_types=types), HuggingFaceEncode(tokenizer, longest)


def _positions(config: Any) -> int | None:
    """How many positions the model knows; RoBERTa's count from after the padding id."""
    known = getattr(config, "max_position_embeddings", None)
    shifted = getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert")
    return None if known is None or known < 1 else known - (config.pad_token_id + 1 if shifted else 0)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path / 'config.json'}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path / 'config.json'}: is no JSON object")
    return config


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    files = [path / "tokenizer_config.json"]
    tokenizer = json.loads(files[0].read_bytes()) if files[0].is_file() else {}
    if "auto_map" in config or (isinstance(tokenizer, dict) and "auto_map" in tokenizer):
        raise UnsafeModelError(
            f"{path}: the model wants to run Python code of its own (auto_map), which is never done; name a factory "
            "that builds it from code you trust"
        )
    if not any(path.glob("*.safetensors")):
        pickled = [file.name for file in sorted(path.glob("*.bin"))]
        found = f" ({', '.join(pickled)} can run code when loaded)" if pickled else ""
        raise UnsafeModelError(f"{path}: no .safetensors weights{found}; save with safe_serialization=True")


@contextmanager
def offline(transformers: Any) -> Iterator[None]:
    """No look at the network, no progress bars and no advice on the terminal."""
    before, level = os.environ.get("HF_HUB_OFFLINE"), transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _folder_hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".safetensors", ".model"):
            with file.open("rb") as stream:
                digest.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
